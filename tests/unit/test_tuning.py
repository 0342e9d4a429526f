"""The search over rules: finds what is known to be better, judges it on other images, says when nothing is gained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import saliency_lrp
from saliency_lrp import composites, demo
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.evaluation import morf_lerf
from saliency_lrp.propagator import RelevancePropagator

N = 8


@pytest.fixture(scope="module")
def model():
    return demo.load_demo_model()


@pytest.fixture(scope="module")
def data():
    return demo.demo_dataset(N, seed=7)


@pytest.fixture(scope="module")
def tuned(model, data):
    return saliency_lrp.tune(model, data.inputs, data.labels, data.masks, "relevance_mass", progress=False)


def mass(R: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """Share of positive relevance in the mask, one image at a time."""
    shares = []
    for relevance, mask in zip(R.sum(1).double(), masks, strict=True):
        positive = relevance.clamp(min=0)
        shares.append(float(positive[mask.bool()].sum() / positive.sum()))
    return np.array(shares)


def halves(seed: int = 0) -> list[np.ndarray]:
    """Images searched on, and images not seen."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed)).numpy()
    return [np.sort(half) for half in np.array_split(order, 2)]


def test_every_score_is_that_of_the_composite_on_the_images_searched_on(tuned, model, data):
    seen, _ = halves()
    for name in ("auto", "epsilon_plus", "epsilon"):
        R = RelevancePropagator(model, name).trace(data.inputs[seen]).relevance(data.labels[seen])
        np.testing.assert_allclose(tuned.scores[name], mass(R, data.masks[seen]), rtol=1e-5)
    assert len(tuned.scores) > 15
    means = [scores.mean() for scores in tuned.scores.values()]
    assert means == sorted(means, reverse=True)


def test_the_gain_is_that_on_images_not_seen(tuned, model, data):
    seen, unseen = halves()
    assert not set(seen) & set(unseen)
    maps = [
        RelevancePropagator(model, composite).trace(data.inputs[unseen]).relevance(data.labels[unseen])
        for composite in (tuned.composite, "auto")
    ]
    masses = [mass(R, data.masks[unseen]) for R in maps]
    np.testing.assert_allclose(tuned.held_out["auto"], masses[1], rtol=1e-5)
    if tuned.gain > 0:
        assert tuned.gain == pytest.approx((masses[0] - masses[1]).mean(), abs=1e-6)
        assert tuned.gain_error == pytest.approx((masses[0] - masses[1]).std(ddof=1) / len(unseen) ** 0.5, abs=1e-6)
    assert masses[0].mean() >= masses[1].mean() - 1e-9  # never worse than auto
    assert tuned.scores[tuned.found].mean() >= tuned.scores["auto"].mean()


def test_the_composite_explains(tuned, model, data):
    R = saliency_lrp.LrpExplainer(model, tuned.composite).explain(data.inputs[:1], 3)
    assert R.shape == (1, 3, 64, 64) and bool(R.isfinite().all())


def test_morf_lerf_is_the_objective_unless_told_otherwise(model, data):
    tuned = saliency_lrp.tune(model, data.inputs[:4], progress=False)
    assert tuned.objective == "morf_lerf"
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0)).numpy()
    unseen = np.sort(np.array_split(order, 2)[1])
    want = morf_lerf(model, data.inputs[unseen], None, "lrp", "blur", (8, 24, 64, 128, 192, 232, 248))
    np.testing.assert_allclose(tuned.held_out["auto"], want, atol=1e-6)


# ------------------------------------------------------------------------------------------------ known answers


def likes(name: str, model: nn.Module, data: demo.DemoData):
    """An objective that is high for maps like those of one composite."""
    target = RelevancePropagator(model, name).trace(data.inputs).relevance(data.labels).sum(1, keepdim=True)
    known = {x.numpy().tobytes(): R.double().numpy() for x, R in zip(data.inputs, target, strict=True)}

    def alike(images, maps):
        wanted = np.stack([known[x.numpy().tobytes()] for x in images.inputs])
        return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(wanted, maps, strict=True)])

    return alike


