"""What is computed: a ``TorchFunctionMode`` that sees every torch call of one forward pass and makes sites of them.

This file knows no rule and no torch function by name: those are in ``rules`` and ``functions``.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..functions import HANDLERS, autograd_functions, facts
from ..functions.by_hand import can_be_normed
from ..functions.layers import moved_layer
from ..functions.python_bodies import open_up, opened
from ..functions.rectifiers import rectified, remember_sources
from ..functions.registry import LOOKED_UP
from ..functions.routing import constant
from ..functions.unknown import unknown
from ..model.as_found import CallMode
from ..model.written import TAG, Written
from ..sites.call import Call
from ..sites.site import OUTPUT, Held, Site, iter_tensors
from ..sites.tag import Tag
from .audit import Origin, is_custom, mark, operations, origin
from .coefficient import CoefficientForm
from .ids import IdFollower
from .inner_gradients import is_backward, next_gradient
from .reference import ReferenceForm
from .second_look import Exit

if TYPE_CHECKING:
    from .binding import Binding

#: Why a call can be missing.
UNSEEN = "computed where no call can be seen: a scripted or traced function, torch.vmap or torch.func, another thread"


# ------------------------------------------------------------------------------------------------ names of functions


def canonical_name(func: Callable[..., Any]) -> str:
    """``relu_`` for ``Tensor.relu_``, ``relu`` for ``F.relu`` and ``aten.relu.default``, ``T.get`` for ``x.T``."""
    if isinstance(func, torch._ops.OpOverload):
        return func.overloadpacket.__name__
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        owner: Any = func.__self__  # type: ignore[attr-defined]
        return f"{owner.__name__}.{name.strip('_')}"
    return name.removeprefix("special_")


def inplace_position(func: Callable[..., Any]) -> int | None:
    """Position of the ``inplace`` argument, for functions of torch.nn.functional that have one."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


