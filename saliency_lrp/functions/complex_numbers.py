"""Complex numbers are pairs of reals: what the same network in real arithmetic gives, these functions give.

Sites see complex tensors with their real and imaginary parts in a last axis of two (``Site.inputs``), and so does
relevance: the real part of a complex relevance belongs to the real part of the number, the imaginary part to the
imaginary one. A layer with complex weights is the layer on pairs whose real weights are ``[[re, −im], [im, re]]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.linear import linear_node
from ..sites.site import as_reals, iter_tensors
from .any_linear import AnyLinear
from .decompositions import in_steps
from .matmul import MatmulSite, axes_of_others, bilinear_map, constants_axis
from .products import gates_of
from .registry import kind
from .routing import routing
from .sums import CompleteSum
from .unknown import unknown

#: A function of an activation and a constant, linear in either: ``(a, w) -> out``.
Bilinear = Callable[[Tensor, Tensor], Tensor]


def as_real_weight(weight: Tensor, of_complex: bool) -> Tensor:
    """What a constant means to pairs of reals: a 2 × 2 block each, or one column of it for real activations."""
    column = torch.stack((weight.real, weight.imag), -1)
    if not of_complex:
        return column
    return torch.stack((column, torch.stack((-weight.imag, weight.real), -1)), -1)


class ComplexLinear(AnyLinear):
    """A layer with complex weights or a complex input, as a layer on pairs of reals.

    Parameters
    ----------
    call : Call
    active : Tensor
        The activation.
    weight : Tensor
        The constant.
    run : callable
        The call as a function of both, defined for real tensors, too.
    bias : Tensor, optional
        One per channel.
    own_axes : tuple of int
        Axes of the complex output that a relative stabiliser may look along (negative); the bias runs along the first.
    """

    def __init__(
        self,
        call: Call,
        active: Tensor,
        weight: Tensor,
        run: Bilinear,
        own_axes: tuple[int, ...],
        bias: Tensor | None = None,
    ) -> None:
        self.of_complex, self.by_complex = active.is_complex(), weight.is_complex()
        real = as_real_weight(weight.detach(), self.of_complex) if self.by_complex else weight
        super().__init__(call, real, run, own_axes=(*(axis - 1 for axis in own_axes), -1))
        self.own_bias = None if bias is None else as_reals(bias.detach())
        self.channel_axis = self.own_axes[0] if own_axes else -2

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        parts = a.unbind(-1) if self.of_complex else (a,)
        if not self.by_complex:  # one real weight for both parts
            return torch.stack([self.run(part, w) for part in parts], -1)
        columns = w.unbind(-1) if self.of_complex else (w,)
        out: Tensor | None = None
        for part, column in zip(parts, columns, strict=True):
            found = torch.stack([self.run(part, v) for v in column.unbind(-1)], -1)
            out = found if out is None else out + found
        assert out is not None
        return out

    def collect_parameters(self, part: Any, c: Tensor) -> None:
        """Parameters are complex, their relevance is not: there is nothing of their shape to note it in."""

    def as_output(self, b: Tensor) -> Tensor:
        return b.reshape(b.shape[0], *(1,) * (-self.channel_axis - 2), *b.shape[1:])


@kind("complex layer")
def complex_layer(call: Call) -> Any:
    """A layer (input, weight, bias, ...) of complex numbers."""
    x, w, b = call.arg(0, "input"), call.arg(1, "weight"), call.arg(2, "bias")
    if not call.is_activation(x):
        return call.node(CompleteSum(call), [call.activations[0]])
    func, more, options = call.func, call.args[3:], {k: v for k, v in call.kwargs.items() if k not in LAYER}

    def run(a: Tensor, v: Tensor) -> Tensor:
        return func(a, v, None, *more, **options)

    return linear_node(call, ComplexLinear(call, x, w, run, tuple(range(1 - w.dim(), 0)), b), x)


#: Names of the arguments of a layer that it is linear in.
LAYER = ("input", "weight", "bias")


@kind("complex product")
def complex_product(call: Call) -> Any:
    """Element by element: with a constant it is a sum of both parts, else each summand is a product of two."""
    x, y = call.arg(0, "input"), call.arg(1, "other")
    if call.is_activation(x) and call.is_activation(y):
        return call.node(MatmulSite(call, gates_of(x, y)), [x, y])
    return call.node(CompleteSum(call), [x if call.is_activation(x) else y])


@kind("complex quotient")
def complex_quotient(call: Call) -> Any:
    """As of reals: the divisor is a statistic, and counts as a constant."""
    x = call.arg(0, "input")
    return call.node(CompleteSum(call), [x]) if call.is_activation(x) else unknown(call)


@kind("complex matrix product")
def complex_matrix_product(call: Call) -> Any:
    """A matrix product, an einsum, ... of two operands, one of which is a constant, is a layer."""
    x, y = call.activations[0], call.activations[-1]
    if len(call.activations) > 1:
        return call.node(MatmulSite(call, gates_of(x, y)), [x, y])
    operands = [*iter_tensors(call.args, call.kwargs)]
    (constant,) = (t for t in operands if t is not x)
    if call.facts.kind == "einsum":
        axes = axes_of_others(call.args[0], next(k for k, t in enumerate(operands) if t is x))
    else:
        axes = constants_axis(call, x, constant)
    return linear_node(call, ComplexLinear(call, x, constant, bilinear_map(call, x, constant), axes), x)


@kind("conjugate")
def conjugate(call: Call) -> Any:
    return call.node(CompleteSum(call)) if call.activations[0].is_complex() else routing(call)


@kind("transpose")
def conjugate_transpose(call: Call) -> Any:
    """``x.H``: for real tensors values only move."""
    if not call.activations[0].is_complex():
        return routing(call)
    return call.reroute(lambda x: x.mT.conj(), call.activations[0])


kind("polar")(in_steps)
