"""The page of a store: what is measured, what is odd, what is written."""

from __future__ import annotations

import math
import os
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")

from saliency_lrp.cli import main
from saliency_lrp.cli.sheet import MEASURES, Tile, chosen, find_odd, of_map
from saliency_lrp.demo import demo_images

HOSTILE = "<img src=x onerror=alert(1)>.png"


class Page(HTMLParser):
    """The elements of a page, with what stands in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("photos")
    for k, item in enumerate(demo_images(6)):
        item.image.resize((96, 64)).save(where / f"{k}.png")
    Image.new("L", (64, 64), 128).save(where / HOSTILE)
    (where / f"broken {HOSTILE}").write_bytes(b"no picture")
    return where


def test_the_command_writes_a_page_that_needs_nothing_else(folder, tmp_path, capsys):
    out = tmp_path / "maps.zarr"
    arguments = ["batch", str(folder), "--digits", "--out", str(out), "--quiet"]
    assert main([*arguments, "--html"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'maps.html'}" in said and "zarr.open_group" in said
    text = (tmp_path / "maps.html").read_text("utf-8")
    assert len(text) < 100_000 and "http" not in text
    page = Page(text)
    names = [figure["data-name"] for figure in page.all("figure")]
    assert sorted(names) == sorted([f"{k}.png" for k in range(6)] + [HOSTILE])
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert len(page.all("img")) == 7 and len(page.all("script")) == 1  # no element comes from a name
    assert any(text.startswith(f"broken {HOSTILE}: ") for text in page.text)
    odd = [float(figure["data-odd"]) for figure in page.all("figure")]
    assert odd == sorted(odd, reverse=True)
    assert main([*arguments, "--html", str(tmp_path / "other.html")]) == 0  # nothing is computed again
    assert (tmp_path / "other.html").read_text("utf-8").count("<figure") == 7


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_names_that_are_no_utf8(folder, tmp_path):
    where = tmp_path / "photos"
    where.mkdir()
    data = (folder / "0.png").read_bytes()
    Path(os.fsdecode(os.fsencode(where) + b"/\xff\xfe.png")).write_bytes(data)
    out = tmp_path / "maps.zarr"
    assert main(["batch", str(where), "--digits", "--out", str(out), "--quiet", "--html"]) == 0
    (figure,) = Page((tmp_path / "maps.html").read_text("utf-8")).all("figure")
    assert figure["data-name"] == "\\xff\\xfe.png"


def test_what_is_measured_of_a_map():
    corner = np.zeros((32, 32))
    corner[0, 0] = 5.0
    assert of_map(corner) == {"focus": 1.0, "border": 1.0, "against": 0.0}
    middle = np.zeros((32, 32))
    middle[16, :] = -1.0
    found = of_map(middle)
    assert found["against"] == 1.0
    assert math.isclose(found["border"], 4 / 32) and math.isclose(found["focus"], 10 / 32)  # 1 % of 1,024 is 10
    assert of_map(np.zeros((4, 4)))["focus"] == 0.0


def tile(index, **measured):
    usual = dict.fromkeys((m.name for m in MEASURES), 0.5) | measured
    return Tile(index, str(index), 0, "class 0 · 0.50", usual)


def test_odd_ones_are_those_unlike_the_others():
    rng = np.random.default_rng(0)
    tiles = [tile(k, account=0.8 + 0.01 * rng.standard_normal()) for k in range(30)]
    tiles[7].measured["account"], tiles[9].measured["border"] = 0.05, 0.9
    tiles[11].measured["account"] = float("nan")
    find_odd(tiles)
    assert [t.index for t in sorted(tiles, key=lambda t: -t.oddness)][:2] == [7, 9]
    assert tiles[7].why == "5% of the score arrives (usually 80%)"
    assert tiles[9].why == "90% of the map along the border (usually 50%)"
    assert all(t.oddness < 3.5 for t in tiles if t.index not in (7, 9))
    accounts = [(t.account, t.measured["account"]) for t in tiles]
    assert accounts[7][0] == "part of the score" and accounts[11][0] == "no account"
    assert tile(0, account=1.02).account == "adds up to the score" and tile(0, account=1.3).account[:4] == "more"


def test_of_too_many_the_oddest_and_some_others_are_shown():
    shown = [t.index for t in chosen([tile(k) for k in range(1000)], most=20)]
    assert shown[:10] == list(range(10)) and len(shown) == 20 and shown[-1] == 999
