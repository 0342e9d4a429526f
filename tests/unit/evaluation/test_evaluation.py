"""Metrics tell good maps from bad ones; results show themselves; Quantus users can plug the package in."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lrp import composites, demo, rules
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.evaluation import METRICS, evaluate, list_metrics, morf_lerf, quantus_explain_func
from saliency_lrp.explainers.lrp import LrpExplainer
from tests.helpers.torchvision_cpu import import_torchvision

with contextlib.suppress(ImportError):
    import_torchvision()  # where zennit is installed Quantus imports it, and it imports torchvision
quantus = pytest.importorskip("quantus")

N = 6


@pytest.fixture(scope="module")
def model():
    return demo.load_demo_model()


@pytest.fixture(scope="module")
def data():
    return demo.demo_dataset(N, seed=3)


@pytest.fixture(scope="module")
def perfect(data):
    """Maps that show exactly the true place, with noise so that pixels have an order."""
    noise = torch.rand(N, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    return data.masks[:, None] * (1 + noise) - 0.01 * noise  # no two regions are equally relevant


@pytest.fixture(scope="module")
def result(model, data, perfect):
    methods = {"lrp": "lrp", "perfect": perfect, "wrong": -perfect}
    return evaluate(model, data.inputs, data.labels, methods, data.masks, progress=False)


# ------------------------------------------------------------------------------------------------ metrics


def test_all_metrics_have_a_direction_and_a_paper():
    assert set(list_metrics()) == set(METRICS)
    for metric in METRICS.values():
        assert metric.arrow == ("↑" if metric.higher_is_better else "↓")
        assert metric.paper


@pytest.mark.parametrize("name", ["relevance_mass", "relevance_rank", "pointing_game", "morf_lerf", "pixel_flipping"])
def test_a_perfect_map_scores_better_than_a_wrong_one(result, name):
    sign = 1 if METRICS[name].higher_is_better else -1
    assert sign * result.mean("perfect", name) > sign * result.mean("wrong", name) + 0.2


def test_localization_of_the_perfect_map_is_perfect(result):
    for name in ("relevance_mass", "relevance_rank", "pointing_game"):
        assert result.mean("perfect", name) == pytest.approx(1.0)


def test_relevance_mass_is_the_share_of_positive_relevance_in_the_mask(model, data):
    R = LrpExplainer(model).explain(data.inputs, data.labels).sum(1).double().clamp(min=0)
    expected = (R * data.masks).sum((1, 2)) / R.sum((1, 2))
    got = evaluate(model, data.inputs, data.labels, "lrp", data.masks, ["relevance_mass"], progress=False)
    np.testing.assert_allclose(got.scores["lrp"]["relevance_mass"], expected.numpy(), rtol=1e-6)


def test_relevance_mass_of_signed_maps_stays_between_0_and_1(model, data):
    """Signed sums that almost cancel would make it explode, nothing positive would make it NaN."""
    maps = torch.zeros(N, 1, 64, 64)
    maps[:, 0, :32] = 1.0
    maps[:, 0, 32:] = -0.999
    nothing = -torch.ones(N, 1, 64, 64)
    got = evaluate(
        model, data.inputs, data.labels, {"signed": maps, "none": nothing}, data.masks, ["relevance_mass"], False
    )
    assert ((got.scores["signed"]["relevance_mass"] >= 0) & (got.scores["signed"]["relevance_mass"] <= 1)).all()
    assert (got.scores["none"]["relevance_mass"] == 0).all()


def test_morf_lerf_agrees_with_quantus_region_perturbation(model, data):
    """Quantus removes one region per pass; its mean colour is that of all channels, so images here are grey."""
    x = data.inputs[:2].mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    y = data.labels[:2]
    maps = LrpExplainer(model).explain(x, y).sum(1, keepdim=True)
    areas = {}
    for order in ("morf", "lerf"):
        metric = quantus.RegionPerturbation(
            patch_size=4, regions_evaluation=256, order=order, perturb_baseline="mean", abs=False, normalise=False,
            disable_warnings=True,
        )  # fmt: skip
        drops = metric(model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=maps.numpy(), device="cpu")
        areas[order] = np.mean(np.asarray(drops), axis=1)
    ours = morf_lerf(model, x, y, maps)
    np.testing.assert_allclose(ours, areas["morf"] - areas["lerf"], atol=0.05)


def test_morf_lerf_changes_sign_with_the_map(model, data, perfect):
    forwards = morf_lerf(model, data.inputs, data.labels, perfect)
    backwards = morf_lerf(model, data.inputs, data.labels, -perfect)
    np.testing.assert_allclose(forwards, -backwards, atol=1e-5)


def test_randomisation_finds_maps_that_ignore_the_model(model, data):
    def edges(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (inputs - inputs.roll(1, -1)).abs()

    got = evaluate(
        model, data.inputs, data.labels, {"edges": edges, "lrp": "lrp"}, metrics=["randomisation"], progress=False
    )
    assert got.mean("edges", "randomisation") == pytest.approx(1.0)
    assert got.mean("lrp", "randomisation") < 0.7


def test_stability_is_the_relative_change_of_the_map(model, data):
    """A map that is the input changes by the noise; one that does not look at the input does not change."""
    methods = {
        "input": lambda model, inputs, targets: inputs.sum(1, keepdim=True),
        "scaled": lambda model, inputs, targets: 1000 * inputs.sum(1, keepdim=True),
        "constant": lambda model, inputs, targets: torch.eye(64).expand_as(inputs),
    }
    got = evaluate(model, data.inputs, data.labels, methods, metrics=["stability"], progress=False)
    assert got.mean("constant", "stability") == 0
    assert 0.01 < got.mean("input", "stability") < 0.5
    assert got.mean("scaled", "stability") == pytest.approx(got.mean("input", "stability"), rel=1e-4)


# ------------------------------------------------------------------------------------------------ evaluate


def test_scores_are_reproducible_and_the_model_untouched(model, data):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    numpy_state = np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    runs = [
        evaluate(model, data.inputs[:3], None, ["smooth_grad"], metrics=["stability", "randomisation"], progress=False)
        for _ in range(2)
    ]
    assert model.training
    model.eval()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())
    for name in ("stability", "randomisation"):
        a, b = (run.scores["smooth_grad"][name] for run in runs)
        np.testing.assert_array_equal(a, b)


def test_a_method_that_fails_does_not_lose_the_others(model, data):
    def broken(model, inputs, targets):
        raise RuntimeError("no map today")

    def nan(model, inputs, targets):
        return inputs * float("nan")

    methods = {"broken": broken, "nan": nan, "lrp": "lrp", "small": lambda m, x, y: x[:, :, :5]}
    got = evaluate(model, data.inputs, data.labels, methods, data.masks, ["pointing_game"], progress=False)
    assert "no map today" in got.errors["broken"]
    assert "NaN" in got.errors["nan"]
    assert "(6, 3, 64, 64)" in got.errors["small"]
    assert np.isfinite(got.mean("lrp", "pointing_game"))
    assert list(got.to_frame().index) == list(methods)


def test_maps_alone_cannot_be_explained_anew(result):
    assert "perfect / stability" in result.errors
    assert np.isnan(result.mean("perfect", "stability"))
    assert np.isfinite(result.mean("lrp", "stability"))


def test_methods_may_be_names_composites_rules(model, data):
    methods = {"plus": composites.get("epsilon_plus"), "rule": rules.ZPlus(), "name": "lrp:epsilon_plus"}
    got = evaluate(model, data.inputs, data.labels, methods, data.masks, "relevance_mass", progress=False)
    assert not got.errors
    assert got.mean("plus", "relevance_mass") == got.mean("name", "relevance_mass")


def test_without_masks_localization_is_left_out(model, data):
    got = evaluate(model, data.inputs[:2], 3, "lrp", progress=False)
    assert {m.name for m in got.metrics} == {m.name for m in METRICS.values() if m.needs != "masks"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["relevance_masss"]}, "Did you mean 'relevance_mass'"),
        ({"methods": ["gradcan"]}, "Did you mean 'gradcam'"),
        ({"methods": [lambda m, x, y: x]}, "give a dict"),
        ({"methods": {"x": 3}}, "a function of"),
        ({"masks": None, "metrics": ["pointing_game"]}, "needs masks"),
        ({"masks": torch.ones(2, 8, 8)}, r"\(6, 64, 64\)"),
        ({"masks": torch.zeros(N, 64, 64)}, "empty"),
        ({"inputs": torch.ones(2, 3)}, r"\(N, C, H, W\)"),
        ({"targets": 10}, "out of range"),
    ],
)
def test_bad_input_is_refused(model, data, change, message):
    given = {"inputs": data.inputs, "targets": data.labels, "methods": "lrp", "masks": data.masks, **change}
    with pytest.raises(InputError, match=message):
        evaluate(model, progress=False, **given)


def test_without_quantus_the_remedy_is_said(model, data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "quantus", None)
    with pytest.raises(ImportError, match=r"saliency-lrp\[evaluation\]"):
        evaluate(model, data.inputs, data.labels, "lrp", data.masks, ["pointing_game"], progress=False)


# ------------------------------------------------------------------------------------------------ results


def test_the_frame_has_means_and_standard_errors(result):
    frame = result.to_frame()
    scores = result.scores["lrp"]["morf_lerf"]
    assert frame.loc["lrp", "morf_lerf"] == pytest.approx(scores.mean())
    assert frame.loc["lrp", "morf_lerf_se"] == pytest.approx(scores.std(ddof=1) / N**0.5)
    assert frame.loc["lrp", "seconds"] > 0


def test_the_table_marks_the_best_and_the_direction(result):
    page = result._repr_html_()
    assert "relevance mass ↑" in page and "average sensitivity ↓" in page
    assert "<b>1.000 ± 0.000</b>" in page
    assert "relevance mass ↑" in repr(result)
    assert result.best("relevance_mass") == "perfect"
    assert result.best("stability") == "lrp"


def test_labels_are_escaped(model, data, perfect):
    got = evaluate(model, data.inputs, data.labels, {"<script>": perfect}, data.masks, ["pointing_game"], False)
    assert "<script>" not in got._repr_html_()


def test_the_plot_has_a_panel_per_metric(result):
    figure = result.plot()
    assert [axis.get_title() for axis in figure.axes] == [f"{m.title} {m.arrow}" for m in result.metrics]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx([result.mean(m, "relevance_mass") for m in result.scores])


# ------------------------------------------------------------------------------------------------ the default


def test_auto_finds_the_digit_better_than_epsilon_plus():
    model, data = demo.load_demo_model(), demo.demo_dataset(60, seed=11)
    got = evaluate(
        model, data.inputs, data.labels, ["lrp", "lrp:epsilon_plus"], data.masks, ["relevance_mass"], progress=False
    )
    assert got.mean("lrp", "relevance_mass") > max(0.9, got.mean("lrp:epsilon_plus", "relevance_mass"))


def test_auto_stays_bounded_on_a_deep_network():
    """20 random convolutions: ε multiplies |R| again and again, `auto` must not."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(20):
        layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5, bias=False)).double().eval()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    size = {}
    for name in ("auto", "epsilon"):
        R = LrpExplainer(model, name, seed="one").explain(x, 1)
        size[name] = float(R.abs().sum((1, 2, 3)).max())
    assert 0.5 < size["auto"] < 10
    assert size["epsilon"] > 20 * size["auto"]


