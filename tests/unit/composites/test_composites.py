"""Composites: which rule each site gets, by name and by hand; how they combine and print; rules of one's own."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import composites, functions, rules
from saliency_lrp.composites import Composite
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.functions.registry import HANDLERS, LOOKED_UP
from saliency_lrp.propagator import RelevancePropagator
from saliency_lrp.rules import Rule
from tests.helpers.tiny import EXACT, Net, epsilon, explain, noise, statistics, z_plus


def residual(s, x):
    y = s.norm1(s.stem.conv(x)).relu_()
    return s.head(F.max_pool2d(F.relu(s.norm2(s.body(y)) + y), 2).flatten(1))


def conv_net():
    """Registered in another order than it runs."""
    modules = {
        "body": nn.Conv2d(4, 4, 3, padding=1), "stem": nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3, padding=1)}),
        "norm1": nn.BatchNorm2d(4), "norm2": nn.BatchNorm2d(4), "head": nn.Linear(36, 5),
    }  # fmt: skip
    return statistics(Net(residual, **modules))


def attend(s, x):
    q, k, v = s.qkv(s.norm(x)).chunk(3, -1)
    return s.head((x + torch.softmax(q @ k.mT / 2, -1) @ v).mean(1))


def attention_net():
    return Net(attend, qkv=nn.Linear(4, 12), norm=nn.LayerNorm(4), head=nn.Linear(4, 3))


def chosen(composite, trace):
    """(op or path, class of the rule) of every site; of a rule for a layer with its batch norm, the layer's."""
    found = {}
    for site in trace.sites:
        if not site.folded_into_next:
            rule = composite.rule_for(site)
            while hasattr(rule, "then"):
                rule = rule.then
            found.setdefault(site.path if site.kind == "linear" else site.op, type(rule).__name__)
    return found


CONV = RelevancePropagator(conv_net()).trace(noise(1, 3, 6, 6))
ATTENTION = RelevancePropagator(attention_net()).trace(noise(1, 3, 4))

# name: rules of the first convolution (its path is stem.conv), the second one, the dense layer, relu, the addition
ON_CONVOLUTIONS = {
    "arras": "Epsilon Epsilon Epsilon Pass Norm",
    "attnlrp": "Epsilon Epsilon Epsilon Pass Norm",
    "auto": "ZPlus GeneralizedGamma Epsilon Pass Norm",
    "b_rule": "Beta Beta Beta Pass Norm",
    "beta_smooth": "Gradient Gradient Gradient BetaSmooth Gradient",
    "cp_lrp": "Epsilon Epsilon Epsilon Pass Norm",
    "deconvnet": "Gradient Gradient Gradient DeconvNet Gradient",
    "deep_taylor": "ZPlus ZPlus ZPlus Pass Norm",
    "deep_taylor.bounded": "ZBox ZPlus ZPlus Pass Norm",
    "deep_taylor_bounded": "ZBox ZPlus ZPlus Pass Norm",
    "e_rule": "Power Power Power Pass Norm",
    "epsilon": "Epsilon Epsilon Epsilon Pass Norm",
    "epsilon_alpha2_beta1": "AlphaBeta AlphaBeta Epsilon Pass Norm",
    "epsilon_alpha2_beta1_flat": "Flat AlphaBeta Epsilon Pass Norm",
    "epsilon_gamma_box": "ZBox GeneralizedGamma Epsilon Pass Norm",
    "epsilon_plus": "ZPlus ZPlus Epsilon Pass Norm",
    "epsilon_plus_flat": "Flat ZPlus Epsilon Pass Norm",
    "excitation_backprop": "ZPlus ZPlus ZPlus ExcitationBackprop Norm",
    "gradient": "Gradient Gradient Gradient Gradient Gradient",
    "guided_backprop": "Gradient Gradient Gradient GuidedBackprop Gradient",
    "lrp.alpha_1_beta_0": "AlphaBeta AlphaBeta AlphaBeta Pass Norm",
    "lrp.alpha_1_beta_0_IB": "AlphaBeta AlphaBeta AlphaBeta Pass Norm",
    "lrp.alpha_2_beta_1": "AlphaBeta AlphaBeta AlphaBeta Pass Norm",
    "lrp.alpha_2_beta_1_IB": "AlphaBeta AlphaBeta AlphaBeta Pass Norm",
    "lrp.alpha_beta": "AlphaBeta AlphaBeta AlphaBeta Pass Norm",
    "lrp.epsilon": "Epsilon Epsilon Epsilon Pass Norm",
    "lrp.epsilon_IB": "Epsilon Epsilon Epsilon Pass Norm",
    "lrp.flat": "Flat Flat Flat Pass Norm",
    "lrp.sequential_composite_a": "AlphaBeta AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_composite_a_flat": "Flat AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_composite_b": "AlphaBeta AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_composite_b_flat": "Flat AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_preset_a": "AlphaBeta AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_preset_a_flat": "Flat AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_preset_b": "AlphaBeta AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_preset_b_flat": "Flat AlphaBeta Epsilon Pass Norm",
    "lrp.sequential_preset_b_flat_until_idx": "AlphaBeta AlphaBeta Epsilon Pass Norm",
    "lrp.w_square": "WSquare WSquare WSquare Pass Norm",
    "lrp.z": "Epsilon Epsilon Epsilon Pass Norm",
    "lrp.z_IB": "Epsilon Epsilon Epsilon Pass Norm",
    "lrp.z_plus": "ZPlus ZPlus ZPlus Pass Norm",
    "lrp.z_plus_fast": "ZPlus ZPlus ZPlus Pass Norm",
    "lrp_lstm": "Epsilon Epsilon Epsilon Pass Norm",
}


