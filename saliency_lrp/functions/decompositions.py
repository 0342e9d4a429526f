"""Functions that are several steps in one: relevance goes through the steps, the value is the function's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sites.call import Call
from ..sites.site import Site, any_complex, fill
from ..sites.tag import PLAIN, tag_of
from . import by_hand
from .registry import kind
from .rerun import DecomposedSite
from .unknown import unknown


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


def polar(abs: Tensor, angle: Tensor) -> Tensor:
    return torch.complex(abs * angle.cos(), abs * angle.sin())


def var_mean(
    input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> tuple[Tensor, Tensor]:
    """A mean of squares: squares pass relevance, the rest shares in proportion."""
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    chosen = range(input.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
    axes = tuple(chosen) or tuple(range(input.dim()))
    n = math.prod(input.shape[axis] for axis in axes)
    lost = correction if correction is not None else (0 if unbiased is False else 1)
    mean = input.mean(axes, keepdim=True)
    var = (input - mean).square().sum(axes, keepdim=keepdim) / max(n - lost, 0)
    return var, mean if keepdim else mean.reshape(var.shape)


def variance(*args: Any, **kwargs: Any) -> Tensor:
    return var_mean(*args, **kwargs)[0]


def standard_deviation(*args: Any, **kwargs: Any) -> Tensor:
    return variance(*args, **kwargs).sqrt()


def std_mean(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    var, mean = var_mean(*args, **kwargs)
    return var.sqrt(), mean


def trapezoid(y: Tensor, x: Tensor, *, dim: int = -1) -> Tensor:
    """Between two places of the axis, the mean of both values times how far they are apart."""
    heights = y.narrow(dim, 1, y.shape[dim] - 1) + y.narrow(dim, 0, y.shape[dim] - 1)
    along = (slice(None), *(None,) * (-dim - 1 if dim < 0 else y.dim() - dim - 1)) if x.dim() == 1 else ...
    return 0.5 * (heights * torch.diff(x[along] if x.dim() == 1 else x, dim=0 if x.dim() == 1 else dim)).sum(dim)


#: Name of a function -> the same in steps that the table knows.
STEPS: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (addcmul, addcdiv, lerp, addmm, addmv, addr, baddbmm, addbmm)},
    **{f.__name__: f for f in (cosine_similarity, pairwise_distance, cdist, var_mean, std_mean, polar, trapezoid)},
    "_sparse_addmm": addmm,
    "linalg_multi_dot": multi_dot,
    "embedding_bag": embedding_bag,
    "trapz": trapezoid,
    "var": variance,
    "std": standard_deviation,
}


class StepsSite(DecomposedSite):
    """A call whose relevance takes the way through :data:`STEPS`."""

    kind = "steps"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        tags = [tag_of(t) for t in call.activations]
        self.looks = [(PLAIN, False) if tag is None else (tag.gate, tag.nonnegative) for tag in tags]

    def expand(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        return STEPS[self.op.removesuffix("_")](
            *fill(self.args, values), **{k: fill(v, values) for k, v in self.kwargs.items()}
        )


@kind("steps")
def in_steps(call: Call) -> Any:
    return call.node(StepsSite(call))


@kind("added quotient")
def added_quotient(call: Call) -> Any:
    """``addcdiv``: of constants beside the dividend, the last steps of a batch norm."""
    shift, x, divisor = (call.arg(k, name) for k, name in enumerate(("input", "tensor1", "tensor2")))
    if call.is_activation(shift) or call.is_activation(divisor) or any_complex(shift, x, divisor):
        return in_steps(call)
    factor = divisor.detach().reciprocal()
    out, note = by_hand.scale_and_shift_by_hand(call, x, factor, call.kwargs.get("value", 1), shift)
    return note(in_steps(call)) if out is None else out


def in_some_steps(call: Call) -> Any:
    """A call that is no sum of its activations: in steps where there are some, else reported."""
    return in_steps(call) if call.name in STEPS else unknown(call)


class ProductOfAll(Site):
    """``prod``: every factor gets an equal share, as in a product of two (AttnLRP, Achtibat et al. 2024, prop. 3.2)."""

    kind = "product"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.dim = call.arg(1, "dim")
        self.keepdim = call.arg(2, "keepdim", False)

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        x = self.input
        if self.dim is None or not x.dim():
            return (R.reshape((1,) * x.dim()).expand(x.shape) / x.numel(),)
        R = R if self.keepdim else R.unsqueeze(self.dim)
        return (R.expand(x.shape) / x.shape[self.dim],)


class RunningProduct(Site):
    """``cumprod``: each product is shared alike by the factors so far."""

    kind = "product"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.dim = call.arg(1, "dim")

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        each = R / torch.ones_like(R).cumsum(self.dim)
        return (each.flip(self.dim).cumsum(self.dim).flip(self.dim),)


class ProductOfMany(Site):
    """Values multiplied into places of a tensor: every factor of a place that is no constant gets an equal share."""

    kind = "product"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.dim, self.places = call.arg(1, "dim"), call.arg(2, "index")
        target = call.arg(0, "input")
        values = call.arg(3, "source" if call.name == "index_reduce" else "src")
        self.shape = target.shape
        self.whole_slices = call.name == "index_reduce"
        counted = values.shape if self.whole_slices else self.places.shape
        multiplied = self.added(torch.ones(counted, device=target.device))
        includes_self = call.name == "scatter" or call.arg(5, "include_self", True)
        #: where the value that was there is a factor
        self.stays = torch.ones_like(multiplied) if includes_self else (multiplied == 0).to(multiplied.dtype)
        #: for each activation: whether it is the target, whether it is the values that are multiplied in, its shape
        self.roles = [(a is target, a is values, a.shape) for a in call.activations]
        self.factors = torch.zeros_like(multiplied)
        for is_target, is_values, _ in self.roles:
            self.factors += self.stays * is_target + multiplied * is_values

    def added(self, values: Tensor) -> Tensor:
        """Values summed into the places that they belong to."""
        zeros = values.new_zeros(self.shape)
        return (zeros.index_add if self.whole_slices else zeros.scatter_add)(self.dim, self.places, values)

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        share = R / self.factors.clamp(min=1)
        return tuple(self.share_of(share, *role) for role in self.roles)

    def share_of(self, share: Tensor, is_target: bool, is_values: bool, shape: tuple[int, ...]) -> Tensor:
        """What one activation gets, in all its roles."""
        R = share * self.stays if is_target else share.new_zeros(shape)
        if is_values and self.whole_slices:
            R = R + share.index_select(self.dim, self.places)
        elif is_values:
            R[tuple(slice(0, n) for n in self.places.shape)] += share.gather(self.dim, self.places)
        return R


#: Kind of function -> its site, where every factor of a product gets an equal share.
PRODUCTS: dict[str, Callable[[Call], Site]] = {
    "product of all": ProductOfAll,
    "running product": RunningProduct,
    "product of many": ProductOfMany,
}


@kind(*PRODUCTS)
def product_of_several(call: Call) -> Any:
    if call.activations[0].is_complex():
        return unknown(call)
    return call.node(PRODUCTS[call.facts.kind_of(call)](call), nonnegative=call.nonnegative())