# ------------------------------------------------------------------------------------------------ Quantus' side


@pytest.mark.parametrize("method", ["lrp", "lrp:epsilon_plus", "grad_x_input"])
def test_quantus_users_can_plug_the_package_in(model, data, method):
    metric = quantus.PointingGame(abs=False, normalise=False, disable_warnings=True)
    scores = metric(
        model=model,
        x_batch=data.inputs.numpy(),
        y_batch=data.labels.numpy(),
        s_batch=data.masks.numpy()[:, None],
        explain_func=quantus_explain_func,
        explain_func_kwargs={"method": method},
        device="cpu",
    )
    own = evaluate(model, data.inputs, data.labels, method, data.masks, ["pointing_game"], progress=False)
    np.testing.assert_array_equal(np.asarray(scores, dtype=float), own.scores[method]["pointing_game"])


def test_the_adapter_sums_channels_or_not(model, data):
    x, y = data.inputs[:2].numpy(), data.labels[:2].numpy()
    whole = quantus_explain_func(model, x, y, sum_channels=False)
    assert whole.shape == (2, 3, 64, 64)
    np.testing.assert_allclose(quantus_explain_func(model, x, y), whole.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    plus = quantus_explain_func(model, x, y, "lrp", composite="epsilon_plus", device="cpu")
    np.testing.assert_array_equal(plus, quantus_explain_func(model, x, y, "lrp:epsilon_plus"))


def test_the_adapter_refuses_unknown_names(model, data):
    with pytest.raises(UnknownNameError):
        quantus_explain_func(model, data.inputs, data.labels, "lrp:epsilon_pluss")
