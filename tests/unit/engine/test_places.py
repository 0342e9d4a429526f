"""Where relevance can be read: every call of a module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import rules
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import (
    EXACT,
    Net,
    close,
    noise,
    small_net,
    z_plus,
)


def test_relevance_of_every_module():
    model, x = small_net(), noise(2, 3, 6, 6)
    trace = RelevancePropagator(model, "epsilon_plus").trace(x)
    names = ["", "conv1", "norm1", "conv2", "norm2", "head"]
    assert sorted(trace.calls) == sorted(names)
    for which in ("input", "output"):
        at = trace.layer_relevance(names, 1, which=which)
        assert list(at) == names
        for name in names:
            assert torch.equal(at[name], trace.layer_relevance(name, 1, which=which))
    out = trace.output
    close(trace.layer_relevance("", 1), out * F.one_hot(torch.tensor([1, 1]), 5))
    close(trace.layer_relevance("", 1, which="input"), trace.relevance(1))
    # a layer and the batch norm folded into it: what is between them is what is at the batch norm's output
    for conv, norm in (("conv1", "norm1"), ("conv2", "norm2")):
        between = [(conv, "output"), (norm, "input"), (norm, "output")]
        first, *others = [trace.layer_relevance(n, 1, which=w) for n, w in between]
        assert all(torch.equal(first, o) for o in others) and first.abs().sum() > 0


def test_relevance_at_a_layer_by_hand():
    model = Net(lambda s, x: s.b(s.a(x).relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    x, rule = noise(2, 3), rules.ZPlus(1e-13)
    w, b = model.b.weight.detach(), model.b.bias.detach()
    h = (x @ model.a.weight.T + model.a.bias).relu().detach()
    trace = RelevancePropagator(model, rule).trace(x)
    R = z_plus(h, w, b, trace.output * torch.tensor([0.0, 1.0]))
    close(trace.layer_relevance("b", 1, which="input"), R)
    close(trace.layer_relevance("a", 1), R)
    close(trace.layer_relevance("a", 1, which="input"), trace.relevance(1))


def test_relevance_of_each_call_of_a_reused_module():
    model, x = (
        Net(lambda s, x: s.act(s.a(s.act(s.a(s.act(s.a(x)))))), a=nn.Linear(3, 3), act=nn.ReLU()),
        noise(2, 3).abs(),
    )
    trace = RelevancePropagator(model, rules.Epsilon(1e-3)).trace(x)
    R = trace.layer_relevance("act", seed=torch.ones_like(x))
    assert torch.equal(R, torch.ones_like(x))
    h = [x]
    for _ in range(3):
        h.append((h[-1] @ model.a.weight.T + model.a.bias).relu().detach())
    for call in (2, 1, 0):
        close(trace.layer_relevance("a", seed=torch.ones_like(x), call=call), R)
        z = (h[call] @ model.a.weight.T + model.a.bias).detach()
        c = R / (z + 1e-3 * torch.where(z < 0, -1.0, 1.0))
        R = h[call] * (c @ model.a.weight.detach())
        close(trace.layer_relevance("a", seed=torch.ones_like(x), call=call, which="input"), R)
    assert torch.equal(
        trace.layer_relevance("a", call=-3, seed=torch.ones_like(x)),
        trace.layer_relevance("a", call=0, seed=torch.ones_like(x)),
    )


def test_relevance_of_modules_with_several_inputs_and_outputs():
    class Split(nn.Module):
        def forward(self, a, b):
            return a + b, {"difference": a - b}

    def run(s, x):
        total, rest = s.split(s.a(x), s.b(x))
        return total * 2 - rest["difference"]

    model, x = Net(run, split=Split(), a=nn.Linear(3, 2), b=nn.Linear(3, 2)), noise(2, 3)
    trace = RelevancePropagator(model, EXACT).trace(x)
    R = trace.output * torch.tensor([1.0, 0.0])
    outputs = trace.layer_relevance("split", 0)
    assert len(outputs) == 2
    close(sum(outputs), R)
    a, b = model.a(x).detach(), model.b(x).detach()  # the model is a + 3 b
    inputs = trace.layer_relevance("split", 0, which="input")
    close(inputs[0], R * a / (a + 3 * b))
    close(inputs[1], R * 3 * b / (a + 3 * b))


def test_modules_that_have_no_relevance():
    def run(s, x):
        s.constant(torch.ones(2, 3, dtype=x.dtype))
        s.unused(x)
        return s.a(x)

    parts = {"constant": nn.Linear(3, 3), "unused": nn.Linear(3, 4), "never": nn.ReLU(), "a": nn.Linear(3, 2)}
    trace = RelevancePropagator(Net(run, **parts)).trace(noise(2, 3))
    assert torch.equal(trace.layer_relevance("unused"), torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(InputError, match="constant.*depends"):
        trace.layer_relevance("constant")
    with pytest.raises(InputError, match="never"):
        trace.layer_relevance("never")
    with pytest.raises(InputError, match="Did you mean 'unused'"):
        trace.layer_relevance("unuse")
    with pytest.raises(InputError, match="ran 1 times"):
        trace.layer_relevance("a", call=1)
    with pytest.raises(InputError, match="side 'inputs'"):
        trace.layer_relevance("a", which="inputs")
