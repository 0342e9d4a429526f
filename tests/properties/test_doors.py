"""Every door tells the same of one model, one picture and one class: results, widget, stream and command."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import cli, get_image_saliency_results, get_saliency
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


def by_results(net, label, tmp_path):
    result = get_image_saliency_results(net, PICTURE, label=label, methods=["lrp"])[0]
    return result.class_name, result.score


def by_widget(net, label, tmp_path):
    source = ModelMaps(net, PICTURE, None, label, None, "auto", {})
    names = source.classes or [f"class {k}" for k in range(len(source.probabilities))]
    return names[source.target], float(source.probabilities[source.target])


def by_stream(net, label, tmp_path):
    import tensorwatch

    from saliency_lrp import stream

    labels = None if label is None else [label]
    logger = stream.SaliencyLogger(net, [PICTURE], tensorwatch.Stream(), labels)
    name, _, share = logger.explain(0)[1].title.rpartition(" ")
    return name, float(share)


def by_command(net, label, tmp_path):
    subject = cli.Subject("picture", PICTURE)
    item = cli.explain(net, subject, ["lrp"], label, None, tmp_path)
    found = re.search(r"explained: (.*), score (-?[\d.]+)(?:, probability ([\d.]+) %)?$", cli.headline(item))
    name, score, percent = found.groups()
    return name, float(score) if percent is None else float(percent) / 100


DOORS = [by_results, by_widget, by_stream, by_command]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("ending", ["logits", "softmax"])
def test_doors_agree(ending, names, label, door, tmp_path):
    net = Net(ends_in_softmax=ending == "softmax", names=names).eval()
    x = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        scores = net(x)[0].double()
    shares = scores.exp() / scores.exp().sum() if ending == "logits" else scores
    index = int(scores.argmax()) if label is None else label
    name, share = door(net, label, tmp_path)
    assert name == (f"class {index}" if names is None else names[index])
    assert share == pytest.approx(float(shares[index]), abs=0.0051)


@pytest.mark.parametrize("door", DOORS)
def test_one_output_has_a_score_and_no_probability(door, tmp_path):
    net = Net(classes=1).eval()
    x = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255
    name, share = door(net, None, tmp_path)
    assert name == "class 0"
    assert share == pytest.approx(net(x)[0, 0].item(), abs=0.0051)


@pytest.mark.parametrize("call", [get_saliency, get_image_saliency_results])
def test_one_map_is_one_forward_pass(call):
    net = Net().eval()
    call(net, PICTURE, **({"method": "lrp"} if call is get_saliency else {"methods": ["lrp"]}))
    assert net.forwards == 1


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
