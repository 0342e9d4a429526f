"""Nothing of a trace outlives it: no graph on what the model keeps, no alias that the model has written into."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp.propagator import RelevancePropagator


class Net(nn.Module):
    """A dense layer, and a function of the module and the input for the rest."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.a = nn.Linear(6, 4).double()
        big = torch.zeros(2, 3, 4, dtype=torch.double)
        self.register_buffer("big", big)
        self.register_buffer("mem", big[0])
        self.register_buffer("plain", torch.ones(3, 4, dtype=torch.double))
        self.frozen = nn.Parameter(torch.ones(3, 4, dtype=torch.double), requires_grad=False)
        self.attribute = torch.ones(3, 4, dtype=torch.double)
        self.listed = [torch.ones(3, 4, dtype=torch.double)]

        self.writes_later = True

    def forward(self, x):
        return self.run(self, x)

    def later(self, constant):
        """Write into a constant that was used; autograd refuses, so what is expected is of a net that does not."""
        if self.writes_later:
            constant.fill_(100.0)


X = torch.randn(3, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.double)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.double)


def into(target, write):
    """What a function writes into a tensor leaves there."""
    write(target)
    return target


#: Activations written into a fresh constant, or constants written into after they were used.
WRITES = {
    "part of a sum": lambda s, x: into(zeros(3, 8), lambda y: y[:, :4].add_(s.a(x))),
    "iadd": lambda s, x: zeros(3, 4).__iadd__(s.a(x)),
    "isub": lambda s, x: ones(3, 4).__isub__(s.a(x)),
    "imul": lambda s, x: ones(3, 4).__imul__(s.a(x)),
    "idiv": lambda s, x: ones(3, 4).__itruediv__(s.a(x).square() + 1),
    "index_add_": lambda s, x: zeros(3, 8).index_add_(1, torch.arange(4), s.a(x)),
    "scatter_add_": lambda s, x: zeros(3, 8).scatter_add_(1, torch.arange(4).expand(3, 4), s.a(x)),
    "index_put_": lambda s, x: zeros(3, 8).index_put_((torch.arange(3),), F.pad(s.a(x), (0, 4)), accumulate=True),
    "addcmul_": lambda s, x: ones(3, 4).addcmul_(s.a(x), ones(4)),
    "addmm_": lambda s, x: ones(3, 4).addmm_(x, s.a.weight.T),
    "lerp_": lambda s, x: ones(3, 4).lerp_(s.a(x), 0.25),
    "copy_": lambda s, x: zeros(3, 4).copy_(s.a(x)) * 2,
    "setitem": lambda s, x: into(zeros(3, 8), lambda y: y.__setitem__((slice(None), slice(0, 4)), s.a(x))),
    "several": lambda s, x: ones(3, 4).mul_(s.a(x)).add_(1).add_(s.a(x), alpha=2),
    "factor written later": lambda s, x: (lambda c: [s.a(x) * c, s.later(c)][0])(2 * ones(3, 4)),
    "shift written later": lambda s, x: (lambda c: [F.relu(s.a(x) + c), s.later(c)][0])(2 * ones(3, 4)),
    "weight written later": lambda s, x: (lambda w: [x @ w, s.later(w)][0])(2 * ones(6, 4)),
    "slope written later": lambda s, x: (lambda w: [F.prelu(s.a(x), w), s.later(w)][0])(0.25 * ones(1)),
    "cumsum_ of an activation": lambda s, x: s.a(x).cumsum_(1),
    "index_add_ to an activation": lambda s, x: (lambda h: h.index_add_(1, torch.arange(2), h[:, :2] * 3))(s.a(x)),
}


@pytest.mark.parametrize("name", WRITES)
def test_relevance_is_of_what_was_there_before_the_write(name):
    """The rules' gradient is autograd's own."""
    model, leaf = Net(WRITES[name]), X.clone().requires_grad_()
    model.writes_later = False
    (expected,) = torch.autograd.grad(model(leaf).sum(), leaf)
    model.writes_later = True
    trace = RelevancePropagator(model, "gradient").trace(X)
    for _ in range(2):
        found = trace.relevance(lambda out: out.sum(1), seed="one")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def live_tensors():
    """How many tensors there are that were not there before, with the cycle collector off."""
    gc.collect()
    gc.freeze()  # what is there now is not looked at again
    gc.disable()
    yield lambda: sum(type(o) in (Tensor, nn.Parameter) for o in gc.get_objects())
    gc.enable()
    gc.unfreeze()


def test_no_tensor_outlives_its_trace(live_tensors):
    for name, run in WRITES.items():
        model = Net(run)
        counts = []
        for _ in range(4):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                RelevancePropagator(model, "epsilon").trace(X).relevance(0, account=True)
            counts.append(live_tensors())
        assert counts[-1] <= counts[1], name


#: Activations written into what the model keeps; what is returned depends on them.
STATES = {
    "view of a buffer": lambda s, x: s.mem.copy_(F.relu(s.a(x))).clone(),
    "row of the base": lambda s, x: s.big[0].copy_(s.a(x)) + s.mem,
    "the base": lambda s, x: [s.big.copy_(s.a(x).expand(2, 3, 4)), s.mem * 2][1],
    "in place, returned": lambda s, x: s.plain.mul_(0).add_(s.a(x)),
    "view, returned": lambda s, x: s.mem.mul_(0.5).add_(s.a(x)),
    "frozen parameter": lambda s, x: s.frozen.copy_(s.a(x)) * 2,
    "attribute": lambda s, x: s.attribute.copy_(s.a(x)) * 2,
    "listed": lambda s, x: s.listed[0].copy_(s.a(x)) * 2,
    "bound to a name": lambda s, x: [setattr(s, "state", s.a(x) * 2), s.state][1],
    "setitem": lambda s, x: [s.mem.__setitem__(0, s.a(x)[0]), s.mem * 2][1],
}


