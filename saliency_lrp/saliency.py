"""What a TensorWatch user calls: one map, several side by side, or the widget."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import images
from .check.door import Origin
from .errors import InputError
from .explainers import registry
from .explainers.plan import Plan, plan_methods
from .explainers.registry import DEFAULT_METHODS
from .model.as_found import as_found
from .model.card import read_card
from .model.on_device import on_device
from .model.unwrapped import unwrapped
from .question import Question, ask, find_device, sort_positions
from .results import ImageSaliencyResult, SaliencyResults


def get_saliency(
    model: nn.Module,
    raw_input: Any,
    input: Any = None,
    label: Any = None,
    device: torch.device | str | None = None,
    method: str = "lrp",
    layer_path: str | Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Where in the image a model sees a class.

    Both positional orders of TensorWatch are understood: ``(model, raw_input, input, label, method,
    layer_path)`` and ``(model, raw_input, input, label, device, method, layer_path)``.

    Parameters
    ----------
    model : torch.nn.Module
        Left exactly as it was: mode, gradients, hooks, device.
    raw_input : PIL image, numpy.ndarray, path, Tensor or None
        The image: H x W, H x W x 3 or x 4 arrays; C x H x W or 1 x C x H x W tensors.
    input : Tensor, tuple or dict of Tensor, optional
        What the model takes, (N, C, H, W). Default: made from the image by the model's own
        preprocessing. A tensor given here is taken for a resized copy of the whole image
        unless ``transform`` or ``geometry`` says more. Several inputs are a tuple, in the order of
        the model's arguments, or a dict by their names; the first picture among them is that of
        the image. Token ids, (N, T) int64, give a number per id.
    label : int, Tensor, sequence of int, callable or None
        The class to explain; None for the highest score. A callable takes the model's output and
        returns one number per item, for models whose output is not (N, C).
    device : torch.device or str, optional
        Where to work; the model is moved back afterwards. Default: the model's own.
    method : str
        One of :func:`list_methods`.
    layer_path : str or sequence of str, optional
        Layer for the class activation methods, ``"layer4.1"`` or ``["layer4", "1"]``.
    **options
        Options of the method, and ``window`` (two numbers of the image that are shown black and white, such as
        ``(-1000, 400)`` for a CT slice), ``transform`` (image to tensor), ``geometry``
        (:class:`images.Geometry`), ``class_names``, ``random_seed`` (int, for random methods),
        ``constants`` (of several inputs, those that are not explained).

    Returns
    -------
    numpy.ndarray, or tuple or dict of those
        (H, W) float32 in [0, 1] on the raw image's pixels: absolute relevance summed over
        channels, min-max scaled. (N, H, W) for a batch of several. Of several inputs, those that
        receive relevance, in their order or by their names.

    Raises
    ------
    InputError
        For anything that cannot be explained: what was given, what was expected, how to mend it.
    """
    device, method, layer_path = sort_positions(device, method, layer_path, default="lrp")
    plans = plan_methods([method], layer_path, options)
    if input is None and isinstance(raw_input, tuple | Mapping):
        raw_input, input = None, raw_input
    if (
        input is None
        and are_token_ids(raw_input)
        and any(isinstance(m, nn.Embedding) for m in unwrapped(model).modules())
    ):
        raw_input, input = None, raw_input
    if raw_input is None and are_token_ids(input):
        input = (input,)  # an argument of the model as it is, no picture
    if isinstance(input, tuple | Mapping):
        return _maps_of_several(model, raw_input, input, label, device, plans[0], options)
    with ask(model, raw_input, input, label, device, options) as question:
        relevance, _, _ = _explain(question, plans[0])
    return _to_maps(relevance, question.geometry)


def get_image_saliency_results(
    model: nn.Module,
    raw_image: Any,
    input: Tensor | None = None,
    label: Any = None,
    device: torch.device | str | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    layer_path: str | Sequence[str] | None = None,
    **options: Any,
) -> SaliencyResults:
    """Explain one image by several methods.

    Parameters
    ----------
    model, raw_image, input, label, device, layer_path
        As for :func:`get_saliency`; one image at a time.
    methods : sequence of str
        Names from :func:`list_methods`. A method that fails stays in the list with its reason.
    **options
        As for :func:`get_saliency`; each goes to the methods that know it.

    Returns
    -------
    SaliencyResults
        A list that shows itself in a notebook. Ctrl-C ends the call, with what is finished by then; the others say that
        they were stopped. Where nothing is finished, it is a KeyboardInterrupt as everywhere.

    Raises
    ------
    InputError
        For a model or an input that no method can explain, and for names that do not exist.
    """
    device, methods, layer_path = sort_positions(device, methods, layer_path, default=DEFAULT_METHODS)
    methods = [methods] if isinstance(methods, str) else list(methods)
    plans = plan_methods(methods, layer_path, options)
    for plan in plans:
        if "account" in registry.option_names(plan.method):
            plan.options.setdefault("account", True)  # the figure says how far to trust a map
    with ask(model, raw_image, input, label, device, options) as question:
        if question.input.shape[0] != 1:
            raise InputError(f"one image at a time: the input is a batch of {question.input.shape[0]}.")
        return _side_by_side(question, plans)


def compare_saliency(model: nn.Module, raw_image: Any, *args: Any, **options: Any) -> Any:
    """Explore methods, classes and colours in an interactive overlay; see :mod:`saliency_lrp.widget`."""
    from .widget import compare_saliency as build

    return build(model, raw_image, *args, **options)


