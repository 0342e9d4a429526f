"""RelevancePropagator and Trace: what a trace answers, from one forward pass, without changing or keeping anything."""

from __future__ import annotations

import gc
import re
import resource
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import composites, rules
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import (
    EXACT,
    Net,
    close,
    count_passes,
    epsilon,
    explain,
    gradient_times_input,
    noise,
    small_net,
    z_plus,
)


def densenet(s, x):
    features = [s.first(x)]
    for layer in s.layers:
        features.append(layer(torch.cat(features, 1).relu()))
    return s.head(torch.cat(features, 1).mean((2, 3)))


def with_layers() -> Net:
    torch.manual_seed(1)
    layers = nn.ModuleList([nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(5, 2, 1)])
    return Net(densenet, first=nn.Conv2d(3, 3, 3, padding=1, stride=2), layers=layers, head=nn.Linear(7, 4))


PIECEWISE_LINEAR = {
    "residual": (small_net, (3, 6, 6)),
    "dense": (with_layers, (3, 6, 6)),
    "grouped and transposed": (
        lambda: Net(
            lambda s, x: s.head(s.up(F.leaky_relu(s.grouped(x), 0.1)).flatten(1)),
            grouped=nn.Conv2d(4, 6, 3, groups=2), up=nn.ConvTranspose2d(6, 2, 3, 2, dilation=2), head=nn.Linear(242, 3),
        ),
        (4, 6, 6),
    ),
    "one dimension": (
        lambda: Net(
            lambda s, x: s.head(F.avg_pool1d(s.norm(s.conv(x)).relu(), 2).relu_().flatten(1)),
            conv=nn.Conv1d(2, 3, 3, dilation=2), norm=nn.BatchNorm1d(3), head=nn.Linear(9, 3),
        ),
        (2, 10),
    ),
    "three dimensions": (
        lambda: Net(
            lambda s, x: s.head(F.max_pool3d(s.conv(x).relu(), 2).flatten(1)), conv=nn.Conv3d(1, 2, 3),
            head=nn.Linear(16, 3),
        ),
        (1, 6, 6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_small_epsilon_is_gradient_times_input(name):
    make, shape = PIECEWISE_LINEAR[name]
    model, x = make(), noise(3, *shape)
    trace = RelevancePropagator(model, EXACT).trace(x)
    assert torch.equal(trace.output, model(x)) and not trace.output.requires_grad
    for target in range(3):
        got = trace.relevance(target)
        close(got, gradient_times_input(model, x, target))
        assert not got.requires_grad


# ------------------------------------------------------------------------------------------------ one forward pass


def test_everything_is_bound_late():
    """Other rules, targets, seeds, layers and reports of one trace run no second forward pass."""
    model, x = small_net(), noise(2, 3, 6, 6)
    names = ["epsilon", "epsilon_plus", "epsilon_gamma_box", "deconvnet", "b_rule"]
    want = {n: explain(model, x, 2, n) for n in names}
    calls = count_passes(model)
    trace = RelevancePropagator(model).trace(x)
    for n in names:
        assert torch.equal(trace.relevance(2, composite=n), want[n])
    trace.relevances([0, 1])
    trace.layer_relevance("conv2", 1)
    trace.relevance(lambda out: out[:, 0] - out[:, 1])
    trace.report()
    assert len(calls) == 1


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box"])
@pytest.mark.parametrize("batched", [True, False])
def test_several_targets_at_once(composite, batched):
    model, x = small_net(), noise(2, 3, 6, 6)
    trace = RelevancePropagator(model, composite).trace(x)
    targets = [0, 4, torch.tensor([1, 3]), None]
    together = trace.relevances(targets, batched=batched)
    assert len(together) == 4 and trace.relevances([]) == []
    for target, R in zip(targets, together, strict=True):
        close(R, trace.relevance(target), 1e-10)


def test_several_targets_of_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model, x = Net(lambda s, x: s.head(s.layer(x).mean(1)), layer=layer, head=nn.Linear(8, 3)), noise(2, 4, 8)
    trace = RelevancePropagator(model, "attnlrp").trace(x)
    for target, R in enumerate(trace.relevances([0, 1, 2])):
        close(R, trace.relevance(target), 1e-10)


def test_targets_in_every_form():
    model, x = small_net(), noise(3, 3, 6, 6)
    trace = RelevancePropagator(model, EXACT).trace(x)
    one = [trace.relevance(t) for t in range(5)]
    best = trace.output.argmax(1).tolist()
    mixed = torch.stack([one[t][k] for k, t in enumerate((4, 0, 2))])
    for target in ((4, 0, 2), torch.tensor([4, 0, 2]), torch.tensor([4, 0, 2]).numpy()):
        close(trace.relevance(target), mixed)
    for target in (torch.tensor(3), torch.tensor([3]), (3,), torch.tensor(3, dtype=torch.uint8)):
        assert torch.equal(trace.relevance(target), one[3])
    close(trace.relevance(None), torch.stack([one[t][k] for k, t in enumerate(best)]))


# ------------------------------------------------------------------------------------------------ seeds


def linear_map(model, x, R):
    """What ε → 0 makes of any start on a piecewise linear network: x · Jᵀ (R / out)."""
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    return (torch.autograd.grad(out, leaf, R / out.detach())[0] * leaf).detach()


def test_seeds():
    model, x = small_net(), noise(2, 3, 6, 6)
    trace = RelevancePropagator(model, EXACT).trace(x)
    out, hot = trace.output, F.one_hot(torch.tensor([1, 1]), 5).double()
    value = (out * hot).sum(1, keepdim=True)
    any_seed = noise(2, 5, seed=4)
    for seed, start in {
        "logit": out * hot,
        "one": hot,
        "contrastive": value * hot - value * (1 - hot) / 4,
        any_seed: any_seed,
        (lambda out: out.softmax(1)): out.softmax(1),
    }.items():
        close(trace.relevance(1, seed=seed), linear_map(model, x, start))
    close(trace.relevance(lambda out: out[:, 1], seed="one"), linear_map(model, x, hot))
    assert float(trace.relevance(1, seed="contrastive", composite=rules.Epsilon(1e-13, bias="distribute")).sum()) == (
        pytest.approx(0, abs=1e-6)
    )


@pytest.mark.parametrize("seed", ["logit", "one"])
def test_a_callable_target_conserves(seed):
    """A segmentation-like output: the mean score of one class over a region."""
    torch.manual_seed(0)
    convs = {"a": nn.Conv2d(3, 4, 3, padding=1, bias=False), "b": nn.Conv2d(4, 5, 1, bias=False)}
    model, x = Net(lambda s, x: {"out": s.b(s.a(x).relu())}, **convs), noise(2, 3, 6, 6)
    region = torch.zeros(6, 6, dtype=torch.bool)
    region[1:4, 2:5] = True

    def target(out):
        return out["out"][:, 2, region].mean(1)

    trace = RelevancePropagator(model, EXACT, unknown="error").trace(x)
    R = trace.relevance(target, seed)
    want = target(model(x)).detach() if seed == "logit" else torch.ones(2, dtype=torch.float64)
    close(R.sum((1, 2, 3)), want)
    if seed == "logit":
        close(R, gradient_times_input(model, x, target))
    with pytest.raises(InputError, match="callable target"):
        trace.relevance(1)


# ------------------------------------------------------------------------------------------------ inputs and outputs


def test_inputs_of_any_structure():
    def run(s, first, pair, *, table, flag=True, ids=None):
        total = s.a(first) + s.b(pair[0]) + s.b(pair[1][0]) + s.c(table["x"])
        return (total if flag else -total, ids)

    layers = {k: nn.Linear(3, 2, bias=False) for k in "abc"}
    model, xs = Net(run, **layers), [noise(2, 3, seed=k) for k in range(4)]
    trace = RelevancePropagator(model, EXACT).trace(
        xs[0], (xs[1], [xs[2]]), table={"x": xs[3], "y": "text"}, ids=torch.arange(2)
    )
    got = trace.relevance(1)
    assert isinstance(got, tuple) and len(got) == 4
    for R, x, name in zip(got, xs, "abbc", strict=True):
        close(R, x * getattr(model, name).weight[1].detach())


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y}, lambda y: (y, None), lambda y: [{"a": y}], lambda y: {"out": y, "aux": y * 2}]
)
def test_outputs_of_any_structure(wrap):
    model, x = Net(lambda s, x: wrap(s.a(x)), a=nn.Linear(3, 2)), noise(2, 3)
    trace = RelevancePropagator(model, EXACT).trace(x)
    assert type(trace.output) is type(model(x))
    close(trace.relevance(1), explain(model.a, x, 1))


