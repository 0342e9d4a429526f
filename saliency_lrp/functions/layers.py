"""The layer that a batch norm folds into: right before it, or with values put in another order between.

``Linear → transpose → BatchNorm1d``, ``conv(x).permute(0, 2, 3, 1) * scale + shift``, tokens that are flattened: one
number a channel is what these have in common with a convolution and the batch norm that follows it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..sites.batch_norm import BatchNorm, along
from ..sites.call import Call
from ..sites.linear import LinearSite, folded, linear_node, with_bias
from ..sites.site import Slot
from ..sites.tag import Tag, tag_of
from ..values import of_the_example


@dataclass(frozen=True)
class LayerBefore:
    """A linear site, and what became of its output.

    Attributes
    ----------
    site : LinearSite
    reads : Tensor
        What it has read, at ``version``.
    shape : torch.Size
        Of its output.
    steps : tuple of callable
        What has moved the values since.
    """

    site: LinearSite
    reads: Tensor
    version: int
    shape: torch.Size
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def inverse(self, axis: int) -> Tensor | None:
        """Where each value of the layer's output lies now; None where the channels do not lie along ``axis``."""
        channel = self.site.channel_axis
        count = functools.partial(torch.arange, dtype=torch.float64, device=self.reads.device)
        with torch.no_grad(), of_the_example():
            # of both signs: a ReLU by a maximum keeps the places of numbers that are not negative
            number = (count(self.shape.numel()) - self.shape.numel() // 2).reshape(self.shape)
            moved = self.moved(number)
            if moved.numel() != number.numel() or moved.dim() < -axis or not torch.equal(self.moved(-number), -moved):
                return None
            order = moved.reshape(-1).argsort()
            here = self.moved(along(count(self.shape[channel]), channel).expand(self.shape))
            wanted = along(count(here.shape[axis]), axis)
            same = here.shape[axis] == self.shape[channel] and torch.equal(here, wanted.expand_as(here))
            whole = torch.equal(moved.reshape(-1)[order].reshape(self.shape), number)
        return order if same and whole else None

    def moved(self, t: Tensor) -> Tensor:
        """Another tensor of the shape of the layer's output, moved likewise."""
        return functools.reduce(lambda t, step: step(t), self.steps, t)


def replay(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Callable[..., Any]:
    """A call as a function of one of its arguments; it does not hold that."""
    args = tuple(Slot(0) if v is x else v for v in args)
    kwargs = {k: Slot(0) if v is x else v for k, v in kwargs.items()}

    def run(t: Tensor) -> Any:
        return func(
            *(t if isinstance(v, Slot) else v for v in args),
            **{k: t if isinstance(v, Slot) else v for k, v in kwargs.items()},
        )

    return run


def layer_before(tag: Tag, x: Tensor) -> LayerBefore | None:
    """The layer that made an activation, if a batch norm can be folded into it."""
    site, reads = tag.site, tag.source
    if not isinstance(site, LinearSite):
        return tag.moved
    if not site.foldable or site.batch_norm is not None or reads is None or reads._version != tag.source_version:
        return None
    return LayerBefore(site, reads, tag.source_version, x.shape)


def moved_layer(
    tag: Tag, x: Tensor, out: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LayerBefore | None:
    """What is known of the result of a call that moves the values of ``x``."""
    layer = layer_before(tag, x) if out.numel() == x.numel() else None
    return None if layer is None else replace(layer, steps=(*layer.steps, replay(func, args, kwargs, x)))


def fold(call: Call, layer: LayerBefore, what: BatchNorm | Tensor, axis: int | None, last: Tag | None) -> Any:
    """The call and the layer before it as one site; None where they cannot be.

    The call is a batch norm along an axis, or adds a bias.
    """
    site, reads = layer.site, layer.reads
    if reads._version != layer.version:
        return None
    inverse = None
    if layer.steps:
        if isinstance(what, BatchNorm):
            what.is_one_call = False
        inverse = None if axis is None else layer.inverse(axis)
        if inverse is None:
            return None
    elif axis not in (site.channel_axis, None):
        return None
    if last is not None and isinstance(last.site, LinearSite):
        last.site.folded_into_next = True
    whole = folded(site, what) if isinstance(what, BatchNorm) else with_bias(site, what)
    if inverse is None:
        out = linear_node(call, whole, reads)
        call.interceptor.fold(site, out)
        return out
    func, order, shape = call.func, inverse, layer.shape
    back = call.of_function(lambda *args, **kwargs: func(*args, **kwargs).reshape(-1)[order].reshape(shape))
    out = linear_node(back, whole, reads)
    call.interceptor.fold(site, out)
    return call.reroute(layer.moved, out)


def copied_back(call: Call, make: Callable[[Call], Any]) -> Any:
    """What ``make`` makes of a call, written where the call writes; None where it makes nothing."""
    if not call.inplace:
        return make(call)
    out = make(call.of_copy())
    if out is None:
        return None
    target, made = call.args[0], tag_of(out)
    call.reroute(target.copy_, out)
    tag = tag_of(target)
    if tag is not None and made is not None:
        tag.site, tag.source, tag.source_version = made.site, made.source, made.source_version
    return target
