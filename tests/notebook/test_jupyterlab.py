"""The widget in a real JupyterLab on loopback: run a notebook, use the widget as a user does, look at pixels."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser_page import PIXELS, Console, canvas_pixels

pytest.importorskip("jupyterlab", reason="jupyterlab is not installed (pip install jupyterlab)")

from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.images import build_input, load_image
from saliency_lrp.propagator import RelevancePropagator
from saliency_lrp.widget import blend

pytestmark = [pytest.mark.browser, pytest.mark.slow]

REPOSITORY = pathlib.Path(__file__).parents[2]
#: where pictures for the documentation go, if they are asked for
SCREENSHOTS = os.environ.get("SALIENCY_LRP_SCREENSHOTS")
CELL = """\
from saliency_lrp import compare_saliency
from saliency_lrp.demo import demo_images, load_demo_model

model = load_demo_model()
passes = []
model.register_forward_hook(lambda *args: passes.append(1))
item = demo_images(3, seed=3)[2]
widget = compare_saliency(model, item.image, methods=("lrp", "grad_x_input", "occlusion", "gradcam"),
                          composite="epsilon_plus", wait=None)
widget"""
PHOTOGRAPH = """\
from saliency_lrp import compare_saliency
from saliency_lrp.photographs import load_photo_model, photographs

compare_saliency(load_photo_model(), photographs()[0].image.resize((224, 224)), layer="_blocks.10", wait=None)"""
NO_NEWS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab server with settings of its own: (address, token, folder)."""
    root = tmp_path_factory.mktemp("lab")
    work = root / "work"
    work.mkdir()
    (root / "app" / "settings").mkdir(parents=True)
    (root / "app" / "settings" / "overrides.json").write_text(json.dumps(NO_NEWS))
    port, token = free_port(), secrets.token_hex(16)
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTERLAB_SETTINGS_DIR": "user",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "JUPYTER_RUNTIME_DIR": "runtime",
    }
    environment = {
        **os.environ,
        **{name: str(root / folder) for name, folder in own.items()},
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    log = (root / "log.txt").open("w")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={token}",
            f"--ServerApp.root_dir={work}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.news_url=",
            f"--LabApp.user_settings_dir={root / 'user'}",
            f"--LabApp.app_settings_dir={root / 'app' / 'settings'}",
        ],
        cwd=work,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 60
    while not answers(f"{address}/api/status?token={token}"):
        if server.poll() is not None or time.monotonic() > end:
            server.kill()
            pytest.fail("JupyterLab did not start:\n" + (root / "log.txt").read_text()[-2000:])
        time.sleep(0.2)
    yield address, token, work
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


class Lab:
    """A notebook open in JupyterLab, and what the page has sent to the kernel."""

    def __init__(self, browser, lab, name: str, cells: list[str], width: int = 1280) -> None:
        self.address, self.token, self.folder = lab
        self.path = self.folder / name
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.path)
        height = 1000 if width > 600 else 3000
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.console = Console(self.page)
        self.sent: list[str] = []
        from playwright.sync_api import TimeoutError as NotInTime

        self.timeout = NotInTime
        self.page.on("websocket", lambda socket: socket.on("framesent", self._sent))
        self.page.goto(f"{self.address}/lab/tree/{name}?reset&token={self.token}")
        ready = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        self.page.wait_for_function(ready, timeout=60000)  # run earlier, a notebook answers with a dialog

    def _sent(self, frame) -> None:
        text = frame if isinstance(frame, str) else bytes(frame).decode("latin-1")
        if "comm_msg" in text:
            self.sent.append(text)

    def command(self, name: str, **options: object) -> None:
        self.page.evaluate(
            "([name, options]) => { window.jupyterapp.commands.execute(name, options); }", [name, options]
        )

    def run(self) -> None:
        self._start()
        failed = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        self.page.wait_for_selector(f"[data-panel=gradcam][data-state=done], {failed}", timeout=90000)
        assert self.page.locator(failed).count() == 0, self.page.locator(failed).first.inner_text()

    def _start(self) -> None:
        """Run all cells; again while none has begun: a command that comes too early is dropped."""
        for _ in range(20):
            self.page.locator(".jp-Cell").first.click()
            self.command("notebook:run-all-cells")
            try:
                begun = "() => /[*\\d]/.test(document.querySelector('.jp-InputPrompt').textContent)"
                self.page.wait_for_function(begun, timeout=3000)
                return
            except self.timeout:
                continue
        raise AssertionError("no cell of the notebook began to run")

    def asked(self) -> tuple[int, str]:
        """The class and the composite that the controls show."""
        return (
            int(self.page.get_by_label("Class", exact=True).input_value()),
            self.page.get_by_label("Composite", exact=True).input_value(),
        )

    def frame(self) -> None:
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture(scope="module")
def opened(browser, lab):
    notebook = Lab(browser, lab, "widget.ipynb", [CELL, "print('passes', len(passes))"])
    notebook.run()
    yield notebook
    notebook.context.close()


