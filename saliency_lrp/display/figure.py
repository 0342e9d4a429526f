"""Figures of results: maps side by side, each over its picture, with its colours said in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import images
from ..errors import InputError
from . import colors, series, volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# inches
_PANEL_WIDTH = 4.3
_BESIDE = 0.7  # colour bar and its words
_FREE = 0.95  # what words leave free of a panel's width: they are centered on the picture, left of the bar
_BELOW = 0.75  # title above and line under a panel
_LINE = 0.24
_ASPECTS = (0.3, 1.8)  # height over width of the pictures that panels are shaped for
_SMALL_LINE = 0.14  # inches under a panel, for every line beyond the first
_VIEWS = (*volume.AXES, "projection")  # of a volume, in a row
_TITLE, _PANEL_TITLE, _SMALL = 14, 13, 8  # points

_NOTE = "Colours are clipped at the {:g}th percentile of |relevance| of each map; opacity follows its square root."
_SERIES_NOTE = "The ground under a curve has the color of its relevance."
_SIGNED_NOTE = "Blue speaks against the class, red for it."
_UNSIGNED_NOTE = "Maps of methods without a sign run from blue (none) to yellow (most)."
_FRAME_NOTE = "A dashed frame shows what the model saw."


def get_image_saliency_plot(
    image_saliency_results: Sequence[Any], cols: int = 2, figsize: tuple[float, float] | None = None
) -> Figure:
    """Draw results side by side, each over its image, with its colour bar.

    Maps of signed methods (LRP, gradients, occlusion) are drawn in a diverging colour map symmetric around zero,
    others (Grad-CAM, absolute gradients) in a perceptually uniform one. A method that failed shows its reason.
    Matplotlib's global state is not touched.

    Parameters
    ----------
    image_saliency_results : sequence of ImageSaliencyResult
        Ours or TensorWatch's.
    cols : int
        Panels in a row.
    figsize : (float, float), optional
        Width and height in inches; default: by the pictures' shape.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results, cols = _flat(image_saliency_results, cols)
    figure = Figure(figsize=figsize or default_figsize(results, cols), layout="constrained")
    FigureCanvasAgg(figure)
    draw_results(figure, results, cols)
    return figure


def draw_tensorwatch(results: Sequence[Any], cols: int = 2, figsize: tuple[float, float] | None = None) -> Figure:
    """Draw results as TensorWatch does: each map in its own colours and opacity, in a pyplot figure."""
    import matplotlib.pyplot as plt

    results, cols = _flat(results, cols)
    rows = max(1, math.ceil(len(results) / cols))
    figure = plt.figure(figsize=figsize or (4 * cols, 3 * rows))
    for i, result in enumerate(results):
        if result is None:
            continue
        axes = figure.add_subplot(rows, cols, i + 1, xticks=[], yticks=[])
        axes.set_title(result.title, fontsize=18)
        picture = _picture(result.raw_image)
        if result.saliency is None:
            _draw_failure(axes, result, picture)
            continue
        values = result.saliency
        if picture is not None:
            axes.imshow(picture)
            values = _fit(values, (picture.height, picture.width))
        axes.imshow(np.atleast_2d(values), alpha=result.saliency_alpha, cmap=result.saliency_cmap)
        axes.set_aspect("equal" if np.ndim(values) > 1 else "auto")
    return figure


def default_figsize(results: Sequence[Any], cols: int) -> tuple[float, float]:
    """Inches for results, `cols` in a row: panels as high as their pictures need."""
    if not isinstance(cols, int) or cols < 1:
        raise InputError(f"cols should be a positive number of columns, not {cols!r}.")
    width = _PANEL_WIDTH * cols
    height = max((_aspect(result) for result in results), default=1.0) * (_PANEL_WIDTH - _BESIDE) + _BELOW
    height += _SMALL_LINE * max((len(_under(r, _PANEL_WIDTH)) - 1 for r in results if r is not None), default=0)
    around = [*_wrapped(_shared_subject(results), width, _TITLE), *_notes(results, width)]
    return width, height * max(1, math.ceil(len(results) / cols)) + _LINE * len(around)


