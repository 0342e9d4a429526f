"""From an image to the model's input and from the model's map back to the image."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# ----------------------------------------------------------------------------------------------
# Raw images
# ----------------------------------------------------------------------------------------------


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
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(grey).astype(np.uint8)[..., None] if pixels.dtype == np.uint8 else grey[..., None]


def _on_white(pixels: np.ndarray) -> np.ndarray:
    top = 255.0 if pixels.dtype == np.uint8 else 1.0
    colour, alpha = pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.float32) / top
    mixed = colour * alpha + top * (1 - alpha)
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
        raise InputError(f"there is no image file {os.fspath(path)!r}.") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"the image file {os.fspath(path)!r} cannot be read: {error}") from error


def _from_pil(picture: Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits: PIL would clip them at 255
        values = np.asarray(picture)
        return _from_array(values if picture.mode == "F" else np.clip(values, 0, 65535).astype(np.uint16))
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    grey = picture.mode in ("1", "L")
    mode = "RGBA" if has_alpha else "L" if grey else "RGB"
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


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(
            f"an image array should be H x W, H x W x 3 or H x W x 4, not {array.shape}. For C x H x W pass "
            "torch.from_numpy(array)."
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
            "If it is normalised already, pass it as input= and the image itself as raw_input."
        )
    if array.dtype.kind in "iu" and top == 255.0:
        return array.astype(np.uint8)
    return (array / top).astype(np.float32)


# ----------------------------------------------------------------------------------------------
# Geometry
# ----------------------------------------------------------------------------------------------


_NEARLY_ALL = 0.98


@dataclass(frozen=True)
class Geometry:
    """Which rectangle of the raw image the model's input shows.

    Attributes
    ----------
    raw : (int, int)
        Height and width of the raw image.
    box : (float, float, float, float)
        Top, left, bottom and right of the input in raw pixels. It may lie partly outside (padding),
        and bottom < top or right < left means that the input is flipped.
    """

    raw: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, raw: tuple[int, int]) -> Geometry:
        """The input is the raw image, resized or not."""
        return cls(raw, (0.0, 0.0, float(raw[0]), float(raw[1])))

    def place(self, values: np.ndarray) -> np.ndarray:
        """Put a map over the input, (h, w), on the raw image's pixels, (H, W); 0 outside the box.

        Enlarging interpolates linearly; shrinking averages.
        """
        top, left, bottom, right = self.box
        if self == Geometry.whole(values.shape):
            return values.astype(np.float64)
        rows = _resampling(self.raw[0], values.shape[0], top, bottom)
        columns = _resampling(self.raw[1], values.shape[1], left, right)
        return rows @ values.astype(np.float64) @ columns.T

    def visible_box(self) -> tuple[float, float, float, float] | None:
        """Top, left, bottom and right of what the model saw within the raw image; None if that is nearly all of it."""
        (height, width), (top, left, bottom, right) = self.raw, self.box
        top, bottom = (min(max(edge, 0.0), float(height)) for edge in sorted((top, bottom)))
        left, right = (min(max(edge, 0.0), float(width)) for edge in sorted((left, right)))
        if (bottom - top) * (right - left) >= _NEARLY_ALL * height * width:
            return None
        return top, left, bottom, right


def _resampling(raw: int, side: int, start: float, stop: float) -> np.ndarray:
    """(raw, side) weights: row i says how raw pixel i is mixed from the `side` pixels of [start, stop]."""
    scale = side / (stop - start)
    centres = (np.arange(raw) + 0.5 - start) * scale  # raw pixel centres in input pixels
    inside = (centres >= 0) & (centres <= side)
    centres = np.clip(centres, 0.5, side - 0.5)
    reach = max(abs(scale), 1.0)
    distance = np.abs(centres[:, None] - (np.arange(side) + 0.5)) / reach
    weights = np.clip(1 - distance, 0, None) * inside[:, None]
    return weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)


def measure_geometry(transform: Callable[[Any], Any], raw: tuple[int, int]) -> Geometry | None:
    """Find out where a transform takes its pixels from, by sending pictures of coordinates through it.

    Parameters
    ----------
    transform : callable
        From a PIL image to a tensor (C, h, w) or (1, C, h, w): resizes, crops, pads, flips, normalises.
    raw : (int, int)
        Height and width of the raw image.

    Returns
    -------
    Geometry or None
        None if the coordinates do not come back along straight lines (a random or a warping transform).
    """
    height, width = raw
    rows = np.repeat((np.arange(height) + 0.5)[:, None] / height, width, 1)
    columns = np.repeat((np.arange(width) + 0.5)[None] / width, height, 0)
    black, white = (_send(transform, np.full(raw, value)) for value in (0.0, 1.0))
    gain = white.max() - black.min()
    if black.shape != white.shape or gain <= 0:
        return None
    seen = (white - black) > 0.99 * gain  # padding has one colour, whatever the picture
    spans = []
    for ramp, side, axis in ((rows, height, 0), (columns, width, 1)):
        sent = _send(transform, ramp)
        if sent.shape != black.shape or not np.array_equal(sent, _send(transform, ramp)):
            return None
        span = _line(side * (sent - black) / gain, seen, axis, tolerance=1.5 + side / 100)
        if span is None:
            return None
        spans.append(span)
    (top, bottom), (left, right) = spans
    return Geometry(raw, (top, left, bottom, right))


def _send(transform: Callable[[Any], Any], grey: np.ndarray) -> np.ndarray:
    """First channel, (h, w), of what the transform makes of a grey picture with values in [0, 1]."""
    from PIL import Image

    levels = np.round(grey * 255).astype(np.uint8)
    sent = as_batch(transform(Image.fromarray(np.repeat(levels[..., None], 3, 2))))
    return sent[0, 0].detach().cpu().double().numpy()


def _line(coordinates: np.ndarray, seen: np.ndarray, axis: int, tolerance: float) -> tuple[float, float] | None:
    """Fit raw = a + b * pixel along one axis; return the raw positions of the input's two edges."""
    count = seen.sum(1 - axis)
    if (count > 0).sum() < 2:
        return None
    line = (coordinates * seen).sum(1 - axis)[count > 0] / count[count > 0]
    position = np.arange(seen.shape[axis])[count > 0] + 0.5
    inner = slice(1, -1) if len(line) > 4 else slice(None)  # interpolation bends the line at the edges
    slope, offset = np.polyfit(position[inner], line[inner], 1)
    spread = np.abs(coordinates - np.expand_dims(offset + slope * (np.arange(seen.shape[axis]) + 0.5), 1 - axis))
    if slope == 0 or spread[seen].max() > tolerance:
        return None
    return float(offset), float(offset + slope * seen.shape[axis])


