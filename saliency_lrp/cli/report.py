"""What the command says of its maps: lines for a terminal, a page for a browser."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from string import Template

import numpy as np
from torch import nn

from .explained import Explained, Subject, share_inside

PAGE = Path(__file__).parents[1] / "data" / "report.html"


GLOSSARY = {
    "score": "What the model gave the class, in most networks its logit: what the maps explain.",
    "probability": "Softmax of the scores; the score itself where the network ends in a softmax.",
    "conserved": (
        "LRP hands the score back to the pixels layer by layer. This is the share of it that arrived; the "
        "rest was taken or given by biases and stabilisers. Far below or above 100 %, the map tells only part of "
        "the story. Gradient and occlusion promise no such sum, so they have none."
    ),
    "seconds": "Time for one map, on this machine.",
    "on the object": (
        "The share of the positive relevance that lies inside the square that the digit was pasted into. A "
        "map drawn at random gets about 16 %, since that is the square's share of the image."
    ),
    "colours": "Red pixels speak for the class, blue ones against it; what is transparent hardly matters.",
}


def percent(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f} %"


def headline(item: Explained) -> str:
    """What the model says about an image, and what the truth is where it is known."""
    answer, truth = item.answer, item.subject.truth
    says = f"the model says {answer.name(answer.best)}"
    if truth is not None:
        says += " (right)" if answer.best == truth else f" (wrong: it is {answer.name(truth)})"
    probability = answer.probability()
    odds = "" if probability is None else f", probability {percent(probability)}"
    return f"{item.subject.name}: {says}; explained: {answer.name()}, score {answer.score():.2f}{odds}"


def table(item: Explained) -> list[list[str]]:
    """The numbers of every method, the first row being their names."""
    mask = item.subject.mask
    rows = [["method", "seconds", "conserved"] + (["on the object"] if mask is not None else [])]
    for result in item.results:
        seconds = "failed" if result.seconds is None else f"{result.seconds:.3f}"
        rows.append([result.method, seconds, percent(result.conserved)])
        if mask is not None:
            inside = None if result.signed_map is None else share_inside(result.signed_map, mask)
            rows[-1].append(percent(inside))
    return rows


def _warnings(item: Explained) -> list[str]:
    """Why a method failed, or why not to trust its map."""
    return [
        f"{result.method}: {' '.join(str(text).split())}"
        for result in item.results
        for text in ([result.error] if result.error is not None else result.warnings)
    ]


def as_text(item: Explained) -> str:
    """Headline, table and warnings for a terminal."""
    rows = table(item)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [headline(item)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "   ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, *(f"  warning: {text}" for text in _warnings(item))])


def _terms(explained: list[Explained]) -> dict[str, str]:
    """The glossary, without the terms that these results do not use."""
    known_place = explained[0].subject.mask is not None
    return {term: text for term, text in GLOSSARY.items() if known_place or term != "on the object"}


def glossary_text(explained: list[Explained]) -> str:
    """What the numbers mean, for a terminal."""
    from textwrap import fill

    terms = _terms(explained)
    width = max(map(len, terms)) + 4
    indent = " " * width
    lines = [fill(f"  {t:{width - 2}}{text}", 100, subsequent_indent=indent) for t, text in terms.items()]
    return "\n".join(["what the numbers mean", *lines])


def as_page(explained: list[Explained], model: nn.Module, command: str) -> str:
    """All results as one HTML page with its pictures inside."""
    subjects = "an image" if len(explained) == 1 else f"{len(explained)} images"
    intro = (
        f"What {type(model).__name__} sees in {subjects}, by {len(explained[0].results)} methods: "
        "red pixels speak for the class, blue ones against it."
    )
    terms = _terms(explained).items()
    glossary = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in terms)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title="Where the answer came from",
        intro=html.escape(intro),
        sections="\n".join(_section(item) for item in explained),
        glossary="\n".join(glossary),
        command=html.escape(command),
    )


def _section(item: Explained) -> str:
    says, _, numbers = headline(item).partition("; ")
    alt = f"{item.subject.name} and its maps by {', '.join(result.method for result in item.results)}"
    warnings = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in _warnings(item))
    return (
        f'<section><h2>{html.escape(says)}</h2><p class="subject">{_thumbnail(item.subject)}'
        f"<span>{html.escape(numbers)}</span></p>"
        f'<div class="maps"><img alt="{html.escape(alt)}" src="{_inlined(item.picture.read_bytes())}"></div>'
        f"{_html_table(table(item))}{warnings}</section>"
    )


def _thumbnail(subject: Subject, side: int = 96) -> str:
    """The image itself in its own colours, small."""
    picture = subject.image.convert("RGB")
    picture.thumbnail((2 * side, 2 * side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    scale = side / max(picture.size)
    width, height = (round(scale * length) for length in picture.size)
    alt = html.escape(subject.name)
    return f'<img alt="{alt}" width="{width}" height="{height}" src="{_inlined(buffer.getvalue())}">'


def _inlined(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _html_table(rows: list[list[str]]) -> str:
    head, *body = rows

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = [line(head, "th"), *(line(row, "td") for row in body)]
    return f'<div class="table"><table>{"".join(lines)}</table></div>'