def test_every_composite_is_in_the_table():
    assert sorted(ON_CONVOLUTIONS) == composites.list_composites()


@pytest.mark.parametrize("name", ON_CONVOLUTIONS)
def test_rules_of_a_convolutional_net(name):
    first, second, dense, relu, add = ON_CONVOLUTIONS[name].split()
    # a layer and its batch norm are one site, under the layer's path
    want = {"stem.conv": first, "body": second, "head": dense, "relu": relu, "add": add}
    assert chosen(composites.get(name), CONV) == want
    trace = RelevancePropagator(conv_net(), name).trace(noise(1, 3, 6, 6))
    R = trace.relevance(1, seed="one")
    assert R.shape == (1, 3, 6, 6) and bool(torch.isfinite(R).all()) and float(R.abs().sum()) > 0


# name: first linear layer, the products QKᵀ and A·V, softmax, the last linear layer
ON_ATTENTION = {
    "auto": "Epsilon Uniform SoftmaxTaylor Epsilon",
    "attnlrp": "Epsilon Uniform SoftmaxTaylor Epsilon",
    "epsilon": "Epsilon Uniform SoftmaxTaylor Epsilon",
    "epsilon_plus": "Epsilon Uniform SoftmaxTaylor Epsilon",
    "cp_lrp": "Epsilon SignalTakesAll Stop Epsilon",
    "gradient": "Gradient Gradient Gradient Gradient",
}


@pytest.mark.parametrize("name", ON_ATTENTION)
def test_rules_of_attention(name):
    found = chosen(composites.get(name), ATTENTION)
    assert [found[k] for k in ("qkv", "matmul", "softmax", "head")] == ON_ATTENTION[name].split()


def test_cp_lrp_holds_attention_weights_constant():
    """By hand: only the values and the skip carry relevance."""
    model, x = attention_net(), noise(1, 3, 4)
    model.norm.register_forward_hook(lambda m, i, o: i[0])  # attention alone
    q, k, v = model.qkv(x).detach().chunk(3, -1)
    A = torch.softmax(q @ k.mT / 2, -1)
    total = x + A @ v
    w, b = model.head.weight.detach(), model.head.bias.detach()
    R = epsilon(total.mean(1), w, b, model.head(total.mean(1)).detach() * torch.tensor([0, 1, 0]))
    c = (R / total.sum(1))[:, None]
    R_v = v * (A.mT @ c.expand_as(total))
    want = x * c + epsilon(x, model.qkv.weight.detach()[8:], model.qkv.bias.detach()[8:], R_v)
    got = explain(model, x, 1, composites.get("cp_lrp", epsilon=1e-13))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------------ selectors


def sites_of(selector):
    marked = Composite([(selector, rules.Stop())])
    return [
        s.path if s.kind == "linear" else s.op
        for s in CONV.sites
        if not s.folded_into_next and isinstance(marked.rule_for(s), rules.Stop)
    ]


