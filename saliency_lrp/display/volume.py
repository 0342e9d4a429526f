"""Volumes as pictures: slices through the strongest point, and the maximum along an axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import normalize

#: names of the slices across the first, second and third axis of a volume (depth, height, width)
AXES = ("depth", "height", "width")


@dataclass(frozen=True)
class View:
    """One flat view of a volume.

    Attributes
    ----------
    title : str
    values : numpy.ndarray
        (h, w) of the map.
    axis : int
        The axis that is looked along.
    index : int or None
        Which slice; None for the projection, the value of largest magnitude along the axis.
    """

    title: str
    values: np.ndarray
    axis: int
    index: int | None = None

    def of(self, volume: np.ndarray) -> np.ndarray:
        """The same view of another volume of the same shape: its slice, or its maximum along the axis."""
        return volume.max(self.axis) if self.index is None else np.take(volume, self.index, self.axis)

    def crosses(self, point: tuple[int, ...]) -> tuple[int, int]:
        """Row and column of a voxel in this view."""
        row, column = (edge for axis, edge in enumerate(point) if axis != self.axis)
        return row, column


def strongest(values: np.ndarray) -> tuple[int, ...]:
    """The voxel with the largest \\|R\\|."""
    return tuple(int(edge) for edge in np.unravel_index(int(np.abs(values).argmax()), values.shape))


def views(values: np.ndarray) -> list[View]:
    """Three orthogonal slices through the strongest voxel of (D, H, W) relevance, and the projection along depth."""
    point = strongest(values)
    slices = [
        View(f"{AXES[axis]} {point[axis]}", np.take(values, point[axis], axis), axis, point[axis]) for axis in range(3)
    ]
    return [*slices, View("strongest along depth", projection(values), 0)]


def projection(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The value of largest magnitude along an axis, with its sign."""
    best = np.abs(values).argmax(axis)
    return np.take_along_axis(values, np.expand_dims(best, axis), axis).squeeze(axis)


def grays(values: Tensor, most: int | None = None) -> np.ndarray:
    """A volume to lay maps over: (C, D, H, W) as (d, h, w, 3) uint8, channels averaged.

    Above `most` voxels it is made smaller.
    """
    volume = values.detach().float().cpu().mean(0)
    if most is not None and volume.numel() > most:
        factor = (most / volume.numel()) ** (1 / 3)
        size = [max(1, int(side * factor)) for side in volume.shape]
        volume = F.interpolate(volume[None, None], size, mode="area")[0, 0]
    levels = np.rint(normalize(torch.nan_to_num(volume).numpy()) * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, -1)
