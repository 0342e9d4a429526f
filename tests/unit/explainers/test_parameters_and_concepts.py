"""Relevance of parameters, of several targets at once, and conditional (concept) relevance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lrp import rules
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def test_parameter_relevance_is_the_share_of_each_weight(net: nn.Sequential) -> None:
    x = torch.randn(1, 4, dtype=torch.float64)
    trace = RelevancePropagator(net, rules.Epsilon(0.1)).trace(x)
    found = trace.parameter_relevance(target=1)
    h = net[1](net[0](x))
    y = net[2](h)
    sign = 1.0 if y[0, 1] >= 0 else -1.0
    c = y[0, 1] / (y[0, 1] + 0.1 * sign)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    expected[1] = h[0] * net[2].weight[1] * c
    torch.testing.assert_close(found["2.weight"], expected.detach())
    assert set(found) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close(found["2.bias"][1], (net[2].bias[1] * c).detach())
    # what passed the first layer's weights is what arrived at the input
    R = trace.relevance(target=1)
    torch.testing.assert_close(found["0.weight"].sum(0), R[0])


@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.AlphaBeta(2, 1), rules.GeneralizedGamma(0.5), rules.Flat()])
def test_parameter_relevance_sums_to_the_map(rule: rules.Rule) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 2))
    net = net.double().eval()
    net[1].running_mean.normal_()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    trace = RelevancePropagator(net, rule).trace(x)
    found = trace.parameter_relevance(target=0)
    assert found["0.weight"].shape == net[0].weight.shape
    torch.testing.assert_close(found["0.weight"].sum(), trace.relevance(target=0).sum())


def test_parameter_relevance_of_a_shared_and_transposed_weight() -> None:
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.w.T).relu() @ self.w

    net = Tied().double()
    x = torch.randn(2, 4, dtype=torch.float64)
    trace = RelevancePropagator(net, rules.Epsilon(1e-12)).trace(x)
    found = trace.parameter_relevance(target=2)
    assert list(found) == ["w"]
    # bias-free: both uses carry all of the relevance
    torch.testing.assert_close(found["w"].sum(), 2 * trace.output[:, 2].sum())


def test_conditional_relevance_adds_up_over_channels(net: nn.Sequential) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    trace = RelevancePropagator(net, rules.Epsilon(1e-9)).trace(x)
    whole = trace.relevance(target=0)
    parts = [trace.relevance(target=0, condition={"1": k}) for k in range(6)]
    torch.testing.assert_close(sum(parts), whole)
    h = net[1](net[0](x))
    expected = (h[:, 2] * net[2].weight[0, 2]).detach()  # relevance of hidden unit 2
    middle = trace.layer_relevance("0", target=0, condition={"1": [2]})
    others = [k for k in range(6) if k != 2]
    assert not middle[:, others].any()
    torch.testing.assert_close(middle[:, 2], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(trace.relevance(target=0), whole)  # no hook is left behind


def test_conditional_relevance_at_a_folded_batch_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    net = net.double().eval()
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    trace = RelevancePropagator(net).trace(x)
    maps = [trace.relevance(0, condition={"0": k}) for k in range(3)]
    torch.testing.assert_close(sum(maps), trace.relevance(0))
    mask = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    torch.testing.assert_close(trace.relevance(0, condition={"0": mask}), maps[0])
    torch.testing.assert_close(trace.relevance(0, condition={"2": lambda R: R * mask}), maps[0])


def test_a_channel_that_is_not_there(net: nn.Sequential) -> None:
    trace = RelevancePropagator(net).trace(torch.randn(1, 4, dtype=torch.float64))
    with pytest.raises(InputError, match="'1' has 6 channels"):
        trace.relevance(condition={"1": 6})
    with pytest.raises(InputError, match="unknown module"):
        trace.relevance(condition={"nosuch": 0})


def test_a_list_of_targets_gives_several_maps(net: nn.Sequential) -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    trace = RelevancePropagator(net, rules.ZPlus()).trace(x)
    maps = trace.relevance(target=[0, 2, None, (1, 2)])
    assert maps.shape == (4, 2, 4)
    for one, target in zip(maps, (0, 2, None, (1, 2)), strict=True):
        torch.testing.assert_close(one, trace.relevance(target=target))
    # one class per item is a tuple or a tensor
    torch.testing.assert_close(maps[3][0], trace.relevance(target=1)[0])
    torch.testing.assert_close(maps[3], trace.relevance(target=torch.tensor([1, 2])))
    with pytest.raises(InputError, match="empty list"):
        trace.relevance(target=[])
