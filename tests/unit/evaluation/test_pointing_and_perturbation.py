"""The grid pointing game and MoRF-LeRF against slow computations, one picture and one region at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lrp import composites, demo, evaluation
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.evaluation import compose_grids, grid_pointing_game, morf_lerf, positive_share
from saliency_lrp.explainers.gradient import GradXInput
from saliency_lrp.propagator import RelevancePropagator


@pytest.fixture(scope="module")
def model():
    return demo.load_demo_model()


@pytest.fixture(scope="module")
def data():
    return demo.demo_dataset(24, seed=5)


class Colors(nn.Module):
    """Class k is how much of color k there is: what a right map of it shows is known."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().mean((2, 3))


def plain(height: int = 6, width: int = 8) -> torch.Tensor:
    """Four images, one color each."""
    return torch.eye(4)[:, :, None, None].expand(4, 4, height, width).contiguous()


# ------------------------------------------------------------------------------------------------ grids


def test_grids_have_different_classes_and_use_images_equally():
    classes = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    grids = compose_grids(classes, 2, 10, seed=1)
    assert grids.shape == (10, 4)
    for members in grids:
        assert len(classes[members].unique()) == 4
    uses = torch.bincount(grids.flatten(), minlength=10)
    assert uses.min() >= 3 and uses.max() <= 5
    assert torch.equal(grids, compose_grids(classes, 2, 10, seed=1))
    assert not torch.equal(grids, compose_grids(classes, 2, 10, seed=2))
    assert compose_grids(classes).shape == (2, 4)
    assert compose_grids(classes[[0, 2, 4, 6]]).shape == (1, 4)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_grids_that_cannot_be_are_refused(size):
    with pytest.raises(InputError, match="different classes"):
        compose_grids(torch.arange(5), size)


# ------------------------------------------------------------------------------------------------ grid pointing game


def test_a_map_of_the_right_color_scores_1_and_one_of_any_color_a_quarter():
    images = plain()
    right = grid_pointing_game(Colors(), images, [0, 1, 2, 3], "grad_x_input", grids=3)
    assert right.shape == (3, 4)
    np.testing.assert_allclose(right, 1.0)
    any_color = grid_pointing_game(Colors(), images, None, lambda model, x, y: x.abs(), grids=2)
    np.testing.assert_allclose(any_color, 0.25)


def test_negative_relevance_does_not_count_and_nothing_scores_0():
    def signed(model, x, y):
        own = x[torch.arange(len(x)), y][:, None]
        return own - 5 * (x.sum(1, keepdim=True) - own)  # against everything else

    np.testing.assert_allclose(grid_pointing_game(Colors(), plain(), None, signed), 1.0)
    nothing = grid_pointing_game(Colors(), plain(), None, lambda model, x, y: -x.abs())
    np.testing.assert_array_equal(nothing, 0.0)


@pytest.mark.parametrize("size", [2, 3])
def test_grid_scores_are_those_of_one_picture_and_class_at_a_time(model, data, size):
    got = grid_pointing_game(model, data.inputs, data.labels, "grad_x_input", size=size, grids=2, seed=4)
    members = compose_grids(data.labels, size, 2, seed=4).tolist()
    for g, indices in enumerate(members):
        picture = torch.zeros(1, 3, 64 * size, 64 * size)
        for cell, k in enumerate(indices):
            row, column = divmod(cell, size)
            picture[0, :, 64 * row : 64 * row + 64, 64 * column : 64 * column + 64] = data.inputs[k]
        for cell, k in enumerate(indices):
            row, column = divmod(cell, size)
            leaf = picture.clone().requires_grad_(True)
            model(leaf)[0, data.labels[k]].backward()
            positive = (leaf.grad * leaf).detach().sum(1)[0].double().clamp(min=0)
            inside = positive[64 * row : 64 * row + 64, 64 * column : 64 * column + 64].sum()
            assert got[g, cell] == pytest.approx(float(inside / positive.sum()), rel=1e-5)


def test_methods_of_the_game_may_be_names_composites_functions(model, data):
    def explain(model, x, y):
        return RelevancePropagator(model, "epsilon_plus").trace(x).relevance(y)

    scores = [
        grid_pointing_game(model, data.inputs, data.labels, method, grids=1)
        for method in ("lrp:epsilon_plus", composites.get("epsilon_plus"), explain)
    ]
    np.testing.assert_allclose(scores[0], scores[1])
    np.testing.assert_allclose(scores[0], scores[2])


