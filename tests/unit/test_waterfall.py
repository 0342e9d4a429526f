"""The account as a drawing: from the score to what arrived."""

from __future__ import annotations

import pytest

from saliency_lrp import waterfall
from saliency_lrp.report import Report, Row
from tests.helpers.accounts import account, convs
from tests.helpers.tiny import noise


def test_the_waterfall_runs_from_the_score_to_what_arrived():
    report = account(convs(), noise(1, 2, 6, 6), "epsilon_plus")
    score, *losses, arrived = waterfall.steps(report)
    assert (score.start, score.end) == (0.0, 1.0)
    level = 1.0
    for step in losses:
        assert step.start == pytest.approx(level)
        level = step.end
        assert (step.kind == "taken") == (step.share > 0)
    assert level == pytest.approx(arrived.end, abs=2e-6) and arrived.end == pytest.approx(report.conserved)
    assert sum(step.share for step in losses) == pytest.approx(1 - report.conserved, abs=2e-6)


def test_the_waterfall_meets_layers_as_relevance_does_and_joins_small_ones():
    rows = [Row(k, f"block{k}", "linear", "linear", "r", 2.0, 2 - k / 1000, bias=k / 1000) for k in range(30)]
    report = Report(1.0, 1 - sum(k / 1000 for k in range(30)), rows)
    names = [step.name for step in waterfall.steps(report)]
    assert names[:3] == ["the score", "biases of block29", "biases of block28"] and names[-1] == "arrived at the input"
    assert len(names) == waterfall.MOST_STEPS + 3 and names[-2] == "17 smaller ones"


def test_the_waterfall_is_drawn(tmp_path):
    report = account(convs(), noise(1, 2, 6, 6), "epsilon_plus")
    figure, bars = report.plot(), waterfall.steps(report)
    (axes,) = figure.axes
    assert len(axes.patches) == len(bars)
    assert [label.get_text() for label in axes.get_yticklabels()] == [bar.name for bar in bars]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([bar.end - bar.start for bar in bars])
    text = report._repr_html_()
    assert all(bar.name in text for bar in bars) and report.verdict in text
    rows = [Row(0, "<b>", "linear", "linear", "r", 2.0, 1.5, bias=0.5)]
    assert "<b>" not in Report(1.0, 0.5, rows)._repr_html_()
