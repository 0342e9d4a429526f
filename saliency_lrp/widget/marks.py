"""Lines over a picture: the part that the model saw, and where the object is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError

FRAME, TRUTH = (51, 51, 51), (0, 166, 81)
_DASH = (4, 3)  # pixels drawn, pixels left out


def as_mask(truth: Any, size: tuple[int, int]) -> np.ndarray:
    """Where the object is, (H, W) bool, from a mask or a box.

    Parameters
    ----------
    truth : array_like
        (H, W) mask of the picture's size, not 0 on the object; or the box (left, top, right, bottom) in pixels.
    size : (int, int)
        Height and width of the picture.

    Raises
    ------
    InputError
        For anything else.
    """
    values = np.asarray(truth.detach().cpu() if hasattr(truth, "detach") else truth)
    if values.shape == (4,):
        left, top, right, bottom = (float(edge) for edge in values)
        rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
        return (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
    if values.shape != size:
        raise InputError(
            f"truth= should be a mask of the picture's size, {size[0]} x {size[1]}, or a box "
            f"(left, top, right, bottom), not an array of shape {values.shape}."
        )
    return values.astype(bool)


def shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size: on where most of what a pixel covers is."""
    from PIL import Image

    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(picture) > 127


def outline(mask: np.ndarray) -> str:
    """The outline of a mask along the edges of its pixels, as an SVG path: M, H and V with numbers only."""
    inside = np.pad(mask, 1)
    parts = []
    for top, (above, below) in enumerate(itertools.pairwise(inside)):
        parts += [f"M{start} {top}H{stop}" for start, stop in _runs((above != below)[1:-1])]
    for left, (before, after) in enumerate(zip(inside.T[:-1], inside.T[1:], strict=True)):
        parts += [f"M{left} {start}V{stop}" for start, stop in _runs((before != after)[1:-1])]
    return "".join(parts)


def _runs(on: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def drawn(pixels: np.ndarray, frame: Sequence[float], mask: np.ndarray | None) -> np.ndarray:
    """A picture, (H, W, 3) uint8, with the dashed frame and the mask's border in it."""
    if not frame and mask is None:
        return pixels
    out = np.array(pixels)
    if mask is not None:
        inner = np.pad(mask, 1)
        kept = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        out[mask & ~kept] = TRUTH
    if frame:
        height, width = pixels.shape[:2]
        top, bottom = (int(np.clip(edge, 0, height - 1)) for edge in (frame[0], frame[2] - 1))
        left, right = (int(np.clip(edge, 0, width - 1)) for edge in (frame[1], frame[3] - 1))
        across, down = _dashes(left, right + 1), _dashes(top, bottom + 1)
        out[top, across] = out[bottom, across] = FRAME
        out[down, left] = out[down, right] = FRAME
    return out


def _dashes(start: int, stop: int) -> np.ndarray:
    along = np.arange(start, stop)
    return along[(along - start) % sum(_DASH) < _DASH[0]]
