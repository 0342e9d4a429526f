"""What a check found, and how it shows itself: words, numbers, small pictures."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..display.figure import get_image_saliency_plot
from ..results import ImageSaliencyResult
from .findings import SAME, Finding
from .subject import Subject

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(repr=False, eq=False)
class Check:
    """Whether a map can be trusted.

    Attributes
    ----------
    findings : list of Finding
        One per question.
    left_out : list of str
        Questions that would have taken too many passes of the model.
    subject : Subject
        What was checked.
    """

    findings: list[Finding]
    left_out: list[str]
    subject: Subject

    @property
    def passed(self) -> bool:
        """Whether every finding speaks for the map."""
        return all(finding.holds for finding in self.findings)

    @property
    def score(self) -> float:
        """From 0 (not this model's map) to 1: agreement with the map made again times that with a second rule.

        A map made again agrees to rounding; what differs as much as fails that question counts as another map.
        """
        product = 1.0
        for finding in self.findings:
            if finding.name == "made again":
                product *= min(max((finding.value - SAME) / (1 - SAME), 0.0), 1.0)
            elif finding.name.startswith("second rule"):
                product *= min(max(finding.value, 0.0), 1.0)
        return product

    @property
    def verdict(self) -> str:
        """What was found, in one or two sentences."""
        failed = [finding for finding in self.findings if not finding.holds]
        if not failed:
            return f"The map holds: {_joined([finding.says for finding in self.findings])}."
        opening = "Do not trust this map" if any(finding.grave for finding in failed) else "Read this map with care"
        return f"{opening}: {_joined([finding.says for finding in failed])}."

    def table(self) -> pandas.DataFrame:
        """One row per question: what was measured, in a number and in words, and whether it speaks for the map."""
        import pandas

        rows = [(finding.name, finding.value, finding.text, finding.holds) for finding in self.findings]
        return pandas.DataFrame(rows, columns=["question", "value", "measured", "holds"])

    def results(self) -> list[ImageSaliencyResult]:
        """The map and those that it was compared with, to be drawn side by side."""
        subject = self.subject
        title = subject.plan.method
        maps = [(title, subject.relevance)]
        maps += [(finding.name, finding.map) for finding in self.findings if finding.map is not None]
        return [
            ImageSaliencyResult(
                subject.picture, None if relevance is None else _placeholder(relevance), name,
                relevance=relevance, geometry=subject.geometry, signed=subject.signed,
            )
            for name, relevance in maps
            if name != "made again"
        ]  # fmt: skip

    def plot(self, figsize: tuple[float, float] | None = None) -> Figure:
        """Draw the map beside those that it was compared with."""
        results = self.results()
        return get_image_saliency_plot(results, min(len(results), 4), figsize)

    def __repr__(self) -> str:
        return f"<Check: {self.verdict}>"

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"  {'✓' if f.holds else '✗'} {f.name:<{width}}  {f.text}" for f in self.findings]
        return "\n".join([self.verdict, *lines, *(f"  – {text}" for text in self.left_out)])

    def _repr_html_(self, png: bytes | None = None) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{"✓" if f.holds else "✗"}</td>'
            f'<th scope="row" style="text-align:left;font-weight:normal">{html.escape(f.name)}</th>'
            f'<td style="text-align:left">{html.escape(f.text)}</td></tr>'
            for f in self.findings
        )
        left_out = "".join(f"<p>Not asked: {html.escape(text)}</p>" for text in self.left_out)
        source = base64.b64encode(png or self._repr_png_()).decode("ascii")
        return (
            f"<p><strong>{html.escape(self.verdict)}</strong></p><table><tbody>{rows}</tbody></table>{left_out}"
            f'<img alt="The map and those that it was compared with" style="max-width:100%" '
            f'src="data:image/png;base64,{source}">'
        )

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        png = self._repr_png_()
        return {
            "text/plain": str(self),
            "image/png": base64.b64encode(png).decode("ascii"),
            "text/html": self._repr_html_(png),
        }


def _joined(parts: list[str]) -> str:
    return " and ".join([part for part in ("; ".join(parts[:-1]), *parts[-1:]) if part])


def _placeholder(relevance: Any) -> Any:
    """A figure draws the signed map; that there is one is all it asks of the other."""
    return relevance[0].abs().sum(0).numpy() if relevance.dim() > 2 else relevance[0].abs().numpy()