@pytest.mark.parametrize("name", STATES)
def test_what_a_model_keeps_is_free_of_graphs(name):
    model, plain = Net(STATES[name]), Net(STATES[name])
    plain.load_state_dict(copy.deepcopy(model.state_dict()))
    kept = {"mem": model.mem, "big": model.big, "plain": model.plain, "frozen": model.frozen, "at": model.attribute}
    leaf = X.clone().requires_grad_()
    out = plain(leaf)
    (expected,) = torch.autograd.grad(out[:, 0].sum(), leaf)
    trace = RelevancePropagator(model, "gradient").trace(X)
    torch.testing.assert_close(trace.output, out.detach(), rtol=0, atol=0)
    torch.testing.assert_close(trace.relevance(0, seed="one"), expected, rtol=1e-12, atol=1e-12)
    now = {"mem": model.mem, "big": model.big, "plain": model.plain, "frozen": model.frozen, "at": model.attribute}
    assert all(now[key] is kept[key] for key in kept), "another object is in its place"
    for t in (*now.values(), *model.listed, *(t for t in [getattr(model, "state", None)] if t is not None)):
        assert not t.requires_grad and t.grad_fn is None and t.is_leaf and not hasattr(t, "_saliency_lrp")
    assert isinstance(model.frozen, nn.Parameter)
    assert model.mem.data_ptr() == model.big.data_ptr() and model.mem._base is model.big
    with torch.no_grad():
        torch.testing.assert_close(model(X), plain(X), rtol=0, atol=0)
    RelevancePropagator(model, "epsilon").trace(X).relevance(0)  # and once more
    leaf = X.clone().requires_grad_()
    assert torch.autograd.grad(model(leaf).sum(), leaf)[0].abs().sum() > 0  # the model can still be trained


def test_a_caller_keeps_a_tensor_that_the_model_writes_into():
    cache = zeros(3, 4)
    model = Net(lambda s, x: cache.copy_(s.a(x)) * 2)
    trace = RelevancePropagator(model, "gradient").trace(X)
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(2 * model.a(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(trace.relevance(1, seed="one"), expected, rtol=1e-12, atol=1e-12)
    assert cache.is_leaf and not cache.requires_grad and not hasattr(cache, "_saliency_lrp")
    torch.testing.assert_close(cache, model.a(X).detach())


def test_a_model_may_write_into_its_parameters():
    """As a codebook is, under no_grad: relevance takes them for constants, as autograd does."""

    def run(s, x):
        h = s.a(x)
        with torch.no_grad():
            s.codes.copy_(h)
        return h * s.codes

    model = Net(run)
    model.codes = nn.Parameter(zeros(3, 4))
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad((model.a(leaf) * model.a(X).detach()).sum(), leaf)
    trace = RelevancePropagator(model, "gradient").trace(X)
    torch.testing.assert_close(trace.relevance(lambda out: out.sum(1), seed="one"), expected, rtol=1e-12, atol=1e-12)
    assert model.codes.is_leaf and model.codes.requires_grad and model.codes.grad is None
    assert any("parameter" in note for note in trace.report().notes)


def test_no_graph_stays_where_the_forward_raises():
    def run(s, x):
        s.mem.copy_(s.a(x))
        raise KeyError("stop")

    model = Net(run)
    with pytest.raises(KeyError):
        RelevancePropagator(model).trace(X)
    assert not model.mem.requires_grad and not model.big.requires_grad and model.mem.is_leaf


@pytest.mark.parametrize("form", ["trace", "bound_trace"])
@pytest.mark.parametrize("change", ["none", "write", "view"])
def test_records_of_an_earlier_call_are_not_trusted(form, change):
    """An activation that somebody kept is a constant of the next call, whatever the earlier one noted on it."""
    kept: list[Tensor] = []
    first = Net(lambda s, x: into(s.a(x).relu(), kept.append) * 2)
    getattr(RelevancePropagator(first, "epsilon"), form)(X).relevance(0)
    (held,) = kept
    values = held.detach().clone()
    if change == "write":
        with torch.no_grad():
            held.mul_(-3)
        values = values * -3
    elif change == "view":
        held, values = held[:, ::2].repeat(1, 2), values[:, ::2].repeat(1, 2)
    second = Net(lambda s, x: torch.cat([s.a(x) * held, s.a(x) + held.abs()], 1))
    leaf = X.clone().requires_grad_()
    plain = torch.cat([second.a(leaf) * values, second.a(leaf) + values.abs()], 1)
    for k in (0, 5):
        (expected,) = torch.autograd.grad(plain[:, k].sum(), leaf, retain_graph=True)
        trace = getattr(RelevancePropagator(second, "gradient"), form)(X)
        torch.testing.assert_close(trace.output, plain.detach())
        torch.testing.assert_close(trace.relevance(k, seed="one"), expected, rtol=1e-12, atol=1e-12)
