"""Fused attention: the weights are recomputed in the backward pass and split by the composite's choice."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..rules import Rule
from ..rules.arithmetic import divide, unmasked, working
from .call import Call
from .registry import kind
from .site import Site


class AttentionSite(Site):
    """``softmax(Q Kᵀ · scale + mask) V`` in one call; masks, causal masks and grouped queries as in torch."""

    kind = "attention"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        query, key, value = (call.arg(k, n) for k, n in enumerate(("query", "key", "value")))
        self.operands = [query, key, value]
        self.constant_operands = [None if call.is_activation(t) else t.detach() for t in self.operands]
        mask = call.arg(3, "attn_mask")
        self.mask = None if mask is None else mask.detach()
        self.causal = bool(call.arg(5, "is_causal", False))
        self.grouped = bool(call.kwargs.get("enable_gqa", False))
        scale = call.kwargs.get("scale")
        self.scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        self.active = [t for t in self.operands if call.is_activation(t)]
        self.operands = []

    def split_operands(self) -> list[Tensor]:
        """Query, key and value, constants among them."""
        active = iter(self.saved)
        return [working(next(active) if c is None else c) for c in self.constant_operands]  # type: ignore[arg-type]

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores with masks."""
        scores = q @ k.mT * self.scale
        if self.causal:
            allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if self.mask is not None:
            if self.mask.dtype == torch.bool:
                scores = scores.masked_fill(~self.mask, -math.inf)
            else:
                scores = scores + self.mask
        return scores

    def through(self, product: Rule, softmax: Rule, R: Tensor) -> tuple[Tensor | None, ...]:
        """Relevance by ``product`` at A·V and Q·Kᵀ and by ``softmax`` between them."""
        q, k, v = self.split_operands()
        groups = q.shape[-3] // k.shape[-3] if self.grouped else 1
        if groups > 1:
            k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
        x = self.logits(q, k)
        A = torch.softmax(x, -1)
        if self.causal or self.mask is not None:
            A = torch.nan_to_num(A)  # rows that are masked altogether
        inner = _Product(self, (A, v), self.output, gates=frozenset({0}))
        R_A, R_v = product.relevance(inner, R)
        R_q = R_k = None
        if R_A is not None:
            (R_x,) = softmax.relevance(_Softmax(self, x, A), R_A)
            if R_x is not None:
                scores = _Product(self, (q, k.mT), unmasked(x, fill=1.0), gates=frozenset(), scale=self.scale)
                R_q, R_k = product.relevance(scores, R_x)
                R_k = None if R_k is None else R_k.mT
        if groups > 1:
            R_k, R_v = (r if r is None else _sum_groups(r, groups) for r in (R_k, R_v))
        return tuple(r for r, c in zip((R_q, R_k, R_v), self.constant_operands, strict=True) if c is None)


def _sum_groups(R: Tensor, groups: int) -> Tensor:
    """Relevance of shared heads: the sum over the queries that share them."""
    return R.unflatten(-3, (-1, groups)).sum(-3)


class _Inner:
    """A step inside the fused call, seen by a rule like a site of its own."""

    def __init__(self, outer: Site) -> None:
        self.outer = outer
        self.account = outer.account

    def absorb(self, **amounts: Tensor) -> None:
        self.outer.absorb(**amounts)


class _Product(_Inner):
    """``a @ b · scale`` of two activations."""

    kind = "matmul"
    arity = 2

    def __init__(
        self, outer: Site, factors: tuple[Tensor, Tensor], output: Tensor, gates: frozenset[int], scale: float = 1.0
    ) -> None:
        super().__init__(outer)
        self.inputs = factors
        self.output = output
        self.gates = gates
        self.scale = scale

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        return matrix_shares(*self.inputs, divide(R, self.output, epsilon), [s * self.scale for s in shares])


def matrix_shares(a: Tensor, b: Tensor, c: Tensor, shares: list[float]) -> tuple[Tensor | None, Tensor | None]:
    """``share · a · (c bᵀ)`` and ``share · b · (aᵀ c)``: what ``c`` = R / (a @ b) gives the factors of a product.

    Batch axes that a factor was broadcast along are summed; None where the share is 0.
    """
    left, right = shares
    R_a = (torch.matmul(c, b.mT) * left).sum_to_size(a.shape).mul_(a) if left else None
    R_b = (torch.matmul(a.mT, c) * right).sum_to_size(b.shape).mul_(b) if right else None
    return R_a, R_b


class _Softmax(_Inner):
    """The softmax between the two products."""

    kind = "softmax"
    arity = 1
    dim = -1

    def __init__(self, outer: Site, x: Tensor, y: Tensor) -> None:
        super().__init__(outer)
        self.inputs = (x,)
        self.output = y


@kind("attention")
def attention(call: Call) -> Any:
    site = AttentionSite(call)
    active, site.active = site.active, []
    return call.node(site, active)
