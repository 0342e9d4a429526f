"""The overlay's code in a real browser, with no server and no network: pixels against NumPy."""

from __future__ import annotations

import io
import re
import statistics

import numpy as np
import pytest
from PIL import Image

from saliency_lrp.widget import Map, SaliencyWidget, blend
from saliency_lrp.widget.marks import outline
from tests.helpers.browser_page import PIXELS, canvas_pixels, open_widget
from tests.helpers.widget_source import KnownSource

pytestmark = pytest.mark.browser

SIX = ("lrp", "grad_x_input", "a", "b", "c", "d")


def widget_of(size=64, selected=("lrp", "grad_x_input"), **options):
    source = KnownSource(size, methods=(*SIX, "slow", "broken"))
    widget = SaliencyWidget(source, selected=selected, composite="epsilon", target=0, **options)
    assert widget.wait(20)
    return widget, source


@pytest.fixture
def opened(browser):
    pages = []

    def open_(widget, **options):
        opened = open_widget(browser, widget, **options)
        pages.append(opened)
        return opened

    yield open_
    for page in pages:
        assert page.console.errors == []
        page.context.close()


def move(page, label, value):
    page.get_by_label(label, exact=True).evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })); }",
        str(value),
    )
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.mark.parametrize(
    "look",
    [
        {},
        {"opacity": 0.35},
        {"cmap": "seismic", "opacity": 1.0},
        {"cmap": "coldnhot"},
        {"sign": "positive"},
        {"sign": "negative", "percentile": 95.0},
        {"backdrop": "gray"},
        {"backdrop": "none", "percentile": 100.0},
    ],
)
def test_canvas_equals_numpy(opened, look):
    widget, source = widget_of(**look)
    page = opened(widget)
    for panel, values in widget.maps().items():
        expected = blend(source.picture, values, **widget._look()).astype(int)
        error = np.abs(canvas_pixels(page, panel)[..., :3] - expected)
        assert error.max() <= 1, f"{panel}: {error.max()}"


def test_looking_costs_no_message(opened):
    widget, source = widget_of()
    page = opened(widget)
    move(page, "Opacity", 0.4)
    move(page, "Clip percentile", 95)
    page.get_by_label("Colors", exact=True).select_option("PuOr_r")
    page.get_by_label("Sign", exact=True).select_option("positive")
    page.get_by_label("Backdrop", exact=True).select_option("gray")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    expected = blend(
        source.picture,
        widget.maps()["lrp"],
        opacity=0.4,
        cmap="PuOr_r",
        sign="positive",
        percentile=95,
        backdrop="gray",
    ).astype(int)
    assert np.abs(canvas_pixels(page, "lrp")[..., :3] - expected).max() <= 1
    assert page.evaluate("sent") == []


def test_dragging_opacity_takes_less_than_a_frame(opened, record_property):
    widget, _ = widget_of(224, SIX)
    page = opened(widget)
    before = canvas_pixels(page, "d")
    times = page.evaluate("""async () => {
        const slider = document.querySelector("input[type=range]");
        const frame = () => new Promise((done) => requestAnimationFrame(done));
        const times = [];
        for (let i = 0; i < 60; i++) {
            slider.value = i / 60;
            await frame();
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            await frame();
            times.push(Number(document.querySelector(".saliency").dataset.drawMs));
        }
        return times;
    }""")
    assert len(times) == 60 and all(time > 0 for time in times)
    record_property("draw_ms", times)
    print(f"draw of 6 panels: median {statistics.median(times):.2f} ms, worst {max(times):.2f} ms")
    assert statistics.median(times) < 16
    assert np.abs(canvas_pixels(page, "d") - before).max() > 5
    assert page.evaluate("sent") == []


