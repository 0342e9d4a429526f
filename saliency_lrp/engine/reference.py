"""The reference form: autograd carries relevance R itself, and every call that relevance passes is one node.

Slow, obvious, complete: it serves every rule, keeps the account, and is what the coefficient form is held against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call, held_among, stored
from ..sites.site import OUTPUT, Site, as_reals, from_reals
from ..sites.tag import Tag, tag_of
from .audit import mark


class Node(torch.autograd.Function):
    """The autograd node of a site: forward is the original call, backward hands relevance on."""

    @classmethod
    def make(cls, *args: Any) -> Any:
        """``apply`` without what it does for ``torch.func``, whose transforms never see a trace."""
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

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
    n = site.binding.map_count
    plain = tuple(None if r is None else torch._remove_batch_dim(r, LEVEL, n, 0) for r in R)
    found = as_autograd_has_it(site, site.propagate_several(as_rules_have_it(plain)))
    return tuple(None if r is None else torch._add_batch_dim(r, 0, LEVEL) for r in found)


class Overwriting(Site):
    """A site that writes into a constant buffer: the buffer gets no relevance, the others get the inner site's."""

    def __init__(self, inner: Site, call: Call) -> None:
        super().__init__(call)
        self.inner = inner
        self.index = inner.index
        self.complex = (call.args[0].is_complex(), *inner.complex)
        self.kind = inner.kind  # type: ignore[misc]

    def propagate(self, R: Tensor) -> tuple[Tensor | None, ...]:
        self.inner.result = self.result
        return (None, *self.inner.propagate(R))

    def propagate_several(self, R: Any) -> tuple[Tensor | None, ...]:
        self.inner.result = self.result
        return (None, *self.inner.propagate_several(R))


def untracked(out: Tensor) -> Tensor:
    """The same memory as a tensor that autograd does not take for a view, so that the model may write into it."""
    return torch.ops.aten._unsafe_view(out, out.shape)


def depth_of_result(site: Site, tags: list[Tag | None]) -> int:
    """How deep in the model the result of a site is; what only weighs its signals does not count."""
    return site.place_at(max((t.depth for k, t in enumerate(tags) if t and k not in site.gates), default=0))


class ReferenceForm:
    """Every site a node that hands relevance on."""

    #: whether rules are asked in the forward pass
    early = False
    linear_count = 0

    def enter(self, leaf: Tensor) -> tuple[Tensor, bool]:
        """What the model gets for an input, and whether relevance is carried there where other places have another."""
        return leaf.clone(), False

    def before_native(self, call: Call) -> None:
        """A call is about to run as it is."""

    @contextlib.contextmanager
    def rectifying(self, call: Call) -> Iterator[list[Any]]:
        """Around the call of an activation; its result is put into the list."""
        yield []

    def refuse(self, why: str) -> None:
        """Something runs as it is whose gradient is not what relevance does."""

    def node(self, call: Call, site: Site, tensors: list[Tensor], gate: int, nonnegative: bool) -> Any:
        """Run the call as one autograd node whose backward is ``site.propagate``."""
        site.index = call.interceptor.register(site)
        return self.registered(call, site, tensors, gate, nonnegative)

    def registered(
        self,
        call: Call,
        site: Site,
        tensors: list[Tensor],
        gate: int,
        nonnegative: bool,
        acting: Callable[[Site], Any] | None = None,
    ) -> Any:
        """As :meth:`node`, for a site that has its number; its backward may be that of what ``acting`` makes of it."""
        tracer = call.interceptor
        tags = [tag_of(t) for t in tensors]
        depth = depth_of_result(site, tags)
        if not site.args and not site.kwargs:
            site.args = tuple(stored(v, tensors) for v in call.args)
            site.kwargs = {k: stored(v, tensors) for k, v in call.kwargs.items()}
            for held in held_among((*site.args, *site.kwargs.values())):
                tracer.remember(held.saved[0], held, 0)
        for name, constant in site.kept():
            tracer.remember(constant, site, name)
        site.complex = tuple(t.is_complex() for t in tensors)
        site.saved = [t.detach() for t in tensors]
        for k, t in enumerate(site.saved):
            tracer.remember(t, site, k)
        written, keeper, known = None, site, site
        actor: Any = site if acting is None else acting(site)
        if call.inplace:
            target = call.args[0]
            tracer.before_write(target)
            written = next((k for k, t in enumerate(tensors) if t is target), None)
            if written is None:
                # a constant buffer that an activation is written into
                tensors, actor, written = [target, *tensors], Overwriting(actor, call), 0
                keeper = known = actor
            # autograd knows the tensor that is written into, if that is a view, by its place: the first
            tensors = [tensors[written], *tensors[:written], *tensors[written + 1 :]]

        def run() -> Tensor:
            out = call.func(*call.args, **call.kwargs)
            if written is None and isinstance(out, Tensor) and out._is_view():
                # torch made it by a last reshape; as a view it could not be written into later
                out = untracked(out)
            if isinstance(out, Tensor):
                keeper.result = out.detach()
                tracer.remember(keeper.result, keeper, OUTPUT)
            elif isinstance(out, tuple) and acting is not None:
                actor.keep_outputs(out, tracer)
            return out

        out = Node.make(actor, run, written, *tensors)
        if written is not None:
            tracer.wrote(call.args[0], depth)
        for t in out if isinstance(out, tuple) else (out,):
            if isinstance(t, Tensor) and t.requires_grad:
                if acting is not None:
                    mark(t, tracer.token, depth)
                tracer.tag(t, Tag(tracer.token, known, gate, nonnegative, depth))
        return out
