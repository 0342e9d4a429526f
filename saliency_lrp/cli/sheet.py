"""A store of maps as one page: every item as a small picture, to be sorted by class, by account, the odd ones first.

What is odd is measured against the other items: how much of the score the map accounts for, how much of it lies on few
pixels or along the border, how much speaks against the class, how high the score is.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import nn

from ..dataset import EXPLAINED, SKIPPED, Items, Store
from ..display.colors import blend
from ..images import load_image
from ..model.answer import ClassNames, class_name
from ..model.card import read_card
from ..verdict import ADDS_UP

PAGE = Path(__file__).parents[1] / "data" / "sheet.html"
#: Most pictures on a page; of more items the oddest are shown, and some of the others.
MOST_TILES = 1000
#: Longest side of a picture, and its quality as JPEG.
TILE, QUALITY = 144, 72
#: Part of the pixels that counts as few; width of the border as a part of the picture.
FEW, BORDER = 0.01, 1 / 16
#: From how many typical deviations on an item is called odd.
ODD = 3.5


@dataclass(frozen=True)
class Measure:
    """Something that is measured of every item: how it is said, and which difference is too small to be odd."""

    name: str
    words: str
    least: float


MEASURES = (
    Measure("account", "{:.0%} of the score arrives (usually {:.0%})", 0.02),
    Measure("focus", "{:.0%} of the map on 1 % of the pixels (usually {:.0%})", 0.02),
    Measure("border", "{:.0%} of the map along the border (usually {:.0%})", 0.02),
    Measure("against", "{:.0%} of the map speaks against the class (usually {:.0%})", 0.02),
    Measure("score", "a score of {:.2f} (usually {:.2f})", 0.05),
)


@dataclass
class Tile:
    """One item: what it is called, what was explained, what its map is like."""

    index: int
    name: str
    label: int
    title: str
    measured: dict[str, float]
    oddness: float = 0.0
    why: str = ""

    @property
    def account(self) -> str:
        """In a word, how much of the score the map accounts for."""
        share = self.measured["account"]
        if not math.isfinite(share):
            return "no account"
        if abs(share - 1) <= ADDS_UP:
            return "adds up to the score"
        if share < 0:
            return "the other sign than the score"
        return "part of the score" if share < 1 else "more than the score"


def write_sheet(store: Store, items: Items, model: nn.Module, path: Path, command: str = "") -> Path:
    """Write the page of a store; of several targets the first is shown.

    Parameters
    ----------
    store : Store
        With a map of every item's input.
    items : Items
        The images that were explained.
    model : torch.nn.Module
        Its names of classes are used.
    path : Path
        Where the page goes: one file that needs nothing else.
    command : str
        The command that made it.
    """
    group, names = store.group, read_card(model).names
    tiles = [measured(group, items, k, names) for k in np.flatnonzero(group["status"][:] == EXPLAINED)]
    find_odd(tiles)
    skipped = [(items.name(int(k)), reason) for k, reason in skipped_items(group)]
    shown = chosen(sorted(tiles, key=lambda tile: (-tile.oddness, tile.index)))
    counts = f"{len(tiles)} explained" + (f", {len(skipped)} skipped" if skipped else "")
    if len(shown) < len(tiles):
        counts += f"; the {len(shown) // 2} oddest are shown, and every few of the others"
    path.write_text(
        Template(PAGE.read_text("utf-8")).substitute(
            counts=html.escape(counts),
            composite=html.escape(rules_of(group)),
            labels="".join(options_of(tiles)),
            tiles="\n".join(figure(tile, picture(group, items, tile.index)) for tile in shown),
            skipped="".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in skipped),
            hidden="" if skipped else "hidden",
            command=html.escape(command),
            store=html.escape(str(store.out)),
        ),
        encoding="utf-8",
    )
    return path


def rules_of(group: Any) -> str:
    """The composite by name, or as it prints itself."""
    return str(group.attrs["job"]["composite"]).partition("\n")[0].removeprefix("Composite ").strip("'")[:80]


def skipped_items(group: Any) -> Iterator[tuple[int, str]]:
    """Numbers and reasons of what has no map."""
    for k in np.flatnonzero(group["status"][:] == SKIPPED):
        yield int(k), bytes(group["reason"][int(k)]).rstrip(b"\0").decode(errors="ignore")


# ------------------------------------------------------------------------------------------------ what is odd


def map_of(group: Any, k: int) -> np.ndarray:
    """(H, W) relevance of an item, of the first target, summed over channels."""
    return np.asarray(group["input"][k, 0], np.float64).sum(0)


def measured(group: Any, items: Items, k: Any, names: ClassNames | None) -> Tile:
    """What is known of an item."""
    k = int(k)
    values, label, score = map_of(group, k), int(group["target"][k, 0]), float(group["score"][k, 0])
    found = {"account": float(group["conserved"][k, 0]), "score": score, **of_map(values)}
    said = class_name(names, label) if label >= 0 else "what was asked"
    return Tile(k, items.name(k), label, f"{said} · {score:.2f}", found)


def of_map(values: np.ndarray) -> dict[str, float]:
    """Shares of Σ|R|: on few pixels, along the border, against the class."""
    size = np.abs(values)
    total = float(size.sum()) or 1.0
    few = max(1, round(FEW * size.size))
    top, left = (max(1, round(BORDER * side)) for side in size.shape)
    inner = float(size[top:-top, left:-left].sum())
    return {
        "focus": float(np.partition(size.ravel(), -few)[-few:].sum()) / total,
        "border": 1 - inner / total,
        "against": float(size[values < 0].sum()) / total,
    }


def find_odd(tiles: Sequence[Tile]) -> None:
    """Note of every item how far it is from the others, in typical deviations, and in which respect most."""
    for measure in MEASURES:
        values = np.array([tile.measured[measure.name] for tile in tiles])
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        usual = float(np.median(known))
        least = measure.least * (max(abs(usual), 1.0) if measure.name == "score" else 1.0)
        spread = max(1.4826 * float(np.median(np.abs(known - usual))), least)
        for tile, value in zip(tiles, values, strict=True):
            far = abs(value - usual) / spread if math.isfinite(value) else 0.0
            if far > tile.oddness:
                tile.oddness, tile.why = far, measure.words.format(value, usual)


def chosen(tiles: Sequence[Tile], most: int = MOST_TILES) -> list[Tile]:
    """All, or where they are too many the oddest and an even choice of the others."""
    if len(tiles) <= most:
        return list(tiles)
    first, rest = most // 2, tiles[most // 2 :]
    kept = {round(k) for k in np.linspace(0, len(rest) - 1, most - first)}
    return [*tiles[:first], *(tile for k, tile in enumerate(rest) if k in kept)]


# ------------------------------------------------------------------------------------------------ how it is shown


def picture(group: Any, items: Items, k: int) -> str:
    """What the model saw of an image under its map, small, as a data address."""
    from PIL import Image

    raw = load_image(items.source[k])
    top, left, bottom, right = items.preprocessing.geometry(raw.size).box
    values = map_of(group, k)
    scale = TILE / max(values.shape)
    size = tuple(max(1, round(scale * side)) for side in reversed(values.shape))
    edges = [round(edge) for edge in (left, top, right, bottom)]
    seen = raw.picture().convert("RGB").crop((edges[0], edges[1], edges[2], edges[3])).resize(size)
    small = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    Image.fromarray(blend(np.asarray(seen), np.asarray(small))).save(buffer, "jpeg", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def options_of(tiles: Sequence[Tile]) -> Iterator[str]:
    """The classes to choose from."""
    titles = {tile.label: tile.title.rpartition(" · ")[0] for tile in tiles}
    for label, title in sorted(titles.items(), key=lambda entry: entry[1]):
        yield f'<option value="{label}">{html.escape(title)}</option>'


def figure(tile: Tile, source: str) -> str:
    """An item as HTML; everything that is written in it comes from names of files and classes."""
    share, odd = tile.measured["account"], tile.oddness >= ODD
    account = f"{share:.0%} of the score" if math.isfinite(share) else tile.account
    remark = f'<p class="odd">{html.escape(tile.why)}</p>' if odd else ""
    name = html.escape(tile.name)
    return (
        f'<figure data-odd="{tile.oddness:.3f}" data-label="{tile.label}" data-score="{tile.measured["score"]:.6g}" '
        f'data-share="{share:.6g}" data-account="{html.escape(tile.account)}" data-index="{tile.index}" '
        f'data-name="{name}"><img alt="{name}: map of {html.escape(tile.title)}" loading="lazy" src="{source}">'
        f"<figcaption><b>{html.escape(tile.title)}</b><span>{name}</span><span>{html.escape(account)}</span>{remark}"
        "</figcaption></figure>"
    )
