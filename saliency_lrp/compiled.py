"""An explanation as a graph: forward pass and map captured once, without interception, hooks or Python.

What comes out is an ordinary ``torch.fx.GraphModule`` of ATen calls, from inputs to output and relevance. It runs as it
is, under ``torch.compile``, through ``torch.export``, and as ONNX in other runtimes, all without this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from .composites import Composite
from .errors import InputError, unknown_name
from .graphs.constants import computed_once, fold_constants, keep_constants, with_any_strides, without_parameters
from .graphs.folding import fold_factors, without_copies
from .graphs.inductor import BACKENDS
from .graphs.nodes import looks_at_inputs
from .graphs.onnx import to_onnx
from .propagator import RelevancePropagator
from .rules import Rule
from .values import captured, is_captured

#: several composites, by name, in one graph
Composites = str | Composite | Rule | dict[str, str | Composite | Rule]


class Compiled:
    """Output and relevance of one model as one graph; made by :func:`compile`.

    Attributes
    ----------
    graph : torch.fx.GraphModule
        From the inputs (and the target, where that is an input) to (output, relevance), for the example's batch size.
    composites : dict of Composite
        By name; ``{"relevance": ...}`` where one was given.
    """

    def __init__(
        self,
        model: nn.Module,
        example: tuple[Tensor, ...],
        composites: Composites,
        target: Any,
        seed: Any = "logit",
        dynamic_batch: bool = True,
        backend: str | None = None,
        unknown: str = "warn",
    ) -> None:
        if backend not in BACKENDS:
            raise unknown_name("backend", backend, [name for name in BACKENDS if name is not None])
        named = composites if isinstance(composites, dict) else {"relevance": composites}
        self.single = not isinstance(composites, dict)
        self.propagators = {name: RelevancePropagator(model, composite, unknown) for name, composite in named.items()}
        self.composites = {name: propagator.composite for name, propagator in self.propagators.items()}
        self.model = next(iter(self.propagators.values())).model
        self.seed = seed
        self.dynamic_batch = dynamic_batch
        #: whether classes are an input of the graph
        self.asks_target = isinstance(target, Tensor)
        self.target = target
        self.example = example
        self.backend = backend
        #: how many scores an item has, where they are one row
        self.classes: int | None = None
        self._graphs: dict[int, fx.GraphModule] = {}
        self._runs: dict[int, Callable[..., Any]] = {}
        self.graph = self._graph_for(example, target if self.asks_target else None)

    # ------------------------------------------------------------------ running it

    def __call__(self, *inputs: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Any]:
        """Output and relevance.

        Parameters
        ----------
        *inputs : Tensor
            Shaped like the example, on its device and in its precision; with ``dynamic_batch`` of any batch size.
        target : int or Tensor, shape (N,), optional
            Where classes are an input of the graph: the class of each item.

        Returns
        -------
        output, relevance
            Relevance is a tensor for one input, a tuple for several; of several composites, a dict by their names.

        Raises
        ------
        InputError
            For what the graph was not made for.
        """
        self._check(inputs)
        given = self._given_target(inputs, target)
        run = self._run_for(inputs, given)
        with torch.no_grad():
            output, *maps = run(*inputs, *(() if given is None else (given,)))
        found = dict(zip(self.composites, self._arranged(maps), strict=True))
        return output, next(iter(found.values())) if self.single else found

    def _arranged(self, maps: list[Tensor]) -> list[Any]:
        """Maps by composite: one tensor, or a tuple with one for each input."""
        each = len(maps) // len(self.composites)
        groups = [maps[k : k + each] for k in range(0, len(maps), each)]
        return [group[0] if each == 1 else tuple(group) for group in groups]

    def _check(self, inputs: tuple[Any, ...]) -> None:
        if len(inputs) != len(self.example):
            raise InputError(f"the graph takes {len(self.example)} inputs, got {len(inputs)}")
        for k, (given, made_for) in enumerate(zip(inputs, self.example, strict=True)):
            if not isinstance(given, Tensor):
                raise InputError(f"input {k} must be a torch tensor, got {type(given).__name__}")
            if given.dtype != made_for.dtype or given.device != made_for.device:
                raise InputError(
                    f"input {k} is {given.dtype} on {given.device}; the graph was made for {made_for.dtype} on "
                    f"{made_for.device}: convert it, or call compile with an example like it"
                )
            fixed = 1 if self.dynamic_batch else 0
            if given.shape[fixed:] != made_for.shape[fixed:] or given.dim() != made_for.dim():
                free = ", but for the first axis" if self.dynamic_batch else ""
                raise InputError(
                    f"input {k} has shape {tuple(given.shape)}; the graph was made for {tuple(made_for.shape)}{free}: "
                    "call compile with an example of that shape"
                )
        if len({t.shape[0] for t in inputs}) > 1:
            raise InputError(f"the inputs are of different batch sizes: {[t.shape[0] for t in inputs]}")
        if not inputs[0].shape[0]:
            raise InputError("the batch is empty")

    def _given_target(self, inputs: tuple[Tensor, ...], target: Any) -> Tensor | None:
        if not self.asks_target:
            if target is not None:
                fixed = "the highest score" if self.target is None else f"target {self.target!r}"
                raise InputError(
                    f"this graph explains {fixed}; to choose later, compile with target=torch.tensor([...])"
                )
            return None
        if target is None:
            raise InputError("this graph takes the classes as an input: give target=, one for each item")
        n = inputs[0].shape[0]
        classes = torch.as_tensor(target, device=inputs[0].device)
        if classes.is_floating_point() or classes.dtype == torch.bool or classes.numel() not in (1, n):
            raise InputError(f"target should be one class, or one for each of the {n} items, got {target!r:.80}")
        if self.classes is not None and bool(((classes < -self.classes) | (classes >= self.classes)).any()):
            raise InputError(f"target {target!r:.80} is out of range: the model has {self.classes} classes")
        return classes.reshape(-1).expand(n).contiguous().long()

    @property
    def sizes(self) -> list[int]:
        """Batch sizes that there are graphs for, the smallest first."""
        return sorted(self._graphs)

    # ------------------------------------------------------------------ making it

    def _graph_for(self, inputs: tuple[Tensor, ...], target: Tensor | None) -> fx.GraphModule:
        """The graph for a batch size; captured when it first comes."""
        n = inputs[0].shape[0]
        if n not in self._graphs:
            self._graphs[n] = self._capture(inputs, target)
        return self._graphs[n]

    def _run_for(self, inputs: tuple[Tensor, ...], target: Tensor | None) -> Callable[..., Any]:
        """What runs the graph for a batch size, by the backend."""
        n, graph = inputs[0].shape[0], self._graph_for(inputs, target)
        if n not in self._runs:
            given = () if target is None else (target,)
            self._runs[n] = BACKENDS[self.backend](graph, (*inputs, *given))
        return self._runs[n]

    def _capture(self, inputs: tuple[Tensor, ...], target: Tensor | None) -> fx.GraphModule:
        arguments = [t.detach().clone() for t in inputs]
        if target is not None:
            arguments.append(target.detach().clone().reshape(-1).expand(inputs[0].shape[0]).contiguous())
        self.explain(*arguments)  # once as it is: what cannot be explained says so in its own words
        with captured():
            graph = make_fx(self.explain, _error_on_data_dependent_ops=False)(*arguments)
        if looks_at_inputs(graph):
            raise InputError(
                f"{type(self.model).__name__} cannot be captured as a graph: what it computes depends on the values of "
                "its input by Python's own means (an if, a loop, .item()), which a graph cannot follow"
            )
        with torch.no_grad():
            graph = with_any_strides(without_parameters(graph))
            graph = make_fx(torch.func.functionalize(graph))(*arguments)  # nothing writes into anything
            graph = computed_once(without_copies(fold_constants(with_any_strides(without_parameters(graph)))))
            graph = computed_once(fold_factors(graph))
            keep_constants(graph, self.model)
            return graph

    def explain(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Output and maps by the engine; what is captured."""
        inputs = arguments[: len(self.example)]
        target = arguments[-1] if self.asks_target else self.target
        output, maps = None, []
        for propagator in self.propagators.values():
            trace = propagator.bound_trace(*inputs)
            found = trace.relevance(target, self.seed)
            if output is None:
                output = trace.scores().values.detach()
                self.classes = output.shape[-1] if output.dim() > 1 else None
            if not is_captured():
                trace.warn()
            maps += [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        assert output is not None
        return (output, *maps)

    # ------------------------------------------------------------------ taking it elsewhere

    def exported(self) -> torch.export.ExportedProgram:
        """The graph as ``torch.export`` keeps it; ``torch.export.save`` writes it."""
        return torch.export.export(self.graph, self.arguments(), strict=False)

    def arguments(self) -> tuple[Tensor, ...]:
        """Arguments like those that the graph was captured with."""
        n = self.example[0].shape[0]
        target = torch.as_tensor(self.target).reshape(-1).expand(n).contiguous() if self.asks_target else None
        return (*self.example, *(() if target is None else (target,)))

    def save_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the graph for ONNX runtimes.

        Raises
        ------
        InputError
            Where ``onnx`` is not installed, and for an operator that has no form in ONNX.
        """
        to_onnx(self.graph, self.arguments(), path, [*self._input_names()], self._output_names())

    def _input_names(self) -> list[str]:
        names = ["input"] if len(self.example) == 1 else [f"input_{k}" for k in range(len(self.example))]
        return [*names, "target"] if self.asks_target else names

    def _output_names(self) -> list[str]:
        inputs = len(self.example)
        maps = [name if inputs == 1 else f"{name}_{k}" for name in self.composites for k in range(inputs)]
        return ["output", *maps]

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in self.example)
        batch = "any batch size" if self.dynamic_batch else "this batch size"
        what = "the highest score" if self.target is None else f"target {self.target!r}"
        if self.asks_target:
            what = "classes given as an input"
        names = ", ".join(composite.name for composite in self.composites.values())
        size = f"{len(self.graph.graph.nodes)} nodes"
        return f"<Compiled {type(self.model).__name__}: {names}; {what}; made for {shapes}, {batch}; {size}>"


def compile(
    model: nn.Module,
    *example: Tensor,
    composite: Composites = "auto",
    target: Any = None,
    seed: Any = "logit",
    dynamic_batch: bool = True,
    backend: str | None = None,
    unknown: str = "warn",
) -> Compiled:
    """Capture forward pass and relevance of a model as one graph of ATen calls.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was. The graph holds its weights as they are now.
    *example : Tensor, shape (N, ...)
        Inputs like those to come; their shapes are those of the graph.
    composite : str, Composite, Rule, or dict of them
        Which site gets which rule. A dict gives a map for each, from one graph.
    target : None, int, callable or Tensor, shape (N,)
        What is explained: the highest score of each item, one class, a function of the output, or, for a tensor of
        classes, whatever is given with each call.
    seed : str or Tensor
        As in ``Trace.relevance``. In a graph, an output that is exactly 0 hands on nothing, whatever starts there: what
        the engine does by another form for such values, a graph cannot choose.
    dynamic_batch : bool
        Take batches of any size: a graph is captured for each size when it first comes. Else another size is refused.
    backend : {None, "inductor"}
        What runs the graph: None as it is, ``"inductor"`` under ``torch.compile``, which is faster and takes from some
        seconds to minutes when a batch size first comes. On a CPU its weights are laid out for it in advance.
    unknown : {"warn", "error"}
        What to do about functions that are not understood.

    Returns
    -------
    Compiled
        Called like the model: (output, relevance).

    Raises
    ------
    InputError
        For a model whose computation depends on values by Python's own means.

    Examples
    --------
    >>> explain = compile(model, x, composite="epsilon_plus", target=torch.tensor([0]))
    >>> output, relevance = explain(x, target=3)
    >>> fast = compile(model, x, composite="epsilon_plus", backend="inductor")
    """
    if not example or not all(isinstance(t, Tensor) for t in example):
        raise InputError("compile needs an example of the model's input: compile(model, x)")
    return Compiled(model, example, composite, target, seed, dynamic_batch, backend, unknown)
