"""What an account says in words: situations built by hand, each with the sentence that it must lead to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from saliency_lrp import rules, verdict, waterfall
from saliency_lrp.composites import Composite
from saliency_lrp.report import Report, Row
from tests.helpers.accounts import NOT_THE_SUM, account, convs, dense
from tests.helpers.tiny import Net, noise

# ------------------------------------------------------------------------------------------------ situations


def test_all_arrived():
    report = account(dense([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]).double())
    assert (
        report.verdict
        == "100 % of the score arrived at the input. The map adds up: every value is a share of the score."
    )
    assert all(abs(share) < 1e-9 for _, share in report.sinks)


def test_biases_take_most():
    """z = 0.001 · 1 + 0.999: the input's part is a thousandth."""
    report = account(Net(lambda s, x: s.head(x), head=dense([[0.001]], [0.999])), torch.ones(1, 1).double())
    assert report.sinks[0] == ("biases of head", pytest.approx(0.999))
    assert report.verdict == f"0.1 % of the score arrived at the input; biases of head took 99.9 %. {NOT_THE_SUM}"


def test_biases_take_all():
    """At x = 0 the whole score is bias."""
    report = account(Net(lambda s, x: s.head(x), head=dense([[1.0]], [2.0])), torch.zeros(1, 1).double())
    assert report.sinks[0] == ("biases of head", pytest.approx(1.0))
    assert report.verdict == (
        "Nothing arrived at the input: biases of head took 100 %. The map is empty and says nothing about the input."
    )


def test_a_negative_bias_adds():
    """z = 3 - 1: 150 % arrives, the bias added a half."""
    report = account(Net(lambda s, x: s.head(x), head=dense([[3.0]], [-1.0])), torch.ones(1, 1).double())
    assert report.sinks[0] == ("biases of head", pytest.approx(-0.5))
    assert report.verdict == f"150 % of the score arrived at the input; biases of head added 50 %. {NOT_THE_SUM}"


