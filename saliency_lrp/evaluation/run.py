"""``evaluate``: every method by every metric, whatever fails on the way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model.as_found import as_found
from .methods import Method, explain_function, labeled
from .metrics import METRICS, Metric, Task
from .question import asked, maps_of
from .table import Evaluation


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Any,
    methods: Sequence[str] | Mapping[str, Method] | str,
    masks: Any = None,
    metrics: Sequence[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Evaluation:
    """Score saliency methods on one model and a batch of images.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier; left as it was.
    inputs : Tensor, shape (N, C, H, W)
        Images as the model wants them.
    targets : None, int, sequence of int or Tensor
        The class to explain of each; None for the highest score.
    methods : sequence of str, or dict
        Names of ``list_methods()``; or labels to names, composites, rules, functions of (model, inputs, targets) that
        return maps, or maps themselves.
    masks : array or Tensor, shape (N, H, W) or (N, 1, H, W), optional
        True where the object is.
    metrics : sequence of str, optional
        Names of ``list_metrics()``; by default all that what was given allows.
    progress : bool
        Whether to draw a progress bar.
    seed : int
        Of random methods and metrics.

    Returns
    -------
    Evaluation
        A method or metric that fails is in its ``errors``; the others are there.

    Raises
    ------
    InputError
        For inputs, masks, targets, or names that do not fit.
    """
    from tqdm.auto import tqdm

    named = labeled(methods)
    functions = {k: None if isinstance(m, Tensor | np.ndarray) else explain_function(m) for k, m in named.items()}
    model, inputs, targets = asked(model, inputs, targets)
    masks = checked_masks(masks, inputs)
    chosen = _metrics(metrics, masks)
    result = Evaluation(chosen)
    with tqdm(total=len(named) * (1 + len(chosen)), disable=not progress, leave=False) as bar:
        for label, method in named.items():
            bar.set_description(label)
            result.scores[label] = {}
            task = Task(model, inputs, targets, masks, np.empty(0), functions[label], seed)
            try:
                start = time.perf_counter()
                task.maps = maps_of(method, model, inputs, targets, seed)
                if task.explain is not None:
                    result.seconds[label] = (time.perf_counter() - start) / len(inputs)
            except Exception as error:  # noqa: BLE001  # any method may fail in any way; the finished ones must not be lost
                result.errors[label] = f"{type(error).__name__}: {error}"
                bar.update(1 + len(chosen))
                continue
            bar.update()
            for metric in chosen:
                _measure(result, label, metric, task)
                bar.update()
    return result


def _measure(result: Evaluation, label: str, metric: Metric, task: Task) -> None:
    """One metric of one method, or why there is none."""
    if metric.needs == "explainer" and task.explain is None:
        result.errors[f"{label} / {metric.name}"] = "needs a method that explains other inputs, maps were given"
        return
    try:
        with as_found(task.model), _reproducible(task.seed):
            result.scores[label][metric.name] = metric.compute(task)
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001  # as above: any metric
        result.errors[f"{label} / {metric.name}"] = f"{type(error).__name__}: {error}"


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Quantus draws from NumPy's global generator: seed it, give it back, and keep warnings to ourselves."""
    state = np.random.get_state()
    np.random.seed(seed)
    torch.manual_seed(seed)  # `as_found` gives torch's generator back
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)


def checked_masks(masks: Any, inputs: Tensor) -> np.ndarray | None:
    """Masks as (N, H, W) bool; errors where they do not fit the images or are empty."""
    if masks is None:
        return None
    masks = np.asarray(masks.cpu() if isinstance(masks, Tensor) else masks)
    n, _, height, width = inputs.shape
    if masks.shape not in ((n, height, width), (n, 1, height, width)):
        raise InputError(f"masks should be {(n, height, width)}, one per image; their shape is {masks.shape}")
    masks = masks.reshape(n, height, width).astype(bool)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise InputError(f"the masks of images {empty.tolist()} are empty: leave these images out")
    return masks


def _metrics(names: Sequence[str] | None, masks: np.ndarray | None) -> list[Metric]:
    """The metrics asked for; those that need masks only where there are some."""
    if names is None:
        return [m for m in METRICS.values() if m.needs != "masks" or masks is not None]
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if METRICS[name].needs == "masks" and masks is None:
            raise InputError(f"metric {name!r} needs masks=, the true place of the object in each image")
    return [METRICS[name] for name in names]
