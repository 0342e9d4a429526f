"""Products, element by element: scaling by a constant, gates, two signals, quotients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.site import Site, any_complex
from ..sites.tag import GATE, PLAIN, tag_of
from . import by_hand
from .pointwise import ActivationSite
from .registry import KINDS, kind


class ScaleSite(Site):
    """``x · constant``: relevance passes unchanged; where the constant is 0 nothing passes."""

    kind = "scale"
    is_preprocessing = True
    keeps_zero = True

    def __init__(self, call: Call, x: Tensor, factor: Any, divides: bool = False) -> None:
        super().__init__(call)
        self.shape = x.shape
        self.factor = factor.detach() if isinstance(factor, Tensor) else factor
        self.divides = divides

    def pass_through(self, R: Tensor) -> tuple[Tensor | None, ...]:
        if isinstance(self.factor, Tensor) and self.factor.dim() and not self.divides:
            R = torch.where(self.factor == 0, torch.zeros_like(R), R)
        return (R.sum_to_size(self.shape),)

    def gradient(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return ((c / self.factor if self.divides else c * self.factor).sum_to_size(self.shape),)


class ProductSite(Site):
    """``x · y`` or ``x / y`` of two activations, element by element."""

    kind = "product"

    #: whether the second factor divides the first
    divides = False

    def __init__(self, call: Call, gates: frozenset[int]) -> None:
        super().__init__(call)
        self.gates = gates
        if gates:
            self.kind = "gate"  # type: ignore[misc]

    def multiplies(self, shares: Sequence[float]) -> bool:
        return not self.divides or not shares[1]

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        """Each factor's share of the relevance."""
        return tuple(
            (R if share == 1 else R * share).sum_to_size(a.shape) if share else None  # type: ignore[union-attr]
            for a, share in zip(self.saved, shares, strict=True)
        )


def gates_of(x: Tensor, y: Tensor) -> frozenset[int]:
    """Which of two factors is a gate: the one that looks more like one, if it does at all."""
    for k, (gate, signal) in enumerate(((x, y), (y, x))):
        if by_hand.weighs(gate, signal):
            return frozenset({k})
    left, right = (t.gate if (t := tag_of(a)) is not None else PLAIN for a in (x, y))
    if GATE in (left, right) and left != right:
        return frozenset({0 if left == GATE else 1})
    return frozenset()


def one_to_one(*factors: Tensor) -> bool:
    """Whether no factor is spread over others' axes, as statistics are: the product is an activation spelled out."""
    spread = any(step == 0 and n > 1 for t in factors for step, n in zip(t.stride(), t.shape, strict=True))
    return not spread and all(t.shape == factors[0].shape for t in factors)


@kind("product")
def product(call: Call) -> Any:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    if any_complex(x, y):
        return KINDS["complex product"](call)
    if call.is_activation(x) and call.is_activation(y):
        gates = gates_of(x, y)
        tags = [t for a in (x, y) if (t := tag_of(a)) is not None]
        both_gates = all(t.gate == GATE for t in tags)
        out = call.node(
            ProductSite(call, gates),
            [x, y],
            gate=GATE if both_gates else PLAIN,
            nonnegative=all(t.nonnegative for t in tags) or x is y,
        )
        return by_hand.may_be_normed(out) if one_to_one(x, y) else out
    active, factor = (x, y) if call.is_activation(x) else (y, x)
    return scale(call, active, factor)


def scale(call: Call, active: Tensor, factor: Any, divides: bool = False) -> Any:
    """Scaling by a constant, which keeps what is known of the activation."""
    tag = tag_of(active)
    # a tensor's sign is not looked at: that would wait for the device
    keeps = tag is not None and tag.nonnegative and isinstance(factor, int | float) and factor >= 0
    out, note = by_hand.scale_by_hand(call, active, factor, divides)
    if out is not None:
        return out
    gate = tag.gate if tag is not None else PLAIN
    out = call.as_is("scale", [active], gate, keeps)
    return note(call.node(ScaleSite(call, active, factor, divides), [active], gate, keeps) if out is None else out)


@kind("quotient")
def quotient(call: Call) -> Any:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    if any_complex(x, y):
        return KINDS["complex quotient"](call)
    if call.name in ("__rdiv__", "__rtruediv__"):
        x, y = y, x
    if call.is_activation(x) and call.is_activation(y):
        # the divisor is a statistic of the input: a constant for relevance
        tag = tag_of(x)
        site = ProductSite(call, frozenset({1}))
        site.divides = True
        out = call.node(site, [x, y], gate=tag.gate if tag is not None else PLAIN)
        return by_hand.may_be_normed(out) if one_to_one(x, y) else out
    if call.is_activation(x):
        return scale(call, x, y, divides=True)
    return call.node(ActivationSite(call), [y], gate=GATE)
