"""What other implementations fall into. Every expectation is computed here, by hand or by plain autograd."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import composites, rules
from saliency_lrp.errors import InputError
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers import reference
from tests.helpers.nets import fingerprint
from tests.helpers.tiny import (
    EXACT,
    ZPLUS,
    Doubled,
    Net,
    close,
    epsilon,
    explain,
    gradient_times_input,
    noise,
    statistics,
    z_plus,
)


def seed_of(model, x, target=0):
    with torch.no_grad():
        out = model(x)
    return F.one_hot(torch.full((len(x),), target), out.shape[1]) * out


# ------------------------------------------------------------------------------------------------ what is called how


def test_a_reused_module_acts_once_per_call():
    model = Net(lambda s, x: s.head(s.layer(s.layer(x).relu()).relu()), layer=nn.Linear(4, 4), head=nn.Linear(4, 2))
    x = noise(3, 4)
    w, b = model.layer.weight.detach(), model.layer.bias.detach()
    h1 = (x @ w.T + b).relu()
    h2 = (h1 @ w.T + b).relu()
    R = z_plus(h2, model.head.weight.detach(), model.head.bias.detach(), seed_of(model, x, 1))
    close(explain(model, x, 1, ZPLUS), z_plus(x, w, b, z_plus(h1, w, b, R)))
    trace = RelevancePropagator(model, ZPLUS).trace(x)
    close(trace.layer_relevance("layer", 1, call=1), R)
    close(trace.layer_relevance("layer", 1, call=0), z_plus(h1, w, b, R))


def test_a_shared_weight_acts_once_per_use():
    def tied(s, x):
        return F.linear(F.relu(F.linear(x, s.layer.weight)), s.layer.weight.t())

    model, x = Net(tied, layer=nn.Linear(3, 4, bias=False)), noise(2, 3)
    w = model.layer.weight.detach()
    R = z_plus((x @ w.T).relu(), w.T, None, seed_of(model, x))
    close(explain(model, x, 0, ZPLUS), z_plus(x, w, None, R))


FUNCTIONAL = {
    "add": lambda s, x: s.head((F.relu(s.a(x)) + F.relu(s.b(x))).flatten(1)),
    "torch.add with alpha": lambda s, x: s.head(torch.add(s.a(x).relu(), s.b(x), alpha=-2).flatten(1)),
    "sub": lambda s, x: s.head((s.a(x) - s.b(x)).relu().flatten(1)),
    "iadd": lambda s, x: s.head(s.a(x).relu().add_(s.b(x)).flatten(1)),
    "max_pool": lambda s, x: s.head(F.max_pool2d(s.a(x), 3, 1, 1).flatten(1)),
    "avg_pool": lambda s, x: s.head(F.avg_pool2d(s.a(x).relu(), 3, 1, 1).flatten(1)),
    "adaptive": lambda s, x: s.head(F.adaptive_avg_pool2d(s.a(x).relu(), 4).flatten(1)),
    "constant": lambda s, x: s.head((2 * s.a(x).relu() - 1).flatten(1)),
    "relu before the residual add, in place": lambda s, x: s.head(F.relu_(s.b(x)).add(x).flatten(1)),
    "relu after the residual add, in place": lambda s, x: s.head(F.relu_(s.b(x) + x).flatten(1)),
    "relu on a skip that is read later": lambda s, x: s.head(s.b(y := s.a(x)).add_(y.relu_()).flatten(1)),
    "relu on what a layer has read": lambda s, x: s.head((s.b(y := s.a(x)) + F.relu(y, inplace=True)).flatten(1)),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_and_in_place(name):
    convs = {k: nn.Conv2d(2, 2, 3, padding=1) for k in "ab"}
    model, x = Net(FUNCTIONAL[name], **convs, head=nn.Linear(32, 3)), noise(2, 2, 4, 4)
    twin = copy.deepcopy(model)
    before = x.clone()
    trace = RelevancePropagator(model, EXACT).trace(x)
    assert torch.equal(x, before)
    with torch.no_grad():
        assert torch.equal(trace.output, model(x.clone()))
    # plain autograd refuses some of these: gradient x input of the same function, out of place
    twin.function = {
        "iadd": lambda s, x: s.head((s.a(x).relu() + s.b(x)).flatten(1)),
        "relu on a skip that is read later": lambda s, x: s.head((s.b(y := s.a(x)) + y.relu()).flatten(1)),
        "relu on what a layer has read": lambda s, x: s.head((s.b(y := s.a(x)) + y.relu()).flatten(1)),
    }.get(name, twin.function)
    close(trace.relevance(1), gradient_times_input(twin, x, 1))


def test_functional_product_of_two_signals_is_halved():
    model, x = Net(lambda s, x: s.a(x) * s.b(x), a=nn.Linear(3, 2), b=nn.Linear(3, 2)), noise(2, 3)
    half = seed_of(model, x) / 2
    want = sum(epsilon(x, m.weight.detach(), m.bias.detach(), half) for m in (model.a, model.b))
    close(explain(model, x), want)


def test_a_gate_gets_nothing():
    model = Net(lambda s, x: torch.sigmoid(s.a(x)) * s.b(x), a=nn.Linear(3, 2), b=nn.Linear(3, 2))
    x = noise(2, 3)
    close(explain(model, x), epsilon(x, model.b.weight.detach(), model.b.bias.detach(), seed_of(model, x)))


def test_the_first_layer_is_the_one_that_runs_first():
    model = Net(lambda s, x: s.late(s.early(x).relu()), late=nn.Linear(4, 2), early=nn.Linear(3, 4))
    x = noise(2, 3)
    flat = composites.get("epsilon", epsilon=1e-13) | composites.Composite([(composites.first(), rules.Flat(1e-13))])
    h = (x @ model.early.weight.T + model.early.bias).relu().detach()
    R = epsilon(h, model.late.weight.detach(), model.late.bias.detach(), seed_of(model, x))
    close(explain(model, x, 0, flat), (R.sum(1, keepdim=True) / 3).expand(2, 3))


# ------------------------------------------------------------------------------------------------ batch norm


def merged(layer, norm):
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    bias = 0 if layer.bias is None else layer.bias.detach()
    return layer.weight.detach() * gain[:, None], (bias - norm.running_mean) * gain + norm.bias.detach()


def test_a_batch_norm_far_from_its_layer_in_registration_order():
    net = Net(
        lambda s, x: s.head(s.norm(s.layer(x)).relu()),
        norm=nn.BatchNorm1d(4), other=nn.Linear(9, 9), head=nn.Linear(4, 2), layer=nn.Linear(3, 4),
    )  # fmt: skip
    model, x = statistics(net), noise(2, 3)
    w, b = merged(model.layer, model.norm)
    R = z_plus((x @ w.T + b).relu(), model.head.weight.detach(), model.head.bias.detach(), seed_of(model, x))
    close(explain(model, x, 0, ZPLUS), z_plus(x, w, b, R))


def both(s, x):
    y = s.layer(x)
    return s.head(s.norm(y).relu() + y)


def test_a_layer_read_by_a_batch_norm_and_a_skip():
    model = statistics(Net(both, layer=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2)))
    x = noise(2, 3)
    (w, b), W, B = merged(model.layer, model.norm), model.layer.weight.detach(), model.layer.bias.detach()
    y, n = x @ W.T + B, (x @ w.T + b).relu()
    R = z_plus(y + n, model.head.weight.detach(), model.head.bias.detach(), seed_of(model, x))
    through_norm, through_skip = R * n / (n + y), R * y / (n + y)
    close(explain(model, x, 0, ZPLUS), z_plus(x, w, b, through_norm) + z_plus(x, W, B, through_skip))
    trace = RelevancePropagator(model, ZPLUS).trace(x)
    close(trace.layer_relevance("layer", 0), R)  # what stands between layer and norm, and what skips it
    close(trace.layer_relevance("norm", 0), through_norm)


def test_one_layer_with_two_batch_norms():
    model = Net(lambda s, x: s.a(y := s.layer(x)).relu() - s.b(y), layer=nn.Linear(3, 3), a=nn.BatchNorm1d(3))
    model.b = nn.BatchNorm1d(3).double().eval()
    x = noise(4, 3)
    close(explain(statistics(model), x), gradient_times_input(model, x))
    trace = RelevancePropagator(model, EXACT).trace(x)
    assert [s.rank for s in trace.sites if s.kind == "linear" and not s.folded_into_next] == [0, 1]


def test_a_shared_layer_with_a_batch_norm_per_use():
    def run(s, x):
        return s.b(s.layer(s.a(s.layer(x)).relu()))

    model = statistics(Net(run, layer=nn.Linear(3, 3), a=nn.BatchNorm1d(3), b=nn.BatchNorm1d(3)))
    model.b.bias.data += 1
    x = noise(2, 3)
    close(explain(model, x), gradient_times_input(model, x))
    trace = RelevancePropagator(model, EXACT).trace(x)
    for call, norm in enumerate("ab"):
        close(trace.layer_relevance("layer", 0, call=call), trace.layer_relevance(norm, 0))
    close(trace.layer_relevance("layer", 0, call=1), seed_of(model, x))


def test_a_layer_written_into_before_its_batch_norm():
    def run(s, x):
        y = s.layer(x)
        y[:, :2].mul_(-3.0)
        return s.norm(y)

    model = statistics(Net(run, layer=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))
    x = noise(2, 3)
    close(explain(model, x, 1), gradient_times_input(model, x, 1))


# ------------------------------------------------------------------------------------------------ several inputs


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2, bias=False)

    def forward(self, a, b):
        return self.left(a) + self.right(b)


def test_two_input_modules():
    model, a, b = Net(lambda s, a, b: s.inner(a, b=b), inner=TwoInputs()), noise(2, 3), noise(2, 4)
    model.inner.left.bias.data.zero_()
    got = RelevancePropagator(model, EXACT).trace(a, b).relevance(1)
    close(got[0], a * model.inner.left.weight[1].detach())
    close(got[1], b * model.inner.right.weight[1].detach())


def test_bilinear_of_an_activation_and_a_constant():
    model, x = Net(lambda s, x: s.layer(x, s.c.weight.expand(len(x), -1)), layer=nn.Bilinear(3, 4, 2)), noise(2, 3)
    model.c = nn.Linear(4, 1).double()
    w = torch.einsum("oij,j->oi", model.layer.weight, model.c.weight[0]).detach()
    close(explain(model, x), epsilon(x, w, model.layer.bias.detach(), seed_of(model, x)))


# ------------------------------------------------------------------------------------------------ softmax


@pytest.mark.parametrize("dim", [1, -1, 0, 2])
def test_softmax_runs_along_its_own_axis(dim):
    """Deep Taylor of a softmax: x (R - y ΣR), the sum along the softmax's own axis."""
    model, x = Net(lambda s, x: F.softmax(x, dim=dim) * 1.0), noise(2, 3, 4)
    R = noise(2, 3, 4, seed=1)
    y = x.exp() / x.exp().sum(dim, keepdim=True)
    close(explain(model, x, seed=R), x * (R - y * R.sum(dim, keepdim=True)))


