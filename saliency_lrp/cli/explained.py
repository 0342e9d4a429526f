"""A picture, what the model says about it, and its maps, as the command hands them on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError

if TYPE_CHECKING:
    from ..model.answer import Answer
    from ..results import SaliencyResults


@dataclass(frozen=True)
class Subject:
    """An image to explain; `truth` and `mask` (H, W) are known for demo images only."""

    name: str
    image: Any
    truth: int | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Explained:
    """A subject, what the model says about it, the maps, and their picture."""

    subject: Subject
    results: SaliencyResults
    answer: Answer
    picture: Path


def explain(
    model: nn.Module,
    subject: Subject,
    methods: list[str],
    target: int | None,
    device: torch.device | None,
    out: Path,
) -> Explained:
    """Make all maps of one image and write their picture."""
    from .. import get_image_saliency_plot, get_image_saliency_results
    from ..explainers import registry

    # Where relevance went is kept on request only, by the methods that can say it.
    account: dict[str, Any] = (
        {"account": True} if any("account" in registry.option_names(name) for name in methods) else {}
    )
    results = get_image_saliency_results(model, subject.image, label=target, device=device, methods=methods, **account)
    if all(result.error is not None for result in results):
        raise InputError("; ".join(f"{result.method} failed: {result.error}" for result in results))
    figure = get_image_saliency_plot(results, cols=min(len(methods), 3))
    picture = out / f"{subject.name.rpartition('.')[0] or subject.name}.png".replace(" ", "-").replace("/", "-")
    figure.savefig(picture, dpi=150, bbox_inches="tight")
    return Explained(subject, results, results[0].answer, picture)


def share_inside(relevance: np.ndarray, mask: np.ndarray) -> float:
    """The share of a map's positive relevance, (H, W), that lies inside the mask; NaN if it has none."""
    positive = relevance.clip(min=0)
    return float(positive[mask].sum() / positive.sum()) if positive.any() else float("nan")