@pytest.fixture(scope="module")
def truth():
    """What the maps must be, computed in this process: (picture, function of class and composite)."""
    model, item = load_demo_model(), demo_images(3, seed=3)[2]
    x, _, _ = build_input(model, load_image(item.image))
    trace = RelevancePropagator(model).trace(x)
    first = int(trace.output.argmax())
    return (
        np.asarray(item.image),
        first,
        lambda target, composite: trace.relevance(target, composite=composite)[0].sum(0).numpy(),
    )


def wait_for_pixels(notebook, panel: str, expected: np.ndarray, timeout: float = 60) -> None:
    """Wait until the canvas shows the expected picture, to one step of 255."""
    end = time.monotonic() + timeout
    while True:
        error = np.abs(canvas_pixels(notebook.page, panel)[..., :3] - expected.astype(int)).max()
        if error <= 1:
            return
        assert time.monotonic() < end, f"{panel} is wrong by up to {error} after {timeout} s"
        notebook.page.wait_for_timeout(100)


def test_a_run_notebook_shows_the_maps(opened, truth):
    picture, first, relevance = truth
    wait_for_pixels(opened, "lrp", blend(picture, relevance(first, "epsilon_plus")))
    assert opened.page.get_by_label("Class", exact=True).input_value() == str(first)
    for panel in ("grad_x_input", "occlusion", "gradcam"):
        assert canvas_pixels(opened.page, panel).std() > 5


def test_dragging_opacity_sends_nothing(opened, truth):
    picture, first, relevance = truth
    slider = opened.page.get_by_label("Opacity", exact=True)
    box = slider.bounding_box()
    opened.sent.clear()
    y = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + 0.8 * box["width"], y)
    opened.page.mouse.down()
    for step in range(30):
        opened.page.mouse.move(box["x"] + (0.8 - 0.015 * step) * box["width"], y)
    opened.page.mouse.up()
    opened.frame()
    opacity = float(slider.input_value())
    assert 0.2 < opacity < 0.6
    wait_for_pixels(opened, "lrp", blend(picture, relevance(*opened.asked()), opacity=opacity))
    opened.page.wait_for_timeout(500)
    assert opened.sent == []
    slider.evaluate("node => { node.value = 0.8; node.dispatchEvent(new Event('input', { bubbles: true })); }")
    opened.frame()


def test_another_rule_and_class_are_computed(opened, truth):
    picture, first, relevance = truth
    opened.page.get_by_label("Composite", exact=True).select_option("epsilon")
    wait_for_pixels(opened, "lrp", blend(picture, relevance(first, "epsilon")))
    other = str((first + 3) % 10)
    opened.page.get_by_label("Find class").fill(f"digit {other}")
    opened.page.keyboard.press("Enter")
    wait_for_pixels(opened, "lrp", blend(picture, relevance(int(other), "epsilon")))
    assert len(opened.sent) >= 2


