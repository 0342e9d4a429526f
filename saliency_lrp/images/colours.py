"""Colours of maps: limits, opacity, the picture underneath."""

from __future__ import annotations

from typing import Any

import numpy as np

SIGNED_COLOURS = "RdBu_r"
UNSIGNED_COLOURS = "viridis"


#: maps are clipped at this percentile of |R|, so that one extreme pixel does not hide the rest
CLIP_PERCENTILE = 99.5


def normalise(values: np.ndarray) -> np.ndarray:
    """Min-max to [0, 1] as float32; a constant map gives zeros."""
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


def clip_value(values: np.ndarray, percentile: float = CLIP_PERCENTILE) -> float:
    """The magnitude at which a map is clipped for display: a percentile of |R|, never zero."""
    magnitude = np.abs(values)
    limit = float(np.percentile(magnitude, percentile))
    return limit or float(magnitude.max()) or 1.0


def is_signed(values: np.ndarray) -> bool:
    """Whether a map has negative values that matter for display."""
    return bool(values.min() < 0)


def opacity(values: np.ndarray, limit: float, most: float = 0.9) -> np.ndarray:
    """Opacity per pixel in [0, most], by |R| up to `limit`: what does not matter stays see-through."""
    return most * np.clip(np.abs(values) / limit, 0, 1)


def backdrop(picture: Any) -> np.ndarray:
    """A picture in light greys, (H, W, 3) uint8, so that the colours over it are the map's alone."""
    grey = np.asarray(picture.convert("L"), np.float32)
    light = np.round(70 + grey * (185 / 255)).astype(np.uint8)
    return np.repeat(light[..., None], 3, 2)
