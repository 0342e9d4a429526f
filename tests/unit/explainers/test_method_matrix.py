"""All of TensorWatch's twelve methods on torchvision's architectures at full size, through ``get_saliency``."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import saliency_lrp
from saliency_lrp.demo import demo_images, load_demo_model
from tests.helpers.nets import fingerprint
from tests.helpers.torchvision_cpu import import_torchvision

METHODS = (
    "gradcam vanilla_grad grad_x_input saliency integrate_grad deconv guided_backprop smooth_grad deeplift "
    "occlusion lrp lime_imagenet"
).split()
#: The methods that repeat passes do so only a few times here: whether they work does not depend on it.
CHEAP = {
    "integrate_grad": {"steps": 2},
    "smooth_grad": {"samples": 2, "random_seed": 0},
    "occlusion": {"window": 112, "stride": 112},
    "lime_imagenet": {"samples": 6, "segments": 4, "random_seed": 0},
}
MODELS = "alexnet vgg11 resnet18 mobilenet_v2 densenet121 vit_b_16 swin_t demo".split()


def build(name: str) -> nn.Module:
    """A seeded classifier in training mode; batch norms have seen images, and no head is zero."""
    if name == "demo":
        return load_demo_model().train()
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(name, weights=None)
    for p in model.parameters():
        if p.dim() > 1 and not p.any():
            nn.init.normal_(p, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 224, 224))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_method_gives_a_map_and_leaves_the_model(name: str) -> None:
    model = build(name)
    image = demo_images(1, seed=3)[0].image.resize((80, 64))
    before = fingerprint(model)
    for method in METHODS:
        for label in (None, 3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options = CHEAP.get(method, {})
                if name == "demo" and method == "occlusion":
                    options = {"window": 32, "stride": 32}  # its pictures have 64 pixels a side
                values = saliency_lrp.get_saliency(model, image, label=label, method=method, **options)
            case = f"{method}, label {label}"
            assert values.shape == (64, 80) and values.dtype == np.float32, case
            assert np.isfinite(values).all() and values.min() == 0 and values.max() == 1, case
    assert fingerprint(model) == before
    assert model.training