def test_it_finds_the_composite_that_the_objective_likes(model, data):
    tuned = saliency_lrp.tune(model, data.inputs, data.labels, objective=likes("epsilon", model, data), progress=False)
    assert tuned.found == "epsilon" and tuned.composite.name == "epsilon"
    assert tuned.scores["epsilon"].min() == pytest.approx(1.0)
    assert tuned.gain > 0.05 and "epsilon has +" in tuned.verdict and "alike" in tuned.verdict


def test_it_keeps_auto_where_nothing_is_better_and_says_so(model, data):
    tuned = saliency_lrp.tune(model, data.inputs, data.labels, objective=likes("auto", model, data), progress=False)
    assert tuned.found == "auto" and tuned.composite.name == "auto"
    assert tuned.gain == 0 and "nothing that was tried is better" in tuned.verdict


def test_what_does_not_hold_on_images_not_seen_is_not_kept(model, data):
    """ε is liked on the images searched on, and `auto` on the others."""
    seen, _ = halves()
    of_seen = {data.inputs[k].numpy().tobytes() for k in seen}
    epsilon, auto = likes("epsilon", model, data), likes("auto", model, data)

    def fickle(images, maps):
        both = np.stack([auto(images, maps), epsilon(images, maps)])
        return both[[int(x.numpy().tobytes() in of_seen) for x in images.inputs], np.arange(len(images.inputs))]

    tuned = saliency_lrp.tune(model, data.inputs, data.labels, objective=fickle, progress=False)
    assert tuned.found == "epsilon" and tuned.gain < -0.05
    assert tuned.composite.name == "auto"
    assert tuned.verdict.startswith("no gain: epsilon")


# ------------------------------------------------------------------------------------------------ around it


def test_it_shows_itself(tuned):
    assert tuned.verdict in repr(tuned) and "epsilon_plus" in repr(tuned)
    page = tuned._repr_html_()
    assert page.count("<tr>") == len(tuned.scores) + 1
    frame = tuned.to_frame()
    assert frame.loc["auto", "seen"] == pytest.approx(tuned.scores["auto"].mean())
    assert frame.loc["auto", "not_seen"] == pytest.approx(tuned.held_out["auto"].mean())


def test_a_transformer_has_its_dense_layers_tuned():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.layer(self.patches(x).flatten(2).mT).mean(1))

    x = torch.rand(4, 3, 32, 32)
    masks = torch.zeros(4, 32, 32)
    masks[:, :16] = 1
    tuned = saliency_lrp.tune(Tokens().eval(), x, None, masks, "relevance_mass", progress=False)
    dense = [s for name, s in tuned.scores.items() if name.endswith("dense: ε")]
    assert dense and all(not np.array_equal(s, tuned.scores["auto"]) for s in dense)


def test_the_model_is_left_alone_and_the_search_repeats(model, data):
    model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    runs = [
        saliency_lrp.tune(model, data.inputs[:4], 3, data.masks[:4], "relevance_mass", progress=False) for _ in range(2)
    ]
    assert model.training and torch.equal(state, torch.get_rng_state())
    model.eval()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert repr(runs[0]) == repr(runs[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objective": "morf_lref"}, UnknownNameError, "Did you mean 'morf_lerf'"),
        ({"objective": "relevance_mass"}, InputError, "needs masks="),
        ({"inputs": torch.zeros(3, 3, 64, 64), "targets": 1}, InputError, "at least 4 images.*got 3"),
        ({"masks": torch.ones(N, 8, 8)}, InputError, r"\(8, 64, 64\)"),
        ({"inputs": torch.zeros(8, 3)}, InputError, r"\(N, C, H, W\)"),
        ({"objective": lambda images, maps: 1.0}, InputError, "one score per image"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused(model, data, change, error, message):
    given = {"inputs": data.inputs, "targets": data.labels, "progress": False, **change}
    with pytest.raises(error, match=message):
        saliency_lrp.tune(model, **given)


def test_the_tuned_composite_goes_by_depth(model):
    from saliency_lrp.tuning import Choice

    composite = Choice((0.8, 0.2)).composite(over=4)
    trace = RelevancePropagator(model).trace(torch.zeros(1, 3, 64, 64))
    found = [composite.rule_for(s) for s in trace.sites if s.kind == "linear" and not s.folded_into_next]
    assert [getattr(rule, "gamma", None) for rule in found] == [None, 0.504, 0.317, 0.2, None]
    assert composites.get("auto").rule_for(trace.sites[0]) == found[0]
