"""A source of known maps, so that the widget is tested without a model."""

from __future__ import annotations

import time

import numpy as np

from saliency_lrp.widget import Channels, Map
from saliency_lrp.widget.worker import Progress


class KnownSource:
    """Smooth signed maps that depend on method, class, composite and layer, and a slow method of 100 steps."""

    def __init__(
        self,
        size: int = 32,
        methods: tuple[str, ...] = ("lrp", "grad_x_input", "slow", "broken"),
        classes: int = 12,
        pause: float = 0.02,
    ) -> None:
        self.size = size
        self.pause = pause
        self.calls: list[tuple] = []
        y, x = np.mgrid[:size, :size] / size
        self.picture = np.stack([x * 255, y * 255, 128 + 100 * np.sin(12 * x * y)], -1).astype(np.uint8)
        scores = np.arange(classes, dtype=float)[::-1]
        self.probabilities = np.exp(scores) / np.exp(scores).sum()
        self.classes = [f"thing {index}" for index in range(classes)]
        self.methods = list(methods)
        self.composites = ["epsilon", "epsilon_plus", "gamma"]
        self.layers = ["stem", "block.0", "block.1"]

    def _wave(self, *what: object) -> np.ndarray:
        phase = sum(map(ord, repr(what))) % 97 / 97
        y, x = np.mgrid[: self.size, : self.size] / self.size
        blob = np.exp(-((x - 0.5) ** 2 + (y - 0.4) ** 2) / 0.05)
        return (blob * np.sin(9 * x + 6.28 * phase) * np.cos(7 * y - 6.28 * phase)).astype(np.float32)

    def lrp(self, target: int | None, composite: str) -> Map:
        self.calls.append(("lrp", target, composite))
        account = {
            "summary": "98.7 % conserved",
            "rows": [["relevance in", "2.31"], ["absorbed by bias", "0.03"]],
            "text": "site  in  out\nconv1 2.31 2.28",
        }
        return Map(self._wave("lrp", target, composite), account)

    def layer(self, name: str, target: int | None, composite: str) -> tuple[Map, Channels]:
        self.calls.append(("layer", name, target, composite))
        entries = [{"index": index, "relevance": 1.0 / (index + 1), "share": 0.5 / (index + 1)} for index in (3, 1, 7)]
        maps = np.stack([self._wave(name, entry["index"])[::4, ::4] for entry in entries])
        return Map(self._wave(name, target, composite)), Channels(entries, maps)

    def concept(self, layer: str, channel: int, target: int | None, composite: str) -> Map:
        self.calls.append(("concept", layer, channel, target, composite))
        return Map(self._wave(layer, channel, target, composite))

    def method(self, name: str, target: int | None, watch: Progress) -> Map:
        self.calls.append((name, target))
        if name == "broken":
            raise ValueError("this method cannot do it")
        for _ in range(100 if name == "slow" else 1):
            watch.step(total=100)
            time.sleep(self.pause if name == "slow" else 0)
        return Map(self._wave(name, target), warnings=("nearly nothing is relevant",) if name == "weak" else ())
