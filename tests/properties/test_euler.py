"""Euler's identity in the account: a function that is no sum cannot pass for one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lrp import functions
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import EXACT, Net, noise


def squared_lengths(h):
    """Of degree two: by Euler's identity it hands back twice what it computed."""
    if torch.overrides.has_torch_function((h,)):
        return torch.overrides.handle_torch_function(squared_lengths, (h,), h)
    return h.square().cumsum(1)


def roots(h):
    if torch.overrides.has_torch_function((h,)):
        return torch.overrides.handle_torch_function(roots, (h,), h)
    return (h.abs() + 1).sqrt()


def shares(h):
    """A sum, with a constant."""
    if torch.overrides.has_torch_function((h,)):
        return torch.overrides.handle_torch_function(shares, (h,), h)
    return 0.5 * h + 0.25 * h.flip(1) + 3


def report_of(function, dtype=torch.float64):
    model = Net(lambda s, x: s.b(function(s.a(x))), a=nn.Linear(4, 5), b=nn.Linear(5, 3)).to(dtype)
    trace = RelevancePropagator(model, EXACT).trace(noise(3, 4).to(dtype))
    trace.relevance(0, account=True)
    return trace.report()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("function", [squared_lengths, roots])
def test_what_is_registered_as_a_sum_and_is_none_is_told(function, dtype):
    functions.register(function, "sum")
    report = report_of(function, dtype)
    assert any(function.__name__ in w and "is none" in w for w in report.warnings)
    (row,) = (r for r in report.rows if r.op == function.__name__)
    assert row.open != 0
    if function is squared_lengths:  # f(0) = 0 and degree two
        assert row.open == pytest.approx(-row.arrived, rel=1e-5)


SUMS = {
    "shares": shares,
    "add": lambda h: h + h.flip(1) + 2,
    "mean": lambda h: h.view(-1, 5).mean(1, keepdim=True).expand(-1, 5),
    "cumsum": lambda h: h.cumsum(1),
    "norm": lambda h: torch.linalg.vector_norm(h, dim=1, keepdim=True).expand(-1, 5),
    "subtract": lambda h: 3 - h,
    "lerp": lambda h: torch.lerp(h, h.flip(1), 0.3),
    "in place": lambda h: h.add_(h.flip(1)).sub_(1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SUMS)
def test_sums_close(name, dtype):
    if name == "shares":
        functions.register(shares, "sum")
    report = report_of(SUMS[name], dtype)
    assert not any("counts as a sum" in w for w in report.warnings)
    assert all(row.open == 0 for row in report.rows)
