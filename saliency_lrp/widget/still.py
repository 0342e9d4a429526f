"""What a saved notebook keeps of a widget: a picture that is current, and the view itself where scripts may run.

A notebook's front end that finds no model for a live view says so instead of showing another form of the same output.
So two outputs are sent: the *still* (a picture, and over it the view as a page in a frame), and the live view. Style
sheets, which are honoured in trusted notebooks only, hide the still while the live view is there, the complaint where
it is not, and the picture where the frame is.
"""

from __future__ import annotations

import base64
import contextlib
import io
import sys
import threading
from collections.abc import Callable
from html import escape
from typing import Any

#: seconds without a change after which the still is made anew
QUIET = 0.7
#: bytes above which a picture is kept in 256 colours
LARGEST_TRUE_COLOR = 100_000
#: characters above which a page is not put into a notebook
LARGEST_PAGE = 3_000_000

_OUTPUT = ".jp-OutputArea-child"
STYLE = f"""<style>
{_OUTPUT}:has(.saliency-still):has(+ {_OUTPUT} .saliency) {{ display: none; }}
{_OUTPUT}:has(.saliency-still) + {_OUTPUT} .jupyter-widgets:not(:has(.saliency)) {{ display: none; }}
.saliency-still > figure:has(+ iframe) {{ display: none; }}
.saliency-still > iframe {{ width: 100%; height: 640px; border: 0; }}
</style>"""


def still_html(png: bytes, caption: str, notes: list[str], page: str) -> str:
    """The picture with its caption and notes, and the page in a frame over it."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    picture = base64.b64encode(png).decode("ascii")
    figure = (
        f'<figure style="margin:0"><img alt="{escape(caption)}" style="max-width:100%" '
        f'src="data:image/png;base64,{picture}">'
        f"<figcaption>{escape(caption)}{f'<ul>{items}</ul>' if items else ''}</figcaption></figure>"
    )
    # loading="lazy": a frame that is not displayed costs nothing
    frame = f'<iframe loading="lazy" title="{escape(caption)}" srcdoc="{escape(page)}"></iframe>'
    return f'{STYLE}<div class="saliency-still">{figure}{frame if len(page) <= LARGEST_PAGE else ""}</div>'


def small_png(png: bytes) -> bytes:
    """A large picture in 256 colours: a third of the bytes, and what is seen is the same."""
    from PIL import Image

    if len(png) <= LARGEST_TRUE_COLOR:
        return png
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, "PNG")
    return buffer.getvalue()


def somebody_watches() -> bool:
    """Whether the cell that runs was sent by a person's front end: one that could answer a question.

    What executes notebooks by itself (nbconvert, papermill) ends when the last cell does, and sees no later change.
    """
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return bool((parent or {}).get("content", {}).get("allow_stdin", True))


class Still:
    """Shows the still once and keeps it up to date.

    Parameters
    ----------
    make : callable
        Returns the mime bundle of the still as it is now.
    """

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self._make = make
        self._handles: list[Any] = []
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def show(self) -> None:
        """Send the still as an output of the running cell."""
        from IPython.display import display

        self._handles.append(display(self._make(), raw=True, display_id=True))

    def outdated(self) -> None:
        """Something has changed: make the still anew once nothing has changed for a while."""
        with self._lock:
            if not self._handles:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(QUIET, self.update)
            self._timer.daemon = True
            self._timer.start()

    def update(self) -> None:
        """Make the still anew now."""
        with self._lock:
            self._timer = None
        data = self._make()
        for handle in self._handles:
            with contextlib.suppress(OSError):  # the front end is gone: nobody keeps this notebook any more
                handle.update(data, raw=True)

    def flush(self) -> None:
        """Make the still anew now if it is outdated."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            self.update()

    def close(self) -> None:
        """Stop keeping it up to date."""
        with self._lock:
            self._handles.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
