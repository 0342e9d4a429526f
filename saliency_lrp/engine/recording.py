"""One forward pass of a model, recorded: its sites, the calls of its modules, its output.

Module hooks (``places``) tell *where* a call comes from, a ``TorchFunctionMode`` (``interception``) tells *what* is
computed. Nothing is put on the user's model.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from ..as_written import AsWritten
from ..composites import Composite
from ..errors import InputError, ModelCallError, unknown_name
from ..model import graph_free
from ..model.as_found import as_found
from ..model.failed_run import what_failed
from ..model.unwrapped import named_modules
from ..sites.site import Site
from .binding import Binding
from .coefficient import CoefficientForm
from .inner_gradients import TakesGradient, gradients_inside
from .inputs import Arguments, without_graph
from .interception import TAG, Interceptor, canonical_name
from .nodes import NoCoefficient
from .places import ModuleCall, ModuleHooks, Place
from .second_look import MEANT, places_that_matter

#: What autograd says that it cannot do -> the way to record the forward pass that spares it that.
OTHER_WAYS = {
    # the model writes into what chunk() and its like returned, which autograd only allows for views one by one
    "returns multiple views": "single_views",
    # the model uses torch.func, which takes no hooks on what autograd keeps
    "support saved tensor hooks": "no_copies",
}

#: What a model's own code may raise that is told in our words.
RAISED_BY_MODELS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def working_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point type that the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


class Recording:
    """A forward pass, in one of the two forms; it can be made again in the other.

    Attributes
    ----------
    output
        The model's own output, bit for bit, without a graph; ``raw`` has it.
    sites : list of Site
        Every call that relevance can pass through, in execution order.
    calls : dict
        Path of a module -> its calls.
    reason : str
        Why relevance has no coefficient here, where that was tried.
    freed : bool
        Whether an explanation let go of what others would need.
    """

    def __init__(self, model: nn.Module, arguments: Arguments, composite: Composite, unknown: str) -> None:
        self.model = model
        self.arguments = arguments
        self.modules = named_modules(model)
        self.binding = Binding(composite, unknown, {id(m): name for m, name in self.modules.items()})
        self.sites: list[Site] = []
        self.calls: dict[str, list[ModuleCall]] = {}
        self.raw: Any = None
        self.output: Any = None
        self.reason = ""
        self.freed = False
        self.interceptor: Interceptor

    @property
    def bound(self) -> bool:
        """Whether the composite was bound in the forward pass, so that autograd carries coefficients."""
        return self.interceptor.form.early

    # ------------------------------------------------------------------ in either form

    def record_bound(self, composite: Composite) -> bool:
        """Record with the composite bound, if relevance has a coefficient all the way."""
        try:
            if any(a.value.is_complex() for a in self.arguments.tensors):
                raise NoCoefficient("the input is complex")
            self._forward(no_copies=True, form=CoefficientForm(composite))
            self._finish()
        except (NoCoefficient, RuntimeError, ModelCallError, TakesGradient) as why:
            self.reason = str(why)
            return False
        return True

    def record(self) -> None:
        """Record with nothing bound: every call a node that hands relevance on, by any rule."""
        self.freed = False
        ways: dict[str, Any] = {}
        while True:
            try:
                self._forward(**ways)
                break
            except TakesGradient:
                ways["gradients"] = gradients_inside(self.model, self.modules, self.arguments)
            except RuntimeError as error:
                other = next((way for message, way in OTHER_WAYS.items() if message in str(error)), None)
                if other is None or other in ways:
                    raise
                ways[other] = True
        self._finish()

    def _forward(
        self,
        single_views: bool = False,
        no_copies: bool = False,
        gradients: list[Any] | None = None,
        form: CoefficientForm | None = None,
    ) -> None:
        """Run the model with hooks and interception on; whatever happens, nothing is left behind on it."""
        self.sites.clear()
        self.calls.clear()
        self.interceptor = interceptor = Interceptor(self.binding, self.binding.names, self.sites, form=form)
        interceptor.single_views = single_views
        interceptor.gradients = None if gradients is None else iter(gradients)
        self.raw = None
        args, kwargs = self._enter()
        hooks = ModuleHooks(interceptor, self.calls)
        # without these hooks, autograd refuses models that write into what a max pooling, say, has read
        packing = saved_tensors_hooks(interceptor.pack, lambda held: held.saved[0])
        with as_found(self.model, self.modules, patched=False) as frame, AsWritten() as written:
            frame.undoing(self._free_of_graphs)
            frame.undoing(hooks.remove)
            hooks.listen()
            try:
                with contextlib.nullcontext() if no_copies else packing, interceptor:
                    self.raw = self.model(*args, **kwargs)
            except RAISED_BY_MODELS as error:
                if isinstance(error, InputError | torch.OutOfMemoryError):
                    raise
                raise ModelCallError(what_failed(error, self.model, (args, kwargs))) from error
        interceptor.saved.clear()
        for what in written.passed:
            interceptor.note(f"{what} inside the model is passed, as torch.no_grad() is: relevance goes on there")
        if written.uses_threads:
            interceptor.note("the model gives work to other threads, whose calls cannot be seen")

    def _enter(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with each tensor a copy that relevance can be read at; the caller's are never written into."""
        self.arguments.check()
        interceptor = self.interceptor
        interceptor.ids.result_dtype = working_dtype(self.model)
        given = []
        with torch.inference_mode(False), torch.enable_grad():
            for argument in self.arguments.tensors:
                t = argument.value
                if argument.constant or not (argument.is_number or argument.is_integer):
                    given.append(t.detach())
                elif argument.is_number:
                    leaf = t.detach().clone() if t.is_inference() else t.detach()
                    argument.leaf = leaf.requires_grad_(True)
                    interceptor.ids.floats.append(argument.name)
                    given.append(interceptor.enter(leaf))
                else:
                    given.append(interceptor.ids.start(argument))
        return self.arguments.filled(given)

    def _free_of_graphs(self) -> None:
        """What the model keeps is free of the graph; what it returned has it."""
        written = self.interceptor.written.alive()
        buffers = (b for m in self.modules for b in m._buffers.values())
        self.raw = graph_free.apart(self.raw, (*written, *buffers))
        graph_free.free(written, self.modules)

    def _finish(self) -> None:
        """Ranks of the linear sites, which site made the output, and what is to be said of this forward pass."""
        interceptor = self.interceptor
        self.binding.linear_count = interceptor.form.linear_count if self.bound else rank(self.sites)
        for t in tree_leaves(self.raw):
            tag = getattr(t, TAG, None) if isinstance(t, Tensor) else None
            if tag is None and isinstance(t, Tensor) and t.requires_grad:
                interceptor.adopt(t)  # made by a custom autograd.Function, which is reported
            if tag is not None and tag.trace is interceptor.token and tag.site is not None:
                tag.site.is_output = tag.site.kind != "softmax" or not tag.readers  # else weights of attention
                tag.readers += 1
                if tag.site.rectified:
                    interceptor.keep_itself(t, tag.site)
        for text in (*self.arguments.notes, *interceptor.ids.remarks()):
            interceptor.note(text)
        self.output = without_graph(self.raw)
        if interceptor.exits:
            self._look_again()

    def _look_again(self) -> None:
        """Whether the output depends on values that the model took out of the graph, where relevance cannot follow."""
        interceptor = self.interceptor
        try:
            places = places_that_matter(self.model, self.modules, self.arguments, interceptor.exits, canonical_name)
        except (*RAISED_BY_MODELS, KeyError) as error:
            interceptor.note(f"a second look at {len(interceptor.exits)} values was not possible: {error}")
            return
        for name, path in places:
            why, how = "the output moves with a value taken out of the graph", "what passes it gets no relevance"
            if name in MEANT:
                interceptor.note(f"{name} at {path!r}: {why}; {how}, as the model says by it")
            else:
                interceptor.unknown_call(name, why, how, path)

    # ------------------------------------------------------------------ where relevance can be read

    def places(self, name: str, which: str = "output", call: int = -1) -> list[Place]:
        """The tensors that a call of a module took or gave."""
        calls = self.calls.get(name)
        if calls is None:
            raise unknown_name("module (of those that ran)", name, self.calls)
        if not -len(calls) <= call < len(calls):
            raise InputError(f"module {name!r} ran {len(calls)} times; there is no call {call}")
        found = calls[call].outputs if which == "output" else calls[call].inputs
        if not found:
            raise InputError(f"no {which} of module {name!r} depends on the model's input, so it has no relevance")
        return found

    def edges(self, place: Place) -> list[GradientEdge]:
        """Where the relevance of a place arrives.

        A layer and the batch norm folded into it are one site: what is between them is read at the latter's output.
        """
        folded = (GradientEdge(*edge) for edge in self.interceptor.folds.get(id(place.site), ()))
        return [edge for edge in (place.edge, *folded) if edge is not None]

    def is_folded(self, place: Place) -> bool:
        """Whether a batch norm was folded into the layer that made this: both have the batch norm's relevance."""
        return id(place.site) in self.interceptor.folds

    # ------------------------------------------------------------------ in words

    def notes(self, unknown: bool) -> list[str]:
        """What was noted of functions that are not understood, or everything else."""
        notes = self.interceptor.notes
        return [n.removeprefix("unknown: ") for n in notes if n.startswith("unknown: ") == unknown]

    def notes_on_inputs(self) -> str:
        """What was noted on the way in, where it may say why there is nothing to explain."""
        return "".join(f"; {note.removeprefix('unknown: ')}" for note in self.interceptor.notes)


def rank(sites: list[Site]) -> int:
    """Number the linear sites; returns how many there are."""
    count = 0
    for site in sites:
        if site.kind == "linear":
            site.rank = count  # a layer and the batch norm folded into it count once
            count += not site.folded_into_next
        elif site.kind == "recurrent":
            count += 1  # what follows it is not the first layer
    return count
