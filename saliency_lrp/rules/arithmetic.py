"""What every rule computes with: stabilised division, parts by sign, the dtype of the work."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.devices import knows_cheaply
from ..values import holds
from .views import SiteView

#: Stabilisers up to this width only guard exact zeros: nothing else is told apart from LRP-0.
GUARD = 1e-12

#: Axes over which a relative stabiliser measures outputs; None where it is absolute, () for each output by itself.
Axes = tuple[int, ...] | None


def stabilizer_width(z: Tensor, epsilon: float, axes: Axes = None) -> float | Tensor:
    """ε itself, or ε · rms(z) over some axes of the outputs."""
    if axes is None:
        return epsilon
    if not axes:
        rms = z.abs()
    else:
        size = math.prod(z.shape[axis] for axis in axes)
        rms = torch.linalg.vector_norm(z, dim=axes, keepdim=True) / math.sqrt(max(size, 1))
    # where all z are 0 there is no scale: any width guards the division
    return epsilon * torch.where(rms > 0, rms, 1.0)


def stabilize(z: Tensor, epsilon: float, axes: Axes = None) -> Tensor:
    """s(z) = z + ε·sgn(z), sgn(0) = +1.

    Parameters
    ----------
    z : Tensor
        Denominators.
    epsilon : float
        Width of the stabiliser, absolute or in units of rms(z).
    axes : tuple of int, optional
        Makes ``epsilon`` relative (scale-free, Montavon et al. 2019 section 10.2): the axes that rms(z) runs over.
    """
    width = stabilizer_width(z, epsilon, axes)
    if not isinstance(width, Tensor):
        width = torch.full((), width, dtype=z.dtype, device=z.device)
    return torch.copysign(width, z).add_(z)


def divide(
    R: Tensor, z: Tensor, epsilon: float, axes: Axes = None, sign: int = 0, may_overwrite: bool = False
) -> Tensor:
    """R / s(z); where s(z) is exactly 0 (only without stabiliser) the relevance is dropped.

    Half-precision operands are divided in float32: 1e-6 is subnormal there and R / 1e-6 overflows.

    Parameters
    ----------
    R, z, epsilon, axes
        As in :func:`stabilize`; R may have an axis of several maps before those of z.
    sign : {0, 1, -1}
        1 or -1 where z is known to be of no other sign, which saves a pass over its signs; 0 has the sign given.
    may_overwrite : bool
        Whether z is of no use afterwards, so that it may be written over.
    """
    R, z = working(R), working(z)
    if epsilon == 0:
        some = (z != 0).to(z.dtype)
        return torch.div(R, 1 - some + z).mul_(some)
    if sign:
        s = torch.add(z, sign * stabilizer_width(z, epsilon, axes), out=z if may_overwrite else None)
    else:
        s = stabilize(z, epsilon, axes)
    if R.dtype == s.dtype and R.shape == s.shape:
        return torch.div(R, s, out=s)  # s is ours: one pass over fresh memory less
    return R / s


def measured_over(site: SiteView, relative: bool) -> Axes:
    """Over which axes of a site's outputs a stabiliser is measured: None where it is not relative."""
    return site.own_axes if relative else None


def working(t: Tensor) -> Tensor:
    """The tensor in a dtype that relevance can be computed in: half precision becomes float32."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def sum_of_parts(t: Tensor, n: int, axis: int) -> Tensor:
    """The sum of ``n`` equal parts of a tensor along an axis."""
    return t.unflatten(axis, (n, -1)).sum(axis - 1 if axis < 0 else axis)


def positive(t: Tensor) -> Tensor:
    """max(t, 0)."""
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    """min(t, 0)."""
    return t.clamp(max=0)


def where_positive(R: Tensor, z: Tensor) -> Tensor:
    """R where z > 0, else 0; on CPUs an order of magnitude faster than ``torch.where``."""
    return torch.ops.aten.threshold_backward(working(R), z, 0)


def message(a: Tensor, g: Tensor, last: bool = False) -> Tensor:
    """a · g, in the memory of g where this is the last use of it."""
    return g.mul_(a) if last else a * g


def unmasked(x: Tensor, fill: float = 0.0) -> Tensor:
    """``x`` with ``fill`` for what is masked by −inf."""
    if knows_cheaply(x) and x.numel() and holds(lambda: x.amin() > -math.inf, unknown=False):
        return x  # asked of CPUs only: one cheap pass instead of several slow ones
    return torch.where(torch.isinf(x), fill, x)
