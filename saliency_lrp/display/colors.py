"""The colors of a map: one formula for figures, the widget, streams and text.

A method decides whether its maps are signed, never the data: a signed map is drawn in a diverging table with zero in
the middle, the magnitude of any other in a sequential one. Full color is reached at a percentile of \\|R\\|, and the
opacity goes with the square root of \\|R\\|: a uniform opacity would whiten the picture where nothing is relevant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ..errors import unknown_name

SIGNED_COLORS = "RdBu_r"
UNSIGNED_COLORS = "viridis"
#: diverging tables that are offered by name
DIVERGING = (SIGNED_COLORS, "coolwarm", "PuOr_r", "seismic", "bwr", "coldnhot")
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
    "color": lambda picture, nothing: picture,
    "gray": lambda picture, nothing: light_grays(picture),
    "none": lambda picture, nothing: np.broadcast_to(nothing, picture.shape),
}
_LUMA = np.array([0.299, 0.587, 0.114])
_DARKEST = 70  # of the light grays


def _half_up(values: np.ndarray) -> np.ndarray:
    return np.floor(np.asarray(values) + 0.5).astype(np.uint8)


@lru_cache(maxsize=32)
def color_table(name: str) -> np.ndarray:
    """The 256 RGB colors of a color map, (256, 3) uint8; a diverging one has zero in the middle.

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
        raise unknown_name("color map", name, [*DIVERGING, *matplotlib.colormaps])
    colors = _half_up(table(np.arange(256))[:, :3] * 255)
    colors.setflags(write=False)  # every caller gets the same one
    return colors


def color_limit(values: np.ndarray, percentile: float = CLIP_PERCENTILE) -> float:
    """The magnitude that gets full color: a percentile of \\|R\\|, or the maximum where that is 0."""
    magnitudes = np.abs(values)
    return float(np.percentile(magnitudes, percentile)) or float(magnitudes.max(initial=0.0))


def strengths(values: np.ndarray, limit: float, signed: bool = True) -> np.ndarray:
    """A map clipped at `limit` and scaled: to [-1, 1], or its magnitude to [0, 1] where the map has no sign."""
    t = np.clip(np.asarray(values) / limit, -1, 1) if limit else np.zeros(np.shape(values))
    return t if signed else np.abs(t)


def paint(t: np.ndarray, table: np.ndarray, signed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Color (..., 3) uint8 and opacity in [0, 1] of scaled relevance; nothing is see-through."""
    share = (t + 1) / 2 if signed else t
    return table[np.floor(share * 255 + 0.5).astype(int)], np.sqrt(np.abs(t))


def light_grays(picture: np.ndarray) -> np.ndarray:
    """A picture, (H, W, 3) uint8, in light grays, so that the colors over it are the map's alone."""
    gray = _half_up(_DARKEST + (picture @ _LUMA) * ((255 - _DARKEST) / 255))
    return np.repeat(gray[..., None], 3, -1)


def blend(
    picture: np.ndarray,
    values: np.ndarray,
    *,
    opacity: float = OPACITY,
    cmap: str = SIGNED_COLORS,
    sign: str = "both",
    percentile: float = CLIP_PERCENTILE,
    backdrop: str = "gray",
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
        Color map; ``both``, ``positive`` or ``negative``; ``color``, ``gray`` or ``none``.
    percentile : float
        Percentile of \\|R\\| that gets full color.
    signed : bool
        Whether the map has a sign. If not, `cmap` and `sign` do not matter.
    limit : float, optional
        Magnitude that gets full color, instead of the percentile: so slices of one volume compare.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8.
    """
    table = color_table(cmap if signed else UNSIGNED_COLORS)
    t = strengths(values, color_limit(values, percentile) if limit is None else limit, signed)
    colors, alpha = paint(SIGNS[sign](t) if signed else t, table, signed)
    ground = BACKDROPS[backdrop](picture, table[128 if signed else 0]).astype(float)
    return np.rint(ground + opacity * alpha[..., None] * (colors - ground)).astype(np.uint8)
