"""What is checked: one map, with the model, the input and the method it came from."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..explainers import registry
from ..explainers.base import Question
from ..explainers.plan import Plan
from ..explainers.progress import watching
from ..model.answer import Answer, probabilities
from ..model.as_found import as_found

#: Passes that a method may need for one more map; dearer ones (occlusion, LIME) are not made again.
DEAREST = 12
#: Inputs that the model is given at once.
BATCH = 8


class TooDear(Exception):
    """A map would need more passes than a check is worth."""


@dataclass
class Subject:
    """One map and where it came from.

    Attributes
    ----------
    model : torch.nn.Module
        Out of its wrappers; on the device it is checked on.
    input : Tensor, shape (1, ...)
    label : Tensor or callable
        The class, (1,), or a function of the output.
    plan : Plan
        The method and its options.
    relevance : Tensor, shape (1, ...), on the CPU
    picture, geometry
        What maps are drawn on, and where the input lies on it.
    answer : Answer or None
        What the model says of the input.
    """

    model: nn.Module
    input: Tensor
    label: Any
    plan: Plan
    relevance: Tensor
    picture: Any = None
    geometry: Any = None
    answer: Answer | None = None

    @property
    def spatial(self) -> int:
        """How many axes of the input lie in space (or time): those after items and channels."""
        return max(self.input.dim() - 2, 0)

    @property
    def signed(self) -> bool:
        """Whether the method's maps have a sign."""
        return registry.is_signed(self.plan.method)

    @property
    def repeatable(self) -> bool:
        """Whether the method gives the same map each time."""
        return not getattr(registry.find(self.plan.method)[0], "random", False)

    def explain(
        self, model: nn.Module | None = None, label: Any = None, plan: Plan | None = None, at_any_price: bool = False
    ) -> Tensor:
        """A map, on the CPU: of the model or another one, the class or another one, by the method or another one.

        Raises
        ------
        TooDear
            If it takes more than ``DEAREST`` passes, unless it is wanted at any price.
        """
        model, plan = model or self.model, plan or self.plan
        explainer = registry.get(plan.method, model, **{**plan.options, **account_off(plan)})
        with nullcontext() if at_any_price else watching(stop_where_dear), as_found(model):
            return explainer.explain(self.input, self.label if label is None else label, self.picture).detach().cpu()

    @property
    def has_classes(self) -> bool:
        """Whether the model says probabilities, and not one number of its own."""
        return self.answer is not None and self.answer.probabilities is not None

    def scores(self, inputs: Tensor) -> Tensor:
        """For each of several inputs the log-probability of the class, or the explained number; (N,), on the CPU."""
        found = []
        with as_found(self.model), torch.no_grad():
            for part in inputs.split(BATCH):
                out = Question(self.model, self.label).forward(part).double().cpu()
                found.append(self.log_probability(out) if self.has_classes else out.flatten())
        return torch.cat(found)

    def log_probability(self, scores: Tensor) -> Tensor:
        """Of the class, from (N, C) scores."""
        assert self.answer is not None, "asked only of a model that has classes"
        rows: list[Any] = [probabilities(row) for row in scores]
        return torch.stack([p[self.answer.target].clamp_min(1e-30).log() for p in rows])

    def flat(self, relevance: Tensor, pieces: int) -> Tensor:
        """A map without channels, smoothed by windows of a side's ``pieces``-th where it lies in space."""
        summed = relevance.double().sum(1) if self.spatial else relevance.double()
        return smooth(summed if self.signed else summed.abs(), self.spatial, pieces)


def account_off(plan: Plan) -> dict[str, bool]:
    """Options that spare what a check does not read."""
    return {"account": False} if "account" in registry.option_names(plan.method) else {}


def stop_where_dear(done: int, total: int) -> None:
    """Called before the passes of a method that needs many."""
    if total > DEAREST:
        raise TooDear(total)


def smooth(values: Tensor, spatial: int, pieces: int) -> Tensor:
    """Means over a window of a small part of each side: what a reader sees of a map."""
    if not spatial:
        return values
    sides = [max(1, side // pieces) | 1 for side in values.shape[1:]]
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1] if spatial <= 3 else None
    if pool is None:
        return values
    return pool(values[:, None], sides, 1, [side // 2 for side in sides])[:, 0]


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two maps as wholes; 0 where one is empty."""
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), 0, eps=1e-300))
