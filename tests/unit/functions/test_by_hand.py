"""Hard sigmoids, batch norms and biases that models spell by hand: the same function, so the same map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import RelevancePropagator
from tests.helpers.tiny import close as near

F64 = torch.float64


class Net(nn.Module):
    """A function of an input and of layers, as a model."""

    def __init__(self, run: Callable, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def linear(n: int, m: int, bias: bool = False) -> nn.Linear:
    generator = torch.Generator().manual_seed(n * 10 + m)
    layer = nn.Linear(n, m, bias=bias)
    for p in layer.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return layer


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=F64)


def relevance(net: nn.Module, x: Tensor, composite: str = "epsilon") -> Tensor:
    trace = RelevancePropagator(net, composite, unknown="error").trace(x)
    with torch.no_grad():
        assert torch.equal(trace.output, net(x.clone()))
    R = trace.relevance(1)
    close(RelevancePropagator(net, composite, unknown="error").bound_trace(x).relevance(1), R)  # the other form
    return R


close = partial(near, tolerance=1e-6)


# ------------------------------------------------------------------------------------------------ hard sigmoids

HARD_SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6(x + 3) / 6": lambda x: F.relu6(x + 3) / 6,
    "relu6(3 + x) * 1/6": lambda x: F.relu6(3.0 + x) * (1 / 6),
    "nn.ReLU6(inplace=True)": lambda x: nn.ReLU6(inplace=True)(x + 3) / 6,
    "clamp": lambda x: (x + 3).clamp(0, 6) / 6,
    "clip, div": lambda x: torch.clip(x.add(3), 0, 6).div(6),
    "clamp_": lambda x: (x + 3).clamp_(0, 6).div_(6),
    "in place on a copy": lambda x: x.clone().add_(3).clamp_(min=0, max=6).mul_(1 / 6),
    "hardtanh(0, 6)": lambda x: F.hardtanh(x + 3, 0.0, 6.0) / 6,
    "scaled first": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "scaled before": lambda x: torch.clamp((x + 3) / 6, 0, 1),
    "two bounds": lambda x: F.relu(x + 3).clamp_max(6) / 6,
    "two bounds the other way": lambda x: F.relu((x + 3).clamp(max=6)) / 6,
    "symmetric, shifted": lambda x: (F.hardtanh(x, -3.0, 3.0) + 3) / 6,
    "tensors without axes": lambda x: (
        (x + torch.tensor(3.0, dtype=F64)).clamp(torch.tensor(0.0), torch.tensor(6.0)) / 6
    ),
    "from below": lambda x: F.relu6(x - -3) / 6,
    "of a turned sign": lambda x: 1 - F.relu6(3 - x) / 6,
}


@pytest.mark.parametrize("name", HARD_SIGMOIDS)
def test_a_hard_sigmoid_by_hand_is_a_gate(name):
    """The signal gets all: gradient × input of the net whose gate is a constant."""
    gate = HARD_SIGMOIDS[name]

    def net(detach: bool) -> Net:
        def run(m: Net, x: Tensor) -> Tensor:
            g = gate(m.s(x))
            return m.o(m.a(x).relu() * (g.detach() if detach else g))

        return Net(run, a=linear(6, 8), s=linear(6, 8), o=linear(8, 3))

    x = values(4, 6).requires_grad_()
    (g,) = torch.autograd.grad(net(True)(x)[:, 1].sum(), x)
    close(relevance(net(False), x.detach()), (g * x).detach())


@pytest.mark.parametrize("composite", ["epsilon", "auto", "cp_lrp", "gradient"])
@pytest.mark.parametrize("name", [n for n in HARD_SIGMOIDS if n not in ("in place on a copy", "of a turned sign")])
def test_a_hard_sigmoid_by_hand_is_the_function(name, composite):
    """As an activation of its own, and in a hard swish."""

    def net(gate: Callable) -> Net:
        def run(m: Net, x: Tensor) -> Tensor:
            h = m.b(gate(m.a(x)))
            return m.o(h * gate(h))

        return Net(run, a=linear(6, 8, True), b=linear(8, 8, True), o=linear(8, 3))

    x = values(4, 6)
    right = RelevancePropagator(net(F.hardsigmoid), composite).trace(x).relevance(1)
    close(relevance(net(HARD_SIGMOIDS[name]), x, composite), right)


def test_relevance_passes_a_hard_sigmoid_unchanged():
    """In closed form: h W, then x Aᵀ (R / a)."""
    a, o, x = linear(6, 8).double(), linear(8, 3).double(), values(4, 6)
    net = Net(lambda m, x: m.o(F.relu6(m.a(x) + 3) / 6), a=a, o=o)
    z = a(x).detach()
    R = F.hardsigmoid(z) * o.weight[1].detach()
    close(relevance(net, x), x * ((R / z) @ a.weight.detach()))


@pytest.mark.parametrize(
    "bound",
    [F.relu6, lambda x: x.clamp(-2, 2), lambda x: F.relu(x + 3), lambda x: (x - 7).clamp(0, 6)],
    ids=["relu6", "clamp", "one bound", "never between"],
)
def test_what_is_no_hard_sigmoid_is_a_signal(bound):
    """Two signals share alike."""
    net = Net(lambda m, x: m.o(torch.tanh(m.a(x)) * bound(m.b(x))), a=linear(6, 8), b=linear(6, 8), o=linear(8, 3))
    trace = RelevancePropagator(net, "epsilon").trace(values(4, 6))
    (site,) = [s for s in trace.sites if s.op == "mul"]
    assert not site.gates


def test_an_image_that_is_brought_to_its_range_is_no_gate():
    net = Net(lambda m, x: m.o((x * 0.5 + 0.5).clamp(0, 1) * torch.tanh(m.a(x))), a=linear(6, 6), o=linear(6, 3))
    trace = RelevancePropagator(net, "epsilon").trace(values(4, 6))
    assert not any(site.gates for site in trace.sites)


# ------------------------------------------------------------------------------------------------ batch norms

#: Weight, bias, mean, variance and eps, shaped to broadcast, and what a frozen batch norm makes of them.
FROZEN: dict[str, Callable] = {
    "x * scale + shift": lambda x, w, b, m, v, e: x * (w * (v + e).rsqrt()) + (b - m * w * (v + e).rsqrt()),
    "shift first": lambda x, w, b, m, v, e: (x - m) / torch.sqrt(v + e) * w + b,
    "scale on the left": lambda x, w, b, m, v, e: b + w * ((x - m) * (v + e).rsqrt()),
    "functions": lambda x, w, b, m, v, e: torch.add(torch.mul(torch.div(torch.sub(x, m), (v + e).sqrt()), w), b),
    "in place": lambda x, w, b, m, v, e: x.sub_(m).div_((v + e).sqrt()).mul_(w).add_(b),
    "in place, scale first": lambda x, w, b, m, v, e: x.mul_(w * (v + e).rsqrt()).add_(b - m * w * (v + e).rsqrt()),
    "operators in place": lambda x, w, b, m, v, e: operators_in_place(x, w, b, m, v, e),
    "addcmul": lambda x, w, b, m, v, e: torch.addcmul(b - m * w * (v + e).rsqrt(), x, w * (v + e).rsqrt()),
    "turned": lambda x, w, b, m, v, e: b - (m - x) * (w / (v + e).sqrt()),
    "a number beside": lambda x, w, b, m, v, e: 2 * (x * (w * (v + e).rsqrt() / 2) + (b - m * w * (v + e).rsqrt()) / 2),
    "functional": lambda x, w, b, m, v, e: F.batch_norm(x, *(t.reshape(-1) for t in (m, v, w, b)), False, 0.1, e),
}


def operators_in_place(x, w, b, m, v, e):
    x -= m
    x *= w / (v + e).sqrt()
    x += b
    return x


class Frozen(nn.Module):
    """A batch norm in eval mode by hand."""

    def __init__(self, norm: nn.Module, spelling: Callable, axes: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.eps, self.spelling, self.axes = norm.eps, spelling, axes

    def forward(self, x: Tensor) -> Tensor:
        tensors = (self.weight, self.bias, self.running_mean, self.running_var)
        return self.spelling(x, *(t.reshape(-1, *(1,) * self.axes) for t in tensors), self.eps)


def settled(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)

    def drawn(low: float, high: float) -> Tensor:
        return torch.rand(norm.num_features, generator=generator) * (high - low) + low

    norm.running_mean.copy_(drawn(-0.5, 0.5))
    norm.running_var.copy_(drawn(0.5, 2))
    norm.weight.data, norm.bias.data = drawn(-1.5, 1.5), drawn(-0.5, 0.5)
    return norm


COMPOSITES = ["epsilon", "auto", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"]
#: Layer, batch norm, shape of the input.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable, tuple[int, ...]]] = {
    "Conv2d": (lambda: nn.Conv2d(3, 6, 3), nn.BatchNorm2d, (2, 3, 7, 7)),
    "Conv2d without bias": (lambda: nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d, (2, 3, 7, 7)),
    "Conv1d": (lambda: nn.Conv1d(3, 6, 3), nn.BatchNorm1d, (2, 3, 9)),
    "Conv3d": (lambda: nn.Conv3d(3, 6, 2), nn.BatchNorm3d, (2, 3, 4, 4, 4)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 6, 2), nn.BatchNorm2d, (2, 3, 4, 4)),
    "Linear": (lambda: nn.Linear(5, 6), nn.BatchNorm1d, (4, 5)),
}


def normed_net(make: Callable[[], nn.Module], norm: nn.Module, after_relu: bool) -> nn.Module:
    torch.manual_seed(0)
    layer, head = make(), nn.LazyLinear(3)
    parts = [layer, nn.ReLU(), norm] if after_relu else [layer, norm, nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), head).double().eval()


def compare(spelling: str, layer: str, composite: str, after_relu: bool = False) -> None:
    make, kind, shape = LAYERS[layer]
    x = values(*shape)
    norm = settled(kind(6))
    nets = [normed_net(make, n, after_relu) for n in (norm, Frozen(norm, FROZEN[spelling], x.dim() - 2))]
    for net in nets:
        torch.manual_seed(1)
        net(x)  # makes the lazy layer
    nets[1][-1].load_state_dict(nets[0][-1].state_dict())
    right, found = (RelevancePropagator(net, composite, unknown="error").trace(x) for net in nets)
    with torch.no_grad():
        assert torch.equal(found.output, nets[1](x.clone()))
    close(found.relevance(1), right.relevance(1))
    close(RelevancePropagator(nets[1], composite).bound_trace(x).relevance(1), right.relevance(1))
    assert found.report().conserved == pytest.approx(right.report().conserved, rel=1e-6)


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("spelling", FROZEN)
def test_a_frozen_batch_norm_folds(spelling, composite):
    compare(spelling, "Conv2d", composite)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("spelling", ["x * scale + shift", "shift first"])
def test_a_frozen_batch_norm_folds_into_any_layer(spelling, layer):
    compare(spelling, layer, "epsilon_plus")


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("spelling", [s for s in FROZEN if "in place" not in s])
def test_a_frozen_batch_norm_after_an_activation(spelling, composite):
    compare(spelling, "Conv2d", composite, after_relu=True)


def test_relevance_of_a_layer_before_a_frozen_batch_norm():
    norm = settled(nn.BatchNorm2d(6))
    nets = [normed_net(LAYERS["Conv2d"][0], n, False) for n in (norm, Frozen(norm, FROZEN["shift first"], 2))]
    x = values(2, 3, 7, 7)
    for net in nets:
        torch.manual_seed(1)
        net(x)
    nets[1][-1].load_state_dict(nets[0][-1].state_dict())
    right, found = (RelevancePropagator(n, "epsilon_plus").trace(x).layer_relevance("0", 1) for n in nets)
    close(found, right)


@pytest.mark.parametrize("composite", ["epsilon", "lrp.z_plus", "epsilon_alpha2_beta1", "auto"])
def test_a_bias_by_hand_is_the_layers(composite):
    layer, o, x = linear(6, 8, True), linear(8, 3), values(4, 6)
    right = relevance(Net(lambda m, x: m.o(m.a(x).relu()), a=layer, o=o), x, composite)
    for f in (
        lambda m, x: m.o((x @ m.a.weight.T + m.a.bias).relu()),
        lambda m, x: m.o((m.a.bias + F.linear(x, m.a.weight)).relu()),
        lambda m, x: m.o(F.linear(x, m.a.weight).add_(m.a.bias).relu_()),
        lambda m, x: m.o(torch.addmm(m.a.bias, x, m.a.weight.T).relu()),
        lambda m, x: m.o(torch.addmm(m.a.bias / 2, x, m.a.weight.T / 3, alpha=3, beta=2).relu()),
        lambda m, x: m.o(torch.baddbmm(m.a.bias[None, None], x[None], m.a.weight.T[None])[0].relu()),
    ):
        close(relevance(Net(f, a=layer, o=o), x, composite), right)


def test_the_gain_of_a_layer_norm_by_hand_is_no_batch_norm():
    """Over channels of images, as ConvNeXt writes it: as ``F.layer_norm`` with channels last."""
    gain, shift = values(6), values(6)

    def by_hand(m: Net, x: Tensor) -> Tensor:
        h = m.c(x).relu()
        h = (h - h.mean(1, keepdim=True)) / torch.sqrt(h.var(1, unbiased=False, keepdim=True) + 1e-6)
        return m.o((gain[:, None, None] * h + shift[:, None, None]).flatten(1))

    torch.manual_seed(0)
    net = Net(by_hand, c=nn.Conv2d(3, 6, 3), o=nn.Linear(6 * 9, 3))
    trace = RelevancePropagator(net, "auto").trace(values(2, 3, 5, 5))
    assert [s.family for s in trace.sites if s.kind == "linear"] == ["convolution", "dense"]
