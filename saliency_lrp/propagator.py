"""RelevancePropagator and Trace: one forward pass, recorded; then as many explanations of it as asked for.

Module hooks (``places``) tell *where* a call comes from, a ``TorchFunctionMode`` (``interception``) tells *what* is
computed. Nothing is put on the user's model. Which rule a site follows is asked only in the backward pass, so one
forward serves any number of rules, targets and layers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from . import composites
from .as_written import as_written
from .composites import Composite
from .constants import Constants
from .engine.coefficient import CoefficientForm
from .engine.nodes import NoCoefficient
from .errors import InputError, ModelCallError, unknown_name
from .functions.site import Site
from .interception import TAG, Binding, Interceptor
from .model import graph_free
from .model_state import evaluating, named_modules, unwrapped
from .places import ModuleCall, Place, Watch, only
from .report import Account, Report, total
from .rules import Rule


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

    Examples
    --------
    >>> trace = RelevancePropagator(model, "epsilon_plus").trace(x)
    >>> R = trace.relevance(target=3)
    """

    def __init__(self, model: nn.Module, composite: str | Composite | Rule = "auto", unknown: str = "warn") -> None:
        if unknown not in ("warn", "error"):
            raise unknown_name("choice for unknown=", unknown, ("warn", "error"))
        self.model = unwrapped(model)
        self.composite = composites.get(composite)
        self.unknown = unknown
        self._reference_only: str | None = None

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """Run the model once, in eval mode, and record it.

        Parameters
        ----------
        *args, **kwargs
            The model's own arguments. Floating-point tensors among them receive relevance, and integer tensors that
            the model embeds (token ids).

        Returns
        -------
        Trace
        """
        return Trace(self.model, args, kwargs, self.composite, self.unknown)

    def bound_trace(self, *args: Any, **kwargs: Any) -> Trace:
        """As :meth:`trace`, for explanations of the inputs by this propagator's own composite: faster, in less memory.

        The rules are bound in the forward pass, so that most calls run as they are (relevance as a coefficient, see
        ``saliency_lrp/engine/coefficient.py``). A trace of this kind can be asked anything; for what it was not made
        for (other composites, an account, layers, conditions, rules that have no coefficient) it runs the model once
        more, with nothing bound.
        """
        coefficient = self._reference_only is None
        trace = Trace(self.model, args, kwargs, self.composite, self.unknown, coefficient)
        trace.on_no_coefficient = self._remember
        if coefficient and not trace.bound:
            self._remember(trace.reason)
        return trace

    def _remember(self, reason: str) -> None:
        """Next time, go to the reference form at once."""
        self._reference_only = reason


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
        "Give an input of the shape and dtype that the model takes"
    )


#: What autograd says that it cannot do -> the way to record the forward pass that spares it that.
OTHER_WAYS = {
    # the model writes into what chunk() and its like returned, which autograd only allows for views one by one
    "returns multiple views": "single_views",
    # the model uses torch.func, which takes no hooks on what autograd keeps
    "support saved tensor hooks": "no_copies",
}


