"""What an explanation gives back, and how it shows itself: figure, PNG, HTML, table, files."""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import images
from .errors import InputError
from .model.answer import Answer

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

_PANEL = (4.3, 3.7)  # inches
_NOTE = (
    "Colours are clipped at the {:g}th percentile of |relevance| of each map; opacity follows |relevance|.\n"
    "Blue speaks against the class, red for it; maps without a sign run from blue (none) to yellow (most). "
    "A dashed frame shows what the model saw."
)


@dataclass(eq=False, repr=False)
class ImageSaliencyResult:
    """One saliency map of one image.

    The first five fields are TensorWatch's, so that its plot draws these results too.

    Attributes
    ----------
    raw_image : PIL image or None
        What the user gave, to draw under the map.
    saliency : numpy.ndarray or None
        (H, W) float32 in [0, 1] on the raw image's pixels: absolute values summed over channels,
        min-max scaled. None if the method failed.
    title : str
    saliency_alpha : float
        Opacity that TensorWatch's own plot uses.
    saliency_cmap : str
        Colour map that TensorWatch's own plot uses.
    relevance : Tensor or None
        What the explainer returned: signed, shaped like the model's input, on the CPU.
    method : str or None
    label : int, callable or None
        The class that was explained.
    seconds : float or None
        Time that the method took.
    report : Report or None
        Where relevance went (LRP only).
    error : Exception or None
        Why there is no map.
    warnings : list of str
        Why not to trust the map.
    class_name, score, runner_up
        Name and score of the explained class, and (name, score) of the best other one, if known. A score is a
        probability, or the model's own number where it has one output.
    answer : Answer or None
        All that the model said of the picture; None for a callable label.
    geometry : images.Geometry or None
        Which part of the raw image the model saw.
    quality : dict
        Measured quality, name to number.
    """

    raw_image: Any
    saliency: np.ndarray | None
    title: str
    saliency_alpha: float = 0.4
    saliency_cmap: str = "jet"
    _: KW_ONLY
    relevance: Tensor | None = None
    method: str | None = None
    label: Any = None
    seconds: float | None = None
    report: Any = None
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)
    class_name: str | None = None
    score: float | None = None
    runner_up: tuple[str, float] | None = None
    answer: Answer | None = field(default=None, repr=False)
    geometry: images.Geometry | None = None
    quality: dict[str, float] = field(default_factory=dict)

    def take(self, answer: Answer) -> None:
        """Note what the model says of the picture."""
        self.answer, self.class_name, self.score = answer, answer.name(), answer.share()
        if answer.runner_up is not None:
            self.runner_up = (answer.name(answer.runner_up), answer.share(answer.runner_up))

    @property
    def signed_map(self) -> np.ndarray | None:
        """(H, W) float64: relevance summed over channels, sign kept, on the raw image's pixels."""
        if self.relevance is None:
            return self.saliency
        return place(self.relevance, self.geometry)

    @property
    def conserved(self) -> float | None:
        """Share of the explained score that the map accounts for, where the method keeps account."""
        return getattr(self.report, "conserved", None)

    @property
    def verdict(self) -> str:
        """What the map is worth, in one or two sentences; empty where the method keeps no account."""
        return getattr(self.report, "verdict", "")

    @property
    def subject(self) -> str:
        """The explained class, its score and the runner-up, as far as they are known."""
        if self.class_name is None:
            return ""
        words = self.class_name if self.score is None else f"{self.class_name} ({self.score:.2f})"
        return (
            words if self.runner_up is None else f"{words}; best other: {self.runner_up[0]} ({self.runner_up[1]:.2f})"
        )

    def __repr__(self) -> str:
        if self.error is not None:
            return f"<{self.title}: failed: {self.error}>"
        shape = "no map" if self.saliency is None else " x ".join(map(str, self.saliency.shape))
        subject = f" of {self.class_name}" if self.class_name else ""
        return f"<{self.title}{subject}: {shape}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return SaliencyResults([self])._repr_mimebundle_(include, exclude) | {"text/plain": _text([self])}

    def plot(self, figsize: tuple[float, float] | None = None) -> Figure:
        """Draw this map alone."""
        return get_image_saliency_plot([self], cols=1, figsize=figsize)


def place(relevance: Tensor, geometry: images.Geometry | None) -> np.ndarray:
    """Sum the first item's relevance over channels and put it on the raw image's pixels."""
    summed = relevance[0].double()
    summed = (summed.sum(0) if summed.ndim > 1 else summed).cpu().numpy()
    return summed if geometry is None or summed.ndim != 2 else geometry.place(summed)


