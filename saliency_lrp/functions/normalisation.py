"""Normalisations: the statistics are constants, the rest is linear (rule ``Norm``; a batch norm is a linear layer)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from .call import Call, tag_of
from .layers import fold, layer_before
from .linear import Affine, Diagonal, linear_node
from .registry import kind
from .site import Site, runs_again_alike


class NormalisationSite(Site):
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

    kind = "normalisation"

    def __init__(
        self,
        call: Call,
        shape: tuple[int, ...],
        axes: tuple[int, ...],
        eps: float,
        gain: Tensor | None,
        centred: bool = True,
    ) -> None:
        super().__init__(call)
        self.shape = shape
        self.axes = axes
        self.eps = eps
        self.gain = None if gain is None else gain.detach()
        self.centred = centred
        #: the call as one kernel that also gives what :meth:`inverse_of` does
        self.fused: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self.cheap = runs_again_alike(call.activations[0])

    @property
    def keeps_output(self) -> bool:  # type: ignore[override]
        return not self.cheap

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return (self.vjp_with(c, self.inverse_of(self.input)),)

    def vjp_with(self, c: Tensor, inverse: Tensor) -> Tensor:
        """The transposed Jacobian, with what :meth:`inverse_of` gave."""
        g = (working(c) if self.gain is None else c * working(self.gain)).reshape(self.shape)
        if self.centred:
            g = (g - g.mean(self.axes, keepdim=True)).mul_(inverse)
        else:
            g = g * inverse
        return g.reshape(c.shape)

    def inverse_of(self, x: Tensor) -> Tensor:
        """``1 / sqrt(var + eps)``, shaped to broadcast against x in ``shape``."""
        x = working(x).reshape(self.shape)
        return self.inverse_deviation(x - x.mean(self.axes, keepdim=True) if self.centred else x)

    def run_with_inverse(self, x: Tensor, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The call's output and :meth:`inverse_of` its input: by one kernel, where torch has one that tells both."""
        if self.fused is None or not runs_again_alike(x):
            return run(), self.inverse_of(x)
        return self.fused(x)

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
    site = NormalisationSite(call, tuple(x.shape), axes, eps, weight)

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
    return call.node(NormalisationSite(call, tuple(x.shape), axes, eps, call.arg(2, "weight"), centred=False), [x])


@kind("group norm")
def group_norm(call: Call) -> Any:
    x, groups = call.arg(0, "input"), call.arg(1, "num_groups")
    site = NormalisationSite(
        call, (x.shape[0], groups, -1), (2,), call.arg(4, "eps", 1e-5), per_channel(call.arg(2, "weight"), x)
    )
    return call.node(site, [x])


@kind("instance norm")
def instance_norm(call: Call) -> Any:
    x = call.arg(0, "input")
    use_input_stats = call.arg(5, "use_input_stats", True)
    if not use_input_stats:
        return batch_norm(call)  # its first arguments stand in the same order
    gain = per_channel(call.arg(3, "weight"), x)
    return call.node(NormalisationSite(call, (*x.shape[:2], -1), (2,), call.arg(7, "eps", 1e-5), gain), [x])


@kind("batch norm")
def batch_norm(call: Call) -> Any:
    x = call.arg(0, "input")
    mean, var = call.arg(1, "running_mean"), call.arg(2, "running_var")
    training = call.name == "batch_norm" and call.arg(5, "training", False)
    if call.func is torch.batch_norm or hasattr(call.func, "overloads") or hasattr(call.func, "_overloadname"):
        # the order of torch and aten is (input, weight, bias, mean, var, training, momentum, eps, cudnn)
        weight, bias, mean, var, eps = call.args[1], call.args[2], call.args[3], call.args[4], call.args[7]
    else:
        weight, bias, eps = call.arg(3, "weight"), call.arg(4, "bias"), call.arg(7, "eps", 1e-5)
    if training or mean is None:
        return statistics_of_the_batch(call, x, weight, bias, eps)
    out = call.as_is("linear", [x])
    if out is not None:
        return out
    affine = Affine(mean, var, weight, bias, eps)
    tag = tag_of(x)
    layer = layer_before(tag, x) if tag is not None and x.dim() > 1 else None
    # a dense layer on (N, C, features) puts features last, where the batch norm's channels are not
    out = fold(call, layer, affine, 1 - x.dim(), None) if layer is not None else None
    if out is not None:
        return out
    return linear_node(call, Diagonal(call, affine, channel_axis=1 - x.dim() if x.dim() > 1 else -1), x)


def statistics_of_the_batch(call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """A batch norm without running statistics: it normalises by those of the batch it is given."""
    axes = (0, *range(2, x.dim()))
    call.interceptor.note(
        f"{call.name} at {call.path!r} has no running statistics: the map of an image depends on the rest of its batch"
    )
    return call.node(NormalisationSite(call, tuple(x.shape), axes, eps, per_channel(weight, x)), [x])
