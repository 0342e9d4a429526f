"""Pictures in any form in which people have them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class RawImage:
    """A picture as it was given, in one form.

    Attributes
    ----------
    pixels : numpy.ndarray
        (H, W, C) with C of 1, 3 or 4 (or more for tensors): uint8, or float32 in [0, 1].
    """

    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def rgb(self) -> np.ndarray:
        """(H, W, 3) in the pixels' own dtype: alpha composited on white, grey repeated."""
        return _to_channels(self.pixels, 3)

    def picture(self) -> Image:
        """A PIL picture to draw and to resize."""
        from PIL import Image

        return Image.fromarray(_to_uint8(self.rgb()))

    def channels(self, count: int) -> np.ndarray:
        """(H, W, count) for a model that takes `count` channels.

        Raises
        ------
        InputError
            If the picture cannot be read that way.
        """
        if self.pixels.shape[2] == count:
            return self.pixels
        if count in (1, 3) and self.pixels.shape[2] in (1, 3, 4):
            return _to_channels(self.pixels, count)
        raise InputError(
            f"the model takes {count} channels but the image has {self.pixels.shape[2]}: pass the "
            "tensor that the model takes by input=, or build it by transform=."
        )


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else np.round(pixels * 255).astype(np.uint8)


def _to_channels(pixels: np.ndarray, count: int) -> np.ndarray:
    """Grey, RGB or RGBA pixels as grey or RGB, dtype kept."""
    if pixels.shape[2] == count:
        return pixels
    if pixels.shape[2] == 4:
        return _to_channels(_on_white(pixels), count)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, count, axis=2)
    if pixels.shape[2] != 3:
        return _to_channels(pixels[:, :, :1], count)  # many bands: the first one, to look at
    gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(gray).astype(np.uint8)[..., None] if pixels.dtype == np.uint8 else gray[..., None]


def _on_white(pixels: np.ndarray) -> np.ndarray:
    top = 255.0 if pixels.dtype == np.uint8 else 1.0
    color, alpha = pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.float32) / top
    mixed = color * alpha + top * (1 - alpha)
    return np.round(mixed).astype(np.uint8) if pixels.dtype == np.uint8 else mixed


def load_image(raw: Any) -> RawImage:
    """Read a picture in any of the forms in which people have one.

    Parameters
    ----------
    raw : PIL image, numpy.ndarray, path or Tensor
        Arrays are H x W, H x W x 1, x 3 or x 4; tensors C x H x W, 1 x C x H x W or H x W. Integers are
        0 to 255 (uint16: 0 to 65535), floats 0 to 1, or 0 to 255 where one exceeds 1.

    Raises
    ------
    InputError
        If it cannot be read, is empty, has NaN, infinite, or negative values, or odd channels.
    """
    from PIL import Image

    if isinstance(raw, (str, os.PathLike)):
        raw = _open(raw)
    if isinstance(raw, Image.Image):
        return RawImage(_from_pil(raw))
    if isinstance(raw, Tensor):
        return RawImage(_from_tensor(raw))
    if isinstance(raw, np.ndarray):
        return RawImage(_from_array(raw))
    raise InputError(
        f"an image should be a PIL image, a NumPy array, a path or a torch tensor, not {type(raw).__name__}."
    )


def _open(path: str | os.PathLike) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except FileNotFoundError:
        text = os.fspath(path)
        words = " " in text and not os.path.splitext(text)[1]
        hint = " Is it a text? saliency_lrp.explain_text(model, tokenizer, text) explains words." if words else ""
        raise InputError(f"there is no image file {text!r}.{hint}") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"the image file {os.fspath(path)!r} cannot be read: {error}") from error


def _from_pil(picture: Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits: PIL would clip them at 255
        values = np.asarray(picture)
        return _from_array(values if picture.mode == "F" else np.clip(values, 0, 65535).astype(np.uint16))
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    gray = picture.mode in ("1", "L")
    mode = "RGBA" if has_alpha else "L" if gray else "RGB"
    try:
        return _from_array(np.asarray(picture.convert(mode)))
    except OSError as error:
        raise InputError(f"the image cannot be read: {error}") from error


def _from_tensor(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3:
        raise InputError(
            f"an image tensor should be C x H x W or 1 x C x H x W, not {tuple(tensor.shape)}. For another "
            "kind of data pass raw_input=None and the tensor by input=."
        )
    if tensor.shape[0] > 4 and tensor.shape[2] in (1, 3, 4):
        raise InputError(
            f"an image tensor should be C x H x W, but the shape {tuple(tensor.shape)} looks like H x W x C: "
            "call .permute(2, 0, 1) on it, or .numpy()."
        )
    values = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return _scaled(values.movedim(0, -1).numpy())


def is_window(given: Any) -> bool:
    """Whether an option is a window on numbers, (low, high), and not the side of an occlusion window."""
    return isinstance(given, tuple | list) and len(given) == 2


def windowed(raw: Any, window: Any) -> Any:
    """An image of measured numbers, such as a CT slice in Hounsfield units, as values in [0, 1].

    Parameters
    ----------
    raw : PIL image, numpy.ndarray, path or Tensor
        The image.
    window : (float, float)
        What becomes 0 and what becomes 1; beyond, values are cut off.

    Raises
    ------
    InputError
        If the window is not two finite numbers, the lower one first.
    """
    from PIL import Image

    try:
        low, high = (float(edge) for edge in window)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"window= should be two numbers, what is shown black and what white, not {window!r}.")
    if isinstance(raw, (str, os.PathLike)):
        raw = _open(raw)
    if isinstance(raw, Tensor):
        picture = raw[None] if raw.ndim == 2 else raw
        return ((picture.detach().float() - low) / (high - low)).clamp(0, 1)
    if not isinstance(raw, np.ndarray | Image.Image):
        raise InputError(f"window= is for an image, not {type(raw).__name__}.")
    values = np.asarray(raw, np.float32)
    return np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(
            f"an image array should be H x W, H x W x 3 or H x W x 4, not {array.shape}. For C x H x W pass "
            "torch.from_numpy(array); a volume as input=, a tensor 1 x C x D x H x W."
        )
    return _scaled(array)


def _scaled(array: np.ndarray) -> np.ndarray:
    """Pixels as uint8, or float32 in [0, 1]."""
    if array.size == 0:
        raise InputError(f"the image is empty: its shape is {array.shape}.")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise InputError(f"an image holds integers or floats, not {array.dtype}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"the image has {int((~np.isfinite(array)).sum())} NaN or infinite values.")
    low, high = float(array.min()), float(array.max())
    top = 65535.0 if array.dtype == np.uint16 else 255.0 if array.dtype.kind in "iu" or high > 1 else 1.0
    if low < 0 or high > top:
        raise InputError(
            f"the image's values run from {low:g} to {high:g}: an image holds 0 to 1 (floats) or 0 to 255. "
            "Measured numbers, as of a CT slice? Say window=(low, high), what is black and what white. Normalised "
            "already? Pass it as input= and the image itself as raw_input."
        )
    if array.dtype.kind in "iu" and top == 255.0:
        return array.astype(np.uint8)
    return (array / top).astype(np.float32)


def normalize(values: np.ndarray) -> np.ndarray:
    """Min-max to [0, 1] as float32; a constant map gives zeros."""
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)
