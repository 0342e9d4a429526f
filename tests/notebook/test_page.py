"""The page that explains by itself, in a real browser: the package's map, from files alone."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from saliency_lrp import LrpExplainer
from saliency_lrp.cli import main
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.display.colors import blend
from saliency_lrp.images import Preprocessing, load_image, preprocessing_of
from tests.helpers.browser_page import PIXELS, Console

#: of the largest value: both compute in float32
SAME = 1e-4


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain file server: no headers of its own, nothing said."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page of the demo network, as the command writes it, with the runtime from npm."""
    pytest.importorskip("onnxscript")
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, which fetches onnxruntime-web")
    out = tmp_path_factory.mktemp("page")
    assert main(["page", "--digits", "--out", str(out)]) == 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield out, f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(browser, site):
    """Open the page; see in the end that it asked nobody else and had no errors."""
    contexts = []

    def open_(width=1280, dark=False):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        page = context.new_page()
        page.console, page.asked = Console(page), []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(site[1])
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        contexts.append((context, page))
        return page

    yield open_
    home = site[1].rpartition("/")[0]
    for context, page in contexts:
        assert page.console.errors == []
        assert all(url.startswith((home, "blob:", "data:")) for url in page.asked)
        context.close()


def explained(page, picture) -> None:
    """Give the page a picture file, and wait for its map."""
    page.get_by_label("Choose a picture").set_input_files(str(picture))
    page.wait_for_function("() => !document.getElementById('result').hidden && !document.body.ariaBusy", timeout=60_000)


def map_on(page) -> np.ndarray:
    import base64

    found = page.locator("#map").evaluate(PIXELS)
    data = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    return data.reshape(found["height"], found["width"], 4)[..., :3].astype(int)


@pytest.mark.browser
@pytest.mark.slow
def test_the_browser_computes_the_packages_map(opened):
    page, model = opened(), load_demo_model()
    explainer = LrpExplainer(model, "auto")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    x[..., 20:] = 0  # where nothing comes in, denominators are but their guard
    for target in (-1, 3, 9):
        found = page.evaluate(
            """async ([input, target]) => {
                const model = await import("./model.js");
                const { scores, relevance } = await model.explain(Float32Array.from(input), target);
                return [Array.from(scores), Array.from(relevance)];
            }""",
            [x.flatten().tolist(), target],
        )
        want = explainer.explain(x, None if target < 0 else target)
        scores, relevance = (torch.tensor(part) for part in found)
        torch.testing.assert_close(scores, model(x)[0].detach(), atol=1e-4, rtol=1e-4)
        assert (relevance.reshape(want.shape) - want).abs().max() <= SAME * want.abs().max()


@pytest.mark.browser
@pytest.mark.slow
def test_a_picture_is_read_explained_and_drawn_as_by_the_package(opened, tmp_path):
    page, model = opened(), load_demo_model()
    picture = np.asarray(Image.open(_photograph(tmp_path)))
    explained(page, tmp_path / "photograph.png")
    x = preprocessing_of(model)(load_image(picture), 3)
    answer = int(model(x).argmax())
    seen = page.evaluate("""async () => {
        const { read, prepare } = await import("./picture.js");
        const { settings } = await import("./model.js");
        const { input, seen } = prepare(await read(document.getElementById("file").files[0]), settings.preprocessing);
        return [Array.from(input), Array.from(seen.data)];
    }""")
    assert torch.equal(torch.tensor(seen[0]).reshape(x.shape), x)  # a PNG has the same bytes everywhere
    assert page.get_by_role("radio", checked=True).get_attribute("value") == str(answer)
    assert page.locator("#answer").inner_text().startswith(f"{model.class_names[answer]}, ")
    pixels = np.asarray(seen[1], np.uint8).reshape(64, 64, 3)
    for target in (answer, (answer + 1) % 10):
        if target != answer:
            other = page.get_by_role("radio").nth(1)
            target = int(other.get_attribute("value"))
            other.check()
            page.wait_for_function("() => !document.body.ariaBusy")
        values = LrpExplainer(model, "auto").explain(x, target)[0].sum(0).numpy()
        assert np.abs(map_on(page) - blend(pixels, values).astype(int)).max() <= 2  # a map of 1e-4 may round otherwise
    page.get_by_label("Opacity of the map").fill("0.3")
    page.get_by_label("Picture in light greys").uncheck()
    assert np.abs(map_on(page) - blend(pixels, values, opacity=0.3, backdrop="color").astype(int)).max() <= 2


