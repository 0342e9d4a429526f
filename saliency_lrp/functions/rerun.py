"""Fused functions whose steps cannot be seen: they are run again, step by step, in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..sites.site import Site, as_reals, from_reals
from ..sites.tag import PLAIN, Tag


class DecomposedSite(Site):
    """A call whose relevance is that of an equivalent piece of torch code, ``expand``.

    The forward value is the original call's. In the backward pass the rule ``Unrolled`` runs ``expand`` with
    interception on, so that its steps become sites (bound to rules like any other), and sends the relevance of all
    outputs through them.
    """

    #: of each operand, where it is known: how much it looks like a gate, and whether it is never negative
    looks: Sequence[tuple[int, bool]] = ()

    def expand(self, *operands: Tensor) -> Any:
        """The same computation in torch code; returns as many tensors as the original."""
        raise NotImplementedError

    def every_operand(self) -> list[Tensor]:
        """What ``expand`` is given: the activations, and constants that relevance ends at (an initial state)."""
        return list(self.inputs)

    def active_operands(self) -> list[int | None]:
        """For each operand, which activation it is; None for a constant."""
        return list(range(self.arity))

    def through_steps(self, R: Any) -> tuple[Tensor | None, ...]:
        """Relevance of each input from that of the outputs (a tensor, or a tuple with None where there is none)."""
        interceptor = self.binding.intercept(self)
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.detach().requires_grad_(True) for t in self.as_called(self.every_operand())]
            looks = self.looks or [(PLAIN, False)] * len(leaves)
            carried = [
                interceptor.tag(leaf.clone(), Tag(interceptor.token, None, *look))
                for leaf, look in zip(leaves, looks, strict=True)
            ]
            with interceptor:
                outputs = self.expand(*carried)
        return self.backward_through(outputs, R, leaves)

    def gradient(self, c: Any) -> tuple[Tensor | None, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.detach().requires_grad_(True) for t in self.as_called(self.every_operand())]
            outputs = self.expand(*leaves)
        return self.backward_through(outputs, c, leaves)

    def backward_through(self, outputs: Any, R: Any, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Vector-Jacobian product, one tensor per activation."""
        pairs = [
            (out, from_reals(r) if out.is_complex() else r)
            for out, r in zip(as_tuple(outputs), as_tuple(R), strict=True)
            if r is not None and out.requires_grad
        ]
        if not pairs:
            return (None,) * self.arity
        outs, seeds = zip(*pairs, strict=True)
        return self.per_activation(torch.autograd.grad(outs, leaves, seeds, allow_unused=True))

    def per_activation(self, values: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """What the operands get, as what the activations get: one may be several operands, or constants none."""
        found: list[Tensor | None] = [None] * self.arity
        for k, value in zip(self.active_operands(), values, strict=True):
            if k is not None and value is not None:
                value = as_reals(value)
                before = found[k]
                found[k] = value if before is None else before + value
        return tuple(found)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value as a tuple of one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
