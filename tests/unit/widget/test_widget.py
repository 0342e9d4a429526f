"""The overlay widget on the kernel's side: state, workers, static pictures."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
import zlib

import numpy as np
import pytest
import traitlets
from IPython.core.magic_arguments import parse_argstring
from PIL import Image

from saliency_lrp.display.looks import LOOKS
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.magics import SaliencyMagics
from saliency_lrp.widget import SIGNS, Checked, SaliencyWidget, blend, color_limit, color_table
from tests.helpers.widget_source import KnownSource


def make(selected=("lrp", "grad_x_input"), **options):
    size = options.pop("size", 32)
    source = KnownSource(size, pause=options.pop("pause", 0.02))
    widget = SaliencyWidget(source, selected=selected, composite="epsilon", target=options.pop("target", 0), **options)
    return widget, source


def states(widget):
    return {info["id"]: info["state"] for info in widget.panels}


def test_all_selected_methods_appear_with_their_maps():
    widget, source = make()
    assert widget.wait(10)
    assert states(widget) == {"lrp": "done", "grad_x_input": "done"}
    np.testing.assert_array_equal(widget.maps()["lrp"], source._wave("lrp", 0, "epsilon"))
    np.testing.assert_array_equal(np.frombuffer(widget.map_lrp, "<f4").reshape(32, 32), widget.maps()["lrp"])


def test_a_rule_recomputes_traced_panels_only():
    widget, source = make()
    widget.wait(10)
    source.calls.clear()
    widget.composite = "epsilon_plus"
    assert widget.wait(10)
    assert source.calls == [("lrp", 0, "epsilon_plus")]
    assert widget.panels[0]["title"] == "lrp · epsilon_plus"


def test_a_class_recomputes_every_panel():
    widget, source = make()
    widget.wait(10)
    source.calls.clear()
    widget.target = 4
    assert widget.wait(10)
    assert sorted(source.calls) == [("grad_x_input", 4), ("lrp", 4, "epsilon")]


def test_layer_channels_and_concept():
    widget, source = make(selected=("lrp",))
    widget.layer = "block.0"
    assert widget.wait(10)
    assert states(widget) == {"lrp": "done", "layer": "done"}
    assert [entry["index"] for entry in widget.channels] == [3, 1, 7]
    assert len(widget.channel_maps) == 3 * 8 * 8 * 4
    widget.channel = 3
    assert widget.wait(10)
    assert ("concept", "block.0", 3, 0, "epsilon") in source.calls
    assert list(states(widget)) == ["lrp", "layer", "concept"]
    widget.layer = ""
    assert widget.wait(10)
    assert list(states(widget)) == ["lrp"]
    assert widget.channel == -1 and widget.channels == [] and widget.map_concept == b""


def test_another_layer_drops_the_concept_of_the_first():
    widget, source = make(selected=("lrp",), layer="block.0", channel=3)
    widget.wait(10)
    widget.layer = "stem"
    assert widget.wait(10)
    assert list(states(widget)) == ["lrp", "layer"]
    assert source.calls[-1] == ("layer", "stem", 0, "epsilon")


def test_a_long_method_reports_progress_and_is_cancelled_while_others_finish():
    widget, source = make(selected=("slow", "lrp"))
    seen = threading.Event()

    def look(change):
        if any(info["id"] == "slow" and info.get("done") for info in change["new"]):
            seen.set()

    widget.observe(look, "panels")
    assert seen.wait(10), "no progress reported"
    assert not widget.wait(0)
    widget._handle_custom_msg({"type": "cancel", "id": "slow"}, [])
    assert widget.wait(5)
    assert states(widget) == {"slow": "cancelled", "lrp": "done"}
    assert "slow" not in widget.maps()


def test_a_deselected_method_stops_and_frees_its_map():
    widget, source = make(selected=("slow", "lrp"), pause=0.001)
    widget.wait(10)
    assert widget.map_slow
    widget.selected = ["lrp"]
    assert list(states(widget)) == ["lrp"]
    assert widget.map_slow == b""
    widget.selected = ["lrp", "grad_x_input"]
    assert widget.wait(10)
    assert states(widget)["grad_x_input"] == "done"


def test_the_newest_question_wins():
    widget, source = make(selected=("slow",), pause=0.01)
    for target in (1, 2, 3):
        widget.target = target
    assert widget.wait(10)
    np.testing.assert_array_equal(widget.maps()["slow"], source._wave("slow", 3))


def test_a_failing_method_says_why_and_the_others_go_on():
    widget, _ = make(selected=("broken", "lrp"))
    assert widget.wait(10)
    assert states(widget) == {"broken": "failed", "lrp": "done"}
    assert widget.panels[0]["warnings"] == ["ValueError: this method cannot do it"]


def test_nan_is_shown_as_zero_with_a_warning():
    source = KnownSource()
    wave = source._wave
    source._wave = lambda *what: np.where(np.arange(32) == 5, np.nan, wave(*what))
    widget = SaliencyWidget(source, selected=("grad_x_input",), composite="epsilon", target=0)
    assert widget.wait(10)
    assert np.isfinite(widget.maps()["grad_x_input"]).all()
    assert "NaN" in widget.panels[0]["warnings"][0]


@pytest.mark.parametrize(
    ("name", "options"),
    [("method", {"selected": ("lpr",)}), ("layer", {"layer": "blok.0"}), ("color map", {"cmap": "RdBu_rr"})],
)
def test_unknown_names_are_refused_with_a_hint(name, options):
    with pytest.raises(UnknownNameError, match=f"unknown {name} .* Did you mean"):
        make(**options)


def test_an_impossible_class_is_refused():
    widget, _ = make()
    with pytest.raises(InputError, match="0 to 11"):
        widget.target = 12


def test_top_classes_are_listed_with_probabilities_and_the_chosen_one():
    widget, source = make(target=9)
    assert [entry["index"] for entry in widget.top] == [0, 1, 2, 3, 4, 9]
    assert widget.top[0]["probability"] == pytest.approx(float(source.probabilities[0]))


def test_one_bundle_with_widget_picture_html_and_text():
    widget, _ = make()
    data, metadata = widget._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/html", "text/plain"}
    assert (
        data["text/plain"]
        == "SaliencyWidget(methods=('lrp', 'grad_x_input'), label=0, composite='epsilon', size=32x32)"
    )
    assert data["image/png"] in data["text/html"]
    assert "98.7 % conserved" in data["text/html"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))))
    assert picture.shape[2] == 3 and picture.std() > 10
    assert "srcdoc" in data["text/html"] and "98.7 % conserved" in data["text/html"].partition("<iframe")[0]


def test_two_outputs_are_sent_and_the_first_follows_the_view(monkeypatch):
    import IPython.display as ip

    from saliency_lrp.widget import still

    class Handle:
        def update(self, data, raw):
            updates.append(data)

    sent, updates = [], []
    monkeypatch.setattr(ip, "display", lambda data, **options: sent.append(data) or Handle())
    monkeypatch.setattr(still, "QUIET", 0.1)
    widget, source = make(selected=("lrp", "slow"), patience=0)
    widget._ipython_display_()
    first, view = sent
    assert set(first) == {"image/png", "text/html", "text/plain"} and "thing 0" in first["text/html"]
    assert set(view) == {"application/vnd.jupyter.widget-view+json", "text/plain"} and not view["text/plain"]
    page = first["text/html"].partition("srcdoc=")[2]
    assert r"lrp \u00b7 epsilon" in page and "lrp" in widget.maps()  # traced maps are waited for
    assert "not computed" in page and "&quot;state&quot;: &quot;running&quot;" not in page
    widget.cancel("slow")
    widget.composite = "gamma"
    end = time.monotonic() + 10
    while not any("composite gamma" in data["text/html"] for data in updates) and time.monotonic() < end:
        time.sleep(0.02)
    assert "composite gamma" in updates[-1]["text/html"]
    seen = len(updates)
    time.sleep(0.5)
    assert len(updates) == seen  # nothing changes: nothing is sent
    widget.opacity = 0.3
    time.sleep(1)
    assert len(updates) == seen + 1
    widget.close()
    widget._still.outdated()
    time.sleep(0.3)
    assert len(updates) == seen + 1


HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    "state",
    [
        *[
            {name: HOSTILE}
            for name in ("page", "composite", "layer", "cmap", "sign", "backdrop", "own_composite", "_esm", "_css")
        ],
        {"selected": [HOSTILE]},
        {"selected": [{"a": 1}]},
        {"selected": HOSTILE},
        {"target": HOSTILE},
        {"target": 10**6},
        {"target": 1.5},
        {"channel": -7},
        {"channel": HOSTILE},
        {"opacity": HOSTILE},
        {"opacity": float("nan")},
        {"opacity": 40.0},
        {"percentile": float("inf")},
        {"panels": [{"id": HOSTILE, "title": HOSTILE, "state": HOSTILE, "warnings": [HOSTILE]}]},
        {"top": [{"index": 0, "name": HOSTILE, "probability": 1}]},
        {"classes": [HOSTILE]},
        {"call": [HOSTILE]},
        {"composites": [HOSTILE]},
        {"luts": {HOSTILE: b"0" * 768}},
        {"image": b"0" * 3072},
        {"map_lrp": b"0" * 4096},
        {"live": False},
        {HOSTILE: HOSTILE},
        {"_maps": {}},
    ],
    ids=lambda state: next(iter(state))[:12],
)
def test_what_a_front_end_sends_is_not_believed(state):
    widget, _ = make()
    widget.wait(10)
    before, page, png = dict(widget.get_state()), widget.to_html(), widget.to_png()
    widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})
    assert widget.wait(10)
    assert HOSTILE not in widget.to_html() and widget.to_html() == page and widget.to_png() == png
    assert HOSTILE not in str(widget._still_bundle())
    assert {k: v for k, v in widget.get_state().items() if k != "panels"} == {
        k: v for k, v in before.items() if k != "panels"
    }


#: What no front end of ours would send: text that is code, places that are none, numbers that are none, other types.
NONSENSE = {
    "markup": HOSTILE,
    "comment": "--><!--" + HOSTILE,
    "script": "javascript:alert(1)",
    "page": "data:text/html;base64,PHNjcmlwdD4=",
    "svg": "data:image/svg+xml,<svg onload=alert(1)>",
    "gif": "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
    "long": "A" * 100_000,
    "huge": 10**400,
    "negative": -(10**9),
    "float": 1e308,
    "nan": float("nan"),
    "infinite": float("-inf"),
    "none": None,
    "bytes": b"\xff" * 7,
    "memory": memoryview(b"abcd"),
    "list": [HOSTILE, 1, None, [HOSTILE]],
    "lists": [[]],
    "dict": {HOSTILE: {"type": "cancel"}, "__class__": HOSTILE},
    "model": "IPY_MODEL_" + HOSTILE,
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_no_message_to_any_trait_reaches_a_page(kind):
    widget, source = make()
    widget.wait(10)
    names = [*widget.keys, "page", "layout", "comm", "_source", "__class__", "to_html", "map_../../etc", HOSTILE]
    before = {name: getattr(widget, name) for name in widget.keys if name != "panels"}
    page, png, asked = widget.to_html(), widget.to_png(), len(source.calls)
    for name in names:
        state = {name: NONSENSE[kind]}
        widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})
    state = dict.fromkeys(names, NONSENSE[kind])  # and all at once
    widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})
    for type in ("cancel", "check", "save", "eval", NONSENSE[kind]):
        for id in ("lrp", "layer", NONSENSE[kind]):
            if (type, id) not in (("cancel", "lrp"), ("check", "lrp")):
                widget._handle_custom_msg({"type": type, "id": id, "path": NONSENSE[kind]}, [b"x"])
    for content in (NONSENSE[kind], [NONSENSE[kind]]):
        widget._handle_custom_msg(content, [])
    assert widget.wait(10) and len(source.calls) == asked
    assert {name: getattr(widget, name) for name in before} == before
    assert widget.to_html() == page and widget.to_png() == png
    assert HOSTILE not in str(widget._still_bundle()) + page


@pytest.mark.parametrize(
    "change",
    [
        {"method": "update", "state": {"image": None}, "buffer_paths": [["image"]]},
        {"method": "update", "state": {"map_lrp": None}, "buffer_paths": [["map_lrp"]]},
        {"method": "update", "state": {"luts": {"bwr": None}}, "buffer_paths": [["luts", "bwr"]]},
        {"method": "request_state"},
        {"method": "to_html", "state": {"opacity": 0.1}},
    ],
    ids=lambda change: next(iter(change.get("state", change))),
)
def test_no_picture_of_a_front_end_is_taken(change):
    """Pictures and maps come as buffers; here one of another kind, with markup in it."""
    widget, _ = make()
    widget.wait(10)
    page, png = widget.to_html(), widget.to_png()
    widget._handle_msg({"content": {"data": change}, "buffers": [b"<svg onload=alert(1)></svg>"]})
    assert widget.to_html() == page and widget.to_png() == png


@pytest.mark.parametrize(
    "content", [None, "cancel", {"type": "cancel"}, {"type": "cancel", "id": None}, {"type": "cancel", "id": ["lrp"]}]
)
def test_messages_that_mean_nothing_change_nothing(content):
    widget, _ = make(selected=("lrp", "slow"))
    widget._handle_custom_msg(content, [])
    assert states(widget)["slow"] in ("waiting", "running")
    widget.close()


def test_what_a_front_end_may_ask_is_done():
    widget, source = make()
    state = {
        "composite": "gamma",
        "target": 3,
        "selected": ["lrp", "lrp"],
        "opacity": 0.25,
        "cmap": "bwr",
        "sign": "negative",
    }
    widget._handle_msg({"content": {"data": {"method": "update", "state": state}}, "buffers": []})
    assert widget.wait(10)
    assert (widget.composite, widget.target, widget.selected, widget.opacity) == ("gamma", 3, ["lrp"], 0.25)
    assert ("lrp", 3, "gamma") in source.calls


def test_hostile_names_of_the_user_are_text_everywhere():
    source = KnownSource(32)
    source.classes = [HOSTILE] * 12
    source.methods = ["lrp", HOSTILE]
    widget = SaliencyWidget(source, selected=["lrp", HOSTILE], composite="epsilon", target=0)
    widget.wait(10)
    assert HOSTILE not in widget.to_html()
    assert HOSTILE not in widget._still_bundle()["text/html"]


def test_an_unfinished_page_says_so():
    widget, _ = make(selected=("lrp", "slow"))
    widget.wait(0.3)
    html = widget.to_html()
    assert '"not computed"' in html and '"state": "running"' not in html and '"state": "waiting"' not in html
    assert states(widget)["slow"] in ("waiting", "running")  # and it goes on
    widget.close()


@pytest.mark.parametrize("shape", [(64, 64), (298, 448), (3, 16, 56)])
def test_packed_maps_keep_what_is_seen(shape):
    from saliency_lrp.widget import page

    rng = np.random.default_rng(0)
    values = (rng.standard_normal(shape) ** 3).astype(np.float32)
    packed = page.packed_map(values)
    if "floats" in packed:
        got = np.frombuffer(zlib.decompress(base64.b64decode(packed["floats"])), "<f4").reshape(shape)
        np.testing.assert_array_equal(got, values)
        return
    low, high = np.split(np.frombuffer(zlib.decompress(base64.b64decode(packed["steps"])), np.uint8).astype(int), 2)
    folded = low + 256 * high
    steps = np.cumsum(np.where(folded % 2, -(folded + 1) // 2, folded // 2)).reshape(shape)
    got = packed["largest"] * steps * np.abs(steps) / page.ROOT_STEPS**2
    root = lambda v: np.sign(v) * np.sqrt(np.abs(v))  # noqa: E731
    assert np.abs(root(got) - root(values)).max() <= 0.51 * np.sqrt(packed["largest"]) / page.ROOT_STEPS


def test_the_page_of_a_photograph_with_three_maps_is_small():
    rng = np.random.default_rng(0)

    class Photograph(KnownSource):
        def _wave(self, *what):
            return (super()._wave(*what) * rng.standard_normal((self.size, self.size))).astype(np.float32)

    source = Photograph(366, methods=("lrp", "a", "b"))  # as many pixels as 448 x 298
    noise = rng.normal(0, 12, source.picture.shape)
    source.picture = np.clip(source.picture + noise, 0, 255).astype(np.uint8)
    widget = SaliencyWidget(source, selected=("lrp", "a", "b"), composite="epsilon", target=0)
    widget.wait(10)
    assert len(widget.maps()) == 3 and len(widget.to_html()) < 800_000


def test_the_picture_shows_the_maps_as_blended():
    widget, source = make(selected=("lrp",))
    widget.wait(10)
    sheet = np.asarray(Image.open(io.BytesIO(widget.to_png(columns=2, width=32))))
    expected = blend(source.picture, widget.maps()["lrp"])
    hits = [
        (y, x)
        for y in range(sheet.shape[0] - 31)
        for x in (10, 52)
        if np.array_equal(sheet[y : y + 32, x : x + 32], expected)
    ]
    assert len(hits) == 1


def test_save(tmp_path):
    widget, _ = make()
    widget.wait(10)
    assert widget.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = widget.save(tmp_path / "a.html").read_text("utf-8")
    assert "http://" not in page and "https://" not in page
    with pytest.raises(InputError, match=r"\.html or \.png"):
        widget.save(tmp_path / "a.jpg")


def test_zero_is_transparent_and_the_map_symmetric():
    picture = np.full((1, 3, 3), 90, np.uint8)
    out = blend(picture, np.array([[-2.0, 0.0, 2.0]]), opacity=1, percentile=100, backdrop="color")
    lut = color_table("RdBu_r")
    np.testing.assert_array_equal(out[0], [lut[0], [90, 90, 90], lut[255]])


def test_color_limit_of_sparse_and_empty_maps():
    sparse = np.zeros((10, 10))
    sparse[0, 0] = -3
    assert color_limit(sparse, 90) == 3
    assert color_limit(np.zeros((4, 4)), 99) == 0
    np.testing.assert_array_equal(blend(np.full((4, 4, 3), 7, np.uint8), np.zeros((4, 4)), backdrop="color"), 7)


def test_sign_keeps_one_side():
    t = np.array([-1.0, 0.0, 1.0])
    assert [list(SIGNS[name](t)) for name in ("both", "positive", "negative")] == [
        [-1, 0, 1],
        [0, 0, 1],
        [-1, 0, 0],
    ]


def test_closing_stops_the_workers():
    widget, _ = make(selected=("slow",))
    widget.close()
    assert widget.wait(5)
    worker = widget._workers[False]
    worker.close(5)
    assert worker._thread is None


# ---------------------------------------------------------------------------- lines over the picture, slices, checks


@pytest.mark.parametrize("seed", range(4))
def test_an_outline_encloses_exactly_the_mask(seed):
    """Filled by the even-odd rule along rows, the outline's vertical edges give the mask back."""
    from saliency_lrp.widget import marks

    mask = np.random.default_rng(seed).random((7, 9)) > 0.5
    path = marks.outline(mask)
    assert re.fullmatch(r"(M\d+ \d+[HV]\d+)*", path)
    edges = np.zeros((7, 10), int)
    for left, top, bottom in re.findall(r"M(\d+) (\d+)V(\d+)", path):
        edges[int(top) : int(bottom), int(left)] += 1
    np.testing.assert_array_equal(np.cumsum(edges, 1)[:, :-1] % 2 == 1, mask)


