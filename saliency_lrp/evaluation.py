"""Which saliency maps to trust, measured: localisation, perturbation, randomisation, stability.

``evaluate(model, inputs, targets, ["lrp", "gradcam"], masks=masks)`` gives a table of scores per method and metric.
The metrics are those of Quantus (Hedström et al. 2023; the extra ``saliency-lrp[evaluation]``), where not said
otherwise. In the other direction, :func:`quantus_explain_func` plugs every method of this package into Quantus.

A map counts as evidence *for* a class where it is positive: channels are summed, then localisation metrics are given
the positive part (Quantus' relevance mass divides signed sums, which leaves [0, 1] and explodes near zero).
"""

from __future__ import annotations

import html
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .composites import Composite
from .errors import InputError, unknown_name
from .explainers import registry
from .explainers.base import check_input, class_scores, resolve_target, unwrap
from .explainers.untouched import untouched
from .rules import Rule

__all__ = ["METRICS", "Evaluation", "Metric", "evaluate", "list_metrics", "morf_lerf", "quantus_explain_func"]

#: a function of (model, inputs, targets) that returns maps like the inputs
ExplainFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Method = str | Composite | Rule | ExplainFunction | Tensor | np.ndarray

BATCH = 32
GRID = 16  # regions per side of an image in MoRF-LeRF; with 8 it hardly tells methods apart
#: How many of the regions are replaced: dense at the ends, where curves bend, and symmetric, so that −R has −score.
REMOVED = (0, 8, 16, 24, 36, 48, 64, 96, 160, 192, 208, 220, 232, 240, 248, 256)
FLIPPING_STEPS = 16  # at least
NOISE = 0.1  # of stability, in standard deviations of the inputs
NOISE_SAMPLES = 4


# ------------------------------------------------------------------------------------------------ what is measured


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


METRICS: dict[str, Metric] = {}


def list_metrics() -> list[str]:
    """Names of all metrics, sorted."""
    return sorted(METRICS)


def _metric(name: str, title: str, higher_is_better: bool, needs: str, paper: str) -> Callable:
    """Decorator: enter a function from a task to scores into the table."""

    def add(compute: Callable[[Task], np.ndarray]) -> Callable[[Task], np.ndarray]:
        METRICS[name] = Metric(name, title, higher_is_better, needs, compute, paper)
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
    maps = torch.as_tensor(task.maps, device=task.inputs.device)
    return morf_lerf(task.model, task.inputs, task.targets, maps)


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


# ------------------------------------------------------------------------------------------------ MoRF-LeRF


@torch.no_grad()
def morf_lerf(model: nn.Module, inputs: Tensor, targets: Tensor, maps: Tensor) -> np.ndarray:
    """Area between the curves of removing the least and the most relevant regions first.

    The probability of the class is followed while regions of the image, in order of their relevance, are replaced by
    the image's mean colour. A single curve depends more on the model's reaction to grey boxes than on the map; in the
    difference of the two orders that cancels (Blücher et al. 2024).

    Parameters
    ----------
    inputs : Tensor, shape (N, C, H, W)
    targets : Tensor, shape (N,)
    maps : Tensor, shape (N, 1 or C, H, W)
        Signed relevance.

    Returns
    -------
    ndarray, shape (N,)
        In [-1, 1]; higher is better, 0 for a random order.

    Notes
    -----
    Quantus' ``RegionPerturbation`` removes one region per forward pass, 512 of them for both orders; the curves bend
    at their ends, so that the 30 used here tell the same (``tests/test_evaluation.py`` compares the two).
    """
    relevance = F.adaptive_avg_pool2d(maps.sum(1, keepdim=True), GRID).flatten(1)
    order = relevance.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    regions = GRID * GRID
    nothing, everything = (
        _probability_without(model, inputs, targets, torch.full_like(rank, k, dtype=torch.bool)) for k in (0, 1)
    )
    fractions = torch.tensor(REMOVED, dtype=nothing.dtype, device=nothing.device) / regions
    curves = []
    for ranks in (rank, regions - 1 - rank):
        between = [_probability_without(model, inputs, targets, ranks < k) for k in REMOVED[1:-1]]
        curves.append(torch.trapezoid(torch.stack([nothing, *between, everything]), fractions, dim=0))
    return (curves[1] - curves[0]).cpu().double().numpy()


def _probability_without(model: nn.Module, inputs: Tensor, targets: Tensor, removed: Tensor) -> Tensor:
    """Probability of the target where regions, (N, GRID²) bool, show the mean colour of the image."""
    height, width = inputs.shape[-2:]
    gone = F.interpolate(removed.view(-1, 1, GRID, GRID).float(), (height, width)).bool()
    images = torch.where(gone, inputs.mean((2, 3), keepdim=True), inputs)
    parts = zip(images.split(BATCH), targets.split(BATCH), strict=True)
    return torch.cat([class_scores(model(x)).softmax(1).gather(1, y[:, None])[:, 0] for x, y in parts])


# ------------------------------------------------------------------------------------------------ methods


