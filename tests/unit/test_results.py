"""What an explanation gives back, and how it shows itself."""

from __future__ import annotations

import base64
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import SaliencyResults, get_image_saliency_plot, get_image_saliency_results, images
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.display import colors
from saliency_lrp.display.figure import draw_tensorwatch
from saliency_lrp.errors import InputError
from saliency_lrp.results import ImageSaliencyResult


@pytest.fixture(scope="module")
def results():
    model, item = load_demo_model(), demo_images(1, seed=1)[0]
    options = {"layer_path": "head"}  # no spatial features there: gradcam fails, the others do not
    return get_image_saliency_results(model, item.image, methods=["lrp", "gradcam", "saliency"], **options)


def _result(values, **more):
    relevance = torch.as_tensor(values, dtype=torch.float32)[None, None]
    picture = Image.new("RGB", relevance.shape[:1:-1], "gray")
    saliency = images.normalize(np.abs(np.asarray(values, float)))
    return ImageSaliencyResult(picture, saliency, "made", relevance=relevance, **more)


def test_tensorwatchs_fields_and_defaults():
    result = ImageSaliencyResult("image", "map", "title")
    assert (result.raw_image, result.saliency, result.title) == ("image", "map", "title")
    assert (result.saliency_alpha, result.saliency_cmap) == (0.4, "jet")
    assert ImageSaliencyResult("i", "m", "t", 0.7, "gray").saliency_cmap == "gray"
    assert result.warnings == [] and result.error is None and result.report is None


def test_a_result_knows_what_it_explains(results):
    lrp = results["lrp"]
    model, item = load_demo_model(), demo_images(1, seed=1)[0]
    x, _, _ = images.build_input(model, images.load_image(item.image))
    scores = model(x).detach()
    shares = scores[0].softmax(0)
    order = shares.argsort(descending=True)
    assert lrp.label == order[0] and lrp.class_name == model.class_names[order[0]]
    assert lrp.score == pytest.approx(float(shares.max()), abs=1e-5)
    assert lrp.runner_up[0] == model.class_names[order[1]]
    assert lrp.relevance.shape == (1, 3, 64, 64) and lrp.relevance.min() < 0
    np.testing.assert_allclose(lrp.signed_map, lrp.relevance[0].sum(0), rtol=1e-4, atol=1e-7)
    assert lrp.seconds > 0 and lrp.raw_image is not None
    assert lrp.conserved == pytest.approx(float(lrp.relevance.sum() / scores.max()), rel=1e-3)


def test_the_list(results):
    assert isinstance(results, list) and len(results) == 3
    assert isinstance(results[:2], SaliencyResults) and results[0] is results["lrp"]
    with pytest.raises(KeyError, match="occlusion"):
        results["occlusion"]


def test_a_failed_method_stays_with_its_reason(results):
    failed = results["gradcam"]
    assert failed.saliency is None and failed.relevance is None
    assert "no feature map" in str(failed.error)
    assert "no feature map" in repr(failed)
    texts = [text.get_text() for axes in results.plot().axes for text in axes.texts]
    assert any("no feature map" in text.replace("\n", " ") for text in texts)


def test_repr_is_stable(results):
    model, item = load_demo_model(), demo_images(1, seed=1)[0]
    again = get_image_saliency_results(model, item.image, methods=["lrp", "gradcam", "saliency"], layer_path="head")
    assert repr(again) == repr(results)
    assert "0x" not in repr(results)
    assert repr(results[0]) == f"<lrp of {results[0].class_name}: 64 x 64>"


def test_mime_bundle(results):
    bundle = results._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "text/html"}
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.width > 600 and len(np.unique(np.asarray(picture))) > 50
    assert "gradcam: no map" in bundle["text/html"] and "<script" not in bundle["text/html"]
    assert bundle["image/png"] in bundle["text/html"]
    assert not hasattr(results, "_ipython_display_")
    assert set(results[0]._repr_mimebundle_()) == set(bundle)
    assert results._repr_png_() == base64.b64decode(bundle["image/png"])
    assert SaliencyResults()._repr_mimebundle_() == {"text/plain": "[]"}


def test_names_from_the_user_are_escaped():
    html = SaliencyResults([_result(np.eye(4), warnings=["<b>bold</b>"])])._repr_html_()
    assert "<b>bold" not in html and "&lt;b&gt;bold" in html