class Trace:
    """One recorded forward pass; explanations of it are backward passes only.

    Attributes
    ----------
    output
        The model's own output, bit for bit, detached.
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
        coefficient: bool = False,
    ) -> None:
        self.composite = composite
        self._model = model
        self._collected: dict[int, list[tuple[Tensor, Tensor]]] = {}
        modules = named_modules(model)
        names = {id(m): name for m, name in modules.items()}
        self.binding = Binding(composite, unknown, names)
        self.sites: list[Site] = []
        self.calls: dict[str, list[ModuleCall]] = {}
        self._lock = threading.RLock()
        self._freed = False
        self._last: tuple[Any, Any, Any] | None = None
        self._report: Report | None = None
        #: why relevance has no coefficient here, where that was tried
        self.reason = ""
        self.on_no_coefficient: Callable[[str], None] = lambda reason: None
        #: the model's arguments, for as long as it may have to run again
        self._given: tuple[Any, ...] | None = (model, modules, args, kwargs) if coefficient else None
        if not coefficient or not self._recorded_as_coefficients():
            self._record(model, modules, args, kwargs)

    # ------------------------------------------------------------------ recording

    @property
    def bound(self) -> bool:
        """Whether the composite was bound in the forward pass, and autograd carries coefficients."""
        return self._interceptor.form.early

    def _recorded_as_coefficients(self) -> bool:
        """Record with the composite bound, where relevance has a coefficient all the way."""
        assert self._given is not None
        if any(isinstance(t, Tensor) and t.is_complex() for t in tree_leaves(self._given[2:])):
            self.reason = "the input is complex"
            return False
        try:
            self._forward(*self._given, no_copies=True, form=CoefficientForm(self.composite))
        except NoCoefficient as reason:
            self.reason = str(reason)
            return False
        except (RuntimeError, ModelCallError) as error:
            self.reason = str(error)
            return False
        self._finish()
        return True

    def _record(self, *given: Any) -> None:
        """Record with nothing bound: each call a node that hands relevance on."""
        self._given = None
        ways: dict[str, bool] = {}
        while True:
            try:
                self._forward(*given, **ways)
                break
            except RuntimeError as error:
                other = next((way for message, way in OTHER_WAYS.items() if message in str(error)), None)
                if other is None or other in ways:
                    raise
                ways[other] = True
        self._finish()

    def _forward(
        self,
        model: nn.Module,
        modules: Iterable[nn.Module],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        single_views: bool = False,
        no_copies: bool = False,
        form: CoefficientForm | None = None,
    ) -> None:
        """Run the model with hooks and interception on; whatever happens, nothing is left behind on it."""
        self.sites.clear()
        self.calls.clear()
        self._interceptor = Interceptor(self.binding, self.binding.names, self.sites, form=form)
        self._interceptor.single_views = single_views
        self._raw: Any = None
        args, kwargs = self._enter(args, kwargs)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            passed = stack.enter_context(as_written())
            stack.enter_context(evaluating(model, modules))
            stack.callback(self._free_of_graphs, modules)
            # without these hooks, autograd refuses models that write into what a max pooling, say, has read
            if not no_copies:
                stack.enter_context(saved_tensors_hooks(self._interceptor.pack, lambda held: held.saved[0]))
            watch = Watch(self._interceptor, self.calls)
            stack.callback(watch.remove)
            stack.enter_context(self._interceptor)
            try:
                self._raw = model(*args, **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                if isinstance(error, InputError | torch.OutOfMemoryError):
                    raise
                raise ModelCallError(_what_failed(error, model, (args, kwargs))) from error
        self._interceptor.saved.clear()
        for what in passed:
            self._interceptor.note(f"{what} inside the model is passed, as torch.no_grad() is: relevance goes on there")

    def _free_of_graphs(self, modules: Iterable[nn.Module]) -> None:
        """What the model keeps is free of the graph; what it returned has it."""
        written = self._interceptor.written.alive()
        self._raw = graph_free.apart(self._raw, (*written, *(b for m in modules for b in m._buffers.values())))
        graph_free.free(written, modules)

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Each tensor input as a copy that relevance can be read at; nothing writes into the caller's tensors."""
        values, spec = tree_flatten((args, kwargs))
        self._check_inputs([t for t in values if isinstance(t, Tensor) and t.is_floating_point()])
        self._leaves: list[tuple[str, Tensor]] = []
        with torch.inference_mode(False), torch.enable_grad():
            for k, t in enumerate(values):
                if not isinstance(t, Tensor):
                    continue
                if t.is_floating_point() or t.is_complex():
                    leaf = t.detach().clone() if t.is_inference() else t.detach()
                    leaf = leaf.requires_grad_(True)
                    self._leaves.append(("float", leaf))
                    values[k] = self._interceptor.enter(leaf)
                elif not t.is_floating_point() and t.dtype != torch.bool:
                    self._interceptor.integer_inputs[t.untyped_storage().data_ptr()] = t
        return tree_unflatten(values, spec)

    @staticmethod
    def _check_inputs(tensors: list[Tensor]) -> None:
        """Nothing that is not finite, but -inf after the first tensor, where it stands in masks."""
        for k, t in enumerate(tensors):
            if t.is_meta:
                raise InputError(f"input {k} is on the meta device and has no values")
            bad = ~torch.isfinite(t) if k == 0 else torch.isnan(t) | (t == float("inf"))
            if bool(bad.any()):
                raise InputError(
                    f"input {k}, of shape {tuple(t.shape)}, has {int(bad.sum())} values that are NaN or infinite; "
                    "clean it first"
                )

    def _finish(self) -> None:
        """Ranks of the linear sites, and which site made the output."""
        form = self._interceptor.form
        self.binding.linear_count = form.linear_count if form.early else self._rank()
        for t in tree_leaves(self._raw):
            tag = getattr(t, TAG, None) if isinstance(t, Tensor) else None
            if tag is None and isinstance(t, Tensor) and t.requires_grad:
                self._interceptor.adopt(t)  # made by a custom autograd.Function, which is reported
            if tag is not None and tag.trace is self._interceptor.token and tag.site is not None:
                tag.site.is_output = tag.site.kind != "softmax" or not tag.readers  # else weights of attention
                if not self.bound:
                    self._interceptor.read(t, tag)
        for source in self._interceptor.integer_inputs.values():
            for owner, leaf in self._interceptor.embedded:
                if owner is source:
                    self._leaves.append(("embedding", leaf))
        self.output = tree_map_only(Tensor, lambda t: t.detach(), self._raw)

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

    def relevance(
        self,
        target: Target = None,
        seed: Any = "logit",
        composite: str | Composite | Rule | None = None,
        account: bool = False,
        retain: bool = True,
        condition: Mapping[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Relevance of the model's inputs.

        Parameters
        ----------
        target : None, int, tensor, tuple, callable or list
            What is explained: the arg-max of each item (first on ties), one class for all items, one class per item
            (tensor or tuple), or a callable of the model's output that gives one value per item (segmentation,
            detection, regression). A *list* of any of these asks for several maps, by one batched backward pass.
        seed : {"logit", "one", "contrastive"}, tensor or callable
            What starts at the output: the target's value, 1, the target's value against an equal share of its
            negative on all other classes (Gu et al. 2018), or any relevance shaped like the output.
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
            It acts below that output: :meth:`layer_relevance` of the very module is what arrived there.

        Returns
        -------
        Tensor, or tuple of Tensor
            Signed, shape, dtype and device of the input; one per tensor input that receives relevance. For token ids:
            one value per token. For a list of K targets: stacked, (K, ...).
        """
        if isinstance(target, list):
            return self._stacked(target, seed, composite, account, condition)
        (maps,) = self._run([(target, seed)], composite, account, retain, (), condition)[0]
        self._last = None if account else (target, seed, composite)  # what report() would still have to run
        return maps

    def _stacked(
        self, targets: list[Target], seed: Any, composite: Any, account: bool, condition: Mapping[str, Any] | None
    ) -> Tensor | tuple[Tensor, ...]:
        """The maps of several targets; the account, where asked for, is that of the first."""
        if not targets:
            raise InputError("target is an empty list; give at least one target")
        if condition or account:
            maps = [self.relevance(t, seed, composite, condition=condition) for t in targets]
            if account:
                self.relevance(targets[0], seed, composite, account=True, condition=condition)
        else:
            maps = self.relevances(targets, seed, composite)
            self._last = (targets[0], seed, composite)
        if isinstance(maps[0], tuple):
            return tuple(torch.stack(values) for values in zip(*maps, strict=True))
        return torch.stack(maps)

    def relevances(
        self,
        targets: Sequence[Target],
        seed: Any = "logit",
        composite: str | Composite | Rule | None = None,
        batched: bool = True,
    ) -> list[Tensor | tuple[Tensor, ...]]:
        """Several maps from one forward pass, one per target, by one batched backward pass.

        Parameters
        ----------
        targets : sequence
            Each as in :meth:`relevance`.
        batched : bool
            All targets in one backward pass (K times its memory), or one after the other.
        """
        asked = [(target, seed) for target in targets]
        if len(asked) > 1 and batched and not any(callable(target) for target in targets):
            try:
                return self._run(asked, composite, False, True, ())[0]
            except RuntimeError as error:
                if "atching rule" not in str(error) and "vmap" not in str(error):
                    raise  # else some view or routing function of the model has no batched gradient
        return [self._run([one], composite, False, True, ())[0][0] for one in asked]

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
        self._unbind("relevance of a layer was asked for")
        names = [name] if isinstance(name, str) else list(name)
        found = {n: self._places(n, which, call) for n in names}
        places = tuple(place for group in found.values() for place in group)
        _, at = self._run([(target, seed)], composite, False, True, places, condition)
        self._last = (target, seed, composite)
        values = _grouped(at, found)
        return values[name] if isinstance(name, str) else values

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
        self._unbind("relevance of layers was asked for")
        found = {name: self._places(name, "output", -1) for name in layers}
        places = tuple(place for group in found.values() for place in group)
        (maps,), at = self._run([(target, seed)], composite, False, retain, places)
        self._last = (target, seed, composite)
        return maps, _grouped(at, found)

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
        self._run([(target, seed)], composite, False, True, (), parameters=True)
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

    def _conditioned(self, condition: Mapping[str, Any]) -> list[Any]:
        """Let only a chosen part of the relevance through at the outputs of some modules; handles to undo it."""
        handles = []
        for name, part in condition.items():
            for call in range(len(self.calls.get(name, ())) or 1):
                for place in self._places(name, "output", call):
                    for edge in self._edges(place):
                        handles.append(edge.node.register_prehook(only(part, edge.output_nr, name)))
        return handles

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

    def _tensor_output(self) -> Tensor:
        """The part of the output that class scores are read from."""
        raw = self._raw
        if isinstance(raw, Tensor):
            return raw
        if isinstance(raw, dict) and isinstance(raw.get("logits"), Tensor):
            return raw["logits"]
        if isinstance(raw, dict) and isinstance(raw.get("out"), Tensor):
            return raw["out"]
        tensors = [t for t in tree_leaves(raw) if isinstance(t, Tensor) and t.requires_grad]
        if not tensors:
            raise InputError(f"the model's output has no tensor that depends on its input: {type(raw).__name__}")
        return tensors[0]

    def _start(self, target: Target, seed: Any) -> tuple[Tensor, Tensor]:
        """The tensor that relevance starts at, and that relevance."""
        if not (isinstance(seed, Tensor) or callable(seed) or seed in SEEDS):
            raise unknown_name("seed", seed, SEEDS)
        out = self._asked(target) if callable(target) else self._tensor_output()
        self._check_output(out)
        if callable(seed):
            seed = seed(out.detach())
            if not isinstance(seed, Tensor):
                raise InputError(
                    f"a callable seed must return a tensor of the output's shape {tuple(out.shape)}, got {seed!r:.80}"
                )
        if isinstance(seed, Tensor):
            return out, self._seed_tensor(seed, out)
        if callable(target):
            if seed == "contrastive":
                raise InputError("seed='contrastive' sets a class against the others; a callable target has no classes")
            return out, torch.ones_like(out) if seed == "one" else out.detach()
        index = self._indices(out, target)
        values = out.detach().gather(1, index[:, None])
        start = torch.zeros_like(out)
        if seed == "logit":
            return out, start.scatter_(1, index[:, None], values)
        if seed == "one":
            return out, start.scatter_(1, index[:, None], torch.ones_like(values))
        if out.shape[1] < 2:
            raise InputError(f"seed='contrastive' needs at least two classes; the output has shape {tuple(out.shape)}")
        start = start - values / (out.shape[1] - 1)
        return out, start.scatter_(1, index[:, None], values)

    def _asked(self, target: Callable[[Any], Tensor]) -> Tensor:
        """What a callable target says of the output."""
        with torch.inference_mode(False), torch.enable_grad(), self._interceptor:
            out = target(self._raw)
        if not isinstance(out, Tensor) or not out.requires_grad:
            raise InputError("the callable target must return a tensor computed from the model's output")
        return out

    @staticmethod
    def _check_output(out: Tensor) -> None:
        if not out.requires_grad:
            raise InputError(
                "the model's output does not depend on its input, as far as can be seen: is it detached, computed in "
                "inference mode or outside of torch?"
            )
        if not bool(torch.isfinite(out).all()):
            bad = int((~torch.isfinite(out)).sum())
            raise InputError(
                f"the model's output has {bad} values that are NaN or infinite; there is nothing to explain"
            )

    @staticmethod
    def _seed_tensor(seed: Tensor, out: Tensor) -> Tensor:
        if seed.shape != out.shape:
            raise InputError(f"seed has shape {tuple(seed.shape)}, but the output has {tuple(out.shape)}")
        if not bool(torch.isfinite(seed).all()):
            raise InputError("seed has values that are NaN or infinite")
        return seed.detach().to(out)

    @staticmethod
    def _indices(out: Tensor, target: Target) -> Tensor:
        """One class per item."""
        if out.dim() != 2 or out.shape[1] == 0:
            raise InputError(
                f"the model's output has shape {tuple(out.shape)}, not (items, classes); say what to explain with a "
                "callable target, such as target=lambda out: out[:, 3].mean((1, 2)), or with a seed tensor of "
                "the output's shape"
            )
        n, classes = out.shape
        if target is None:
            return out.detach().argmax(1)
        if isinstance(target, bool):
            raise InputError(f"target must be a class index, got {target!r}")
        try:
            index = torch.as_tensor(target, device=out.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"target must be integer class indices, got {target!r:.80}") from error
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise InputError(f"target must be integer class indices, got {target!r}")
        index = index.reshape(-1) if index.dim() <= 1 else index
        if index.dim() > 1 or index.numel() not in (1, n):
            raise InputError(
                f"target has shape {tuple(index.shape)}; give one class for all, or one for each of the {n} "
                "items; for several maps, give a list to Trace.relevance"
            )
        low, high = (int(index.min()), int(index.max())) if index.numel() else (0, 0)
        if low < -classes or high >= classes:
            raise InputError(f"target {target!r} is out of range: the model has {classes} classes, 0 to {classes - 1}")
        return (index.long() % classes).expand(n)

    # ------------------------------------------------------------------ the backward pass

    def _run(
        self,
        asked: list[tuple[Target, Any]],
        composite: str | Composite | Rule | None,
        account: bool,
        retain: bool,
        places: tuple[Place, ...],
        condition: Mapping[str, Any] | None = None,
        parameters: bool = False,
    ) -> tuple[list[Any], list[Tensor]]:
        """Maps for each target and seed, and relevance at places inside the model (of the first)."""
        if self.bound:
            if composite is None and not (account or condition or parameters):
                try:
                    return self._backward(asked, None, False, retain, ())
                except NoCoefficient as reason:
                    why = str(reason)
                except RuntimeError as error:
                    if "modified by an inplace operation" not in str(error):
                        raise
                    why = str(error)
                self._unbind(why)
                self.on_no_coefficient(why)
            else:
                self._unbind("more was asked for than a map by the composite that was bound")
        return self._backward(asked, composite, account, retain, places, condition, parameters)

    def _unbind(self, why: str) -> None:
        """Go over to the reference form, which serves everything, by running the model once more."""
        if self.bound:
            assert self._given is not None
            self.reason, self._freed = why, False
            self._record(*self._given)

    def _backward(
        self,
        asked: list[tuple[Target, Any]],
        composite: str | Composite | Rule | None,
        account: bool,
        retain: bool,
        places: tuple[Place, ...],
        condition: Mapping[str, Any] | None = None,
        parameters: bool = False,
    ) -> tuple[list[Any], list[Tensor]]:
        """One backward pass, in the form that the trace was recorded in."""
        if self._freed:
            raise InputError("an explanation with retain=False was this trace's last; leave retain out to go on")
        if not self._leaves:
            raise InputError(
                "the model was given no tensor that relevance could be attributed to (a floating-point tensor, or "
                "integers that it embeds)"
            )
        starts = [self._start(target, seed) for target, seed in asked]
        edges = [self._edges(place) for place in places]
        chosen = self.composite if composite is None else composites.get(composite)
        leaves = [leaf for _, leaf in self._leaves]
        out = starts[0][0]
        several = len(starts) > 1
        seeds = torch.stack([s for _, s in starts]) if several else starts[0][1]
        if self.bound:
            seeds = self._as_coefficient(seeds, out)
        vanishing = not self._interceptor.opaque and not any(map(callable, (condition or {}).values()))
        with self._lock, torch.inference_mode(False):
            kept = Account() if account else None
            self.binding.use(chosen, kept)
            self.binding.vanishing = self.bound or (vanishing and not bool(((out == 0) & (seeds != 0)).any()))
            self.binding.maps = len(starts)
            self.binding.retain, self._freed = retain, not retain
            self.binding.parameters = {} if parameters else None
            handles = self._conditioned(condition or {})
            try:
                values = torch.autograd.grad(
                    out,
                    [*leaves, *(edge for group in edges for edge in group)],
                    seeds.clone() if seeds.is_inference() else seeds,
                    retain_graph=retain,
                    allow_unused=True,
                    is_grads_batched=several,
                )
                self._unknown = list(self.binding.unknown_sites.values())
                if kept is not None:
                    self._report = self._make_report(kept, seeds, values[: len(leaves)])
                if parameters:
                    self._collected = self.binding.parameters
            finally:
                for handle in handles:
                    handle.remove()
                self.binding.release()
        maps = []
        for k in range(len(starts)):
            found = []
            for (what, leaf), v in zip(self._leaves, values, strict=False):
                R = torch.zeros_like(leaf) if v is None else (v[k] if several else v)
                found.append(R.sum(-1) if what == "embedding" else R)
            maps.append(found[0] if len(found) == 1 else tuple(found))
        read = iter(values[len(leaves) :])
        at = []
        for place, group in zip(places, edges, strict=True):
            parts = [v for v in itertools.islice(read, len(group)) if v is not None]
            at.append(functools.reduce(torch.add, parts) if parts else place.no_relevance())
        return maps, at

    @staticmethod
    def _as_coefficient(R: Tensor, out: Tensor) -> Tensor:
        """R / output; where an output is 0 it can have no relevance."""
        zero = out.detach() == 0
        if bool((zero & (R != 0)).any()):
            raise NoCoefficient("relevance starts at an output that is 0")
        return torch.where(zero, 0.0, R / out.detach())

    # ------------------------------------------------------------------ the account

    def report(self) -> Report:
        """Where the relevance of the last explanation went; makes a backward pass if no account was kept in it."""
        if self._report is None or self._last is not None:
            target, seed, composite = self._last or (None, "logit", None)
            self._run([(target, seed)], composite, True, True, ())
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
        finite = all(bool(torch.isfinite(v).all()) for v in values if v is not None)
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
        ] + [n.removeprefix("unknown: ") for n in self._interceptor.notes if n.startswith("unknown: ")]

    def warn(self) -> None:
        """Issue :meth:`warnings` as Python warnings."""
        for text in self.warnings():
            warnings.warn(text, stacklevel=3)


def _grouped(values: list[Tensor], found: Mapping[str, Sequence[Place]]) -> dict[str, Any]:
    """What was read at the places of each name: a tensor, or a tuple where the module has several."""
    read = iter(values)
    groups = {name: tuple(itertools.islice(read, len(places))) for name, places in found.items()}
    return {name: group[0] if len(group) == 1 else group for name, group in groups.items()}


#: Seeds by name.
SEEDS = ("logit", "one", "contrastive")

#: How many times larger than the seed a map's total magnitude may be before it is called exploded.
EXPLODED = 1e4
