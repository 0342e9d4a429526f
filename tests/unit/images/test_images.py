"""From images to tensors and from maps back to the right pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import get_saliency, images
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.display import colors
from saliency_lrp.errors import InputError, UnknownNameError
from tests.helpers.nets import BlockNet
from tests.helpers.torchvision_cpu import import_torchvision

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------ reading


def test_the_same_picture_in_every_form(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    floats = PIXELS / 255
    forms = [
        Image.fromarray(PIXELS),
        PIXELS,
        floats,
        floats.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.uint16) * 257,
        path,
        str(path),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(floats).permute(2, 0, 1)[None],
    ]
    for form in forms:
        image = images.load_image(form)
        assert image.size == (30, 40)
        assert (np.asarray(image.picture()) == PIXELS).all()


def test_gray_and_alpha():
    gray = PIXELS[..., 0]
    for form in (gray, gray / 255, Image.fromarray(gray), torch.from_numpy(gray), gray[..., None]):
        rgb = np.asarray(images.load_image(form).picture())
        assert (rgb == gray[..., None]).all() and rgb.shape == (30, 40, 3)
    alpha = RNG.integers(0, 256, (30, 40, 1), dtype=np.uint8)
    rgba = np.concatenate([PIXELS, alpha], 2)
    expected = np.round(255 + (PIXELS - 255.0) * (alpha / 255))
    for form in (rgba, rgba / 255, Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1)):
        rgb = images.load_image(form).picture()
        assert np.abs(np.asarray(rgb) - expected).max() <= 1
    see_through = Image.fromarray(np.zeros((2, 2), np.uint8)).convert("P")
    see_through.info["transparency"] = 0
    assert (np.asarray(images.load_image(see_through).picture()) == 255).all()
    luminance = images.load_image(PIXELS).channels(1)[..., 0]
    assert np.abs(luminance - np.asarray(Image.fromarray(PIXELS).convert("L"), float)).max() <= 1


def test_sixteen_bits_are_not_clipped():
    deep = (np.arange(12).reshape(3, 4) * 5000).astype(np.uint16)
    np.testing.assert_allclose(images.load_image(Image.fromarray(deep)).pixels[..., 0], deep / 65535, rtol=1e-6)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("nowhere.png", "no image file 'nowhere.png'"),
        (__file__, "cannot be read"),
        (np.zeros((3, 8, 8)), r"torch.from_numpy"),
        (np.zeros((8, 8, 2)), r"\(8, 8, 2\)"),
        (np.full((8, 8), np.nan), "64 NaN"),
        (np.full((8, 8), -1.0), "-1"),
        (np.full((8, 8), 300), "300"),
        (np.zeros((0, 8, 3)), "empty"),
        (np.array([["a"]]), "integers or floats"),
        (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\)"),
        (torch.zeros(8, 9, 3), "permute"),
        (17, "not int"),
    ],
)
def test_bad_images(raw, message):
    with pytest.raises(InputError, match=message):
        images.load_image(raw)


# ------------------------------------------------------------------------------------ preprocessing


@pytest.mark.parametrize("size", [(300, 411), (411, 300), (100, 80), (224, 224)])
def test_torchvision_classifiers_get_their_preset(size):
    torchvision = import_torchvision()
    model = torchvision.models.resnet18(weights=None)
    picture = Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    x, geometry, warnings = images.build_input(model, images.load_image(picture))
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    expected = preset(picture)[None]
    assert x.shape == expected.shape == (1, 3, 224, 224)
    torch.testing.assert_close(x, expected)
    measured = images.measure_geometry(preset, size)
    assert not warnings
    np.testing.assert_allclose(geometry.box, measured.box, atol=0.5)


def test_timm_models_get_their_configuration():
    import_torchvision()
    timm = pytest.importorskip("timm")
    picture = Image.fromarray(RNG.integers(0, 256, (300, 411, 3), dtype=np.uint8))
    for name in ("resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"):
        model = timm.create_model(name, pretrained=False)
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
        x, geometry, _ = images.build_input(model, images.load_image(picture))
        torch.testing.assert_close(x, transform(picture)[None], atol=1e-6, rtol=0)
        np.testing.assert_allclose(geometry.box, images.measure_geometry(transform, (300, 411)).box, atol=1)


def test_the_demo_model_describes_itself():
    item = demo_images(1, seed=3)[0]
    x, geometry, _ = images.build_input(load_demo_model(), images.load_image(item.image))
    expected = (torch.from_numpy(np.array(item.image)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(x[0], expected)
    assert geometry == images.Geometry.whole((64, 64))


def test_other_models_get_zero_to_one_at_the_images_size():
    x, geometry, _ = images.build_input(nn.Conv2d(3, 2, 1), images.load_image(PIXELS))
    torch.testing.assert_close(x[0], torch.from_numpy(PIXELS).permute(2, 0, 1) / 255)
    gray, _, _ = images.build_input(nn.Conv2d(1, 2, 1), images.load_image(PIXELS))
    assert gray.shape == (1, 1, 30, 40)
    with pytest.raises(InputError, match="takes 5 channels but the image has 3"):
        images.build_input(nn.Conv2d(5, 2, 1), images.load_image(PIXELS))
    bands = torch.rand(5, 6, 7)
    assert torch.equal(images.build_input(nn.Conv2d(5, 2, 1), images.load_image(bands))[0][0], bands)


def test_a_wrong_key_in_the_models_description():
    model = nn.Conv2d(3, 2, 1)
    model.preprocessing = {"size": 8, "means": (0, 0, 0)}
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        images.preprocessing_of(model)


# ------------------------------------------------------------------------------------ geometry


BLOCK = (slice(8, 16), slice(40, 56))  # of a 64 x 64 input


def _expected(size, box):
    """Where the block lies on a raw image whose rectangle `box` is the model's input."""
    top, left, bottom, right = box
    y = top + (bottom - top) * np.array([8, 16]) / 64
    x = left + (right - left) * np.array([40, 56]) / 64
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    return ((rows > min(y)) & (rows < max(y)))[:, None] & ((columns > min(x)) & (columns < max(x)))[None]


