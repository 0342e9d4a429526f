"""Normalisations: the statistics are constants, the rest is linear (rule ``Norm``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from ..sites.call import Call
from ..sites.site import Site
from .registry import kind


class NormalizationSite(Site):
    """``y = (x − mean) · r · γ + β`` over ``axes``, with r = 1 / std constant and the mean linear in x.

    Parameters
    ----------
    axes : tuple of int
        Axes of ``shape`` that the statistics run over.
    shape : tuple of int
        Shape that x is viewed in for its statistics.
    centred : bool
        Whether the mean is subtracted (not so in RMS norm).
    """

    kind = "normalization"

    def __init__(
        self,
        call: Call,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        eps: float,
        gain: Tensor | None,
        centered: bool = True,
    ) -> None:
        super().__init__(call)
        self.shape = shape
        self.axes = axes
        self.eps = eps
        self.gain = None if gain is None else gain.detach()
        self.centered = centered
        #: the call as one kernel that also gives what :meth:`inverse_of` does
        self.fused: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return (self.vjp_with(c, self.inverse_of(self.input)),)

    def vjp_with(self, c: Tensor, inverse: Tensor) -> Tensor:
        """The transposed Jacobian, with what :meth:`inverse_of` gave."""
        g = (working(c) if self.gain is None else c * working(self.gain)).reshape(self.shape)
        own = self.gain is not None  # memory of its own, which is written over
        if self.centered:
            mean = g.mean(self.axes, keepdim=True)
            g, own = g.sub_(mean) if own else g - mean, True
        return (g.mul_(inverse) if own else g * inverse).reshape(c.shape)

    def inverse_of(self, x: Tensor) -> Tensor:
        """``1 / sqrt(var + eps)``, shaped to broadcast against x in ``shape``."""
        x = working(x).reshape(self.shape)
        return self.inverse_deviation(x - x.mean(self.axes, keepdim=True) if self.centered else x)

    def run_with_inverse(self, x: Tensor, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The call's output and :meth:`inverse_of` its input: by one kernel, where torch has one that tells both."""
        if self.fused is None or torch.is_autocast_enabled(x.device.type):
            return run(), self.inverse_of(x)
        out, inverse = self.fused(x)
        # CPUs round the statistics of half-precision inputs to half precision, too
        return out, inverse if working(inverse) is inverse else self.inverse_of(x)

    def inverse_deviation(self, x: Tensor) -> Tensor:
        """``1 / sqrt(mean(x²) + eps)``; by norms, which CPUs find a hundred times faster than variances."""
        n = math.prod(x.shape[axis] for axis in self.axes)
        square = torch.linalg.vector_norm(x, dim=self.axes, keepdim=True).square_() / n
        return torch.rsqrt(square.add_(self.eps))


def per_channel(v: Tensor | None, x: Tensor) -> Tensor | None:
    """A vector over the channel axis (1), shaped to broadcast against x."""
    return None if v is None else v.reshape(-1, *(1,) * (x.dim() - 2))


@kind("native layer norm")
def native_layer_norm(call: Call) -> Any:
    """Like ``layer_norm``; it also returns the statistics, which are constants."""
    with torch.no_grad():
        _, *statistics = call.func(*call.args, **call.kwargs)
    return layer_norm(call.one_result()), *statistics


@kind("layer norm")
def layer_norm(call: Call) -> Any:
    x, size = call.arg(0, "input"), call.arg(1, "normalized_shape")
    axes = tuple(range(-len(size), 0))
    weight, bias, eps = call.arg(2, "weight"), call.arg(3, "bias"), call.arg(4, "eps", 1e-5)
    site = NormalizationSite(call, tuple(x.shape), axes, eps, weight)

    def fused(x: Tensor) -> tuple[Tensor, Tensor]:
        out, _, inverse = torch.native_layer_norm(x, size, weight, bias, eps)
        return out, inverse

    site.fused = fused
    return call.node(site, [x])


@kind("rms norm")
def rms_norm(call: Call) -> Any:
    x, size = call.arg(0, "input"), call.arg(1, "normalized_shape")
    axes = tuple(range(-len(size), 0))
    eps = call.arg(3, "eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return call.node(NormalizationSite(call, tuple(x.shape), axes, eps, call.arg(2, "weight"), centered=False), [x])


@kind("group norm")
def group_norm(call: Call) -> Any:
    x, groups = call.arg(0, "input"), call.arg(1, "num_groups")
    site = NormalizationSite(
        call, (x.shape[0], groups, -1), (2,), call.arg(4, "eps", 1e-5), per_channel(call.arg(2, "weight"), x)
    )
    return call.node(site, [x])
