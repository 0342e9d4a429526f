"""What a TensorWatch user calls: one map, several side by side, or the widget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import images
from .errors import InputError, unknown_name
from .explainers import registry
from .explainers.base import Question, check_input, check_model, unwrap
from .explainers.registry import DEFAULT_METHODS
from .explainers.untouched import device_of, on_device, untouched
from .results import ImageSaliencyResult, SaliencyResults

# Options of the call itself, not of a method.
_FRAME_OPTIONS = ("transform", "geometry", "class_names")


def get_saliency(
    model: nn.Module,
    raw_input: Any,
    input: Tensor | None = None,
    label: Any = None,
    device: torch.device | str | None = None,
    method: str = "lrp",
    layer_path: str | Sequence[str] | None = None,
    **options: Any,
) -> np.ndarray:
    """Where in the image a model sees a class.

    Both positional orders of TensorWatch are understood: ``(model, raw_input, input, label, method,
    layer_path)`` and ``(model, raw_input, input, label, device, method, layer_path)``.

    Parameters
    ----------
    model : torch.nn.Module
        Left exactly as it was: mode, gradients, hooks, device.
    raw_input : PIL image, numpy.ndarray, path, Tensor or None
        The image: H x W, H x W x 3 or x 4 arrays; C x H x W or 1 x C x H x W tensors.
    input : Tensor, optional
        What the model takes, (N, C, H, W). Default: made from the image by the model's own
        preprocessing. A tensor given here is taken for a resized copy of the whole image
        unless ``transform`` or ``geometry`` says more.
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
        Options of the method, and ``transform`` (image to tensor), ``geometry``
        (:class:`images.Geometry`), ``class_names``, ``seed`` (int, for random methods).

    Returns
    -------
    numpy.ndarray
        (H, W) float32 in [0, 1] on the raw image's pixels: absolute relevance summed over
        channels, min-max scaled. (N, H, W) for a batch of several.

    Raises
    ------
    InputError
        For anything that cannot be explained: what was given, what was expected, how to mend it.
    """
    device, method, layer_path = _sort_positions(device, method, layer_path, default="lrp")
    plans = _plan([method], layer_path, options)
    with _session(model, raw_input, input, label, device, options) as session:
        relevance, _, _ = _explain(session, plans[0])
    return _to_maps(relevance, session.geometry)


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
        A list that shows itself in a notebook.

    Raises
    ------
    InputError
        For a model or an input that no method can explain, and for names that do not exist.
    """
    device, methods, layer_path = _sort_positions(device, methods, layer_path, default=DEFAULT_METHODS)
    methods = [methods] if isinstance(methods, str) else list(methods)
    plans = _plan(methods, layer_path, options)
    for plan in plans:
        if "account" in registry.option_names(plan.method):
            plan.options.setdefault("account", True)  # the figure says how far to trust a map
    with _session(model, raw_image, input, label, device, options) as session:
        if session.input.shape[0] != 1:
            raise InputError(f"one image at a time: the input is a batch of {session.input.shape[0]}.")
        return SaliencyResults([_result(session, plan) for plan in plans])


def compare_saliency(model: nn.Module, raw_image: Any, *args: Any, **options: Any) -> Any:
    """Explore methods, classes and colours in an interactive overlay; see :mod:`saliency_lrp.widget`."""
    from .widget import compare_saliency as build

    return build(model, raw_image, *args, **options)


# ----------------------------------------------------------------------------------------------
# The call's arguments
# ----------------------------------------------------------------------------------------------


def _is_device(value: Any) -> bool:
    if value is None or isinstance(value, (torch.device, int)):
        return True
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


def _sort_positions(device: Any, method: Any, layer_path: Any, default: Any) -> tuple[Any, Any, Any]:
    """Tell TensorWatch's two positional orders apart: what stands in the device's place may be the method."""
    if _is_device(device):
        return device, method, layer_path
    if layer_path is None and method is not default and method != default:
        layer_path = method
    return None, device, layer_path


def _device(name: Any, model: nn.Module) -> torch.device:
    if name is None:
        return device_of(model)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(name)!r} was asked for but no CUDA device is available: leave device=None.")
    return device


@dataclass
class _Plan:
    """One method and the options that are for it."""

    method: str
    options: dict[str, Any]


def _plan(methods: Sequence[str], layer_path: Any, options: dict[str, Any]) -> list[_Plan]:
    """Send every option to the methods that know it; an option that none knows is an error."""
    if not methods:
        raise InputError(f"no method was given: name one or more of {', '.join(registry.list_methods())}.")
    known = {method: registry.option_names(method) for method in methods}
    everything = set().union(*known.values(), _FRAME_OPTIONS, ("seed",))
    for name in options:
        if name not in everything:
            raise unknown_name(f"option of {', '.join(map(repr, methods))}", name, everything)
    return [_Plan(m, _options_for(m, known[m], layer_path, options)) for m in methods]


def _options_for(method: str, known: set[str], layer_path: Any, options: dict[str, Any]) -> dict[str, Any]:
    chosen = {k: v for k, v in options.items() if k in known and k not in _FRAME_OPTIONS}
    # An integer seed is for random numbers; any other kind is what LRP starts from at the output.
    random = getattr(registry.find(method)[0], "random", False)
    if "seed" in chosen and random != (isinstance(chosen["seed"], int)):
        del chosen["seed"]
    if layer_path is not None and "layer_path" in known:
        chosen["layer_path"] = layer_path
    return chosen


# ----------------------------------------------------------------------------------------------
# One model, one image, one label
# ----------------------------------------------------------------------------------------------