def _edges_aside(mask):
    """The mask without its border of one pixel, and everything that is two pixels away from it."""
    grown = np.pad(mask, 2)
    near = sum(np.roll(grown, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3))[2:-2, 2:-2]
    return near == 25, near == 0


def _check(size, box, **options):
    raw = RNG.random((*size, 3)) * 0.8 + 0.1
    found = get_saliency(options.pop("model", BlockNet(*BLOCK)), raw, label=1, method="vanilla_grad", **options)
    assert found.shape == size and found.dtype == np.float32
    inside, outside = _edges_aside(_expected(size, box))
    assert inside.any() and outside.any()
    assert (found[inside] > 0.9).all() and (found[outside] < 0.1).all()


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (190, 100), (48, 80)])
def test_block_through_a_resize(size):
    model = BlockNet(*BLOCK, {"size": (64, 64)})
    _check(size, (0, 0, *size), model=model)


@pytest.mark.parametrize("size", [(150, 300), (300, 150), (73, 73)])
def test_block_through_resize_and_center_crop(size):
    model = BlockNet(*BLOCK, {"size": 73, "crop": 64})
    scale = min(size) / 73
    height, width = size
    side = 64 * scale
    top, left = (height - side) / 2, (width - side) / 2
    _check(size, (top, left, top + side, left + side), model=model)


def test_block_through_padding():
    model = BlockNet(*BLOCK, {"crop": 64})
    _check((60, 62), (-2, -1, 62, 63), model=model)


@pytest.mark.parametrize("kind", ["preset", "pad", "flip", "squash"])
def test_block_through_the_users_transform(kind):
    T = import_torchvision().transforms
    size = (150, 300)
    steps, box = {
        "preset": ([T.Resize(73), T.CenterCrop(64)], (9.25, 84.25, 140.75, 215.75)),
        "pad": ([T.Pad((0, 20)), T.Resize((64, 64))], (-20, 0, 170, 300)),
        "flip": ([T.RandomHorizontalFlip(1.0), T.Resize((64, 64))], (0, 300, 150, 0)),
        "squash": ([T.Resize((64, 64))], (0, 0, 150, 300)),
    }[kind]
    normalize = T.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    _check(size, box, transform=T.Compose([*steps, T.ToTensor(), normalize]))


def test_block_of_an_input_that_was_given():
    raw = RNG.random((100, 200, 3))
    found = get_saliency(BlockNet(*BLOCK), raw, torch.rand(1, 3, 64, 64), 1, method="vanilla_grad")
    inside, outside = _edges_aside(_expected((100, 200), (0, 0, 100, 200)))
    assert (found[inside] > 0.9).all() and (found[outside] < 0.1).all()
    box = (10.0, 20.0, 90.0, 120.0)
    geometry = images.Geometry((100, 200), box)
    placed = get_saliency(BlockNet(*BLOCK), raw, torch.rand(1, 3, 64, 64), 1, method="vanilla_grad", geometry=geometry)
    inside, outside = _edges_aside(_expected((100, 200), box))
    assert (placed[inside] > 0.9).all() and (placed[outside] < 0.1).all()


def test_a_random_transform_is_noticed():
    T = import_torchvision().transforms
    for step in (T.RandomCrop(20), T.RandomRotation((40, 50))):
        geometry, warnings = images.geometry_of(T.Compose([step, T.ToTensor()]), (30, 40))
        assert geometry == images.Geometry.whole((30, 40))
        assert "could not be measured" in warnings[0]


def test_placing_a_map_of_the_same_size_changes_nothing():
    values = RNG.standard_normal((7, 9))
    np.testing.assert_allclose(images.Geometry.whole((7, 9)).place(values), values)


def test_shrinking_averages():
    values = RNG.standard_normal((8, 8))
    placed = images.Geometry.whole((4, 4)).place(values)
    ramp = np.linspace(0, 1, 8)[:, None] * np.ones(8)
    np.testing.assert_allclose(images.Geometry.whole((4, 4)).place(np.ones((8, 8))), 1)
    assert np.abs(placed).max() < np.abs(values).max()
    assert (np.diff(images.Geometry.whole((4, 4)).place(ramp)[:, 0]) > 0).all()


# ------------------------------------------------------------------------------------ colours


def test_display_helpers():
    values = np.zeros((10, 10))
    assert images.normalize(values).max() == 0 and colors.color_limit(values) == 0
    values[0, 0], values[5, 5] = 100.0, -1.0
    assert images.normalize(values).min() == 0 and images.normalize(values).max() == 1
    assert 1 <= colors.color_limit(values, 99) < 100
    _, alpha = colors.paint(colors.strengths(values, 1.0), colors.color_table("RdBu_r"))
    assert alpha[0, 0] == alpha[5, 5] == alpha.max() == 1 and alpha[1, 1] == 0
