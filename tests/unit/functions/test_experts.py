"""Mixtures of experts in the spellings that models use: loops that write into zeros, and one fused product."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lrp import RelevancePropagator, rules
from tests.helpers.tiny import Net, noise
from tests.helpers.torchvision_cpu import import_torchvision

ROWS, EXPERTS, CHOSEN = 6, 4, 2
X = noise(ROWS, 8).float()
#: weights of a router that the input does not decide, so that what passes it is linear
GATES = torch.rand(ROWS, CHOSEN, generator=torch.Generator().manual_seed(1))
CHOICE = torch.tensor([[0, 1], [2, 1], [3, 0], [1, 3], [2, 0], [1, 2]])


def eager(s, x):
    """Expert by expert, added into zeros, as Hugging Face's eager experts."""
    out = torch.zeros(ROWS, 8)
    for k in range(EXPERTS):
        row, place = (k == CHOICE).nonzero(as_tuple=True)
        out.index_add_(0, row, (x[row] @ s.weights[k]) * GATES[row, place, None])
    return out


def fused(product):
    """Rows sorted by expert, one product for all, put back in order."""

    def run(s, x):
        order = CHOICE.flatten().argsort(stable=True)
        ends = CHOICE.flatten().bincount(minlength=EXPERTS).cumsum(0).int()
        rows = product(x.repeat_interleave(CHOSEN, 0)[order], s.weights, offs=ends)
        rows = (rows * GATES.flatten()[order, None])[order.argsort()]
        return rows.view(ROWS, CHOSEN, 8).sum(1)

    return run


def model(function):
    net = Net(function, head=nn.Linear(8, 3, bias=False))
    net.weights = nn.Parameter(noise(EXPERTS, 8, 8, seed=2))
    body = net.function
    net.function = lambda s, x: s.head(body(s, x).relu())
    return net.float()


SPELLINGS = {"eager": eager, "grouped": fused(torch._grouped_mm)}
if hasattr(nn.functional, "grouped_mm"):
    SPELLINGS["F.grouped_mm"] = fused(nn.functional.grouped_mm)


@pytest.mark.parametrize("name", SPELLINGS)
def test_experts_are_gradient_times_input_where_all_is_linear(name):
    net = model(SPELLINGS[name])
    trace = RelevancePropagator(net, rules.Epsilon(1e-9), unknown="error").trace(X)
    assert torch.equal(trace.output, net(X).detach())
    leaf = X.clone().requires_grad_()
    mixed = torch.einsum("nkio,ni,nk->no", net.weights[CHOICE], leaf, GATES)  # no loop, no sorting
    (g,) = torch.autograd.grad(net.head(mixed.relu())[:, 1].sum(), leaf)
    torch.testing.assert_close(trace.relevance(1), g * X, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace.relevance([0, 1])[1], trace.relevance(1))


def test_other_rules_see_each_expert():
    """z⁺ through an expert, one contribution at a time."""
    net = Net(lambda s, x: torch._grouped_mm(x, s.weights, offs=torch.tensor([2, 2, 5, 6], dtype=torch.int32)))
    net.weights = nn.Parameter(noise(EXPERTS, 8, 8, seed=2))
    net.float()
    expert = [0, 0, 2, 2, 2, 3]
    trace = RelevancePropagator(net, rules.ZPlus(), unknown="error").trace(X)
    R = trace.output * (torch.arange(8) == 1)
    for n, k in enumerate(expert):
        c = (X[n, :, None] * net.weights[k].detach()).clamp(min=0)
        wanted = (c / c.sum(0) * R[n]).sum(1)
        torch.testing.assert_close(trace.relevance(1)[n], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("composite", ["attnlrp", "auto"])
def test_hugging_face_experts_agree(composite):
    pytest.importorskip("transformers")
    import_torchvision()
    from transformers import MixtralConfig, MixtralForCausalLM

    ids = torch.tensor([[2, 5, 7, 3, 11]])
    config = MixtralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    maps = {}
    for way in ("eager", "grouped_mm"):
        torch.manual_seed(0)
        config._experts_implementation = way
        lm = MixtralForCausalLM(config).eval()
        with torch.no_grad():
            for p in lm.parameters():
                p.mul_(8 if p.dim() > 1 else 1)
        trace = RelevancePropagator(lm, composite, unknown="error").trace(input_ids=ids)
        assert torch.equal(trace.output.logits, lm(input_ids=ids).logits)
        maps[way] = trace.relevance(7)
    assert maps["eager"].all()
    torch.testing.assert_close(maps["eager"], maps["grouped_mm"], rtol=1e-4, atol=1e-6)