def test_hover_shows_value_and_pixel_in_every_panel(opened):
    widget, _ = widget_of()
    page = opened(widget)
    box = page.locator("[data-panel=lrp] canvas.saliency-canvas").bounding_box()
    x, y = 20, 41
    page.mouse.move(box["x"] + (x + 0.5) / 64 * box["width"], box["y"] + (y + 0.5) / 64 * box["height"])
    for panel, values in widget.maps().items():
        text = page.locator(f"[data-panel={panel}] .saliency-readout").inner_text()
        shown = re.fullmatch(r"R ([-+]?[\d.e+-]+)\s+x 20, y 41", text)
        assert shown, text
        assert float(shown[1]) == pytest.approx(float(values[y, x]), rel=6e-3)
        assert page.locator(f"[data-panel={panel}] .saliency-across").is_visible()


def test_zoom_is_linked_and_keeps_the_pixel_under_the_mouse(opened):
    widget, _ = widget_of()
    page = opened(widget)
    box = page.locator("[data-panel=lrp] canvas.saliency-canvas").bounding_box()
    page.mouse.move(box["x"] + 16.5 / 64 * box["width"], box["y"] + 48.5 / 64 * box["height"])
    spot = page.locator("[data-panel=lrp] .saliency-readout").inner_text()
    page.keyboard.down("Shift")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Shift")
    page.wait_for_timeout(100)
    page.mouse.move(box["x"] + 16.5 / 64 * box["width"] + 1, box["y"] + 48.5 / 64 * box["height"])
    transforms = {
        page.locator(f"[data-panel={panel}] .saliency-zoomed").evaluate("node => node.style.transform")
        for panel in ("lrp", "grad_x_input")
    }
    assert len(transforms) == 1 and "scale(1)" not in transforms.pop()
    assert page.locator("[data-panel=lrp] .saliency-readout").inner_text() == spot
    page.get_by_role("button", name="Reset zoom").click()
    assert "scale(1)" in page.locator("[data-panel=lrp] .saliency-zoomed").evaluate("node => node.style.transform")


