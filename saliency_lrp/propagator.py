"""RelevancePropagator and Trace: one forward pass, recorded; then as many explanations of it as asked for.

Module hooks (``places``) tell *where* a call comes from, a ``TorchFunctionMode`` (``interception``) tells *what* is
computed. Nothing is put on the user's model. Which rule a site follows is asked only in the backward pass, so one
forward serves any number of rules, targets and layers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from . import composites
from .as_written import AsWritten
from .composites import Composite
from .constants import Constants
from .engine import start
from .engine.coefficient import CoefficientForm
from .engine.conditions import Gate, down_to_the_last, mask_of
from .engine.inner_gradients import TakesGradient, gradients_inside
from .engine.inputs import Arguments, without_graph
from .engine.nodes import NoCoefficient
from .engine.second_look import MEANT, places_that_matter
from .errors import InputError, ModelCallError, unknown_name
from .functions.site import Site
from .interception import TAG, Binding, Interceptor, canonical_name
from .model import graph_free
from .model.as_found import Calling, as_found
from .model.unwrapped import named_modules, unwrapped
from .places import ModuleCall, Place, Watch
from .report import Account, Report, not_closed, total
from .rules import Rule
from .values import holds


class RelevancePropagator:
    """Layer-wise relevance propagation through any PyTorch model, without changing it.

    Parameters
    ----------
    model : torch.nn.Module
        The model as it is: any mode, any device, frozen or not. DataParallel and torch.compile wrappers are looked
        through. It is never moved or changed.
    composite : str, Composite or Rule
        Which site gets which rule: a name of ``list_composites()``, a ``Composite``, or one rule for every linear site.
    unknown : {"warn", "error"}
        What to do where relevance reaches a function that is not in the table: report it in the account and share
        relevance by a first-order expansion, or raise.
    constants : sequence of str or int
        Inputs that are not explained (masks, adjacency matrices), by the name of the argument or by position.

    Examples
    --------
    >>> trace = RelevancePropagator(model, "epsilon_plus").trace(x)
    >>> R = trace.relevance(target=3)
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite | Rule = "auto",
        unknown: str = "warn",
        constants: Sequence[str | int] = (),
    ) -> None:
        if unknown not in ("warn", "error"):
            raise unknown_name("choice for unknown=", unknown, ("warn", "error"))
        self.model = unwrapped(model)
        self.composite = composites.get(composite)
        self.unknown = unknown
        self.constants = constants
        #: why explanations by this composite need the reference form, once that is known
        self.reference_only = ""

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """Run the model once, in eval mode, and record it.

        Parameters
        ----------
        *args, **kwargs
            The model's own arguments. Floating-point tensors among them receive relevance, and integer tensors that
            the model looks something up by (token ids, categories) or computes with (pictures of 8 or 16 bits).
            ``constants=``, unless the model has an argument of that name, is that of the propagator, for this call.

        Returns
        -------
        Trace
        """
        return self._record(args, kwargs, bound=False)

    def bound_trace(self, *args: Any, **kwargs: Any) -> Trace:
        """As :meth:`trace`, for maps of the inputs by this propagator's own composite: faster, and in less memory.

        The rules are bound in the forward pass, so that most calls run as they are, and relevance is carried as a
        coefficient (see ``saliency_lrp/engine/coefficient.py``). Such a trace can be asked anything; for what it was
        not made for (other composites, an account, layers, conditions, rules that have no coefficient) it runs the
        model once more, with nothing bound.
        """
        trace = self._record(args, kwargs, bound=not self.reference_only)
        trace.when_unbound = self._remember
        if trace.reason:
            self._remember(trace.reason)
        return trace

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Trace:
        constants = self.constants
        if "constants" in kwargs and not takes(self.model, "constants"):
            constants = kwargs.pop("constants")
        return Trace(self.model, args, kwargs, self.composite, self.unknown, constants, bound)

    def __repr__(self) -> str:
        return f"<RelevancePropagator of {type(self.model).__name__}, composite {self.composite.name!r}>"

    def _remember(self, reason: str) -> None:
        """Next time, go to the reference form at once."""
        self.reference_only = reason


def takes(model: nn.Module, name: str) -> bool:
    """Whether ``forward`` has a parameter of this name."""
    try:
        return name in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


Target = Any


def _what_failed(error: Exception, model: nn.Module, inputs: Any) -> str:
    """What a user needs to know of a forward pass that raised: the input's shape, the module, torch's own words."""
    shapes = ", ".join(str(tuple(t.shape)) for t in tree_leaves(inputs) if isinstance(t, Tensor))
    names = {id(m): name for name, m in model.named_modules()}
    where, step = "", error.__traceback__
    while step is not None:
        module = step.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            what = repr(module) if not list(module.children()) else type(module).__name__
            where = f" at {names[id(module)]!r}, {what}"
        step = step.tb_next
    return (
        f"{type(model).__name__} cannot run on an input of shape {shapes}: it stopped{where} with {str(error)!r}. "
        f"{_advice(str(error))}"
    )


