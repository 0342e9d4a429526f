"""What a model adds to its activations as it is has a name in the account."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers.accounts import NOT_THE_SUM, account, dense
from tests.helpers.tiny import Net


def added(constant):
    """A model that adds something of its own, three times the input: a quarter arrives."""

    def run(s, x):
        return s.head(x + constant(s))

    return run


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(4, 2)
        self.positions.weight.data.fill_(3.0)


CONSTANTS = {
    "parameter": (lambda s: s.pos_embed, "position embeddings (pos_embed)"),
    "part of a buffer": (lambda s: s.table[:1], "the constant table"),
    "embedding module": (lambda s: s.inner.positions(torch.tensor([1])), "position embeddings (inner.positions)"),
    "without a name": (lambda s: torch.full((1, 2), 3.0).double(), "constants added in the model itself"),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_constants_are_named(case):
    constant, name = CONSTANTS[case]
    model = Net(added(constant), head=dense([[1.0, 1.0]]), inner=Table()).double()
    model.pos_embed = nn.Parameter(torch.full((1, 2), 3.0).double())
    model.register_buffer("table", torch.full((5, 2), 3.0).double())
    report = account(model, torch.ones(1, 2).double())
    assert report.sinks[0] == (name, pytest.approx(0.75))
    assert report.verdict == f"25 % of the score arrived at the input; {name} took 75 %. {NOT_THE_SUM}"


JOINED = {
    "cat": lambda s, x: torch.cat([s.cls_token.expand(1, 1, 2), x], 1),
    "stack": lambda s, x: torch.stack([s.cls_token[0, 0], x[0, 0]])[None],
    "where": lambda s, x: torch.where(torch.tensor([[[True], [False]]]), s.cls_token, x),
}


@pytest.mark.parametrize("case", JOINED)
def test_class_tokens_are_named(case):
    """Σ over two tokens, the learned one of 4, the input's of 1: it gets 80 %."""
    model = Net(lambda s, x: JOINED[case](s, x).sum((1, 2))[:, None])
    model.cls_token = nn.Parameter(torch.full((1, 1, 2), 2.0).double())
    report = account(model, torch.full((1, 1, 2), 0.5).double())
    assert report.sinks[0] == ("constants joined on the way (cls_token)", pytest.approx(0.8))
    assert "20 % of the score arrived" in report.verdict
