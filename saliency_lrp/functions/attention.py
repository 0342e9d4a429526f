"""Fused attention: relevance takes the fused kernel's own backward pass, so that no matrix of all pairs is ever made.

With c = R / s(A V) the relevance of the three operands is operand × gradient × share. At A V the values' gradient Aᵀc
times V is their part of R in proportion; A times its gradient c Vᵀ is that of the weights; AttnLRP's rule for the
softmax (Achtibat et al. 2024, proposition 3.1) is the softmax's vector-Jacobian product in this form; and at Q Kᵀ the
same holds as at A V. So AttnLRP halves twice, ¼ for queries and keys and ½ for values; CP-LRP (Ali et al. 2022), whose
weights are constants, gives all to the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rules.arithmetic import divide, working
from ..sites.call import Call
from ..sites.site import Site
from .registry import kind


class AttentionSite(Site):
    """``softmax(Q Kᵀ · scale + mask) V`` in one call; masks, causal masks and grouped queries as in torch."""

    kind = "attention"
    batches_maps = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        operands = [call.arg(k, name) for k, name in enumerate(("query", "key", "value"))]
        self.constant_operands = [None if call.is_activation(t) else t.detach() for t in operands]
        self.active = [t for t in operands if call.is_activation(t)]
        mask = call.arg(3, "attn_mask")
        self.mask = None if mask is None else mask.detach()
        self.options: dict[str, Any] = {
            "is_causal": bool(call.arg(5, "is_causal", False)),
            "scale": call.kwargs.get("scale"),
        }
        if call.kwargs.get("enable_gqa"):
            self.options["enable_gqa"] = True

    def operands(self) -> list[Tensor]:
        """Query, key and value, constants among them."""
        active = iter(self.saved)
        return [working(next(active) if c is None else c) for c in self.constant_operands]  # type: ignore[arg-type]

    def share(self, R: Tensor, shares: Sequence[float], epsilon: float) -> tuple[Tensor | None, ...]:
        """Relevance of the operands that depend on the input, by what query, key and value get of it.

        R may have an axis of several maps in front.
        """
        c = divide(R, self.output, epsilon)
        with torch.enable_grad():
            leaves = [
                t.detach().requires_grad_(share > 0 and constant is None)
                for t, share, constant in zip(self.operands(), shares, self.constant_operands, strict=True)
            ]
            mask = self.mask
            if mask is not None and mask.is_floating_point():
                mask = mask.to(leaves[0].dtype)
            query, key, value = leaves
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.options)
        getting = [t for t in leaves if t.requires_grad]
        if not getting:
            return (None,) * self.arity
        maps = c if c.dim() > out.dim() else c[None]
        grads = [torch.autograd.grad(out, getting, one, retain_graph=k + 1 < len(maps)) for k, one in enumerate(maps)]
        found = iter([g[0] if c.dim() == out.dim() else torch.stack(g) for g in zip(*grads, strict=True)])
        R_in = [
            next(found).mul_(t.detach()).mul_(share) if t.requires_grad else None
            for t, share in zip(leaves, shares, strict=True)
        ]
        return tuple(r for r, constant in zip(R_in, self.constant_operands, strict=True) if constant is None)


@kind("attention")
def attention(call: Call) -> Any:
    site = AttentionSite(call)
    active, site.active = site.active, []
    return call.node(site, active)
