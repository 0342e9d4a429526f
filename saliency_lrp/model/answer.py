"""What a model answered for one input: scores, probabilities and names of classes, told alike at every door."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError

ClassNames = Sequence[str] | Mapping[int, str]

#: how far a sum of probabilities may be from 1
ROUNDING = 1e-3


def class_names(model: nn.Module) -> ClassNames | None:
    """Names that a model carries: ``class_names``, ``classes``, or a configuration's ``id2label``."""
    for owner, attribute in (
        (model, "class_names"),
        (model, "classes"),
        (getattr(model, "config", None), "id2label"),
    ):
        names = getattr(owner, attribute, None)
        if isinstance(names, (list, tuple, dict)) and names:
            return names
    return None


def class_name(names: ClassNames | None, index: int) -> str:
    """A class by name, or ``"class 7"`` where it has none."""
    try:
        return str(names[index])  # type: ignore[index]
    except (TypeError, LookupError):
        return f"class {index}"


def are_probabilities(scores: Tensor) -> bool:
    """Whether (C,) scores are probabilities already: the model ends in a softmax."""
    return len(scores) > 1 and bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < ROUNDING


def probabilities(scores: Tensor) -> Tensor | None:
    """Probability of each class.

    Parameters
    ----------
    scores : Tensor, shape (C,)
        What the model gave for one item: logits, or probabilities.

    Returns
    -------
    Tensor of shape (C,), float64, or None
        None for a model with one output, whose number is no share of anything.
    """
    if len(scores) < 2:
        return None
    scores = scores.detach().double()
    return scores if are_probabilities(scores) else torch.softmax(scores, 0)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model said of one item, and which class is meant.

    Attributes
    ----------
    scores : Tensor, shape (C,), float64, on the CPU
        The model's output.
    target : int
        The class that is explained.
    names : sequence or mapping of str, or None
        Names of classes.
    """

    scores: Tensor
    target: int
    names: ClassNames | None = None

    @classmethod
    def of(cls, scores: Tensor, target: int, names: ClassNames | None) -> Answer:
        """From one item's scores, (C,), on any device and of any precision."""
        if scores.dim() != 1:
            raise InputError(f"an answer is one item's scores, of shape (C,), not {tuple(scores.shape)}")
        return cls(scores.detach().double().cpu(), int(target), names)

    @functools.cached_property
    def probabilities(self) -> Tensor | None:
        """(C,) probabilities; None for a model with one output."""
        return probabilities(self.scores)

    @property
    def best(self) -> int:
        """The class with the highest score, the first on ties."""
        return int(self.scores.argmax())

    def name(self, index: int | None = None) -> str:
        """Name of a class, by default of the one that is explained."""
        return class_name(self.names, self.target if index is None else index)

    def score(self, index: int | None = None) -> float:
        """The model's own number for a class."""
        return float(self.scores[self.target if index is None else index])

    def probability(self, index: int | None = None) -> float | None:
        """Probability of a class, by default of the one that is explained; None for a model with one output."""
        shares = self.probabilities
        return None if shares is None else float(shares[self.target if index is None else index])

    @property
    def shares(self) -> Tensor:
        """(C,) what is shown beside classes: probabilities, or the score of a model with one output."""
        return self.scores if self.probabilities is None else self.probabilities

    def share(self, index: int | None = None) -> float:
        """What is shown beside a class."""
        return float(self.shares[self.target if index is None else index])

    @property
    def runner_up(self) -> int | None:
        """The best of the other classes; None where there is no other."""
        if len(self.scores) < 2:
            return None
        others = self.scores.clone()
        others[self.target] = -torch.inf
        return int(others.argmax())