def block(weight, shift):
    """A convolution and a batch norm: z = w·x + shift."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
    conv.weight.data.fill_(weight)
    norm.bias.data.fill_(shift)
    return nn.Sequential(conv, norm, nn.ReLU())


def test_folded_batch_norms_are_named_by_stage():
    """From x = 1 on: 1.5, 2, 2.5, 3 by shifts of a half; then a head that doubles. A third is left."""
    model = nn.Module()
    model.blocks = nn.Sequential(*(block(1.0, 0.5) for _ in range(4)))
    model.head = nn.Linear(1, 1, bias=False)
    model.head.weight.data.fill_(2.0)
    model.forward = lambda x: model.head(model.blocks(x).flatten(1))
    report = account(model.double().eval(), torch.ones(1, 1, 1, 1).double())
    assert report.sinks[0] == ("folded batch norms of blocks.0 to blocks.3", pytest.approx(2 / 3))
    assert report.verdict == (
        f"33 % of the score arrived at the input; folded batch norms of blocks.0 to blocks.3 took 67 %. {NOT_THE_SUM}"
    )


def test_a_batch_norm_of_its_own_and_one_after_a_dense_layer():
    """z = 2·(x + 1) + 2, with x = 1: the norm before takes 2 of 6 and the one after takes 2."""
    before, after = nn.BatchNorm1d(1, eps=0.0), nn.BatchNorm1d(1, eps=0.0)
    before.bias.data.fill_(1.0)
    after.bias.data.fill_(2.0)
    model = Net(lambda s, x: s.after(s.dense(s.before(x))), before=before, dense=dense([[2.0]]), after=after).double()
    report = account(model.eval(), torch.ones(1, 1).double())
    found = dict(report.sinks)
    assert found["batch norms of before"] == pytest.approx(1 / 3)
    assert found["folded batch norms of dense"] == pytest.approx(1 / 3)


def test_shifts_of_layer_norms():
    norm = nn.LayerNorm(2, eps=0.0).double()
    norm.bias.data = torch.tensor([1.0, 1.0]).double()
    # x = (-1, 1) is (-1, 1) normalized, so that the score 2·(1 + 1) is half shift
    report = account(
        Net(lambda s, x: s.head(s.norm(x)), norm=norm, head=dense([[0.0, 2.0]])),
        torch.tensor([[-1.0, 1.0]]).double(),
    )
    assert dict(report.sinks)["biases of normalizations in norm"] == pytest.approx(0.5)


def test_signs_cancel():
    """z = 100·x₀ - 99·x₁ at (1, 1): parts of 100 and -99 leave 1."""
    report = account(dense([[100.0, -99.0]]), torch.ones(1, 2).double())
    assert "sum to 199 times the score: do not read single pixels" in report.verdict
    assert report.verdict.endswith("100 % of the score arrived at the input.")
    mild = account(dense([[3.0, -2.0]]), torch.ones(1, 2).double())
    assert "The map adds up" in mild.verdict


def test_a_rule_that_ends_relevance():
    model = nn.Sequential(dense([[1.0, 2.0]], [1.0]), nn.ReLU(), dense([[3.0]])).double()
    report = account(model, torch.ones(1, 2).double(), Composite([("0", rules.Stop())]))
    assert report.sinks[0] == ("the rules in 0", pytest.approx(1.0))
    assert report.verdict.startswith("Nothing arrived at the input: the rules in 0 took 100 %.")


def test_epsilon_takes():
    """ε = 1 at z = 1: half is damped."""
    report = account(Net(lambda s, x: s.head(x), head=dense([[1.0]])), torch.ones(1, 1).double(), rules.Epsilon(1.0))
    assert report.sinks == [("the stabilizer ε in head", pytest.approx(0.5))]
    assert (
        report.verdict == f"50 % of the score arrived at the input; the stabilizer ε in head took 50 %. {NOT_THE_SUM}"
    )


class Unclassified(nn.Module):
    """Three spellings of functions that no table knows."""

    def __init__(self, spelling):
        super().__init__()
        self.layer, self.spelling = nn.Linear(3, 2).double(), spelling

    def forward(self, x):
        z = self.layer(x)
        if self.spelling == "special":
            return torch.special.i0(z)
        if self.spelling == "out":
            return torch.exp(z, out=torch.empty(0).double())
        return Cube.apply(z)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


@pytest.mark.parametrize(("spelling", "name"), [("special", "i0 at 'sub'"), ("autograd", "Cube at")])
def test_functions_that_nobody_classified(spelling, name):
    report = account(Net(lambda s, x: s.sub(x), sub=Unclassified(spelling)), noise(1, 3))
    assert any(name in text for text in report.unknown)
    assert "functions that are not understood" in report.verdict and name in report.verdict
    assert "may be wrong" in report.verdict


def test_a_score_of_zero_and_what_is_no_number():
    assert "nothing to explain" in account(dense([[0.0]]), torch.ones(1, 1).double()).verdict
    assert "cannot be read" in Report(1.0, math.nan).verdict
    assert Report(1.0, math.nan).sinks == [] == waterfall.steps(Report(1.0, math.nan))


def test_a_class_against_the_others_has_no_sum():
    report = account(dense([[1.0, 3.0], [2.0, -1.0], [-1.0, 1.0]]), torch.ones(1, 2).double(), seed="contrastive")
    assert abs(report.seed) < 1e-12 < report.seed_size
    assert "sums to 0 (one class against the others)" in report.verdict and "nan" not in report.verdict
    assert all(math.isfinite(share) for _, share in report.sinks)


# ------------------------------------------------------------------------------------------------ names and numbers


def test_stages():
    paths = {
        "": "the model itself", "layer4.0.conv2": "layer4", "features.28": "features.28", "_conv_stem": "_conv_stem",
        "bert.encoder.layer.11.output.dense": "bert.encoder.layer.11", "bert.embeddings": "bert.embeddings",
        "features.denseblock3.denselayer2.conv1": "features.denseblock3", "blocks.0.attn.proj": "blocks.0",
    }  # fmt: skip
    assert {path: verdict.stage(path) for path in paths} == paths


def test_percent():
    said = {0.0: "0 %", 0.0004: "less than 0.1 %", 0.0123: "1.2 %", 0.5: "50 %", 0.998: "99.8 %", 0.99996: "100 %",
            -1.686: "−169 %", 1.0: "100 %"}  # fmt: skip
    assert {share: verdict.percent(share) for share in said} == said


def test_the_shortest_run():
    assert verdict.shortest_run([1, 1, 8, 1, 9, 1], 0.8) == (2, 5)
    assert verdict.shortest_run([0, 0, 5], 0.9) == (2, 3)
    assert verdict.shortest_run([1, 1], 0.9) == (0, 2)
    assert verdict.shortest_run([], 0.9) == (0, 0)


def test_what_is_spread_is_said_so():
    taken = [0.5, 0.5, 0.5, 0.5, 10.0, 10.0, 0.5, 0.5]
    rows = [Row(k, f"block{k}", "linear", "linear", "r", 9.0, 9.0 - took, took) for k, took in enumerate(taken)]
    report = Report(23.0, 0.0, rows, size=1.0)
    assert report.sinks[0] == ("biases of block4 to block5 and elsewhere", pytest.approx(1.0))


@pytest.mark.parametrize("composite", ["auto", "epsilon_plus", "epsilon_gamma_box", rules.Epsilon(0.1)], ids=repr)
def test_sinks_and_what_arrived_are_all_there_is(composite):
    report = account(convs(), noise(1, 2, 6, 6), composite)
    assert report.conserved + sum(share for _, share in report.sinks) == pytest.approx(1.0, abs=1e-6)
    sizes = [abs(share) for _, share in report.sinks]
    assert sizes == sorted(sizes, reverse=True)


# ------------------------------------------------------------------------------------------------ shown


def test_text_says_the_verdict_first_and_leaves_out_what_does_not_count():
    report = account(dense([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]).double())
    assert str(report).startswith(report.verdict)
    assert "epsilon +" not in report.summary() and "nothing absorbed" in report.summary()
    assert "constants" in str(report).splitlines()[2]