def test_attention_pooling_over_time():
    """The softmax over axis 1 is a gate: the values take all."""
    model = Net(lambda s, x: (torch.softmax(s.score(x), 1) * s.value(x)).sum(1))
    model.score, model.value = nn.Linear(3, 1).double(), nn.Linear(3, 2, bias=False).double()
    x = noise(2, 5, 3)
    A = torch.softmax(model.score(x), 1).detach()
    want = A * x * model.value.weight[0].detach()  # the share of each time step and feature
    close(explain(model, x), want)


# ------------------------------------------------------------------------------------------------ small denominators


def test_the_stabilizer_has_the_sign_of_the_output():
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    got = explain(model, x, 1, rules.Epsilon(1.0))  # z = -4, stabilised: -5
    close(got, torch.tensor([[-1.0, -3.0]], dtype=torch.float64) * (-4 / -5))
    close(explain(model, x, 0, rules.Epsilon(1.0)), x * (4 / 5))


def test_an_output_of_exactly_zero_counts_as_positive():
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    x, R = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    close(explain(model, x, seed=R, rule=rules.Epsilon(0.1)), torch.tensor([[10.0, -10.0]], dtype=torch.float64))
    close(explain(model, x, seed=R, rule=rules.Epsilon(0.0)), torch.zeros(1, 2, dtype=torch.float64))
    model.weight.data[:] = torch.tensor([[1.0, -0.0]])
    dead = explain(model, torch.zeros_like(x), seed=R, rule=rules.ZPlus())
    assert torch.equal(dead, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_half_precision(dtype, composite):
    """Dead units and divisions by numbers that half precision cannot hold; the result near that of float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    net[2].bias.data[:4] = -100.0  # dead for good
    half, exact = copy.deepcopy(net).to(dtype), copy.deepcopy(net).to(dtype).double()
    x = torch.rand(2, 3, 8, 8).to(dtype)
    seed = torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 2)
    got = explain(half, x, rule=composite, seed=seed)
    want = explain(exact, x.double(), rule=composite, seed=seed.double())
    assert got.dtype == dtype and bool(torch.isfinite(got).all())
    agreement = torch.cosine_similarity(got.double().flatten(), want.flatten(), 0)
    assert agreement > (0.95 if dtype == torch.bfloat16 else 0.99)


# ------------------------------------------------------------------------------------------------ again and again


def small_net():
    convs = {"a": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 4, 3, padding=1)}

    def run(s, x):
        y = s.norm(s.a(x)).relu_()
        return s.head(s.drop(s.pool(F.relu(s.b(y)) + y)).flatten(1))

    more = {"pool": nn.MaxPool2d(3, 2, 1), "drop": nn.Dropout(0.5), "head": nn.Linear(36, 5)}
    torch.manual_seed(3)
    return statistics(Net(run, **convs, **more))


def test_the_second_call_is_like_the_first():
    model, x = small_net(), noise(2, 3, 6, 6)
    propagator = RelevancePropagator(model, "epsilon_plus")
    first = propagator.trace(x).relevance(1)
    trace = propagator.trace(x)
    for composite in ("epsilon", "epsilon_alpha2_beta1", None):
        again = trace.relevance(1, composite=composite)
    assert torch.equal(first, again)
    explainer = LrpExplainer(model, composite="epsilon_plus")
    assert torch.equal(explainer.explain(x, 1), explainer.explain(x, 1))
    # the explainer carries coefficients, a trace relevance itself: equal but for rounding
    torch.testing.assert_close(explainer.explain(x, 1), first, rtol=1e-9, atol=1e-12)


class Boom(Exception):
    pass


class BoomRule(rules.Epsilon):
    def relevance(self, site, R):
        if site.path == "a":
            raise Boom
        return super().relevance(site, R)


@pytest.fixture
def _no_boom_rule_left():
    yield
    rules.RULES.pop("BoomRule", None)


def test_nothing_is_left_behind_when_the_forward_pass_fails():
    model, x = small_net().train(), noise(2, 3, 6, 6)
    good, function, before = explain(model, x), model.function, fingerprint(model)

    def fails(s, x):
        function(s, x)
        raise Boom

    hooks = dict(nn.modules.module._global_forward_hooks), dict(nn.modules.module._global_forward_pre_hooks)
    model.function = fails
    with pytest.raises(Boom):
        explain(model, x)
    model.function = function
    assert fingerprint(model) == before
    assert hooks == (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
    assert torch._C._len_torch_function_stack() == 0 and torch.is_grad_enabled()
    assert torch.equal(explain(model, x), good)


def test_nothing_is_left_behind_when_the_backward_pass_fails():
    model, x = small_net().train(), noise(2, 3, 6, 6)
    before, good = fingerprint(model), explain(model, x)
    trace = RelevancePropagator(model, EXACT).trace(x)
    for account in (False, True):
        with pytest.raises(Boom):
            trace.relevance(composite=BoomRule(1e-13), account=account)
    assert fingerprint(model) == before
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(trace.relevance(0), good)  # the trace itself survives too
    assert trace.report().conserved == pytest.approx(float(good.sum() / trace.output[:, 0].sum()))


# ------------------------------------------------------------------------------------------------ modes and contexts


def test_train_mode_is_explained_in_eval_mode_and_given_back():
    model, x = small_net(), noise(4, 3, 6, 6)
    want = explain(model, x)
    model.train()
    model.b.eval()
    before = fingerprint(model)
    close(explain(model, x), want)  # statistics fixed, dropout off
    assert fingerprint(model) == before
    assert model.training and model.norm.training and model.drop.training and not model.b.training


def test_frozen_parameters_change_nothing():
    model, x = small_net(), noise(2, 3, 6, 6)
    want = explain(model, x)
    assert torch.equal(explain(model.requires_grad_(False), x), want)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_around_the_call(around):
    model, x = small_net(), noise(2, 3, 6, 6)
    want, seed = explain(model, x, 1), noise(2, 5)
    with_callable = explain(model, x, lambda out: out[:, 1] - out[:, 2])
    with_seed = explain(model, x, seed=seed)
    with around():
        inner = x.clone()
        got = explain(model, inner, 1)
        assert torch.equal(got, want)
        assert torch.equal(explain(model, inner, lambda out: out[:, 1] - out[:, 2]), with_callable)
        assert torch.equal(explain(model, inner, seed=seed.clone()), with_seed)
        maps = RelevancePropagator(model, EXACT).trace(inner).relevances([1, 2])
        close(maps[0], want)
    assert not got.requires_grad


def test_a_model_made_in_inference_mode():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.GroupNorm(2, 2), nn.Flatten(), nn.Linear(32, 2)
    )
    with torch.inference_mode():
        frozen = make().double().eval()
        x = noise(2, 1, 6, 6).clone()
    normal = make().double().eval()
    normal.load_state_dict({k: v.clone() for k, v in frozen.state_dict().items()})
    close(explain(frozen, x, rule="epsilon_plus"), explain(normal, x.clone(), rule="epsilon_plus"))


def test_input_that_requires_grad_or_has_a_history():
    model, x = small_net(), noise(2, 3, 6, 6)
    want = explain(model, x)
    leaf = x.clone().requires_grad_()
    for inp in (leaf, leaf * 1):
        got = explain(model, inp)
        assert torch.equal(got, want) and not got.requires_grad
    assert leaf.grad is None and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("memory", ["channels_last", "permuted", "strided", "expanded"])
def test_memory_layout_of_the_input(memory):
    model, x = small_net(), noise(2, 3, 6, 6)
    x = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "permuted": lambda: x.permute(0, 1, 3, 2),
        "strided": lambda: noise(2, 3, 12, 12)[:, :, ::2, ::2],
        "expanded": lambda: x[:, :1].expand(2, 3, 6, 6),
    }[memory]()
    for rule in (EXACT, "epsilon_plus"):
        close(explain(model, x, rule=rule), explain(model, x.contiguous(), rule=rule))
    close(explain(model, x, 1), gradient_times_input(model, x.contiguous(), 1))


def test_a_channels_last_model():
    model, x = small_net(), noise(2, 3, 6, 6)
    want = explain(model, x, rule="epsilon_plus")
    model = model.to(memory_format=torch.channels_last)
    close(explain(model, x.contiguous(memory_format=torch.channels_last), rule="epsilon_plus"), want)


# ------------------------------------------------------------------------------------------------ batches


def test_an_unbatched_input():
    model = Net(lambda s, x: s.a(x).relu().flatten(), a=nn.Conv2d(2, 3, 3))
    x, R = noise(2, 5, 5), noise(27, seed=1)
    layer = reference.relevance("z_plus", model.a, x[None], (R * (model(x) > 0)).reshape(1, 3, 3, 3).detach(), 1e-13)
    R = R * (model(x) > 0)
    close(explain(model, x, seed=R, rule=ZPLUS), layer[0])
    dense = nn.Linear(3, 2).double()
    close(
        explain(dense, noise(3), lambda out: out[1]),
        epsilon(noise(3), dense.weight.detach(), dense.bias.detach(), dense(noise(3)).detach() * torch.tensor([0, 1])),
    )


@pytest.mark.parametrize("composite", ["auto", "epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "b_rule"])
def test_a_batch_of_many_is_many_batches_of_one(composite):
    model, x = small_net(), noise(5, 3, 6, 6)
    together = explain(model, x, None, composite)
    for k in range(5):
        close(together[k : k + 1], explain(model, x[k : k + 1], None, composite))
    relative = rules.Epsilon(0.25, relative=True)
    close(explain(model, x, None, relative)[2:3], explain(model, x[2:3], None, relative))


def test_an_empty_batch():
    model = small_net()
    nothing = noise(0, 3, 6, 6)
    assert explain(model, nothing, None, "epsilon_plus").shape == nothing.shape
    assert LrpExplainer(model).explain(nothing).shape == nothing.shape


def test_ties_go_to_the_first_class():
    model = nn.Linear(3, 4, bias=False).double()
    model.weight.data = torch.stack([torch.zeros(3), torch.ones(3), torch.ones(3), -torch.ones(3)]).double()
    x = noise(2, 3).abs()
    assert torch.equal(explain(model, x, None), explain(model, x, 1))
    model.weight.data = noise(1, 3).expand(4, 3).clone()
    assert torch.equal(explain(model, x, None), explain(model, x, 0))


# ------------------------------------------------------------------------------------------------ bare and wrapped


BARE = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "relu": (lambda: nn.ReLU(), (2, 4)),
    "batch_norm": (lambda: statistics(nn.BatchNorm1d(4)), (2, 4)),
    "conv": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 5, 5)),
    "avg_pool": (lambda: nn.AvgPool2d(2), (2, 2, 4, 4)),
    "max_pool": (lambda: nn.MaxPool2d(2), (2, 2, 4, 4)),
    "flatten": (lambda: nn.Flatten(), (2, 2, 3)),
    "identity": (lambda: nn.Identity(), (2, 3)),
    "dropout": (lambda: nn.Dropout().train(), (2, 3)),
}


@pytest.mark.parametrize("name", BARE)
def test_a_model_that_is_one_bare_layer(name):
    make, shape = BARE[name]
    layer, x = make().double(), noise(*shape)
    mode = layer.training
    got = explain(layer, x, lambda out: out)
    assert layer.training == mode
    close(got, gradient_times_input(layer.eval(), x, lambda out: out))


class Compiled(nn.Module):
    """Stands for what torch.compile returns: it holds the model under this name, and its own call is another."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x):
        raise AssertionError("the compiled call was used")


def test_wrappers_are_looked_through():
    model, x = small_net(), noise(2, 3, 6, 6)
    want = explain(model, x)
    for wrapped in (nn.DataParallel(model), Compiled(model), nn.DataParallel(Compiled(model)), torch.compile(model)):
        assert torch.equal(explain(wrapped, x), want)
        assert RelevancePropagator(wrapped).model is model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_clearly():
    net = nn.Sequential(nn.Linear(3, 2))
    for scripted in (
        torch.jit.script(net),
        torch.jit.trace(net, torch.zeros(1, 3)),
        nn.Sequential(torch.jit.script(net)),
    ):
        with pytest.raises(InputError, match="TorchScript"):
            RelevancePropagator(scripted)


def test_two_threads_explain_one_model_in_train_mode():
    model, xs = small_net(), [noise(2, 3, 6, 6, seed=k) for k in range(2)]
    want = [explain(model, x) for x in xs]
    model.train()
    before, got, errors = fingerprint(model), [[], []], []

    def work(k):
        try:
            for _ in range(20):
                got[k].append(explain(model, xs[k]))
        except Exception as error:  # shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    for k in range(2):
        assert len(got[k]) == 20 and all(torch.equal(R, want[k]) for R in got[k])
    assert fingerprint(model) == before


def test_one_trace_asked_by_two_threads():
    model, x = small_net(), noise(2, 3, 6, 6)
    trace = RelevancePropagator(model).trace(x)
    names = ["epsilon", "epsilon_plus"]
    want, got = {n: trace.relevance(1, composite=n) for n in names}, {n: [] for n in names}
    threads = [
        threading.Thread(target=lambda n=n: got[n].extend(trace.relevance(1, composite=n) for _ in range(20)))
        for n in names
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n in names:
        assert len(got[n]) == 20 and all(torch.equal(R, want[n]) for R in got[n])


# ------------------------------------------------------------------------------------------------ convolutions, pools


class ScaledConv(nn.Conv2d):
    """Standardises its weight when it is called, and calls the functional by itself."""

    def forward(self, x):
        w = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_subclass_of_a_convolution():
    layer, x, R = ScaledConv(2, 3, 3, padding=1).double(), noise(2, 2, 5, 5), noise(2, 3, 5, 5, seed=1)
    plain = nn.Conv2d(2, 3, 3, padding=1).double()
    w = layer.weight.detach()
    plain.weight.data = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
    plain.bias.data = layer.bias.data
    close(explain(layer, x, seed=R, rule=ZPLUS), reference.relevance("z_plus", plain, x, R, 1e-13))


CONVOLUTIONS = {
    "same odd": dict(kernel_size=3, padding="same"),
    "same even": dict(kernel_size=4, padding="same"),
    "same even and dilated": dict(kernel_size=2, padding="same", dilation=3),
    "stride remainder": dict(kernel_size=2, stride=3),
    "stride remainder and padding": dict(kernel_size=3, stride=2, padding=1),
    "rows and columns that no kernel reads": dict(kernel_size=1, stride=4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution_geometry(name):
    layer, x = nn.Conv2d(2, 3, **CONVOLUTIONS[name]).double(), noise(2, 2, 7, 6)
    R = noise(*layer(x).shape, seed=1)
    close(explain(layer, x, seed=R, rule=ZPLUS), reference.relevance("z_plus", layer, x, R, 1e-13))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 1, 1), (3, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("indices", [False, True])
def test_max_pool_windows_and_indices(kernel, stride, padding, indices):
    """The winner of each window takes its relevance; a winner of several windows collects."""
    pool = nn.MaxPool2d(kernel, stride, padding, return_indices=indices)
    model, x = Net(lambda s, x: s.pool(x)[0] if indices else s.pool(x), pool=pool), noise(2, 2, 6, 6)
    R = noise(*model(x).shape, seed=1)
    want = torch.zeros_like(x)
    _, winner = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
    want.flatten(2).scatter_add_(2, winner.flatten(2), R.flatten(2))
    close(explain(model, x, seed=R), want)


def test_max_unpool_puts_relevance_where_values_came_from():
    def run(s, x):
        y, where = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y * 3, where, 2).flatten(1)

    model, x = Net(run), noise(1, 1, 4, 4)
    R = noise(1, 16, seed=1)
    kept = model(x).detach() != 0
    close(explain(model, x, seed=R), (R * kept).reshape(1, 1, 4, 4))


# ------------------------------------------------------------------------------------------------ attention


def attention_by_hand(m, x, R, mask=None):
    """AttnLRP of self-attention: uniform at products, deep Taylor at the softmax, ε → 0 at projections. (N, T, E)."""
    n, t, e = x.shape
    heads, d = m.num_heads, e // m.num_heads
    w, b = m.in_proj_weight.detach().chunk(3), m.in_proj_bias.detach().chunk(3)
    flat = [x @ w_.T + b_ for w_, b_ in zip(w, b, strict=True)]
    q, k, v = (s.reshape(n, t, heads, d).transpose(1, 2) for s in flat)
    scores = q @ k.mT / d**0.5
    shifted = scores if mask is None else scores + mask
    A = shifted.softmax(-1)
    o = A @ v
    joined = o.transpose(1, 2).reshape(n, t, e)
    R = epsilon(joined, m.out_proj.weight.detach(), m.out_proj.bias.detach(), R)
    c = R.reshape(n, t, heads, d).transpose(1, 2) / o / 2
    R_A, R_v = A * (c @ v.mT), v * (A.mT @ c)
    finite = torch.where(shifted.isinf(), 0.0, shifted)
    R_x = finite * (R_A - A * R_A.sum(-1, keepdim=True))
    c = torch.where(finite == 0, 0.0, R_x / torch.where(finite == 0, 1.0, finite)) / 2 / d**0.5
    R_q, R_k = q * (c @ k), k * (c.mT @ q)
    back = [r.transpose(1, 2).reshape(n, t, e) for r in (R_q, R_k, R_v)]
    return sum(epsilon(x, w_, b_, r) for w_, b_, r in zip(w, b, back, strict=True))


def masks(kind, t):
    causal = torch.ones(t, t, dtype=torch.bool).triu(1)
    added = torch.zeros(t, t, dtype=torch.float64).masked_fill(causal, -torch.inf)
    shifting = noise(t, t, seed=9)
    return {
        "none": ({}, None),
        "boolean": ({"attn_mask": causal}, added),
        "float": ({"attn_mask": shifting}, shifting),
        "padding": ({"key_padding_mask": torch.tensor([[False] * (t - 1) + [True]] * 2)}, "last"),
        "causal": ({"attn_mask": causal, "is_causal": True}, added),
    }[kind]


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mask", ["none", "boolean", "float", "padding", "causal"])
def test_multihead_attention(mask, need_weights, batch_first):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(6, 2, batch_first=batch_first)
    options, added = masks(mask, 4)
    if isinstance(added, str):
        added = torch.zeros(4, 4, dtype=torch.float64)
        added[:, -1] = -torch.inf
    model = Net(lambda s, x: s.layer(x, x, x, need_weights=need_weights, **options)[0], layer=layer)
    layer.in_proj_bias.data, layer.out_proj.bias.data = noise(18, seed=2), noise(6, seed=3)
    x, R = noise(2, 4, 6), noise(2, 4, 6, seed=1)
    want = attention_by_hand(layer, x, R, added)
    if not batch_first:
        x, R, want = (v.transpose(0, 1) for v in (x, R, want))
    trace = RelevancePropagator(model, EXACT, unknown="error").trace(x)
    assert torch.equal(trace.output, model(x))
    close(trace.relevance(seed=R), want, 1e-7)


def test_the_fast_path_of_encoders():
    """Under no_grad torch runs a fused encoder layer; the explanation is that of the layer itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model, x = Net(lambda s, x: s.head(s.encoder(x).mean(1)), encoder=encoder, head=nn.Linear(8, 3)), noise(2, 4, 8)
    want = explain(model, x, rule="attnlrp")
    with torch.no_grad():
        fast = model(x)
        trace = RelevancePropagator(model, "attnlrp", unknown="error").trace(x)
    close(trace.output, fast)
    close(trace.relevance(0), want)
    close(explain(model.requires_grad_(False), x, rule="attnlrp"), want)


# ------------------------------------------------------------------------------------------------ unusual models


def test_a_no_grad_block_inside_the_model_is_part_of_it():
    def run(s, x):
        with torch.no_grad():
            y = s.a(x).relu()
        return s.b(y)

    model, x = Net(run, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), noise(2, 3)
    twin = Net(lambda s, x: s.b(s.a(x).relu()), a=model.a, b=model.b)
    close(explain(model, x), gradient_times_input(twin, x))
    assert torch.is_grad_enabled()


def test_a_custom_autograd_function_is_reported():
    model, x = Net(lambda s, x: s.b(Doubled.apply(s.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), noise(2, 3)
    trace = RelevancePropagator(model, EXACT).trace(x)
    assert any("Double" in w for w in trace.warnings())
    assert any("Double" in w for w in trace.report().warnings)
    with pytest.raises(InputError, match="Double"):
        RelevancePropagator(model, EXACT, unknown="error").trace(x)
    with pytest.warns(UserWarning, match="Double"):
        LrpExplainer(model).explain(x)


def test_a_custom_autograd_function_on_the_very_input_is_reported():
    model, x = Net(lambda s, x: s.b(Doubled.apply(x)), b=nn.Linear(3, 2)), noise(2, 3)
    trace = RelevancePropagator(model, EXACT).trace(x)
    assert any("Double" in w for w in trace.warnings())
    assert trace.relevance(0).abs().sum() > 0


class Remembers(nn.Module):
    """Adds its last hidden state, as recurrent models do, and keeps other activations about."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)
        self.register_buffer("store", torch.zeros(2, 3))
        self.state, self.seen = None, []

    def forward(self, x):
        h = self.a(x)
        if self.state is not None:
            h = h + self.state
        self.state = h
        self.seen.append({"h": h})
        self.store.copy_(h)
        self.last = self.b(h)
        return self.last


def test_a_model_that_keeps_activations_between_calls():
    model, x = Remembers().double().eval(), noise(2, 3)
    first = RelevancePropagator(model, EXACT).trace(x)
    held = model.state.clone()
    second = RelevancePropagator(model, EXACT).trace(x)
    got = second.relevance(0)
    w, b = model.a.weight.detach(), model.a.bias.detach()
    h = x @ w.T + b + held
    R = epsilon(h, model.b.weight.detach(), model.b.bias.detach(), second.output * torch.tensor([1.0, 0.0]))
    close(got, epsilon(x, w, b, R * (h - held) / h))  # the state of the last call is a constant
    assert first.relevance(0).shape == got.shape
    kept = [model.state, model.store, model.last, *(s["h"] for s in model.seen)]
    assert not any(t.requires_grad for t in kept)  # no graph hangs on the model
    assert model.store is dict(model.named_buffers())["store"]
    copy.deepcopy(model)
    torch.save(model.state_dict(), io.BytesIO())


def test_models_can_be_copied_and_pickled_after_an_explanation():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), None
    x = torch.randn(2, 3, 6, 6)
    want = explain(model, x, rule="epsilon_plus")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(explain(twin, x, rule="epsilon_plus"), want)
    propagator = RelevancePropagator(model)
    copy.deepcopy(propagator)


def test_checkpointed_blocks():
    from torch.utils.checkpoint import checkpoint

    model = Net(lambda s, x: s.b(checkpoint(lambda v: s.a(v).relu(), x, use_reentrant=False)))
    model.a, model.b = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x = noise(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(explain(model, x), gradient_times_input(model, x))


@pytest.mark.parametrize("what", ["weight", "statistics"])
def test_a_model_that_was_trained_on_after_the_trace(what):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    trace = RelevancePropagator(model, "epsilon").trace(torch.randn(1, 2, 4, 4))
    trace.relevance(0)
    with torch.no_grad():
        if what == "weight":
            model[3].weight.add_(0.1)
        else:
            model[1].running_var.mul_(2)
    with pytest.raises(InputError, match="changed since the forward pass"):
        trace.relevance(0)
