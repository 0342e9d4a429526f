"""Whether a map is about its class: how like the maps of other classes are."""

from __future__ import annotations

import pytest
import torch

from saliency_lrp import rules, verdict
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.likeness import class_likeness
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.accounts import dense
from tests.helpers.tiny import EXACT


def likeness(head, x, target=0, rule=EXACT):
    """Of a model whose features are the input itself."""
    explainer = LrpExplainer(dense(head), rule, account=True)
    explainer.explain(x, target)
    return explainer.report


def test_the_map_of_every_class_is_the_same():
    """Each class's weights are the first's, times something positive."""
    report = likeness([[1.0, 2.0], [3.0, 6.0], [0.5, 1.0], [2.0, 4.0]], torch.ones(1, 2).double())
    assert report.likeness == pytest.approx(1.0)
    assert "The map is not about this class" in report.verdict


def test_also_where_the_rule_makes_it_so():
    """z⁺ keeps only what the classes share; ε sees what tells them apart."""
    head, x = [[5.0, -1.0], [5.0, -4.0], [5.0, -9.0]], torch.ones(1, 2).double()
    assert "not about this class" in likeness(head, x, rule=rules.ZPlus(1e-9)).verdict
    assert "not about this class" not in likeness(head, x).verdict


@pytest.mark.parametrize("target", [0, 1, None])
def test_opposite_classes_are_about_their_class(target):
    """w and -w: one map is the other with its colors turned round, whichever score is negative."""
    report = likeness([[1.0, 2.0], [-1.0, -2.0]], torch.ones(1, 2).double(), target)
    assert report.likeness == pytest.approx(-1.0)
    assert "The map adds up" in report.verdict


def test_a_negative_score_is_no_other_picture():
    """The same weights in both classes; the score is negative, the maps are the same all the same."""
    report = likeness([[-1.0, -2.0], [-2.0, -4.0]], torch.ones(1, 2).double())
    assert report.likeness == pytest.approx(1.0)


def test_one_unlike_class_is_enough():
    """Most classes share their weights; one does not, and it is looked for where kin are not expected."""
    head = [[4.0, 4.0], [3.0, 3.0], [2.0, 2.0], [0.0, 1.0], [-1.0, -1.0], [-2.0, -2.0]]
    assert likeness(head, torch.ones(1, 2).double()).likeness <= verdict.ALIKE


def test_where_there_is_nothing_to_compare():
    model, x = dense([[1.0, 2.0]]), torch.ones(1, 2).double()
    trace = RelevancePropagator(model, EXACT).trace(x)
    R = trace.relevance(0)
    assert class_likeness(trace, R, 0, "logit") is None
    assert class_likeness(trace, R, lambda out: out[:, 0], "logit") is None
    assert class_likeness(trace, R, 0, torch.ones(1, 1)) is None
    batch = LrpExplainer(dense([[1.0, 2.0], [2.0, 1.0]]), EXACT, account=True)
    batch.explain(torch.ones(2, 2).double())
    assert batch.report.likeness is None