def test_hover_reads_the_pixel_under_the_mouse(opened, truth):
    picture, first, relevance = truth
    values = relevance(*opened.asked())
    canvas = opened.page.locator("[data-panel=lrp] canvas.saliency-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    opened.page.mouse.move(box["x"] + 30.5 / 64 * box["width"], box["y"] + 25.5 / 64 * box["height"])
    text = opened.page.locator("[data-panel=lrp] .saliency-readout").inner_text()
    assert text.endswith("x 30, y 25")
    assert float(text.split()[1]) == pytest.approx(float(values[25, 30]), rel=6e-3, abs=1e-7)


def test_layer_and_channel(opened):
    layer = opened.page.get_by_label("Layer", exact=True)
    layer.focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    opened.page.wait_for_selector("[data-panel=layer][data-state=done]", timeout=60000)
    opened.page.wait_for_selector(".saliency-channels button", timeout=60000)
    opened.page.locator(".saliency-channels button").first.click()
    opened.page.wait_for_selector("[data-panel=concept][data-state=done]", timeout=60000)
    assert canvas_pixels(opened.page, "concept").std() > 5


def test_export(opened, truth, tmp_path):
    picture, first, relevance = truth
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name="Save PNG").click()
    sheet = np.asarray(Image.open(waiting.value.path()).convert("RGB")).astype(int)
    expected = blend(picture, relevance(*opened.asked())).astype(int)
    assert np.abs(sheet[36 : 36 + 448 : 7, 12 : 12 + 448 : 7] - expected).max() <= 1
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name="Save HTML").click()
    waiting.value.save_as(tmp_path / "view.html")
    page = opened.context.new_page()
    page.route("http*://**", lambda route: route.abort())
    page.goto((tmp_path / "view.html").as_uri())
    page.wait_for_selector("[data-panel=concept]")
    assert np.abs(canvas_pixels(page, "lrp")[..., :3] - expected).max() <= 1
    page.close()


def test_nothing_was_wrong_in_the_console(opened):
    assert [error for error in opened.console.errors if "favicon" not in error] == []


def saved(opened, timeout: float = 30):
    """The notebook's file, once it is written whole and has outputs."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            notebook = nbformat.read(opened.path, as_version=4)
        except nbformat.reader.NotJSONError:
            notebook = None
        if notebook is not None and notebook.cells[0].outputs:
            return notebook
        opened.page.wait_for_timeout(200)
    raise AssertionError("the notebook was not saved with its outputs")


VIEW = "application/vnd.jupyter.widget-view+json"
STILL = {"image/png", "text/html", "text/plain"}


def still_of(opened, changed_since: str = "", timeout: float = 30):
    """The saved notebook and the data of its still, once it differs from what it was."""
    end = time.monotonic() + timeout
    while True:
        opened.command("docmanager:save")
        opened.page.wait_for_timeout(700)
        notebook = saved(opened)
        data = notebook.cells[0].outputs[0]["data"]
        if data["image/png"] != changed_since:
            return notebook, data
        assert time.monotonic() < end, "the still has not followed the view"


def tiles_of(data) -> list[np.ndarray]:
    """Pictures on the still's contact sheet, 64 x 64, (H, W, 3) int."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")).astype(int)
    zoom = 256  # four times 64 pixels
    rows, columns = range(32, sheet.shape[0] - zoom + 1, 2), range(10, sheet.shape[1] - zoom + 1, zoom + 10)
    return [sheet[top : top + zoom : 4, left : left + zoom : 4] for top in rows for left in columns]


def shows(data, expected: np.ndarray) -> bool:
    """Whether one of the still's pictures is the expected one, as near as 256 colours allow."""
    return any(np.abs(tile - expected.astype(int)).mean() < 6 for tile in tiles_of(data))


def test_the_still_follows_the_view(opened, truth):
    picture, _, relevance = truth
    opened.page.get_by_label("Composite", exact=True).select_option("epsilon")
    wait_for_pixels(opened, "lrp", blend(picture, relevance(opened.asked()[0], "epsilon")))
    opened.page.wait_for_timeout(2000)
    _, before = still_of(opened)
    target = opened.asked()[0]
    assert shows(before, blend(picture, relevance(target, "epsilon")))
    opened.page.get_by_label("Composite", exact=True).select_option("epsilon_plus")
    opened.page.get_by_label("Class", exact=True).select_option(str(truth[1]))
    wait_for_pixels(opened, "lrp", blend(picture, relevance(truth[1], "epsilon_plus")))
    opened.page.wait_for_selector("[data-panel=occlusion][data-state=done]", timeout=60000)
    _, after = still_of(opened, before["image/png"])
    opened.page.wait_for_timeout(1500)
    _, after = still_of(opened)
    assert shows(after, blend(picture, relevance(truth[1], "epsilon_plus")))
    assert not shows(after, blend(picture, relevance(target, "epsilon")))