@dataclass
class _FlatView:
    """One view of a volume's map, drawn as a result of its own."""

    title: str
    raw_image: Any
    saliency: np.ndarray
    signed_map: np.ndarray
    signed: bool
    limit: float
    point: tuple[int, int] | None
    subject: str
    warnings: Sequence[str] = ()
    conserved: float | None = None
    saliency_alpha: float = 0.4
    saliency_cmap: str = "jet"


@dataclass
class _Curve:
    """One channel of a series with its relevance, drawn as a result of its own."""

    title: str
    curve: np.ndarray
    signed_map: np.ndarray
    signed: bool
    limit: float
    subject: str
    warnings: Sequence[str] = ()
    verdict: str = ""
    raw_image: Any = None
    saliency_alpha: float = 0.4
    saliency_cmap: str = "jet"

    @property
    def saliency(self) -> np.ndarray:
        return images.normalize(np.abs(self.signed_map))


def _flat(results: Sequence[Any], cols: int) -> tuple[list[Any], int]:
    """Results with those of volumes as four flat views each, those of series as curves, and the columns for them."""
    shown = next((found for r in results if (found := getattr(r, "series", None)) is not None), None)
    if shown is not None:
        channels = series.strongest_rows(shown[1])
        columns = [_curves_of(result, channels) for result in results]  # a method has a column, a channel a row
        rows = max(map(len, columns))
        return [column[k] if k < len(column) else None for k in range(rows) for column in columns], len(columns)
    panels: list[Any] = []
    for result in results:
        values = None if result.saliency is None else _values(result)
        panels += _views_of(result, values) if values is not None and values.ndim == 3 else [result]
    return panels, len(_VIEWS) if any(isinstance(panel, _FlatView) for panel in panels) else cols


def _views_of(result: Any, values: np.ndarray) -> list[_FlatView]:
    from PIL import Image

    ground = getattr(result, "volume", None)
    ground = None if ground is None or ground.shape != values.shape else ground
    views = volume.views(values)
    point, limit = volume.strongest(values), colors.color_limit(values)
    signed, subject = bool(getattr(result, "signed", False)), getattr(result, "subject", "")
    flat = [
        _FlatView(
            f"{result.title}: {view.title}",
            None if ground is None else Image.fromarray(view.of(ground)).convert("RGB"),
            images.normalize(np.abs(view.values)),
            view.values,
            signed,
            limit,
            view.crosses(point) if view.index is not None else None,
            subject,
        )
        for view in views
    ]
    flat[0].warnings, flat[0].conserved = getattr(result, "warnings", ()), getattr(result, "conserved", None)
    return flat


def _curves_of(result: Any, rows: Sequence[int]) -> list[Any]:
    """Some channels of a result's series; the result itself where it has none."""
    if getattr(result, "series", None) is None:
        return [result]
    curves, relevance = result.series
    limit, subject = colors.color_limit(relevance), getattr(result, "subject", "")
    more = f", the {len(rows)} strongest of {len(curves)}" if len(rows) < len(curves) else ""
    names = [f": channel {k}{more if k == rows[0] else ''}" if len(curves) > 1 else "" for k in rows]
    found = [
        _Curve(f"{result.title}{name}", curves[k], relevance[k], bool(result.signed), limit, subject)
        for k, name in zip(rows, names, strict=True)
    ]
    found[-1].warnings, found[-1].verdict = getattr(result, "warnings", ()), getattr(result, "verdict", "")
    return found


def _aspect(result: Any) -> float:
    """Height over width of what a panel shows."""
    if isinstance(result, _Curve) or result is None:
        return _ASPECTS[0]
    picture = _picture(result.raw_image)
    if picture is None and result.saliency is None:
        return 1.0
    shape = (picture.height, picture.width) if picture is not None else _values(result).shape
    if len(shape) == 1:
        return _ASPECTS[0]
    return float(np.clip(shape[-2] / shape[-1], *_ASPECTS)) if shape else 1.0


def _values(result: Any) -> np.ndarray:
    """The map to draw, of a result that has one: signed where the result has that."""
    return np.asarray(getattr(result, "signed_map", result.saliency))