def test_token_ids_get_one_value_each():
    def run(s, ids):
        return s.head(s.table(ids).relu().mean(1))

    model, ids = Net(run, table=nn.Embedding(10, 4), head=nn.Linear(4, 3)), torch.tensor([[1, 2, 2, 9], [0, 3, 4, 5]])
    vectors = model.table(ids).detach()
    twin = Net(lambda s, v: s.head(v.relu().mean(1)), head=model.head)
    close(explain(model, ids, 2), gradient_times_input(twin, vectors, 2).sum(-1))


def test_an_input_that_the_output_does_not_depend_on():
    model, a, b = Net(lambda s, a, b: s.a(a), a=nn.Linear(3, 2)), noise(2, 3), noise(2, 5)
    got = RelevancePropagator(model, EXACT).trace(a, b).relevance(0)
    assert torch.equal(got[1], torch.zeros_like(b))
    close(got[0], explain(model.a, a))


def test_dtype_and_device_are_those_of_the_input():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        layer, x = nn.Linear(3, 2).to(dtype), torch.ones(2, 3, dtype=dtype)
        R = explain(layer, x, rule="epsilon")
        assert (R.dtype, R.device, R.shape) == (x.dtype, x.device, x.shape)


# ------------------------------------------------------------------------------------------------ options