def test_figure(results):
    figure = get_image_saliency_plot(results, cols=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["lrp", "gradcam", "saliency"]
    assert results[0].class_name in figure.get_suptitle() and "best other" in figure.get_suptitle()
    assert "99.5th percentile" in figure.get_supxlabel()
    assert tuple(get_image_saliency_plot(results, figsize=(5, 4)).get_size_inches()) == (5, 4)
    with pytest.raises(InputError, match="cols"):
        get_image_saliency_plot(results, cols=0)


def test_signed_colors_are_symmetric_about_zero():
    values = np.zeros((8, 8))
    values[0, 0], values[7, 7] = 2.0, -1.0
    figure = get_image_saliency_plot([_result(values)], cols=1)
    (axes,) = figure.axes
    (bar,) = axes.child_axes
    rgba = axes.images[-1].get_array()
    limit = colors.color_limit(values)
    assert [label.get_text().split("\n")[-1] for label in bar.get_yticklabels()] == ["against", "0", "for"]
    assert bar.get_ylim() == (-limit, limit)
    assert rgba[0, 0, 0] > rgba[0, 0, 2] and rgba[7, 7, 2] > rgba[7, 7, 0]  # red for, blue against
    assert rgba[0, 0, 3] > rgba[7, 7, 3] > 0 == rgba[3, 3, 3]


def test_unsigned_maps_start_at_zero():
    figure = get_image_saliency_plot([_result(np.arange(16.0).reshape(4, 4), method="gradcam")], cols=1)
    assert figure.axes[0].child_axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize("data", [np.arange(16.0), -np.arange(16.0), np.arange(16.0) - 8], ids=["+", "-", "+-"])
@pytest.mark.parametrize(
    ("method", "signed"),
    [
        *[
            (name, True)
            for name in ("lrp", "lrp:epsilon_plus", "vanilla_grad", "grad_x_input", "occlusion", "deeplift")
        ],
        ("gradcam", False),
        ("saliency", False),
    ],
)
def test_the_method_decides_whether_a_map_is_signed_whatever_the_data(method, signed, data):
    result = _result(data.reshape(4, 4), method=method)
    (bar,) = get_image_saliency_plot([result], cols=1).axes[0].child_axes
    low, high = bar.get_ylim()
    words = [label.get_text().split("\n")[-1] for label in bar.get_yticklabels()]
    assert (low == -high, words) == ((True, ["against", "0", "for"]) if signed else (False, ["none", "most"]))


def test_methods_say_whether_their_maps_have_a_sign():
    model, item = load_demo_model(), demo_images(1, seed=1)[0]
    found = get_image_saliency_results(
        model, item.image, methods=["lrp:epsilon_plus", "gradcam", "saliency", "occlusion"]
    )
    assert [result.signed for result in found] == [True, False, False, True]
    (both,) = get_image_saliency_results(model, item.image, methods=["gradcam"], relu=False)
    assert both.signed


@pytest.mark.parametrize("size", [(450, 300), (200, 400), (320, 320)])
def test_the_figure_has_the_shape_of_the_picture(size):
    result = _result(np.random.default_rng(0).standard_normal(size[::-1]))
    figure = get_image_saliency_plot([result], cols=1)
    figure.canvas.draw()
    (axes,) = figure.axes
    drawn = axes.get_window_extent()  # what imshow leaves of the panel is the picture
    page = figure.get_size_inches() * figure.dpi
    assert drawn.width / drawn.height == pytest.approx(size[0] / size[1], rel=0.02)
    assert drawn.height > page[1] - 130 or drawn.width > page[0] - 130  # no empty bands


@pytest.mark.parametrize("name", ["weaver", "a very long class name that goes on and on, and on", "m" * 60])
def test_titles_stay_inside_the_figure(name):
    result = _result(np.eye(60), class_name=name, score=0.01, runner_up=(f"other {name}", 0.01))
    figure = get_image_saliency_plot([result], cols=1)
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


@pytest.mark.parametrize("name", ["weaver", "a very long class name that goes on and on, and on"])
def test_words_of_a_panel_stay_beside_those_of_the_next(name):
    """They are centered on the picture, which is not the middle of its panel."""
    both = [
        _result(np.eye(60) * size, class_name=f"{name} {k}", score=0.01, runner_up=(name, 0.01))
        for k, size in enumerate((1.0, 1.234e-5))
    ]
    figure = get_image_saliency_plot(both, cols=2)
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert len(boxes) == 2 and boxes[0].x0 >= 0 and boxes[0].x1 <= boxes[1].x0 and boxes[1].x1 <= figure.bbox.width


def test_a_number_and_its_percent_sign_stay_on_one_line():
    for letters in range(1, 9):
        words = "w" * letters + " 12 % of it and 34 % of that and 56 % of the rest and 78 % besides, and 90 % again"
        made = _result(np.eye(4), report=SimpleNamespace(verdict=words, warnings=[], conserved=1.0))
        said = get_image_saliency_plot([made], cols=1).axes[0].get_xlabel()
        assert said.replace("\n", " ") == words and "\n%" not in said and "\n" in said


def test_the_frame_shows_what_the_model_saw():
    made = _result(np.eye(8))
    made.geometry = images.Geometry((8, 8), (1.0, 2.0, 7.0, 6.0))
    (axes,) = get_image_saliency_plot([made], cols=1).axes
    (frame,) = axes.patches
    assert frame.get_bbox().bounds == (1.5, 0.5, 4.0, 6.0)
    made.geometry = images.Geometry.whole((8, 8))
    assert not get_image_saliency_plot([made], cols=1).axes[0].patches


def test_maps_that_are_no_picture():
    made = ImageSaliencyResult(None, np.linspace(0, 1, 5), "row")
    assert get_image_saliency_plot([made], cols=1).axes[0].images
    constant = _result(np.zeros((4, 4)))
    assert get_image_saliency_plot([constant], cols=1).axes


def test_matplotlibs_state_is_not_touched(results):
    import matplotlib
    import matplotlib.pyplot as plt

    before, backend, open_figures = dict(matplotlib.rcParams), matplotlib.get_backend(), plt.get_fignums()
    results._repr_mimebundle_()
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend and plt.get_fignums() == open_figures


def test_tensorwatchs_own_results_can_be_drawn():
    class Theirs:
        raw_image, saliency, title = Image.new("RGB", (40, 30)), np.random.rand(7, 7), "theirs"
        saliency_alpha, saliency_cmap = 0.4, "jet"

    axes = get_image_saliency_plot([Theirs()], cols=1).axes[0]
    assert axes.images[-1].get_array().shape == (30, 40, 4)


def test_table(results):
    frame = results.to_frame()
    assert list(frame["method"]) == ["lrp", "gradcam", "saliency"]
    assert {"seconds", "conserved", "label", "class_name", "score", "warnings", "error"} <= set(frame.columns)
    assert frame["conserved"].notna().tolist() == [True, False, False]
    assert "no feature map" in frame["error"][1] and not frame["error"][0]


@pytest.mark.parametrize("name", ["r.png", "r.pdf", "r.html", "r.npz"])
def test_save(results, tmp_path, name):
    path = results.save(tmp_path / name)
    assert path.stat().st_size > 1000
    if name == "r.npz":
        arrays = np.load(path)
        assert set(arrays) == {"lrp", "lrp.signed", "saliency", "saliency.signed"}
        np.testing.assert_array_equal(arrays["lrp"], results["lrp"].saliency)
    if name == "r.html":
        page = path.read_text()
        assert "http" not in page and "data:image/png;base64," in page and "no feature map" in page


def test_save_says_what_it_can_write(results, tmp_path):
    with pytest.raises(InputError, match=r"\.html, \.npz"):
        results.save(tmp_path / "r.docx")


def test_importing_results_needs_no_matplotlib_or_pandas():
    import subprocess

    code = (
        "import sys, saliency_lrp.results; print([m for m in ('matplotlib', 'pandas', 'captum') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# ------------------------------------------------------------------------------------------------ series


def series_results(channels=2, steps=40, methods=("lrp", "grad_x_input")):
    torch.manual_seed(0)
    layers = [nn.Conv1d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)]
    x = torch.randn(1, channels, steps, generator=torch.Generator().manual_seed(1))
    return get_image_saliency_results(nn.Sequential(*layers), None, x, methods=methods), x[0]


def curves_of(figure):
    """Of each panel with a curve: title, curve, colors under it, their limits."""
    panels = [axes for axes in figure.axes if axes.lines]
    return [
        (a.get_title(), a.lines[0].get_ydata(), np.ravel(a.collections[0].get_array()), a.collections[0].get_clim())
        for a in panels
    ]


def test_a_series_is_a_curve_over_its_relevance_one_row_a_channel():
    results, x = series_results()
    figure = results.plot()
    found = curves_of(figure)
    titles = ["lrp: channel 0", "grad_x_input: channel 0", "lrp: channel 1", "grad_x_input: channel 1"]
    assert [title for title, *_ in found] == titles
    for (title, curve, painted, limits), channel in zip(found, (0, 0, 1, 1), strict=True):
        R = results[title.partition(":")[0]].relevance[0]
        np.testing.assert_allclose(curve, x[channel], rtol=1e-6)
        np.testing.assert_allclose(painted, R[channel], rtol=1e-6)
        assert limits[1] == -limits[0] > 0  # one scale for a method's channels, symmetric
    assert found[0][3] == found[2][3]
    notes = figure.get_supxlabel()
    assert "under a curve" in notes and "opacity" not in notes
    assert len(results._repr_png_()) > 1000


def test_a_series_with_many_channels_or_a_failed_method():
    results, _ = series_results(channels=9, steps=30, methods=("lrp", "occlusion", "lrp:epsilon"))
    results[1].relevance, results[1].saliency, results[1].error = None, None, ValueError("no")
    figure = results.plot()
    R = results[0].relevance[0].abs().sum(1)
    kept = sorted(R.argsort(descending=True)[:6].tolist())
    titles = [title for title, *_ in curves_of(figure)]
    assert [f"lrp: channel {k}" for k in kept[1:]] == [t for t in titles if t.startswith("lrp: ")][1:]
    assert titles[0] == f"lrp: channel {kept[0]}, the 6 strongest of 9" and len(titles) == 12
    assert any("no map" in text.get_text() for axes in figure.axes for text in axes.texts)
    draw_tensorwatch(results)


def test_time_is_the_longer_axis_and_one_channel_needs_no_number():
    results, x = series_results(channels=1, methods=("lrp",))
    assert [title for title, *_ in curves_of(results.plot())] == ["lrp"]

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.layer(x)[0][:, -1])

    x = torch.randn(1, 25, 2)
    found = curves_of(get_image_saliency_results(Recurrent(), None, x, methods=["lrp"]).plot())
    np.testing.assert_allclose(found[1][1], x[0, :, 1], rtol=1e-6)