def test_the_game_leaves_model_and_generators_alone(model, data):
    model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    a = grid_pointing_game(model, data.inputs, data.labels, "smooth_grad", grids=1)
    b = grid_pointing_game(model, data.inputs, data.labels, "smooth_grad", grids=1)
    assert model.training
    model.eval()
    np.testing.assert_array_equal(a, b)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": 3}, InputError, "4 images of different classes; got 24 images of 1 classes"),
        ({"method": "gradcan"}, UnknownNameError, "Did you mean 'gradcam'"),
        ({"method": torch.zeros(24, 3, 64, 64)}, InputError, "give a method, not maps"),
        ({"images": torch.zeros(3, 64, 64)}, InputError, r"\(N, C, H, W\)"),
        ({"size": 4}, InputError, "16 images of different classes"),
    ],
)
def test_bad_input_of_the_game_is_refused(model, data, change, error, message):
    with pytest.raises(error, match=message):
        grid_pointing_game(model, **{"images": data.inputs, "targets": data.labels, "grids": 1, **change})


def test_positive_share_is_a_share():
    maps = np.array([[[1.0, 3.0], [-9.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    masks = np.array([[[True, False], [True, False]]] * 2)
    np.testing.assert_array_equal(positive_share(maps, masks), [0.25, 0.0])


# ------------------------------------------------------------------------------------------------ MoRF-LeRF


def slow_blur(image: np.ndarray) -> np.ndarray:
    """(C, H, W) behind a Gaussian of a sixteenth of the side, mirrored at the edges, as sums over whole kernels."""
    for axis in (1, 2):
        n = image.shape[axis]
        sigma = n / 16
        radius = min(round(3 * sigma), n - 1)
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        weights /= weights.sum()
        out = np.zeros_like(image)
        for k in range(n):
            for step, weight in zip(range(-radius, radius + 1), weights, strict=True):
                j = abs(k + step)  # mirrored at the first
                j = 2 * (n - 1) - j if j >= n else j  # and at the last
                np.moveaxis(out, axis, 0)[k] += weight * np.moveaxis(image, axis, 0)[j]
        image = out
    return image


def slow_morf_lerf(model, image, target, relevance, infill, counts):
    """One image, every region by itself, the trapezoids by hand."""
    image, side = image.numpy().astype(np.float64), image.shape[-1] // 16
    behind = slow_blur(image) if infill == "blur" else np.broadcast_to(image.mean((1, 2))[:, None, None], image.shape)
    regions = [(r, c) for r in range(16) for c in range(16)]
    worth = [relevance[r * side : (r + 1) * side, c * side : (c + 1) * side].mean() for r, c in regions]
    areas = []
    for sign in (-1, 1):  # the most relevant first, the least relevant first
        order = sorted(range(256), key=lambda k: (sign * worth[k], k))
        curve = []
        for count in counts:
            shown = image.copy()
            for k in order[:count]:
                r, c = regions[k]
                box = np.s_[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
                shown[box] = behind[box]
            with torch.no_grad():
                curve.append(model(torch.from_numpy(shown).float()[None]).softmax(1)[0, target].item())
        steps = zip(counts, counts[1:], curve, curve[1:], strict=False)
        areas.append(sum((b - a) / 256 * (p + q) / 2 for a, b, p, q in steps))
    return areas[1] - areas[0]


@pytest.mark.parametrize("infill", ["mean", "blur"])
def test_morf_lerf_is_that_of_one_region_at_a_time(model, data, infill):
    removed = (4, 32, 128, 200)
    maps = GradXInput(model).explain(data.inputs[:3], data.labels[:3])
    got = morf_lerf(model, data.inputs[:3], data.labels[:3], maps, infill, removed)
    for k in range(3):
        slow = slow_morf_lerf(
            model, data.inputs[k], data.labels[k], maps[k].sum(0).double().numpy(), infill, (0, *removed, 256)
        )
        assert got[k] == pytest.approx(slow, abs=1e-5)


def test_morf_lerf_makes_the_maps_of_a_method(model, data):
    x = data.inputs[:4]
    maps = RelevancePropagator(model, "epsilon_plus").trace(x).relevance(None)
    given = morf_lerf(model, x, None, maps)
    np.testing.assert_allclose(morf_lerf(model, x, model(x).argmax(1), "lrp:epsilon_plus"), given, atol=1e-6)
    np.testing.assert_allclose(morf_lerf(model, x, maps=maps.detach().numpy()), given, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"infill": "blurr"}, UnknownNameError, "Did you mean 'blur'"),
        ({"removed": (8, 8)}, InputError, r"should rise.*\[8, 8\]"),
        ({"removed": (0, 8)}, InputError, "should rise"),
        ({"removed": (300,)}, InputError, "should rise"),
        ({"maps": torch.zeros(24, 3, 8, 8)}, InputError, r"\(24, 3, 64, 64\)"),
        ({"maps": torch.full((24, 3, 64, 64), float("nan"))}, InputError, "24 maps have NaN"),
        ({"targets": 10}, InputError, "out of range"),
    ],
)
def test_bad_input_of_morf_lerf_is_refused(model, data, change, error, message):
    given = {"inputs": data.inputs, "targets": data.labels, "maps": torch.zeros(24, 1, 64, 64), **change}
    with pytest.raises(error, match=message):
        morf_lerf(model, **given)


def test_both_are_public():
    assert {"grid_pointing_game", "morf_lerf"} <= set(evaluation.__all__)
