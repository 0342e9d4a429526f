"""The calls of TensorWatch's cnn_pred_explain.ipynb, as they stand there, with its default methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saliency_lrp
from tests.helpers.nets import calibrated, fingerprint
from tests.helpers.torchvision_cpu import import_torchvision


@pytest.fixture(scope="module")
def notebook():
    """What the notebook's first cells make: a torchvision model (here with random weights) and a picture."""
    torchvision = import_torchvision()
    saliency_lrp.register()
    from tensorwatch.saliency import saliency

    torch.manual_seed(0)
    model = calibrated(torchvision.models.resnet18(weights=None), torch.rand(4, 3, 64, 64))
    skimage_data = pytest.importorskip("skimage.data")
    from PIL import Image

    return saliency, model, Image.fromarray(skimage_data.astronaut()).resize((120, 90))


def test_the_notebooks_calls(notebook, monkeypatch):
    saliency, model, img = notebook
    from tensorwatch import image_utils, imagenet_utils, pytorch_utils

    import saliency_lrp.explainers.perturbation as perturbation

    lime = perturbation.Lime.__init__
    monkeypatch.setattr(perturbation.Lime, "__init__", lambda self, model: lime(self, model, samples=12))

    probabilities = imagenet_utils.predict(model=model, images=[img], device="cpu")
    assert len(imagenet_utils.probabilities2classes(probabilities, topk=5)) == 5
    image_utils.show_image(img)
    model.train()
    before = fingerprint(model)
    input_tensor = imagenet_utils.image2batch(img)
    prediction_tensor = pytorch_utils.int2tensor(239)
    results = saliency.get_image_saliency_results(model, img, input_tensor, prediction_tensor)
    figure = saliency.get_image_saliency_plot(results)

    assert fingerprint(model) == before
    assert not input_tensor.requires_grad and input_tensor.grad is None
    names = ["lime_imagenet", "gradcam", "smooth_grad", "guided_backprop", "deeplift", "grad_x_input"]
    assert [r.title for r in results] == names
    for result in results:
        assert result.error is None, result
        assert result.raw_image is img and result.label == 239
        assert result.saliency.shape == (90, 120) and result.saliency.dtype == np.float32
        assert result.saliency.min() == 0 and result.saliency.max() == 1 and result.saliency.std() > 0
    assert [axes.get_title() for axes in figure.axes] == names
    for axes, result in zip(figure.axes, results, strict=True):
        picture, overlay = axes.images
        assert (picture.get_array() == np.asarray(img)).all()
        assert overlay.get_cmap().name == "jet" and overlay.get_alpha() == 0.4
        np.testing.assert_array_equal(overlay.get_array(), result.saliency)


def test_tensorwatchs_figure_is_one_that_notebooks_show(notebook):
    import matplotlib.pyplot as plt

    saliency, model, img = notebook
    results = saliency.get_image_saliency_results(model, img, None, 3, ["saliency"])
    figure = saliency.get_image_saliency_plot(results, cols=1, figsize=(4, 4))
    assert plt.fignum_exists(figure.number) and tuple(figure.get_size_inches()) == (4, 4)
    plt.close(figure)


def test_tensorwatchs_own_plot_draws_our_results(notebook):
    saliency, model, img = notebook
    results = saliency_lrp.get_image_saliency_results(model, img, label=3, methods=["saliency", "grad_x_input"])
    saliency_lrp.unregister()
    try:
        figure = saliency.get_image_saliency_plot(results)
    finally:
        saliency_lrp.register()
    assert [axes.get_title() for axes in figure.axes] == ["saliency", "grad_x_input"]


def test_both_positional_orders(notebook):
    saliency, model, img = notebook
    x, label = torch.rand(1, 3, 64, 64), torch.tensor([3])
    for order in ((x, label, ["saliency"], None), (x, label, None, ["saliency"], None)):
        assert [r.title for r in saliency.get_image_saliency_results(model, img, *order)] == ["saliency"]
    released = saliency.get_saliency(model, img, x, label, "saliency")
    np.testing.assert_array_equal(saliency.get_saliency(model, img, x, label, None, "saliency"), released)
