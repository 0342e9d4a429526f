"""LRP as a TensorWatch-style explainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..composites import Composite
from ..errors import InputError
from ..likeness import class_likeness
from ..prepared import PreparedMaps
from ..propagator import RelevancePropagator, Trace
from ..report import Report
from ..rules import Rule
from .several import arguments


class LrpExplainer:
    """Layer-wise relevance propagation with TensorWatch's explainer interface.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it is left exactly as it was.
    composite : str, Composite or Rule
        Which site gets which rule; see ``list_composites()``.
    seed : {"logit", "one", "contrastive", "softmax"}, tensor or callable
        What starts at the output; see ``Trace.relevance``.
    unknown : {"warn", "error"}
        What to do about functions that are not understood.
    account : bool
        Keep the account of relevance with each explanation (``.report``), and see whether the map of an unlike class
        is another: about two more backward passes.
    at, index
        Neurons of a module in place of the model's output; see ``Trace.relevance``.
    constants : sequence of str or int
        Inputs that are not explained, by name or by position.
    compiled : bool or str
        Capture the map as a graph when a batch first comes, and run that from then on: the same maps, with less of
        Python in between (see :func:`saliency_lrp.compile`); ``"inductor"`` runs it under ``torch.compile``. Smaller
        batches are padded. Not together with ``account``, ``at`` and ``constants``, which a graph has no place for.

    Attributes
    ----------
    model : torch.nn.Module
        The model that is explained; inside any wrapper.
    report : Report or None
        The account of the last explanation.
    output
        The model's own output then.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite | Rule = "auto",
        seed: Any = "logit",
        unknown: str = "warn",
        account: bool = False,
        at: str | None = None,
        index: Any = None,
        constants: Sequence[str | int] = (),
        compiled: bool | str = False,
    ) -> None:
        self.propagator = RelevancePropagator(model, composite, unknown, constants)
        self.model = self.propagator.model
        self.seed = seed
        self.account = account
        self.at = at
        self.index = index
        self.report: Report | None = None
        self.output: Any = None
        self.prepared: PreparedMaps | None = None
        if compiled:
            given = {"account": account, "at": at is not None, "index": index is not None, "constants": bool(constants)}
            refuse_with_compiled([name for name, is_given in given.items() if is_given])
            backend = None if compiled is True else compiled
            self.prepared = PreparedMaps(self.model, self.propagator.composite, seed, unknown, backend)

    def explain(
        self, inp: Any, ind: Any = None, raw_inp: Any = None, constants: Sequence[str | int] | None = None
    ) -> Any:
        """Relevance of each input value.

        Parameters
        ----------
        inp : Tensor, tuple or dict of Tensor, shape (N, ...)
            A batch on the model's device; several inputs as a tuple, in the order of the model's arguments, or as a
            dict by their names.
        ind : None, int, tensor, sequence or callable
            What is explained: the arg-max, one class, or one class per item.
        raw_inp
            Unused; part of TensorWatch's interface.
        constants : sequence of str or int, optional
            In place of the explainer's own.

        Returns
        -------
        Tensor, tuple or dict of Tensor
            Signed relevance; shape, dtype and device of ``inp``. Of several inputs, those that receive relevance: in
            their order, or by their names; a tensor where that is one.

        Raises
        ------
        InputError
            If the input or output has NaN or infinite values, or ``ind`` is out of range.
        """
        args, kwargs = arguments(inp)
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if tensors and all(not t.is_nested and t.dim() > 0 and t.shape[0] == 0 for t in tensors):
            return tree_map_only(Tensor, torch.zeros_like, inp)
        if self.prepared is not None:
            refuse_with_compiled((["constants"] if constants else []) + (["inputs by name"] if kwargs else []))
            self.output, R = self.prepared(args, ind)
            return R
        propagator = self.propagator
        if constants is not None:
            propagator = RelevancePropagator(self.model, propagator.composite, propagator.unknown, constants)
        # an account, or a neuron inside the model, needs the reference form
        in_full = self.account or self.at is not None
        record = propagator.trace if in_full else propagator.bound_trace
        trace: Trace = record(*args, **kwargs)
        # a list here is one class per item, as everywhere in TensorWatch; to a trace it would mean several maps
        ind = tuple(ind) if isinstance(ind, list) else ind
        ind = None if self.at is not None else ind
        R = trace.relevance(ind, self.seed, account=self.account, retain=self.account, at=self.at, index=self.index)
        self.output = trace.output
        if self.account:
            self.report = trace.report()
            self.report.likeness = None if self.at is not None else class_likeness(trace, R, ind, self.seed)
        trace.warn()
        return R


def refuse_with_compiled(given: Sequence[str]) -> None:
    """Say what a captured graph has no place for."""
    if given:
        raise InputError(
            f"compiled=True makes maps of positional inputs by one captured graph, which has no place for "
            f"{' and '.join(given)}: leave that out, or compiled="
        )
