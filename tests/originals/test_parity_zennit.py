"""Live parity with zennit: every rule and composite, on the same weights, to 1e-6 relative in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import close as near
from tests.helpers.torchvision_cpu import import_torchvision
from tests.unit.rules.test_rules import LAYERS, seeded

pytestmark = pytest.mark.exhaustive

import_torchvision()  # zennit imports torchvision
za = pytest.importorskip("zennit.attribution")
zc = pytest.importorskip("zennit.composites")
zr = pytest.importorskip("zennit.rules")
Sum = pytest.importorskip("zennit.layer").Sum
MergeBatchNorm = pytest.importorskip("zennit.canonizers").SequentialMergeBatchNorm

BIAS = {"keep": {}, "zero": {"zero_params": "bias"}}

# name: ours for a bias mode, zennit's for its arguments
RULES: dict[str, tuple[Callable[[str], rules.Rule], Callable[..., object]]] = {
    "epsilon": (lambda b: rules.Epsilon(1e-6, bias=b), lambda **z: zr.Epsilon(1e-6, **z)),
    "epsilon_0.25": (lambda b: rules.Epsilon(0.25, bias=b), lambda **z: zr.Epsilon(0.25, **z)),
    "gamma_0.25": (lambda b: rules.GeneralizedGamma(0.25, bias=b), lambda **z: zr.Gamma(0.25, **z)),
    "gamma_5": (lambda b: rules.GeneralizedGamma(5.0, bias=b), lambda **z: zr.Gamma(5.0, **z)),
    "z_plus": (lambda b: rules.ZPlus(bias=b), lambda **z: zr.ZPlus(**z)),
    "alpha2_beta1": (lambda b: rules.AlphaBeta(2, 1, bias=b), lambda **z: zr.AlphaBeta(2.0, 1.0, **z)),
    "alpha1.5_beta0.5": (lambda b: rules.AlphaBeta(1.5, 0.5, bias=b), lambda **z: zr.AlphaBeta(1.5, 0.5, **z)),
    "alpha1_beta0": (lambda b: rules.AlphaBeta(1, 0, bias=b), lambda **z: zr.AlphaBeta(1.0, 0.0, **z)),
    "w_square": (lambda b: rules.WSquare(bias=b), lambda **z: zr.WSquare(**z)),
    "flat": (lambda b: rules.Flat(), lambda **z: zr.Flat(**z)),
    "box": (lambda b: rules.ZBox(-3.0, 2.0), lambda **z: zr.ZBox(-3.0, 2.0, **z)),
}  # fmt: skip


close = partial(near, tolerance=1e-6)


def zennit_rule(layer: nn.Module, rule: object, x: Tensor, R: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    handles = rule.copy().register(layer)
    try:
        return torch.autograd.grad(layer(x), x, R)[0]
    finally:
        handles.remove()


def example(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    layer, g = make().double(), seeded("zennit", name)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return layer, torch.randn(2, *shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYERS)
def test_rule(name, rule, bias):
    ours, theirs = RULES[rule]
    layer, x = example(name)
    trace = RelevancePropagator(layer, ours(bias)).trace(x)
    R = torch.randn(trace.output.shape, generator=seeded(name, rule), dtype=torch.float64)
    close(trace.relevance(seed=R), zennit_rule(layer, theirs(**BIAS[bias]), x, R))


PARAMETER_FREE = {
    "avg_pool": (nn.AvgPool2d(2), rules.Norm(1e-6), lambda: zr.Norm()),
    "adaptive_avg_pool": (nn.AdaptiveAvgPool2d((2, 3)), rules.Norm(1e-6), lambda: zr.Norm()),
    "relu_pass": (nn.ReLU(), rules.Pass(), lambda: zr.Pass()),
    "relu_deconvnet": (nn.ReLU(), rules.DeconvNet(), lambda: zr.ReLUDeconvNet()),
    "relu_guided": (nn.ReLU(), rules.GuidedBackprop(), lambda: zr.ReLUGuidedBackprop()),
    "relu_beta_smooth": (nn.ReLU(), rules.BetaSmooth(10.0), lambda: zr.ReLUBetaSmooth(10.0)),
}


@pytest.mark.parametrize("name", PARAMETER_FREE)
def test_rule_without_parameters(name):
    layer, ours, theirs = PARAMETER_FREE[name]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    R = torch.randn(layer(x).shape, dtype=torch.float64)
    trace = RelevancePropagator(layer, Composite([(lambda site: True, ours)])).trace(x)
    close(trace.relevance(seed=R), zennit_rule(layer, theirs(), x, R))


# -- whole nets ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual net with batch norms and zennit's own addition, which its hooks can see."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4, eps=0.0), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias), nn.BatchNorm2d(4, eps=0.0),
        )  # fmt: skip
        self.sum, self.relu = Sum(), nn.ReLU()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(self.relu(self.sum(torch.stack([self.branch(h), h], dim=-1))))


NETS: dict[str, Callable[[bool], nn.Module]] = {
    "mlp": lambda b: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 10, bias=b), nn.ReLU(), nn.Linear(10, 6, bias=b), nn.ReLU(), nn.Linear(6, 3, bias=b)
    ),
    "cnn": lambda b: nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=b), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 2, padding=1, bias=b), nn.ReLU(),
        nn.AvgPool2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3, bias=b),
    ),
    "transposed": lambda b: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, bias=b), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3, stride=2, bias=b), nn.ReLU(),
        nn.Flatten(), nn.Linear(75, 3, bias=b),
    ),
    "batch_norm": lambda b: nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=b), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, bias=b), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(),
        nn.Flatten(), nn.Linear(100, 5, bias=b), nn.BatchNorm1d(5, eps=0.0), nn.ReLU(), nn.Linear(5, 3, bias=b),
    ),
    "residual": Residual,
}  # fmt: skip

# our composite and zennit's by the same name; "box" stands for the bounds of the input
COMPOSITES: dict[str, tuple[Callable[[str], Composite], Callable[..., object]]] = {
    "epsilon_plus": (lambda b: composites.get("epsilon_plus", bias=b), zc.EpsilonPlus),
    "epsilon_plus_flat": (lambda b: composites.get("epsilon_plus_flat", bias=b), zc.EpsilonPlusFlat),
    "epsilon_alpha2_beta1": (lambda b: composites.get("epsilon_alpha2_beta1", bias=b), zc.EpsilonAlpha2Beta1),
    "epsilon_alpha2_beta1_flat": (
        lambda b: composites.get("epsilon_alpha2_beta1_flat", bias=b),
        zc.EpsilonAlpha2Beta1Flat,
    ),
    "epsilon_gamma_box": (
        lambda b: composites.get("epsilon_gamma_box", low=-4.0, high=4.0, bias=b),
        lambda **z: zc.EpsilonGammaBox(-4.0, 4.0, **z),
    ),
    "epsilon_gamma_box_options": (
        lambda b: composites.get("epsilon_gamma_box", low=-5.0, high=4.0, gamma=0.5, epsilon=0.01, bias=b),
        lambda **z: zc.EpsilonGammaBox(-5.0, 4.0, gamma=0.5, epsilon=0.01, **z),
    ),
    "excitation_backprop": (lambda b: composites.get("excitation_backprop", bias=b), zc.ExcitationBackprop),
}
GRADIENTS = {
    "deconvnet": (lambda: composites.get("deconvnet"), lambda: zc.DeconvNet()),
    "guided_backprop": (lambda: composites.get("guided_backprop"), lambda: zc.GuidedBackprop()),
    "beta_smooth": (lambda: composites.get("beta_smooth"), lambda: zc.BetaSmooth()),
    "beta_smooth_3": (lambda: composites.get("beta_smooth", beta=3.0), lambda: zc.BetaSmooth(3.0)),
}


def net(name: str, bias: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    made = NETS[name](bias).double().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for stored, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5)):
                stored.data.uniform_(low, low + 1)
            module.bias.data.uniform_(-0.5, 0.5)
    return made, torch.randn(2, 2, 6, 6, dtype=torch.float64)


def zennit_map(model: nn.Module, composite: object, x: Tensor, R: Tensor) -> Tensor:
    with za.Gradient(model, composite) as attributor:
        return attributor(x.clone(), R)[1]


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETS)
def test_composite(name, composite, bias, has_bias):
    ours, theirs = COMPOSITES[composite]
    model, x = net(name, has_bias)
    trace = RelevancePropagator(model, ours(bias)).trace(x)
    R = torch.randn(trace.output.shape, dtype=torch.float64)
    canonized = theirs(canonizers=[MergeBatchNorm()], **BIAS[bias])
    close(trace.relevance(seed=R), zennit_map(model, canonized, x, R))


@pytest.mark.parametrize("composite", GRADIENTS)
@pytest.mark.parametrize("name", NETS)
def test_gradient_composite(name, composite):
    ours, theirs = GRADIENTS[composite]
    model, x = net(name, True)
    trace = RelevancePropagator(model, ours()).trace(x)
    R = torch.randn(trace.output.shape, dtype=torch.float64)
    close(trace.relevance(seed=R), zennit_map(model, theirs(), x, R))


@pytest.mark.parametrize("name", ["batch_norm", "residual"])
def test_batch_norm_that_passes(name):
    """zennit without a canonizer: a batch norm passes relevance, the layer before takes its rule alone."""
    model, x = net(name, True)
    z_plus, epsilon = rules.ZPlus(), rules.Epsilon()
    ours = Composite([
        (composites.family("batch_norm"), rules.Pass()),
        (composites.family("convolution"), rules.PassBatchNorm(z_plus)),
        (composites.family("dense"), rules.PassBatchNorm(epsilon)),
        (composites.family("convolution"), z_plus),
        (composites.family("dense"), epsilon),
        (composites.kind("sum"), rules.Norm(1e-6)),
    ])  # fmt: skip
    trace = RelevancePropagator(model, ours).trace(x)
    R = torch.randn(trace.output.shape, dtype=torch.float64)
    close(trace.relevance(seed=R), zennit_map(model, zc.EpsilonPlus(), x, R))
