"""Live parity with captum's LRP: its rules, on the same weights, to 1e-6 relative in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.propagator import RelevancePropagator

captum = pytest.importorskip("captum.attr")
cr = pytest.importorskip("captum.attr._utils.lrp_rules")

EPSILON = 1e-9  # captum's stabiliser


class Headed(nn.Module):
    """Features, flattened by a function (captum has no rule for nn.Flatten), and a dense layer."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


NETS: dict[str, Callable[[bool], nn.Module]] = {
    "mlp": lambda b: nn.Sequential(
        nn.Linear(8, 10, bias=b), nn.ReLU(), nn.Linear(10, 6, bias=b), nn.Tanh(), nn.Linear(6, 3, bias=b)
    ),
    "cnn": lambda b: Headed(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1, bias=b), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 2, bias=b), nn.ReLU(),
            nn.AvgPool2d(2), nn.Dropout(0.3),
        ),
        nn.Linear(4, 3, bias=b),
    ),
    "batch_norm": lambda b: Headed(
        nn.Sequential(nn.Conv2d(2, 4, 3, bias=b), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        nn.Linear(16, 3, bias=b),
    ),
}  # fmt: skip


# name: ours, captum's
RULES: dict[str, tuple[rules.Rule, Callable[[], object]]] = {
    "epsilon": (rules.Epsilon(EPSILON), lambda: cr.EpsilonRule()),
    "epsilon_0.25": (rules.Epsilon(0.25), lambda: cr.EpsilonRule(0.25)),
    "gamma": (rules.Gamma(0.25, EPSILON), lambda: cr.GammaRule()),
    "gamma_2": (rules.Gamma(2.0, EPSILON), lambda: cr.GammaRule(2.0)),
    "gamma_without_bias": (rules.Gamma(0.25, EPSILON, "zero"), lambda: cr.GammaRule(set_bias_to_zero=True)),
    # right for non-negative inputs only, which the nets below then get
    "alpha1_beta0_without_bias": (
        rules.AlphaBeta(1, 0, EPSILON, "zero"),
        lambda: cr.Alpha1_Beta0_Rule(set_bias_to_zero=True),
    ),
}


def net(name: str, bias: bool, positive: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(5)
    made = NETS[name](bias).double().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn((2, 8) if name == "mlp" else (2, 2, 6, 6), dtype=torch.float64)
    return made, x.abs() if positive else x


def captum_map(model: nn.Module, rule: Callable[[], object], x: Tensor, target: int) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.rule = rule()
    return captum.LRP(model).attribute(x.clone().requires_grad_(), target=target).detach()


@pytest.mark.parametrize("target", [0, 2])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_rule(name, rule, has_bias, target):
    ours, theirs = RULES[rule]
    model, x = net(name, has_bias, positive="alpha1" in rule)
    if name == "mlp" and "alpha1" in rule:
        model[3] = nn.ReLU()  # tanh would hand negative inputs on
    got = RelevancePropagator(model, ours).trace(x).relevance(target=target)
    want = captum_map(model, theirs, x, target)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
def test_batch_norm_with_vanishing_epsilon_is_the_folded_one(has_bias):
    """captum treats conv and batch norm as two layers; under a tiny epsilon that is the merged layer."""
    model, x = net("batch_norm", has_bias, positive=False)
    got = RelevancePropagator(model, rules.Epsilon(EPSILON)).trace(x).relevance(target=1)
    want = captum_map(model, lambda: cr.EpsilonRule(), x, 1)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("rule", ["epsilon_0.25", "gamma", "gamma_without_bias"])
def test_batch_norm_apart(rule):
    """The same with any rule: the batch norm takes epsilon by itself, the layer before it the rule."""
    ours, theirs = RULES[rule]
    model, x = net("batch_norm", True, positive=False)
    apart = rules.SplitBatchNorm(rules.Epsilon(EPSILON), then=ours)
    composite = Composite([(composites.kind("linear"), apart), (composites.kind("linear"), ours)])
    got = RelevancePropagator(model, composite).trace(x).relevance(target=1)
    want = captum_map(model, theirs, x, 1)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


def test_identity_rule_on_a_layer_is_pass():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    got = RelevancePropagator(model, Composite([("0", rules.Pass())])).trace(x).relevance(target=1)
    model[0].rule, model[2].rule = cr.IdentityRule(), cr.EpsilonRule()
    want = captum.LRP(model).attribute(x.clone().requires_grad_(), target=1).detach()
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()
