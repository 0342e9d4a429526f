"""The demo network has really learnt, and its images are what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saliency_lrp import demo
from saliency_lrp.errors import InputError


@pytest.fixture(scope="module")
def model():
    return demo.load_demo_model()


def test_the_network_classifies_held_out_images(model):
    data = demo.demo_dataset(600, seed=123)
    with torch.no_grad():
        right = model(data.inputs).argmax(1) == data.labels
    assert right.float().mean() >= 0.95


def test_the_network_looks_at_the_digit_not_at_the_background(model):
    """Paint the digit over and the answer is gone."""
    data = demo.demo_dataset(200, seed=5)
    background = data.inputs.median(dim=0).values  # one picture without any digit in it
    with torch.no_grad():
        with_digit = model(data.inputs).softmax(1).amax(1).mean()
        hidden = torch.where(data.masks[:, None], background, data.inputs)
        without = model(hidden).softmax(1).gather(1, data.labels[:, None]).mean()
    assert with_digit > 0.8
    assert without < 0.3


def test_the_network_is_small_and_ready(model):
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 120_000
    assert demo.WEIGHTS.stat().st_size < 500_000
    assert model.class_names == demo.DEMO_CLASSES
    assert model.preprocessing["size"] == (64, 64)


def test_images_are_deterministic_and_extend():
    first, again = demo.demo_images(6, seed=3), demo.demo_images(4, seed=3)
    for one, other in zip(first, again, strict=False):
        assert np.array_equal(one.image, other.image)
        assert one.label == other.label
        assert np.array_equal(one.mask, other.mask)
    assert not np.array_equal(first[0].image, demo.demo_images(1, seed=4)[0].image)


@pytest.mark.parametrize("split", demo.SPLITS)
def test_an_image_unpacks_as_picture_label_mask(split):
    for image, label, mask in demo.demo_images(20, split=split):
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert label in range(10)
        assert (mask.dtype, mask.shape) == (np.bool_, (64, 64))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert demo.DIGIT_SIZES[0] <= len(rows) == len(columns) <= demo.DIGIT_SIZES[1]
        assert mask.sum() == len(rows) * len(columns)  # a full square


def test_pixel_masks_lie_in_the_boxes_and_are_all_of_one_color():
    boxes = demo.demo_images(20, seed=1)
    strokes = demo.demo_images(20, seed=1, mask="pixels")
    for box, stroke in zip(boxes, strokes, strict=True):
        assert np.array_equal(box.image, stroke.image)
        assert stroke.mask.any()
        assert not (stroke.mask & ~box.mask).any()
        inside = np.asarray(box.image, dtype=float)[stroke.mask]
        outside = np.asarray(box.image, dtype=float)[box.mask & ~stroke.mask]
        assert np.abs(np.median(inside, axis=0) - np.median(outside, axis=0)).max() > 20


def test_splits_share_no_digit_and_no_background():
    from skimage import data

    train, test = ({digit.tobytes() for digit in demo._digits(split)[0]} for split in demo.SPLITS)
    assert len(train) > 1000 and len(test) > 400
    assert not train & test
    for train_part, test_part, name in zip(
        demo._backgrounds("train"), demo._backgrounds("test"), demo.PHOTOGRAPHS, strict=True
    ):
        whole = getattr(data, name)()
        assert train_part.height == test_part.height == whole.shape[0]
        assert train_part.width + test_part.width == whole.shape[1]


def test_dataset_is_the_images_normalized():
    images, data = demo.demo_images(5, seed=2), demo.demo_dataset(5, seed=2)
    mean, std = (np.array(demo.PREPROCESSING[key]) for key in ("mean", "std"))
    for item, values, label, mask in zip(images, data.inputs, data.labels, data.masks, strict=True):
        expected = (np.asarray(item.image) / 255 - mean) / std
        np.testing.assert_allclose(values.permute(1, 2, 0), expected, atol=1e-6)
        assert label == item.label
        assert np.array_equal(mask, item.mask)
    assert data.inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 1, "split": "validation"}, "split='validation'"),
        ({"n": 1, "mask": "circle"}, "mask='circle'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        demo.demo_images(**arguments)


def test_training_learns():
    """The function that made the weights still works: it teaches a network whose last layer was forgotten."""
    from benchmarks.train_demo import accuracy, train_demo

    model = demo.load_demo_model()
    model.head.reset_parameters()
    before = accuracy(model, images=300)
    assert train_demo(model, epochs=1, images=960, lr=1e-2) is model
    assert not model.training
    assert before < 0.5
    assert accuracy(model, images=300) > 0.7


@pytest.mark.parametrize("name", ["SmallResNet", "SmallViT"])
def test_comparison_architectures_take_the_demo_data(name):
    from benchmarks import models

    torch.manual_seed(0)
    model = getattr(models, name)().eval()
    with torch.no_grad():
        logits = model(demo.demo_dataset(3).inputs)
    assert logits.shape == (3, 10)
    assert model.preprocessing == demo.PREPROCESSING
