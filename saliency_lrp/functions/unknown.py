"""Everything else: never silent. The op is reported, and shared in proportion to a first-order expansion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from ..sites.call import Call
from ..sites.site import Site
from .registry import kind


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
    """A node with a first-order rule for each numeric result; where that cannot be, autograd as it is. Reported."""
    if call.interceptor.form.early:
        return call.node(UnknownSite(call))
    if call.inplace:
        return call.node(UnknownSite(call)) if is_numeric(call.args[0]) else call.interceptor.unknown_natively(call)
    with torch.no_grad():
        out = call.func(*call.args, **call.kwargs)
    if is_numeric(out):
        return call.with_result(out).node(UnknownSite(call))
    if isinstance(out, tuple | list) and all(is_numeric(t) or not carries_relevance(t) for t in out):
        return like(out, results_one_by_one(call, out))
    return call.interceptor.unknown_natively(call)


def results_one_by_one(call: Call, results: Iterable[Any]) -> Iterator[Any]:
    """Each result by a node of its own, as if the others did not exist."""
    for k, result in enumerate(results):
        one = call.one_result(k)
        yield one.with_result(result).node(UnknownSite(one)) if is_numeric(result) else result


def like(results: Any, values: Iterable[Any]) -> Any:
    """``values`` in a tuple, named tuple or list of the same type."""
    return type(results)(*values) if hasattr(results, "_fields") else type(results)(list(values))


def is_numeric(value: Any) -> bool:
    """Whether it is one dense tensor of floating-point or complex numbers."""
    return carries_relevance(value) and value.layout is torch.strided


def carries_relevance(value: Any) -> bool:
    """Whether it is a tensor of floating-point or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