@pytest.mark.parametrize(
    ("selector", "want"),
    [
        (nn.Linear, ["head"]),
        (nn.Conv2d, ["stem.conv", "body"]),
        (nn.BatchNorm2d, []),  # folded into the layers before them, whose sites they are
        ("head", ["head"]),
        ("stem.*", ["stem.conv"]),
        ("*", ["stem.conv", "relu", "body", "add", "relu", "head"]),
        ("nothing.*", []),
        (composites.first(), ["stem.conv"]),
        (composites.first(2), ["stem.conv", "body"]),
        (composites.until(0), ["stem.conv"]),
        (composites.until(1), ["stem.conv", "body"]),
        (composites.last(), ["head"]),
        (composites.last(2), ["body", "head"]),
        (composites.kind("linear"), ["stem.conv", "body", "head"]),
        (composites.family("convolution"), ["stem.conv", "body"]),
        (composites.family("dense"), ["head"]),
        (composites.op("relu", "add"), ["relu", "add", "relu"]),
        (composites.at_output(), ["head"]),
        ((composites.family("convolution"), composites.last(2)), ["body"]),
        ((nn.Conv2d, "stem.*"), ["stem.conv"]),
        (lambda site: site.arity == 2, ["add"]),
    ],
    ids=lambda v: "predicate" if isinstance(v, types.FunctionType) else str(v),
)
def test_selectors(selector, want):
    assert sites_of(selector) == want


def test_first_means_first_executed_also_beside_a_fold():
    """A first layer that a batch norm and a skip both read is the first one on both ways."""
    model = statistics(Net(lambda s, x: s.b(s.norm(y := s.a(x)) - y), a=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))
    model.b = nn.Linear(4, 2).double()
    trace = RelevancePropagator(model).trace(noise(2, 3))
    flat = composites.get("epsilon") | Composite([(composites.first(), rules.Flat())])
    assert [type(flat.rule_for(s)).__name__ for s in trace.sites if s.kind == "linear"] == ["Flat", "Flat", "Epsilon"]


# ------------------------------------------------------------------------------------------------ combining, printing