def test_truth_is_a_mask_or_a_box():
    from saliency_lrp.widget import marks

    box = marks.as_mask((2, 1, 5, 4), (6, 8))
    assert box.sum() == 9 and box[1:4, 2:5].all()
    mask = np.eye(6, 8)
    np.testing.assert_array_equal(marks.as_mask(mask, (6, 8)), mask.astype(bool))
    for wrong in (np.ones((3, 3)), np.ones(5), 7):
        with pytest.raises(InputError, match="truth"):
            marks.as_mask(wrong, (6, 8))


def test_the_frame_and_the_mask_are_in_the_picture():
    from saliency_lrp.widget import marks

    picture = np.full((20, 30, 3), 200, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:9, 5:9] = True
    out = marks.drawn(picture, [2.0, 3.0, 18.0, 27.0], mask)
    assert (out[5:9, 5] == marks.TRUTH).all() and (out[6:8, 6:8] == 200).all()
    assert (out[2, 3:27] == marks.FRAME).all(-1).sum() > 10 and (out[0] == 200).all()
    assert marks.drawn(picture, [], None) is picture


class Volume(KnownSource):
    """Slices whose number is their brightness, and a map that is strongest in slice 2."""

    def __init__(self) -> None:
        super().__init__(16, methods=("lrp", "a"))
        self.picture = (
            np.repeat(np.arange(4, dtype=np.uint8)[:, None, None, None] * 60, 16, 1).repeat(16, 2).repeat(3, 3)
        )

    def _wave(self, *what):
        return np.stack([super(Volume, self)._wave(*what) * k for k in (0.1, 0.5, 2.0, 0.2)])


