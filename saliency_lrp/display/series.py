"""Curves with their relevance: the ground under a curve has its color."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Most channels that a result shows: those with most relevance.
MOST_ROWS = 6


def along_time(values: np.ndarray) -> np.ndarray:
    """(channels, T) of a series whose longer axis is taken for time."""
    return values if values.shape[1] >= values.shape[0] else values.T


def strongest_rows(relevance: np.ndarray, most: int = MOST_ROWS) -> list[int]:
    """The channels to show, in their order: those with the largest Σ|R|."""
    sums = np.abs(relevance).sum(1)
    return sorted(int(k) for k in np.argsort(-sums, kind="stable")[:most])


def draw_band(axes: Axes, moments: np.ndarray, curve: np.ndarray, scores: np.ndarray, cmap: Any, scale: Any) -> Any:
    """Fill the space under a curve with the relevance of each step, and return what has the colors.

    ``moments``, ``curve`` and ``scores`` are (T,): places on the x axis, values, relevance, of at least two steps.
    """
    floor = curve.min() - 0.08 * (np.ptp(curve) or 1.0)
    middles = (moments[1:] + moments[:-1]) / 2
    edges = np.concatenate([[1.5 * moments[0] - 0.5 * moments[1]], middles, [1.5 * moments[-1] - 0.5 * moments[-2]]])
    ceiling = curve.max() + 0.05 * (np.ptp(curve) or 1.0)
    mesh = axes.pcolormesh(edges, [floor, ceiling], scores[None], cmap=cmap, norm=scale)
    under = axes.fill_between(moments, curve, floor, visible=False)
    mesh.set_clip_path(under.get_paths()[0], axes.transData)
    under.remove()
    axes.plot(moments, curve, color="black", linewidth=1.2)
    axes.set_xlim(edges[0], edges[-1])
    return mesh
