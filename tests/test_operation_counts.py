"""What one explanation costs, counted in calls of convolution and matrix product: times are too noisy to assert."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from saliency_lrp import LrpExplainer, RelevancePropagator


class Counting(TorchDispatchMode):
    """Counts the heavy operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"convolution", "convolution_backward", "addmm", "mm", "bmm", "matmul", "native_batch_norm"}:
            self.calls[name] += 1
            if name == "convolution_backward":
                assert args[-1] == [True, False, False], "gradients of weight or bias were computed"
        return func(*args, **(kwargs or {}))


def counted(run) -> dict[str, int]:
    with Counting() as counting:
        run()
    return dict(counting.calls)


def network(norm: bool) -> nn.Module:
    """Three convolutions and two dense layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 4), (4, 6)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers += [nn.ReLU()]
    layers += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 5)]
    return nn.Sequential(*layers).eval()


CONVOLUTIONS, DENSE = 3, 2
IMAGE = torch.rand(2, 3, 8, 8)  # not negative


@pytest.mark.parametrize("norm", [False, True], ids=["conv-relu", "conv-bn-relu"])
def test_epsilon_is_one_forward_and_one_input_gradient(norm):
    model = network(norm)
    explain = counted(lambda: LrpExplainer(model, "epsilon").explain(IMAGE))
    expected = {"convolution": CONVOLUTIONS, "addmm": DENSE, "convolution_backward": CONVOLUTIONS, "mm": DENSE}
    assert {name: explain[name] for name in expected} == expected
    assert set(explain) <= {*expected, "native_batch_norm"}
    assert explain.get("native_batch_norm", 0) == 0 or explain["native_batch_norm"] == CONVOLUTIONS


@pytest.mark.parametrize("norm", [False, True], ids=["conv-relu", "conv-bn-relu"])
def test_a_plain_gradient_makes_as_many_calls(norm):
    model = network(norm).requires_grad_(False)

    def gradient():
        x = IMAGE.clone().requires_grad_(True)
        torch.autograd.grad(model(x)[:, 0].sum(), x)

    explain = counted(lambda: LrpExplainer(model, "epsilon").explain(IMAGE, 0))
    heavy = ("convolution", "convolution_backward", "addmm", "mm")
    plain = counted(gradient)
    assert {name: explain[name] for name in heavy} == {name: plain[name] for name in heavy}


@pytest.mark.parametrize("norm", [False, True], ids=["conv-relu", "conv-bn-relu"])
def test_z_plus_is_one_more_forward_behind_relu(norm):
    trace = RelevancePropagator(network(norm), "epsilon_plus").trace(IMAGE)
    explain = counted(trace.relevance)
    # what entered the first convolution is not known to be non-negative: its two signs are convolved apart
    assert explain == {"convolution": CONVOLUTIONS + 1, "convolution_backward": CONVOLUTIONS + 1, "mm": DENSE}


def test_another_explanation_of_a_trace_makes_no_forward():
    trace = RelevancePropagator(network(True), "epsilon").trace(IMAGE)
    trace.relevance(0)
    assert counted(lambda: trace.relevance(1)) == {"convolution_backward": CONVOLUTIONS, "mm": DENSE}


def test_several_targets_are_one_backward_pass():
    trace = RelevancePropagator(network(True), "epsilon").trace(IMAGE)
    several = counted(lambda: trace.relevances([0, 1, 2, 3]))
    assert several["convolution_backward"] == CONVOLUTIONS
    assert set(several) == {"convolution_backward", "mm"} and several["mm"] <= DENSE
    trace = RelevancePropagator(network(True), "epsilon_plus").trace(IMAGE)
    assert counted(lambda: trace.relevances([0, 1, 2, 3]))["convolution"] == CONVOLUTIONS + 1


def test_layers_come_with_the_input():
    trace = RelevancePropagator(network(True), "epsilon").trace(IMAGE)
    both = counted(lambda: trace.all_relevance(["0", "3", "6"], 1))
    assert both == {"convolution_backward": CONVOLUTIONS, "mm": DENSE}
    R, layers = trace.all_relevance(["3"], 1)
    assert torch.equal(R, trace.relevance(1)) and torch.equal(layers["3"], trace.layer_relevance("3", 1))


# ------------------------------------------------------------------------------------------------ several maps at once


class Branches(nn.Module):
    """Residual sum, gate, transposed and padded convolution, in-place ReLU, recurrence, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.recurrent = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(self.norm(self.conv(x)))
        y = y + y.mean((2, 3), keepdim=True)
        z = self.up(y)
        z = z * torch.sigmoid(z.mean((2, 3), keepdim=True))
        tokens = nn.functional.max_pool2d(z, 4).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head(self.recurrent(tokens)[0][:, -1])


COMPOSITES = ["auto", "epsilon", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat", "cp_lrp", "b_rule"]


@pytest.mark.parametrize("composite", [*COMPOSITES, "guided_backprop", "lrp.sequential_preset_b_flat"])
def test_several_maps_at_once_equal_single_ones(composite):
    trace = RelevancePropagator(Branches().double().eval(), composite).trace(torch.randn(3, 3, 8, 8).double())
    targets = [0, (1, 2, 3), None]
    for several, target in zip(trace.relevances(targets), targets, strict=True):
        single = trace.relevance(target)
        assert single.abs().max() > 0
        torch.testing.assert_close(several, single, rtol=1e-9, atol=1e-12)