class SaliencyResults(list):
    """A list of :class:`ImageSaliencyResult` that shows itself side by side in a notebook.

    ``results["lrp"]`` finds a result by its method.
    """

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            for result in self:
                if key in (result.method, result.title):
                    return result
            raise KeyError(f"no result of method {key!r}: there are {[r.title for r in self]}")
        item = super().__getitem__(key)
        return SaliencyResults(item) if isinstance(key, slice) else item

    def __repr__(self) -> str:
        return "[" + ",\n ".join(map(repr, self)) + "]"

    def plot(self, cols: int | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """Draw all maps side by side, four in a row at most unless `cols` says otherwise."""
        return get_image_saliency_plot(self, cols or min(max(len(self), 1), 4), figsize)

    def to_frame(self) -> pandas.DataFrame:
        """A table with one row per method: seconds, conserved, label, score, quality, warnings, error."""
        import pandas

        return pandas.DataFrame([_row(result) for result in self])

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the results to a file.

        Parameters
        ----------
        path : str or Path
            ``.html`` for a page that needs nothing else, ``.npz`` for the arrays (``<method>`` and
            ``<method>.signed``), or any kind of figure that Matplotlib writes.
        **options
            For Matplotlib's ``savefig``.
        """
        path = Path(path)
        if path.suffix == ".html":
            path.write_text(_page(self), encoding="utf-8")
        elif path.suffix == ".npz":
            np.savez_compressed(path, **_arrays(self))
        else:
            figure = self.plot()
            known = figure.canvas.get_supported_filetypes()
            if path.suffix.lstrip(".") not in known:
                raise InputError(f"cannot write {path.name!r}: give it one of .html, .npz, .{', .'.join(known)}.")
            figure.savefig(path, **options)
        return path

    def _repr_html_(self) -> str:
        return _fragment(self)

    def _repr_png_(self) -> bytes:
        return _png(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if not self:
            return {"text/plain": repr(self)}
        png = _png(self)
        return {"text/plain": _text(self), "image/png": _base64(png), "text/html": _fragment(self, png)}


def _row(result: Any) -> dict[str, Any]:
    row = {"method": getattr(result, "method", None) or result.title}
    for name in ("seconds", "conserved", "verdict", "label", "class_name", "score"):
        row[name] = getattr(result, name, None)
    row.update(getattr(result, "quality", {}))
    row["warnings"] = "; ".join(getattr(result, "warnings", ()))
    row["error"] = str(getattr(result, "error", None) or "")
    return row


def _arrays(results: Sequence[Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for result in results:
        if result.saliency is not None:
            arrays[result.title] = result.saliency
            arrays[f"{result.title}.signed"] = getattr(result, "signed_map", result.saliency)
    return arrays


# ----------------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------------


def get_image_saliency_plot(
    image_saliency_results: Sequence[Any], cols: int = 2, figsize: tuple[float, float] | None = None
) -> Figure:
    """Draw results side by side, each over its image, with its colour bar.

    Signed maps are drawn in a diverging colour map symmetric around zero, others in a perceptually
    uniform one. A method that failed shows its reason. Matplotlib's global state is not touched.

    Parameters
    ----------
    image_saliency_results : sequence of ImageSaliencyResult
        Ours or TensorWatch's.
    cols : int
        Panels in a row.
    figsize : (float, float), optional
        Width and height in inches.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = list(image_saliency_results)
    figure = Figure(figsize=figsize or default_figsize(len(results), cols), layout="constrained")
    FigureCanvasAgg(figure)
    draw_results(figure, results, cols)
    return figure


def draw_tensorwatch(results: Sequence[Any], cols: int = 2, figsize: tuple[float, float] | None = None) -> Figure:
    """Draw results as TensorWatch does: each map in its own colours and opacity, in a pyplot figure."""
    import matplotlib.pyplot as plt

    rows = max(1, math.ceil(len(results) / cols))
    figure = plt.figure(figsize=figsize or (4 * cols, 3 * rows))
    for i, result in enumerate(results):
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
        axes.imshow(values, alpha=result.saliency_alpha, cmap=result.saliency_cmap)
    return figure


def default_figsize(count: int, cols: int, panel: tuple[float, float] = _PANEL) -> tuple[float, float]:
    """Inches for `count` panels, `cols` in a row."""
    if not isinstance(cols, int) or cols < 1:
        raise InputError(f"cols should be a positive number of columns, not {cols!r}.")
    return panel[0] * cols, panel[1] * max(1, math.ceil(count / cols)) + 0.6


def draw_results(figure: Figure, results: Sequence[Any], cols: int) -> None:
    """Draw results into a figure: one panel each, the subject above if all share it, notes below."""
    rows = max(1, math.ceil(len(results) / cols))
    subjects = {getattr(result, "subject", "") for result in results}
    shared = subjects.pop() if len(subjects) == 1 else ""
    for i, result in enumerate(results):
        axes = figure.add_subplot(rows, cols, i + 1)
        subject = "" if shared else getattr(result, "subject", "")
        axes.set_title(result.title + (f"\n{subject}" if subject else ""), fontsize=13)
        axes.set_xticks([])
        axes.set_yticks([])
        _draw_panel(figure, axes, result)
    if shared:
        figure.suptitle(f"What speaks for {shared}", fontsize=14)
    if any(result.saliency is not None for result in results):
        width = int(figure.get_figwidth() * 13)
        note = _NOTE.format(images.CLIP_PERCENTILE)
        figure.supxlabel("\n".join(textwrap.fill(line, width) for line in note.split("\n")), fontsize=8)


def _draw_panel(figure: Figure, axes: Axes, result: Any) -> None:
    picture = _picture(result.raw_image)
    if result.saliency is None:
        _draw_failure(axes, result, picture)
        return
    values = getattr(result, "signed_map", result.saliency)
    if picture is not None and values.ndim == 2:
        axes.imshow(images.backdrop(picture), interpolation="nearest")
        values = _fit(values, (picture.height, picture.width))
        _draw_frame(axes, getattr(result, "geometry", None))
    drawn = _draw_map(axes, values, see_through=picture is not None)
    _draw_bar(figure, axes, drawn, signed=images.is_signed(values))
    warnings = getattr(result, "warnings", ())
    verdict = getattr(result, "verdict", "")
    if warnings:
        axes.set_xlabel(textwrap.fill("! " + "; ".join(warnings), 55)[:220], fontsize=8, color="#a33")
    elif verdict:
        axes.set_xlabel(textwrap.fill(verdict, 58), fontsize=8)


def _draw_frame(axes: Axes, geometry: images.Geometry | None) -> None:
    """Mark the part of the picture that the model saw, where that is not all of it."""
    from matplotlib.patches import Rectangle

    if geometry is None:
        return
    (height, width), (top, left, bottom, right) = geometry.raw, geometry.box
    top, bottom = np.clip(sorted((top, bottom)), 0, height)
    left, right = np.clip(sorted((left, right)), 0, width)
    if (bottom - top) * (right - left) < 0.98 * height * width:
        corner = (left - 0.5, top - 0.5)  # pixel centres are at whole numbers
        axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color="#333", lw=0.8, ls="--"))


