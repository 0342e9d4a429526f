"""Every door tells the same of one model, one picture and one class: its name, its number, how sure, and the map.

The doors for words are in ``tests/unit/test_language.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import LrpExplainer, cli, get_image_saliency_results, get_saliency
from saliency_lrp.dataset import explain_dataset
from saliency_lrp.errors import InputError
from saliency_lrp.evaluation import evaluate
from saliency_lrp.evaluation.question import maps_of
from saliency_lrp.model.answer import Answer, are_probabilities, class_name, class_names, probabilities
from saliency_lrp.widget.model_maps import ModelMaps

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 12, 3), dtype=np.uint8))
NAMES = ("ant", "bee", "cat", "dog")


class Net(nn.Module):
    """A small classifier that counts its forward passes."""

    def __init__(self, classes: int = 4, ends_in_softmax: bool = False, names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, classes)
        nn.init.normal_(self.head.weight, std=3.0)
        self.ends_in_softmax, self.forwards = ends_in_softmax, 0
        if names is not None:
            self.class_names = names

    def forward(self, x):
        self.forwards += 1
        scores = self.head(self.body(x))
        return scores.softmax(1) if self.ends_in_softmax else scores


@dataclass
class Told:
    """What a door says: the class's name or its number, how sure the model is or its score, and the map."""

    name: str | None = None
    index: int | None = None
    share: float | None = None
    score: float | None = None
    values: np.ndarray | None = None


def by_results(net, label, tmp_path):
    result = get_image_saliency_results(net, PICTURE, label=label, methods=["lrp"], composite="epsilon")[0]
    return Told(result.class_name, result.label, share=result.score, values=result.signed_map)


def by_saliency(net, label, tmp_path):
    return Told(values=get_saliency(net, PICTURE, label=label, composite="epsilon"))


def by_widget(net, label, tmp_path):
    source = ModelMaps(net, PICTURE, None, label, None, "epsilon", {})
    names = source.classes or [f"class {k}" for k in range(len(source.probabilities))]
    share = float(source.probabilities[source.target])
    return Told(names[source.target], source.target, share, values=source.lrp(source.target, "epsilon").values)


def by_stream(net, label, tmp_path):
    import tensorwatch

    from saliency_lrp import stream

    labels = None if label is None else [label]
    logger = stream.SaliencyLogger(net, [PICTURE], tensorwatch.Stream(), labels)
    name, _, share = logger.explain(0)[1].title.rpartition(" ")
    return Told(name, share=float(share))


def by_command(net, label, tmp_path):
    item = cli.explain(net, cli.Subject("picture", PICTURE), ["lrp"], label, None, tmp_path)
    found = re.search(r"explained: (.*), score (-?[\d.]+)(?:, probability ([\d.]+) %)?$", cli.headline(item))
    name, score, percent = found.groups()
    return Told(name, share=float(score) if percent is None else float(percent) / 100)


def by_dataset(net, label, tmp_path):
    zarr = pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")
    out = tmp_path / "maps.zarr"
    explain_dataset(net, [PICTURE], out, targets=label, composite="epsilon", batch_size=1, progress=False)
    store = zarr.open_group(str(out), mode="r")
    index, score = int(store["target"][0, 0]), float(store["score"][0, 0])
    return Told(index=index, score=score, values=np.asarray(store["input"][0, 0]).sum(0))


def by_evaluation(net, label, tmp_path):
    asked = []

    def method(model, inputs, targets):
        asked.append(int(targets[0]))
        return LrpExplainer(model, "epsilon").explain(inputs, targets)

    evaluate(net, pixels(), label, {"ours": method}, metrics=[], progress=False)
    return Told(index=asked[0], values=maps_of("lrp:epsilon", net, pixels(), torch.tensor([asked[0]]))[0, 0])


