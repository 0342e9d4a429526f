"""What an explanation gives back, and how it shows itself: PNG, HTML, table, files."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import images
from .display.figure import get_image_saliency_plot
from .display.series import along_time
from .display.volume import grays
from .errors import InputError
from .model.answer import Answer

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch import Tensor

    from .check import Check
    from .check.door import Origin


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
    signed : bool
        Whether the method's maps have a sign: it decides the colours. Default: what the method says of itself.
    origin : Origin or None
        The model, the input and the method that :meth:`check` goes back to; left out where a result is pickled.
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
    signed: bool | None = None
    origin: Origin | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.signed is None:
            self.signed = (self.method is None and self.relevance is not None) or is_signed(self.method)

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
    def volume(self) -> np.ndarray | None:
        """(D, H, W) uint8: the volume that was explained, in greys, to draw under its map; None for anything else."""
        x: Any = None if self.origin is None else self.origin.question.input
        if getattr(x, "ndim", 0) != 5:
            return None
        return grays(x[0])[..., 0]

    @property
    def series(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(channels, T) each: the series that was explained and its relevance; None for anything else.

        The longer axis is taken for time.
        """
        x: Any = None if self.origin is None else self.origin.question.input
        if getattr(x, "ndim", 0) != 3 or self.relevance is None or min(x.shape[1:]) < 1 or max(x.shape[1:]) < 2:
            return None
        values = x[0].detach().double().cpu()
        R = self.relevance[0].double().expand_as(values)
        return along_time(values.numpy()), along_time(R.numpy())

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

    def check(self, random_seed: int = 0) -> Check:
        """Measure whether this map can be trusted, by some 30 passes of the model, which is left as it was.

        Asked is: is it this model's map; does the model miss what the map calls important; does a second rule show the
        same; is it another for another class, and once the model's head is drawn anew.

        Returns
        -------
        Check
            ``.verdict`` in words, ``.table()`` with the numbers, ``.passed``; shows itself in a notebook.

        Raises
        ------
        InputError
            If there is no map, or the result does not know its model (it was loaded from a file).
        """
        if self.relevance is None:
            raise InputError(f"there is no map to check: {self.error or 'this result was made without relevance'}.")
        if self.origin is None:
            raise InputError(
                "this result does not know its model any more (it was loaded from a file, or made by hand): call "
                "saliency_lrp.check.check(model, image, method=..., relevance=result.relevance)."
            )
        return self.origin.check(self.relevance, random_seed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "origin": None}

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


def is_signed(method: str | None) -> bool:
    """Whether the maps of a method have a sign; not if there is no such method."""
    from .explainers import registry

    return method in registry.list_methods() and registry.is_signed(str(method))


def place(relevance: Tensor, geometry: images.Geometry | None) -> np.ndarray:
    """Sum the first item's relevance over channels and put it on the raw image's pixels."""
    summed = relevance[0].double()
    pixels = (summed.sum(0) if summed.ndim > 1 else summed).cpu().numpy()
    return pixels if geometry is None or pixels.ndim != 2 else geometry.place(pixels)


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
        """A table with one row per method: seconds, conserved, verdict, label, score, quality, warnings, error."""
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
            np.savez_compressed(path, **_arrays(self))  # type: ignore[arg-type]
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
