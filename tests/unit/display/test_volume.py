"""Volumes as pictures, and images of measured numbers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import compare_saliency, get_image_saliency_plot, get_image_saliency_results, get_saliency
from saliency_lrp.display import colors, volume
from saliency_lrp.errors import InputError, UnknownNameError


class Weighted(nn.Module):
    """A score that is a weighted sum of voxels, so that gradient x input is the weights times the voxels."""

    def __init__(self, shape=(6, 8, 10)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, *shape, generator=generator))

    def forward(self, x):
        return (x[:, 0, None] * self.weight).flatten(2).sum(2)


@pytest.fixture(scope="module")
def net():
    return Weighted()


@pytest.fixture(scope="module")
def x():
    return torch.rand(1, 1, 6, 8, 10, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def results(net, x):
    return get_image_saliency_results(net, None, x, label=1, methods=["lrp", "grad_x_input", "saliency", "occlusion"])


def test_views_go_through_the_strongest_voxel():
    values = np.random.default_rng(0).standard_normal((4, 5, 6))
    values[2, 3, 1] = -9
    assert volume.strongest(values) == (2, 3, 1)
    depth, height, width, projected = volume.views(values)
    np.testing.assert_array_equal(depth.values, values[2])
    np.testing.assert_array_equal(height.values, values[:, 3])
    np.testing.assert_array_equal(width.values, values[:, :, 1])
    for y in range(5):
        for z in range(6):
            column = values[:, y, z]
            assert projected.values[y, z] == column[np.abs(column).argmax()]
    for view in (depth, height, width):
        assert view.values[view.crosses((2, 3, 1))] == -9


def test_the_map_is_right_and_its_figure_has_four_views(net, x, results):
    expected = (net.weight[1] * x[0, 0]).detach().numpy()
    np.testing.assert_allclose(results["grad_x_input"].signed_map, expected, rtol=1e-4, atol=1e-6)
    figure = get_image_saliency_plot(results, cols=2)
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes]  # they wrap
    assert len(titles) == 4 * len(results)
    point = np.unravel_index(np.abs(expected).argmax(), expected.shape)
    names = [f"grad_x_input: {axis} {k}" for axis, k in zip(("depth", "height", "width"), point, strict=True)]
    assert titles[4:7] == names and titles[7] == "grad_x_input: strongest along depth"
    table = colors.color_table(colors.SIGNED_COLORS)
    t = colors.strengths(expected, colors.color_limit(expected))  # one scale for all views
    for axes, slice_ in zip(figure.axes[4:7], (t[point[0]], t[:, point[1]], t[:, :, point[2]]), strict=True):
        drawn = np.asarray(axes.images[-1].get_array())
        np.testing.assert_allclose(drawn[..., :3], colors.paint(slice_, table)[0] / 255, atol=1e-6)
        ground = np.asarray(axes.images[0].get_array())
        assert len(axes.images) == 2 and ground.std() > 5  # the volume itself lies under it
    figure.canvas.draw()


@pytest.mark.parametrize("name", ["v.png", "v.html", "v.npz"])
def test_results_of_a_volume_are_saved(results, tmp_path, name):
    assert results.save(tmp_path / name).stat().st_size > 1000
    if name == "v.npz":
        assert np.load(tmp_path / name)["lrp.signed"].shape == (6, 8, 10)


def test_results_of_a_volume_are_shown(results):
    bundle = results._repr_mimebundle_()
    picture = np.asarray(Image.open(io.BytesIO(results._repr_png_())).convert("RGB"))
    assert picture.std() > 10 and "data:image/png" in bundle["text/html"]
    assert results[0]._repr_mimebundle_()["image/png"]


def test_tensorwatchs_plot_takes_volumes(results):
    import matplotlib.pyplot as plt

    from saliency_lrp.display.figure import draw_tensorwatch

    figure = draw_tensorwatch(results)
    assert len(figure.axes) == 4 * len(results)
    plt.close(figure)


def test_without_its_model_a_volume_is_drawn_alone(results):
    import pickle

    again = pickle.loads(pickle.dumps(results[1]))
    figure = again.plot()
    assert [len(axes.images) for axes in figure.axes] == [1] * 4


@pytest.mark.parametrize("channels", [1, 2])
def test_the_widget_shows_slices(channels):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 6 * 8, 2))
    x = torch.rand(1, channels, 6, 8, 10)
    widget = compare_saliency(net, None, x, label=0, methods=("lrp", "grad_x_input"), composite="epsilon")
    assert widget.wait(60)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x)[0, 0], x)
    expected = (gradient * x)[0].sum(0).detach().numpy()
    assert (widget.depth, widget.height, widget.width) == expected.shape
    np.testing.assert_allclose(widget.maps()["grad_x_input"], expected, rtol=1e-4, atol=1e-6)
    assert [info["state"] for info in widget.panels] == ["done", "done"]
    with pytest.raises(InputError, match="volume"):
        compare_saliency(net, None, x.detach(), truth=(0, 0, 2, 2))
    widget.close()


def test_a_large_volume_is_made_smaller_for_the_browser():
    values = torch.rand(1, 120, 130, 140)
    small = volume.grays(values, 400_000)
    assert small.shape[-1] == 3 and np.prod(small.shape[:3]) <= 400_000
    ratio = np.array(small.shape[:3]) / np.array(values.shape[1:])
    assert ratio.max() - ratio.min() < 0.02


# ------------------------------------------------------------------------------------------------ window=(low, high)


class Seen(nn.Module):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        self.seen = x.detach().clone()
        return self.conv(x).mean((2, 3))


CT = np.random.default_rng(1).normal(-200, 700, (20, 24))


@pytest.mark.parametrize(
    "raw",
    [
        CT,
        CT.astype(np.float32),
        CT.astype(np.int16),
        torch.from_numpy(CT),
        torch.from_numpy(CT)[None],
        Image.fromarray(CT.astype(np.float32)),
    ],
    ids=["float64", "float32", "int16", "tensor", "1xHxW", "PIL"],
)
def test_a_window_makes_an_image_of_hounsfield_units(raw):
    net = Seen()
    map_ = get_saliency(net, raw, label=0, window=(-1000, 400))
    expected = np.clip((CT + 1000) / 1400, 0, 1)
    np.testing.assert_allclose(net.seen[0, 0], expected, atol=2e-3)
    assert map_.shape == CT.shape
    (result,) = get_image_saliency_results(net, raw, label=0, methods=["lrp"], window=(-1000, 400))
    np.testing.assert_allclose(np.asarray(result.raw_image)[..., 0], expected * 255, atol=1.5)


def test_a_number_is_still_the_side_of_an_occlusion_window():
    net = Seen()
    image = np.random.default_rng(0).random((20, 24)).astype(np.float32)
    get_saliency(net, image, label=0, method="occlusion", window=4)
    both = get_image_saliency_results(net, CT, label=0, methods=["lrp", "occlusion"], window=(-1000, 400))
    assert [result.error for result in both] == [None, None]
    with pytest.raises(UnknownNameError, match="window"):
        get_saliency(net, image, label=0, method="lrp", window=4)


@pytest.mark.parametrize("window", [(400, -1000), (1, 1), ("a", "b"), (0, float("nan")), (None, 1)])
def test_bad_windows_are_refused(window):
    with pytest.raises(InputError, match="window"):
        get_saliency(Seen(), CT, label=0, window=window)


def test_without_a_window_the_error_names_it():
    with pytest.raises(InputError, match="window="):
        get_saliency(Seen(), CT, label=0)


# ------------------------------------------------------------------------------------------------ tables and token ids


@pytest.mark.parametrize("method", ["occlusion", "ablation"])
@pytest.mark.parametrize("baseline", [0.0, 0.5])
@pytest.mark.parametrize("rows", [1, 3])
def test_columns_of_a_table_are_taken_away_one_by_one(method, baseline, rows):
    from saliency_lrp.explainers import get

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(rows, 5)
    expected = torch.zeros_like(x)
    for k in range(5):
        without = x.clone()
        without[:, k] = baseline
        expected[:, k] = (net(x) - net(without))[:, 2].detach()
    torch.testing.assert_close(get(method, net, baseline=baseline).explain(x, 2), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["occlusion", "ablation"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("mask", [0, 3])
def test_tokens_are_replaced_one_by_one(method, dtype, mask):
    from saliency_lrp.explainers import get

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(torch.tanh(self.embedding(ids).sum(1)))

    torch.manual_seed(0)
    net, ids = Bag(), torch.tensor([[1, 5, 7, 7], [2, 4, 6, 19]], dtype=dtype)
    expected = torch.zeros(2, 4)
    for k in range(4):
        without = ids.clone()
        without[:, k] = mask
        expected[:, k] = (net(ids) - net(without))[:, 1].detach()
    got = get(method, net, baseline=mask).explain(ids, 1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="float"):
        get("grad_x_input", net).explain(ids, 1)
    with pytest.raises(InputError, match="token id"):
        get(method, net, baseline=0.5).explain(ids, 1)
