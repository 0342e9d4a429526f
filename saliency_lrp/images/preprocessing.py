"""From a picture to a model's input, the way that the model asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown_name
from .geometry import Geometry, as_batch, geometry_of
from .picture import RawImage
from .transforms import as_function

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        resize = self.resize
        height, width = (resize if side == reference else int(resize * side / reference) for side in raw)
        return height, width

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
            values = _center_crop(values, self.crop)
        return self._normalize(values)[None]

    def _normalize(self, values: Tensor) -> Tensor:
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
    return round((side - want) / 2.0)


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


def _center_crop(values: Tensor, crop: tuple[int, int]) -> Tensor:
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
    scaled = int(crop[0] / share), int(crop[1] / share)
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


def _hugging_face(model: nn.Module) -> Preprocessing | None:
    """From the ``preprocessor_config.json`` that lies beside a saved model's own configuration."""
    home = getattr(getattr(model, "config", None), "_name_or_path", None)
    path = Path(home) / "preprocessor_config.json" if home else None
    if path is None or not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    normalized = config.get("do_normalize", True)
    size, crop = _sides(config.get("size")), _sides(config.get("crop_size"))
    cropped = config.get("do_center_crop", crop is not None) and crop is not None
    return Preprocessing(
        resize=size if config.get("do_resize", True) else None,
        crop=_pair(crop) if cropped else None,
        mean=_floats(config.get("image_mean")) if normalized else None,
        std=_floats(config.get("image_std")) if normalized else None,
        interpolation={0: "nearest", 2: "bilinear", 3: "bicubic"}.get(config.get("resample", 2), "bilinear"),
    )


def _sides(size: Any) -> int | tuple[int, int] | None:
    """A size in a Hugging Face configuration: the shorter side, or height and width."""
    if isinstance(size, Mapping):
        return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    return None if size is None else int(size)


_SOURCES = (_own, _timm, _hugging_face, _torchvision)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The preprocessing that a model asks for.

    First of: its own ``preprocessing`` mapping, timm's configuration, the image processor saved beside a
    Hugging Face model, ImageNet's preset for torchvision's classifiers; else values in [0, 1] at the image's own size.
    """
    for source in _SOURCES:
        found = source(model)
        if found is not None:
            return found
    return Preprocessing()


def input_channels(model: nn.Module) -> int | None:
    """Channels that a model's first 2-D convolution takes; None where it has none."""
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if conv is None else conv.in_channels


def build_input(
    model: nn.Module, image: RawImage, transform: Callable[[Any], Any] | None = None
) -> tuple[Tensor, Geometry, list[str]]:
    """The model's input for an image, where its pixels come from, and what to warn about.

    Parameters
    ----------
    model : torch.nn.Module
        Whose input it is.
    image : RawImage
        The image as it was given.
    transform : callable, optional
        From a PIL image to the model's tensor, or an image processor (see :mod:`saliency_lrp.images.transforms`);
        default: :func:`preprocessing_of` the model.

    Returns
    -------
    (Tensor, Geometry, list of str)
        The tensor is (1, C, h, w) float32 on the CPU.
    """
    if transform is None:
        preprocessing = preprocessing_of(model)
        return preprocessing(image, input_channels(model)), preprocessing.geometry(image.size), []
    tensor = as_batch(as_function(transform)(image.picture()))
    return tensor, *geometry_of(transform, image.size)
