"""Sparse weights and constants: right under the rules that can use them, refused in words under the others."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import RelevancePropagator, rules
from saliency_lrp.errors import InputError
from saliency_lrp.explainers import registry

LAYOUTS = {
    "coo": lambda w: w.to_sparse(),
    "csr": lambda w: w.to_sparse_csr(),
    "csc": lambda w: w.to_sparse_csc(),
}
SPELLINGS = {
    "sparse.mm": lambda w, x: torch.sparse.mm(w, x.T).T,
    "matmul": lambda w, x: (w @ x.T).T,
    "mm": lambda w, x: torch.mm(w, x.T).T,
    "linear": lambda w, x: F.linear(x, w),
    "sparse.addmm": lambda w, x: torch.sparse.addmm(torch.ones(5, 1, dtype=x.dtype).expand(5, 4), w, x.T).T,
    "method": lambda w, x: w.matmul(x.T).T,
}
generator = torch.Generator().manual_seed(0)
W = torch.randn(5, 6, generator=generator).double() * (torch.rand(5, 6, generator=generator) > 0.4)
X = torch.randn(4, 6, generator=generator).double()


class Mixing(nn.Module):
    """A sparse layer, a ReLU and a dense head."""

    def __init__(self, layout, spelling, as_parameter):
        super().__init__()
        torch.manual_seed(0)
        w = LAYOUTS[layout](W)
        if as_parameter:
            self.w = nn.Parameter(w)
        else:
            self.register_buffer("w", w)
        self.spelling, self.head = SPELLINGS[spelling], nn.Linear(5, 3).double()

    def forward(self, x):
        return self.head(self.spelling(self.w, x).relu())


def epsilon_by_hand(model, shift):
    """R = a · Wᵀ(R/z), layer by layer, for class 0."""
    z = X @ W.T + shift
    a = z.relu()
    out = a @ model.head.weight[0] + model.head.bias[0]
    seed = out / (out + torch.where(out < 0, -1e-12, 1e-12))
    R = (a * model.head.weight[0] * seed[:, None]).detach()
    return X * ((R / (z + torch.where(z < 0, -1e-12, 1e-12))) @ W)


def asked(form, model, rule):
    return getattr(RelevancePropagator(model, rule), form)(X)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rules_that_only_multiply_by_a_sparse_weight(spelling, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Sparse CS")  # torch's own, of a layout in beta state
        model = Mixing(layout, spelling, as_parameter=spelling != "linear")
        expected = epsilon_by_hand(model, float(spelling == "sparse.addmm"))
        for form in ("trace", "bound_trace"):
            trace = asked(form, model, rules.Epsilon(1e-12))
            torch.testing.assert_close(trace.relevance(0), expected, rtol=1e-6, atol=1e-9)
            trace = asked(form, model, rules.Power(1, epsilon=1e-12, bias="keep"))
            torch.testing.assert_close(trace.relevance(0), expected, rtol=1e-6, atol=1e-9)
            report = trace.report()
            assert not report.unknown and len(report.rows) >= 2


REFUSING = {
    "Gamma": rules.Gamma(0.25),
    "GeneralizedGamma": rules.GeneralizedGamma(0.25),
    "ZPlus": rules.ZPlus(),
    "AlphaBeta": rules.AlphaBeta(2, 1),
    "AlphaBetaX": rules.AlphaBetaX(),
    "WSquare": rules.WSquare(),
    "Flat": rules.Flat(),
    "ZBox": rules.ZBox(-3, 3),
    "Power": rules.Power(2),
    "Beta": rules.Beta(0.5),
    "Epsilon": rules.Epsilon(bias="distribute"),
}


@pytest.mark.parametrize("rule", REFUSING)
@pytest.mark.parametrize("spelling", ["sparse.mm", "matmul", "linear"])
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_rules_that_take_a_weight_apart_are_refused_by_name(layout, spelling, rule):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = Mixing(layout, spelling, as_parameter=False)

        def forward(self, x):
            return self.mixing(x)

    for form in ("trace", "bound_trace"):
        with pytest.raises(InputError, match=rf"{rule}\(.*at 'mixing'.*sparse_{layout}.*to_dense\(\)"):
            asked(form, Block(), REFUSING[rule]).relevance(0)


def test_relevance_of_sparse_parameters_is_refused():
    trace = asked("trace", Mixing("coo", "sparse.mm", as_parameter=True), "epsilon")
    with pytest.raises(InputError, match="relevance of parameters.*sparse"):
        trace.parameter_relevance(0)


def test_gradient_methods_take_sparse_weights():
    model = Mixing("coo", "sparse.mm", as_parameter=True)
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(registry.get("grad_x_input", model).explain(X, 0), gradient * X)
