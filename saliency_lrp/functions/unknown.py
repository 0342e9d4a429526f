"""Everything else: never silent. The op is reported, and shared in proportion to a first-order expansion."""

from __future__ import annotations

from typing import Any

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


@kind("taylor")
def unknown(call: Call) -> Any:
    """A node with a first-order rule where the call has one floating-point result; else autograd as it is, reported."""
    interceptor = call.interceptor
    if call.inplace or not interceptor.makes_one_tensor(call):
        return interceptor.unknown_natively(call)
    return call.node(UnknownSite(call))
