"""Functions that are several steps in one: relevance goes through the steps, the value is the function's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .decomposed import DecomposedSite
from .registry import handles
from .site import Site, fill


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + value * tensor1 * tensor2


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + value * (tensor1 / tensor2)


def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    return input + weight * (end - input)


def added(shift: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta · shift + alpha · product``; torch does not look at the shift where beta is 0."""
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else (shift if beta == 1 else beta * shift) + product


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return added(input, mat1 @ mat2, beta, alpha)


def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return added(input, mat @ vec, beta, alpha)


def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return added(input, vec1[:, None] * vec2, beta, alpha)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return added(input, batch1 @ batch2, beta, alpha)


def addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return added(input, (batch1 @ batch2).sum(0), beta, alpha)


def embedding_bag(
    input: Tensor, weight: Tensor, *args: Any, per_sample_weights: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Vectors times their weights, then the same bags of those; each vector of ``weight`` is in one place only."""
    assert per_sample_weights is not None
    scaled = weight[input.reshape(-1)] * per_sample_weights.reshape(-1, 1)
    return F.embedding_bag(
        torch.arange(input.numel(), device=input.device).reshape(input.shape), scaled, *args, **kwargs
    )


def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.matmul, tensors)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    lengths = [torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps) for x in (x1, x2)]
    return ((x1 / lengths[0]) * (x2 / lengths[1])).sum(dim)


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    return torch.linalg.vector_norm(x1 - x2 + eps, p, dim=-1, keepdim=keepdim)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    return torch.linalg.vector_norm(x1[..., :, None, :] - x2[..., None, :, :], p, dim=-1)


def variance(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    """A mean of squares: squares pass relevance, the rest shares in proportion."""
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    axes = tuple(range(input.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    n = 1
    for axis in axes:
        n *= input.shape[axis]
    lost = correction if correction is not None else (0 if unbiased is False else 1)
    centred = input - input.mean(axes, keepdim=True)
    return (centred.square().sum(axes, keepdim=keepdim)) / (n - lost)


def standard_deviation(*args: Any, **kwargs: Any) -> Tensor:
    return variance(*args, **kwargs).sqrt()


def var_mean(input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **correction: Any) -> Any:
    mean = input.mean() if dim is None else input.mean(dim, keepdim=keepdim)
    return variance(input, dim, unbiased, keepdim, **correction), mean


def std_mean(*args: Any, **kwargs: Any) -> Any:
    var, mean = var_mean(*args, **kwargs)
    return var.sqrt(), mean


#: Name of a function -> the same in steps that the table knows.
STEPS: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (addcmul, addcdiv, lerp, addmm, addmv, addr, baddbmm, addbmm)},
    **{f.__name__: f for f in (cosine_similarity, pairwise_distance, cdist, var_mean, std_mean)},
    "linalg_multi_dot": multi_dot,
    "embedding_bag": embedding_bag,
    "var": variance,
    "std": standard_deviation,
}


class StepsSite(DecomposedSite):
    """A call whose relevance takes the way through :data:`STEPS`."""

    kind = "steps"

    def expand(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        return STEPS[self.op.removesuffix("_")](
            *fill(self.args, values), **{k: fill(v, values) for k, v in self.kwargs.items()}
        )


@handles(
    "addcdiv",
    "cosine_similarity",
    "pairwise_distance",
    "cdist",
    "linalg_multi_dot",
    "var",
    "std",
    "var_mean",
    "std_mean",
)
def in_steps(call: Call) -> Any:
    return call.node(StepsSite(call))


class ProductOfAll(Site):
    """``prod``: every factor gets an equal share, as in a product of two (AttnLRP, Achtibat et al. 2024, prop. 3.2)."""

    kind = "product"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.dim = call.arg(1, "dim")
        self.keepdim = call.arg(2, "keepdim", False)

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        x = self.input
        if self.dim is None:
            return (R.expand(x.shape) / x.numel(),)
        R = R if self.keepdim else R.unsqueeze(self.dim)
        return (R.expand(x.shape) / x.shape[self.dim],)


@handles("prod")
def product_of_all(call: Call) -> Any:
    return call.node(ProductOfAll(call))
