"""``saliency-lrp --demo`` with a network for photographs: methods, classes, verdicts, a check, all on one page."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from .. import waterfall
from ..display import colors
from ..photographs import Photograph, class_names, photographs

if TYPE_CHECKING:
    from ..check import Check
    from ..results import ImageSaliencyResult, SaliencyResults

PAGE = Path(__file__).parents[1] / "data" / "demo.html"
METHODS = ("lrp", "gradcam", "grad_x_input", "occlusion")
#: few windows: a picture of 224 pixels is covered by 16 of them
WINDOWS = {"window": 80, "stride": 48}
#: answers of the network that are told
TOLD = 3
#: the longer side of a picture on the page
SIDE = 480


@dataclass(frozen=True)
class Explained:
    """A photograph and all that the page tells of it."""

    photograph: Photograph
    results: SaliencyResults
    rival: ImageSaliencyResult
    check: Check
    view: str

    @property
    def first(self) -> ImageSaliencyResult:
        """The map of the class that the network answers, by the first method."""
        return self.results[0]

    @property
    def answers(self) -> str:
        """``Egyptian cat (38 %), tiger cat (33 %), tabby (17 %)``."""
        answer = self.first.answer
        assert answer is not None and answer.probabilities is not None, "the network of photographs has classes"
        best = answer.probabilities.argsort(descending=True)[:TOLD].tolist()
        return ", ".join(f"{answer.name(k)} ({answer.probability(k):.0%})".replace("%", " %") for k in best)

    @property
    def says(self) -> str:
        """What the network says, in one line."""
        return f"{self.photograph.name}: the network says {self.answers}"


def explain(model: nn.Module, photograph: Photograph, methods: Sequence[str]) -> Explained:
    """All maps of one photograph."""
    from .. import compare_saliency, get_image_saliency_results

    picture = photograph.image
    windows: dict[str, Any] = WINDOWS if "occlusion" in methods else {}
    results = get_image_saliency_results(model, picture, methods=methods, **windows)
    rival = class_names().index(photograph.rival)
    other = get_image_saliency_results(model, picture, label=rival, methods=methods[:1])[0]
    widget = compare_saliency(model, picture, methods=methods, wait=None, **windows)
    widget.wait()
    return Explained(photograph, results, other, results[0].check(), widget.to_html())


def run(model: nn.Module, methods: Sequence[str], out: Path, command: str) -> list[Path]:
    """Explain the photographs, print what there is to say, and write a page and a figure of each."""
    start, explained, written = time.perf_counter(), [], []
    for photograph in photographs():
        item = explain(model, photograph, methods)
        explained.append(item)
        written.append(out / f"{photograph.name.replace(' ', '-')}.png")
        item.results.plot().savefig(written[-1], dpi=110, bbox_inches="tight")
        print(as_text(item), end="\n\n")
    page = out / "index.html"
    page.write_text(as_page(explained, command, time.perf_counter() - start), encoding="utf-8")
    return [*written, page]


def as_text(item: Explained) -> str:
    """For a terminal."""
    seconds = ", ".join(f"{result.method} {result.seconds:.2f} s" for result in item.results if result.seconds)
    return "\n".join([item.says, f"  {seconds}", f"  {item.first.verdict}", f"  {item.check.verdict}"])


# ------------------------------------------------------------------------------------------------ the page


def as_page(explained: list[Explained], command: str, seconds: float) -> str:
    """One HTML file with everything in it."""
    names = [item.photograph.name for item in explained]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title="Where the answer came from",
        intro=(
            f"What EfficientNet-Lite0, trained on ImageNet, sees in {len(names)} pictures, by "
            f"{len(explained[0].results)} methods. "
            "Layer-wise relevance propagation (lrp) hands the score of a class back to the pixels."
        ),
        links="".join(f'<a href="#picture-{k}">{html.escape(name)}</a>' for k, name in enumerate(names)),
        sections="\n".join(_section(k, item) for k, item in enumerate(explained)),
        command=html.escape(command),
        seconds=f"{seconds:.0f}",
    )


def _section(k: int, item: Explained) -> str:
    view = (
        f'<iframe title="Interactive view of {html.escape(item.photograph.name)}" loading="lazy" '
        f'srcdoc="{html.escape(item.view)}"></iframe>'
    )
    methods = "".join(_figure(result, result.title) for result in item.results)
    classes = "".join(_figure(result, _class(result)) for result in (item.first, item.rival))
    return (
        f'<section id="picture-{k}"><h2>{html.escape(item.says)}</h2><p>{html.escape(item.photograph.look)}</p>'
        f"<h3>Two classes of one picture, by {html.escape(item.first.title)}</h3>{_maps(classes)}"
        f"<h3>Methods side by side, for {html.escape(item.first.class_name or '')}</h3>{view}"
        f"<noscript>{_maps(methods)}</noscript>"
        f"<h3>What the map is worth</h3>{_asked(item.first.verdict)}"
        f"{_account(item.first.report)}{_findings(item.check)}</section>"
    )


def _class(result: ImageSaliencyResult) -> str:
    share = "" if result.score is None else f", {100 * result.score:.1f} %"
    return f"{result.class_name}{share}"


def _maps(figures: str) -> str:
    return f'<div class="maps">{figures}</div>'


def _figure(result: ImageSaliencyResult, caption: str) -> str:
    if result.signed_map is None:
        return f"<figure><figcaption>{html.escape(f'{caption}: no map: {result.error}')}</figcaption></figure>"
    picture = np.asarray(result.raw_image.convert("RGB"))
    drawn = colors.blend(picture, result.signed_map, signed=bool(result.signed))
    alt = f"{result.title} map for {result.class_name}"
    return (
        f'<figure><img alt="{html.escape(alt)}" src="{_inlined(drawn)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _inlined(pixels: np.ndarray) -> str:
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _asked(sentence: str) -> str:
    return f'<p class="asked">{html.escape(sentence)}</p>' if sentence else ""


def _account(report: Any) -> str:
    """Where the score went, of methods that keep account."""
    if report is None:
        return ""
    bars = waterfall.as_html(report)
    return f'<details><summary>Where the score went</summary><div class="table">{bars}</div></details>'


def _findings(check: Check) -> str:
    lines = "".join(
        f"<li>{'✓' if f.holds else '✗'} {html.escape(f.name)}: {html.escape(f.text)}</li>" for f in check.findings
    )
    return f'{_asked(check.verdict)}<ul class="findings">{lines}</ul>'
