"""Element-wise activations: relevance passes unchanged (rule ``Pass``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.site import Site
from ..sites.tag import BOUNDED, GATE, tag_of
from . import by_hand
from .pointwise import ActivationSite
from .registry import kind


@kind("activation")
def activation(call: Call) -> Any:
    if len(call.activations) > 1:  # a slope or bound computed from the input: prelu, clamp, x ** y
        return parametrised(call)
    x = call.activations[0]
    if x.is_complex():
        from .unknown import unknown

        return unknown(call)  # not one value to one: pairs to pairs
    if call.args and x is not call.args[0] and not call.is_activation(call.kwargs.get("input")):
        from .unknown import unknown

        return unknown(call)  # constant ** x and the like
    curve = by_hand.clamped(call, x)
    if curve is not None:
        out, note = by_hand.spelled(call, x, curve, None)
        if out is not None:
            return out
    with call.interceptor.form.rectifying(call) as made:
        out = None
        if call.says("homogeneous") and call.says("zero_to_zero"):
            out = call.as_is("activation", [x], activation_gate(call), call.nonnegative())
        if out is None:
            out = call.node(ActivationSite(call), gate=activation_gate(call), nonnegative=call.nonnegative())
        made.append(out)
    return by_hand.may_be_normed(out if curve is None else note(out))


def activation_gate(call: Call) -> int:
    """How much the result looks like a gate: what is bounded does once it cannot be negative."""
    tag, level = tag_of(call.activations[0]), call.gate()
    return GATE if level == BOUNDED and tag is not None and tag.nonnegative else level


def parametrised(call: Call) -> Any:
    """The first activation is the signal; slopes and bounds computed from the input count as constants."""
    call.interceptor.note(f"{call.name} at {call.path!r}: its parameter depends on the input; it counts as a constant")
    return call.node(ActivationSite(call), [call.activations[0]])


class GLUSite(Site):
    """``a · sigmoid(b)`` of the two halves of one tensor: b is a gate, the signal a takes all."""

    kind = "gate"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.dim = call.arg(1, "dim", -1)

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        """The relevance of both halves; ``shares`` counts the one tensor that holds them."""
        return (torch.cat([R, torch.zeros_like(R)], self.dim),)


@kind("gated linear unit")
def glu(call: Call) -> Any:
    return call.node(GLUSite(call))
