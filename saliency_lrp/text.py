"""Words coloured by relevance: text that reads as text, with the words that decided standing out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import InputError

JOINERS = ("##", "▁", "Ġ")  # how WordPiece, SentencePiece and byte-level BPE mark word boundaries


class RelevantText:
    """Tokens with their relevance; shows itself in a notebook, with or without a kernel.

    Parameters
    ----------
    tokens : sequence of str
        Words or sub-word tokens, in order.
    relevance : array_like
        One signed number per token, or (tokens, features), which is summed over the features.
    title : str
        Shown above the text, such as the predicted class.
    percentile : float
        Percentile of \\|R\\| that gets full colour.

    Raises
    ------
    InputError
        If there is not one finite number per token.
    """

    def __init__(self, tokens: Sequence[str], relevance: Any, title: str = "", percentile: float = 100.0) -> None:
        self.tokens = [str(token) for token in tokens]
        values = np.asarray(_to_numpy(relevance), dtype=np.float64)
        self.relevance = values.sum(-1) if values.ndim == 2 else values
        self.title = title
        self.percentile = percentile
        if self.relevance.shape != (len(self.tokens),):
            raise InputError(
                f"{len(self.tokens)} tokens need relevance of shape ({len(self.tokens)},) or "
                f"({len(self.tokens)}, features), not {values.shape}."
            )
        if not np.isfinite(self.relevance).all():
            raise InputError("the relevance of a text has NaN or infinite values: it cannot be drawn.")

    def _strengths(self) -> np.ndarray:
        """Relevance scaled to [-1, 1]."""
        from .display.colors import color_limit

        limit = color_limit(self.relevance, self.percentile) if len(self.tokens) else 0.0
        return np.clip(self.relevance / limit, -1, 1) if limit else np.zeros(len(self.tokens))

    def _repr_html_(self) -> str:
        spans = "".join(self._span(*item) for item in zip(self.tokens, self.relevance, self._strengths(), strict=True))
        title = f"<p style='margin:0 0 4px'><strong>{html.escape(self.title)}</strong></p>" if self.title else ""
        return (
            f"<div style='line-height:2;max-width:60em;overflow-wrap:anywhere'>{title}{spans}"
            f"<p style='margin:4px 0 0;font-size:smaller'>Σ relevance {self.relevance.sum():+.4g}. "
            "Red speaks for the class, blue against it; underlined twice: the strongest.</p></div>"
        )

    def _span(self, token: str, value: float, strength: float) -> str:
        word, space = readable(token)
        # opaque behind strong words, so that black on it can be read in any theme; a line under weak ones
        red, green, blue = (214, 96, 77) if strength > 0 else (67, 147, 195)
        strongest = abs(strength) > 0.999
        mark = ";border-bottom:3px double #000" if strongest else ""
        paint = (
            f"background:#fff;box-shadow:inset 0 0 0 2em rgba({red},{green},{blue},{abs(strength):.2f});color:#000"
            if abs(strength) >= 0.35
            else f"box-shadow:inset 0 -0.35em rgba({red},{green},{blue},{abs(strength):.2f})"
        )
        return (
            f"{space}<span title='R {value:+.4g}' style='{paint};border-radius:2px;padding:1px 2px{mark}'>"
            f"{html.escape(word)}</span>"
        )

    def __repr__(self) -> str:
        """One line per word, strongest first: what is left where there is no HTML."""
        order = np.argsort(-np.abs(self.relevance), kind="stable")[:10]
        strongest = ", ".join(f"{readable(self.tokens[i])[0]} {self.relevance[i]:+.3g}" for i in order)
        name = f"{self.title!r}, " if self.title else ""
        return f"RelevantText({name}{len(self.tokens)} tokens; strongest: {strongest})"


def show_text(tokens: Sequence[str], relevance: Any, title: str = "", percentile: float = 100.0) -> RelevantText:
    """Colour words by their relevance (red for, blue against); the result shows itself.

    Parameters
    ----------
    tokens, relevance, title, percentile
        See :class:`RelevantText`.
    """
    return RelevantText(tokens, relevance, title, percentile)


def readable(token: str) -> tuple[str, str]:
    """The token without its tokenizer's mark, and the space before it."""
    for joiner in JOINERS:
        if token.startswith(joiner) and len(token) > len(joiner):
            return token[len(joiner) :], "" if joiner == "##" else " "
    return token, " "


def _to_numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