def test_overrides_come_first():
    base = composites.get("epsilon_plus")
    boxed = base | Composite([(composites.first(), rules.ZBox(-2, 2))], name="box")
    twice = boxed | Composite([(nn.Conv2d, rules.Flat()), ("body", rules.Flat())], name="flat")
    assert chosen(base, CONV) != chosen(boxed, CONV)
    assert list(chosen(boxed, CONV).values()).count("ZBox") == 1
    assert list(chosen(twice, CONV).values()).count("Flat") == 2
    assert boxed.name == "epsilon_plus | box"
    model, x = Net(lambda s, x: s.b(s.a(x).relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), noise(2, 3)
    mixed = composites.get("epsilon", epsilon=1e-13) | Composite([("b", rules.ZPlus(1e-13))])
    h = model.a(x).relu().detach()
    R = z_plus(h, model.b.weight.detach(), model.b.bias.detach(), model.b(h).detach() * torch.tensor([1, 0]))
    want = epsilon(x, model.a.weight.detach(), model.a.bias.detach(), R)
    torch.testing.assert_close(explain(model, x, 0, mixed), want, rtol=1e-8, atol=1e-10)


def test_a_rule_is_passed_over_where_it_is_not_defined():
    everything = Composite([(lambda site: True, rules.ZPlus()), (nn.Module, rules.Epsilon())])
    found = chosen(everything, CONV)
    assert found["relu"] == "Pass" and found["add"] == "Norm" and found["head"] == "ZPlus"


def test_a_composite_without_an_answer_says_so():
    with pytest.raises(InputError, match="no rule for .*kind"):
        CONV.relevance(0, composite=Composite([(nn.Linear, rules.ZPlus())], base=[]))


def test_printing():
    text = repr(composites.get("epsilon_plus_flat") | Composite([((nn.Conv2d, "layer4.*"), rules.Flat())], name="mine"))
    for part in ("epsilon_plus_flat | mine", "first(1)", "Conv2d & 'layer4.*'", "ZPlus(epsilon=1e-06", "(default)"):
        assert part in text
    table = composites.get("epsilon_plus").explain(CONV)
    assert table.count("\n") == sum(not s.folded_into_next for s in CONV.sites)
    assert "conv2d" in table and "ZPlus(epsilon=1e-06, bias='keep')" in table and "head" in table
    assert repr(rules.AlphaBeta(2, 1)) == "AlphaBeta(alpha=2.0, beta=1.0, epsilon=1e-06, bias='keep')"
    assert rules.Epsilon(1e-3) == rules.Epsilon(1e-3) != rules.Epsilon(1e-4)
    assert len({rules.ZPlus(), rules.ZPlus(), rules.Flat()}) == 2


def test_names():
    assert composites.get(None).name == "auto"
    with pytest.raises(UnknownNameError, match="Did you mean 'epsilon_plus'"):
        composites.get("epsilonplus")
    assert {"Epsilon", "ZPlus", "AlphaBeta"} <= set(rules.list_rules())
    assert rules.get("Gamma", gamma=0.5) == rules.Gamma(0.5)


@pytest.fixture
def tables():
    """Tables as they were, afterwards."""
    kept = dict(HANDLERS), dict(rules.RULES), dict(composites.COMPOSITES)
    yield
    for table, before in zip((HANDLERS, rules.RULES, composites.COMPOSITES), kept, strict=True):
        table.clear()
        table.update(before)
    LOOKED_UP.clear()


def test_a_composite_of_ones_own_by_name(tables):
    composites.register("mine", lambda gamma=0.5: Composite([(nn.Linear, rules.Gamma(gamma))], name="mine"))
    assert "mine" in composites.list_composites()
    assert composites.get("mine", gamma=2.0).rows[0][1] == rules.Gamma(2.0)
    with pytest.raises(UnknownNameError, match="mean 'gamma'"):
        composites.get("mine", gama=2.0)
    assert torch.equal(
        CONV.relevance(0, composite="mine"), CONV.relevance(0, composite=Composite([(nn.Linear, rules.Gamma(0.5))]))
    )


def test_a_rule_of_ones_own(tables):
    """The worked example: equal shares for the inputs that agree in sign with the output."""

    class SameSign(Rule):
        kinds = frozenset({"linear"})

        def relevance(self, site, R):
            agrees = (site.input[:, None] * site.weight * site.output[..., None] > 0).to(R.dtype)
            return ((agrees * (R / agrees.sum(-1).clamp(min=1))[..., None]).sum(1),)

    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    x = torch.ones(1, 3, dtype=torch.float64)
    got = explain(model, x, 0, SameSign())  # z = 2: inputs 0 and 2 agree
    assert got.tolist() == [[1.0, 0.0, 1.0]]
    assert "SameSign" in rules.list_rules() and rules.get("SameSign") == SameSign()


def test_a_function_of_ones_own_in_one_line(tables):
    model = Net(lambda s, x: torch.special.i0(s.a(x)), a=nn.Linear(3, 2))
    x = noise(2, 3)
    before = RelevancePropagator(model, EXACT).trace(x)
    before.relevance(0)
    assert any("i0" in w for w in before.warnings())

    functions.register("i0", "activation")

    trace = RelevancePropagator(model, EXACT, unknown="error").trace(x)
    R = trace.output * torch.tensor([1.0, 0.0])
    want = epsilon(x, model.a.weight.detach(), model.a.bias.detach(), R)
    torch.testing.assert_close(trace.relevance(0), want, rtol=1e-8, atol=1e-10)
    assert trace.warnings() == []
    with pytest.raises(UnknownNameError, match="mean 'activation'"):
        functions.register("i0", "activatoin")


def test_every_composite_has_a_line_and_those_to_begin_with_come_first():
    from saliency_lrp import list_composites
    from saliency_lrp.composites import grouped

    described = list_composites(verbose=True)
    assert set(described) == set(list_composites()) and next(iter(described)) == "auto"
    assert list(grouped()) == ["Start here", "From papers", "Gradients", "Other programs"]
    assert len(grouped()["Start here"]) == 6
    assert sum(map(len, grouped().values())) == len(described)
    for name, line in described.items():
        assert 20 < len(line) < 150 and "\n" not in line and line.endswith("."), (name, line)
    assert repr(described).splitlines()[0].startswith("auto ")
    assert list_composites() == sorted(list_composites())
