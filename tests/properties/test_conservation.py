"""Relevance is conserved where theory says so: exactly with ``bias="distribute"``, and without biases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers import reference
from tests.unit.rules.test_rules import LAYERS, layer_and_input, seeded

pytestmark = pytest.mark.exhaustive

F64 = torch.float64

DISTRIBUTE: dict[str, Callable[[float], rules.Rule]] = {
    "epsilon": lambda e: rules.Epsilon(e, bias="distribute"),
    "relative_epsilon": lambda e: rules.Epsilon(0.25, relative=True, bias="distribute"),
    "gamma": lambda e: rules.Gamma(0.25, e, "distribute"),
    "generalized_gamma": lambda e: rules.GeneralizedGamma(0.25, e, "distribute"),
    "z_plus": lambda e: rules.ZPlus(e, "distribute"),
    "alpha2_beta1": lambda e: rules.AlphaBeta(2, 1, e, "distribute"),
    "w_square": lambda e: rules.WSquare(e, "distribute"),
    "power1": lambda e: rules.Power(1, e, "distribute"),
    "power2": lambda e: rules.Power(2, e, "distribute"),
}


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
@pytest.mark.parametrize("rule", DISTRIBUTE)
@pytest.mark.parametrize("name", LAYERS)
def test_distributed_bias_conserves_exactly(name, rule, epsilon):
    """Sample by sample, however large bias and stabiliser are."""
    layer, x = layer_and_input(name, F64, 3)
    m = reference.matrix_of(layer, tuple(x.shape[1:]))
    trace = RelevancePropagator(layer, DISTRIBUTE[rule](epsilon)).trace(x)
    R = torch.randn(trace.output.shape, generator=seeded(name, rule), dtype=F64)
    # an output that no input reaches has nobody to give its relevance to
    R = R * torch.from_numpy(m.wired.any(1)).to(F64).reshape(R.shape[1:])
    if rule.startswith("power"):
        R = R * (trace.output != 0)
    got = trace.relevance(seed=R)
    want = R.flatten(1).sum(1)
    assert (got.flatten(1).sum(1) - want).abs().max() <= 1e-9 * R.abs().sum()


class Graph(nn.Module):
    """Skip connections by ``+`` and ``+=``, a concatenation, a shared layer, pooling of both sorts, a batch norm."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6)
        self.shared = nn.Conv2d(6, 6, 3, padding=1, bias=bias)
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=bias), nn.Linear(22, 5, bias=bias)
        if bias:
            nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(self.norm.bias, -0.3, 0.3)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = F.relu(self.shared(h)) + h
        y = F.relu_(self.shared(h))
        y += h
        y = F.max_pool2d(y, 2)
        wide = F.avg_pool2d(F.relu(self.up(y)), 3)
        return self.head(torch.cat([y.mean((2, 3)), wide.flatten(1)], 1))


NETS: dict[str, Callable[[bool], nn.Module]] = {
    "mlp": lambda b: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 16, bias=b), nn.ReLU(), nn.Linear(16, 12, bias=b), nn.GELU(),
        nn.Linear(12, 5, bias=b),
    ),
    "cnn": lambda b: nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=b), nn.LeakyReLU(),
        nn.Conv2d(6, 6, 3, groups=2, bias=b), nn.ReLU(),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 5, bias=b),
    ),
    "graph": Graph,
}  # fmt: skip