def test_keyboard_moves_the_crosshair(opened):
    widget, _ = widget_of()
    page = opened(widget)
    page.locator("[data-panel=lrp] canvas.saliency-canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert "x 34, y 41" in page.locator("[data-panel=grad_x_input] .saliency-readout").inner_text()


def test_everything_is_labeled_and_reached_by_tab(opened):
    widget, _ = widget_of()
    page = opened(widget)
    unnamed = page.evaluate("""() => [...document.querySelectorAll("input, select, button, canvas[role=img], textarea")]
        .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.closest("label")))
        .map((node) => node.outerHTML)""")
    assert unnamed == []
    assert page.locator("canvas[role=img]").count() == 2
    assert "lrp" in page.locator("[data-panel=lrp] canvas[role=img]").get_attribute("aria-label")
    reached = set()
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    assert {
        "Opacity",
        "Colors",
        "Sign",
        "Clip percentile",
        "Backdrop",
        "Class",
        "Find class",
        "Composite",
        "Layer",
        "Methods: 2 shown",
        "Copy as code",
        "Save PNG",
        "Save HTML",
    } <= reached


def test_questions_go_to_the_kernel_and_answers_come_back(opened):
    widget, source = widget_of()
    page = opened(widget)
    page.get_by_label("Class", exact=True).select_option("3")
    page.get_by_label("Composite", exact=True).select_option("gamma")
    page.get_by_label("Find class").fill("thing 11")
    page.keyboard.press("Enter")
    page.get_by_text("Methods: 2 shown").click()
    page.locator("input[value=grad_x_input]").uncheck()
    asked = list(page.evaluate("sent"))
    assert [dict(change.items()) for change in asked] == [
        {"target": 3},
        {"composite": "gamma"},
        {"target": 11},
        {"selected": ["lrp"]},
    ]
    for change in asked:
        widget.set_state(change)
    assert widget.wait(10)
    page.follow(widget)
    assert page.locator("[data-panel]").count() == 1
    np.testing.assert_array_equal(widget.maps()["lrp"], source._wave("lrp", 11, "gamma"))
    assert (
        np.abs(
            canvas_pixels(page, "lrp")[..., :3] - blend(source.picture, source._wave("lrp", 11, "gamma")).astype(int)
        ).max()
        <= 1
    )
    assert page.get_by_label("Class", exact=True).input_value() == "11"


def test_a_class_that_is_not_there_is_not_asked_for(opened):
    widget, _ = widget_of()
    page = opened(widget)
    page.get_by_label("Find class").fill("zebra")
    page.keyboard.press("Enter")
    assert page.evaluate("sent") == []
    assert page.get_by_label("Find class").evaluate("node => node.validationMessage") == "no class zebra"


def test_layer_channels_and_concept(opened):
    widget, _ = widget_of(selected=("lrp",))
    page = opened(widget)
    page.get_by_label("Layer", exact=True).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("sent")[-1] == {"layer": "block.0"}
    widget.set_state({"layer": "block.0"})
    assert widget.wait(10)
    page.follow(widget)
    button = page.get_by_role("button", name=re.compile("^channel 3"))
    assert button.locator("canvas").evaluate(PIXELS)["width"] == 16
    button.click()
    assert page.evaluate("sent")[-1] == {"channel": 3}
    widget.set_state({"channel": 3})
    assert widget.wait(10)
    page.follow(widget)
    assert page.locator("[data-panel=concept] strong").inner_text() == "channel 3 of block.0"


def test_running_methods_show_progress_and_can_be_cancelled(opened):
    source = KnownSource(64, pause=0.02)
    widget = SaliencyWidget(source, selected=("slow", "lrp"), composite="epsilon", target=0)
    while not any(info.get("done") for info in widget.panels):
        pass
    page = opened(widget)
    assert page.get_by_role("progressbar", name="progress of slow").is_visible()
    assert 0 < page.locator("[data-panel=slow] progress").evaluate("node => node.value") < 1
    page.get_by_role("button", name="cancel slow").click()
    assert page.evaluate("messages") == [{"type": "cancel", "id": "slow"}]
    widget.cancel("slow")
    page.follow(widget)
    assert page.locator("[data-panel=slow] .saliency-note").inner_text() == "cancelled"
    assert not page.locator("[data-panel=slow] progress").is_visible()


def test_a_failure_is_read_in_its_panel(opened):
    widget, _ = widget_of(selected=("broken", "lrp"))
    page = opened(widget)
    assert page.locator("[data-panel=broken] [role=status]").inner_text() == "ValueError: this method cannot do it"


def test_the_account_is_beside_the_lrp_panel(opened):
    widget, _ = widget_of()
    page = opened(widget)
    page.get_by_text("Account of relevance: 98.7 % conserved").click()
    assert page.locator("[data-panel=lrp] table").inner_text().split() == [
        "relevance",
        "in",
        "2.31",
        "absorbed",
        "by",
        "bias",
        "0.03",
    ]
    assert page.locator("[data-panel=grad_x_input] details").is_hidden()


def test_copy_as_code_names_the_view(opened):
    widget, _ = widget_of(layer="stem", opacity=0.5)
    page = opened(widget)
    page.get_by_label("Sign", exact=True).select_option("negative")
    page.get_by_role("button", name="Copy as code").click()
    text = page.get_by_label("the call that reproduces this view").input_value()
    given = {}
    eval(
        text,
        {
            "compare_saliency": lambda *args, **kwargs: given.update(kwargs, args=args),
            "model": "m",
            "image": "i",
        },
    )
    assert given == {
        "args": ("m", "i"),
        "methods": ("lrp", "grad_x_input"),
        "label": 0,
        "composite": "epsilon",
        "layer": "stem",
        "opacity": 0.5,
        "cmap": "RdBu_r",
        "sign": "negative",
        "percentile": 99.5,
        "backdrop": "gray",
    }


def test_png_export_holds_the_panels(opened):
    widget, source = widget_of()
    page = opened(widget)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save PNG").click()
    sheet = np.asarray(Image.open(waiting.value.path()).convert("RGB")).astype(int)
    zoom = 448 // 64
    left = 12 + 64 * zoom + 12
    panel = sheet[12 + 24 : 12 + 24 + 64 * zoom : zoom, left : left + 64 * zoom : zoom]
    assert np.abs(panel - blend(source.picture, widget.maps()["grad_x_input"])).max() <= 1


@pytest.mark.parametrize("made_by", ["browser", "kernel"])
def test_saved_html_lives_without_kernel_and_network(opened, browser, tmp_path, made_by):
    widget, source = widget_of()
    path = tmp_path / "view.html"
    if made_by == "browser":
        page = opened(widget)
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Save HTML").click()
        waiting.value.save_as(path)
    else:
        widget.save(path)
    context = browser.new_context(offline=True)
    saved = context.new_page()
    errors = []
    saved.on("pageerror", lambda error: errors.append(str(error)))
    saved.goto(path.as_uri())
    saved.wait_for_selector("[data-panel=grad_x_input]")
    assert not saved.get_by_label("Composite").is_visible()
    for opacity in (0.8, 0.3):
        move(saved, "Opacity", opacity)
        error = canvas_pixels(saved, "lrp")[..., :3] - blend(
            source.picture, widget.maps()["lrp"], opacity=opacity
        ).astype(int)
        assert np.abs(error).max() <= 1
    with saved.expect_download() as again:
        saved.get_by_role("button", name="Save HTML").click()
    assert "Opacity" in again.value.path().read_text("utf-8")
    assert errors == []
    context.close()


@pytest.mark.parametrize("width", [1280, 420, 320])
def test_nothing_overflows_at_any_width(opened, width):
    widget, _ = widget_of(selected=SIX, layer="stem")
    page = opened(widget, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    first, second = (page.locator(f"[data-panel={name}]").bounding_box() for name in SIX[:2])
    assert (first["y"] == second["y"]) == (width > 400)


def test_dark_theme_is_readable(opened):
    widget, _ = widget_of()
    page = opened(widget, dark=True)
    text, ground = page.locator(".saliency").evaluate(
        "node => { const s = getComputedStyle(node); return [s.color, s.backgroundColor]; }"
    )

    def luminance(color):
        channels = np.array([int(part) for part in re.findall(r"\d+", color)[:3]]) / 255
        return np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    assert (luminance(text) + 0.05) / (luminance(ground) + 0.05) > 7
    assert luminance(ground) < 0.05


# ------------------------------------------------------------------------------------------------ what a user looks for


class Dressed(KnownSource):
    """Known maps with a frame, an outline, grouped composites, an account whose bars open layers, and checks."""

    def __init__(self, size=64):
        super().__init__(size, methods=(*SIX, "slow"))
        self.frame = [8.0, 4.0, 56.0, 60.0]
        self.truth_mask = np.zeros((size, size), bool)
        self.truth_mask[20:30, 10:40] = True
        self.truth = outline(self.truth_mask)
        self.composites = ["epsilon", "epsilon_plus", "gamma"]
        self.composite_groups = [
            ["Start here", [["epsilon", "a line on ε"], ["epsilon_plus", "a line on z⁺"]]],
            ["Other", [["gamma", "γ"]]],
        ]

    def lrp(self, target, composite):
        bars = [
            {"name": "the score", "kind": "score", "label": "100 %", "start": 0, "end": 1, "layer": ""},
            {
                "name": "biases of block.0",
                "kind": "taken",
                "label": "−40 %",
                "start": 1,
                "end": 0.6,
                "layer": "block.0",
            },
        ]
        found = super().lrp(target, composite)
        return Map(found.values, {**found.account, "bars": bars, "verdict": "60 % arrived."})

    def check(self, panel, target, composite, watch):
        raise NotImplementedError


@pytest.fixture
def dressed(opened):
    widget = SaliencyWidget(Dressed(), selected=("lrp", "grad_x_input"), composite="epsilon", target=0)
    assert widget.wait(20)
    return widget, opened(widget)


def test_panels_fill_the_page_and_one_is_enlarged_by_a_click(dressed):
    _, page = dressed
    first, second = (page.locator(f"[data-panel={name}]") for name in ("lrp", "grad_x_input"))
    assert first.bounding_box()["width"] > 500  # two panels on 1280 pixels
    page.get_by_label("enlarge lrp").click()
    assert first.bounding_box()["width"] > 1200
    assert second.bounding_box()["y"] > first.bounding_box()["y"] + 300
    page.get_by_label("shrink lrp").click()
    assert first.bounding_box()["width"] < 650


def test_frame_and_outline_lie_where_they_should(dressed):
    _, page = dressed
    canvas = page.locator("[data-panel=lrp] canvas.saliency-canvas").bounding_box()
    scale = canvas["width"] / 64
    for name, (top, left, bottom, right) in {"frame": (8, 4, 56, 60), "truth": (20, 10, 30, 40)}.items():
        box = page.locator(f"[data-panel=lrp] .saliency-{name}").bounding_box()
        got = [(box[edge] - canvas[edge]) / scale for edge in ("y", "x")]
        got += [got[0] + box["height"] / scale, got[1] + box["width"] / scale]
        assert got == pytest.approx([top, left, bottom, right], abs=0.5)
    shot = np.asarray(Image.open(io.BytesIO(page.locator("[data-panel=lrp] .saliency-zoomed").screenshot())))
    row = shot[round(25 * scale), : round(12 * scale), :3].astype(int)
    green = (row[:, 1] > 140) & (row[:, 0] < 60) & (row[:, 2] < 120)
    assert green.any() and abs(np.flatnonzero(green).mean() / scale - 10) < 0.5


def test_the_bar_says_for_and_against_and_the_picture_where(dressed):
    widget, page = dressed
    scale = page.locator("[data-panel=lrp] .saliency-scale").inner_text()
    assert scale.startswith("against -") and scale.endswith("for")
    values = widget.maps()["lrp"]
    y, x = np.unravel_index(np.abs(values).argmax(), values.shape)
    label = page.locator("[data-panel=lrp] canvas.saliency-canvas").get_attribute("aria-label")
    assert f"strongest at x {x}, y {y}" in label and "speak for the class" in label
    positive = np.maximum(values, 0)
    quarters = [positive[a : a + 32, b : b + 32].sum() for a in (0, 32) for b in (0, 32)]
    name = ["left upper", "right upper", "left lower", "right lower"][int(np.argmax(quarters))]
    assert f"{round(100 * max(quarters) / sum(quarters))} % of the positive relevance in the {name} quarter" in label


def test_rules_are_few_first_and_more_on_request(dressed):
    _, page = dressed
    composites = page.get_by_label("Composite", exact=True)
    names = lambda: composites.locator("option").all_inner_texts()  # noqa: E731
    assert names() == ["epsilon", "epsilon_plus", "more…"] and page.get_by_text("a line on ε").is_visible()
    composites.select_option("more…")
    assert names() == ["epsilon", "epsilon_plus", "gamma"] and composites.input_value() == "epsilon"
    assert page.evaluate("sent") == []
    composites.select_option("gamma")
    assert page.evaluate("sent") == [{"composite": "gamma"}]


def test_a_bar_of_the_account_opens_its_layer(dressed):
    _, page = dressed
    assert page.get_by_text("60 % arrived.").is_visible()
    page.get_by_text("Account of relevance").click()
    page.get_by_label("biases of block.0: −40 %; show layer block.0").click()
    assert page.evaluate("sent") == [{"layer": "block.0"}]
    drawn = [node.bounding_box() for node in page.locator(".saliency-drawn").all()]
    assert drawn[1]["width"] / drawn[0]["width"] == pytest.approx(0.4, abs=0.02)
    assert drawn[1]["x"] + drawn[1]["width"] == pytest.approx(drawn[0]["x"] + drawn[0]["width"], abs=1)


def test_a_check_is_asked_for_and_read(dressed):
    _, page = dressed
    panel = page.locator("[data-panel=lrp]")
    panel.get_by_role("button", name="Is this map about the model?").click()
    assert page.evaluate("messages") == [{"type": "check", "id": "lrp"}]
    hostile = "<img src=x onerror=document.title='hacked'>"
    check = {
        "state": "done", "holds": False, "verdict": f"Do not trust this map {hostile}", "left_out": [hostile],
        "findings": [{"name": "deletion", "text": hostile, "holds": False}], "pictures": [],
    }  # fmt: skip
    infos = page.evaluate("model.get('panels')")
    page.evaluate("(panels) => receive({ panels })", [{**info, "check": check} for info in infos])
    panel.get_by_text("What was measured").click()
    assert panel.get_by_text("✗").first.is_visible() and panel.get_by_text("deletion: <img").is_visible()
    assert page.title() != "hacked"


def test_channels_are_one_tab_stop_and_lie_on_the_themes_ground(opened):
    widget, _ = widget_of(layer="stem")
    page = opened(widget, dark=True)
    buttons = page.locator(".saliency-channels button")
    assert sorted(button.get_attribute("tabindex") for button in buttons.all()) == ["-1", "-1", "0"]
    buttons.first.focus()
    page.keyboard.press("ArrowRight")
    assert buttons.nth(1).evaluate("node => node === document.activeElement")
    page.keyboard.press("End")
    assert buttons.nth(2).evaluate("node => node === document.activeElement")
    shot = np.asarray(Image.open(io.BytesIO(buttons.nth(1).locator("canvas").screenshot())).convert("L"))
    assert shot.min() < 60  # white where nothing is relevant would glare


def test_on_a_phone_the_looks_are_folded(opened):
    widget, _ = widget_of()
    page = opened(widget, width=390, height=800)
    assert not page.get_by_label("Opacity", exact=True).is_visible()
    assert page.locator("[data-panel=lrp] canvas.saliency-canvas").bounding_box()["y"] < 330
    page.get_by_text("Look", exact=True).click()
    assert page.get_by_label("Opacity", exact=True).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for summary in page.locator("summary:visible").all():
        assert summary.bounding_box()["height"] >= 24


def test_a_slider_goes_through_a_volume(opened):
    source = KnownSource(32, methods=("lrp",))
    source.picture = np.stack([source.picture // (k + 1) for k in range(5)])
    flat = source._wave
    source._wave = lambda *what: np.stack([flat(*what) * k for k in (1, 4, 2, 3, 0.5)])
    widget = SaliencyWidget(source, selected=("lrp",), composite="epsilon", target=0)
    assert widget.wait(20)
    page = opened(widget)
    values = widget.maps()["lrp"]
    limit = np.percentile(np.abs(values), 99.5)
    slider = page.get_by_label("Slice", exact=True)
    assert slider.input_value() == "1"  # where it is strongest
    for slice_ in (1, 3, 0):
        move(page, "Slice", slice_)
        expected = blend(source.picture[slice_], values[slice_], limit=limit).astype(int)
        assert np.abs(canvas_pixels(page, "lrp")[..., :3] - expected).max() <= 1
    assert page.evaluate("sent") == []
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save HTML").click()
    saved = page.context.new_page()
    saved.set_content(waiting.value.path().read_text("utf-8"))
    saved.wait_for_selector("[data-panel=lrp]")
    move(saved, "Slice", 3)
    expected = blend(source.picture[3], values[3], limit=limit).astype(int)
    assert np.abs(canvas_pixels(saved, "lrp")[..., :3] - expected).max() <= 1


def test_a_map_without_a_sign_is_drawn_from_none_to_most(opened):
    source = KnownSource(48, methods=("lrp", "gradcam"))
    plain = source.method
    source.method = lambda *a: Map(np.abs(plain(*a).values), signed=False)
    widget = SaliencyWidget(source, selected=("lrp", "gradcam"), composite="epsilon", target=0)
    assert widget.wait(20)
    page = opened(widget)
    for backdrop in ("gray", "none"):
        page.get_by_label("Backdrop", exact=True).select_option(backdrop)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        for panel, signed in (("lrp", True), ("gradcam", False)):
            expected = blend(source.picture, widget.maps()[panel], signed=signed, backdrop=backdrop).astype(int)
            assert np.abs(canvas_pixels(page, panel)[..., :3] - expected).max() <= 1
    assert page.locator("[data-panel=gradcam] .saliency-scale").inner_text().startswith("none")