def test_one_rule_stands_for_every_linear_site():
    model, x = small_net(), noise(2, 3, 6, 6)
    by_rule = explain(model, x, 0, rules.ZPlus(1e-3))
    composite = composites.Composite([(composites.kind("linear"), rules.ZPlus(1e-3))])
    assert torch.equal(by_rule, explain(model, x, 0, composite))
    assert torch.equal(explain(model, x, 0, rules.ZPlus()), explain(model, x, 0, rules.ZPlus))


def test_retain_false_gives_the_same_map():
    model, x = small_net(), noise(2, 3, 6, 6)
    assert torch.equal(RelevancePropagator(model).trace(x).relevance(0, retain=False), explain(model, x, 0, "auto"))


# ------------------------------------------------------------------------------------------------ memory


def wide(s, x):
    y = s.a(x)
    y[:, 0] += 1.0
    return s.c(torch.special.i0(s.b(y).relu_() * 0.01))


def memory_net():
    return Net(wide, a=nn.Linear(50, 50), b=nn.Linear(50, 50), c=nn.Linear(50, 3))


def test_nothing_outlives_a_trace():
    """Without the garbage collector: a circle of references would keep activations until it runs."""
    model, x = memory_net(), noise(2, 50)
    gc.collect()
    gc.disable()
    try:
        trace = RelevancePropagator(model).trace(x)
        trace.relevance(0)
        trace.relevances([0, 1])
        trace.layer_relevance(["a", "b"], 1)
        trace.relevance(lambda out: out[:, 0], account=True)
        trace.report()
        kept = [weakref.ref(o) for o in (trace, *trace.sites, trace.binding, trace.recording.interceptor)]
        assert all(ref() is not None for ref in kept)
        del trace
        assert [ref() for ref in kept if ref() is not None] == []
    finally:
        gc.enable()


def test_nothing_outlives_a_failure():
    model, x = memory_net(), noise(2, 50)
    trace = RelevancePropagator(model, unknown="error").trace(x)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(InputError, match="i0"):
            trace.relevance(0)
        kept = [weakref.ref(o) for o in (trace, *trace.sites)]
        del trace
        assert [ref() for ref in kept if ref() is not None] == []
    finally:
        gc.enable()


def test_a_thousand_explanations_do_not_grow():
    """Resident memory after 1000 explanations, against the 13 kB each that a single kept activation would add."""
    model = Net(lambda s, x: s.b(s.norm(s.a(x)).relu_()), a=nn.Linear(200, 200), norm=nn.BatchNorm1d(200))
    model.b = nn.Linear(200, 2).double()
    x = noise(8, 200)
    propagator = RelevancePropagator(model, "epsilon")

    def once():
        trace = propagator.trace(x)
        trace.relevance(0, account=True)

    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            once()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(1000):
            once()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    finally:
        gc.enable()
    assert grown < 4000, f"{grown} kB more"


def test_one_trace_asked_a_thousand_times_does_not_grow():
    model, x = small_net(), noise(1, 3, 6, 6)
    trace = RelevancePropagator(model, "epsilon").trace(x)
    trace.relevance(lambda out: out[:, 0])
    sites = len(trace.sites)
    for _ in range(20):
        trace.relevance(lambda out: out[:, 0])
    assert len(trace.sites) <= sites + 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k in range(1000):
        trace.relevance(k % 5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4000


def test_epsilon_helper_is_the_rule():
    """The expectation used in these tests, itself checked on numbers worked out on paper."""
    a, w, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]]), torch.tensor([1.0])
    assert epsilon(a, w, b, torch.tensor([[4.0]])).tolist() == [[6.0, -4.0]]  # z = 3 - 2 + 1 = 2
    assert z_plus(a, w, b, torch.tensor([[4.0]])).tolist() == [[3.0, 0.0]]  # z = 3 + 1 = 4


def test_what_they_print_says_what_they_are():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4)
    propagator = RelevancePropagator(model, "epsilon")
    assert repr(propagator) == "<RelevancePropagator of Sequential, composite 'epsilon'>"
    assert re.fullmatch(
        r"<Trace of Sequential on input \(2, 4\): 2 sites, composite 'epsilon'>", repr(propagator.trace(x))
    )
    assert "bound" in repr(propagator.bound_trace(x))
