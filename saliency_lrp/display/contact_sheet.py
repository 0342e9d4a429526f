"""Several pictures with captions on one sheet, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

TITLE = 22
GAP = 10


def contact_sheet(tiles: Sequence[tuple[np.ndarray, str, str]], columns: int = 3, width: int = 224) -> bytes:
    """Lay pictures of one size out in rows.

    Parameters
    ----------
    tiles : sequence of (numpy.ndarray, str, str)
        (H, W, 3) uint8 picture, title, and a smaller line under it.
    columns : int
        Pictures in a row at most.
    width : int
        Least width of a picture in pixels; smaller ones are enlarged by a whole factor.

    Returns
    -------
    bytes
        PNG.
    """
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(1, -(-width // tiles[0][0].shape[1]))
    size = (tiles[0][0].shape[1] * zoom, tiles[0][0].shape[0] * zoom)
    note = 18 if any(line for _, _, line in tiles) else 0
    columns = min(columns, len(tiles))
    cell = (size[0] + GAP, size[1] + TITLE + note + GAP)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, -(-len(tiles) // columns) * cell[1] + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    title_font, note_font = ImageFont.load_default(14), ImageFont.load_default(11)
    for place, (pixels, title, line) in enumerate(tiles):
        left, top = GAP + place % columns * cell[0], GAP + place // columns * cell[1]
        pen.text((left, top), _fitting(title, title_font, size[0]), "black", title_font)
        sheet.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (left, top + TITLE))
        pen.text((left, top + TITLE + size[1] + 2), _fitting(line, note_font, size[0]), "#555555", note_font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fitting(text: str, font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