def frame_pixels(page, panel: str) -> np.ndarray:
    """Pixels of a canvas in the frame that holds a saved view."""
    frame = page.frame_locator(".saliency-still iframe")
    canvas = frame.locator(f"[data-panel='{panel}'] canvas.saliency-canvas")
    canvas.wait_for(timeout=60000)
    found = canvas.evaluate(PIXELS)
    pixels = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
    return pixels.reshape(found["height"], found["width"], 4)[..., :3].astype(int)


def shown(page, selector: str) -> list[dict]:
    """Size of every element that takes room on the page."""
    return [box for node in page.locator(selector).all() if (box := node.bounding_box()) and box["height"] > 1]


def colleague(opened, name: str, notebook, trust: bool, theme: str = ""):
    """A page with another's copy of the notebook and a kernel that knows nothing."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells.append(nbformat.v4.new_markdown_cell(f"Look at this. ({name})"))  # so our trust is not its own
    path = opened.folder / name
    nbformat.write(notebook, path)
    if trust:
        environment = {**os.environ, "JUPYTER_DATA_DIR": str(opened.folder.parent / "data")}
        subprocess.run([sys.executable, "-m", "jupyter", "trust", str(path)], env=environment, check=True, timeout=60)
    page = opened.context.new_page()
    page.console = Console(page)
    page.goto(f"{opened.address}/lab/tree/{name}?reset&token={opened.token}")
    page.wait_for_selector(".saliency-still", timeout=60000, state="attached")
    return page


def expected_of(opened, truth) -> np.ndarray:
    target, composite = opened.asked()
    return blend(truth[0], truth[2](target, composite)).astype(int)


def test_live_there_is_the_widget_and_nothing_else(opened):
    assert len(shown(opened.page, ".saliency")) == 1
    assert shown(opened.page, ".saliency-still") == []


def test_two_outputs_are_saved(opened):
    notebook, still = still_of(opened)
    view = notebook.cells[0].outputs[1]["data"]
    assert set(still) == STILL and set(view) == {VIEW, "text/plain"}
    assert still["text/plain"].startswith("SaliencyWidget(methods=('lrp'") and not view["text/plain"]
    assert "running" not in still["text/html"].partition("<iframe")[0]


def test_untrusted_it_is_a_picture(opened):
    notebook, _ = still_of(opened)
    page = colleague(opened, "stranger.ipynb", notebook, trust=False)
    page.wait_for_function("() => document.querySelector('.saliency-still img')?.naturalWidth > 500", timeout=60000)
    (picture,) = shown(page, ".saliency-still img")
    assert picture["width"] > 400 and shown(page, "iframe") == []
    page.close()


def test_trusted_with_a_new_kernel_it_is_the_view(opened, truth):
    notebook, _ = still_of(opened)
    page = colleague(opened, "colleague.ipynb", notebook, trust=True)
    assert np.abs(frame_pixels(page, "lrp") - expected_of(opened, truth)).max() <= 1
    page.wait_for_timeout(1000)
    (frame,) = shown(page, ".saliency-still iframe")
    assert frame["height"] > 300 and shown(page, ".saliency-still img") == []
    assert not page.get_by_text("Error displaying widget").is_visible()
    view = page.frame_locator(".saliency-still iframe")
    assert view.get_by_text("need a kernel").is_visible()
    view.get_by_label("Backdrop", exact=True).select_option("none")  # looking works
    page.wait_for_timeout(300)
    target, composite = opened.asked()
    expected = blend(truth[0], truth[2](target, composite), backdrop="none").astype(int)
    assert np.abs(frame_pixels(page, "lrp") - expected).max() <= 1
    page.close()


def as_web_page(browser, notebook, path: pathlib.Path):
    """The notebook converted to HTML, opened without a network."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    path.write_text(body, "utf-8")
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 1000}).new_page()
    page.goto(path.as_uri())
    return page


def test_converted_it_is_the_view(opened, browser, truth, tmp_path):
    notebook, _ = still_of(opened)
    page = as_web_page(browser, notebook, tmp_path / "notebook.html")
    assert np.abs(frame_pixels(page, "lrp") - expected_of(opened, truth)).max() <= 1
    assert shown(page, ".saliency-still img") == [] and len(shown(page, ".saliency-still iframe")) == 1
    page.context.close()


