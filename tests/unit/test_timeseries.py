"""Relevance under the curve."""

from __future__ import annotations

import io

import numpy as np
import pytest

from saliency_lrp.errors import InputError
from saliency_lrp.timeseries import plot_relevance

T = np.linspace(0, 6, 60)


def rendered(figure):
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def test_color_is_where_the_relevance_is():
    relevance = np.zeros(60)
    relevance[10:20], relevance[40:50] = 1.0, -1.0
    pixels = rendered(plot_relevance(np.full(60, 2.0) + 0.1 * np.sin(T), relevance, percentile=100))
    plot = pixels[:, : int(0.8 * pixels.shape[1])]  # without the colour bar
    red = (plot[..., 0] - plot[..., 2] > 60).any(0).nonzero()[0]
    blue = (plot[..., 2] - plot[..., 0] > 60).any(0).nonzero()[0]
    assert len(red) > 20 and len(blue) > 20
    assert red.max() < blue.min()


def test_nothing_is_painted_above_the_curve():
    ramp = np.linspace(0, 1, 60)
    pixels = rendered(plot_relevance(ramp, np.ones(60), percentile=100))
    red = pixels[:, : int(0.8 * pixels.shape[1]), 0] - pixels[:, : int(0.8 * pixels.shape[1]), 2] > 60
    columns = red.any(0).nonzero()[0]
    tops = red.argmax(0)[columns]
    assert tops[0] - tops[-1] > 20, "the band does not follow the curve"


def test_channels_share_one_symmetric_scale():
    figure = plot_relevance(
        np.stack([np.sin(T), np.cos(T)]),
        np.stack([np.ones(60), -3 * np.ones(60)]),
        time=T,
        names=("left", "right"),
        title="class 1",
        percentile=100,
    )
    meshes = [axis.collections[0] for axis in figure.axes[:2]]
    assert [mesh.get_clim() for mesh in meshes] == [(-3, 3), (-3, 3)]
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["left", "right"]


def test_a_series_without_relevance_can_be_drawn():
    assert rendered(plot_relevance(np.sin(T), np.zeros(60))).std() > 0


@pytest.mark.parametrize(
    ("series", "relevance", "options"),
    [
        (np.zeros(5), np.zeros(6), {}),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {}),
        (np.zeros(1), np.zeros(1), {}),
        (np.zeros(5), np.full(5, np.nan), {}),
        (np.zeros(5), np.zeros(5), {"time": [0, 1, 1, 2, 3]}),
        (np.zeros(5), np.zeros(5), {"names": ("a", "b")}),
    ],
)
def test_what_does_not_fit_is_refused(series, relevance, options):
    with pytest.raises(InputError):
        plot_relevance(series, relevance, **options)