def _draw_bar(figure: Figure, axes: Axes, drawn: Any, signed: bool) -> None:
    """A colour bar as high as the picture, its ends said in words."""
    limit = drawn.norm.vmax
    numbers = [-limit, 0, limit] if signed else [0, limit]
    words = ["against", "", "for"] if signed else ["none", "most"]
    labels = [f"{n:.2g}\n{w}" if w else f"{n:.2g}" for n, w in zip(numbers, words, strict=True)]
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0, 0.045, 1)), ticks=numbers)
    bar.ax.set_yticklabels(labels, fontsize=8)


def _draw_map(axes: Axes, values: np.ndarray, see_through: bool) -> Any:
    from matplotlib import cm, colormaps
    from matplotlib.colors import Normalize

    values = np.atleast_2d(values)
    limit = images.clip_value(values)
    signed = images.is_signed(values)
    colours = images.SIGNED_COLOURS if signed else images.UNSIGNED_COLOURS
    scale = cm.ScalarMappable(Normalize(-limit if signed else 0, limit, clip=True), colormaps[colours])
    rgba = scale.to_rgba(values)
    if see_through:
        rgba[..., 3] = images.opacity(values, limit)
    axes.imshow(rgba, interpolation="nearest", aspect="equal" if values.shape[0] > 1 else "auto")
    return scale


def _draw_failure(axes: Axes, result: Any, picture: Any) -> None:
    if picture is not None:
        axes.imshow(images.backdrop(picture), alpha=0.25)
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


# ----------------------------------------------------------------------------------------------
# PNG and HTML
# ----------------------------------------------------------------------------------------------


def _png(results: Sequence[Any]) -> bytes:
    buffer = io.BytesIO()
    SaliencyResults.plot(SaliencyResults(results)).savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _fragment(results: Sequence[Any], png: bytes | None = None) -> str:
    """HTML of the figure and of what could not be trusted; the same from run to run."""
    names = ", ".join(result.title for result in results)
    image = (
        f'<img alt="Saliency maps: {html.escape(names)}" style="max-width:100%" '
        f'src="data:image/png;base64,{_base64(png or _png(results))}">'
    )
    items = "".join(f"<li>{html.escape(line)}</li>" for line in _remarks(results))
    return f"<div>{image}{f'<ul>{items}</ul>' if items else ''}</div>"


def _text(results: Sequence[Any]) -> str:
    """Results for who sees no picture: what they are, and what is said of them."""
    shown = repr(results[0]) if len(results) == 1 else repr(SaliencyResults(results))
    return "\n".join([shown, *_remarks(results)])


def _remarks(results: Sequence[Any]) -> list[str]:
    """What is to be said of each result: why there is no map, what the map is worth, why not to trust it."""
    lines = []
    for result in results:
        error = getattr(result, "error", None)
        lines += [f"{result.title}: no map: {error}"] if error is not None else []
        verdict = getattr(result, "verdict", "")
        lines += [f"{result.title}: {verdict}"] if verdict else []
        lines += [f"{result.title}: {warning}" for warning in getattr(result, "warnings", ())]
    return lines


def _page(results: SaliencyResults) -> str:
    """A whole HTML page with the figure and the table."""
    table = results.to_frame().to_html(index=False, border=0, na_rep="", float_format=lambda v: f"{v:.3g}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Saliency maps</title><style>'
        "body{font-family:sans-serif;margin:2em;max-width:90em}td,th{padding:.2em .8em;text-align:left}"
        f"</style></head><body><h1>Saliency maps</h1>{_fragment(results)}{table}</body></html>\n"
    )
