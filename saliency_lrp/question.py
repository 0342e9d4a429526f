"""One model, one input, one class: asked once, for every door that explains something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import images
from .errors import InputError
from .explainers.base import check_input, check_output, class_scores, resolve_target, run_model
from .model.answer import Answer, ClassNames
from .model.as_found import as_found
from .model.card import Card, read_card
from .model.devices import named_device
from .model.on_device import on_device
from .model.unwrapped import unwrapped


@dataclass
class Question:
    """What all methods of one call share.

    Attributes
    ----------
    model : torch.nn.Module
        Out of its wrappers.
    input : Tensor, shape (N, ...)
        What the model takes, on its device and in its precision.
    label : int, Tensor, sequence, callable or None
        As it was asked; one class index per item as soon as the model has answered.
    names : sequence or mapping of str, or None
        Names of classes.
    picture : object or None
        What maps are drawn on; None where only a tensor was given.
    geometry : Geometry or None
        Where the input's pixels come from on the picture.
    answer : Answer or None
        What the model says of the first item; None before it has run, and for a callable label.
    warnings : list of str
    """

    model: nn.Module
    input: Tensor
    label: Any = None
    names: ClassNames | None = None
    picture: Any = None
    geometry: images.Geometry | None = None
    answer: Answer | None = None
    settled: bool = False
    warnings: list[str] = field(default_factory=list)

    def settle(self) -> None:
        """Run the model, unless it has answered already.

        Raises
        ------
        InputError
            Where it cannot run, where its output cannot be explained, or a label is none of its classes.
        """
        if not self.settled:
            with as_found(self.model), torch.no_grad():
                self.learn(run_model(self.model, self.input.clone()))

    def learn(self, output: Any) -> None:
        """Take the model's output, whoever ran it."""
        if not callable(self.label):
            scores = class_scores(output)
            check_output(scores)
            self.label = resolve_target(scores, self.label)
            self.answer = Answer.of(scores[0], int(self.label[0]), self.names)
        self.settled = True

    def hear(self, explainer: Any) -> None:
        """Take the output that a method has made on its way to the map, where it keeps that."""
        output = getattr(explainer, "output", None)
        if output is not None and not self.settled:
            self.learn(output)

    @property
    def target(self) -> int | Callable[[Any], Tensor]:
        """The class of the first item, or the callable that was asked."""
        return self.label if callable(self.label) else int(self.label[0])


@contextmanager
def ask(
    model: object, raw: Any, input: Tensor | None, label: Any, device: Any, options: Mapping[str, Any]
) -> Iterator[Question]:
    """The question, with the model on the device that was named for as long as it is open.

    Parameters
    ----------
    model, raw, input, label, device
        As for :func:`saliency_lrp.get_saliency`.
    options : mapping
        ``transform``, ``geometry`` and ``class_names`` are read.

    Raises
    ------
    InputError
        For a model, a picture or a tensor that cannot be explained.
    """
    model = unwrapped(model)
    card = read_card(model)
    where = find_device(device, card)
    picture, x, geometry, warnings = prepare(model, raw, input, options)
    names = options.get("class_names") or card.names
    with on_device(model, where):
        x = card.fitting(x).to(where)
        yield Question(model, x, label, names, picture, geometry, warnings=warnings)


def find_device(name: Any, card: Card) -> torch.device:
    """The device that was named, or the model's own."""
    return card.device if name is None else named_device(name)


def is_model_input(raw: Any) -> bool:
    """A tensor that is no picture: normalized (negative values), a batch, a signal, a table row."""
    if not isinstance(raw, Tensor) or not raw.is_floating_point():
        return False
    return (raw.ndim == 4 and raw.shape[0] != 1) or raw.ndim not in (3, 4) or (raw.numel() > 0 and bool(raw.min() < 0))


def prepare(
    model: nn.Module, raw: Any, input: Tensor | None, options: Mapping[str, Any]
) -> tuple[Any, Tensor, images.Geometry | None, list[str]]:
    """Picture to draw, the model's input, geometry and warnings."""
    transform: Callable[[Any], Any] | None = options.get("transform")
    if raw is not None and images.is_window(options.get("window")):
        raw = images.windowed(raw, options["window"])
    if input is None and is_model_input(raw):
        input, raw = (raw[None] if raw.ndim == 3 else raw), None
    if raw is None and input is None:
        raise InputError("there is nothing to explain: give an image as raw_input, or a tensor as input.")
    if raw is None:
        check_input(input)
        assert input is not None
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


# ------------------------------------------------------------------------------------------------ positional orders


def _is_device(value: Any) -> bool:
    if value is None or isinstance(value, (torch.device, int)):
        return True
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


def sort_positions(device: Any, method: Any, layer_path: Any, default: Any) -> tuple[Any, Any, Any]:
    """Tell TensorWatch's two positional orders apart: what stands in the device's place may be the method."""
    if _is_device(device):
        return device, method, layer_path
    if layer_path is None and method is not default and method != default:
        layer_path = method
    return None, device, layer_path
