"""RelevancePropagator and Trace: one forward pass, recorded; then as many explanations of it as asked for.

Module hooks (``places``) tell *where* a call comes from, a ``TorchFunctionMode`` (``interception``) tells *what* is
computed. Nothing is put on the user's model. Which rule a site follows is asked only in the backward pass, so one
forward serves any number of rules, targets and layers.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import composites
from .composites import Composite
from .engine import backward, starting
from .engine.backward import Explanation
from .engine.forms import in_either_form, in_reference_form
from .engine.inputs import Arguments, stacked, takes
from .engine.places import Place
from .engine.recording import Recording
from .engine.reporting import warnings_of
from .engine.start import Choice, Scores, find_scores
from .engine.starting import Start
from .errors import InputError, unknown_name
from .model.unwrapped import unwrapped
from .report import Report
from .rules import Rule
from .sites.site import Site


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


Target = Any


class Trace:
    """One recorded forward pass; explanations of it are backward passes only.

    Attributes
    ----------
    output
        The model's own output, bit for bit, without a graph.
    sites : list of Site
        Every call that relevance can pass through, in execution order.
    calls : dict of list
        Path of a module -> its calls, and where relevance can be read at each.
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
        self.recording = Recording(model, Arguments(model, args, kwargs, constants), composite, unknown)
        self.sites, self.calls, self.binding = self.recording.sites, self.recording.calls, self.recording.binding
        self._lock = threading.RLock()
        #: the composite of the last explanation, and the functions that it met and that are not in the table
        self._used = composite
        self._unknown: list[Site] = []
        self._last: tuple[Start, Any] | None = None
        self._report: Report | None = None
        #: who wants to know why relevance has no coefficient here
        self.when_unbound: Callable[[str], None] = lambda reason: None
        self.asked_last: tuple[Any, Any] = (None, "logit")
        if not bound or not self.recording.record_bound(composite):
            self.recording.record()

    @property
    def output(self) -> Any:
        return self.recording.output

    @property
    def bound(self) -> bool:
        """Whether the composite was bound in the forward pass, so that autograd carries coefficients."""
        return self.recording.bound

    @property
    def reason(self) -> str:
        """Why relevance has no coefficient here, where that was tried."""
        return self.recording.reason

    def scores(self) -> Scores:
        """The part of the output that classes are read from."""
        return find_scores(self.recording.raw)

    def choose(self, target: Target) -> Choice:
        """Which number of each item's scores a target means."""
        return starting.choose(self.recording, target)

    def is_folded(self, place: Place) -> bool:
        """Whether a batch norm was folded into the layer that made this: both have the batch norm's relevance."""
        return self.recording.is_folded(place)

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
            begun = starting.inside(self.recording, at, index, target, seed)
        elif index is not None:
            raise InputError(f"index={index!r} says which neurons of a module; name the module by at=")
        elif isinstance(target, list):
            return self._stacked(target, seed, composite, account, condition)
        else:
            begun = self._start(target, seed)
        (maps,) = self._explain([begun], composite, account=account, retain=retain, condition=condition).maps
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
        return stacked(maps)

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
        if batched and all(begun.at is starts[0].at for begun in starts):
            try:
                return self._explain(starts, composite).maps
            except RuntimeError as error:
                if "atching rule" not in str(error) and "vmap" not in str(error):
                    raise  # else some view or routing function of the model has no batched gradient
        return [self._explain([begun], composite).maps[0] for begun in starts]

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
        found = {n: self.recording.places(n, which, call) for n in names}
        values = self._at(found, target, seed, composite, condition=condition)[1]
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
        found = {name: self.recording.places(name) for name in layers}
        return self._at(found, target, seed, composite, retain=retain)

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
        explanation = self._explain([self._start(target, seed)], composite, parameters=True)
        return backward.by_parameter(self.recording, explanation.parameters)

    @in_reference_form
    def report(self) -> Report:
        """Where the relevance of the last explanation went; makes a backward pass if no account was kept in it."""
        if self._report is None or self._last is not None:
            begun, composite = self._last or (self._start(None, "logit"), None)
            self._explain([begun], composite, account=True)
            self._last = None
        assert self._report is not None
        return self._report

    def warnings(self) -> list[str]:
        """What the last explanation met that is not understood, and rows of its composite without effect."""
        return warnings_of(self.recording, self._unknown, self._used)

    def warn(self) -> None:
        """Issue :meth:`warnings` as Python warnings."""
        for text in self.warnings():
            warnings.warn(text, stacklevel=3)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{a.name} {tuple(a.value.shape)}" for a in self.recording.arguments.tensors)
        form = "bound" if self.bound else f"{len(self.sites)} sites"
        return (
            f"<Trace of {type(self.recording.model).__name__} on {shapes}: {form}, composite {self.composite.name!r}>"
        )

    # ------------------------------------------------------------------ one backward pass

    def _start(self, target: Target, seed: Any) -> Start:
        """The tensor that relevance starts at, and that relevance."""
        return starting.at_the_output(self.recording, target, seed)

    def _explain(self, starts: list[Start], composite: str | Composite | Rule | None, **how: Any) -> Explanation:
        """One backward pass, by the propagator's composite or another."""
        chosen = self.composite if composite is None else composites.get(composite)
        with self._lock:
            explanation = backward.explain(self.recording, starts, chosen, **how)
            self._used, self._unknown = chosen, explanation.unknown
            self._report = explanation.report or self._report
        return explanation

    def _at(
        self, found: Mapping[str, Sequence[Place]], target: Target, seed: Any, composite: Any, **how: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Relevance of the inputs, and at places by the name of their module: a tuple where it has several."""
        places = [place for group in found.values() for place in group]
        begun = self._start(target, seed)
        explanation = self._explain([begun], composite, places=places, **how)
        self._last = (begun, composite)
        read = iter(explanation.at)
        groups = {name: tuple(itertools.islice(read, len(group))) for name, group in found.items()}
        return explanation.maps[0], {name: g[0] if len(g) == 1 else g for name, g in groups.items()}

    def unbind(self, why: str) -> None:
        """Go over to the reference form, which serves everything, by running the model once more."""
        if self.bound:
            self.recording.reason = why
            self.recording.record()
            self._last = (self._start(*self.asked_last), None)
