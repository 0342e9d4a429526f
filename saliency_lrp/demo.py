"""A small trained network and real images on which the true place of the object is known.

Each image is a handwritten digit (scikit-learn's `load_digits`: 8 x 8 scans of real handwriting) pasted at a
random place, size and colour on a crop of a photograph that ships with scikit-image. What the network should
look at is therefore known exactly, so a saliency map can be *measured*, not only admired. Nothing is
downloaded.

Training and test images share neither digits nor parts of photographs. `benchmarks/train_demo.py` trains the
weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from .errors import InputError

__all__ = [
    "DEMO_CLASSES",
    "DemoData",
    "DemoImage",
    "DemoNet",
    "demo_dataset",
    "demo_images",
    "load_demo_model",
]

DEMO_CLASSES = tuple(f"digit {digit}" for digit in range(10))
IMAGE_SIZE = 64
DIGIT_SIZES = (22, 29)  # side of the pasted digit in pixels, both ends included: 16 % of the image on average
PREPROCESSING = {"size": (IMAGE_SIZE, IMAGE_SIZE), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
WEIGHTS = Path(__file__).parent / "data" / "demo_cnn.safetensors"

# Photographs in scikit-image's wheel, without those that show writing.
PHOTOGRAPHS = (
    "brick", "grass", "gravel", "coffee", "astronaut", "chelsea", "rocket", "camera", "coins", "moon",
    "hubble_deep_field", "immunohistochemistry",
)  # fmt: skip
SPLITS = ("train", "test")
TEST_DIGITS = 0.25  # share of the 1,797 digits kept for test images
TRAIN_WIDTH = 0.6  # training crops come from the left of a photograph, test crops from the rest
MIN_CONTRAST = 0.3  # least difference in luminance between a digit and the pixels around it, of 1


class DemoImage(NamedTuple):
    """One image: `image` (64 x 64 RGB), its `label` (0 to 9), where the digit is (`mask`, 64 x 64 bool)."""

    image: Image.Image
    label: int
    mask: np.ndarray


class DemoData(NamedTuple):
    """Many images as tensors.

    `inputs` are (N, 3, 64, 64) float32 as `DemoNet` wants them, `labels` (N,), `masks` (N, 64, 64) bool.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


def _block(inputs: int, outputs: int, pool: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), pool]


class DemoNet(nn.Module):
    """Convolution, batch norm, ReLU, pooling, four times; then a linear layer: (N, 3, 64, 64) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 16, nn.MaxPool2d(2)),
            *_block(16, 32, nn.MaxPool2d(2)),
            *_block(32, 64, nn.AvgPool2d(2)),
            *_block(64, 96, nn.AdaptiveMaxPool2d(1)),
        )
        self.head = nn.Linear(96, len(DEMO_CLASSES))
        self.preprocessing = dict(PREPROCESSING)
        self.class_names = DEMO_CLASSES

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).flatten(1))


def load_demo_model() -> DemoNet:
    """Return the trained demo network in evaluation mode, on the CPU."""
    from safetensors.torch import load_file

    model = DemoNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def demo_images(n: int, seed: int = 0, split: str = "test", mask: str = "box") -> list[DemoImage]:
    """Make `n` images; the same arguments give the same images.

    Parameters
    ----------
    n : int
        How many images, at least 1. Labels are drawn evenly from the ten classes.
    seed : int
        Which images. The first k of n images with one seed are those of `demo_images(k, seed)`.
    split : {"test", "train"}
        Digits and backgrounds to draw from; the two share none.
    mask : {"box", "pixels"}
        What `DemoImage.mask` marks: the square that the digit was pasted into, or the pixels of its strokes.

    Raises
    ------
    InputError
        If an argument is not one of the above.
    """
    _check(n, split, mask)
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    digits, labels = _digits(split)
    return [_paste(rng, digits, labels, _backgrounds(split), mask) for _ in range(n)]


def demo_dataset(n: int, seed: int = 0, split: str = "test", mask: str = "box") -> DemoData:
    """Make `n` images as tensors, normalised for `DemoNet`; the arguments are those of `demo_images`."""
    images, labels, masks = zip(*demo_images(n, seed, split, mask), strict=True)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(PREPROCESSING[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    inputs = ((pixels / 255 - mean) / std).contiguous()
    return DemoData(inputs, torch.tensor(labels), torch.from_numpy(np.stack(masks)))


def _check(n: int, split: str, mask: str) -> None:
    if n < 1:
        raise InputError(f"n={n}: ask for at least one image")
    for name, given, known in (("split", split, SPLITS), ("mask", mask, ("box", "pixels"))):
        if given not in known:
            raise InputError(f"{name}={given!r}: expected one of {', '.join(map(repr, known))}")


@cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: (N, 8, 8) ink in [0, 1], and (N,) labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    parts = train_test_split(data.images / 16, data.target, test_size=TEST_DIGITS, random_state=0, stratify=data.target)
    first = SPLITS.index(split)
    return parts[first], parts[2 + first]


@cache
def _backgrounds(split: str) -> tuple[Image.Image, ...]:
    """The part of each photograph that belongs to a split."""
    from skimage import data

    photographs = (Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS)
    return tuple(_part(photograph, split) for photograph in photographs)


def _part(photograph: Image.Image, split: str) -> Image.Image:
    width, height = photograph.size
    border = round(TRAIN_WIDTH * width)
    return photograph.crop((0, 0, border, height) if split == "train" else (border, 0, width, height))


def _paste(rng: np.random.Generator, digits, labels, backgrounds, mask: str) -> DemoImage:
    """One image: a random digit, in a random colour, size and place, on a random background."""
    label = int(rng.integers(len(DEMO_CLASSES)))
    digit = digits[rng.choice(np.flatnonzero(labels == label))]
    canvas = _crop(rng, backgrounds[rng.integers(len(backgrounds))])
    side = int(rng.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
    top, left = rng.integers(0, IMAGE_SIZE - side + 1, size=2)
    box = (slice(top, top + side), slice(left, left + side))
    ink = _enlarge(digit, side)
    color = _contrasting_color(rng, canvas[box])
    canvas[box] += ink[..., None] * (color - canvas[box])
    where = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    where[box] = True if mask == "box" else ink > 0.5
    return DemoImage(Image.fromarray(np.uint8(np.round(255 * canvas))), label, where)


def _crop(rng: np.random.Generator, background: Image.Image) -> np.ndarray:
    """A random square of the background, at a random scale, as (64, 64, 3) float in [0, 1]."""
    side = int(rng.integers(IMAGE_SIZE, min(2 * IMAGE_SIZE, *background.size) + 1))
    left = int(rng.integers(background.width - side + 1))
    top = int(rng.integers(background.height - side + 1))
    square = background.crop((left, top, left + side, top + side))
    resized = square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64) / 255


def _enlarge(digit: np.ndarray, side: int) -> np.ndarray:
    """The 8 x 8 scan as (side, side) ink in [0, 1], its grey edges sharpened."""
    enlarged = Image.fromarray(digit.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(enlarged, dtype=np.float64) - 0.25) * 2.5, 0, 1)


def _contrasting_color(rng: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """A random RGB colour that differs enough in luminance from the pixels around it to be read."""
    luminance = np.array([0.299, 0.587, 0.114])
    background = float((around @ luminance).mean())
    while True:  # at least one of black and white always differs by 0.5, so this ends
        color = rng.random(3)
        if abs(color @ luminance - background) >= MIN_CONTRAST:
            return color
