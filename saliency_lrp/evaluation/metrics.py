"""What a map is scored by: the table of metrics, most of them Quantus'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..registry import Registry
from .methods import ExplainFunction, channel_sum
from .perturbation import morf_lerf
from .question import BATCH

FLIPPING_STEPS = 16  # at least
NOISE = 0.1  # of stability, in standard deviations of the inputs
NOISE_SAMPLES = 4


@dataclass
class Task:
    """What a metric is given: the question, and one method's answer.

    Attributes
    ----------
    inputs, targets : Tensor
        (N, C, H, W) and (N,).
    masks : ndarray or None
        (N, H, W) bool, where the object is.
    maps : ndarray
        (N, 1, H, W) float64, signed, summed over channels.
    explain : callable or None
        Makes maps of other inputs or another model; None where only maps were given.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    masks: np.ndarray | None
    maps: np.ndarray
    explain: ExplainFunction | None
    seed: int = 0

    def quantus(self, metric: Any, maps: np.ndarray | None = None, **more: Any) -> np.ndarray:
        """Scores of a Quantus metric, one per item (or one curve per item)."""
        scores = metric(
            model=self.model,
            x_batch=self.inputs.cpu().numpy(),
            y_batch=self.targets.cpu().numpy(),
            a_batch=self.maps if maps is None else maps,
            s_batch=None if self.masks is None else self.masks[:, None],
            device=str(self.inputs.device),
            batch_size=BATCH,
            **more,
        )
        return np.asarray(scores, dtype=np.float64)

    def explain_func(self, model: nn.Module, inputs: Any, targets: Any, **ignored: Any) -> np.ndarray:
        """The method as Quantus calls it."""
        assert self.explain is not None
        x = torch.as_tensor(inputs, dtype=self.inputs.dtype, device=self.inputs.device)
        y = torch.as_tensor(targets, device=self.inputs.device)
        return channel_sum(self.explain(model, x, y))


@dataclass(frozen=True)
class Metric:
    """One way to score maps.

    Attributes
    ----------
    higher_is_better : bool
    needs : {"maps", "masks", "explainer"}
        What must be given besides the maps.
    compute : callable
        From a :class:`Task` to one score per item, (N,).
    """

    name: str
    title: str
    higher_is_better: bool
    needs: str
    compute: Callable[[Task], np.ndarray] = field(repr=False)
    paper: str = ""

    @property
    def arrow(self) -> str:
        """Which direction is better."""
        return "↑" if self.higher_is_better else "↓"


METRICS: Registry[Metric] = Registry("metric")


def list_metrics() -> list[str]:
    """Names of all metrics, sorted."""
    return METRICS.names()


def _metric(name: str, title: str, higher_is_better: bool, needs: str, paper: str) -> Callable:
    """Decorator: enter a function from a task to scores into the table."""

    def add(compute: Callable[[Task], np.ndarray]) -> Callable[[Task], np.ndarray]:
        METRICS.add(name, Metric(name, title, higher_is_better, needs, compute, paper))
        return compute

    return add


def load_quantus() -> Any:
    """Quantus, or an error that says how to get it."""
    try:
        import quantus
    except ImportError as error:
        raise ImportError(
            f"this metric is Quantus', which could not be imported ({error}): pip install 'saliency-lrp[evaluation]'"
        ) from error
    return quantus


#: options of every Quantus metric: maps are used as they are given, quietly
AS_GIVEN: dict[str, Any] = {
    "abs": False,
    "normalise": False,
    "disable_warnings": True,
    "display_progressbar": False,
}


@_metric("relevance_mass", "relevance mass", True, "masks", "Arras et al. 2022")
def relevance_mass(task: Task) -> np.ndarray:
    """Share of positive relevance that lies in the mask; 0 for a map without positive relevance."""
    positive = np.clip(task.maps, 0, None)
    found = positive.any(axis=(1, 2, 3))
    if not found.any():
        return np.zeros(len(found))  # Quantus refuses a batch of empty maps
    with np.errstate(invalid="ignore"):  # 0 / 0 of single empty maps
        scores = task.quantus(load_quantus().RelevanceMassAccuracy(**AS_GIVEN), positive)
    return np.where(found, scores, 0.0)


@_metric("relevance_rank", "relevance rank", True, "masks", "Arras et al. 2022")
def relevance_rank(task: Task) -> np.ndarray:
    """Share of the k most relevant pixels that lie in the mask, which has k pixels."""
    return task.quantus(load_quantus().RelevanceRankAccuracy(**AS_GIVEN))


@_metric("pointing_game", "pointing game", True, "masks", "Zhang et al. 2018")
def pointing_game(task: Task) -> np.ndarray:
    """1 where the most relevant pixel lies in the mask, else 0."""
    return task.quantus(load_quantus().PointingGame(**AS_GIVEN))


@_metric("morf_lerf", "MoRF-LeRF area", True, "maps", "Samek et al. 2017; Blücher et al. 2024")
def morf_lerf_area(task: Task) -> np.ndarray:
    """See :func:`morf_lerf`."""
    return morf_lerf(task.model, task.inputs, task.targets, task.maps)


@_metric("pixel_flipping", "pixel flipping", False, "maps", "Bach et al. 2015")
def pixel_flipping(task: Task) -> np.ndarray:
    """Mean probability of the class while its most relevant pixels are replaced by the image's mean."""
    pixels, features = task.inputs[0, 0].numel(), task.inputs[0].numel()
    # Quantus wants equal steps that divide the pixels of one channel
    step = next(size for size in range(max(1, features // FLIPPING_STEPS), 0, -1) if pixels % size == 0)
    metric = load_quantus().PixelFlipping(features_in_step=step, perturb_baseline="mean", **AS_GIVEN)
    return task.quantus(metric, softmax=True).mean(axis=1)


@_metric("randomisation", "parameter randomisation", False, "explainer", "Adebayo et al. 2018")
def randomisation(task: Task) -> np.ndarray:
    """|Spearman correlation| of maps of the model and of the same model with all parameters drawn anew."""
    metric = load_quantus().MPRT(
        layer_order="top_down", skip_layers=True, return_last_correlation=True, seed=task.seed, **AS_GIVEN
    )
    return np.abs(task.quantus(metric, explain_func=task.explain_func))


@_metric("stability", "average sensitivity", False, "explainer", "Yeh et al. 2019")
def stability(task: Task) -> np.ndarray:
    """Mean change of the map under a little noise on the input, relative to the map's own norm."""
    noise = NOISE * float(task.inputs.std()) * 3**0.5  # uniform in ±w has a standard deviation of w / √3
    metric = load_quantus().AvgSensitivity(
        nr_samples=NOISE_SAMPLES, perturb_func_kwargs={"lower_bound": noise}, **AS_GIVEN
    )
    return task.quantus(metric, explain_func=task.explain_func)
