"""Functions that models spell by hand, recognised from what constants do to an activation.

* A **hard sigmoid** is an activation that is shifted, and held between two numbers: ``relu6(x + 3) / 6``. It is
  followed as a :class:`Curve`, and becomes the activation that ``F.hardsigmoid`` is: one site, and a gate.
* A **batch norm** with constant statistics is a scale and a shift for each channel: ``x * scale + shift`` (a frozen
  batch norm), ``(x - mean) / sqrt(var + eps) * weight + bias``. It is followed as a :class:`Channels`, and folds into
  the layer before it, as ``F.batch_norm`` does; so does a bias that is added by hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from ..sites.batch_norm import BatchNorm
from ..sites.call import Call
from ..sites.linear import BatchNormSite, LinearSite, folded, linear_node
from ..sites.site import Slot
from ..sites.tag import GATE, Tag, tag_of
from . import facts
from .convolution import Convolution
from .dense import Dense
from .facts import number
from .pointwise import ActivationSite

# ------------------------------------------------------------------------------------------------ hard sigmoids


@dataclass(frozen=True)
class Curve:
    """An activation after numbers were added, multiplied, and taken for bounds.

    Attributes
    ----------
    source : Tensor or None
        The activation that it started from; None where that was written over.
    version : int
        Its version then.
    run : callable
        The same of any tensor.
    low, high : float
        Between which numbers the result lies.
    at_zero : float
        The result where the source is 0.
    """

    source: Tensor | None
    version: int
    run: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf
    at_zero: float = 0.0

    def then(self, run: Callable[[Tensor], Tensor], values: Callable[[float], float]) -> Curve:
        """After another function of one number, monotone, that tensors take by ``run``."""
        low, high = sorted((values(self.low), values(self.high)))
        before = self.run
        return Curve(self.source, self.version, lambda t: run(before(t)), low, high, values(self.at_zero))

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has happened yet that a scale would have to be told of."""
        return self.at_zero == 0 and self.low == -math.inf and self.high == math.inf

    @property
    def is_hard_sigmoid(self) -> bool:
        """Whether it weighs: from off (at least 0) to fully on, and is somewhere between for a source of 0."""
        return 0 <= self.low < self.at_zero < self.high < math.inf


def curve_of(x: Tensor) -> Curve:
    """How an activation came about by numbers; one that starts here where nothing is known."""
    tag = tag_of(x)
    return tag.curve if tag is not None and tag.curve is not None else Curve(x, x._version, lambda t: t)