@dataclass
class _Session:
    """What all methods of one call share."""

    model: nn.Module
    raw_image: Any
    input: Tensor
    geometry: images.Geometry | None
    label: Any
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@contextmanager
def _session(
    model: nn.Module, raw: Any, input: Tensor | None, label: Any, device: Any, options: dict[str, Any]
) -> Iterator[_Session]:
    check_model(unwrap(model) if isinstance(model, nn.Module) else model)
    model = unwrap(model)
    where = _device(device, model)
    picture, tensor, geometry, warnings = _prepare(model, raw, input, options)
    with on_device(model, where):
        tensor = tensor.detach().to(where, _dtype(model, tensor))
        label, facts = _ask(model, tensor, label, options.get("class_names"))
        yield _Session(model, picture, tensor, geometry, label, facts, warnings)


def _dtype(model: nn.Module, tensor: Tensor) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), tensor.dtype)


def _is_model_input(raw: Any) -> bool:
    """A tensor that is no picture: normalised (negative values), a batch, a signal, a table row."""
    if not isinstance(raw, Tensor) or not raw.is_floating_point():
        return False
    return raw.ndim == 4 and raw.shape[0] != 1 or raw.ndim not in (3, 4) or raw.numel() > 0 and bool(raw.min() < 0)


def _prepare(
    model: nn.Module, raw: Any, input: Tensor | None, options: dict[str, Any]
) -> tuple[Any, Tensor, images.Geometry | None, list[str]]:
    """Picture to draw, the model's input, geometry and warnings."""
    transform: Callable | None = options.get("transform")
    if input is None and _is_model_input(raw):
        input, raw = (raw[None] if raw.ndim == 3 else raw), None
    if raw is None and input is None:
        raise InputError("there is nothing to explain: give an image as raw_input, or a tensor as input.")
    if raw is None:
        check_input(input)
        return None, input, options.get("geometry"), []
    image = images.load_image(raw)
    picture = raw if hasattr(raw, "getbands") else image.picture()
    if input is None:
        tensor, geometry, warnings = images.build_input(model, image, transform)
    else:
        tensor = input[None] if isinstance(input, Tensor) and input.ndim == 3 else input
        geometry, warnings = images.Geometry.whole(image.size), []
        if transform is not None:
            geometry, warnings = images.geometry_of(transform, image.size)
    check_input(tensor, "the input" if input is not None else "the input made from the image")
    return picture, tensor, options.get("geometry") or geometry, warnings


def _ask(model: nn.Module, x: Tensor, label: Any, names: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    """Run the model once: check what it says, settle the label, look up names and scores."""
    question = Question(model, label)
    with untouched(model):
        question.settle(x)
    if callable(label):
        return label, {}
    scores = question.scores[0].double()
    index = int(question.target[0])
    names = names if names is not None else _class_names(model)
    shares = scores if bool((scores >= 0).all()) and abs(float(scores.sum()) - 1) < 1e-3 else scores.softmax(0)
    facts = {"class_name": _name(names, index), "score": float(shares[index])}
    if len(shares) > 1:
        others = shares.clone()
        others[index] = -1
        best = int(others.argmax())
        facts["runner_up"] = (_name(names, best), float(shares[best]))
    return question.target, facts


def _class_names(model: nn.Module) -> Any:
    """Names that the model carries: ``class_names``, ``classes``, or a configuration's ``id2label``."""
    for owner, attribute in (
        (model, "class_names"),
        (model, "classes"),
        (getattr(model, "config", None), "id2label"),
    ):
        names = getattr(owner, attribute, None)
        if isinstance(names, (list, tuple, dict)):
            return names
    return None


def _name(names: Any, index: int) -> str:
    try:
        return str(names[index])
    except (TypeError, LookupError):
        return f"class {index}"


# ----------------------------------------------------------------------------------------------
# Running methods
# ----------------------------------------------------------------------------------------------


def _explain(session: _Session, plan: _Plan) -> tuple[Tensor, Any, float]:
    """Relevance on the CPU, the explainer, and the seconds it took."""
    explainer = registry.get(plan.method, session.model, **plan.options)
    start = time.perf_counter()
    with untouched(session.model):
        relevance = explainer.explain(session.input, session.label, session.raw_image)
    seconds = time.perf_counter() - start
    relevance = relevance.detach().cpu()
    if not torch.isfinite(relevance).all():
        raise InputError(f"{plan.method} produced NaN or infinite values for this model and input.")
    return relevance, explainer, seconds


def _result(session: _Session, plan: _Plan) -> ImageSaliencyResult:
    label = session.label if callable(session.label) else int(session.label[0])
    result = ImageSaliencyResult(
        session.raw_image, None, plan.method, method=plan.method, label=label, geometry=session.geometry,
        warnings=list(session.warnings), **session.facts,
    )  # fmt: skip
    try:
        result.relevance, explainer, result.seconds = _explain(session, plan)
        result.report, result.signed = getattr(explainer, "report", None), getattr(explainer, "signed", True)
    except Exception as error:  # finished maps must survive whatever one method runs into
        result.error = error
        return result
    result.saliency = _to_maps(result.relevance, session.geometry)
    if not result.saliency.any():
        result.warnings.append("the map is the same everywhere")
    result.warnings += getattr(result.report, "warnings", None) or []
    return result


def _to_maps(relevance: Tensor, geometry: images.Geometry | None) -> np.ndarray:
    """TensorWatch's post-processing: absolute values, sum over channels, min-max; on the raw image."""
    summed = relevance.abs().double()
    summed = summed.sum(1) if summed.ndim > 2 else summed
    placed = [m if geometry is None or m.ndim != 2 else geometry.place(m) for m in summed.numpy()]
    maps = [images.normalise(m) for m in placed]
    return maps[0] if len(maps) == 1 else np.stack(maps)
