"""The colours of a map: one formula for figures, the widget, streams and text.

A method decides whether its maps are signed, never the data: a signed map is drawn in a diverging table with zero in
the middle, the magnitude of any other in a sequential one. Full colour is reached at a percentile of \\|R\\|, and the
opacity goes with the square root of \\|R\\|: a uniform opacity would whiten the picture where nothing is relevant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import unknown_name

SIGNED_COLOURS = "RdBu_r"
UNSIGNED_COLOURS = "viridis"
#: diverging tables that are offered by name
DIVERGING = (SIGNED_COLOURS, "coolwarm", "PuOr_r", "seismic", "bwr", "coldnhot")
#: maps are clipped at this percentile of |R|, so that one extreme pixel does not hide the rest
CLIP_PERCENTILE = 99.5
#: of the most relevant pixels
OPACITY = 0.8

SIGNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "both": lambda t: t,
    "positive": lambda t: np.maximum(t, 0),
    "negative": lambda t: np.minimum(t, 0),
}
BACKDROPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "colour": lambda picture, nothing: picture,
    "grey": lambda picture, nothing: light_greys(picture),
    "none": lambda picture, nothing: np.broadcast_to(nothing, picture.shape),
}
_LUMA = np.array([0.299, 0.587, 0.114])
_DARKEST = 70  # of the light greys


def _half_up(values: np.ndarray) -> np.ndarray:
    return np.floor(np.asarray(values) + 0.5).astype(np.uint8)


@lru_cache(maxsize=32)
def colour_table(name: str) -> np.ndarray:
    """The 256 RGB colours of a colour map, (256, 3) uint8; a diverging one has zero in the middle.

    Parameters
    ----------
    name : str
        ``coldnhot`` or any of matplotlib's names.
    """
    import matplotlib
    from matplotlib.colors import Colormap, LinearSegmentedColormap

    if name == "coldnhot":
        stops = [(0, "#0ff"), (0.25, "#00f"), (0.5, "#000"), (2 / 3, "#f00"), (5 / 6, "#ff0"), (1, "#fff")]
        table: Colormap = LinearSegmentedColormap.from_list(name, stops, N=256)
    elif name in matplotlib.colormaps:
        table = matplotlib.colormaps[name].resampled(256)
    else:
        raise unknown_name("colour map", name, [*DIVERGING, *matplotlib.colormaps])
    colours = _half_up(table(np.arange(256))[:, :3] * 255)
    colours.setflags(write=False)  # every caller gets the same one
    return colours


def colour_limit(values: np.ndarray, percentile: float = CLIP_PERCENTILE) -> float:
    """The magnitude that gets full colour: a percentile of \\|R\\|, or the maximum where that is 0."""
    magnitudes = np.abs(values)
    return float(np.percentile(magnitudes, percentile)) or float(magnitudes.max(initial=0.0))


def strengths(values: np.ndarray, limit: float, signed: bool = True) -> np.ndarray:
    """A map clipped at `limit` and scaled: to [-1, 1], or its magnitude to [0, 1] where the map has no sign."""
    t = np.clip(np.asarray(values) / limit, -1, 1) if limit else np.zeros(np.shape(values))
    return t if signed else np.abs(t)


def paint(t: np.ndarray, table: np.ndarray, signed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Colour (..., 3) uint8 and opacity in [0, 1] of scaled relevance; nothing is see-through."""
    share = (t + 1) / 2 if signed else t
    return table[np.floor(share * 255 + 0.5).astype(int)], np.sqrt(np.abs(t))


def light_greys(picture: np.ndarray) -> np.ndarray:
    """A picture, (H, W, 3) uint8, in light greys, so that the colours over it are the map's alone."""
    grey = _half_up(_DARKEST + (picture @ _LUMA) * ((255 - _DARKEST) / 255))
    return np.repeat(grey[..., None], 3, -1)


def backdrop_name(name: Any) -> Any:
    """The name of a backdrop as it is kept here; ``gray`` and ``color`` are understood."""
    return {"gray": "grey", "color": "colour"}.get(name, name)


def blend(
    picture: np.ndarray,
    values: np.ndarray,
    *,
    opacity: float = OPACITY,
    cmap: str = SIGNED_COLOURS,
    sign: str = "both",
    percentile: float = CLIP_PERCENTILE,
    backdrop: str = "grey",
    signed: bool = True,
    limit: float | None = None,
) -> np.ndarray:
    """Lay a map over a picture; what the browser's canvas shows, to the last bit or one beside it.

    Parameters
    ----------
    picture : numpy.ndarray
        (H, W, 3) uint8.
    values : numpy.ndarray
        (H, W) relevance.
    opacity : float
        Opacity of the most relevant pixels, 0 to 1.
    cmap, sign, backdrop : str
        Colour map; ``both``, ``positive`` or ``negative``; ``colour``, ``grey`` or ``none``.
    percentile : float
        Percentile of \\|R\\| that gets full colour.
    signed : bool
        Whether the map has a sign. If not, `cmap` and `sign` do not matter.
    limit : float, optional
        Magnitude that gets full colour, instead of the percentile: so slices of one volume compare.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8.
    """
    table = colour_table(cmap if signed else UNSIGNED_COLOURS)
    t = strengths(values, colour_limit(values, percentile) if limit is None else limit, signed)
    colours, alpha = paint(SIGNS[sign](t) if signed else t, table, signed)
    ground = BACKDROPS[backdrop_name(backdrop)](picture, table[128 if signed else 0]).astype(float)
    return np.rint(ground + opacity * alpha[..., None] * (colours - ground)).astype(np.uint8)
