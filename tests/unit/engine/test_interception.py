"""Every torch call is seen, also those that write into memory."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import rules
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import (
    EXACT,
    ZPLUS,
    Net,
    close,
    explain,
    gradient_times_input,
    noise,
)


def buffer_then(s, x):
    out = torch.zeros(x.shape[0], 6, dtype=x.dtype)
    out[..., 1:5] = x
    return s.layer(out)


def buffer_view_then(s, x):
    out = torch.zeros(x.shape[0], 6, dtype=x.dtype)
    out[:, 1:5].copy_(x)
    return s.layer(out)


def slice_iadd(s, x):
    y = s.a(x)
    y[:, 0] += s.b(x)[:, 1]
    return s.c(y.relu())


def slice_assign(s, x):
    y = s.a(x).relu()
    y[:, 1:3] = s.b(x)[:, :2]
    return s.c(y)


def chunk_in_place(s, x):
    left, right = s.a(x).chunk(2, 1)
    left.relu_()
    right *= 2
    return s.c(torch.cat([right, left], 1))


def unbind_in_place(s, x):
    rows = s.a(x).unbind(1)
    rows[0].mul_(-1)
    return s.c(torch.stack(rows, 1))


def chunk_out_of_place(s, x):
    left, right = s.a(x).chunk(2, 1)
    return s.c(torch.cat([right * 2, left.relu()], 1))


def writes_into_its_input(s, x):
    x.mul_(2)
    x[:, 0] = 1.0
    return s.c(s.a(x).relu_())


def view_of_a_relu(s, x):
    y = s.a(x).relu()
    y[:, :2].sub_(3.0)  # no longer non-negative
    return s.c(y)


def masked(s, x):
    y = s.a(x)
    y[y < 0] = 0
    return s.c(y)


def out_of_place(name):
    """The same functions, without writing into anything."""
    return {
        "buffer_then": lambda s, x: s.layer(F.pad(x, (1, 1))),
        "buffer_view_then": lambda s, x: s.layer(F.pad(x, (1, 1))),
        "slice_iadd": lambda s, x: s.c(torch.cat([s.a(x)[:, :1] + s.b(x)[:, 1:2], s.a(x)[:, 1:]], 1).relu()),
        "slice_assign": lambda s, x: s.c(torch.cat([s.a(x).relu()[:, :1], s.b(x)[:, :2], s.a(x).relu()[:, 3:]], 1)),
        "chunk_in_place": lambda s, x: s.c(torch.cat([s.a(x)[:, 2:] * 2, s.a(x)[:, :2].relu()], 1)),
        "unbind_in_place": lambda s, x: s.c(torch.cat([-s.a(x)[:, :1], s.a(x)[:, 1:]], 1)),
        "chunk_out_of_place": lambda s, x: s.c(torch.cat([s.a(x)[:, 2:] * 2, s.a(x)[:, :2].relu()], 1)),
        "writes_into_its_input": lambda s, x: s.c(s.a(torch.cat([torch.ones_like(x[:, :1]), 2 * x[:, 1:]], 1)).relu()),
        "view_of_a_relu": lambda s, x: s.c(torch.cat([s.a(x).relu()[:, :2] - 3, s.a(x).relu()[:, 2:]], 1)),
        "masked": lambda s, x: s.c(s.a(x).relu()),
    }[name]


WRITERS = [
    buffer_then, buffer_view_then, slice_iadd, slice_assign, chunk_in_place, unbind_in_place, chunk_out_of_place,
    writes_into_its_input, view_of_a_relu, masked,
]  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS, ids=lambda f: f.__name__)
def test_writing_into_memory(writer):
    layers = {k: nn.Linear(4, 4) for k in "abc"}
    model, x = Net(writer, **layers, layer=nn.Linear(6, 4)), noise(3, 4)
    twin = copy.deepcopy(model)
    twin.function = out_of_place(writer.__name__)
    before = x.clone()
    trace = RelevancePropagator(model, EXACT, unknown="error").trace(x)
    assert torch.equal(x, before)
    with torch.no_grad():
        assert torch.equal(trace.output, model(x.clone()))
    close(trace.relevance(2), gradient_times_input(twin, x, 2))
    for rule in ("epsilon_plus", ZPLUS, rules.AlphaBeta(2, 1), rules.GeneralizedGamma()):
        close(trace.relevance(2, composite=rule), explain(twin, x, 2, rule))


def index_zeroed(y):
    index = torch.arange(6).flip(0)
    out = y[:, index]
    index.zero_()
    return y, out


def mask_zeroed(y):
    mask = y > 0
    out = torch.where(mask, y, 0.0)
    mask.zero_()
    return y, out


# what autograd keeps for its own backward pass, and the model then writes into; and the same out of place
KEPT = {
    "max_pool": (
        lambda y: (F.max_pool1d(y[:, None], 3, 1, 1)[:, 0], y.mul_(2))[::-1],
        lambda y: (2 * y, F.max_pool1d(y[:, None], 3, 1, 1)[:, 0]),
    ),
    "amax": (
        lambda y: (y.amax(1, keepdim=True), y.mul_(2))[::-1],
        lambda y: (2 * y, y.amax(1, keepdim=True)),
    ),
    "result of amax": (
        lambda y: (y, y.amax(1, keepdim=True).mul_(3)),
        lambda y: (y, 3 * y.amax(1, keepdim=True)),
    ),
    "maximum": (
        lambda y: (torch.maximum(y, y.flip(1)), y.mul_(2))[::-1],
        lambda y: (2 * y, torch.maximum(y, y.flip(1))),
    ),
    "index": (index_zeroed, lambda y: (y, y.flip(1))),
    "mask": (mask_zeroed, lambda y: (y, y.relu())),
}


@pytest.mark.parametrize("name", KEPT)
def test_writing_into_what_autograd_keeps(name):
    in_place, plain = KEPT[name]
    layers, x = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2)}, noise(3, 4)
    model = Net(lambda s, x: s.b(torch.stack(torch.broadcast_tensors(*in_place(s.a(x)))).sum(0)), **layers)
    twin = Net(lambda s, x: s.b(sum(plain(s.a(x)))), **layers)
    trace = RelevancePropagator(model, EXACT, unknown="error").trace(x)
    with torch.no_grad():
        assert torch.equal(trace.output, model(x))
    close(trace.relevance(1), gradient_times_input(twin, x, 1))


RESHAPED_LAST = {
    "instance_norm": lambda s, x: s.head((F.instance_norm(x)).relu_().flatten(1)),
    "avg_pool1d": lambda s, x: s.head(F.avg_pool1d(x, 3, 1, 1).relu_().flatten(1)),
    "conv1d": lambda s, x: s.head(s.conv(x).relu_().flatten(1)),
    "linear": lambda s, x: s.head(s.linear(x).relu_().flatten(1)),
}


@pytest.mark.parametrize("name", RESHAPED_LAST)
def test_writing_into_what_torch_made_by_a_reshape(name):
    parts = {"conv": nn.Conv1d(2, 2, 3, padding=1), "linear": nn.Linear(5, 5), "head": nn.Linear(10, 2)}
    model, x = Net(RESHAPED_LAST[name], **parts), noise(2, 2, 5)
    twin = copy.deepcopy(model)
    twin.function = {
        "instance_norm": lambda s, x: s.head(F.instance_norm(x).relu().flatten(1)),
        "avg_pool1d": lambda s, x: s.head(F.avg_pool1d(x, 3, 1, 1).relu().flatten(1)),
        "conv1d": lambda s, x: s.head(s.conv(x).relu().flatten(1)),
        "linear": lambda s, x: s.head(s.linear(x).relu().flatten(1)),
    }[name]
    assert torch.equal(explain(model, x), explain(twin, x))
    if name != "instance_norm":  # its statistics are constants for relevance
        close(explain(model, x), gradient_times_input(twin, x))