#: doors, and how often the model runs behind each for one map
DOORS = {
    by_results: 1,
    by_saliency: 1,
    by_widget: 1,
    by_stream: 1,
    by_command: 1,
    by_dataset: 2,  # a job learns its shapes from the first item
    by_evaluation: 3,  # which class it is; the method that it was given; the maps that are asked for here
}


def pixels():
    return torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255


def by_hand(net, index):
    """Gradient × input, (3, H, W): LRP-ε of a network that is piecewise linear."""
    x = pixels().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, index], x)
    return (gradient * x).detach()[0].numpy()


def min_max(values):
    return (values - values.min()) / np.ptp(values)


def near(values, expected, least=1e-4):
    return np.abs(values - expected).max() <= least * np.abs(expected).max()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("label", [None, 1, -1])
@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("ending", ["logits", "softmax"])
def test_doors_agree(ending, names, label, door, tmp_path):
    net = Net(ends_in_softmax=ending == "softmax", names=names).eval()
    with torch.no_grad():
        scores = net(pixels())[0].double()
    shares = scores.exp() / scores.exp().sum() if ending == "logits" else scores
    index = int(scores.argmax()) if label is None else label % len(scores)
    told = door(net, label, tmp_path)
    if told.name is not None:
        assert told.name == (f"class {index}" if names is None else names[index])
    if told.index is not None:
        assert told.index == index
    if told.share is not None:
        assert told.share == pytest.approx(float(shares[index]), abs=0.0051)
    if told.score is not None:
        assert told.score == pytest.approx(float(scores[index]), abs=1e-5)
    if told.values is not None and ending == "logits":
        R = by_hand(net, index)
        assert near(told.values, min_max(np.abs(R).sum(0)) if door is by_saliency else R.sum(0))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("label", [None, 0, -1])
def test_one_output_has_a_score_and_no_probability(label, door, tmp_path):
    net = Net(classes=1).eval()
    told = door(net, label, tmp_path)
    score = net(pixels())[0, 0].item()
    assert told.name in (None, "class 0") and told.index in (None, 0)
    for given in (told.share, told.score):
        assert given is None or given == pytest.approx(score, abs=0.0051)
    R = by_hand(net, 0)
    if told.values is not None and door is not by_saliency:
        assert near(told.values, R.sum(0))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("label", [4, -5, True, 1.5, "cat"])
def test_doors_refuse_alike(label, door, tmp_path):
    with pytest.raises(InputError):
        door(Net().eval(), label, tmp_path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("label", [None, 1])
def test_one_map_is_one_forward_pass(label, door, tmp_path):
    net = Net().eval()
    door(net, label, tmp_path)
    assert net.forwards == DOORS[door]


def test_names_are_those_that_the_model_carries():
    net = Net()
    assert class_names(net) is None
    net.config = type("Config", (), {"id2label": {0: "no", 1: "yes"}})()
    assert class_name(class_names(net), 1) == "yes"
    assert class_name(class_names(net), 7) == "class 7"
    net.class_names = NAMES  # the model's own come first
    assert class_name(class_names(net), 1) == "bee"


def test_what_counts_as_probabilities():
    assert are_probabilities(torch.tensor([0.25, 0.75]))
    assert not are_probabilities(torch.tensor([0.25, 0.7]))
    assert not are_probabilities(torch.tensor([1.5, -0.5]))
    assert probabilities(torch.tensor([3.0])) is None
    np.testing.assert_allclose(probabilities(torch.tensor([0.0, np.log(3.0)])), [0.25, 0.75], atol=1e-7)


def test_runner_up_is_the_best_of_the_others():
    answer = Answer.of(torch.tensor([0.1, 0.6, 0.3]), 1, NAMES)
    assert (answer.runner_up, answer.name(answer.runner_up)) == (2, "cat")
    assert Answer.of(torch.tensor([0.1, 0.6, 0.3]), 0, None).runner_up == 1
    assert Answer.of(torch.tensor([0.1]), 0, None).runner_up is None