#: What a model's error is about, by words in it, and how to mend that.
ADVICE = {
    r"shape|size|dimension|channels|expected .*input|mat1 and mat2|broadcast|index .*out of": (
        "Give an input of the shape that the model takes"
    ),
    r"dtype|scalar type|same type|expected .*(Float|Double|Half|Long|Int)|must be of type": (
        "Give an input of the dtype that the model takes"
    ),
    r"same device|on device|cuda|device type": "Put the input on the device of the model",
    r"positional argument|keyword argument": "Call it with the arguments that its forward takes",
}


def _advice(message: str) -> str:
    """How to mend what stopped a forward pass; nothing where its words tell nothing."""
    found = (advice for words, advice in ADVICE.items() if re.search(words, message, re.IGNORECASE))
    return next(found, "It has to run by itself, outside of an explanation, on this very input")


def working_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point type that the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


#: A tensor inside the graph, and the relevance that starts there.
Start = tuple[Tensor | GradientEdge, Tensor]


#: What autograd says that it cannot do -> the way to record the forward pass that spares it that.
OTHER_WAYS = {
    # the model writes into what chunk() and its like returned, which autograd only allows for views one by one
    "returns multiple views": "single_views",
    # the model uses torch.func, which takes no hooks on what autograd keeps
    "support saved tensor hooks": "no_copies",
}

#: What autograd says of a tensor that it kept and that was written into, or given back to the model without its graph.
WRITTEN_OVER = ("modified by an inplace operation", "detached in-place", "returns multiple views")


def in_either_form(explain: Callable[..., Any]) -> Callable[..., Any]:
    """Explanations that a bound trace makes as it is, where it has coefficients; else it is recorded once more."""

    signature = inspect.signature(explain)

    @functools.wraps(explain)
    def run(self: Trace, *args: Any, **options: Any) -> Any:
        if self.bound:
            asked = signature.bind(self, *args, **options).arguments
            target = asked.get("target", asked.get("targets"))
            self._asked_last = target[0] if isinstance(target, list) and target else target, asked.get("seed", "logit")
            if not any(asked.get(name) for name in ("composite", "account", "condition", "at")):
                try:
                    return explain(self, *args, **options)
                except NoCoefficient as reason:
                    why = str(reason)
                except RuntimeError as error:
                    if not any(refusal in str(error) for refusal in WRITTEN_OVER):
                        raise
                    why = str(error)
                if why not in (ON_ZERO, NOT_FINITE):
                    self.when_unbound(why)
            else:
                why = "more was asked for than maps by the composite that was bound"
            self._unbind(why)
        return explain(self, *args, **options)

    return run


def in_reference_form(explain: Callable[..., Any]) -> Callable[..., Any]:
    """Explanations that need the reference form."""

    @functools.wraps(explain)
    def run(self: Trace, *args: Any, **options: Any) -> Any:
        self._unbind(f"{explain.__name__} was asked for")
        return explain(self, *args, **options)

    return run


#: Why a seed may have no coefficient, whatever the model.
ON_ZERO = "relevance starts at an output that is 0"

#: A factor that is no number takes the relevance of what it multiplied along, also where that is 0.
NOT_FINITE = "a coefficient is no number"


def are_finite(values: Iterable[Tensor | None]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(torch.isfinite(v).all()) for v in values if v is not None)


def as_coefficient(R: Tensor, out: Tensor) -> Tensor:
    """R / output; an output that is 0 can have no relevance."""
    zero = out == 0
    if holds((zero & (R != 0)).any, unknown=False):
        raise NoCoefficient(ON_ZERO)
    return torch.where(zero, 0.0, R / out)


