"""Preprocessing as other libraries spell it: their tensor, and the map on the pixels that they took."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import get_saliency, images
from saliency_lrp.errors import InputError
from tests.helpers.torchvision_cpu import import_torchvision

RNG = np.random.default_rng(2)
HEIGHT, WIDTH = 120, 200
PICTURE = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


class Corner(nn.Module):
    """Class 1 is the sum over the upper left quarter of what the model is given."""

    def __init__(self, side: int) -> None:
        super().__init__()
        weight = torch.zeros(3, side, side)
        weight[:, : side // 2, : side // 2] = 1
        self.register_buffer("weight", weight)

    def forward(self, x):
        return torch.stack([-(x * self.weight).sum((1, 2, 3)), (x * self.weight).sum((1, 2, 3))], 1)


def processor():
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    return transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def cropping_processor():
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})


def test_an_image_processor():
    tool = processor()
    x, geometry, warnings = images.build_input(Corner(32), images.load_image(PICTURE), tool)
    assert warnings == []
    torch.testing.assert_close(x, tool(PICTURE, return_tensors="pt")["pixel_values"])
    np.testing.assert_allclose(geometry.box, (0, 0, HEIGHT, WIDTH), atol=1.0)


def test_an_image_processor_that_crops():
    """The shorter side becomes 40, the middle 32 x 32 is kept: 96 x 96 raw pixels, from (12, 52)."""
    tool = cropping_processor()
    x, geometry, warnings = images.build_input(Corner(32), images.load_image(PICTURE), tool)
    assert warnings == [] and x.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(geometry.box, (12, 52, 108, 148), atol=2.0)
    heat = get_saliency(Corner(32), PICTURE, label=1, transform=tool)
    rows, columns = np.nonzero(heat > 0.05)
    assert rows.min() >= 10 and rows.max() <= 62 and columns.min() >= 50 and columns.max() <= 102


def test_what_holds_an_image_processor():
    class Pipeline:
        image_processor = processor()

    expected = images.build_input(Corner(32), images.load_image(PICTURE), processor())[0]
    torch.testing.assert_close(images.build_input(Corner(32), images.load_image(PICTURE), Pipeline())[0], expected)


@pytest.mark.parametrize("make", [processor, cropping_processor])
def test_the_processor_that_was_saved_beside_the_model(make, tmp_path):
    tool, model = make(), Corner(32)
    tool.save_pretrained(tmp_path)
    model.config = type("Config", (), {"_name_or_path": str(tmp_path)})()
    x, geometry, _ = images.build_input(model, images.load_image(PICTURE))
    expected = tool(PICTURE, return_tensors="pt")["pixel_values"]
    assert (x - expected).abs().max() < 0.05 * expected.abs().max()
    measured = images.geometry_of(tool, (HEIGHT, WIDTH))[0]
    np.testing.assert_allclose(geometry.box, measured.box, atol=2.0)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_albumentations(as_tensor):
    albumentations = pytest.importorskip("albumentations")
    steps = [albumentations.SmallestMaxSize(40), albumentations.CenterCrop(32, 32)]
    if as_tensor:
        steps += [albumentations.Normalize((0.5,) * 3, (0.5,) * 3), albumentations.pytorch.ToTensorV2()]
    tool = albumentations.Compose(steps)
    x, geometry, warnings = images.build_input(Corner(32), images.load_image(PICTURE), tool)
    expected = torch.as_tensor(tool(image=np.asarray(PICTURE))["image"])
    expected = expected if as_tensor else expected.permute(2, 0, 1) / 255
    torch.testing.assert_close(x[0], expected.float())
    assert warnings == []
    np.testing.assert_allclose(geometry.box, (12, 52, 108, 148), atol=2.0)


def test_torchvision_v2():
    T = import_torchvision().transforms.v2
    tool = T.Compose([T.Resize(40), T.CenterCrop(32), T.ToImage(), T.ToDtype(torch.float32, scale=True)])
    x, geometry, warnings = images.build_input(Corner(32), images.load_image(PICTURE), tool)
    torch.testing.assert_close(x[0], tool(PICTURE))
    assert warnings == []
    np.testing.assert_allclose(geometry.box, (12, 52, 108, 148), atol=2.0)


@pytest.mark.parametrize("wrong", [3, {"mean": 0.5}, "resize"])
def test_what_is_no_transform(wrong):
    with pytest.raises(InputError, match="transform= should be a function"):
        get_saliency(Corner(32), PICTURE, transform=wrong)
