"""LRP-ε beside the plain gradient, on torchvision's networks of linear layers and ReLUs (float64).

As ε → 0 the map is gradient × input (Ancona et al. 2018). For any ε it is so with the gradient damped by z / s(z) at
every linear layer, which plain autograd hooks compute: an independent reference that knows no relevance.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saliency_lrp import RelevancePropagator, rules
from tests.helpers.torchvision_cpu import import_torchvision

NETWORKS = ("alexnet", "vgg11_bn", "resnet18", "densenet121", "googlenet", "squeezenet1_0")
#: pixels: every layer of the six sees more than one
SIZE = 96
NORMS = nn.modules.batchnorm._BatchNorm


def network(name: str) -> nn.Module:
    """Random seeded weights, calibrated batch norms."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet's advice on its initialisation
        model = import_torchvision().models.get_model(name, weights=None).double().eval()
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum, norm.training = None, True  # a plain average over what follows
    with torch.no_grad():
        model(torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64))
    return model.eval().requires_grad_(False)


def gradient(model: nn.Module, x: Tensor, epsilon: float = 0.0) -> Tensor:
    """Input gradient of the largest score, damped by z / (z + ε sgn z) at the output z of every linear layer.

    A batch norm that reads a convolution is one layer with it: its output counts, the convolution's does not.
    """
    damped: dict[int, tuple[Tensor, RemovableHandle]] = {}

    def damp(module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> Tensor:
        if isinstance(module, NORMS) and id(args[0]) in damped:
            damped.pop(id(args[0]))[1].remove()
        z = z.clone()  # an in-place ReLU may follow
        factor = z.detach() / (z + torch.copysign(torch.full_like(z, epsilon), z)).detach()
        damped[id(z)] = z, z.register_hook(lambda g: g * factor)
        return z

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | NORMS)]
    handles = [layer.register_forward_hook(damp) for layer in layers]
    x = x.clone().requires_grad_(True)
    try:
        score = model(x).max()
    finally:
        for handle in handles:
            handle.remove()
    return torch.autograd.grad(score, x)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_epsilon_is_gradient_x_input(name):
    model, x = network(name), torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    trace = RelevancePropagator(model, "epsilon").trace(x)
    assert torch.equal(trace.output, model(x))

    def difference(R: Tensor, expected: Tensor) -> float:
        return float((R - expected).abs().max() / expected.abs().max())

    plain = gradient(model, x) * x
    assert difference(trace.relevance(), plain) < 1e-6
    for epsilon in (1e-9, 1e-3):
        R = trace.relevance(composite=rules.Epsilon(epsilon))
        assert difference(R, gradient(model, x, epsilon) * x) < 1e-6
    assert difference(R, plain) > 1e-3  # so that the reference is seen to differ