class Trace:
    """One recorded forward pass; explanations of it are backward passes only.

    Attributes
    ----------
    output
        The model's own output, bit for bit, without a graph.
    sites : list of Site
        Every call that relevance can pass through, in execution order.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        composite: Composite,
        unknown: str,
        constants: Sequence[str | int] = (),
        bound: bool = False,
    ) -> None:
        self.composite = composite
        self._arguments = Arguments(model, args, kwargs, constants)
        self._model = model
        self._collected: dict[int, list[tuple[Tensor, Tensor]]] = {}
        modules = named_modules(model)
        names = {id(m): name for m, name in modules.items()}
        self.binding = Binding(composite, unknown, names)
        self.sites: list[Site] = []
        self.calls: dict[str, list[ModuleCall]] = {}
        self._lock = threading.RLock()
        self._freed = False
        #: the composite of the last explanation
        self._used = composite
        self._last: tuple[Start, Any] | None = None
        self._report: Report | None = None
        #: why relevance has no coefficient here, where that was tried; and who wants to know
        self.reason = ""
        self.when_unbound: Callable[[str], None] = lambda reason: None
        self._modules = modules
        self._asked_last: tuple[Any, Any] = (None, "logit")
        if not bound or not self._record_bound():
            self._record()

    # ------------------------------------------------------------------ recording

    @property
    def bound(self) -> bool:
        """Whether the composite was bound in the forward pass, so that autograd carries coefficients."""
        return self._interceptor.form.early

    def _record_bound(self) -> bool:
        """Record with the composite bound, if relevance has a coefficient all the way."""
        try:
            if any(a.value.is_complex() for a in self._arguments.tensors):
                raise NoCoefficient("the input is complex")
            self._forward(self._model, self._modules, no_copies=True, form=CoefficientForm(self.composite))
            self._finish()
        except (NoCoefficient, RuntimeError, ModelCallError, TakesGradient) as why:
            self.reason = str(why)
            return False
        return True

    def _record(self) -> None:
        """Record with nothing bound: every call a node that hands relevance on, by any rule."""
        ways: dict[str, Any] = {}
        while True:
            try:
                self._forward(self._model, self._modules, **ways)
                break
            except TakesGradient:
                ways["gradients"] = gradients_inside(self._model, self._modules, self._arguments)
            except RuntimeError as error:
                other = next((way for message, way in OTHER_WAYS.items() if message in str(error)), None)
                if other is None or other in ways:
                    raise
                ways[other] = True
        self._finish()

    def _unbind(self, why: str) -> None:
        """Go over to the reference form, which serves everything, by running the model once more."""
        if self.bound:
            self.reason, self._freed = why, False
            self._record()
            self._last = (self._start(*self._asked_last), None)

    def _forward(
        self,
        model: nn.Module,
        modules: Iterable[nn.Module],
        single_views: bool = False,
        no_copies: bool = False,
        gradients: list[Any] | None = None,
        form: CoefficientForm | None = None,
    ) -> None:
        """Run the model with hooks and interception on; whatever happens, nothing is left behind on it."""
        self.sites.clear()
        self.calls.clear()
        self._interceptor = Interceptor(self.binding, self.binding.names, self.sites, form=form)
        self._interceptor.single_views = single_views
        self._interceptor.gradients = None if gradients is None else iter(gradients)
        self._raw: Any = None
        args, kwargs = self._enter()
        watch = Watch(self._interceptor, self.calls)
        # without these hooks, autograd refuses models that write into what a max pooling, say, has read
        packing = saved_tensors_hooks(self._interceptor.pack, lambda held: held.saved[0])
        with as_found(model, modules, patched=False) as frame, AsWritten() as written:
            frame.undoing(functools.partial(self._free_of_graphs, modules))
            frame.undoing(watch.remove)
            watch.listen()
            try:
                with contextlib.nullcontext() if no_copies else packing, self._interceptor:
                    self._raw = model(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                if isinstance(error, InputError | torch.OutOfMemoryError):
                    raise
                raise ModelCallError(_what_failed(error, model, (args, kwargs))) from error
        self._interceptor.saved.clear()
        for what in written.passed:
            self._interceptor.note(f"{what} inside the model is passed, as torch.no_grad() is: relevance goes on there")

    def _look_again(self) -> None:
        """Whether the output depends on values that the model took out of the graph, where relevance cannot follow."""
        try:
            places = places_that_matter(
                self._model, self._modules, self._arguments, self._interceptor.exits, canonical_name
            )
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, KeyError) as error:
            self._interceptor.note(f"a second look at {len(self._interceptor.exits)} values was not possible: {error}")
            return
        for name, path in places:
            why, how = "the output moves with a value taken out of the graph", "what passes it gets no relevance"
            if name in MEANT:
                self._interceptor.note(f"{name} at {path!r}: {why}; {how}, as the model says by it")
            else:
                self._interceptor.unknown_call(name, why, how, path)

    def _free_of_graphs(self, modules: Iterable[nn.Module]) -> None:
        """What the model keeps is free of the graph; what it returned has it."""
        written = self._interceptor.written.alive()
        self._raw = graph_free.apart(self._raw, (*written, *(b for m in modules for b in m._buffers.values())))
        graph_free.free(written, modules)

    def _enter(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with each tensor a copy that relevance can be read at; the caller's are never written into."""
        self._arguments.check()
        interceptor = self._interceptor
        interceptor.ids.result_dtype = working_dtype(self._model)
        given = []
        with torch.inference_mode(False), torch.enable_grad():
            for argument in self._arguments.tensors:
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
        return self._arguments.filled(given)

    def _finish(self) -> None:
        """Ranks of the linear sites, and which site made the output."""
        self.binding.linear_count = self._interceptor.form.linear_count if self.bound else self._rank()
        for t in tree_leaves(self._raw):
            tag = getattr(t, TAG, None) if isinstance(t, Tensor) else None
            if tag is None and isinstance(t, Tensor) and t.requires_grad:
                self._interceptor.adopt(t)  # made by a custom autograd.Function, which is reported
            if tag is not None and tag.trace is self._interceptor.token and tag.site is not None:
                tag.site.is_output = tag.site.kind != "softmax" or not tag.readers  # else weights of attention
                tag.readers += 1
                if not self.bound:
                    self._interceptor.read(t, tag.site)
        for text in (*self._arguments.notes, *self._interceptor.ids.remarks()):
            self._interceptor.note(text)
        self.output = without_graph(self._raw)
        if self._interceptor.exits:
            self._look_again()

    def _rank(self) -> int:
        """Number the linear sites; returns how many there are."""
        rank = 0
        for site in self.sites:
            if site.kind == "linear":
                site.rank = rank  # a layer and the batch norm folded into it count once
                rank += not site.superseded
            elif site.kind == "recurrent":
                rank += 1  # what follows it is not the first layer
        return rank

    # ------------------------------------------------------------------ explaining

    @in_either_form
    def relevance(
        self,
        target: Target = None,
        seed: Any = "logit",
        composite: str | Composite | Rule | None = None,
        account: bool = False,
        retain: bool = True,
        condition: Mapping[str, Any] | None = None,
        at: str | None = None,
        index: Any = None,
    ) -> Any:
        """Relevance of the model's inputs.

        Parameters
        ----------
        target : None, int, tensor, tuple, callable or list
            What is explained: the arg-max of each item (first on ties), one class for all items, one class per item
            (tensor or tuple; negative ones count from the end), or a callable of the model's output that gives one
            value per item (segmentation, detection, regression). Of a language model, whose output is (N, T, tokens):
            the most likely next token, a token at the last position (the last that is no padding, by an
            ``attention_mask``), or a pair (position, token). A *list* of any of these asks for several maps, by one
            batched backward pass.
        seed : {"logit", "one", "contrastive", "softmax"}, tensor or callable
            What starts at the output: the target's value; 1; the target's value against an equal share of its
            negative on all other classes (Gu et al. 2018); every score times the derivative of the target's
            log-softmax by it (the class against what competes with it); or any relevance shaped like the output.
        composite : str, Composite or Rule, optional
            Other rules than the propagator's; no new forward pass is made.
        account : bool
            Whether to keep the account of relevance in the same pass (else ``report()`` makes a pass of its own).
        retain : bool
            Keep the trace for further explanations. With False memory is freed on the way.
        condition : mapping, optional
            Conditional relevance (concept relevance propagation, Achtibat et al. 2023): only what passes through
            these parts of these modules' outputs. Maps a module path to channel indices (axis 1; the last axis of
            (items, tokens, features)), a mask that broadcasts to the output, or a callable of the relevance there.
            It acts below that output: :meth:`layer_relevance` of the very module is what arrived there. What goes
            around a module, by a skip connection, does not pass it; of several modules, all are to be passed.
        at : str, optional
            Explain neurons inside the model instead of the output: the path of a module (its last call). The model
            runs once more, to see their values.
        index : int, slice or tuple of those, optional
            Which neurons of each item of that module's output, such as ``(channel, y, x)`` or ``(token, feature)``;
            all of them by default.

        Returns
        -------
        Tensor, tuple of Tensor or dict of Tensor
            Signed, shape and device of the input: a tensor for one input that receives relevance, a tuple in the order
            of the arguments for several, a dict where inputs were given by name. For ids: one value per id. For a
            list of K targets: stacked, (K, ...).
        """
        if at is not None:
            begun = self._start_inside(at, index, target, seed)
        elif index is not None:
            raise InputError(f"index={index!r} says which neurons of a module; name the module by at=")
        elif isinstance(target, list):
            return self._stacked(target, seed, composite, account, condition)
        else:
            begun = self._start(target, seed)
        (maps,) = self._run([begun], composite, account, retain, (), condition)[0]
        self._last = None if account else (begun, composite)  # what report() would still have to run
        return maps

    def _stacked(
        self, targets: list[Target], seed: Any, composite: Any, account: bool, condition: Mapping[str, Any] | None
    ) -> Any:
        """The maps of several targets; the account, where asked for, is that of the first."""
        if not targets:
            raise InputError("target is an empty list; give at least one target")
        if condition or account:
            maps = [self.relevance(t, seed, composite, condition=condition) for t in targets]
            if account:
                self.relevance(targets[0], seed, composite, account=True, condition=condition)
        else:
            maps = self.relevances(targets, seed, composite)
            self._last = (self._start(targets[0], seed), composite)
        if isinstance(maps[0], dict):
            return {name: torch.stack([R[name] for R in maps]) for name in maps[0]}
        if isinstance(maps[0], tuple):
            return tuple(torch.stack(values) for values in zip(*maps, strict=True))
        return torch.stack(maps)

    @in_either_form
    def relevances(
        self,
        targets: Sequence[Target],
        seed: Any = "logit",
        composite: str | Composite | Rule | None = None,
        batched: bool = True,
    ) -> list[Any]:
        """Several maps from one forward pass, one per target, by one batched backward pass.

        Parameters
        ----------
        targets : sequence
            Each as in :meth:`relevance`.
        seed, composite
            As in :meth:`relevance`.
        batched : bool
            All targets in one backward pass (K times its memory), or one after the other.
        """
        starts = [self._start(target, seed) for target in targets]
        if not starts:
            return []
        if batched and all(out is starts[0][0] for out, _ in starts):
            try:
                return self._run(starts, composite, False, True, ())[0]
            except RuntimeError as error:
                if "atching rule" not in str(error) and "vmap" not in str(error):
                    raise  # else some view or routing function of the model has no batched gradient
        return [self._run([start], composite, False, True, ())[0][0] for start in starts]

    @in_reference_form
    def layer_relevance(
        self,
        name: str | Sequence[str],
        target: Target = None,
        seed: Any = "logit",
        composite: str | Composite | Rule | None = None,
        which: str = "output",
        call: int = -1,
        condition: Mapping[str, Any] | None = None,
    ) -> Any:
        """Relevance at a module, for any module that ran.

        Parameters
        ----------
        name : str or sequence of str
            Dotted path as in ``model.named_modules()``. With several, a dict from name to relevance, from one pass.
        target, seed, composite
            As in :meth:`relevance`.
        which : {"output", "input"}
            Where to read it.
        call : int
            Which call of a module that ran more than once; the last by default.
        condition : mapping, optional
            As in :meth:`relevance`.

        Returns
        -------
        Tensor (tuple where there are several), or dict of those
        """
        if which not in ("output", "input"):
            raise unknown_name("side", which, ("output", "input"))
        names = [name] if isinstance(name, str) else list(name)
        found = {n: self._places(n, which, call) for n in names}
        places = tuple(place for group in found.values() for place in group)
        begun = self._start(target, seed)
        _, at = self._run([begun], composite, False, True, places, condition)
        self._last = (begun, composite)
        values = _grouped(at, found)
        return values[name] if isinstance(name, str) else values

    @in_reference_form
    def all_relevance(
        self,
        layers: Sequence[str],
        target: Target = None,
        seed: Any = "logit",
        composite: str | Composite | Rule | None = None,
        retain: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """Relevance of the inputs and of the outputs of some modules, from one pass.

        Parameters
        ----------
        layers : sequence of str
            Dotted paths as in ``model.named_modules()``; of a module that ran more than once, the last call.
        target, seed, composite, retain
            As in :meth:`relevance`.

        Returns
        -------
        (Tensor, dict of Tensor)
            What :meth:`relevance` and :meth:`layer_relevance` give.
        """
        found = {name: self._places(name, "output", -1) for name in layers}
        places = tuple(place for group in found.values() for place in group)
        begun = self._start(target, seed)
        (maps,), at = self._run([begun], composite, False, retain, places)
        self._last = (begun, composite)
        return maps, _grouped(at, found)

    @in_reference_form
    def parameter_relevance(
        self, target: Target = None, seed: Any = "logit", composite: str | Composite | Rule | None = None
    ) -> dict[str, Tensor]:
        """Relevance that passed through each parameter: the share of every weight in the messages it carried.

        A weight's relevance is the sum of the messages ``a_i w_ij R_j / s(z_j)`` (or those of the site's rule) over all
        positions and calls; a bias's is what it absorbed. The weights of one layer sum to what left the layer for
        its input, so that the account holds layer by layer. A batch norm that was folded into a layer counts with
        the layer's weight.

        Returns
        -------
        dict of Tensor
            By name as in ``model.named_parameters()``, shaped like the parameter; parameters of linear sites only.
        """
        self._run([self._start(target, seed)], composite, False, True, (), parameters=True)
        collected, self._collected = self._collected, {}
        found: dict[str, Tensor] = {}
        for name, p in self._model.named_parameters():
            for view, share in collected.get(p.untyped_storage().data_ptr(), ()):
                offset = view.storage_offset() - p.storage_offset()
                if not 0 <= offset < p.numel():
                    continue  # another parameter in the same storage
                total_share = found.setdefault(name, torch.zeros_like(p, dtype=share.dtype, requires_grad=False))
                # a site may have used part of the parameter, or its transpose
                total_share.as_strided(view.shape, view.stride(), offset).add_(share.reshape(view.shape))
        return found

    def _gates(self, condition: Mapping[str, Any]) -> list[Gate]:
        """Where conditioned relevance has to pass, and what of it does: every output of every call of the modules."""
        return [
            Gate(name, edge, mask_of(part, place.shape, name))
            for name, part in condition.items()
            for call in range(len(self.calls.get(name, ())) or 1)
            for place in self._places(name, "output", call)
            for edge in self._edges(place)
        ]

    def is_folded(self, place: Place) -> bool:
        """Whether a batch norm was folded into the layer that made this: both have the batch norm's relevance."""
        return id(place.site) in self._interceptor.folds

    def _edges(self, place: Place) -> list[GradientEdge]:
        """Where the relevance of a place arrives.

        A layer and the batch norm folded into it are one site: what is between them is read at the latter's output.
        """
        folded = (GradientEdge(*edge) for edge in self._interceptor.folds.get(id(place.site), ()))
        return [edge for edge in (place.edge, *folded) if edge is not None]

    def _places(self, name: str, which: str, call: int) -> list[Place]:
        calls = self.calls.get(name)
        if calls is None:
            raise unknown_name("module (of those that ran)", name, self.calls)
        if not -len(calls) <= call < len(calls):
            raise InputError(f"module {name!r} ran {len(calls)} times; there is no call {call}")
        found = calls[call].outputs if which == "output" else calls[call].inputs
        if not found:
            raise InputError(f"no {which} of module {name!r} depends on the model's input, so it has no relevance")
        return found

    # ------------------------------------------------------------------ the start

    def scores(self) -> start.Scores:
        """The part of the output that classes are read from."""
        return start.find_scores(self._raw)

    def choose(self, target: Target) -> start.Choice:
        """Which number of each item's scores a target means."""
        found = self.scores()
        last = None
        if found.values.dim() == 3:
            last = start.last_positions(self._arguments.padding_mask(), found.values.shape[1])
        return start.choose(found, target, last)

    def _start(self, target: Target, seed: Any) -> Start:
        """The tensor that relevance starts at, and that relevance."""
        self._check_alive()
        start.check_seed(seed)
        out = self._asked(target) if callable(target) else self.scores().values
        self._check_output(out)
        given = start.given_seed(seed, out)
        if given is not None:
            return out, given
        if callable(target):
            return out, start.whole_seed(out.detach(), seed, "a callable target has no classes")
        return out, start.seed_of(self.choose(target), seed)

    def _start_inside(self, name: str, index: Any, target: Target, seed: Any) -> Start:
        """Where the relevance of neurons of a module starts, and that relevance."""
        self._check_alive()
        start.check_seed(seed)
        if target is not None:
            raise InputError(
                f"target={target!r:.80} is of the model's output, at={name!r} of a module: give one of them"
            )
        places = self._places(name, "output", -1)
        if len(places) != 1 or places[0].edge is None:
            raise InputError(f"module {name!r} has {len(places)} outputs that relevance could start at, not one")
        return places[0].edge, start.hidden_seed(self._values_of(name), index, seed, name)

    def _values_of(self, name: str) -> Tensor:
        """The output of a module, of its last call, by running the model again."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, result: Any) -> None:
            found[:] = [t.detach().clone() for t in tree_leaves(result) if isinstance(t, Tensor)][:1]

        modules = named_modules(self._model)
        (module,) = (m for m, path in modules.items() if path == name)
        args, kwargs = self._arguments.fresh()
        with as_found(self._model, modules), torch.no_grad():
            module.register_forward_hook(keep)  # which the frame takes off again
            self._model(*args, **kwargs)
        return found[0]

    def _check_alive(self) -> None:
        if self._freed:
            raise InputError("an explanation with retain=False was this trace's last; leave retain out to go on")

    def _asked(self, target: Callable[[Any], Tensor]) -> Tensor:
        """What a callable target says of the output."""
        try:
            with Calling(), self._interceptor:
                out = target(self._raw)
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            found = self.scores()
            raise InputError(
                f"the callable target could not read the model's output ({type(error).__name__}: {error}). The output "
                f"is a {type(self._raw).__name__}, whose {found.where} has shape {tuple(found.values.shape)}: say, for "
                f"example, target=lambda out: {start.example(found)}"
            ) from error
        if not isinstance(out, Tensor) or not out.requires_grad:
            raise InputError("the callable target must return a tensor computed from the model's output")
        return out

    def _check_output(self, out: Tensor) -> None:
        if not out.requires_grad:
            raise InputError(
                "the model's output does not depend on its input, as far as can be seen: is it detached, computed in "
                f"inference mode or outside of torch?{self._notes_on_inputs()}"
            )
        start.check_finite(out.detach())

    # ------------------------------------------------------------------ the backward pass

    def _run(
        self,
        starts: list[Start],
        composite: str | Composite | Rule | None,
        account: bool,
        retain: bool,
        places: tuple[Place, ...],
        condition: Mapping[str, Any] | None = None,
        parameters: bool = False,
    ) -> tuple[list[Any], list[Tensor]]:
        """Maps for each start, and relevance at places inside the model (of the first start)."""
        self._check_alive()
        leaves = self._leaves()
        edges = [self._edges(place) for place in places]
        chosen = self._used = self.composite if composite is None else composites.get(composite)
        out = starts[0][0]
        several = len(starts) > 1
        seeds = torch.stack([s for _, s in starts]) if several else starts[0][1]
        gates = self._gates(condition or {})
        vanishing = not self._interceptor.opaque and not gates
        if self.bound:
            assert isinstance(out, Tensor), "what is inside the model is asked in the reference form"
            seeds = as_coefficient(seeds, out.detach())
        with self._lock, Calling():
            kept = Account() if account else None
            self.binding.use(chosen, None if gates else kept)
            # of neurons inside the model it is not known here whether any is 0
            if not self.bound:
                vanishing &= isinstance(out, Tensor) and not holds(((out == 0) & (seeds != 0)).any, unknown=True)
            self.binding.vanishing = self.bound or vanishing
            self.binding.maps = len(starts)
            self.binding.retain = True
            inside = [edge for group in edges for edge in group]
            outputs: list[Any] = [out]
            relevance = [seeds.clone() if seeds.is_inference() else seeds]
            above: list[Tensor | None] = [None] * len(inside)
            handles: list[Any] = []
            try:
                if gates:
                    outputs, relevance, above = down_to_the_last(outputs, relevance, gates, inside, handles)
                    self.binding.account = kept
                self.binding.retain, self._freed = retain, not retain
                self.binding.parameters = {} if parameters else None
                ends: list[Any] = [*leaves, *inside]
                values: Sequence[Tensor | None] = [None] * len(ends)
                if outputs:
                    values = torch.autograd.grad(
                        outputs,
                        ends,
                        relevance,
                        retain_graph=retain or self._interceptor.ids.from_floats,
                        allow_unused=True,
                        is_grads_batched=several,
                    )
                if self.bound and holds(lambda: not are_finite(values), unknown=False):
                    raise NoCoefficient(NOT_FINITE)
                self._unknown = list(self.binding.unknown_sites.values())
                found = [self._at_arguments(values[: len(leaves)], k if several else None) for k in range(len(starts))]
                if kept is not None:
                    self._report = self._make_report(kept, seeds, list(found[0].values()))
                if self.binding.parameters is not None:
                    self._collected = self.binding.parameters
            finally:
                for handle in handles:
                    handle.remove()
                self.binding.release()
        if not retain:
            self._raw = None
        maps = [self._arguments.arranged(by_argument) for by_argument in found]
        read = iter([v if v is not None else w for v, w in zip(values[len(leaves) :], above, strict=True)])
        at = []
        for place, group in zip(places, edges, strict=True):
            parts = [v for v in itertools.islice(read, len(group)) if v is not None]
            at.append(functools.reduce(torch.add, parts) if parts else place.no_relevance())
        return maps, at

    def _leaves(self) -> list[Tensor]:
        """Where relevance ends: at float arguments, and at what integers became."""
        floats = [a.leaf for a in self._arguments.tensors if a.leaf is not None]
        leaves = [*floats, *(ending.leaf for ending in self._interceptor.ids.endings)]
        if not leaves:
            raise InputError(
                "the model was given no tensor that relevance could be attributed to (a floating-point tensor, "
                f"integers that it looks something up by, or a picture of integers){self._notes_on_inputs()}"
            )
        return leaves

    def _notes_on_inputs(self) -> str:
        """What was noted on the way in, where it may say why there is nothing to explain."""
        return "".join(f"; {note.removeprefix('unknown: ')}" for note in self._interceptor.notes)

    def _at_arguments(self, values: Sequence[Tensor | None], which: int | None) -> dict[int, Tensor]:
        """Relevance by the number of the argument, of one of several maps."""
        values = [v if v is None or which is None else v[which] for v in values]
        ids, tensors = self._interceptor.ids, self._arguments.tensors
        floats = {k: a.leaf for k, a in enumerate(tensors) if a.leaf is not None}
        named = ids.explained()
        integers = [k for k, a in enumerate(tensors) if a.name in named]
        found = {k: torch.zeros_like(floats[k]) if v is None else v for k, v in zip(floats, values, strict=False)}
        of_floats = floats if ids.from_floats else {}
        targets = [ids.roots[tensors[k].name] for k in integers] + list(of_floats.values())
        handed = ids.hand_on(list(values[len(floats) :]), targets)
        for k, R in zip([*integers, *of_floats], handed, strict=True):
            if k in found:
                found[k] = found[k] if R is None else found[k] + R
            else:
                found[k] = (torch.zeros_like(ids.roots[tensors[k].name]) if R is None else R).to(ids.result_dtype)
        return found

    # ------------------------------------------------------------------ the account

    @in_reference_form
    def report(self) -> Report:
        """Where the relevance of the last explanation went; makes a backward pass if no account was kept in it."""
        if self._report is None or self._last is not None:
            begun, composite = self._last or (self._start(None, "logit"), None)
            self._run([begun], composite, True, True, ())
            self._last = None
        assert self._report is not None
        return self._report

    def _make_report(self, account: Account, seeds: Tensor, values: Sequence[Tensor | None]) -> Report:
        started = float(total(seeds))
        arrived = sum(float(total(v)) for v in values if v is not None)
        notes = [n for n in self._interceptor.notes if not n.startswith("unknown: ")]
        constants = Constants(self._model, self._interceptor.constants)
        report = Report(
            started,
            arrived,
            account.rows(self.binding.rule_for, constants.name_of),
            self.warnings(),
            notes,
            seed_size=float(total(seeds.abs())),
            size=sum(float(total(v.abs())) for v in values if v is not None),
            joined=constants.names_of(self._interceptor.joined),
            unknown=self._not_understood(),
        )
        report.warnings += not_closed(report.rows)
        finite = are_finite(values)
        if not finite:
            worst = next((r for r in reversed(report.rows) if r.left != r.left or abs(r.left) == float("inf")), None)
            where = f"; first at {worst.op} of {worst.path!r}" if worst is not None else ""
            report.warnings.append(f"the map has NaN or infinite values{where}")
        elif started:
            if report.size > EXPLODED * report.seed_size:
                report.warnings.append(
                    f"Σ|R| of the map is {report.size / report.seed_size:.3g} times that of the seed: relevance of "
                    "opposite signs nearly cancels somewhere; do not trust single pixels (rules such as z⁺ or "
                    "γ avoid this)"
                )
        return report

    def _not_understood(self) -> list[str]:
        """Functions that the last explanation met and that are not understood, with their place."""
        found = [f"{s.op} at {s.path!r}" for s in self._unknown]
        found += [
            n.removeprefix("unknown: ").partition(" is not ")[0] for n in self._interceptor.notes if "unknown: " in n
        ]
        return list(dict.fromkeys(found))

    def warnings(self) -> list[str]:
        """Functions that the last explanation met and that are not understood."""
        found = {f"{s.op} at {s.path!r}": s.op for s in getattr(self, "_unknown", [])}
        return [
            f"{where} is not in the table of functions; relevance was shared by a first-order expansion. Say how it "
            f"hands relevance back: saliency_lrp.functions.register({op!r}, 'sum')"
            for where, op in found.items()
        ] + [
            *(n.removeprefix("unknown: ") for n in self._interceptor.notes if n.startswith("unknown: ")),
            *self._used.idle_rows(self.calls, self._modules),
        ]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{a.name} {tuple(a.value.shape)}" for a in self._arguments.tensors)
        form = "bound" if self.bound else f"{len(self.sites)} sites"
        return f"<Trace of {type(self._model).__name__} on {shapes}: {form}, composite {self.composite.name!r}>"

    def warn(self) -> None:
        """Issue :meth:`warnings` as Python warnings."""
        for text in self.warnings():
            warnings.warn(text, stacklevel=3)


def _grouped(values: list[Tensor], found: Mapping[str, Sequence[Place]]) -> dict[str, Any]:
    """What was read at the places of each name: a tensor, or a tuple where the module has several."""
    read = iter(values)
    groups = {name: tuple(itertools.islice(read, len(places))) for name, places in found.items()}
    return {name: group[0] if len(group) == 1 else group for name, group in groups.items()}


#: How many times larger than the seed a map's total magnitude may be before it is called exploded.
EXPLODED = 1e4