class KnownFunction:
    """What the interceptor knows of a function: looked up once."""

    __slots__ = (
        "handler",
        "name",
        "always_inplace",
        "inplace_position",
        "asks_only",
        "makes_ids",
        "reads_no_values",
        "is_backward",
        "leaves_graph",
        "may_draw",
        "moves",
    )

    def __init__(self, func: Callable[..., Any]) -> None:
        name = canonical_name(func)
        bare = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        self.always_inplace = bare != name or name in ("__setitem__", "data.set")
        self.inplace_position = inplace_position(func)
        self.name = bare
        self.is_backward = is_backward(func)
        self.leaves_graph = name in facts.LEAVES_GRAPH
        handler = HANDLERS.get(func) or HANDLERS.get(name) or HANDLERS.get(bare)
        if handler is None and name.endswith((".get", ".set", ".delete")):
            handler = constant
        if handler is None and opened(func) is not None:
            handler = open_up
        self.handler = handler or unknown
        #: whether relevance ends here and nothing is written: sizes, comparisons, ...
        self.asks_only = self.handler is constant and not self.always_inplace
        #: whether an activation may become ids by it; whether it looks at shapes alone
        self.makes_ids = bare in facts.CASTS
        self.reads_no_values = name in facts.SHAPES
        row = facts.of(func, bare)
        #: whether it moves the values of one tensor and nothing else has to be looked at
        self.moves = row.kind == "routing" and row.gate == facts.AS_INPUT and row.keeps_sign is True
        self.moves &= not self.always_inplace and self.inplace_position is None and row.diagonal is False
        #: whether some calls draw random numbers
        self.may_draw = bool(facts.of(func, bare).random)

    def writes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call writes into its first argument."""
        if self.always_inplace:
            return True
        k = self.inplace_position
        return k is not None and bool(kwargs.get("inplace", args[k] if len(args) > k else False))


# ------------------------------------------------------------------------------------------------ interception


class Interceptor(CallMode):
    """Sees every torch call of one forward pass and turns those that relevance passes through into sites."""

    def __init__(
        self,
        binding: Binding,
        names: dict[int, str],
        sites: list[Site],
        within: Site | None = None,
        form: ReferenceForm | CoefficientForm | None = None,
    ) -> None:
        super().__init__()
        self.binding = binding
        #: what autograd carries
        self.form = form or ReferenceForm()
        self.names = names
        self.sites = sites
        self.within = within
        self.token = object()
        self.notes: dict[str, None] = {}
        self.stack: list[tuple[str, nn.Module | None]] = [
            (within.path, within.module) if within is not None else ("", None)
        ]
        self.saved: dict[int, list[tuple[Site | Held, int | str]]] = {}
        self.roots: list[Tensor] = []
        #: what becomes of integer inputs
        self.ids = IdFollower(self)
        #: what modules gave that do not depend on the input, by their path
        self.constants: dict[str, Tensor] = {}
        #: where constants lie that were joined to activations (class tokens, padding)
        self.joined: dict[int, None] = {}
        #: by the id of a linear site: where relevance arrives at the batch norms folded into it
        self.folds: dict[int, list[tuple[Any, int]]] = {}
        #: what was there before the forward and the model writes into
        self.written = Written()
        self.single_views = False
        #: what the gradients are that the model takes itself, once that is known
        self.gradients: Iterator[Any] | None = None
        #: how many calls took values out of the graph, and which of them values that depend on the input
        self.leaving = 0
        self.exits: dict[int, Exit] = {}

    # ------------------------------------------------------------------ every torch call comes through here

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            return None  # a model's own no_grad() is part of the function that is explained
        entry = LOOKED_UP.get(func)
        if entry is None:
            entry = LOOKED_UP[func] = KnownFunction(func)
        if entry.is_backward and peek_interpreter_stack() is None:
            return next_gradient(self, func)
        if entry.leaves_graph and torch.is_grad_enabled():
            self.leaving += 1
            tag = getattr(args[0], TAG, None)
            if tag is not None and tag.trace is self.token:
                return self.leave_graph(func, entry, args, kwargs)
        if not torch.is_grad_enabled() or peek_interpreter_stack() is not None:
            return func(*args, **kwargs)  # inside somebody's autograd.Function, or a transform of torch.func
        if entry.may_draw:
            self.note_random(Call(func, entry.name, args, kwargs, [], False, self))
        if self.ids.active and not entry.reads_no_values and self.ids.trails((*args, *kwargs.values())):
            return self.with_ids(func, entry, args, kwargs)
        return self.without_ids(func, entry, args, kwargs)

    def leave_graph(
        self, func: Callable[..., Any], entry: KnownFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The model takes a value out of the graph; whether that matters is seen by a second look."""
        with torch.no_grad():
            out = func(*args, **kwargs)
        self.exits[self.leaving - 1] = Exit.noted(entry.name, self.location()[0], out)
        return out

    def with_ids(
        self, func: Callable[..., Any], entry: KnownFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call that reads integers which come from the model's input."""
        activations, _ = self.activations(args, kwargs)
        if not activations:
            writes = entry.writes(args, kwargs)
            if writes and isinstance(args[0], Tensor):
                self.before_write(args[0])
            return self.ids.call(func, entry.name, writes, args, kwargs)
        if entry.name == "embedding_bag" and not any(args[1] is t for t in activations):
            return self.ids.call(func, entry.name, False, args, kwargs)
        return self.without_ids(func, entry, *(self.ids.beside_activations(entry.name, args, kwargs) or (args, kwargs)))

    def without_ids(
        self, func: Callable[..., Any], entry: KnownFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Any other call: of activations, parameters and constants."""
        if entry.asks_only:
            if entry.name in facts.HOOKS and args[0].requires_grad:
                return RemovableHandle(OrderedDict())  # the model's hooks are about gradients, not relevance
            with torch.no_grad():
                out = func(*args, **kwargs)
            return self.ids.from_activation(args, out, entry.name) if entry.makes_ids else out
        activations, parameters = self.activations(args, kwargs)
        if not activations:
            if args and isinstance(args[0], Tensor) and entry.writes(args, kwargs):
                self.before_write(args[0])
            if parameters:
                with torch.no_grad():  # parameters are constants, whether or not they require grad
                    return func(*args, **kwargs)
            return func(*args, **kwargs)
        if entry.moves and self.form.early and len(activations) == 1 and not self.single_views:
            if sum(1 for _ in iter_tensors(args, kwargs)) == 1 and kwargs.get("out") is None:
                out = self.moved(func, args, kwargs, activations[0])
                return self.ids.from_activation(args, out, entry.name) if entry.makes_ids else out
        call = Call(func, entry.name, args, kwargs, activations, entry.writes(args, kwargs), self)
        if kwargs.get("out") is not None:
            return self.unknown_natively(call)
        if call.inplace and args[0].requires_grad and args[0].is_leaf:  # as a model may under no_grad
            self.note(f"{call.name} at {call.path!r} writes into a parameter; what it writes there gets no relevance")
            return call.constant()
        out = self.seek_rectifier(entry, call) if self.binding.seeks_rectifiers else entry.handler(call)
        return self.ids.from_activation(args, out, entry.name) if entry.makes_ids else out

    def moved(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], t: Tensor) -> Any:
        """A call that moves the values of one activation, in the coefficient form."""
        out, before = func(*args, **kwargs), getattr(t, TAG)
        for result in out if isinstance(out, (tuple, list)) else (out,):  # a union is slower
            if result is not t and isinstance(result, Tensor) and result.requires_grad:
                tag = Tag(self.token, None, before.gate, before.nonnegative, before.depth)
                tag.final = before.final
                tag.may_be_normed = can_be_normed(before)
                if before.site is not None or before.moved is not None:
                    tag.moved = moved_layer(before, t, out, func, args, kwargs) if result is out else None
                self.tag(result, tag)
        return out

    def seek_rectifier(self, entry: KnownFunction, call: Call) -> Any:
        """Carry out a call, as a ReLU if it spells one."""
        out = rectified(call)
        if out is None:
            out = entry.handler(call)
            remember_sources(call, out)
        return None if call.name == "__setitem__" else out

    def activations(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], bool]:
        """Arguments that depend on the model's input, each once; and whether others require grad."""
        found: list[Tensor] = []
        parameters, token = False, self.token
        for t in iter_tensors(args, kwargs):
            if not t.requires_grad:
                continue
            tag = getattr(t, TAG, None)
            if tag is not None and tag.trace is token:
                if tag.version != t._version:
                    self.rewritten(t)
                    tag = getattr(t, TAG)
            elif self.adopt(t):
                tag = getattr(t, TAG)
            else:
                parameters = True
                continue
            if not found or not any(t is a for a in found):
                found.append(t)
                tag.readers += 1
                if tag.site is not None:
                    self.read(t, tag.site)
        return found, parameters

    def read(self, t: Tensor, site: Site) -> None:
        """Another call reads what a site made: a ReLU is then not all that relevance comes back from."""
        site.before = None
        if site.rectified:
            self.keep_itself(t, site)

    def keep_itself(self, t: Tensor, site: Site) -> None:
        """A site's output, not what a ReLU made of it, is what the site keeps."""
        with torch._C.DisableTorchFunction():
            site.result, site.rectified = t.detach(), False
        self.remember(site.result, site, OUTPUT)

    def adopt(self, t: Tensor) -> bool:
        """Whether a tensor of unknown origin depends on the model's input; if so, it is tagged.

        It does where it was written into through a view, or where something made it whose calls cannot be seen (a
        custom ``autograd.Function``, a scripted function, ...); the latter is reported.
        """
        if self.form.early and t.grad_fn is not None:
            self.form.refuse("what made an activation was not seen")
        found = origin(t, self.token, self.binding, self.roots)
        if found.depth is None:
            return False
        self.report_foreign(found)
        mark(t, self.token, found.depth)
        self.tag(t, Tag(self.token, depth=found.depth))
        return True

    def wrote(self, t: Tensor, depth: int) -> None:
        """A call that was seen wrote into a tensor: where that is a view, its base has a new node, too."""
        base = t._base
        if base is None:
            return
        if not self.form.early:
            mark(base, self.token, depth)
        elif getattr(base, TAG, None) is not None:
            if getattr(base, TAG).final:
                self.form.refuse("the model writes into its input")
            self.tag(base, Tag(self.token, depth=max(depth, getattr(base, TAG).depth)))

    def rewritten(self, t: Tensor) -> None:
        """An activation was written into, perhaps through a view: what was known of it no longer holds."""
        self.form.refuse("the model writes where no call was seen, or reads what it wrote through another view")
        found = origin(t, self.token, self.binding, self.roots)
        self.report_foreign(found)
        self.tag(t, Tag(self.token, depth=max(found.depth or 0, getattr(t, TAG).depth)))

    def report_foreign(self, found: Origin) -> None:
        """Name what was computed where no call could be seen."""
        if not found.foreign:
            return
        self.form.refuse("a function whose calls cannot be seen")
        unseen = []
        for node in found.foreign:
            if is_custom(node):
                autograd_functions.report(node, self)
            else:
                unseen.append(node)
        if unseen:
            self.unknown_call(operations(unseen), UNSEEN)

    # ------------------------------------------------------------------ what handlers ask for

    def location(self) -> tuple[str, nn.Module | None]:
        """Path and module that are running."""
        return self.stack[-1]

    def tag(self, t: Tensor, tag: Tag) -> Tensor:
        """Attach what is known to a tensor."""
        if t.layout is not torch.strided:
            raise InputError(
                f"{self.location()[0] or 'the model itself'!r} makes a sparse tensor ({t.layout}) of what depends on "
                "its input; relevance is not followed through it. Keep activations dense; constants may be sparse"
            )
        tag.version = t._version
        setattr(t, TAG, tag)
        return t

    def enter(self, leaf: Tensor) -> Tensor:
        """The tensor that the model gets for an input (or embedding) at which relevance is read."""
        self.roots.append(leaf)
        tag = Tag(self.token)
        t, tag.final = self.form.enter(leaf)
        return self.tag(t, tag)

    def tag_routed(self, call: Call, out: Any) -> Any:
        """Tag the results of a routing call with what all of its inputs have in common."""
        gate, nonnegative = call.gate(), call.nonnegative()
        tags = [getattr(a, TAG) for a in call.activations]
        depth, final = max((t.depth for t in tags), default=0), all(t.final for t in tags)
        # what is written into is made of parts: one that may be normed makes the whole so
        normed = bool(tags) and (any if call.inplace else all)(can_be_normed(t) for t in tags)
        written = (call.args[0],) if call.inplace else ()
        if written:
            self.wrote(call.args[0], depth)
        layer = None
        if len(tags) == 1 and not written and isinstance(out, Tensor):
            layer = moved_layer(tags[0], call.activations[0], out, call.func, call.args, call.kwargs)
        for t in (*written, *(out if isinstance(out, (tuple, list)) else (out,))):  # a union is slower
            if isinstance(t, Tensor) and t.requires_grad and (written or not call.is_activation(t)):
                if not self.form.early:
                    mark(t, self.token, depth)
                tag = Tag(self.token, None, gate, nonnegative, depth)
                tag.final = final
                tag.may_be_normed = normed
                tag.moved, tag.diagonal = layer, call.says("diagonal")
                self.tag(t, tag)
        return out

    def register(self, site: Site) -> int:
        """Number a site in execution order."""
        self.sites.append(site)
        if self.within is not None:
            site.rank = self.within.rank
            site.parent = self.within
            return self.within.index
        return len(self.sites) - 1

    def fold(self, before: Site, out: Tensor) -> None:
        """A batch norm, whose output is ``out``, was folded into the linear site before it."""
        before.folded_into_next = True
        self.folds.setdefault(id(before), []).append((out.grad_fn, out.output_nr))

    def note_random(self, call: Call) -> None:
        """Say that the model is random, where this call draws random numbers."""
        if call.says("random"):
            self.note(
                f"{call.name} at {call.path!r} draws random numbers in eval mode, too: the model is random, and this "
                "map is that of one draw"
            )

    def note(self, text: str) -> None:
        """Remember a choice that the user should know of."""
        self.notes[text] = None

    def remember(self, t: Tensor, site: Site | Held, slot: int | str) -> None:
        """A site keeps an alias of this memory, in a slot of its inputs, as its ``OUTPUT`` or as an attribute."""
        if t.layout is not torch.strided:
            return  # a sparse tensor has no memory of its own; nothing writes into it
        self.saved.setdefault(t.untyped_storage().data_ptr(), []).append((site, slot))

    def pack(self, t: Tensor) -> Held:
        """What autograd itself keeps for functions that run as they are; like sites, it gets a copy before a write."""
        with torch._C.DisableTorchFunction():
            held = Held(t.detach())  # an output with its graph would keep that alive in a circle
            self.remember(t, held, 0)
        return held

    def before_write(self, target: Tensor) -> None:
        """The model is about to write into this memory: sites that keep an alias of it get a copy of their own."""
        if target.layout is not torch.strided:
            return
        self.written.note(target)
        copies: dict[Any, Tensor] = {}
        for site, slot in self.saved.pop(target.untyped_storage().data_ptr(), ()):
            t = site.value(slot)
            if t is None:
                continue
            key = (t.data_ptr(), t.shape, t.stride())
            copy = copies.get(key)
            if copy is None:
                copy = copies[key] = t.clone()
            site.keep(slot, copy)

    def unknown_natively(self, call: Call) -> Any:
        """Run a call that cannot be made a site; report it if its results carry relevance."""
        out = call.native()
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if call.inplace:
            results.append(call.args[0])
        if any(t.requires_grad for t in results):
            self.form.refuse(f"{call.name}, which is not in the table of functions")
            self.unknown_call(call.name, "its results cannot be given a rule of their own")
            depth = max(getattr(a, TAG).depth for a in call.activations)
            for t in results:
                if t.requires_grad:
                    mark(t, self.token, depth)
                    self.tag(t, Tag(self.token, depth=depth))
        return out

    def unknown_call(
        self, name: str, why: str, how: str = "relevance passes it like a gradient", path: str | None = None
    ) -> None:
        """Report a call that has no rule of its own."""
        path = self.location()[0] if path is None else path
        text = f"{name} at {path!r} is not understood ({why}); {how}"
        if self.binding.unknown == "error":
            raise InputError(text + ". Use unknown='warn' to get a map all the same")
        self.note("unknown: " + text)
