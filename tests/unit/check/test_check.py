"""A check of one map: what it measures, by hand on small models; what it finds out on the demo network."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lrp import get_image_saliency_results
from saliency_lrp.check import check
from saliency_lrp.check.deletion import PLACES, delete, infill, moved, strongest_tenth
from saliency_lrp.check.findings import another_class, random_head
from saliency_lrp.check.head import head_drawn_anew, last_weighted, sharing_copy
from saliency_lrp.check.subject import Subject
from saliency_lrp.demo import demo_dataset, demo_images, load_demo_model
from saliency_lrp.errors import InputError
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.explainers.plan import Plan
from tests.helpers.tiny import Net, noise


@pytest.fixture(scope="module")
def model():
    return load_demo_model()


@pytest.fixture(scope="module")
def pictures():
    return demo_dataset(40)


@pytest.fixture(scope="module")
def outcome(model):
    return get_image_saliency_results(model, demo_images(1)[0].image, methods=["lrp"])[0].check()


def finding(outcome, name):
    return next(f for f in outcome.findings if f.name.startswith(name))


# ------------------------------------------------------------------------------------------------ what it finds out


def with_another_head(model, seed):
    """The model with a head of random numbers, made here by hand."""
    other = copy.deepcopy(model)
    weight = other.head.weight.data
    other.head.weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * weight.std()
    return other


@pytest.mark.slow
def test_maps_of_a_random_head_are_found_out(model, pictures):
    """AUC >= .95 over 40 pictures; every right map passes, no wrong one does, also without making the map again."""
    right, wrong = [], []
    for k, x in enumerate(pictures.inputs.split(1)):
        target = int(model(x).argmax())
        right.append(check(model, None, x))
        of_other = LrpExplainer(with_another_head(model, k)).explain(x, target)
        wrong.append(check(model, None, x, label=target, relevance=of_other))
    assert all(outcome.passed for outcome in right) and not any(outcome.passed for outcome in wrong)
    good, bad = (np.array([outcome.score for outcome in group]) for group in (right, wrong))
    assert (good[:, None] > bad).mean() >= 0.95
    good, bad = (np.array([finding(o, "second rule").value for o in group]) for group in (right, wrong))
    assert (good[:, None] > bad).mean() >= 0.95


@pytest.mark.parametrize("method", ["lrp:lrp.z_plus", "guided_backprop"])
def test_maps_that_do_not_depend_on_the_class_are_found_out(model, pictures, method):
    """Known of both (Adebayo et al. 2018, Sixt et al. 2020)."""
    outcome = check(model, None, pictures.inputs[4:5], method=method)
    assert not outcome.passed and outcome.verdict.startswith("Read this map with care:")
    assert not finding(outcome, "head drawn anew").holds and not finding(outcome, "another class").holds
    assert "the same for another class" in outcome.verdict and "last layer is drawn anew" in outcome.verdict


def test_a_result_checks_itself(outcome):
    assert outcome.passed and outcome.verdict.startswith("The map holds: made again it is the same;")
    names = [f.name.split(":")[0] for f in outcome.findings]
    assert names == ["made again", "deletion", "second rule", "another class", "head drawn anew"]
    assert finding(outcome, "another class").name.split(": ")[1].startswith("digit")


def test_a_map_of_older_weights_is_found_out():
    model = load_demo_model()
    (result,) = get_image_saliency_results(model, demo_images(1)[0].image, methods=["lrp"])
    with torch.no_grad():
        model.features[0].weight.mul_(-1)
    outcome = result.check()
    assert not outcome.passed
    assert outcome.verdict.startswith("Do not trust this map: it is not what the model gives now")


def test_a_made_up_map_is_found_out(model, pictures):
    x = pictures.inputs[:1]
    outcome = check(model, None, x, relevance=noise(*x.shape).float())
    assert "Do not trust this map" in outcome.verdict and outcome.score < 0.2


@pytest.mark.parametrize(
    ("again", "second", "score"), [(1.0, 0.9, 0.9), (0.99, 0.8, 0.4), (0.976, 0.976, 0.0), (1.0, -0.5, 0.0)]
)
def test_the_score_counts_a_map_that_is_not_made_again_as_another(outcome, again, second, score):
    """Maps of a random head may be as near as 0.976 by chance: between two rules of one network there is less."""
    values = {"made again": again, "second rule": second}
    made = [f._replace(value=values.get(f.name.split(":")[0], f.value)) for f in outcome.findings]
    assert dataclasses.replace(outcome, findings=made).score == pytest.approx(score)


# ------------------------------------------------------------------------------------------------ costs, side effects


@pytest.mark.parametrize("method", ["lrp", "gradcam", "grad_x_input"])
def test_it_takes_less_than_sixty_passes_and_leaves_the_model_alone(pictures, method):
    model = load_demo_model()
    model.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.weight.requires_grad_(False)
    passed = [0]
    model.register_forward_pre_hook(lambda module, args: passed.__setitem__(0, passed[0] + len(args[0])))
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check(model, None, pictures.inputs[:1], method=method)
    assert 20 < passed[0] < 60
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert not model.head.weight.requires_grad and bool((model.head.weight.grad == 1).all())
    assert model.features[0].weight.grad is None


def test_dear_methods_are_asked_less(model, pictures):
    x = pictures.inputs[:1]
    passed = [0]
    hook = model.register_forward_pre_hook(lambda module, args: passed.__setitem__(0, passed[0] + len(args[0])))
    outcome = check(model, None, x, method="occlusion", relevance=LrpExplainer(model).explain(x))
    hook.remove()
    assert passed[0] < 60
    assert [f.name for f in outcome.findings] == ["deletion", "second rule: lrp:epsilon_gamma_box"]
    assert len(outcome.left_out) == 3 and "passes" in outcome.left_out[0] and outcome.left_out[0] in str(outcome)


def test_the_same_seed_gives_the_same_check(model, pictures):
    x = pictures.inputs[1:2]
    assert str(check(model, None, x)) == str(check(model, None, x))


# ------------------------------------------------------------------------------------------------ deletion, by hand


def subject_of(model, x, relevance, label=0):
    return Subject(model, x, torch.tensor([label]), Plan("lrp", {}), relevance)


def test_what_is_lost_by_deletion():
    """The score is the sum over a 4 x 4 corner of ones: blurred, each counts what the means say; elsewhere nothing."""
    x = torch.zeros(1, 1, 12, 12).double()
    x[..., :4, :4] = 1
    found = delete(subject_of(Net(lambda s, x: x[..., :4, :4].sum((1, 2, 3))[:, None]), x, x.clone()), 0)
    assert found.whole == 16 and len(found.elsewhere) == PLACES
    chosen = strongest_tenth(subject_of(None, x, x.clone()))
    expected = float((x - infill(x, 2))[0, 0][chosen[0]].sum())
    assert found.whole - found.without == pytest.approx(expected) and expected > 3
    assert found.beaten >= 0.9


def test_classes_are_told_by_their_probability():
    """Two classes of scores Σ corner and 0: what is left of the corner says the log-probability."""
    x = torch.zeros(1, 1, 12, 12).double()
    x[..., :4, :4] = 0.1
    model = Net(lambda s, x: torch.stack([x[..., :4, :4].sum((1, 2, 3)), x.sum((1, 2, 3)) * 0], 1))
    subject = dataclasses.replace(check(model, None, x).subject, relevance=x)
    left = torch.where(strongest_tenth(subject)[:, None], infill(x, 2), x)[..., :4, :4].sum()
    found = delete(subject, 0)
    assert found.whole == pytest.approx(float(torch.tensor(1.6).sigmoid().log()))
    assert found.without == pytest.approx(float(left.sigmoid().log()))


def test_the_strongest_tenth_is_a_tenth_and_the_strongest():
    values = noise(1, 3, 20, 78).abs()
    chosen = strongest_tenth(subject_of(None, values, values))
    smooth = torch.nn.functional.avg_pool2d(values.sum(1, keepdim=True), (1, 3), 1, (0, 1))[:, 0]
    assert chosen.shape == (1, 20, 78) and int(chosen.sum()) == 156
    assert smooth[chosen].min() >= smooth[~chosen].max()


@pytest.mark.parametrize("shape", [(1, 6, 9), (1, 12), (1, 4, 5, 6)])
def test_other_places_have_the_same_shape(shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[(0, *[slice(0, 2)] * (len(shape) - 1))] = True
    generator = torch.Generator().manual_seed(0)
    places = [moved(mask, len(shape) - 1, generator) for _ in range(20)]
    assert all(place.shape == mask.shape and place.sum() == mask.sum() for place in places)
    assert len({tuple(place.flatten().tolist()) for place in places}) > 5


def test_the_infill_is_a_blur_that_keeps_flat_pictures():
    flat = torch.full((1, 2, 16, 16), 3.0)
    assert torch.allclose(infill(flat, 2), flat)
    edge = torch.zeros(1, 1, 32)
    edge[..., 16:] = 1
    assert (infill(edge, 1).diff() >= -1e-6).all() and 0 < float(infill(edge, 1)[0, 0, 14]) < 0.5


# ------------------------------------------------------------------------------------------------ the head


def test_a_copy_shares_its_tensors_and_nothing_else(model):
    twin = sharing_copy(model)
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    twin.head.register_forward_hook(lambda *args: None)
    assert not model.head._forward_hooks and twin.features[0] is not model.features[0]


class Spellings(nn.Module):
    """The last layer is registered first; another one is not called at all."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.unused = nn.Linear(7, 7)

    def forward(self, x):
        return self.last(self.first(x).mean((2, 3)))


