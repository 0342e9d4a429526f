"""A ReLU in other words: ``x * (x > 0)``, ``where(x > 0, x, 0)``, ``maximum(x, 0)``, ``(x + |x|) / 2``, ...

Asked of composites whose rules are for ReLUs (guided backpropagation, the DeconvNet): for those it matters what a
network *computes*. So it is told by the values: a call whose result is ``max(x, 0)``, exactly, of something that went
into it is taken for a ReLU of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.tag import tag_of
from ..values import of_the_example
from .activations import activation
from .facts import SPELLS_RELU, STEP_TO_RELU

#: Where a tensor keeps what it was made of.
MADE_OF = "_saliency_lrp_made_of"

#: Over how many calls a ReLU may be spelled.
LONGEST = 3


def rectified(call: Call) -> Any:
    """The result of a call that spells a ReLU, as a site of one; None for any other call."""
    if call.name not in SPELLS_RELU or call.says("rectifier"):
        return None
    with of_the_example():
        found = what_is_rectified(call)
    return None if found is None else site_of_relu(call, *found)


def what_is_rectified(call: Call) -> tuple[Tensor, Tensor] | None:
    """Input and output of the ReLU that the call's values are those of."""
    y = value_of(call)
    if y is None:
        return None
    for x in sources(call):
        if x.shape != y.shape or not torch.equal(y, x.detach().clamp(min=0)):
            continue
        if bool((x < 0).any()) or zeros_below(call, x):
            return x, y
    return None


def remember_sources(call: Call, out: Any) -> None:
    """Note what a result was made of, in case the next call makes a ReLU of it."""
    if call.name in STEP_TO_RELU and isinstance(out, Tensor) and not call.inplace and not call.says("rectifier"):
        setattr(out, MADE_OF, tuple(call.activations))


def sources(call: Call, left: int = LONGEST) -> Iterator[Tensor]:
    """What went into a call, and into the calls that made that."""
    pending = [(t, left) for t in call.activations]
    while pending:
        t, left = pending.pop(0)
        yield t
        if left > 1:
            pending.extend((before, left - 1) for before in getattr(t, MADE_OF, ()) if not written_since(before))


def written_since(t: Tensor) -> bool:
    """Whether a tensor was written into after its values were known."""
    tag = tag_of(t)
    return tag is None or tag.version != t._version


def value_of(call: Call) -> Tensor | None:
    """What the call gives, without carrying it out; None unless that is one floating-point tensor."""
    args = call.args
    with torch.no_grad():
        if call.inplace:
            args = (args[0].detach().clone(), *args[1:])
        out = call.func(*args, **call.kwargs)
    out = args[0] if call.inplace else out
    return out if isinstance(out, Tensor) and out.is_floating_point() else None


def zeros_below(call: Call, x: Tensor) -> bool:
    """Whether a call that changed nothing, since no value of ``x`` was negative, would cut off what is."""
    others = [v for v in (*call.args, *call.kwargs.values()) if v is not x]
    masks = [v for v in others if isinstance(v, Tensor) and v.dtype == torch.bool and v.shape == x.shape]
    if masks:
        return all(torch.equal(m, x > 0) or torch.equal(m, x <= 0) for m in masks)
    if call.facts.limit == "below":
        return any(isinstance(v, Tensor) and not bool(v.any()) for v in others)
    if call.name in ("leaky_relu", "prelu"):
        slope = call.arg(1, "negative_slope" if call.name == "leaky_relu" else "weight", 0.01)
        return not bool(torch.as_tensor(slope).any())
    return False


def site_of_relu(call: Call, x: Tensor, y: Tensor) -> Any:
    """The call as a ReLU of ``x``; its value stays the one that the call gives."""
    if call.inplace and x is call.args[0]:
        return activation(Call(lambda t: t.copy_(y), "relu", (x,), {}, [x], True, call.interceptor))
    if call.inplace:
        return None
    return activation(Call(lambda t: y, "relu", (x,), {}, [x], False, call.interceptor))
