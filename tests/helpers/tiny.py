"""What the engine's tests share: models from one function, and what theory says of their maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lrp import rules
from saliency_lrp.propagator import RelevancePropagator

#: ε so small that LRP-ε is gradient × input on networks that are piecewise linear
EXACT = rules.Epsilon(1e-13)


class Net(nn.Module):
    """``forward(x)`` is ``function(self, x)``; the modules are attributes, registered in the order given."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)
        self.double().eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(model: nn.Module) -> nn.Module:
    """Random statistics, gains and shifts in every batch norm, so that none of them is the identity."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for k, t in enumerate((m.running_mean, m.running_var, m.weight, m.bias)):
                t.data = noise(len(t), seed=k).to(t)
            m.running_var.abs_().add_(0.5)
    return model


def explain(model: nn.Module, x: Tensor, target: Any = 0, rule: Any = EXACT, **options: Any) -> Tensor:
    return RelevancePropagator(model, rule).trace(x).relevance(target, **options)


def gradient_times_input(model: nn.Module, x: Tensor, target: int | Callable = 0) -> Tensor:
    """Plain autograd, nothing of the package."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        out = model(leaf.clone())
        value = target(out).sum() if callable(target) else out[:, target].sum()
        return (torch.autograd.grad(value, leaf)[0] * leaf).detach()


def z_plus(a: Tensor, w: Tensor, b: Tensor | None, R: Tensor) -> Tensor:
    """z⁺ through a dense layer, one contribution at a time."""
    c = (a[:, None, :] * w[None]).clamp(min=0)
    z = c.sum(-1) + (0 if b is None else b.clamp(min=0))
    return (c * torch.where(z == 0, 0.0, R / z)[..., None]).sum(1)


def epsilon(a: Tensor, w: Tensor, b: Tensor | None, R: Tensor, width: float = 0.0) -> Tensor:
    """LRP-ε through a dense layer, one contribution at a time; any leading axes."""
    c = a[..., None, :] * w
    z = c.sum(-1) + (0 if b is None else b)
    return (c * (R / (z + width * torch.where(z < 0, -1.0, 1.0)))[..., None]).sum(-2)
