"""The overlay's code in a real browser, with no server and no network: pixels against NumPy."""

from __future__ import annotations

import re
import statistics

import numpy as np
import pytest
from browser_page import PIXELS, canvas_pixels, open_widget
from PIL import Image
from widget_source import KnownSource

from saliency_lrp.widget import SaliencyWidget, blend

pytestmark = pytest.mark.browser

SIX = ("lrp", "grad_x_input", "a", "b", "c", "d")


def widget_of(size=64, selected=("lrp", "grad_x_input"), **options):
    source = KnownSource(size, methods=(*SIX, "slow", "broken"))
    widget = SaliencyWidget(source, selected=selected, rule="epsilon", target=0, **options)
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
        {"backdrop": "grey"},
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
    page.get_by_label("Colours", exact=True).select_option("PuOr_r")
    page.get_by_label("Sign", exact=True).select_option("positive")
    page.get_by_label("Backdrop", exact=True).select_option("grey")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    expected = blend(
        source.picture,
        widget.maps()["lrp"],
        opacity=0.4,
        cmap="PuOr_r",
        sign="positive",
        percentile=95,
        backdrop="grey",
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


def test_everything_is_labelled_and_reached_by_tab(opened):
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
        "Colours",
        "Sign",
        "Clip percentile",
        "Backdrop",
        "Class",
        "Find class",
        "LRP rule",
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
    page.get_by_label("LRP rule", exact=True).select_option("gamma")
    page.get_by_label("Find class").fill("thing 11")
    page.keyboard.press("Enter")
    page.get_by_text("Methods: 2 shown").click()
    page.locator("input[value=grad_x_input]").uncheck()
    asked = [changes for changes in page.evaluate("sent")]
    assert [{key: value for key, value in change.items()} for change in asked] == [
        {"target": 3},
        {"rule": "gamma"},
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
    widget = SaliencyWidget(source, selected=("slow", "lrp"), rule="epsilon", target=0)
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
        "backdrop": "grey",
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
    assert not saved.get_by_label("LRP rule").is_visible()
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

    def luminance(colour):
        channels = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
        return np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    assert (luminance(text) + 0.05) / (luminance(ground) + 0.05) > 7
    assert luminance(ground) < 0.05