# ----------------------------------------------------------------------------------------------
# Preprocessing
# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images: resize, crop or pad, and normalise.

    Attributes
    ----------
    resize : int, (int, int) or None
        Length of the shorter side, exact height and width, or no resizing.
    crop : (int, int) or None
        Centre crop, padded with black where the resized image is smaller.
    mean, std : tuple of float or None
        Per channel, of values in [0, 1].
    interpolation : str
        ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
    fit : bool
        Resize the *longer* side to `resize` instead, so that the crop pads (letter box).
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    fit: bool = False

    def resized(self, raw: tuple[int, int]) -> tuple[int, int]:
        """Height and width after resizing an image of height and width `raw`."""
        if self.resize is None:
            return raw
        if isinstance(self.resize, tuple):
            return self.resize
        reference = max(raw) if self.fit else min(raw)
        return tuple(self.resize if side == reference else int(self.resize * side / reference) for side in raw)

    def geometry(self, raw: tuple[int, int]) -> Geometry:
        """Where the input's pixels come from, for a raw image of height and width `raw`."""
        middle = self.resized(raw)
        crop = self.crop or middle
        starts = [_crop_start(side, want) for side, want in zip(middle, crop, strict=True)]
        scales = [full / side for full, side in zip(raw, middle, strict=True)]
        (top, left), (y, x) = starts, scales
        return Geometry(raw, (top * y, left * x, (top + crop[0]) * y, (left + crop[1]) * x))

    def __call__(self, image: RawImage, channels: int | None = None) -> Tensor:
        """The model's input, (1, C, h, w) float32."""
        pixels = image.channels(channels or (3 if self.mean is None else len(self.mean)))
        size = self.resized(image.size)
        values = _resize(pixels, size, self.interpolation)
        if self.crop is not None:
            values = _centre_crop(values, self.crop)
        return self._normalise(values)[None]

    def _normalise(self, values: Tensor) -> Tensor:
        for what, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is None:
                continue
            tensor = torch.tensor(numbers)
            if len(tensor) != values.shape[0]:  # three means, one grey channel
                tensor = tensor.mean(0, keepdim=True)
            tensor = tensor[:, None, None]
            values = values - tensor if what == "mean" else values / tensor
        return values