def test_the_head_is_what_runs_last():
    model, x = Spellings(), torch.rand(1, 1, 8, 8)
    kept = copy.deepcopy(model.state_dict())
    assert last_weighted(twin := sharing_copy(model), x) is twin.last
    changed = head_drawn_anew(model, x, 0)
    assert not torch.equal(changed.last.weight, model.last.weight)
    assert torch.equal(changed.first[0].weight, model.first[0].weight) and changed.unused.weight is model.unused.weight
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    again, another = head_drawn_anew(model, x, 0), head_drawn_anew(model, x, 1)
    assert torch.equal(changed.last.weight, again.last.weight)
    assert not torch.equal(changed.last.weight, another.last.weight)


def test_models_without_a_head_to_draw():
    """One computes with parameters of its own, one holds what cannot be copied: the question is not asked."""
    by_hand = Net(lambda s, x: x.flatten(1) @ s.w)
    by_hand.w = nn.Parameter(noise(4, 3))
    x = noise(1, 1, 2, 2)
    locked = Net(lambda s, x: s.head(x.flatten(1)), head=nn.Linear(4, 3))
    locked.lock = threading.Lock()
    assert head_drawn_anew(nn.Flatten(), x, 0) is None
    assert head_drawn_anew(locked, x, 0) is None
    assert random_head(subject_of(locked, x, x), 0) is None
    assert check(by_hand, None, x).findings  # its own parameters are its head


