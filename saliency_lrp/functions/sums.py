"""Sum-like functions: relevance is shared in proportion to contributions (rule ``Norm``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from ..sites.call import Call
from ..sites.site import Site, any_complex
from ..sites.tag import GATE, PLAIN, tag_of
from . import by_hand
from .registry import kind


class SumSite(Site):
    """A function that is linear in its activations; constants it adds act as a bias."""

    kind = "sum"

    def constant_part(self) -> Tensor | float:
        """What the constant operands add to the output."""
        with torch.no_grad():
            return working(self.call([torch.zeros_like(a) for a in self.inputs]))

    def spread(self, amount: Tensor) -> tuple[Tensor, ...] | None:
        """Relevance of each output, spread evenly over the inputs it is made of; None where it cannot be told."""
        return None


class AddSite(SumSite):
    """``x + alpha · y`` of two activations, in closed form: no second run for the transposed Jacobian."""

    def __init__(self, call: Call, weights: tuple[float, float]) -> None:
        super().__init__(call)
        self.weights = weights

    @property
    def batches_maps(self) -> bool:  # type: ignore[override]
        return self.inputs[0].shape == self.inputs[1].shape

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        same = self.batches_maps
        return tuple(
            (c if weight == 1 else c * weight) if same else (c * weight).sum_to_size(a.shape)
            for weight, a in zip(self.weights, self.inputs, strict=True)
        )

    gradient = vjp

    def constant_part(self) -> float:
        return 0.0

    def spread(self, amount: Tensor) -> tuple[Tensor, ...]:
        return tuple((amount / 2).sum_to_size(a.shape) for a in self.inputs)


class ShiftSite(SumSite):
    """``x + constant``: the constant acts as a bias."""

    is_preprocessing = True

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return (c.sum_to_size(self.saved[0].shape),)  # type: ignore[union-attr]

    gradient = vjp
    spread = vjp  # type: ignore[assignment]


class CompleteSum(SumSite):
    """Mean, pooling, interpolation: the transposed Jacobian comes from autograd, in a working dtype."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.claims = frozenset(claim for claim in ("average", "pooling") if call.says(claim))

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else working(g) for g in self.gradient(c))

    def spread(self, amount: Tensor) -> tuple[Tensor, ...] | None:
        if "average" not in self.claims:
            return None
        with torch.no_grad():
            fan_in = working(self.call([torch.ones_like(a) for a in self.inputs]))
        share = torch.where(fan_in == 0, torch.zeros_like(amount), amount / fan_in)
        return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(self.inputs, self.vjp(share), strict=True))


@kind("addition")
def addition(call: Call) -> Any:
    x, y, alpha = call.arg(0, "input"), call.arg(1, "other"), call.kwargs.get("alpha", 1)
    left, right = call.facts.signs
    if call.name == "rsub":
        left *= alpha
    else:
        right *= alpha
    if call.is_activation(x) and call.is_activation(y):
        gate = GATE if _gate(x) == GATE and _gate(y) == GATE and left > 0 and right > 0 else PLAIN
        nonnegative = _nonnegative(x) and _nonnegative(y) and left > 0 and right > 0
        if not (isinstance(left, float) and isinstance(right, float | int)) or x.is_complex():
            out = call.as_is("sum", [x, y], gate, nonnegative)
            return by_hand.may_be_normed(
                call.node(SumSite(call), gate=gate, nonnegative=nonnegative) if out is None else out
            )
        out, note = by_hand.sum_by_hand(call, x, y, left, right)
        if out is not None:
            return out
        out = call.as_is("sum", [x, y], gate, nonnegative)
        if out is None:
            out = call.node(AddSite(call, (left, right)), [x, y], gate, nonnegative)
        return note(by_hand.may_be_normed(out))
    active = call.activations[0]
    # 1 + tanh(x), 1 - sigmoid(x), ...: a bounded value moved by a constant is a gate
    gate = GATE if _gate(active) else PLAIN
    if any_complex(x, y) or not isinstance(left, float) or not isinstance(right, float | int):
        return call.node(SumSite(call), gate=gate)
    of_active, of_constant, constant = (left, right, y) if active is x else (right, left, x)
    out, note = by_hand.shift_by_hand(call, active, constant, of_active, of_constant)
    if out is not None:
        return out
    out = call.as_is("sum", [active], gate)
    if out is None:
        out = call.node(ShiftSite(call) if of_active == 1 else SumSite(call), gate=gate)
    return note(out)


@kind("sum")
def sum_like(call: Call) -> Any:
    if not call.says("homogeneous"):
        from .decompositions import in_some_steps

        return in_some_steps(call)
    gate, nonnegative = call.gate(), call.nonnegative()
    out = call.as_is("sum", call.activations, gate, nonnegative)
    if out is None:
        out = call.node(CompleteSum(call), gate=gate, nonnegative=nonnegative)
    return by_hand.may_be_normed(out)


@kind("added product")
def added_product(call: Call) -> Any:
    """``addcmul``: a sum where at most one factor depends on the input; of constants beside it, a batch norm."""
    shift, *factors = (call.arg(k, name) for k, name in enumerate(("input", "tensor1", "tensor2")))
    active = [call.is_activation(t) for t in factors]
    if sum(active) == 1 and not call.is_activation(shift) and not any_complex(*factors):
        x, factor = factors if active[0] else factors[::-1]
        out, note = by_hand.scale_and_shift_by_hand(call, x, factor, call.kwargs.get("value", 1), shift)
        return note(sum_like(call)) if out is None else out
    return sum_like(call)


@kind("sampling")
def grid_sampler(call: Call) -> Any:
    """Sampling is a weighted sum of the image; where it is sampled is a constant, as the place of a maximum is."""
    image = call.arg(0, "input")
    if not call.is_activation(image):
        from .unknown import unknown

        return unknown(call)
    return call.node(CompleteSum(call), [image])


def _gate(x: Any) -> int:
    tag = tag_of(x) if isinstance(x, torch.Tensor) else None
    return tag.gate if tag is not None else PLAIN


def _nonnegative(x: Any) -> bool:
    tag = tag_of(x) if isinstance(x, torch.Tensor) else None
    return tag is not None and tag.nonnegative