def test_a_volume_is_shown_slice_by_slice():
    source = Volume()
    widget = SaliencyWidget(source, selected=("lrp", "a"), composite="epsilon", target=0)
    assert widget.wait(10)
    assert (widget.depth, widget.width, widget.height) == (4, 16, 16) and len(widget.image) == 4 * 16 * 16 * 3
    assert widget.slice == 2  # where the first map is strongest
    sheets = []
    for slice_ in (2, 0):
        widget.slice = slice_
        sheets.append(np.asarray(Image.open(io.BytesIO(widget.to_png(columns=2, width=16)))).astype(int))
        values = widget.maps()["lrp"]
        limit = color_limit(values, widget.percentile)  # of the whole volume: slices compare
        expected = blend(source.picture[slice_], values[slice_], limit=limit).astype(int)
        tile = sheets[-1][32:48, 36:52]
        assert np.abs(tile - expected).max() == 0
    assert np.abs(sheets[0] - sheets[1]).max() > 20
    for wrong in (-1, 4, "x"):
        with pytest.raises((InputError, traitlets.TraitError)):
            widget.slice = wrong
    assert len(widget.to_html()) > 1000


class Checking(KnownSource):
    def check(self, panel, target, composite, watch):
        if panel == "broken":
            raise ValueError("cannot")
        finding = {"name": "made again", "text": f"the same for {target}, {composite}", "holds": True}
        return Checked("The map holds.", True, [finding], ["nothing"], [("another class", self._wave("x"))])


