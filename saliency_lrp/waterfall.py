"""An account of relevance as a drawing: from the score, sink by sink, down to what arrived at the input."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple

from . import verdict as words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report import Report

#: Steps drawn between the score and what arrived; the smallest are drawn as one.
MOST_STEPS = 12
#: The share from which a step is drawn for itself.
LEAST_SHARE = 0.005

#: Colors of bars: readable on white and on black, told apart by who cannot see red or green.
COLORS = {"score": "#7f7f7f", "arrived": "#2a7fb8", "taken": "#d9822b", "added": "#3a9d8f"}


class Step(NamedTuple):
    """One bar: from which share of the score to which."""

    name: str
    kind: str
    start: float
    end: float

    @property
    def share(self) -> float:
        """What the bar stands for: what is there, or what was taken (negative: added)."""
        return self.start - self.end if self.kind in ("taken", "added") else self.end - self.start

    @property
    def label(self) -> str:
        """The share in words, with a sign where the bar is a change."""
        sign = {"taken": "−", "added": "+"}.get(self.kind)
        return sign + words.percent(abs(self.share)) if sign else words.percent(self.share)


def steps(report: Report) -> list[Step]:
    """The score, every loss in the order relevance met it, and what arrived; shares of the score."""
    if not math.isfinite(report.result) or not report.scale:
        return []
    shares: dict[tuple[str, str], float] = {}
    for loss in reversed(words.losses(report)):  # relevance goes from the output to the input
        key = (loss.sink, loss.stage)
        shares[key] = shares.get(key, 0.0) + loss.amount / report.scale
    drawn = sorted((key for key in shares if abs(shares[key]) >= LEAST_SHARE), key=lambda key: -abs(shares[key]))
    drawn = drawn[:MOST_STEPS]
    level = report.seed / report.scale
    found = [Step("the score", "score", 0.0, level)]
    for key in (key for key in shares if key in drawn):
        found.append(_loss(words.SINKS[key[0]].format(key[1]), level, shares[key]))
        level = found[-1].end
    rest = level - report.result / report.scale
    if abs(rest) > words.NEGLIGIBLE:
        found.append(_loss(f"{len(shares) - len(drawn)} smaller ones", level, rest))
    return [*found, Step("arrived at the input", "arrived", 0.0, report.result / report.scale)]


def _loss(name: str, level: float, share: float) -> Step:
    return Step(name, "taken" if share > 0 else "added", level, level - share)


def plot(report: Report, figsize: tuple[float, float] | None = None) -> Figure:
    """Draw the account with Matplotlib, whose global state is not touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = steps(report)
    figure = Figure(figsize=figsize or (8.0, 1.2 + 0.3 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k, bar in enumerate(bars):
        axes.barh(k, bar.end - bar.start, left=bar.start, color=COLORS[bar.kind], height=0.7)
        axes.annotate(
            f" {bar.label}", (max(bar.start, bar.end), k), va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="#888", lw=0.8)
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Where the score went, from the output to the input", fontsize=10)
    return figure


def as_html(report: Report) -> str:
    """The account as a table of bars, without script or picture; empty where there is no account to draw."""
    bars = steps(report)
    if not bars:
        return ""
    low, high = min(0.0, *(min(b.start, b.end) for b in bars)), max(0.0, *(max(b.start, b.end) for b in bars))
    span = (high - low) or 1.0
    rows = "".join(_html_row(bar, low, span) for bar in bars)
    return (
        '<table style="border-collapse:collapse;width:100%;max-width:46em" '
        f'aria-label="Where the score went, from the output to the input"><tbody>{rows}</tbody></table>'
    )


def _html_row(bar: Step, low: float, span: float) -> str:
    left, width = 100 * (min(bar.start, bar.end) - low) / span, 100 * abs(bar.end - bar.start) / span
    drawn = (
        f'<div style="margin-left:{left:.2f}%;width:{width:.2f}%;min-width:1px;height:.8em;'
        f'background:{COLORS[bar.kind]}"></div>'
    )
    return (
        f'<tr><th scope="row" style="text-align:left;font-weight:normal;padding:1px .6em 1px 0">'
        f'{html.escape(bar.name)}</th><td style="width:45%;padding:1px 0">{drawn}</td>'
        f'<td style="text-align:right;white-space:nowrap;padding:1px 0 1px .6em">{bar.label}</td></tr>'
    )
