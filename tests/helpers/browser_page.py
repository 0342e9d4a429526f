"""Open a widget's own JavaScript in a bare page, with a model that records what would be sent to a kernel."""

from __future__ import annotations

import base64
import json

import numpy as np


class Console:
    """Errors that a page has logged."""

    def __init__(self, page) -> None:
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._heard)

    def _heard(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


PIXELS = """(canvas) => {
    const { width, height } = canvas;
    const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    let text = "";
    for (let i = 0; i < data.length; i += 0x8000) text += String.fromCharCode(...data.subarray(i, i + 0x8000));
    return { width, height, data: btoa(text) };
}"""

START = """async ([json, esm, css]) => {
    document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
    const module = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
    const revive = (key, value) => value && typeof value.base64 === "string"
        ? new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer) : value;
    window.parse = (text) => JSON.parse(text, revive);
    window.sent = [];
    window.messages = [];
    window.model = new module.PageModel({ ...parse(json), _esm: esm, _css: css });
    let pending = {};
    const set = model.set.bind(model);
    model.set = (name, value) => { pending[name] = value; set(name, value); };
    model.save_changes = () => { sent.push(pending); pending = {}; };
    model.send = (message) => messages.push(message);
    window.receive = (state) => { for (const [name, value] of Object.entries(state)) set(name, value); };
    module.default.render({ model, el: document.body });
}"""


def packed_state(widget) -> str:
    """The widget's synchronised state as JSON, bytes as base64."""
    state = {name: getattr(widget, name) for name in widget.keys if not name.startswith("_") and name != "layout"}
    return json.dumps(
        state,
        default=lambda value: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else None,
    )


def open_widget(browser, widget, *, width: int = 1280, height: int = 900, dark: bool = False):
    """A page of its own, offline, that shows the widget; ``page.follow(widget)`` sends it the newest state."""
    context = browser.new_context(
        offline=True,
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        accept_downloads=True,
    )
    page = context.new_page()
    page.console = Console(page)
    page.set_content('<!doctype html><meta name="viewport" content="width=device-width"><body style="margin:0">')
    page.evaluate(START, [packed_state(widget), str(widget._esm), str(widget._css)])
    page.follow = lambda widget: page.evaluate("(text) => receive(parse(text))", packed_state(widget))
    page.wait_for_selector("[data-panel]")
    return page


def canvas_pixels(page, panel: str) -> np.ndarray:
    """RGBA bytes of a panel's canvas as (H, W, 4) int."""
    found = page.locator(f"[data-panel='{panel}'] canvas.saliency-canvas").evaluate(PIXELS)
    return (
        np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(found["height"], found["width"], 4).astype(int)
    )