def out_of_place(call: Call, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The call as a function of one of its arguments, which it leaves as it is."""
    args = [Slot(0) if v is x else v for v in call.args]
    kwargs = {k: Slot(0) if v is x else v for k, v in call.kwargs.items()}
    func, inplace = call.func, call.inplace  # the call itself would hold its own result, were that written in place

    def run(t: Tensor) -> Tensor:
        t = t.clone() if inplace else t
        return func(
            *(t if isinstance(v, Slot) else v for v in args),
            **{k: t if isinstance(v, Slot) else v for k, v in kwargs.items()},
        )

    return run


def followed(call: Call, x: Tensor, values: Callable[[float], float]) -> Curve:
    """The curve of a call that does ``values`` to every value of ``x``."""
    return curve_of(x).then(out_of_place(call, x), values)


def from_below(limit: float | None) -> tuple[float | None, float]:
    return limit, math.inf


def from_above(limit: float | None) -> tuple[float, float | None]:
    return -math.inf, limit


#: From where a function holds values by a number -> between which it holds them.
LIMITS = {"below": from_below, "above": from_above}


def clamped(call: Call, x: Tensor) -> Curve | None:
    """The curve of a call that holds values between numbers; None for any other, and where it can become no gate."""
    if call.facts.limit:
        other = call.arg(1, "other") if x is call.arg(0, "input") else call.arg(0, "input")
        limit = number(other) if isinstance(other, Tensor) else None  # a plain number is an axis
        low, high = LIMITS[call.facts.limit](limit)
    elif call.name in facts.CLAMPS:
        low, high = facts.bounds(call)
    else:
        return None
    if low is None or high is None or not low < curve_of(x).at_zero < high:
        return None
    return followed(call, x, lambda v: min(max(v, low), high))


def hard_sigmoid(call: Call, curve: Curve) -> Any:
    """The call as the last step of a hard sigmoid of the curve's source; None where that is not known any more."""
    if curve.source is None or curve.source._version != curve.version:
        return None
    whole = Call(curve.run, "hardsigmoid", (curve.source,), {}, [curve.source], False, call.interceptor)
    site = ActivationSite(whole)
    site.args = (Slot(0),)
    # a call that may run as it is must be one of the source
    run = whole if call.interceptor.form.early and not call.inplace else call
    return run.node(site, [curve.source], gate=GATE, nonnegative=True)


# ------------------------------------------------------------------------------------------------ batch norms


@dataclass(frozen=True)
class Channels:
    """``scale · source + shift`` with constants: numbers, or vectors along one axis of an activation.

    Attributes
    ----------
    source : Tensor or None
        The activation; None where a layer made it, which can make it again.
    version : int
        Its version when this was known.
    scale, shift : float or Tensor
    axis : int or None
        The axis of the vectors (negative); None as long as there are none.
    layer : LinearSite or None
        What made the source, with ``reads``, what that has read, and the version of that.
    """

    source: Tensor | None
    version: int
    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    axis: int | None = None
    layer: LinearSite | None = None
    reads: Tensor | None = None
    reads_version: int = -1

    def scaled(self, x: Tensor, factor: Any, divides: bool = False) -> Channels | None:
        """After a multiplication by a constant, or a division."""
        vector = as_vector(factor, x)
        if vector is None or not self.goes_on_with(*vector) or (divides and vector[1] is None and not vector[0]):
            return None
        value = 1 / vector[0] if divides else vector[0]
        return dataclasses.replace(
            self, scale=self.scale * value, shift=self.shift * value, axis=self.axis if vector[1] is None else vector[1]
        )

    def shifted(self, x: Tensor, constant: Any, weight: float = 1.0) -> Channels | None:
        """After ``weight`` times a constant was added."""
        vector = as_vector(constant, x)
        if vector is None or not self.goes_on_with(*vector):
            return None
        return dataclasses.replace(
            self, shift=self.shift + weight * vector[0], axis=self.axis if vector[1] is None else vector[1]
        )

    def goes_on_with(self, value: Any, axis: int | None) -> bool:
        """Whether another constant is one of a batch norm's: a vector along its axis, or a number after a vector."""
        if not isinstance(value, Tensor):
            return self.scales or self.shifts
        return axis is None or self.axis is None or axis == self.axis

    @property
    def scales(self) -> bool:
        return isinstance(self.scale, Tensor)

    @property
    def shifts(self) -> bool:
        return isinstance(self.shift, Tensor)


def as_vector(constant: Any, x: Tensor) -> tuple[Any, int | None] | None:
    """A constant beside ``x`` as a number, or as a vector and its axis; None for what is neither."""
    if not isinstance(constant, Tensor):
        return (constant, None) if isinstance(constant, int | float) else None
    if constant.is_complex() or not constant.is_floating_point() or constant.dim() > x.dim():
        return None
    # what a vector was expanded along does not count
    constant = constant[tuple(slice(1) if step == 0 else slice(None) for step in constant.stride())]
    long = [k - constant.dim() for k, n in enumerate(constant.shape) if n != 1]
    if len(long) > 1 or (long and constant.shape[long[0]] != x.shape[long[0]]):
        return None
    plain = number(constant)
    if plain is not None:
        return plain, None
    return constant.detach().reshape(-1), long[0] if long else None


def channels_of(x: Tensor) -> Channels | None:
    """What constants have done to an activation; None where that could not become a batch norm."""
    tag = tag_of(x)
    if tag is None or tag.channels is not None:
        return None if tag is None else tag.channels
    site, reads = tag.site, tag.source
    if isinstance(site, Dense | Convolution):
        usable = site.foldable and site.batch_norm is None and reads is not None
        if usable and reads is not None and reads._version == tag.source_version:
            return Channels(None, -1, layer=site, reads=reads, reads_version=tag.source_version)
        return None
    # what was divided by statistics of its own is a layer norm, and its gain and shift are
    return Channels(x, x._version) if tag.may_be_normed else None


def can_be_normed(tag: Tag) -> bool:
    """Whether a batch norm may follow: after a layer, an activation, a sum, or values of those that were moved."""
    return tag.may_be_normed or isinstance(tag.site, Dense | Convolution | BatchNormSite)


def may_be_normed(out: Any) -> Any:
    """Note that an activation or a sum made this tensor: a batch norm that follows stands alone."""
    tag = tag_of(out) if isinstance(out, Tensor) else None
    if tag is not None:
        tag.may_be_normed = True
    return out


class ByHand(BatchNorm):
    """A batch norm that was spelled as a scale and a shift."""

    is_one_call = False

    def __init__(self, channels: int, chain: Channels, like: Tensor) -> None:
        def spread(value: float | Tensor) -> Tensor:
            return working(torch.as_tensor(value, dtype=working(like).dtype, device=like.device)).expand(channels)

        scale, shift = spread(chain.scale), spread(chain.shift)
        super().__init__(torch.zeros_like(shift), scale, None, shift, 0.0)
        self.own_scale = scale

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        return self.own_scale


def batch_norm_by_hand(call: Call, x: Tensor, chain: Channels) -> Any:
    """The call as the last step of a batch norm, folded if it can be; None where it is none."""
    if not chain.shifts or x.dim() < 2:
        return None
    if chain.layer is not None:
        return into_the_layer(call, x, chain, chain.layer)
    if not (chain.scales and chain.axis == 1 - x.dim()):
        return None
    if chain.source is None or chain.source._version != chain.version:
        return None
    site = BatchNormSite(call, ByHand(x.shape[1], chain, x), channel_axis=1 - x.dim())
    last = tag_of(x)
    if last is not None and isinstance(last.site, BatchNormSite) and isinstance(last.site.own, ByHand):
        last.site.folded_into_next = True  # the same batch norm, as far as it had been read: they count once
        site.rank = last.site.rank
    return linear_node(call, site, chain.source)


def into_the_layer(call: Call, x: Tensor, chain: Channels, layer: LinearSite) -> Any:
    """Fold what constants have done into the layer that made the source."""
    axis = layer.channel_axis
    if chain.axis not in (axis, None) or chain.reads is None or chain.reads._version != chain.reads_version:
        return None
    last = tag_of(x)
    if last is not None and isinstance(last.site, LinearSite):
        last.site.folded_into_next = True
    out = linear_node(call, folded(layer, ByHand(x.shape[axis], chain, x)), chain.reads)
    call.interceptor.fold(layer, out)
    return out


# ------------------------------------------------------------------------------------------------ what handlers ask


Note = Callable[[Any], Any]


def shift_by_hand(call: Call, x: Tensor, constant: Any, sign: float, weight: float) -> tuple[Any, Note]:
    """``sign · x + weight · constant``: a node where that spells something, and what to note on the result."""
    curve, value = None, number(constant)
    if value is not None:
        curve = followed(call, x, lambda v: sign * v + weight * value)
    chain = channels_of(x)
    if chain is not None and sign != 1:
        chain = dataclasses.replace(chain, scale=chain.scale * sign, shift=chain.shift * sign)
    return spelled(call, x, curve, None if chain is None else chain.shifted(x, constant, weight))


def scale_by_hand(call: Call, x: Tensor, factor: Any, divides: bool) -> tuple[Any, Note]:
    """``x · factor`` or ``x / factor``: as :func:`shift_by_hand`."""
    curve, value = None, number(factor)
    if value and math.isfinite(value) and not curve_of(x).is_fresh:
        curve = followed(call, x, lambda v: v / value if divides else v * value)
    chain = channels_of(x)
    return spelled(call, x, curve, None if chain is None else chain.scaled(x, factor, divides))


def scale_and_shift_by_hand(call: Call, x: Tensor, factor: Any, value: float, shift: Any) -> tuple[Any, Note]:
    """``shift + value · x · factor`` in one call: as :func:`shift_by_hand`."""
    chain = channels_of(x)
    chain = None if chain is None else chain.scaled(x, factor)
    chain = None if chain is None else chain.scaled(x, value)
    return spelled(call, x, None, None if chain is None else chain.shifted(x, shift))


def spelled(call: Call, x: Tensor, curve: Curve | None, chain: Channels | None) -> tuple[Any, Note]:
    """A node where a call is the last step of something that has a site of its own; and how to go on from there."""
    tag = tag_of(x)
    was_gate = tag is not None and tag.gate == GATE
    # what weighs the model's own input is no gate but an image that is brought to its range
    weighs = curve is not None and curve.is_hard_sigmoid and tag is not None and tag.depth > 0
    out = None
    if curve is not None and weighs and not was_gate:
        out = hard_sigmoid(call, curve)
    elif chain is not None and not was_gate:
        out = batch_norm_by_hand(call, x, chain)

    def note(result: Any) -> Any:
        made = tag_of(result)
        if made is not None:
            # a tensor that holds itself would outlive the trace
            gone = curve is not None and curve.source is result
            made.curve = dataclasses.replace(curve, source=None) if curve is not None and gone else curve
            made.channels = None if chain is not None and chain.source is result else chain
            made.gate = GATE if weighs else made.gate
        return result

    return (None if out is None else note(out)), note
