"""The constants of a batch norm in eval mode."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..model.devices import knows_cheaply
from ..rules.arithmetic import working
from ..values import of_the_example


class BatchNorm:
    """A batch norm in eval mode: ``y = scale · (x − mean) + shift``, one value per channel."""

    #: whether it is one call, or only the last of several
    is_one_call = True

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.mean, self.var, self.eps = mean.detach(), var.detach(), eps
        self.version = version(self.var)
        self.weight = None if weight is None else weight.detach()
        self.own_bias = None if bias is None else bias.detach()

    @functools.cached_property
    def scale(self) -> Tensor:
        gain = torch.rsqrt(working(self.var) + self.eps)
        return gain if self.weight is None else gain.mul_(working(self.weight))

    @functools.cached_property
    def keeps_sign(self) -> bool:
        """Whether no scale is negative; a GPU is not asked, since it would have to be waited for."""
        with of_the_example():  # weights are the same for all inputs
            return knows_cheaply(self.scale) and not bool((self.scale < 0).any())

    @functools.cached_property
    def shift(self) -> Tensor:
        return torch.zeros_like(working(self.mean)) if self.own_bias is None else working(self.own_bias)

    def merged_bias(self, b: Tensor | None) -> Tensor:
        """Bias of a linear layer with bias ``b`` followed by this batch norm."""
        return ((0 if b is None else b) - working(self.mean)) * self.scale + self.shift

    def apply(self, z: Tensor, axis: int) -> Tensor:
        """The batch norm itself."""
        return along(self.scale, axis) * (z - along(working(self.mean), axis)) + along(self.shift, axis)


def version(t: Tensor) -> int:
    """How often a tensor was written into; inference tensors cannot be, outside of inference mode."""
    return 0 if t.is_inference() else t._version


def along(b: Tensor, axis: int) -> Tensor:
    """A vector shaped so that it broadcasts along ``axis`` (negative) of another tensor."""
    return b.reshape(b.shape + (1,) * (-axis - 1))
