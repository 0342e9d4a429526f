"""Relevance under the curve of a time series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .display.colors import CLIP_PERCENTILE, SIGNED_COLORS, color_limit
from .display.series import draw_band
from .errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_relevance(
    series: Any,
    relevance: Any,
    time: Any = None,
    names: Sequence[str] = (),
    title: str = "",
    cmap: str = SIGNED_COLORS,
    percentile: float = CLIP_PERCENTILE,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw every channel of a series with its relevance as a band of colour under the curve.

    All channels share one colour scale, symmetric about 0, so that their bands compare.

    Parameters
    ----------
    series : array_like
        (T,) or (channels, T) values.
    relevance : array_like
        Signed, of the same shape.
    time : array_like, optional
        (T,) positions on the x axis; default 0, 1, 2, …
    names : sequence of str
        One per channel, for the y axes.
    title : str
        Above the figure.
    cmap : str
        Diverging colour map.
    percentile : float
        Percentile of \\|R\\| that gets full colour.
    figsize : (float, float), optional
        Inches; default 8 wide and 1.6 a channel.

    Returns
    -------
    matplotlib.figure.Figure
        Not attached to pyplot: a notebook shows it once.

    Raises
    ------
    InputError
        If the shapes do not fit or a value is not finite.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    values, scores, moments = _checked(series, relevance, time, names)
    limit = color_limit(scores, percentile) or 1.0
    scale = Normalize(-limit, limit)
    figure = Figure(figsize=figsize or (8, 1.0 + 1.6 * len(values)), layout="constrained")
    axes = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axis, curve, score in zip(axes, values, scores, strict=True):
        bands = draw_band(axis, moments, curve, score, cmap, scale)
    for axis, name in zip(axes, names, strict=False):
        axis.set_ylabel(name)
    axes[-1].set_xlabel("time" if time is not None else "step")
    figure.colorbar(bands, ax=list(axes), label="relevance")
    if title:
        figure.suptitle(title)
    return figure


def _checked(series: Any, relevance: Any, time: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, scores = (
        np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, dtype=np.float64)
        for given in (series, relevance)
    )
    if values.shape != scores.shape or values.ndim not in (1, 2) or values.shape[-1] < 2 or not values.size:
        raise InputError(
            "a time series and its relevance should both be (T,) or (channels, T) with at least two steps, "
            f"not {values.shape} and {scores.shape}."
        )
    if not (np.isfinite(values).all() and np.isfinite(scores).all()):
        raise InputError("the series or its relevance has NaN or infinite values: it cannot be drawn.")
    values, scores = np.atleast_2d(values), np.atleast_2d(scores)
    moments = np.arange(values.shape[1], dtype=float) if time is None else np.asarray(time, dtype=float)
    if moments.shape != (values.shape[1],) or not (np.diff(moments) > 0).all():
        raise InputError(f"time should be {values.shape[1]} increasing numbers, not an array of shape {moments.shape}.")
    if names and len(names) != len(values):
        raise InputError(f"{len(names)} names were given for {len(values)} channels.")
    return values, scores, moments
