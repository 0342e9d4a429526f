"""The widget on real models: one forward, the right relevance in the right place, a model left alone."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lrp import composites
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.explainers import registry
from saliency_lrp.images import build_input, load_image
from saliency_lrp.propagator import RelevancePropagator
from saliency_lrp.rules import Epsilon
from saliency_lrp.widget import compare_saliency


class Counting(nn.Module):
    """A model that counts its forward passes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.passes = model, 0
        self.preprocessing, self.class_names = model.preprocessing, model.class_names

    def forward(self, x):
        self.passes += 1
        return self.model(x)


@pytest.fixture(scope="module")
def demo():
    return load_demo_model(), demo_images(1, 3)[0]


def done(widget):
    assert widget.wait(60)
    states = {info["id"]: (info["state"], info.get("warnings")) for info in widget.panels}
    assert all(state == "done" for state, _ in states.values()), states
    return widget.maps()


def relevance(model, image, target, composite):
    x, _, _ = build_input(model, load_image(image))
    return x, RelevancePropagator(model, composite).trace(x).relevance(target)


def test_maps_are_the_explainers_own(demo):
    model, item = demo
    widget = compare_saliency(model, item.image, label=item.label, methods=("lrp", "grad_x_input"), composite="epsilon")
    maps = done(widget)
    x, R = relevance(model, item.image, item.label, "epsilon")
    np.testing.assert_allclose(maps["lrp"], R[0].sum(0).numpy(), rtol=1e-4, atol=1e-5)
    G = registry.get("grad_x_input", model).explain(x, item.label)
    np.testing.assert_allclose(maps["grad_x_input"], G[0].sum(0).numpy(), rtol=1e-4, atol=1e-5)


def test_rules_classes_layers_and_channels_need_no_second_forward(demo):
    model = Counting(demo[0])
    widget = compare_saliency(model, demo[1].image, methods=("lrp", "lrp:epsilon_plus"), composite="epsilon")
    first = done(widget)
    assert model.passes == 1
    for composite in ("epsilon_plus", "epsilon_alpha2_beta1", "auto"):
        widget.composite = composite
        done(widget)
    widget.target = (widget.target + 1) % 10
    widget.layer = "model.features.6"
    done(widget)
    widget.channel = widget.channels[0]["index"]
    last = done(widget)
    assert model.passes == 1
    assert set(last) == {"lrp", "lrp:epsilon_plus", "layer", "concept"}
    assert np.abs(last["lrp"] - first["lrp"]).max() > 1e-3


def test_a_rule_change_is_the_same_as_a_fresh_start(demo):
    model, item = demo
    widget = compare_saliency(model, item.image, label=2, methods=("lrp",), composite="epsilon")
    done(widget)
    widget.composite = "epsilon_plus"
    _, R = relevance(model, item.image, 2, "epsilon_plus")
    np.testing.assert_allclose(done(widget)["lrp"], R[0].sum(0).numpy(), rtol=1e-4, atol=1e-5)


def test_trained_weights_are_noticed(demo):
    model = Counting(load_demo_model())
    widget = compare_saliency(model, demo[1].image, label=2, methods=("lrp",), composite="epsilon")
    done(widget)
    with torch.no_grad():
        model.model.head.weight.mul_(2)
    widget.composite = "epsilon_plus"
    _, R = relevance(model.model, demo[1].image, 2, "epsilon_plus")
    np.testing.assert_allclose(done(widget)["lrp"], R[0].sum(0).numpy(), rtol=1e-4, atol=1e-5)
    assert model.passes == 2


def test_every_layer_on_the_slider_can_be_shown_and_sums_to_its_relevance(demo):
    model, item = demo
    widget = compare_saliency(model, item.image, label=item.label, methods=("lrp",), composite="epsilon")
    done(widget)
    assert widget.layers[0] == "features.1" and "features.14" in widget.layers and "head" not in widget.layers
    x, _, _ = build_input(model, load_image(item.image))
    trace = RelevancePropagator(model, "epsilon").trace(x)
    for name in widget.layers:
        widget.layer = name
        shown = done(widget)["layer"]
        R = trace.layer_relevance(name, item.label)
        total = sum(abs(float(v)) for v in R.sum((0, 2, 3)))
        best = widget.channels[0]
        assert shown.shape == (64, 64)
        assert best["relevance"] == pytest.approx(float(R[0, best["index"]].sum()), rel=1e-3, abs=1e-6)
        assert best["share"] == pytest.approx(abs(best["relevance"]) / total, rel=1e-3)


