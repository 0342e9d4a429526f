"""A second look at what leaves the graph: does the output move with the input where no gradient says so?

``h.detach()``, ``h.data``, ``h.numpy()``, ``h.item()`` take a value out of the graph. Often that is harmless: a maximum
that is subtracted before a softmax, a check, a statistic to print. To tell, the model runs twice on an input nearby:
once as it is, once with those values as they were. Where both give the same output, the way through them does not
matter; where not, it carries what relevance does not follow, and the report says so.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..as_written import AsWritten
from ..functions.facts import LEAVES_GRAPH
from ..model.as_found import CallMode, as_found

#: Those by which a model says that a value is to count as a constant: a note is enough.
MEANT = frozenset({"detach()", ".data"})

#: How far the other input is, in standard deviations of the input.
NEARBY = 0.05

#: How many places are looked at one by one; of more it is only told that some of them matter.
ONE_BY_ONE = 4


@dataclass
class Exit:
    """A value that left the graph: what took it out, where, and the value."""

    name: str
    path: str
    value: Any

    @classmethod
    def noted(cls, name: str, path: str, value: Any) -> Exit:
        """With a copy of the value, which the model may write into."""
        return cls(name, path, value.detach().clone() if isinstance(value, Tensor) else copy.copy(value))

    @property
    def place(self) -> tuple[str, str]:
        """How the function is written, and the module that calls it."""
        return LEAVES_GRAPH[self.name], self.path


class Replay(CallMode):
    """Gives some of the values that leave the graph as they were; counts them as the traced forward did."""

    def __init__(self, names: Any, values: dict[int, Any]) -> None:
        super().__init__()
        self.names = names
        self.values = values
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not args[0]:
            return None  # passed in the traced forward, too
        found = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() and self.names(func) in LEAVES_GRAPH:
            self.count += 1
            if self.count - 1 in self.values:
                value = self.values[self.count - 1]
                return value.clone() if isinstance(value, Tensor) else copy.copy(value)
        return found


def places_that_matter(
    model: nn.Module, modules: Iterable[nn.Module], arguments: Any, exits: dict[int, Exit], names: Any
) -> list[tuple[str, str]]:
    """Which of the places where values left the graph the model's output depends on.

    Parameters
    ----------
    model : torch.nn.Module
        What was traced.
    modules : iterable of torch.nn.Module
        All of its modules.
    arguments : Arguments
        What it was called with.
    exits : dict
        By their number among all calls of such functions in the traced forward.
    names : callable
        The canonical name of a torch function.
    """
    modules = list(modules)

    def run(held: Iterable[int]) -> list[Tensor]:
        given = {k: exits[k].value for k in held}
        args, kwargs = nearby(arguments)
        with as_found(model, modules), keeping_state(modules), AsWritten(), Replay(names, given):
            out = model(*args, **kwargs)
        return [t.detach() for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]

    moved = run(())
    if same(moved, run(exits)):
        return []
    by_place: dict[tuple[str, str], list[int]] = {}
    for k, found in exits.items():
        by_place.setdefault(found.place, []).append(k)
    if not 1 < len(by_place) <= ONE_BY_ONE:
        return list(by_place)
    return [place for place, numbers in by_place.items() if not same(moved, run(numbers))] or list(by_place)


def nearby(arguments: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with other values near those that are explained."""
    generator = torch.Generator().manual_seed(0)
    given = []
    for argument in arguments.tensors:
        t = argument.value.detach().clone()
        if argument.leaf is not None and t.numel():
            noise = torch.randn(t.shape, generator=generator).to(t)
            spread = float(t.abs().float().std()) if t.numel() > 1 else 0.0
            t = t + NEARBY * (spread or 1.0) * noise
        given.append(t)
    kwargs = arguments.fresh()[1]
    args, filled = arguments.filled(given)
    return args, {**kwargs, **{k: v for k, v in filled.items() if isinstance(v, Tensor)}}


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether outputs are equal but for rounding."""
    if [t.shape for t in left] != [t.shape for t in right]:
        return False
    for a, b in zip(left, right, strict=True):
        size = float(a.abs().max()) if a.numel() else 0.0
        if a.numel() and float((a - b).abs().max()) > 1e4 * torch.finfo(a.dtype).eps * max(size, 1e-30):
            return False
    return True


@contextlib.contextmanager
def keeping_state(modules: list[nn.Module]) -> Iterator[None]:
    """States that a model keeps (buffers, attributes) are afterwards what they were before."""
    attributes = [dict(vars(m)) for m in modules]
    buffers = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if b is not None]
    tables = [dict(m._buffers) for m in modules]
    try:
        yield
    finally:
        for m, kept, table in zip(modules, attributes, tables, strict=True):
            m._buffers.update(table)
            for name in vars(m).keys() - kept.keys():
                del vars(m)[name]
            vars(m).update(kept)
        with torch.no_grad():
            for b, value in buffers:
                if not torch.equal(b, value):
                    b.copy_(value)
