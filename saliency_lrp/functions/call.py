"""One intercepted call: what a handler gets, and how it makes a site of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import facts
from .facts import AS_INPUT, BOUNDED, GATE, PLAIN
from .site import OUTPUT, Held, Site, Slot, as_reals, fill, from_reals, iter_tensors

__all__ = ["BOUNDED", "GATE", "OUTPUT", "PLAIN", "Call", "Tag", "several_at_once", "stored", "tag_of"]


class Tag:
    """What the interceptor knows of an activation; rides on the tensor itself."""

    __slots__ = (
        "trace",
        "site",
        "gate",
        "nonnegative",
        "depth",
        "version",
        "readers",
        "place",
        "source",
        "source_version",
        "curve",
        "channels",
    )

    def __init__(
        self, trace: object, site: Site | None = None, gate: int = PLAIN, nonnegative: bool = False, depth: int = 0
    ) -> None:
        self.trace = trace
        self.site = site
        self.gate = gate
        self.nonnegative = nonnegative
        #: how many linear sites lie between the model's input and it, on the longest way of relevance
        self.depth = depth
        #: the tensor's version when this was known; a later one means that it was written into
        self.version = -1
        #: how many calls have read its values
        self.readers = 0
        #: where relevance of the tensor can be read, once somebody has asked
        self.place: Any = None
        #: the activation a linear site read, and its version then: lets a batch norm fold into that site
        self.source: Tensor | None = None
        self.source_version = -1
        #: what numbers, and vectors of constants, have done to an activation (``by_hand.py``)
        self.curve: Any = None
        self.channels: Any = None


def tag_of(tensor: Tensor) -> Tag | None:
    """The tensor's tag, or None for a constant."""
    return getattr(tensor, "_saliency_lrp", None)


class _Node(torch.autograd.Function):
    """The autograd node of a site: forward is the original call, backward hands relevance on."""

    @classmethod
    def make(cls, *args: Any) -> Any:
        """``apply`` without what it does for ``torch.func``, whose transforms never see a trace."""
        return super(torch.autograd.Function, cls).apply(*args)

    @staticmethod
    def forward(ctx: Any, site: Site, run: Callable[[], Any], written: int | None, *activations: Tensor) -> Any:
        """``written``: which activation, counted in the site's order, the call writes into; it is passed first."""
        ctx.set_materialize_grads(False)
        ctx.site = site
        ctx.n = len(activations)
        ctx.written = written
        out = run()
        if written is not None:
            ctx.mark_dirty(activations[0])
        return out

    @staticmethod
    def backward(ctx: Any, *R: Tensor | None) -> tuple[Any, ...]:
        if all(r is None for r in R):
            return (None,) * (3 + ctx.n)
        if any(r is not None and torch._C._functorch.is_legacy_batchedtensor(r) for r in R):
            R_in = several_at_once(ctx.site, R)
        else:
            R_in = as_autograd_has_it(ctx.site, ctx.site.propagate(as_rules_have_it(R)))
        ctx.site.forget()
        k = ctx.written
        if k is None:
            return (None, None, None, *R_in)
        # a view must get zeros rather than None, or autograd drops what belongs to the rest of its base
        target = torch.zeros_like(R[0]) if R_in[k] is None and R[0] is not None else R_in[k]
        return (None, None, None, target, *R_in[:k], *R_in[k + 1 :])


def as_rules_have_it(R: tuple[Tensor | None, ...]) -> Any:
    """Relevance of the outputs for a rule: complex numbers are pairs of reals; one tensor where there is one output."""
    plain = tuple(None if r is None else as_reals(r) for r in R)
    return plain[0] if len(plain) == 1 else plain


def as_autograd_has_it(site: Site, R: Any) -> tuple[Tensor | None, ...]:
    """Relevance of the inputs, complex where they are."""
    if not any(site.complex):
        return tuple(R)
    return tuple(from_reals(r) if z and r is not None else r for r, z in zip(R, site.complex, strict=True))


#: Nesting level of the batching that ``torch.autograd.grad(..., is_grads_batched=True)`` does.
LEVEL = 1