def _crop_start(side: int, want: int) -> int:
    if want > side:
        return -((want - side) // 2)
    return int(round((side - want) / 2.0))


def _resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    """(C, h, w) float32 in [0, 1]. Bytes are resized by Pillow, as torchvision does; floats by torch."""
    from PIL import Image

    if pixels.shape[:2] == size:
        return _chw(pixels)
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        resized = picture.resize(size[::-1], Image.Resampling[interpolation.upper()])
        return _chw(np.asarray(resized).reshape(*size, -1))
    smooth = interpolation != "nearest"
    options = {"antialias": True, "align_corners": False} if smooth else {}
    return F.interpolate(_chw(pixels)[None], size=size, mode=interpolation, **options)[0].clamp(0, 1)


def _chw(pixels: np.ndarray) -> Tensor:
    values = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()


def _centre_crop(values: Tensor, crop: tuple[int, int]) -> Tensor:
    _, height, width = values.shape
    top, left = _crop_start(height, crop[0]), _crop_start(width, crop[1])
    padding = (-left, crop[1] - width + left, -top, crop[0] - height + top)
    return F.pad(values, padding)  # a negative padding crops


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = tuple(size)[-2:]
    return int(height), int(width)


def _own(model: nn.Module) -> Preprocessing | None:
    """From ``model.preprocessing``: ``size`` or ``resize`` and ``crop``, ``mean``, ``std``, ``interpolation``."""
    given = getattr(model, "preprocessing", None)
    if not isinstance(given, Mapping):
        return None
    known = {"size", "mean", "std", "interpolation", "resize", "crop"}
    for key in given:
        if key not in known:
            raise unknown_name("key of model.preprocessing", key, known)
    crop = given.get("crop")
    resize = given.get("size", given.get("resize"))
    return Preprocessing(
        resize=resize if isinstance(resize, int) and crop else None if resize is None else _pair(resize),
        crop=None if crop is None else _pair(crop),
        mean=_floats(given.get("mean")),
        std=_floats(given.get("std")),
        interpolation=given.get("interpolation", "bilinear"),
    )


def _floats(numbers: Any) -> tuple[float, ...] | None:
    return None if numbers is None else tuple(float(number) for number in numbers)


def _timm(model: nn.Module) -> Preprocessing | None:
    """From the configuration that timm's models carry."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if config is not None and not isinstance(config, Mapping):
        config = getattr(config, "__dict__", None)
    if not config or "input_size" not in config:
        return None
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"]
    crop = _pair(size)
    share = config.get("crop_pct") or 0.875
    mode = config.get("crop_mode") or "center"
    scaled = tuple(int(side / share) for side in crop)
    interpolation = config.get("interpolation") or "bicubic"
    return Preprocessing(
        resize=scaled if mode == "squash" or crop[0] != crop[1] else scaled[0],
        crop=crop,
        mean=_floats(config.get("mean")),
        std=_floats(config.get("std")),
        interpolation=interpolation if interpolation in ("nearest", "bilinear", "bicubic") else "bicubic",
        fit=mode == "border",
    )


_NOT_CLASSIFIERS = ("segmentation", "detection", "video", "optical_flow")


def _torchvision(model: nn.Module) -> Preprocessing | None:
    """ImageNet's preset for torchvision's classifiers, known by where their class was defined."""
    homes = [cls.__module__ for cls in type(model).__mro__ if cls.__module__.startswith("torchvision.models")]
    if not homes:
        return None
    if any(f".{kind}" in homes[0] for kind in _NOT_CLASSIFIERS):
        return Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    side = 299 if type(model).__name__ == "Inception3" else getattr(model, "image_size", 224)
    resize = 342 if side == 299 else round(side * 256 / 224)
    return Preprocessing(resize, (side, side), IMAGENET_MEAN, IMAGENET_STD)


_SOURCES = (_own, _timm, _torchvision)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The preprocessing that a model asks for.

    First of: its own ``preprocessing`` mapping, timm's configuration, ImageNet's preset for
    torchvision's classifiers; else values in [0, 1] at the image's own size.
    """
    for source in _SOURCES:
        found = source(model)
        if found is not None:
            return found
    return Preprocessing()


def _channels_wanted(model: nn.Module) -> int | None:
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if conv is None else conv.in_channels


def as_batch(tensor: Any) -> Tensor:
    """What a transform returned, as (1, C, h, w) floats."""
    if isinstance(tensor, np.ndarray):
        tensor = torch.from_numpy(tensor)
    if not isinstance(tensor, Tensor):
        raise InputError(f"transform= should return a torch tensor, not {type(tensor).__name__}.")
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise InputError(f"transform= should return C x H x W or 1 x C x H x W, not {tuple(tensor.shape)}.")
    return tensor if tensor.is_floating_point() else tensor.float()


def build_input(
    model: nn.Module, image: RawImage, transform: Callable[[Any], Any] | None = None
) -> tuple[Tensor, Geometry, list[str]]:
    """The model's input for an image, where its pixels come from, and what to warn about.

    Parameters
    ----------
    model : torch.nn.Module
    image : RawImage
    transform : callable, optional
        From a PIL image to the model's tensor; default: :func:`preprocessing_of` the model.

    Returns
    -------
    (Tensor, Geometry, list of str)
        The tensor is (1, C, h, w) float32 on the CPU.
    """
    if transform is None:
        preprocessing = preprocessing_of(model)
        return preprocessing(image, _channels_wanted(model)), preprocessing.geometry(image.size), []
    tensor = as_batch(transform(image.picture()))
    return tensor, *geometry_of(transform, image.size)


def geometry_of(transform: Callable[[Any], Any], raw: tuple[int, int]) -> tuple[Geometry, list[str]]:
    """Geometry of a transform, and a warning where it could not be measured."""
    geometry = measure_geometry(transform, raw)
    if geometry is not None:
        return geometry, []
    return Geometry.whole(raw), [
        "where transform= takes its pixels from could not be measured (is it random?): the map is drawn as "
        "if the whole image had been resized"
    ]


def normalise(values: np.ndarray) -> np.ndarray:
    """Min-max to [0, 1] as float32; a constant map gives zeros."""
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)