def channel_sum(maps: Any) -> np.ndarray:
    """(N, C, H, W) maps as (N, 1, H, W) float64."""
    maps = maps.detach().cpu().numpy() if isinstance(maps, Tensor) else np.asarray(maps)
    return maps.astype(np.float64).sum(axis=1, keepdims=True)


def explain_function(method: str | Composite | Rule | ExplainFunction, **options: Any) -> ExplainFunction:
    """A method by name, a composite, a rule, or a function, as a function of (model, inputs, targets)."""
    if isinstance(method, (Composite, Rule)):
        method, options = "lrp", {"composite": method, **options}
    if isinstance(method, str):
        registry.find(method)  # a wrong name is an error now, not a failed method later
        name = method

        def explain(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            return registry.get(name, model, **options).explain(inputs, targets)

        return explain
    if callable(method):
        return method
    raise InputError(
        f"a method is a name, a composite, a rule, a function of (model, inputs, targets), or maps like the inputs; "
        f"got {type(method).__name__}"
    )


def quantus_explain_func(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    method: str | Composite | Rule = "lrp",
    sum_channels: bool = True,
    device: Any = None,
    **options: Any,
) -> np.ndarray:
    """Explain in the way Quantus asks for: pass it as ``explain_func`` to any Quantus metric.

    Parameters
    ----------
    model : torch.nn.Module
    inputs : ndarray or Tensor, shape (N, C, ...)
    targets : ndarray, Tensor or int
        Classes.
    method : str, Composite or Rule
        A name of ``list_methods()``, or what LRP should follow.
    sum_channels : bool
        Sum over the channels, (N, 1, ...), as Quantus' own functions do.
    device : optional
        Where to explain; by default where the model is.
    **options
        Of the method, such as ``composite="epsilon_plus"``.

    Examples
    --------
    >>> metric = quantus.RelevanceRankAccuracy(abs=False, normalise=False)          # doctest: +SKIP
    >>> metric(model, x, y, s_batch=masks, explain_func=quantus_explain_func,
    ...        explain_func_kwargs={"method": "lrp:epsilon_plus"})                  # doctest: +SKIP
    """
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    where = home if device is None else torch.device(device)
    x = torch.as_tensor(inputs, dtype=torch.get_default_dtype()).to(where)
    y = torch.as_tensor(targets).to(where)
    maps = explain_function(method, **options)(model, x, y)
    return channel_sum(maps) if sum_channels else maps.detach().cpu().numpy()


def labelled(methods: Method | Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    """Methods with their labels."""
    if isinstance(methods, Mapping):
        return dict(methods)
    if isinstance(methods, str):
        return {methods: methods}
    named = list(methods)
    for method in named:
        if not isinstance(method, str):
            raise InputError(
                f"methods without names are strings, got {type(method).__name__}: give a dict, {{'my method': ...}}"
            )
    return {method: method for method in named}


# ------------------------------------------------------------------------------------------------ results


@dataclass
class Evaluation:
    """Scores of methods by metrics; shows itself as a table.

    Attributes
    ----------
    scores : dict of dict of ndarray
        ``scores[method][metric]``, one number per item.
    seconds : dict of float
        Per method, for one map.
    errors : dict of str
        Per method, or per ``"method / metric"``, what went wrong.
    """

    metrics: list[Metric]
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def mean(self, method: str, metric: str) -> float:
        """Mean over the items; NaN where the metric could not be computed."""
        scores = self.scores.get(method, {}).get(metric)
        return float("nan") if scores is None or not len(scores) else float(np.nanmean(scores))

    def standard_error(self, method: str, metric: str) -> float:
        """Standard error of the mean; NaN for fewer than two items."""
        scores = self.scores.get(method, {}).get(metric)
        if scores is None or np.isfinite(scores).sum() < 2:
            return float("nan")
        return float(np.nanstd(scores, ddof=1) / np.isfinite(scores).sum() ** 0.5)

    def best(self, metric: str) -> str | None:
        """The method with the best mean, or None."""
        direction = 1 if METRICS[metric].higher_is_better else -1
        means = {m: direction * self.mean(m, metric) for m in self.scores}
        means = {m: v for m, v in means.items() if np.isfinite(v)}
        return max(means, key=means.__getitem__) if means else None

    def to_frame(self) -> Any:
        """A pandas table: a row per method; mean and standard error (``_se``) of each metric, seconds, error."""
        import pandas as pd

        rows = []
        for method in self.scores:
            row: dict[str, Any] = {"method": method}
            for metric in self.metrics:
                row[metric.name] = self.mean(method, metric.name)
                row[metric.name + "_se"] = self.standard_error(method, metric.name)
            row["seconds"] = self.seconds.get(method, float("nan"))
            row["error"] = "; ".join(v for k, v in self.errors.items() if k == method or k.startswith(f"{method} / "))
            rows.append(row)
        return pd.DataFrame(rows).set_index("method")

    def plot(self, figsize: tuple[float, float] | None = None) -> Any:
        """Bars with standard errors, one panel per metric; the best method of each is dark.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from matplotlib.figure import Figure

        methods, n = list(self.scores), len(self.metrics)
        figsize = figsize or (1.5 + 2.4 * max(n, 1), 1.2 + 0.28 * len(methods))
        figure = Figure(figsize=figsize, layout="constrained")
        axes = figure.subplots(1, max(n, 1), sharey=True, squeeze=False)[0]
        for axis, metric in zip(axes, self.metrics, strict=False):
            best = self.best(metric.name)
            axis.barh(
                methods,
                [self.mean(m, metric.name) for m in methods],
                xerr=[self.standard_error(m, metric.name) for m in methods],
                color=["#00518a" if m == best else "#8fbbd9" for m in methods],
            )
            axis.set_title(f"{metric.title} {metric.arrow}", fontsize="medium")
        axes[0].invert_yaxis()
        return figure

    def _cell(self, method: str, metric: str) -> str:
        mean, error = self.mean(method, metric), self.standard_error(method, metric)
        if not np.isfinite(mean):
            return "–"
        return f"{mean:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")

    def __repr__(self) -> str:
        widths = [max(len(m) for m in ("method", *self.scores)), *(max(15, len(m.title) + 2) for m in self.metrics)]
        lines = [["method", *(f"{m.title} {m.arrow}" for m in self.metrics)]]
        lines += [[method, *(self._cell(method, m.name) for m in self.metrics)] for method in self.scores]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join(text + [f"{where}: {what}" for where, what in self.errors.items()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(m.title)} {m.arrow}</th>" for m in self.metrics)
        best = {m.name: self.best(m.name) for m in self.metrics}
        rows = []
        for method in self.scores:
            cells = [(self._cell(method, m.name), best[m.name] == method) for m in self.metrics]
            tds = "".join(f"<td>{f'<b>{text}</b>' if bold else text}</td>" for text, bold in cells)
            rows.append(f"<tr><th style='text-align:left'>{html.escape(method)}</th>{tds}</tr>")
        errors = "".join(f"<p><b>{html.escape(k)}</b>: {html.escape(v)}</p>" for k, v in self.errors.items())
        return (
            f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p>mean ± standard error; ↑ higher is better, ↓ lower is better</p>{errors}"
        )


# ------------------------------------------------------------------------------------------------ evaluate


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

    model = unwrap(model)
    check_input(inputs)
    if inputs.dim() != 4:
        raise InputError(f"inputs should be images, (N, C, H, W); their shape is {tuple(inputs.shape)}")
    inputs = inputs.detach()
    masks = _masks(masks, inputs)
    chosen = _metrics(metrics, masks)
    named = labelled(methods)
    functions = {k: None if isinstance(m, (Tensor, np.ndarray)) else explain_function(m) for k, m in named.items()}
    with untouched(model), torch.no_grad():
        scores = torch.cat([class_scores(model(part)) for part in inputs.split(BATCH)])
        targets = resolve_target(scores, targets)
    result = Evaluation(chosen)
    with tqdm(total=len(named) * (1 + len(chosen)), disable=not progress, leave=False) as bar:
        for label, method in named.items():
            bar.set_description(label)
            result.scores[label] = {}
            task = Task(model, inputs, targets, masks, np.empty(0), functions[label], seed)
            try:
                start = time.perf_counter()
                task.maps = _maps(task, method)
                if task.explain is not None:
                    result.seconds[label] = (time.perf_counter() - start) / len(inputs)
            except Exception as error:  # any method may fail in any way; the finished ones must not be lost
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
        with untouched(task.model), _reproducible(task.seed):
            result.scores[label][metric.name] = metric.compute(task)
    except ImportError:
        raise
    except Exception as error:
        result.errors[f"{label} / {metric.name}"] = f"{type(error).__name__}: {error}"


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Quantus draws from NumPy's global generator: seed it, give it back, and keep warnings to ourselves."""
    state = np.random.get_state()
    np.random.seed(seed)
    torch.manual_seed(seed)  # `untouched` gives torch's generator back
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)


def _maps(task: Task, method: Method) -> np.ndarray:
    """(N, 1, H, W) maps of a method."""
    if task.explain is None:
        maps = method
    else:
        # untouched also gives random methods' generator back
        with untouched(task.model):
            torch.manual_seed(task.seed)
            parts = zip(task.inputs.split(BATCH), task.targets.split(BATCH), strict=True)
            maps = torch.cat([torch.as_tensor(task.explain(task.model, x, y)).detach() for x, y in parts])
    shape = tuple(maps.shape)
    n, c, *size = task.inputs.shape
    if shape not in ((n, c, *size), (n, 1, *size)):
        raise InputError(f"maps should have the shape of the inputs, {(n, c, *size)}, or {(n, 1, *size)}; got {shape}")
    maps = channel_sum(maps)
    if not np.isfinite(maps).all():
        raise InputError(f"{int((~np.isfinite(maps)).any(axis=(1, 2, 3)).sum())} maps have NaN or infinite values")
    return maps


def _masks(masks: Any, inputs: Tensor) -> np.ndarray | None:
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
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
        if METRICS[name].needs == "masks" and masks is None:
            raise InputError(f"metric {name!r} needs masks=, the true place of the object in each image")
    return [METRICS[name] for name in names]