def checked(widget, panel):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        check = {info["id"]: info for info in widget.panels}[panel].get("check")
        if check and check["state"] != "running":
            return check
        time.sleep(0.02)
    raise AssertionError("the check did not end")


def test_a_map_is_checked_on_request():
    widget = SaliencyWidget(Checking(32), selected=("lrp", "grad_x_input"), composite="epsilon", target=1)
    assert widget.wait(10) and widget.can_check
    widget._handle_custom_msg({"type": "check", "id": "lrp"}, [])
    found = checked(widget, "lrp")
    assert found["holds"] and found["verdict"] == "The map holds." and "for 1, epsilon" in found["findings"][0]["text"]
    picture = Image.open(io.BytesIO(base64.b64decode(found["pictures"][0]["src"].partition(",")[2])))
    assert picture.size == (32, 32) and np.asarray(picture).std() > 5
    widget.composite = "gamma"  # another map: what was found does not hold for it
    assert widget.wait(10)
    assert "check" not in next(info for info in widget.panels if info["id"] == "lrp")
    with pytest.raises(InputError, match="no finished map"):
        widget.check("nothing")
    plain, _ = make()
    assert plain.wait(10) and not plain.can_check
    with pytest.raises(InputError):
        plain.check("lrp")


def test_progress_says_how_long_it_still_takes():
    widget, _ = make(selected=("slow",))
    end = time.monotonic() + 10
    left = ""
    while not left and time.monotonic() < end:
        left = widget.panels[0].get("left", "")
        time.sleep(0.02)
    assert re.fullmatch(r"~\d+ s", left)
    widget.close()


@pytest.mark.parametrize(("given", "kept"), [("grey", "gray"), ("gray", "gray"), ("colour", "color"), ("none", "none")])
def test_backdrops_are_understood_in_both_spellings(given, kept):
    widget, _ = make(backdrop=given)
    assert widget.backdrop == kept
    widget.backdrop = "color"
    widget.backdrop = given
    assert widget.backdrop == kept
    widget.close()


def test_a_look_is_one_row():
    """Trait, page, saved page and the magic's argument are made of the table."""
    shown, _ = make()
    assert set(LOOKS) <= set(shown.keys) and set(LOOKS) <= set(shown.saved) and list(shown.looks) == list(LOOKS)
    assert {name: getattr(shown, name) for name in LOOKS} == {name: look.default for name, look in LOOKS.items()}
    line = " ".join(f"--{name} {look.default}" for name, look in LOOKS.items())
    given = vars(parse_argstring(SaliencyMagics.saliency, f"m i {line}"))
    assert {name: given[name] for name in LOOKS} == {name: look.default for name, look in LOOKS.items()}
    shown.close()


def test_the_older_name_of_the_composite():
    widget, _ = make()
    widget.rule = "gamma"
    assert widget.composite == widget.rule == "gamma"
    widget.close()
