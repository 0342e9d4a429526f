r"""A widget as a page of its own: the same view, interactive, with no kernel and no network, small enough to send.

Large maps are kept with the square root of \|R\| in whole steps, as their opacity goes; a large picture is kept as
JPEG. The browser's side of this is at the end of ``static/overlay.js``.
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

STATIC = pathlib.Path(__file__).parent / "static"
SCRIPT, STYLE = STATIC / "overlay.js", STATIC / "overlay.css"
#: steps of the square root of |R| on either side of zero
ROOT_STEPS = 511
#: values up to which a map is kept as it is
_EXACT = 20_000
#: bytes up to which a picture is kept as it is
_LOSSLESS = 64_000
_JPEG_QUALITY = 90
_THUMBNAIL = 200  # pixels


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def packed_map(values: np.ndarray) -> dict[str, Any]:
    r"""A map of any shape: as it is (float32, packed) where that is small.

    A large one as steps of the root of \|R\|, and its largest: differences from one step to the next with the sign in
    the lowest bit, all low bytes before all high ones, packed.
    """
    if values.size <= _EXACT:
        return {"floats": _text(zlib.compress(np.ascontiguousarray(values, "<f4").tobytes(), 9))}
    largest = float(np.abs(values).max(initial=0.0))
    steps = np.rint(ROOT_STEPS * np.sqrt(np.abs(values) / (largest or 1.0)) * np.sign(values)).astype(np.int32)
    differences = np.diff(steps.reshape(-1), prepend=0)
    folded = np.where(differences < 0, -2 * differences - 1, 2 * differences)
    planes = np.concatenate([folded & 255, folded >> 8]).astype(np.uint8)
    return {"steps": _text(zlib.compress(planes.tobytes(), 9)), "largest": largest}


def packed_picture(pixels: np.ndarray) -> dict[str, str]:
    """An RGB picture, (H, W, 3) uint8: PNG where that is small, else JPEG."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": _JPEG_QUALITY})):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        if len(buffer.getvalue()) <= _LOSSLESS:
            break
    return {"picture": f"data:image/{kind};base64,{_text(buffer.getvalue())}"}


def thumbnail(pixels: np.ndarray) -> str:
    """A small copy of a picture, (H, W, 3) uint8, as a data address."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{_text(buffer.getvalue())}"


def _packed(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": _text(value)}
    raise TypeError(f"{type(value).__name__} has no place in a saved page")


def _script(value: Any) -> str:
    """JSON that can stand inside a script element: its text has "<" in strings only."""
    return json.dumps(value, default=_packed).replace("<", "\\u003c")


def page(state: Mapping[str, Any]) -> str:
    """A whole HTML page that shows a widget's state.

    Parameters
    ----------
    state : mapping
        Trait names to values: JSON, bytes, or what :func:`packed_map` and :func:`packed_picture` made of arrays.
    """
    style, script = STYLE.read_text("utf-8"), SCRIPT.read_text("utf-8")
    fields = {"STATE": _script({**state, "_css": style}), "MODULE": _script(script), "STYLE": style}
    return re.sub(r"__(STATE|MODULE|STYLE)__", lambda found: fields[found[1]], template())


def template() -> str:
    """The page without its contents."""
    return (STATIC / "page.html").read_text("utf-8")
