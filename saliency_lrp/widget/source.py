"""What the widget shows: maps of one picture, asked for one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .worker import Progress


@dataclass(frozen=True)
class Map:
    """One signed map on the picture's pixel grid.

    Parameters
    ----------
    values : numpy.ndarray
        Signed relevance, (height, width) of the picture.
    account : dict or None
        ``{"summary": str, "rows": [[name, value], ...], "text": str}``, shown beside the panel.
    warnings : tuple of str
        Why the map should not be trusted.
    signed : bool
        Whether the method's maps have a sign.
    """

    values: np.ndarray
    account: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    signed: bool = True


@dataclass(frozen=True)
class Channels:
    """The strongest channels of a layer: index, relevance of each, share of Σ|R|, and small maps (n, h, w)."""

    entries: list[dict] = field(default_factory=list)
    maps: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))


@dataclass(frozen=True)
class Checked:
    """What a check of one map found.

    Attributes
    ----------
    verdict : str
    holds : bool
        Whether every finding speaks for the map.
    findings : list of dict
        ``{"name": str, "text": str, "holds": bool}``.
    left_out : list of str
        What was not asked.
    maps : list of (str, numpy.ndarray)
        The maps that it was compared with, on the picture's pixels.
    signed : bool
        Whether they have a sign.
    """

    verdict: str
    holds: bool
    findings: list[dict]
    left_out: list[str] = field(default_factory=list)
    maps: list[tuple[str, np.ndarray]] = field(default_factory=list)
    signed: bool = True


class MapSource(Protocol):
    """What the widget shows: a model's maps for one picture.

    A source may have more: ``frame``, ``truth``, ``truth_mask`` and ``composite_groups`` as :class:`ModelMaps` has
    them, and ``check(panel, target, composite, watch) -> Checked``.
    """

    picture: np.ndarray  # (height, width, 3) uint8, or (depth, height, width, 3) slices
    probabilities: np.ndarray  # (classes,) float; empty where the model is no classifier
    classes: list[str]
    methods: list[str]
    composites: list[str]
    layers: list[str]

    def lrp(self, target: int | None, composite: str) -> Map: ...
    def layer(self, name: str, target: int | None, composite: str) -> tuple[Map, Channels]: ...
    def concept(self, layer: str, channel: int, target: int | None, composite: str) -> Map: ...
    def method(self, name: str, target: int | None, watch: Progress) -> Map: ...