def _photograph(folder):
    """A picture of odd sides, which must be resized."""
    image = demo_images(1, seed=3)[0].image.resize((201, 143), Image.Resampling.BICUBIC)
    image.save(folder / "photograph.png")
    return folder / "photograph.png"


PREPROCESSINGS = {
    "shorter side and crop": Preprocessing(40, (32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
    "bicubic": Preprocessing((48, 36), None, None, None, "bicubic"),
    "larger": Preprocessing(150, (144, 144), None, None, "bicubic"),
    "nearest": Preprocessing((50, 50), None, interpolation="nearest"),
    "letter box": Preprocessing(40, (40, 40), fit=True),
    "padded": Preprocessing(30, (47, 48)),
}


@pytest.mark.browser
@pytest.mark.slow
def test_pictures_become_inputs_to_the_last_bit(opened, tmp_path):
    """In colour; a grey value that lies between two bytes may be rounded to the other one."""
    from saliency_lrp.page.build import input_size, settings_of

    page = opened()
    picture = load_image(_photograph(tmp_path))
    for channels in (3, 1):
        for name, preprocessing in PREPROCESSINGS.items():
            want = preprocessing(picture, channels)
            settings = settings_of(preprocessing, channels, input_size(preprocessing))
            got = page.evaluate(
                """async ([data, height, width, settings]) => {
                    const { prepare } = await import("./picture.js");
                    const picture = { data: Uint8Array.from(data), height, width, channels: 3 };
                    return Array.from(prepare(picture, settings).input);
                }""",
                [picture.rgb().flatten().tolist(), *picture.size, json.loads(json.dumps(settings))],
            )
            apart = (torch.tensor(got).reshape(want.shape) - want).abs() * torch.tensor(settings["std"]).view(-1, 1, 1)
            assert float(apart.max()) <= (0 if channels == 3 else 1.01 / 255), (name, channels)
            assert float((apart > 0).float().mean()) <= 0.01


@pytest.mark.browser
@pytest.mark.slow
def test_a_photograph_file_gives_nearly_the_packages_map(opened, tmp_path):
    """A browser's JPEG decoder is not Pillow's: pixels may be a few steps apart, the map 5 % of its largest value."""
    page, model = opened(), load_demo_model()
    Image.open(_photograph(tmp_path)).save(tmp_path / "photograph.jpg", quality=92)
    explained(page, tmp_path / "photograph.jpg")
    x = preprocessing_of(model)(load_image(tmp_path / "photograph.jpg"), 3)
    want = LrpExplainer(model, "auto").explain(x)[0].sum(0).numpy()
    got = page.evaluate("""async () => {
        const { read, prepare } = await import("./picture.js");
        const { explain, overChannels, settings } = await import("./model.js");
        const { input } = prepare(await read(document.getElementById("file").files[0]), settings.preprocessing);
        return Array.from(overChannels((await explain(input)).relevance, 3));
    }""")
    assert np.abs(np.reshape(got, want.shape) - want).max() <= 0.05 * np.abs(want).max()


@pytest.mark.browser
@pytest.mark.slow
def test_it_is_used_by_keyboard_and_on_a_phone(opened, tmp_path):
    page = opened(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="example 1").press("Enter")
    page.wait_for_function("() => !document.getElementById('result').hidden && !document.body.ariaBusy")
    first = page.get_by_role("radio", checked=True)
    first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => !document.body.ariaBusy")
    assert page.get_by_role("radio", checked=True).evaluate("node => node === document.activeElement")
    assert "strongest" in page.get_by_role("status").inner_text()
    assert "speaks for" in page.get_by_role("img", name="What speaks for").get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for row in page.locator("#classes label, .look, #examples button").all():
        assert row.bounding_box()["height"] >= 44 - 1
    (tmp_path / "words.txt").write_text("no picture")
    page.get_by_label("Choose a picture").set_input_files(str(tmp_path / "words.txt"))
    page.wait_for_function("() => document.getElementById('status').textContent.includes('no picture')")
