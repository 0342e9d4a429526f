"""Fused functions whose steps cannot be seen: they are run again, step by step, in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import Tag
from .site import Site


class DecomposedSite(Site):
    """A call whose relevance is that of an equivalent piece of torch code, ``expand``.

    The forward value is the original call's; the backward pass runs ``expand`` on the saved inputs with interception
    on, so that its steps become sites (bound to rules like any other), and sends the relevance through them.
    """

    keeps_output = False

    def expand(self, *inputs: Tensor) -> Any:
        """The same computation in torch code; returns as many tensors as the original."""
        raise NotImplementedError

    def propagate(self, R: Any) -> tuple[Tensor | None, ...]:
        assert self.binding.intercept is not None
        interceptor = self.binding.intercept(self)
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [t.detach().requires_grad_(True) for t in self.inputs]
            carried = [interceptor.tag(leaf.clone(), Tag(interceptor.token)) for leaf in leaves]
            with interceptor:
                outputs = self.expand(*carried)
        pairs = [
            (out, r)
            for out, r in zip(_as_tuple(outputs), _as_tuple(R), strict=True)
            if r is not None and out.requires_grad
        ]
        if not pairs:
            return (None,) * self.arity
        outs, seeds = zip(*pairs, strict=True)
        return torch.autograd.grad(outs, leaves, seeds, allow_unused=True)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
