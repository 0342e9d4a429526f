"""Everything else: never silent. The op is reported, and shared in proportion to a first-order expansion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from .call import Call
from .registry import kind
from .site import Site


class UnknownSite(Site):
    """A function that is not in the table."""

    kind = "unknown"

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else working(g) for g in self.gradient(c))

    def propagate(self, R: Tensor) -> tuple[Tensor | None, ...]:
        # reported only here: a statistic that relevance never reaches needs no rule
        self.binding.report_unknown(self)
        return super().propagate(R)


@kind("unknown", "taylor")
def unknown(call: Call) -> Any:
    """A node with a first-order rule where the call has one floating-point result; else autograd as it is, reported."""
    if call.interceptor.form.early:
        return call.node(UnknownSite(call))
    if call.inplace:
        return call.node(UnknownSite(call)) if is_numeric(call.args[0]) else call.interceptor.unknown_natively(call)
    with torch.no_grad():
        out = call.func(*call.args, **call.kwargs)
    if not is_numeric(out) or out.layout is not torch.strided:
        return call.interceptor.unknown_natively(call)
    return call.with_result(out).node(UnknownSite(call))


def is_numeric(value: Any) -> bool:
    """Whether it is one tensor of floating-point or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
