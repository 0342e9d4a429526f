"""What one explanation costs, counted in calls of convolution and matrix product: times are too noisy to assert."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saliency_lrp import LrpExplainer, RelevancePropagator, composites, rules
from saliency_lrp.composites import Composite


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
    # what entered the first convolution is not known to be non-negative: its two signs are convolved side by side
    assert explain == {"convolution": CONVOLUTIONS, "convolution_backward": CONVOLUTIONS, "mm": DENSE}


@pytest.mark.parametrize("norm", [False, True], ids=["conv-relu", "conv-bn-relu"])
def test_gamma_is_one_more_forward_behind_relu(norm):
    """Both denominators come from the convolution of z⁺, and a ReLU leaves one sign of outputs to explain."""
    trace = RelevancePropagator(network(norm), "epsilon_gamma_box").trace(IMAGE)
    # the pixels and their two bounds, which the first layer's rule looks at, are convolved side by side
    explain = counted(trace.relevance)
    assert explain == {"convolution": CONVOLUTIONS, "convolution_backward": CONVOLUTIONS, "mm": DENSE}


@pytest.mark.parametrize("norm", [False, True], ids=["conv-relu", "conv-bn-relu"])
def test_alpha_beta_is_one_more_forward_and_one_more_input_gradient_behind_relu(norm):
    """The denominator of the negative share is what the positive one leaves of the output."""
    composite = composites.get("epsilon_alpha2_beta1") | Composite([(composites.first(), rules.Epsilon())])
    torch.manual_seed(0)
    trace = RelevancePropagator(wide(norm), composite).trace(IMAGE)
    explain = counted(trace.relevance)
    assert explain == {"convolution": 1, "convolution_backward": 1 + 2, "mm": 1}


def wide(norm: bool) -> nn.Module:
    """Two convolutions, of which the second sums so many terms that no share is nearly all of it."""
    first, second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 8, 3, padding=1, bias=not norm)
    after = [nn.BatchNorm2d(8)] if norm else []
    return nn.Sequential(first, nn.ReLU(), second, *after, nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)).eval()


class Allocating(TorchDispatchMode):
    """Counts new tensors of at least ``size`` values."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.made: set[int] = set()
        self.kept: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.numel() >= self.size:
                place = t.untyped_storage().data_ptr()
                if place not in given and place not in self.made:
                    self.made.add(place)
                    self.kept.append(t)  # so that no other tensor gets its memory
        return out


@pytest.mark.parametrize(("composite", "each"), [("epsilon", 2), ("epsilon_plus", 2)])
@pytest.mark.parametrize("norm", [False, True], ids=["conv-relu", "conv-bn-relu"])
def test_a_layer_makes_as_few_tensors_as_it_can(norm, composite, each):
    """One for the denominators, which becomes R / z, and one for the relevance of the input."""

    def made(layers: int) -> int:
        torch.manual_seed(0)
        blocks = []
        for _ in range(layers):
            blocks += [nn.Conv2d(4, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(inplace=True)]
        model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
        trace = RelevancePropagator(model, composite).trace(torch.rand(1, 4, 16, 16))
        with Allocating(4 * 16 * 16) as allocating:
            trace.relevance(1)
        return len(allocating.made)

    assert made(6) - made(4) == 2 * each


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
    assert counted(lambda: trace.relevances([0, 1, 2, 3]))["convolution"] == CONVOLUTIONS


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