# ----------------------------------------------------------------------------------------------
# The call's arguments
# ----------------------------------------------------------------------------------------------


def are_token_ids(value: Any) -> bool:
    """Whether a value is (N, T) integers as language models read them."""
    return isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and value.ndim == 2


# ----------------------------------------------------------------------------------------------
# Running methods
# ----------------------------------------------------------------------------------------------


def _explain(question: Question, plan: Plan) -> tuple[Tensor, Any, float]:
    """Relevance on the CPU, the explainer, and the seconds it took."""
    explainer = registry.get(plan.method, question.model, **plan.options)
    start = time.perf_counter()
    try:
        with as_found(question.model):
            relevance = explainer.explain(question.input, question.label, question.picture)
    except Exception:
        question.settle()  # where the model or the label is at fault, it says so in the words of every door
        raise
    seconds = time.perf_counter() - start
    question.hear(explainer)  # the model need not run once more to say what it sees
    relevance = relevance.detach().cpu()
    if not torch.isfinite(relevance).all():
        raise InputError(f"{plan.method} produced NaN or infinite values for this model and input.")
    return relevance, explainer, seconds


def _side_by_side(question: Question, plans: Sequence[Plan]) -> SaliencyResults:
    """A result for each method; those that Ctrl-C has stopped say so."""
    results: list[ImageSaliencyResult] = []
    try:
        for plan in plans:
            results.append(_result(question, plan))  # noqa: PERF401  # finished ones survive an interrupt
    except KeyboardInterrupt:
        finished = [result.title for result in results if result.relevance is not None]
        if not finished:
            raise
        stopped, *others = (plan.method for plan in plans[len(results) :])
        warnings.warn(
            f"stopped by Ctrl-C during {stopped}: {', '.join(finished)} {'is' if len(finished) == 1 else 'are'} done"
            + (f", {', '.join(others)} not begun" if others else ""),
            stacklevel=3,
        )
        for plan in plans[len(results) :]:
            results.append(_empty(question, plan))
            results[-1].error = Stopped("stopped by Ctrl-C")
    return SaliencyResults(results)


class Stopped(RuntimeError):
    """Why there is no map: the user did not want to wait for it."""


def _empty(question: Question, plan: Plan) -> ImageSaliencyResult:
    return ImageSaliencyResult(
        question.picture, None, plan.method, method=plan.method, geometry=question.geometry,
        warnings=list(question.warnings),
    )  # fmt: skip


def _result(question: Question, plan: Plan) -> ImageSaliencyResult:
    result = _empty(question, plan)
    try:
        result.relevance, explainer, result.seconds = _explain(question, plan)
        result.report, result.signed = getattr(explainer, "report", None), getattr(explainer, "signed", True)
    except Exception as error:  # noqa: BLE001  # finished maps must survive whatever one method runs into
        result.error = error
    question.settle()  # where the model or the label is at fault, no method can help
    result.label, result.origin = question.target, Origin(question, plan)
    if question.answer is not None:
        result.take(question.answer)
    if result.relevance is None:
        return result
    result.saliency = _to_maps(result.relevance, question.geometry)
    if not result.saliency.any():
        result.warnings.append("the map is the same everywhere")
    result.warnings += getattr(result.report, "warnings", None) or []
    return result


def _maps_of_several(
    model: nn.Module,
    raw: Any,
    inputs: tuple[Any, ...] | Mapping[str, Any],
    label: Any,
    device: Any,
    plan: Plan,
    options: Mapping[str, Any],
) -> Any:
    """Maps of the inputs of a model of several; that of the first picture is placed on the raw image."""
    model = unwrapped(model)
    card = read_card(model)
    where = find_device(device, card)

    def fitting(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (card.fitting(value) if value.is_floating_point() else value).to(where)

    if isinstance(inputs, Mapping):
        values: Any = {k: fitting(v) for k, v in inputs.items()}
    else:
        values = tuple(fitting(v) for v in inputs)
    geometry = options.get("geometry")
    if geometry is None and raw is not None:
        geometry = images.Geometry.whole(images.load_image(raw).size)
    with on_device(model, where), as_found(model):
        explainer = registry.get(plan.method, model, **plan.options)
        if (
            getattr(explainer, "takes_ids", False)
            and isinstance(values, tuple)
            and len(values) == 1
            and are_token_ids(values[0])
        ):
            (values,) = values  # perturbation methods take ids as they take pictures
        maps = explainer.explain(values, label, constants=options.get("constants", ()))
    places = iter([geometry])

    def placed(R: Tensor) -> np.ndarray:
        return _to_maps(R.detach().cpu(), next(places, None) if R.dim() == 4 else None)

    if isinstance(maps, Tensor):
        return placed(maps)
    return {k: placed(R) for k, R in maps.items()} if isinstance(maps, dict) else tuple(placed(R) for R in maps)


def _to_maps(relevance: Tensor, geometry: images.Geometry | None) -> np.ndarray:
    """TensorWatch's post-processing: absolute values, sum over channels, min-max; on the raw image."""
    summed = relevance.abs().double()
    summed = summed.sum(1) if summed.ndim > 2 else summed
    placed = [m if geometry is None or m.ndim != 2 else geometry.place(m) for m in summed.numpy()]
    maps = [images.normalize(m) for m in placed]
    return maps[0] if len(maps) == 1 else np.stack(maps)