def test_executed_by_nobody_and_converted_it_has_finished_maps(browser, truth, tmp_path):
    """As ``nbconvert --execute`` does: nobody watches, the kernel ends with the last cell."""
    nbclient = pytest.importorskip("nbclient")
    cell = CELL.replace("wait=None", "wait=0") + "\nwidget.composite = 'epsilon'"
    lines = cell.replace("\nwidget\n", "\ndisplay(widget)\n")  # and a composite that is asked for after it was shown
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines)])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(env=environment, cwd=str(tmp_path))
    still, view = (output["data"] for output in notebook.cells[0].outputs)
    assert set(still) == STILL and VIEW in view
    picture, first, relevance = truth
    assert shows(still, blend(picture, relevance(first, "epsilon")))
    page = as_web_page(browser, notebook, tmp_path / "executed.html")
    assert np.abs(frame_pixels(page, "lrp") - blend(picture, relevance(first, "epsilon"))).max() <= 1
    for panel in ("grad_x_input", "occlusion", "gradcam"):
        assert frame_pixels(page, panel).std() > 5
    assert page.frame_locator("iframe").locator("[data-state=done]").count() == 4
    page.context.close()


def test_a_page_loaded_again_finds_the_living_widget(opened):
    """Last on this notebook: with the same kernel, the widget comes back."""
    opened.command("docmanager:save")
    opened.page.wait_for_timeout(1000)
    opened.page.goto(f"{opened.address}/lab/tree/{opened.path.name}?reset&token={opened.token}")
    opened.page.wait_for_selector("[data-panel=lrp][data-state=done]", timeout=60000)
    assert canvas_pixels(opened.page, "lrp").std() > 5


@pytest.mark.skipif(not SCREENSHOTS, reason="SALIENCY_LRP_SCREENSHOTS names no folder")
@pytest.mark.parametrize(
    ("name", "theme", "width"),
    [
        ("widget-light", "JupyterLab Light", 1280),
        ("widget-dark", "JupyterLab Dark", 1280),
        ("widget-phone", "JupyterLab Light", 420),
    ],
)
def test_screenshots(browser, lab, name, theme, width):
    cell = CELL.replace('composite="epsilon_plus"', 'composite="epsilon_plus", layer="features.9", backdrop="gray"')
    notebook = Lab(browser, lab, f"{name}.ipynb", [cell], width)
    if notebook.page.locator("#jp-left-stack").is_visible():
        notebook.command("application:toggle-left-area")
    notebook.command("apputils:change-theme", theme=theme)
    notebook.run()
    canvas = notebook.page.locator("[data-panel=lrp] canvas.saliency-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    notebook.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    notebook.page.wait_for_timeout(500)
    path = pathlib.Path(SCREENSHOTS) / f"{name}.png"
    notebook.page.locator(".saliency").screenshot(path=path)
    Image.open(path).convert("RGB").save(path, optimize=True)
    notebook.context.close()


@pytest.mark.skipif(not SCREENSHOTS, reason="SALIENCY_LRP_SCREENSHOTS names no folder")
def test_screenshot_of_a_photograph(browser, lab):
    """For notebook 04; needs the extra ``demo``."""
    notebook = Lab(browser, lab, "photograph.ipynb", [PHOTOGRAPH], 1280)
    notebook.page.set_viewport_size({"width": 1280, "height": 1500})  # the whole widget is in view
    if notebook.page.locator("#jp-left-stack").is_visible():
        notebook.command("application:toggle-left-area")
    notebook.run()
    notebook.page.wait_for_selector("[data-panel=grad_x_input][data-state=done]", timeout=60000)
    notebook.page.wait_for_timeout(4000)  # the layer's map and its channels
    path = pathlib.Path(SCREENSHOTS) / "widget-photograph.png"
    notebook.page.locator(".saliency").screenshot(path=path)
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=88)
    path.unlink()
    notebook.context.close()


def test_a_kernel_that_is_gone_is_told(browser, lab):
    """Last of all: controls that can do nothing any more say so."""
    cell = CELL.replace('("lrp", "grad_x_input", "occlusion", "gradcam")', '("lrp", "gradcam")')
    notebook = Lab(browser, lab, "gone.ipynb", [cell])
    notebook.run()
    assert notebook.page.get_by_label("Composite", exact=True).is_enabled()
    notebook.page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
    notebook.page.get_by_text("No kernel: run the cell again").wait_for(timeout=60000)
    assert notebook.page.get_by_label("Composite", exact=True).is_disabled()
    assert notebook.page.get_by_label("Opacity", exact=True).is_enabled()
    notebook.context.close()
