"""The account of relevance: exact by hand on small nets, and loud where a map should not be trusted."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import rules
from saliency_lrp.composites import Composite, kind
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.propagator import RelevancePropagator
from saliency_lrp.report import Report, Row
from tests.helpers.tiny import EXACT, Net, noise


def two_layers():
    """h = relu(2 x₀ + x₁ + 1), z = 3 h - 2."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    for layer, w, b in ((model[0], [[2.0, 1.0]], [1.0]), (model[2], [[3.0]], [-2.0])):
        layer.weight.data, layer.bias.data = torch.tensor(w).double(), torch.tensor(b).double()
    return model


def test_a_two_layer_net_by_hand():
    """x = (1, 2): h = 5, z = 13; ε = 1. R(z) = 13."""
    trace = RelevancePropagator(two_layers(), rules.Epsilon(1.0)).trace(torch.tensor([[1.0, 2.0]]).double())
    R = trace.relevance(0)
    top = 13 / (13 + 1)  # R / s(z)
    to_h = 15 * top
    low = to_h / (5 + 1)
    assert R.tolist()[0] == pytest.approx([2 * low, 2 * low])
    report = trace.report()
    assert [r.op for r in report.rows] == ["linear", "relu", "linear"]
    assert [r.path for r in report.rows] == ["0", "1", "2"]
    first, relu, last = report.rows
    assert (last.arrived, last.left) == pytest.approx((13.0, to_h))
    assert (last.bias, last.epsilon) == pytest.approx((-2 * top, 1 * top))
    assert (relu.arrived, relu.left, relu.lost) == pytest.approx((to_h, to_h, 0.0))
    assert (first.arrived, first.left) == pytest.approx((to_h, 4 * low))
    assert (first.bias, first.epsilon, first.by_rule) == pytest.approx((1 * low, 1 * low, 0.0))
    assert all(abs(r.unexplained) < 1e-12 for r in report.rows)
    assert (report.seed, report.result) == pytest.approx((13.0, 4 * low))
    assert report.conserved == pytest.approx(4 * low / 13)
    absorbed = report.absorbed
    assert absorbed == pytest.approx(
        {"bias": low - 2 * top, "epsilon": low + top, "rule": 0, "constants": 0}, abs=1e-12
    )
    assert report.warnings == []


def test_shares_of_alpha_beta_by_hand():
    """α = 2, β = 1, x = (1, -1): contributions 2 and -1, bias 1: R⁺ = 2 z / 3 each of 2 and 1, R⁻ = -z."""
    trace = RelevancePropagator(two_layers()[0], rules.AlphaBeta(2, 1, 0.0)).trace(torch.tensor([[1.0, -1.0]]).double())
    R = trace.relevance(0, account=True)  # z = 2
    assert R.tolist()[0] == pytest.approx([2 * 2 * 2 / 3, -2.0])
    (row,) = trace.report().rows
    assert (row.bias, row.epsilon, row.lost) == pytest.approx((2 * 2 / 3, 0.0, 4 / 3))


EVERY_RULE = [
    rules.Epsilon(1e-2), rules.ZPlus(1e-2), rules.AlphaBeta(2, 1, 1e-2), rules.Gamma(0.5, 1e-2),
    rules.GeneralizedGamma(0.5, 1e-2), rules.WSquare(1e-2), rules.ZBox(-3, 3, 1e-2),
]  # fmt: skip


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_every_row_adds_up(rule):
    """arrived = left + bias + ε, whatever the rule; and one row's left is the next one's arrived."""
    torch.manual_seed(0)
    convs = {"a": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "b": nn.Conv2d(3, 3, 3, padding=1)}
    model = Net(
        lambda s, x: s.head((s.b(y := s.norm(s.a(x)).relu()) + y).relu().flatten(1)), **convs, head=nn.Linear(48, 3)
    )
    trace = RelevancePropagator(model, rule).trace(noise(2, 2, 6, 6))
    R = trace.relevance(0, account=True)
    report = trace.report()
    for row in report.rows:
        assert abs(row.unexplained) < 1e-9 * max(1.0, abs(row.arrived)), row
    assert report.result == pytest.approx(float(R.sum()))
    assert abs(report.absorbed["constants"]) < 1e-9 * abs(report.seed)
    assert report.seed == pytest.approx(report.result + sum(report.absorbed.values()))


def test_distributed_bias_conserves_exactly():
    rule = rules.Epsilon(0.1, bias="distribute")
    trace = RelevancePropagator(two_layers(), rule).trace(torch.tensor([[1.0, 2.0]]).double())
    assert trace.report().conserved == pytest.approx(1.0, abs=1e-12)


def test_constants_are_told_apart_from_biases():
    """A position code is no layer's bias: what it takes is 'constants'."""
    code = noise(3, seed=5)
    model, x = Net(lambda s, x: (x + code).sum(1, keepdim=True)), noise(2, 3)
    trace = RelevancePropagator(model, EXACT).trace(x)
    R = trace.relevance(0)
    report = trace.report()
    taken = sum(v for k, v in report.absorbed.items() if k in ("constants", "bias"))
    assert taken == pytest.approx(2 * float(code.sum()))
    assert report.conserved == pytest.approx(float(R.sum() / trace.output.sum()))


