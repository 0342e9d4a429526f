"""Guided backpropagation and the DeconvNet stop negative signals at every ReLU, however a network spells it."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp.explainers import get
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import Net, noise


class Rectified(torch.autograd.Function):
    """A ReLU (bounded above, perhaps) that passes back what is positive, and for ``guided`` was positive, too."""

    @staticmethod
    def forward(ctx, x, guided, high):
        ctx.save_for_backward(x)
        ctx.guided, ctx.high = guided, high
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        g = g.clamp(min=0)
        return g * ((x > 0) & (x < ctx.high)) if ctx.guided else g, None, None


def set_items(h):
    h = h + 0
    h[h < 0] = 0
    return h


SPELLINGS = {
    "F.relu": F.relu,
    "x.relu()": lambda h: h.relu(),
    "relu_": lambda h: (h + 0).relu_(),
    "F.relu in place": lambda h: F.relu(h + 0, inplace=True),
    "nn.ReLU": nn.ReLU(),
    "clamp(min=0)": lambda h: h.clamp(min=0),
    "clamp(0)": lambda h: torch.clamp(h, 0.0),
    "clamp_min": lambda h: torch.clamp_min(h, 0),
    "clamp_": lambda h: (h + 0).clamp_(min=0),
    "clamp with a tensor": lambda h: h.clamp(min=torch.zeros_like(h)),
    "clip": lambda h: h.clip(0),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "maximum, the other way": lambda h: torch.maximum(torch.zeros((), dtype=h.dtype), h),
    "max of two": lambda h: torch.max(h, torch.zeros(1, dtype=h.dtype)),
    "fmax": lambda h: torch.fmax(h, torch.zeros_like(h)),
    "x * (x > 0)": lambda h: h * (h > 0),
    "(x > 0) * x": lambda h: (h > 0) * h,
    "x * (x > 0).float()": lambda h: h * (h > 0).to(h.dtype),
    "mul_": lambda h: (k := h + 0).mul_(k > 0),
    "heaviside": lambda h: h * torch.heaviside(h.detach(), torch.zeros((), dtype=h.dtype)),
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "where with a number": lambda h: torch.where(h >= 0, h, 0.0),
    "where, turned round": lambda h: torch.where(h <= 0, 0.0, h),
    "x.where": lambda h: h.where(h > 0, 0.0),
    "threshold": lambda h: F.threshold(h, 0.0, 0.0),
    "nn.Threshold": nn.Threshold(0, 0),
    "hardtanh": lambda h: F.hardtanh(h, 0.0, 1e9),
    "leaky_relu with slope 0": lambda h: F.leaky_relu(h, 0.0),
    "prelu with slope 0": lambda h: F.prelu(h, torch.zeros(1, dtype=h.dtype)),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.0),
    "masked_fill_": lambda h: (k := h + 0).masked_fill_(k < 0, 0.0),
    "h[h < 0] = 0": set_items,
    "(x + |x|) / 2": lambda h: (h + h.abs()) / 2,
    "half of both": lambda h: 0.5 * (h.abs() + h),
    "x - min(x, 0)": lambda h: h - h.clamp(max=0),
    "-min(-x, 0)": lambda h: -torch.minimum(-h, torch.zeros_like(h)),
}
#: Spellings in which nothing but a value that is cut off tells a ReLU from the identity.
TOLD_BY_NEGATIVE_VALUES = {
    "clamp with a tensor", "x * (x > 0).float()", "heaviside", "(x + |x|) / 2", "half of both", "x - min(x, 0)",
    "-min(-x, 0)",
}  # fmt: skip
BOUNDED = {
    "relu6": F.relu6,
    "nn.ReLU6": nn.ReLU6(),
    "hardtanh": lambda h: F.hardtanh(h, 0.0, 6.0),
    "clamp": lambda h: h.clamp(0, 6),
}


def net(relu, bias=0.0):
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.c(relu(s.b(relu(s.a(x))))), a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)
    )  # fmt: skip
    model.a.bias.data += bias
    return model


def right(guided, high, x, bias=0.0):
    leaf = x.clone().requires_grad_()
    model = net(lambda h: Rectified.apply(h, guided, high), bias)
    return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]


@pytest.mark.parametrize("bias", [0.0, 40.0], ids=["signs of both kinds", "first layer all positive"])
@pytest.mark.parametrize("method", ["guided_backprop", "deconv"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_relu_is_a_relu(name, method, bias):
    if bias and name in TOLD_BY_NEGATIVE_VALUES:
        pytest.skip("nothing in these values tells it from the identity")
    x, model = noise(3, 6), net(SPELLINGS[name], bias)
    want = model(x).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = get(method, model).explain(x, 1)
    torch.testing.assert_close(got, right(method == "guided_backprop", float("inf"), x, bias), rtol=1e-9, atol=1e-12)
    composite = {"deconv": "deconvnet"}.get(method, method)
    assert torch.equal(RelevancePropagator(model, composite).trace(x).output, want)


@pytest.mark.parametrize("method", ["guided_backprop", "deconv"])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_relu_that_is_bounded_above(name, method):
    x = 9 * noise(3, 6)
    got = get(method, net(BOUNDED[name])).explain(x, 1)
    torch.testing.assert_close(got, right(method == "guided_backprop", 6.0, x), rtol=1e-9, atol=1e-12)


NOT = {
    "mask of something else": lambda h: h * (h.roll(1, 0) > 0),
    "leaky": lambda h: F.leaky_relu(h, 0.1),
    "shifted": lambda h: F.threshold(h, 0.1, 0.0),
    "clamp above": lambda h: h.clamp(max=0.0),
    "abs": lambda h: h.abs(),
    "maximum of two": lambda h: torch.maximum(h, -h),
    "gelu": F.gelu,
}


@pytest.mark.parametrize("method", ["guided_backprop", "deconv"])
@pytest.mark.parametrize("name", NOT)
def test_what_is_no_relu_gets_the_gradient_and_it_is_said(name, method):
    model, x = net(NOT[name]), noise(3, 6)
    with pytest.warns(UserWarning, match="no ReLU"):
        got = get(method, model).explain(x, 1)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0], rtol=1e-9, atol=1e-12)


def test_a_relu_read_twice_is_one():
    """Its two ways back are added before they are cut."""
    model = Net(lambda s, x: (s.b(F.dropout(h := s.a(x).relu(), training=False)) + s.c(h)), a=nn.Linear(6, 8),
                b=nn.Linear(8, 3), c=nn.Linear(8, 3))  # fmt: skip
    x = noise(4, 6)
    plain = Net(lambda s, x: (s.b(h := Rectified.apply(s.a(x), True, float("inf"))) + s.c(h)), a=model.a, b=model.b,
                c=model.c)  # fmt: skip
    leaf = x.clone().requires_grad_()
    want = torch.autograd.grad(plain(leaf)[:, 1].sum(), leaf)[0]
    torch.testing.assert_close(get("guided_backprop", model).explain(x, 1), want, rtol=1e-9, atol=1e-12)
