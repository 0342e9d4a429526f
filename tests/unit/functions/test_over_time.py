"""Recurrent layers at once over time: the same relevance as step by step, and no step is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite, kind, op
from saliency_lrp.functions.recurrent import CellSite, LayersSite
from saliency_lrp.propagator import RelevancePropagator
from tests.unit.functions.test_recurrent import F64, VARIANTS, Cells, Everything, LastOfPacked, N, T, initial_states

COMPOSITES = {
    "epsilon": lambda: composites.get("epsilon"),
    "auto": lambda: composites.get("auto"),  # ε in units of rms(z)
    "arras": lambda: composites.get("arras", epsilon=0.02),
    "zero": lambda: Composite([(kind("linear"), rules.ZeroRule()), (kind("sum"), rules.Norm(0.0))]),
}


def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a layer that is taken apart into steps fails."""

    def fail(*_: Tensor) -> None:
        raise AssertionError("the steps were taken one by one")

    for site in (LayersSite, CellSite):
        monkeypatch.setattr(site, "expand", fail)


def inputs_of(layer: nn.RNNBase) -> list[Tensor]:
    x = torch.randn((N, T, 3) if layer.batch_first else (T, N, 3), dtype=F64)
    return [x, *initial_states(layer)]


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_step_by_step(variant, composite, monkeypatch):
    """An account takes the steps one by one; without one nothing does."""
    net = Everything(VARIANTS[variant]().double())
    propagator = RelevancePropagator(net, COMPOSITES[composite]())
    inputs = inputs_of(net.layer)
    trace = propagator.trace(*inputs)
    seed = torch.randn(trace.output.shape, dtype=F64)
    want = trace.relevance(seed=seed, account=True)
    no_steps(monkeypatch)
    for one in (trace, propagator.bound_trace(*inputs)):
        for R, other in zip(one.relevance(seed=seed), want, strict=True):
            torch.testing.assert_close(R, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


@pytest.mark.parametrize("variant", ["lstm projected", "gru layers both ways", "lstm layers both ways"])
def test_packed_with_several_targets(variant, monkeypatch):
    """Maps of several targets are one pass over time, also where sequences have lengths of their own."""
    net = LastOfPacked(VARIANTS[variant]().double(), enforce_sorted=False)
    x, lengths = torch.randn(4, T, 3, dtype=F64), torch.tensor([2, 5, 1, 5])
    trace = RelevancePropagator(net, "epsilon").trace(x, lengths)
    want = torch.stack([trace.relevance(target=k, account=True) for k in (0, 3, -1)])
    no_steps(monkeypatch)
    several = RelevancePropagator(net, "epsilon").trace(x, lengths).relevances([0, 3, -1])
    torch.testing.assert_close(torch.stack(list(several)), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_cells(make, monkeypatch):
    net = Cells(make(3, 4).double()).double()
    x = torch.randn(T, N, 3, dtype=F64)
    trace = RelevancePropagator(net, "arras").trace(x)
    want = trace.relevance(target=1, account=True)
    no_steps(monkeypatch)
    torch.testing.assert_close(trace.relevance(target=1), want, rtol=1e-9, atol=1e-12)


class Halved(rules.Epsilon):
    """A rule of the user's own, which nothing is known of."""

    def relevance(self, site, R):
        return tuple(None if r is None else r / 2 for r in super().relevance(site, R))


@pytest.mark.parametrize(
    "rows",
    [
        [(kind("linear"), Halved())],
        [(kind("linear"), rules.ZPlus())],
        [(kind("linear"), rules.Epsilon(1e-3, bias="distribute"))],
        [(kind("linear"), rules.Epsilon(1e-3, bias="zero"))],
        [(kind("gate"), rules.Uniform())],
        [(op("tanh"), rules.Gradient())],
        [(kind("sum"), rules.Stop())],
    ],
    ids=["own rule", "z-plus", "distribute", "bias zero", "gates share", "gradient of tanh", "stop"],
)
def test_other_rules_take_the_steps(rows):
    """With an account (steps) and without: what cannot be batched over time is not."""
    net = Everything(nn.LSTM(3, 4, num_layers=2).double())
    trace = RelevancePropagator(net, Composite(rows)).trace(*inputs_of(net.layer))
    want = trace.relevance(target=0, account=True)
    for got, other in zip(trace.relevance(target=0), want, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-12, atol=1e-14)
    default = RelevancePropagator(net, "epsilon").trace(*inputs_of(net.layer)).relevance(target=0)
    assert not torch.allclose(default[0], want[0])