def test_what_a_rule_takes():
    model, x = two_layers(), torch.tensor([[1.0, 2.0]]).double()
    trace = RelevancePropagator(model, Composite([("0", rules.Stop())])).trace(x)
    assert torch.equal(trace.relevance(0), torch.zeros_like(x))
    report = trace.report()
    first = report.rows[0]
    assert (first.arrived, first.left, first.by_rule) == pytest.approx((15.0, 0.0, 15.0))
    assert report.absorbed["rule"] == pytest.approx(15.0) and report.conserved == 0


def test_the_report_is_of_the_last_explanation():
    trace = RelevancePropagator(two_layers(), rules.Epsilon(1.0)).trace(torch.tensor([[1.0, 2.0]]).double())
    trace.relevance(0, seed="one")
    assert trace.report().seed == 1.0
    trace.relevance(0, composite=rules.Epsilon(0.5))
    report = trace.report()
    assert report.seed == 13.0 and "epsilon=0.5" in report.rows[0].rule
    trace.relevance(0, seed=torch.tensor([[2.0]]), account=True)
    assert trace.report().seed == 2.0


def test_an_account_does_not_change_the_map():
    trace = RelevancePropagator(two_layers(), "epsilon_plus").trace(noise(4, 2))
    assert torch.equal(trace.relevance(0), trace.relevance(0, account=True))


# ------------------------------------------------------------------------------------------------ warnings


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return torch.special.i0(self.layer(x))


def test_unknown_functions_are_named():
    model, x = nn.Sequential(Unknown()).double(), noise(2, 3)
    trace = RelevancePropagator(model, EXACT).trace(x)
    trace.relevance(0)
    (text,) = trace.report().warnings
    assert "i0 at '0'" in text and "functions.register('i0'" in text
    assert trace.warnings() == [text]
    with pytest.warns(UserWarning, match="i0 at '0'"):
        LrpExplainer(model).explain(x)
    explainer = LrpExplainer(model, account=True)
    with pytest.warns(UserWarning):
        explainer.explain(x)
    assert explainer.report.warnings == [text]


def test_a_function_that_relevance_never_reaches_needs_no_rule():
    def run(s, x):
        torch.special.i0(x).sum()
        return s.a(x) * torch.special.i0(x).mean().detach()

    trace = RelevancePropagator(Net(run, a=nn.Linear(3, 2)), EXACT, unknown="error").trace(noise(2, 3))
    trace.relevance(0)
    assert trace.warnings() == [] and trace.report().warnings == []


def test_nan_in_the_map_is_reported_with_its_place():
    class Bad(rules.Epsilon):
        def relevance(self, site, R):
            return (torch.full_like(site.input, torch.nan),)

    try:
        composite = Composite([("1", Bad())])
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)).double()
        trace = RelevancePropagator(model, composite).trace(noise(2, 3))
        trace.relevance(0)
        assert any("NaN or infinite" in w and "'1'" in w for w in trace.report().warnings)
    finally:
        rules.RULES.pop("Bad")


def test_exploding_relevance_is_reported():
    """The sum is conserved to the last digit, and yet no pixel can be trusted: z = 1e6 x₀ - 1e6 x₁ + tiny."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1e6, -1e6]]).double()
    trace = RelevancePropagator(model, EXACT).trace(torch.tensor([[1.0, 1.0 - 1e-9]], dtype=torch.float64))
    R = trace.relevance(0)
    report = trace.report()
    assert float(R.abs().sum()) > 1e8 * report.seed
    assert any("Σ|R|" in w and "do not trust" in w for w in report.warnings)
    fine = RelevancePropagator(model, EXACT).trace(torch.tensor([[1.0, 0.5]]).double())
    fine.relevance(0)
    assert fine.report().warnings == []


def test_notes_tell_of_choices():
    model = Net(lambda s, x: F.batch_norm(s.a(x), None, None, training=True), a=nn.Linear(3, 2))
    trace = RelevancePropagator(model, EXACT).trace(noise(4, 3))
    trace.relevance(0)
    assert any("rest of its batch" in n for n in trace.report().notes)


# ------------------------------------------------------------------------------------------------ showing


def test_text_and_table():
    trace = RelevancePropagator(nn.Sequential(Unknown()).double(), EXACT).trace(noise(2, 3))
    trace.relevance(0)
    report = trace.report()
    text, html = str(report), report._repr_html_()
    for part in ("conserved", "0.layer", "linear", "i0", "warning: "):
        assert part in text
    for part in ("<table>", "0.layer", "Warning:", "Epsilon(epsilon=1e-13"):
        assert part in html
    assert repr(report).startswith("<Report: relevance ")


def test_largest_losses_first_and_long_tables_are_cut():
    rows = [Row(k, f"layer{k}", "linear", "linear", "<rule>", 1.0, 1.0 - k / 100) for k in range(30)]
    report = Report(1.0, 0.5, rows, notes=["<b>"])
    assert [r.index for r in report.by_loss()] == list(range(29, -1, -1))
    assert "... 10 more sites" in str(report) and "10 more sites" in report._repr_html_()
    assert "layer29" in str(report) and "layer0 " not in str(report)
    assert "layer0 " in report.table(None)
    assert "&lt;rule&gt;" in report._repr_html_() and "<b>" not in report._repr_html_().replace("<b>Warning", "")
    rows.append(Row(99, "bad", "linear", "linear", "r", 1.0, math.nan))
    assert report.by_loss()[0].path == "bad"


def test_conserved_of_nothing():
    assert Report(0.0, 0.0).conserved == 1.0
    assert math.isnan(Report(0.0, 1.0).conserved)
    assert kind("linear")(type("S", (), {"kind": "linear"})())