def test_concept_maps_of_all_channels_add_up_to_the_map(demo):
    model, item = demo
    widget = compare_saliency(
        model, item.image, label=item.label, methods=("lrp",), composite="epsilon", layer="features.3"
    )
    whole = done(widget)["lrp"]
    source = widget._source
    parts = sum(source.concept("features.3", channel, item.label, "epsilon").values for channel in range(16))
    np.testing.assert_allclose(parts, whole, atol=1e-3 * np.abs(whole).max())
    with pytest.raises(InputError, match="channels 0 to 15"):
        source.concept("features.3", 16, item.label, "epsilon")


def test_the_account_is_there(demo):
    widget = compare_saliency(demo[0], demo[1].image, methods=("lrp",), composite="epsilon")
    done(widget)
    account = widget.panels[0]["account"]
    assert account["verdict"].startswith(account["summary"]) and account["summary"].endswith("22 times the score")
    assert dict(account["rows"])["at the output"]
    assert "conv2d" in account["text"]


def test_occlusion_reports_passes_and_can_be_cancelled(demo):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.preprocessing = demo[0], demo[0].preprocessing

        def forward(self, x):
            time.sleep(0.1)
            return self.model(x)

    model = Slow().train()
    seen = []
    widget = compare_saliency(model, demo[1].image, methods=("occlusion", "lrp"), window=4)
    widget.observe(lambda change: seen.extend(info for info in change["new"] if info.get("done")), "panels")
    end = time.monotonic() + 20
    while not seen and time.monotonic() < end:
        time.sleep(0.01)
    assert seen[0]["total"] > seen[0]["done"] > 0
    widget.cancel("occlusion")
    assert widget.wait(10)
    assert {info["id"]: info["state"] for info in widget.panels} == {"occlusion": "cancelled", "lrp": "done"}
    end = time.monotonic() + 10
    while not model.training and time.monotonic() < end:  # the pass under way is let finish
        time.sleep(0.01)
    assert model.training and all(not module._forward_hooks for module in model.modules())


def test_a_crop_is_put_back_where_it_came_from(demo):
    model, item = demo
    wide = np.full((64, 128, 3), 120, np.uint8)
    wide[:, 32:96] = np.asarray(item.image)
    model = load_demo_model()
    model.preprocessing = {**model.preprocessing, "size": 64, "crop": (64, 64)}
    values = done(compare_saliency(model, wide, methods=("lrp",)))["lrp"]
    assert values.shape == (64, 128)
    assert not values[:, :31].any() and not values[:, 97:].any() and values[:, 32:96].any()


def test_large_pictures_are_made_small_enough_to_send(demo):
    big = demo[1].image.resize((1800, 900))
    widget = compare_saliency(demo[0], big, methods=("lrp",))
    assert (widget.width, widget.height) == (448, 224)
    assert done(widget)["lrp"].shape == (224, 448)


def test_input_without_an_image(demo):
    x, _, _ = build_input(demo[0], load_image(demo[1].image))
    widget = compare_saliency(demo[0], None, input=x, methods=("lrp",))
    assert done(widget)["lrp"].shape == (64, 64)
    assert widget.code[:3] == ["model", "image", "input=input"]


def test_models_without_classes_take_a_callable():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    picture = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    widget = compare_saliency(model, picture, label=lambda out: out[:, 1].mean((1, 2)), methods=("lrp", "grad_x_input"))
    assert widget.target == -1 and widget.top == []
    assert done(widget)["lrp"].any()


def test_a_rule_object_has_a_place_in_the_selector(demo):
    widget = compare_saliency(demo[0], demo[1].image, methods=("lrp",), composite=Epsilon(epsilon=0.1))
    done(widget)
    assert widget.composites[0] == widget.composite == widget.own_composite
    assert set(composites.list_composites()) < set(widget.composites)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"methods": ("lpr",)}, UnknownNameError),
        ({"composite": "epsilonplus"}, UnknownNameError),
        ({"layer": "features.99"}, UnknownNameError),
        ({"label": 10}, InputError),
        ({"widow": 3}, UnknownNameError),
        ({"cmap": "RdBu_x"}, UnknownNameError),
        ({"input": torch.zeros(2, 3, 64, 64)}, InputError),
    ],
)
def test_what_cannot_be_shown_is_refused_at_once(demo, options, error):
    with pytest.raises(error):
        compare_saliency(demo[0], demo[1].image, **options)


def test_the_model_is_left_as_it_was(demo):
    model = load_demo_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done(compare_saliency(model, demo[1].image, methods=("lrp", "grad_x_input", "gradcam"), layer="features.9"))
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
