"""Functions that only move values: autograd carries relevance as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..sites.call import Call
from ..sites.site import iter_tensors
from ..sites.tag import Tag, tag_of
from . import by_hand
from .registry import kind


@kind("routing")
def routing(call: Call) -> Any:
    if call.facts.limit and len(call.activations) == 1:
        return limited(call, call.activations[0])
    return moved(call)


def limited(call: Call, x: Tensor) -> Any:
    """The larger or smaller of an activation and a constant: with a number, perhaps a step of a hard sigmoid."""
    curve = by_hand.clamped(call, x)
    if curve is None:
        return moved(call)
    out, note = by_hand.spelled(call, x, curve, None)
    return note(moved(call)) if out is None else out


def moved(call: Call) -> Any:
    """The call as it is, with what is known of its operands known of its results."""
    out = call.native()
    constants = [t for t in call.value_operands() if not call.is_activation(t)]
    call.interceptor.joined.update((t.untyped_storage().data_ptr(), None) for t in constants)
    if call.interceptor.single_views and call.says("views"):
        out = one_by_one(call, out)
    return call.interceptor.tag_routed(call, out)


@kind("routing one by one")
def routing_one_by_one(call: Call) -> Any:
    """The k-th result is the k-th operand in another shape: what is known of it is known of that operand alone."""
    out = call.native()
    if isinstance(out, Tensor):
        return call.interceptor.tag_routed(call, out)
    for operand, result in zip(iter_tensors(call.args, call.kwargs), out, strict=True):
        tag = tag_of(operand)
        if call.is_activation(operand) and tag is not None and not call.is_activation(result):
            made = Tag(call.interceptor.token, None, tag.gate, tag.nonnegative, tag.depth)
            made.final = tag.final
            call.interceptor.tag(result, made)
    return out


@kind("soft maximum")
def soft_maximum(call: Call) -> Any:
    """A soft winner takes all: its gradient is a softmax, which sums to one."""
    call.interceptor.form.refuse(call.name)
    return routing(call)


def one_by_one(call: Call, views: Any) -> Sequence[Tensor]:
    """The same views, each made by a call of its own: autograd forbids writing into those of one call."""
    x = call.activations[0]
    made = [x.as_strided(v.shape, v.stride(), v.storage_offset()) for v in views]
    return tuple(made) if isinstance(views, tuple) else made


@kind("constant")
def constant(call: Call) -> Any:
    return call.constant()
