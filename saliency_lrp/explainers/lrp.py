"""LRP as a TensorWatch-style explainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..composites import Composite
from ..errors import InputError
from ..likeness import class_likeness
from ..propagator import RelevancePropagator, Trace
from ..report import Report
from ..rules import Rule


class LrpExplainer:
    """Layer-wise relevance propagation with TensorWatch's explainer interface.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it is left exactly as it was.
    composite : str, Composite or Rule
        Which site gets which rule; see ``list_composites()``.
    seed : {"logit", "one", "contrastive"}, tensor or callable
        What starts at the output; see ``Trace.relevance``.
    unknown : {"warn", "error"}
        What to do about functions that are not understood.
    account : bool
        Keep the account of relevance with each explanation (``.report``), and see whether the map of an unlike class
        is another: about two more backward passes.

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
    ) -> None:
        self.propagator = RelevancePropagator(model, composite, unknown)
        self.model = self.propagator.model
        self.seed = seed
        self.account = account
        self.report: Report | None = None
        self.output: Any = None

    def explain(self, inp: Tensor, ind: Any = None, raw_inp: Any = None) -> Tensor:
        """Relevance of each input value.

        Parameters
        ----------
        inp : Tensor, shape (N, ...)
            A batch on the model's device.
        ind : None, int, tensor, sequence or callable
            What is explained: the arg-max, one class, or one class per item.
        raw_inp
            Unused; part of TensorWatch's interface.

        Returns
        -------
        Tensor
            Signed relevance; shape, dtype and device of ``inp``.

        Raises
        ------
        InputError
            If the input or output has NaN or infinite values, or ``ind`` is out of range.
        """
        if not isinstance(inp, Tensor):
            raise InputError(f"inp must be a torch tensor, got {type(inp).__name__}")
        if inp.dim() > 0 and inp.shape[0] == 0:
            return torch.zeros_like(inp)
        record = self.propagator.trace if self.account else self.propagator.bound_trace
        trace: Trace = record(inp)
        # a list here is one class per item, as everywhere in TensorWatch; to a trace it would mean several maps
        ind = tuple(ind) if isinstance(ind, list) else ind
        R = trace.relevance(ind, self.seed, account=self.account, retain=self.account)
        self.output = trace.output
        if self.account:
            self.report = trace.report()
            self.report.likeness = class_likeness(trace, R, ind, self.seed)
        trace.warn()
        assert isinstance(R, Tensor)
        return R