def net(name: str, bias: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    return NETS[name](bias).double().eval(), torch.randn(2, 2, 8, 8, dtype=F64)


@pytest.mark.parametrize("rule", DISTRIBUTE)
@pytest.mark.parametrize("name", NETS)
def test_distributed_bias_conserves_through_a_net(name, rule):
    model, x = net(name, True)
    composite = Composite([
        (composites.kind("linear"), DISTRIBUTE[rule](1e-6)),
        (composites.kind("sum"), rules.Norm(1e-6, bias="distribute")),
    ])  # fmt: skip
    trace = RelevancePropagator(model, composite).trace(x)
    started = trace.output.max(1).values
    arrived = trace.relevance().flatten(1).sum(1)
    torch.testing.assert_close(arrived, started, rtol=1e-9, atol=1e-9)


TINY = 1e-13
CONSERVING: dict[str, rules.Rule] = {
    "epsilon": rules.Epsilon(TINY),
    "zero": rules.ZeroRule(),
    "gamma": rules.Gamma(0.25, TINY),
    "generalized_gamma": rules.GeneralizedGamma(0.25, TINY),
    "z_plus": rules.ZPlus(TINY),
    "alpha2_beta1": rules.AlphaBeta(2, 1, TINY),
    "w_square": rules.WSquare(TINY),
    "flat": rules.Flat(TINY),
    "power1": rules.Power(1, TINY),
    "power2": rules.Power(2, TINY),
    "beta0.5": rules.Beta(0.5, TINY),
    "beta-0.5": rules.Beta(-0.5, TINY),
    "norm": rules.Norm(TINY),
}


# Flat and w^2 give relevance to units that are 0, and a sum of zeros has nobody to hand it to; alpha-beta needs an
# output to have contributions of both signs, which sparse inputs of few weights do not always give.
NOT_CONSERVED_BY_DEFINITION = {("graph", rule) for rule in ("flat", "w_square", "alpha2_beta1")}


def without_shift(model: nn.Module) -> nn.Module:
    """A batch norm without mean and shift is a scaling: no bias anywhere."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize(
    ("name", "rule"), [(n, r) for n in NETS for r in CONSERVING if (n, r) not in NOT_CONSERVED_BY_DEFINITION]
)
def test_net_without_bias_conserves(name, rule):
    model, x = net(name, False)
    trace = RelevancePropagator(without_shift(model), CONSERVING[rule]).trace(x)
    R = torch.rand(trace.output.shape, generator=seeded(name), dtype=F64)
    got = trace.relevance(seed=R, account=True)
    torch.testing.assert_close(got.flatten(1).sum(1), R.sum(1), rtol=1e-7, atol=0)
    assert trace.report().conserved == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_box_on_the_first_layer_conserves(name):
    model, x = net(name, False)
    composite = composites.get(rules.Epsilon(TINY)) | Composite([(composites.first(), rules.ZBox(-5.0, 5.0, TINY))])
    trace = RelevancePropagator(without_shift(model), composite).trace(x)
    R = torch.rand(trace.output.shape, generator=seeded(name), dtype=F64)
    torch.testing.assert_close(trace.relevance(seed=R).flatten(1).sum(1), R.sum(1), rtol=1e-7, atol=0)


NAMED = sorted(
    set(composites.list_composites())
    - {"gradient", "deconvnet", "guided_backprop", "beta_smooth", "excitation_backprop"}  # not relevance
    - {name for name in composites.list_composites() if "preset" in name or "composite" in name}  # epsilon 0.1
    - {"arras", "lrp_lstm"}  # epsilon 0.001
)


@pytest.mark.parametrize("name", NAMED)
def test_composite_conserves_on_a_net_without_bias(name):
    """Every composite that is LRP, with its own stabilisers."""
    model, x = net("cnn", False)
    R = torch.rand(2, 5, generator=seeded(name), dtype=F64)
    got = RelevancePropagator(model, name).trace(x).relevance(seed=R)
    assert (got.flatten(1).sum(1) - R.sum(1)).abs().max() <= 1e-3 * R.abs().sum()


@pytest.mark.parametrize("beta", [-1.0, 0.0])
def test_the_b_rule_may_lose_relevance_at_these_two(beta):
    layer = nn.Linear(2, 1, bias=False, dtype=F64)
    layer.weight.data = torch.tensor([[1.0, 1.0]], dtype=F64) * (-1 if beta == 0 else 1)
    x = torch.ones(1, 2, dtype=F64)
    got = RelevancePropagator(layer, rules.Beta(beta)).trace(x).relevance(seed=torch.ones(1, 1, dtype=F64))
    assert got.abs().max() == 0
