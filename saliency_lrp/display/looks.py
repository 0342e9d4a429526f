"""How a map is looked at: one row per control. The widget, its page, the call it copies and ``%saliency`` read it here.

What a look does to pixels is in :mod:`saliency_lrp.display.colors` and, for the browser, in ``overlay.js``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .colors import BACKDROPS, CLIP_PERCENTILE, OPACITY, SIGNED_COLORS, SIGNS


@dataclass(frozen=True)
class Scale:
    """A number, chosen by a slider.

    Attributes
    ----------
    label : str
        What the page calls it.
    default, low, high : float
        The numbers that may be set.
    slider : tuple of float
        Where the slider begins and ends, and its step.
    percent : bool
        Whether the page shows it in percent.
    digits : int
        How many decimals count.
    blends : bool
        Whether the colors stay, and only their share of the picture changes.
    """

    label: str
    default: float
    low: float
    high: float
    slider: tuple[float, float, float]
    percent: bool = False
    digits: int = 2
    blends: bool = False

    def as_kept(self, value: Any) -> Any:
        """The value in the spelling that is kept."""
        return value

    def for_page(self) -> dict[str, Any]:
        """What the browser needs to draw the control."""
        low, high, step = self.slider
        shown = {"percent": self.percent, "digits": self.digits, "blends": self.blends}
        return {"label": self.label, "min": low, "max": high, "step": step, **shown}


@dataclass(frozen=True)
class Choice:
    """A name of several.

    Attributes
    ----------
    label, default : str
    names : mapping
        Each name, and what the page calls it. None: any color map.
    also : mapping
        Other spellings that are understood, and the name that each means.
    """

    label: str
    default: str
    names: Mapping[str, str] | None
    also: Mapping[str, str] = field(default_factory=dict)

    def as_kept(self, value: Any) -> Any:
        """The value in the spelling that is kept."""
        return self.also.get(value, value) if isinstance(value, str) else value

    def for_page(self) -> dict[str, Any]:
        """What the browser needs to draw the control."""
        return {"label": self.label, "options": None if self.names is None else list(self.names.items())}


SIGN_LABELS = {"both": "both signs"}

LOOKS: dict[str, Scale | Choice] = {
    "opacity": Scale("Opacity", OPACITY, 0, 1, slider=(0, 1, 0.01), percent=True, digits=3, blends=True),
    "cmap": Choice("Colors", SIGNED_COLORS, None),
    "sign": Choice("Sign", "both", {name: SIGN_LABELS.get(name, name) for name in SIGNS}),
    "percentile": Scale("Clip percentile", CLIP_PERCENTILE, 0, 100, slider=(90, 100, 0.1)),
    "backdrop": Choice("Backdrop", "gray", {name: name for name in BACKDROPS}, {"grey": "gray", "colour": "color"}),
}
