"""Where the pixels of a model's input come from on the raw picture, told or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .transforms import as_function

_NEARLY_ALL = 0.98


@dataclass(frozen=True)
class Geometry:
    """Which rectangle of the raw image the model's input shows.

    Attributes
    ----------
    raw : (int, int)
        Height and width of the raw image.
    box : (float, float, float, float)
        Top, left, bottom and right of the input in raw pixels. It may lie partly outside (padding),
        and bottom < top or right < left means that the input is flipped.
    """

    raw: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, raw: tuple[int, int]) -> Geometry:
        """The input is the raw image, resized or not."""
        return cls(raw, (0.0, 0.0, float(raw[0]), float(raw[1])))

    def place(self, values: np.ndarray) -> np.ndarray:
        """Put a map over the input, (h, w), on the raw image's pixels, (H, W); 0 outside the box.

        Enlarging interpolates linearly; shrinking averages.
        """
        top, left, bottom, right = self.box
        if self == Geometry.whole(values.shape):
            return values.astype(np.float64)
        rows = _resampling(self.raw[0], values.shape[0], top, bottom)
        columns = _resampling(self.raw[1], values.shape[1], left, right)
        return rows @ values.astype(np.float64) @ columns.T

    def visible_box(self) -> tuple[float, float, float, float] | None:
        """Top, left, bottom and right of what the model saw within the raw image; None if that is nearly all of it."""
        (height, width), (top, left, bottom, right) = self.raw, self.box
        top, bottom = (min(max(edge, 0.0), float(height)) for edge in sorted((top, bottom)))
        left, right = (min(max(edge, 0.0), float(width)) for edge in sorted((left, right)))
        if (bottom - top) * (right - left) >= _NEARLY_ALL * height * width:
            return None
        return top, left, bottom, right


def _resampling(raw: int, side: int, start: float, stop: float) -> np.ndarray:
    """(raw, side) weights: row i says how raw pixel i is mixed from the `side` pixels of [start, stop]."""
    scale = side / (stop - start)
    centers = (np.arange(raw) + 0.5 - start) * scale  # raw pixel centres in input pixels
    inside = (centers >= 0) & (centers <= side)
    centers = np.clip(centers, 0.5, side - 0.5)
    reach = max(abs(scale), 1.0)
    distance = np.abs(centers[:, None] - (np.arange(side) + 0.5)) / reach
    weights = np.clip(1 - distance, 0, None) * inside[:, None]
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)


def measure_geometry(transform: Callable[[Any], Any], raw: tuple[int, int]) -> Geometry | None:
    """Find out where a transform takes its pixels from, by sending pictures of coordinates through it.

    Parameters
    ----------
    transform : callable
        From a PIL image to a tensor (C, h, w) or (1, C, h, w): resizes, crops, pads, flips, normalises.
    raw : (int, int)
        Height and width of the raw image.

    Returns
    -------
    Geometry or None
        None if the coordinates do not come back along straight lines (a random or a warping transform).
    """
    height, width = raw
    rows = np.repeat((np.arange(height) + 0.5)[:, None] / height, width, 1)
    columns = np.repeat((np.arange(width) + 0.5)[None] / width, height, 0)
    black, white = (_send(transform, np.full(raw, value)) for value in (0.0, 1.0))
    gain = white.max() - black.min()
    if black.shape != white.shape or gain <= 0:
        return None
    seen = (white - black) > 0.99 * gain  # padding has one colour, whatever the picture
    spans = []
    for ramp, side, axis in ((rows, height, 0), (columns, width, 1)):
        sent = _send(transform, ramp)
        if sent.shape != black.shape or not np.array_equal(sent, _send(transform, ramp)):
            return None
        span = _line(side * (sent - black) / gain, seen, axis, tolerance=1.5 + side / 100)
        if span is None:
            return None
        spans.append(span)
    (top, bottom), (left, right) = spans
    return Geometry(raw, (top, left, bottom, right))


def _send(transform: Callable[[Any], Any], gray: np.ndarray) -> np.ndarray:
    """First channel, (h, w), of what the transform makes of a grey picture with values in [0, 1]."""
    from PIL import Image

    levels = np.round(gray * 255).astype(np.uint8)
    sent = as_batch(transform(Image.fromarray(np.repeat(levels[..., None], 3, 2))))
    return sent[0, 0].detach().cpu().double().numpy()


def _line(coordinates: np.ndarray, seen: np.ndarray, axis: int, tolerance: float) -> tuple[float, float] | None:
    """Fit raw = a + b * pixel along one axis; return the raw positions of the input's two edges."""
    count = seen.sum(1 - axis)
    if (count > 0).sum() < 2:
        return None
    line = (coordinates * seen).sum(1 - axis)[count > 0] / count[count > 0]
    position = np.arange(seen.shape[axis])[count > 0] + 0.5
    inner = slice(1, -1) if len(line) > 4 else slice(None)  # interpolation bends the line at the edges
    slope, offset = np.polyfit(position[inner], line[inner], 1)
    spread = np.abs(coordinates - np.expand_dims(offset + slope * (np.arange(seen.shape[axis]) + 0.5), 1 - axis))
    if slope == 0 or spread[seen].max() > tolerance:
        return None
    return float(offset), float(offset + slope * seen.shape[axis])


def as_batch(tensor: Any) -> Tensor:
    """What a transform returned, as (1, C, h, w) floats."""
    if isinstance(tensor, np.ndarray):
        tensor = torch.from_numpy(tensor)
    if not isinstance(tensor, Tensor):
        raise InputError(f"transform= should return a torch tensor, not {type(tensor).__name__}.")
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise InputError(f"transform= should return C x H x W or 1 x C x H x W, not {tuple(tensor.shape)}.")
    return tensor if tensor.is_floating_point() else tensor.float()


def geometry_of(transform: Callable[[Any], Any], raw: tuple[int, int]) -> tuple[Geometry, list[str]]:
    """Geometry of a transform, and a warning where it could not be measured."""
    geometry = measure_geometry(as_function(transform), raw)
    if geometry is not None:
        return geometry, []
    return Geometry.whole(raw), [
        "where transform= takes its pixels from could not be measured (is it random?): the map is drawn as "
        "if the whole image had been resized"
    ]
