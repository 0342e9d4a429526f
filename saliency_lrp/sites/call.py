"""One intercepted call: what a handler gets, and how it makes a site of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import facts
from .site import Held, Site, Slot, fill, iter_tensors
from .tag import AS_INPUT, PLAIN, tag_of


class Call:
    """One intercepted call of a torch function that has at least one activation among its arguments.

    Attributes
    ----------
    func, name : callable, str
        The function, and its canonical name without ``_`` of in-place variants and ``__`` of operators.
    args, kwargs
        As the model passed them.
    activations : list of Tensor
        The distinct arguments that depend on the model's input.
    inplace : bool
        Whether the call writes its result into its first argument.
    facts : Facts
        What is known of the function.
    """

    __slots__ = (
        "func",
        "name",
        "args",
        "kwargs",
        "activations",
        "inplace",
        "facts",
        "interceptor",
        "path",
        "module",
        "binding",
    )

    def __init__(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        activations: list[Tensor],
        inplace: bool,
        interceptor: Any,
    ) -> None:
        self.func = func
        self.name = name
        self.args = args
        self.kwargs: dict[str, Any] = kwargs
        self.activations = activations
        self.inplace = inplace
        self.facts = facts.of(func, name)
        self.interceptor = interceptor
        self.path, self.module = interceptor.location()
        self.binding = interceptor.binding

    # ------------------------------------------------------------------ arguments

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def is_activation(self, value: Any) -> bool:
        """Whether a value depends on the model's input."""
        activations = self.activations
        return value is activations[0] or (len(activations) > 1 and any(value is a for a in activations))

    # ------------------------------------------------------------------ what is known of the result

    def says(self, claim: str) -> bool:
        """Whether the table of facts makes a claim of this call."""
        return self.facts.says(claim, self)

    def value_operands(self) -> list[Tensor]:
        """The floating-point tensors among the arguments whose values, not only shapes, count."""
        ignored = [self.arg(*place) for place in self.facts.shape_only]
        tensors = iter_tensors(self.args, self.kwargs)
        return [t for t in tensors if t.is_floating_point() and not any(t is i for i in ignored)]

    def gate(self) -> int:
        """How much the result looks like a gate."""
        level = self.facts.gate_of(self)
        if level != AS_INPUT:
            return level
        tags = [tag_of(t) for t in self.value_operands() if self.is_activation(t)]
        return min((PLAIN if tag is None else tag.gate for tag in tags), default=PLAIN)

    def nonnegative(self) -> bool:
        """Whether the result is known to be never negative; the values of constants are not looked at."""
        if self.says("never_negative"):
            return True
        if not self.says("keeps_sign"):
            return False
        return all((tag := tag_of(t)) is not None and tag.nonnegative for t in self.value_operands())

    # ------------------------------------------------------------------ the call in other words

    def one_result(self, k: int = 0) -> Call:
        """The same call of a function that returns only the k-th of its results."""
        func = self.func

        return self.of_function(lambda *args, **kwargs: func(*args, **kwargs)[k])

    def of_function(self, func: Callable[..., Any]) -> Call:
        """The same call of another function."""
        return Call(func, self.name, self.args, self.kwargs, self.activations, self.inplace, self.interceptor)

    def of_copy(self) -> Call:
        """The same call, which writes into a copy of its first argument."""
        func = self.func
        same = self.of_function(lambda t, *args, **kwargs: func(t.clone(), *args, **kwargs))
        same.inplace = False
        return same

    def replace(self, others: dict[int, Tensor]) -> None:
        """Give the call other tensors in place of some of its arguments (by their ``id``)."""

        def swap(value: Any) -> Any:
            if isinstance(value, Tensor):
                return others.get(id(value), value)
            if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value):
                return type(value)(swap(v) for v in value)
            return value

        self.args = tuple(swap(v) for v in self.args)
        self.kwargs = {k: swap(v) for k, v in self.kwargs.items()}
        self.activations = [swap(t) for t in self.activations]

    def with_result(self, out: Tensor) -> Call:
        """The same call of a function whose result is there already, for one that must not run twice."""
        return self.of_function(lambda *args, **kwargs: args[0].copy_(out) if self.inplace else out)

    def run_on_copies(self) -> tuple[list[Tensor], Any]:
        """Leaves that stand for the activations, and what the call makes of them; nothing of the model's is written."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(True) for t in self.activations]
            args, kwargs = (stored(v, self.activations) for v in (self.args, [*self.kwargs.values()]))
            args = fill(args, leaves)
            if self.inplace:
                args = (args[0].clone(), *args[1:])
            return leaves, self.func(*args, **dict(zip(self.kwargs, fill(kwargs, leaves), strict=True)))

    # ------------------------------------------------------------------ ways to carry the call out

    def native(self) -> Any:
        """Let autograd carry relevance as it is: right for views and other routing."""
        self.interceptor.form.before_native(self)
        if self.inplace:
            self.interceptor.before_write(self.args[0])
        return self.func(*self.args, **self.kwargs)

    def constant(self) -> Any:
        """The result does not carry relevance."""
        if self.inplace:
            self.interceptor.before_write(self.args[0])
        with torch.no_grad():
            return self.func(*self.args, **self.kwargs)

    def as_is(self, kind: str, tensors: list[Tensor], gate: int = PLAIN, nonnegative: bool = False) -> Any:
        """The call as it is, if that is all that the bound composite asks of every site of this kind; None if not."""
        form = self.interceptor.form
        return form.as_is(self, kind, tensors, gate, nonnegative) if form.early else None

    def node(
        self,
        site: Site,
        activations: list[Tensor] | None = None,
        gate: int = PLAIN,
        nonnegative: bool = False,
    ) -> Any:
        """Run the call so that relevance is handed back as ``site`` and its rule say.

        Parameters
        ----------
        site : Site
            What hands relevance back; its inputs are ``activations``.
        activations : list of Tensor, optional
            The tensors that receive relevance; by default all activations of the call.
        gate, nonnegative
            What is known of the result.
        """
        tensors = self.activations if activations is None else activations
        if any(t.layout is not torch.strided for t in tensors):
            return self.interceptor.unknown_natively(self)  # rules know dense tensors only
        site.arity = len(tensors)
        return self.interceptor.form.node(self, site, tensors, gate, nonnegative)

    def reroute(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run other torch code with interception on: its calls become sites in place of this one."""
        with self.interceptor:
            return func(*args, **kwargs)


def stored(value: Any, tensors: list[Tensor]) -> Any:
    """An argument as a site may keep it: activations become slots, so that no graph is kept alive."""
    if isinstance(value, Tensor):
        for k, t in enumerate(tensors):
            if value is t:
                return Slot(k)
        return Held(value.detach())  # the very tensor would keep the graph alive, were an activation written into it
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in iter_tensors(tuple(value), {})):
        return type(value)(stored(v, tensors) for v in value)
    return value


def held_among(values: Iterable[Any]) -> Iterator[Held]:
    """The constants among stored arguments, one level into lists and tuples."""
    for value in values:
        if isinstance(value, Held):
            yield value
        elif isinstance(value, tuple | list):
            yield from (v for v in value if isinstance(v, Held))