# ------------------------------------------------------------------------------------------------ other inputs


def series():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 8, 5), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def table():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def volume():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6**3, 2)).eval()


@pytest.mark.parametrize(("make", "shape"), [(series, (1, 2, 60)), (table, (1, 20)), (volume, (1, 1, 8, 8, 8))])
def test_series_tables_and_volumes(make, shape):
    outcome = check(make(), None, noise(*shape).float())
    assert finding(outcome, "made again").value == pytest.approx(1.0)
    assert len(outcome.findings) == 5 and outcome.verdict
    assert "deletion" in str(outcome)


def test_a_callable_label_has_no_other_class(model, pictures):
    outcome = check(model, None, pictures.inputs[:1], label=lambda out: out[:, 3] - out[:, 1])
    assert [f.name.split(":")[0] for f in outcome.findings] == [
        "made again",
        "deletion",
        "second rule",
        "head drawn anew",
    ]


def test_of_two_classes_one_is_what_the_other_is_not():
    model = Net(lambda s, x: torch.cat([z := s.head(x.flatten(1)), -z], 1), head=nn.Linear(16, 1, bias=False))
    x = noise(1, 1, 4, 4)
    answer = check(model, None, x).subject
    found = another_class(answer, 0)
    assert found.value == pytest.approx(-1.0) and found.holds


# ------------------------------------------------------------------------------------------------ refusals, showing


def test_what_cannot_be_checked_is_said(model, pictures):
    with pytest.raises(InputError, match="one picture at a time"):
        check(model, None, pictures.inputs[:2])
    with pytest.raises(InputError, match=r"\(1, 3, 8, 8\).*\(1, 3, 64, 64\)"):
        check(model, None, pictures.inputs[:1], relevance=torch.ones(1, 3, 8, 8))
    results = get_image_saliency_results(model, demo_images(1)[0].image, methods=["lrp", "gradcam"], layer_path="head")
    with pytest.raises(InputError, match="no map to check.*no feature map"):
        results["gradcam"].check()
    loaded = pickle.loads(pickle.dumps(results["lrp"]))
    assert loaded.relevance is not None and loaded.origin is None
    with pytest.raises(InputError, match="does not know its model"):
        loaded.check()
    replaced = dataclasses.replace(results["lrp"], relevance=-results["lrp"].relevance)
    assert "Do not trust" in replaced.check().verdict


def test_it_shows_itself(outcome):
    bundle = outcome._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "text/html"}
    assert outcome.verdict in bundle["text/plain"] and "deletion" in bundle["text/html"]
    assert repr(outcome) == f"<Check: {outcome.verdict}>"
    frame = outcome.table()
    assert list(frame.columns) == ["question", "value", "measured", "holds"] and frame["holds"].all()
    titles = [axes.get_title().replace("\n", " ") for axes in outcome.plot().axes]
    assert titles[0] == "lrp" and len(titles) == 4 and titles[-1] == "head drawn anew"
    hostile = dataclasses.replace(outcome, left_out=["<b>"])
    assert "<b>" not in hostile._repr_html_()
