"""The call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..explainers.plan import Plan, plan_methods
from ..model.on_device import on_device
from ..question import Question, ask
from .findings import ask_all
from .outcome import Check
from .subject import Subject


def check(
    model: nn.Module,
    raw_input: Any,
    input: Tensor | None = None,
    label: Any = None,
    device: torch.device | str | None = None,
    method: str = "lrp",
    layer_path: Any = None,
    *,
    relevance: Tensor | None = None,
    random_seed: int = 0,
    **options: Any,
) -> Check:
    """Measure whether a map of one picture can be trusted.

    It takes under 60 forward passes: about 25 for LRP. Methods that need more than a dozen passes a map (occlusion,
    LIME) are only asked what costs no further map of theirs.

    Parameters
    ----------
    model, raw_input, input, label, device, method, layer_path, **options
        As for :func:`saliency_lrp.get_saliency`; one picture. The model is left as it was.
    relevance : Tensor, optional
        The map, shaped like the model's input; made by the method where it is not given.
    random_seed : int
        For the places that a piece is taken away from, and for the new weights of the head.

    Returns
    -------
    Check
        ``.verdict``, ``.table()``, ``.passed``; shows itself in a notebook.

    Raises
    ------
    InputError
        For a model, an input or a map that cannot be checked.
    """
    plan = plan_methods([method], layer_path, options)[0]
    with ask(model, raw_input, input, label, device, options) as question:
        return examine(question, plan, relevance, random_seed)


class Origin(NamedTuple):
    """What a result was made with: so it needs to know nothing of checks to be checked."""

    question: Question
    plan: Plan

    def check(self, relevance: Tensor, random_seed: int = 0) -> Check:
        """Check a map with the model that it was made with, as :meth:`ImageSaliencyResult.check`."""
        with on_device(self.question.model, self.question.input.device):
            return examine(self.question, self.plan, relevance, random_seed)


def examine(question: Question, plan: Plan, relevance: Tensor | None = None, random_seed: int = 0) -> Check:
    """Check the map that answers a question by a method, as :func:`check`."""
    x = question.input
    if x.shape[0] != 1:
        raise InputError(f"one picture at a time: the input is a batch of {x.shape[0]}.")
    question.settle()
    empty = torch.zeros_like(x, device="cpu") if relevance is None else relevance.detach().cpu()
    if empty.shape != x.shape:
        raise InputError(f"the map has shape {tuple(empty.shape)}, the model's input {tuple(x.shape)}.")
    subject = Subject(
        question.model, x.detach(), question.label, plan, empty, question.picture, question.geometry, question.answer
    )
    if relevance is None:
        subject.relevance = subject.explain(at_any_price=True)
    return Check(*ask_all(subject, random_seed), subject)
