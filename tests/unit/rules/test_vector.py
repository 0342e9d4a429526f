"""One small layer whose relevance under every rule is known by hand: x, W, b below, R_out = y."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lrp import rules
from saliency_lrp.lrp_linear import lrp_linear
from saliency_lrp.propagator import RelevancePropagator

X = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
W = torch.tensor([[1.0, -1.0, 2.0], [-0.5, 1.0, 1.0]], dtype=torch.float64)
B = torch.tensor([0.5, -1.0], dtype=torch.float64)
Y = torch.tensor([[4.5, -3.0]], dtype=torch.float64)

# rule, relevance; the numbers were measured on the peers (six decimals) where theirs are right
ROWS = {
    "epsilon": (rules.Epsilon(1e-6), [0.5, 0.0, 1.5]),
    "epsilon 1": (rules.Epsilon(1.0), [0.443182, 0.136364, 1.193182]),
    "epsilon without bias": (rules.Epsilon(1e-6, bias="zero"), [0.375, -0.75, 1.875]),
    "z+": (rules.ZPlus(), [1.0, 2.0, -2.0]),
    "z+ without bias": (rules.ZPlus(bias="zero"), [1.125, 2.25, -1.875]),
    "alpha1 beta0": (rules.AlphaBeta(1, 0), [1.0, 2.0, -2.0]),
    "alpha1 beta0 without bias": (rules.AlphaBeta(1, 0, bias="zero"), [1.125, 2.25, -1.875]),
    "alpha2 beta1": (rules.AlphaBeta(2, 1), [2.428571, 5.714284, -4.0]),
    "alpha2 beta1 without bias": (rules.AlphaBeta(2, 1, bias="zero"), [2.85, 6.9, -3.75]),
    "generalized gamma": (rules.GeneralizedGamma(0.25), [0.516129, 0.064516, 1.387096]),
    "generalized gamma without bias": (
        rules.GeneralizedGamma(0.25, bias="zero"),
        [0.410714, -0.607142, 1.696428],
    ),
    "gamma": (rules.Gamma(0.25), [0.680556, -0.422222, 1.680556]),
    "gamma without bias": (rules.Gamma(0.25, bias="zero"), [0.618421, -1.157895, 2.039474]),
    "w square with bias": (rules.WSquare(bias="keep"), [0.489231, -0.203077, 1.956923]),
    "w square": (rules.WSquare(), [0.416667, -0.583333, 1.666667]),
    "flat": (rules.Flat(), [0.5, 0.5, 0.5]),
    "box": (rules.ZBox(-3.0, 3.0), [0.579545, 0.860795, 0.059659]),
    "e-rule": (rules.Power(1), [0.375, -0.75, 1.875]),
    "e-rule squared": (rules.Power(2), [0.583333, 0.333333, 0.583333]),
    "b-rule 0.5": (rules.Beta(0.5), [1.425, 3.45, -3.375]),
    "b-rule 1": (rules.Beta(1.0), [1.725, 4.65, -4.875]),
    "b-rule 0": (rules.Beta(0.0), [1.125, 2.25, -1.875]),
}


def layer() -> nn.Linear:
    linear = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(W)
        linear.bias.copy_(B)
    return linear


@pytest.mark.parametrize("row", ROWS)
def test_rule(row):
    rule, want = ROWS[row]
    trace = RelevancePropagator(layer(), rule).trace(X)
    torch.testing.assert_close(trace.output, Y)
    got = trace.relevance(seed=Y)
    torch.testing.assert_close(got, torch.tensor([want], dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factor", "want"), [(0.0, [0.499944, 0.000222, 1.499611]), (1.0, [0.333352, -0.16637, 1.333019])]
)
def test_lrp_linear(factor, want):
    got = lrp_linear(X[0], W.T, B, Y[0], Y[0], bias_nb_units=3, eps=0.001, bias_factor=factor)
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=5e-7)


@pytest.mark.parametrize("row", ["epsilon without bias", "flat", "w square", "box", "e-rule", "b-rule 0.5"])
def test_what_conserves_conserves(row):
    rule, _ = ROWS[row]
    got = RelevancePropagator(layer(), rule).trace(X).relevance(seed=Y)
    assert got.sum().item() == pytest.approx(1.5, rel=1e-5)