def several_at_once(site: Site, R: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """What a site hands back where several backward passes run as one: sites see plain tensors, maps first.

    Autograd's own batching runs one operator after the other for most of what rules do, convolutions among them.
    """
    n = site.binding.maps
    plain = tuple(None if r is None else torch._remove_batch_dim(r, LEVEL, n, 0) for r in R)
    found = as_autograd_has_it(site, site.propagate_several(as_rules_have_it(plain)))
    return tuple(None if r is None else torch._add_batch_dim(r, 0, LEVEL) for r in found)


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
        self.kwargs = kwargs
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

        def one(*args: Any, **kwargs: Any) -> Tensor:
            return func(*args, **kwargs)[k]

        return Call(one, self.name, self.args, self.kwargs, self.activations, self.inplace, self.interceptor)

    def with_result(self, out: Tensor) -> Call:
        """The same call of a function whose result is there already, for one that must not run twice."""

        def give(*args: Any, **kwargs: Any) -> Tensor:
            return args[0].copy_(out) if self.inplace else out

        return Call(give, self.name, self.args, self.kwargs, self.activations, self.inplace, self.interceptor)

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
        if self.inplace:
            self.interceptor.before_write(self.args[0])
        return self.func(*self.args, **self.kwargs)

    def constant(self) -> Any:
        """The result does not carry relevance."""
        if self.inplace:
            self.interceptor.before_write(self.args[0])
        with torch.no_grad():
            return self.func(*self.args, **self.kwargs)

    def node(
        self,
        site: Site,
        activations: list[Tensor] | None = None,
        gate: int = PLAIN,
        nonnegative: bool = False,
    ) -> Any:
        """Run the call as one autograd node whose backward is ``site.propagate``.

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
        tracer = self.interceptor
        if any(t.layout is not torch.strided for t in tensors):
            return tracer.unknown_natively(self)  # rules know dense tensors only
        site.index = tracer.register(site)
        site.arity = len(tensors)
        tags = [tag_of(t) for t in tensors]
        depth = site.place_at(max((t.depth for k, t in enumerate(tags) if t and k not in site.gates), default=0))
        site.parents = tuple(t.site.index if t is not None and t.site is not None else None for t in tags)
        if site.reruns and not site.args and not site.kwargs:
            site.args = tuple(stored(v, tensors) for v in self.args)
            site.kwargs = {k: stored(v, tensors) for k, v in self.kwargs.items()}
            for held in held_among((*site.args, *site.kwargs.values())):
                tracer.remember(held.saved[0], held, 0)
        for name, constant in site.kept():
            tracer.remember(constant, site, name)
        site.complex = tuple(t.is_complex() for t in tensors)
        if site.keeps_inputs and not site.finds_input(tags):
            site.saved = [t.detach() for t in tensors]
            for k, t in enumerate(site.saved):
                tracer.remember(t, site, k)
        written = None
        if self.inplace:
            target = self.args[0]
            tracer.before_write(target)
            written = next((k for k, t in enumerate(tensors) if t is target), None)
            if written is None:
                # a constant buffer that an activation is written into
                tensors, site, written = [target, *tensors], _Overwriting(site, self), 0
            # autograd knows the tensor that is written into, if that is a view, by its place: the first
            tensors = [tensors[written], *tensors[:written], *tensors[written + 1 :]]

        def run() -> Tensor:
            out = self.func(*self.args, **self.kwargs)
            if written is None and isinstance(out, Tensor) and out._is_view():
                # torch made it by a last reshape; as a view it could not be written into later
                out = torch.ops.aten._unsafe_view(out, out.shape)
            if site.keeps_output and isinstance(out, Tensor):
                site.result = out.detach()
                tracer.remember(site.result, site, OUTPUT)
            return out

        out = _Node.make(site, run, written, *tensors)
        if written is not None:
            tracer.wrote(self.args[0], depth)
        for t in out if isinstance(out, tuple) else (out,):
            if isinstance(t, Tensor) and t.requires_grad:
                tracer.tag(t, Tag(tracer.token, site, gate, nonnegative, depth))
        return out

    def reroute(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run other torch code with interception on: its calls become sites in place of this one."""
        with self.interceptor:
            return func(*args, **kwargs)


class _Overwriting(Site):
    """A site that writes into a constant buffer: the buffer gets no relevance, the others get the inner site's."""

    def __init__(self, inner: Site, call: Call) -> None:
        super().__init__(call)
        self.inner = inner
        self.index, self.parents = inner.index, inner.parents
        self.complex = (call.args[0].is_complex(), *inner.complex)
        self.kind = inner.kind  # type: ignore[misc]

    @property
    def keeps_output(self) -> bool:  # type: ignore[override]
        return self.inner.keeps_output

    def propagate(self, R: Tensor) -> tuple[Tensor | None, ...]:
        self.inner.result = self.result
        return (None, *self.inner.propagate(R))


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
