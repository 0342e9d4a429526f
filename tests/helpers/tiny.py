"""What the engine's tests share: models from one function, and what theory says of their maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import rules
from saliency_lrp.propagator import RelevancePropagator, Trace

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


#: z⁺ with next to no stabilizer
ZPLUS = rules.ZPlus(1e-13)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-8) -> None:
    """No value is off by more than a share of the largest one."""
    assert got.shape == want.shape and got.dtype == want.dtype
    off, largest = float((got - want).abs().amax()), float(want.abs().amax())
    assert off <= tolerance * largest, f"off by {off:.3g} of {largest:.3g}"


def lin(before: int, after: int) -> nn.Linear:
    """A dense layer without a bias: an exact share of relevance for everything."""
    return nn.Linear(before, after, bias=False)


def traced(model: nn.Module, x: Tensor, unknown: str = "warn") -> Trace:
    return RelevancePropagator(model, EXACT, unknown).trace(x)


def count_passes(model: nn.Module) -> list[int]:
    """A list that grows by one with every forward pass."""
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes


class Block(nn.Module):
    """A function as a module of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Any:
        return self.function(h)


def residual(s: Any, x: Tensor) -> Tensor:
    y = s.norm1(s.conv1(x)).relu_()
    z = s.norm2(s.conv2(y)) + y
    return s.head(F.max_pool2d(F.relu(z, inplace=True), 2).flatten(1))


def small_net() -> Net:
    """Two convolutions with batch norms, a skip connection and in-place ReLUs, registered in another order."""
    torch.manual_seed(1)
    norms = {"norm1": nn.BatchNorm2d(4), "norm2": nn.BatchNorm2d(4)}
    convs = {"conv1": nn.Conv2d(3, 4, 3, padding=1), "conv2": nn.Conv2d(4, 4, 3, padding=1, bias=False)}
    return statistics(Net(residual, **norms, **convs, head=nn.Linear(36, 5)))


class Doubled(torch.autograd.Function):
    """Somebody's own autograd function."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g
