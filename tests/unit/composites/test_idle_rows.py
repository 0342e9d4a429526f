"""A row of a composite that nothing can match is named: a mistyped glob, a class or a kind that is not there."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.errors import InputError
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import Net, noise


def net():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())
    return Net(lambda s, x: s.head(s.body(x)), body=body, head=nn.Linear(5, 3))


def told(selector, rule=None):
    composite = composites.get("epsilon") | Composite([(selector, rule or rules.ZPlus())])
    trace = RelevancePropagator(net(), composite).trace(noise(2, 6))
    trace.relevance(0)
    return trace.report().warnings


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("bodi.*", "bodi"),
        ("layer4.*", "layer4"),
        ("haed", "did you mean 'head'"),
        (nn.Conv2d, "no Conv2d"),
        ((nn.Linear, "bdoy.*"), "bdoy"),
        ((nn.Conv1d, "body.*"), "no Conv1d"),
    ],
    ids=str,
)
def test_a_row_that_matches_nothing_is_named(selector, words):
    (warning,) = told(selector)
    assert words in warning
    assert "ZPlus" in warning


@pytest.mark.parametrize(
    "selector", ["body.*", "head", "*", nn.Linear, (nn.Linear, "body.?"), composites.family("convolution"),
                 composites.first(), composites.kind("softmax")], ids=str
)  # fmt: skip
def test_rows_that_match_or_could_are_not(selector):
    assert told(selector) == []


def test_it_is_said_once():
    composite = composites.get("epsilon") | Composite([("bodi.*", rules.ZPlus())])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LrpExplainer(net(), composite).explain(noise(2, 6), 0)
    assert [str(w.message) for w in caught if "bodi" in str(w.message)] == [
        str(w.message) for w in caught if "bodi" in str(w.message)
    ][:1]
    assert any("bodi" in str(w.message) for w in caught)


def test_presets_say_nothing_of_what_a_model_lacks():
    for name in ("auto", "epsilon_plus_flat", "epsilon_gamma_box", "attnlrp", "lrp.sequential_preset_a"):
        trace = RelevancePropagator(net(), name).trace(noise(2, 6))
        trace.relevance(0)
        assert trace.report().warnings == []


@pytest.mark.parametrize(("make", "words"), [(composites.kind, "liner"), (composites.family, "conv")])
def test_kinds_and_families_that_do_not_exist(make, words):
    with pytest.raises(InputError, match=words):
        make(words)