def _wrapped(text: str, inches: float, points: float) -> list[str]:
    """Lines of `text` that fit into a width: as many letters a line as its widest stretch allows."""
    room = 0.97 * inches * 72
    kept = text.replace(" %", "\N{NO-BREAK SPACE}%")
    for letters in range(max(1, int(room / (0.3 * points))), 1, -1):
        lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(kept, letters)]
        if all(_width(line, points) <= room for line in lines):
            return lines
    return list(text)


def _width(line: str, points: float) -> float:
    """Width in points of a line of text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(line, FontProperties(size=points), ismath=False)[0]


def _shared_subject(results: Sequence[Any]) -> str:
    subjects = {getattr(result, "subject", "") for result in results if result is not None}
    subject = subjects.pop() if len(subjects) == 1 else ""
    return f"What speaks for {subject}" if subject else ""


def _notes(results: Sequence[Any], width: float) -> list[str]:
    """What the reader should know, for those kinds of maps that are there."""
    drawn = [result for result in results if result is not None and result.saliency is not None]
    if not drawn:
        return []
    kinds = {bool(getattr(result, "signed", False)) for result in drawn}
    curves = all(isinstance(result, _Curve) for result in drawn)
    parts = [_SERIES_NOTE if curves else _NOTE.format(colors.CLIP_PERCENTILE)]
    parts += [_SIGNED_NOTE] * (True in kinds) + [_UNSIGNED_NOTE] * (False in kinds)
    parts += [_FRAME_NOTE] * any(_frame(result) is not None for result in drawn)
    return _wrapped(" ".join(parts), width, _SMALL)


def draw_results(figure: Figure, results: Sequence[Any], cols: int) -> None:
    """Draw results into a figure: one panel each, the subject above if all share it, notes below."""
    rows = max(1, math.ceil(len(results) / cols))
    shared, width = _shared_subject(results), figure.get_figwidth()
    for i, result in enumerate(results):
        if result is None:
            continue
        axes = figure.add_subplot(rows, cols, i + 1)
        subject = "" if shared else getattr(result, "subject", "")
        room = width / cols - _FREE
        title = [line for text in (result.title, subject) for line in _wrapped(text, room, _PANEL_TITLE)]
        axes.set_title("\n".join(title), fontsize=_PANEL_TITLE)
        axes.set_xticks([])
        axes.set_yticks([])
        _draw_panel(figure, axes, result, width / cols)
    if shared:
        figure.suptitle("\n".join(_wrapped(shared, width, _TITLE)), fontsize=_TITLE)
    figure.supxlabel("\n".join(_notes(results, width)), fontsize=_SMALL)


def _draw_panel(figure: Figure, axes: Axes, result: Any, width: float) -> None:
    picture = _picture(result.raw_image)
    if result.saliency is None:
        _draw_failure(axes, result, picture)
        return
    if isinstance(result, _Curve):
        _draw_curve(figure, axes, result)
        _say_under(axes, result, width)
        return
    values = _values(result)
    if picture is not None and values.ndim == 2:
        axes.imshow(colors.light_grays(np.asarray(picture)), interpolation="nearest")
        values = _fit(values, (picture.height, picture.width))
        _draw_frame(axes, result)
    signed = bool(getattr(result, "signed", False))
    drawn = _draw_map(axes, values, signed, picture is not None, getattr(result, "limit", None))
    _draw_cross(axes, getattr(result, "point", None))
    _draw_bar(figure, axes, drawn, signed)
    _say_under(axes, result, width)


def _say_under(axes: Axes, result: Any, width: float) -> None:
    axes.set_xlabel("\n".join(_under(result, width)), fontsize=_SMALL, color="#a33" if _warnings(result) else "#222")


def _under(result: Any, width: float) -> list[str]:
    """Lines under the map: why not to trust it, or what it is worth."""
    if _warnings(result):
        lines = _wrapped("! " + "; ".join(_warnings(result)), width - _FREE, _SMALL)
        return [*lines[:3], lines[3] + "…" * (len(lines) > 4)] if len(lines) > 3 else lines
    verdict = getattr(result, "verdict", "")
    return _wrapped(verdict, width - _FREE, _SMALL) if verdict else []


def _warnings(result: Any) -> Sequence[str]:
    return getattr(result, "warnings", ())


def _frame(result: Any) -> tuple[float, float, float, float] | None:
    """(top, left, bottom, right) of the part of the picture that the model saw, where that is not all of it."""
    geometry = getattr(result, "geometry", None)
    return None if geometry is None else geometry.visible_box()


def _draw_frame(axes: Axes, result: Any) -> None:
    from matplotlib.patches import Rectangle

    frame = _frame(result)
    if frame is not None:
        top, left, bottom, right = frame
        corner = (left - 0.5, top - 0.5)  # pixel centres are at whole numbers
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color="#333", lw=0.8, ls="--"))


def _draw_bar(figure: Figure, axes: Axes, drawn: Any, signed: bool) -> None:
    """A colour bar as high as the picture, its ends said in words."""
    limit = drawn.norm.vmax
    numbers = [-limit, 0, limit] if signed else [0, limit]
    words = ["against", "", "for"] if signed else ["none", "most"]
    labels = [f"{n:.2g}\n{w}" if w else f"{n:.2g}" for n, w in zip(numbers, words, strict=True)]
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0, 0.045, 1)), ticks=numbers)
    bar.ax.set_yticklabels(labels, fontsize=_SMALL)


def _draw_curve(figure: Figure, axes: Axes, result: _Curve) -> None:
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    end = result.limit or 1.0
    table = colors.color_table(colors.SIGNED_COLORS if result.signed else colors.UNSIGNED_COLORS)
    scale = Normalize(-end if result.signed else 0, end, clip=True)
    steps = np.arange(len(result.curve), dtype=float)
    drawn = series.draw_band(axes, steps, result.curve, result.signed_map, ListedColormap(table / 255), scale)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=_SMALL)
    _draw_bar(figure, axes, drawn, result.signed)


def _draw_cross(axes: Axes, point: tuple[int, int] | None) -> None:
    """Hair lines through the strongest voxel: where the other slices lie."""
    if point is not None:
        axes.axhline(point[0], color="#333", lw=0.5, ls=":")
        axes.axvline(point[1], color="#333", lw=0.5, ls=":")


def _draw_map(axes: Axes, values: np.ndarray, signed: bool, see_through: bool, limit: float | None = None) -> Any:
    from matplotlib import cm
    from matplotlib.colors import ListedColormap, Normalize

    values = np.atleast_2d(values)
    limit = colors.color_limit(values) if limit is None else limit
    table = colors.color_table(colors.SIGNED_COLORS if signed else colors.UNSIGNED_COLORS)
    rgb, alpha = colors.paint(colors.strengths(values, limit, signed), table, signed)
    opacity = colors.OPACITY * alpha if see_through else np.ones_like(alpha)
    rgba = np.concatenate([rgb / 255, opacity[..., None]], -1)
    axes.imshow(rgba, interpolation="nearest", aspect="equal" if values.shape[0] > 1 else "auto")
    end = limit or 1.0
    return cm.ScalarMappable(Normalize(-end if signed else 0, end, clip=True), ListedColormap(table / 255))


def _draw_failure(axes: Axes, result: Any, picture: Any) -> None:
    if picture is not None:
        axes.imshow(colors.light_grays(np.asarray(picture)), alpha=0.25)
    reason = textwrap.shorten(str(getattr(result, "error", None) or "no map"), 320)
    axes.text(
        0.5, 0.5, "no map\n" + textwrap.fill(reason, 38), transform=axes.transAxes,
        ha="center", va="center", fontsize=9, color="#a33",
    )  # fmt: skip


def _picture(raw: Any) -> Any:
    """The raw image as a PIL picture; None where it is no picture."""
    if raw is None:
        return None
    try:
        return images.load_image(raw).picture()
    except InputError:
        return None


def _fit(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map resized to the picture's height and width, for results made elsewhere."""
    return values if values.shape == size else images.Geometry.whole(size).place(values)
