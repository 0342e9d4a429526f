"""The same network in other words: every spelling has the map of the plain one, in both forms of the engine.

The right value is that of the plain spelling, or gradient times input, which LRP-ε is on networks of linear maps and
ReLUs without biases.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import LrpExplainer, RelevancePropagator

Spelling = Callable[..., Tensor]

PLACES = torch.tensor([1, 0, 3, 2, 2, 0, 5, 5])
VECTOR = torch.linspace(-1, 2, 8, dtype=torch.float64)
MATRIX = torch.linspace(-1, 2, 64, dtype=torch.float64).sin().view(8, 8)


def both_forms(model: nn.Module, x: Tensor, composite: str = "epsilon") -> list[Tensor]:
    """The map for class 1, in the reference form and in the coefficient form."""
    model.eval()
    traced = RelevancePropagator(model, composite).trace(x)
    return [traced.relevance(1), LrpExplainer(model, composite).explain(x, 1)]


def close(maps: list[Tensor], right: Tensor, tolerance: float = 1e-5) -> None:
    for R in maps:
        assert float((R - right).abs().max()) <= tolerance * float(right.abs().max())


class Middle(nn.Module):
    """A function of an activation between two layers without biases."""

    def __init__(self, run: Spelling) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.a, self.b = (nn.Linear(n, m, bias=False, dtype=torch.float64) for n, m in ((6, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.run(self.a(x)))


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return (torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0] * leaf).detach()


# ------------------------------------------------------------------------------------------- buffers that were filled


def filled(v: Tensor) -> Tensor:
    """A buffer of zeros that an activation was added into."""
    return torch.zeros(len(v), 8, dtype=v.dtype).index_add_(1, PLACES, v)


READ: dict[str, Spelling] = {
    "amax": lambda q: q + q.amax(1, keepdim=True),
    "norm": lambda q: q + q.norm(dim=1, keepdim=True),
    "abs": lambda q: q.abs(),
    "leaky_relu": F.leaky_relu,
    "maximum": lambda q: torch.maximum(q, q.flip(1)),
    "cummax": lambda q: q.cummax(1)[0],
    "index_add": lambda q: torch.zeros_like(q).index_add_(1, PLACES, q),
    "scatter_reduce": lambda q: q.scatter_reduce(1, PLACES.expand(len(q), 8), q.flip(1), "amax"),
    "index_reduce": lambda q: q.index_reduce(1, PLACES, q.flip(1), "mean"),
    "baddbmm": lambda q: torch.baddbmm(q[:, None], q[:, None].relu(), MATRIX.expand(len(q), 8, 8), alpha=2)[:, 0],
    "linear": lambda q: q @ MATRIX,
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("read", READ)
def test_a_buffer_that_was_filled_can_be_read_by_any_function(read: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = Middle(lambda v: READ[read](filled(v)))
    close(both_forms(model, x), gradient_times_input(model, x))


# ------------------------------------------------------------------------------------------------------------- gates


class Squeezed(nn.Module):
    """Squeeze and excitation: ``join`` weighs channels by a sigmoid, or what ``gate`` is set to."""

    gate: Spelling

    def __init__(self, join: Spelling) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.join, self.gate = join, torch.sigmoid
        self.c, self.s, self.h = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.c(x).relu()
        gate = self.gate(self.s(z.mean((2, 3))))
        return self.h(self.join(z, gate).mean((2, 3)))


WEIGHED: dict[str, Spelling] = {
    "einsum": lambda z, g: torch.einsum("bchw,bc->bchw", z, g),
    "einsum, gate first": lambda z, g: torch.einsum("bc,bchw->bchw", g, z),
    "einsum, dots": lambda z, g: torch.einsum("bc...,bc->bc...", z, g),
    "einsum, other order": lambda z, g: torch.einsum("bchw,bc->bhwc", z, g).movedim(-1, 1),
    "addcmul": lambda z, g: torch.addcmul(torch.zeros_like(z), z, g[:, :, None, None]),
    "addcmul_": lambda z, g: torch.zeros_like(z).addcmul_(g[:, :, None, None], z),
    "lerp": lambda z, g: torch.lerp(torch.zeros_like(z), z, g[:, :, None, None].expand_as(z)),
}


@pytest.mark.parametrize("composite", ["auto", "epsilon", "lrp.z_plus", "cp_lrp"])
@pytest.mark.parametrize("join", WEIGHED)
def test_a_gate_weighs_by_any_product(join: str, composite: str) -> None:
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, spelled = Squeezed(lambda z, g: z * g[:, :, None, None]), Squeezed(WEIGHED[join])
    close(both_forms(spelled, x, composite), both_forms(plain, x, composite)[0])


HARD: dict[str, Spelling] = {
    "maximum, minimum": lambda x: torch.minimum(torch.maximum(x + 3, torch.tensor(0.0)), torch.tensor(6.0)) / 6,
    "minimum, maximum": lambda x: torch.maximum(torch.tensor(0.0), torch.minimum(x / 6 + 0.5, torch.tensor(1.0))),
    "fmax, fmin": lambda x: torch.fmin(torch.fmax(x + 3, torch.tensor(0.0)), torch.tensor(6.0)) * (1 / 6),
    "max, clamp_max": lambda x: torch.max(x + 3, torch.tensor(0.0)).clamp_max(6) / 6,
    "relu, minimum": lambda x: torch.minimum(F.relu(3 + x), torch.tensor(6.0)) / 6,
}


@pytest.mark.parametrize("composite", ["auto", "epsilon", "cp_lrp"])
@pytest.mark.parametrize("gate", HARD)
def test_a_hard_sigmoid_by_the_larger_and_the_smaller(gate: str, composite: str) -> None:
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, spelled = Squeezed(lambda z, g: z * g[:, :, None, None]), Squeezed(lambda z, g: z * g[:, :, None, None])
    plain.gate, spelled.gate = F.hardsigmoid, HARD[gate]
    close(both_forms(spelled, x, composite), both_forms(plain, x, composite)[0])


def test_the_number_beside_max_is_an_axis() -> None:
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = Middle(lambda v: torch.min(torch.max(v.view(-1, 8, 1) + VECTOR[:2], 2)[0], 1)[0][:, None].sigmoid() * v)
    plain = Middle(lambda v: (v.view(-1, 8, 1) + VECTOR[:2]).amax(2).amin(1)[:, None].sigmoid() * v)
    close(both_forms(model, x), both_forms(plain, x)[0])


PRODUCTS: dict[str, tuple[Spelling, Spelling]] = {
    "outer product": (
        lambda v: torch.einsum("bi,bj->bij", v, v.flip(1)).sum(2),
        lambda v: (v[:, :, None] * v.flip(1)[:, None]).sum(2),
    ),
    "a constant": (lambda v: torch.einsum("bi,i->bi", v, VECTOR), lambda v: v * VECTOR),
    "a constant beside": (
        lambda v: torch.einsum("bi,j->bij", v, VECTOR).sum(1),
        lambda v: (v[:, :, None] * VECTOR).sum(1),
    ),
    "the same axis twice": (lambda v: torch.einsum("bi,jj->bi", v, MATRIX), lambda v: v * MATRIX.trace()),
    "a sum beside": (lambda v: torch.einsum("bi,ij->bi", v, MATRIX), lambda v: v * MATRIX.sum(1)),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_einsum_that_sums_over_nothing_is_a_product(product: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spelled, plain = map(Middle, PRODUCTS[product])
    close(both_forms(spelled, x), both_forms(plain, x)[0])


# ------------------------------------------------------------------------------------------------ frozen batch norms


class Frozen(nn.Module):
    """A convolution, something that moves its values, and a batch norm with constant statistics."""

    def __init__(self, axes: int, between: str, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.c1, self.c2, self.o = conv(2, 4, 2), conv(4, 4, 2), nn.Linear(4, 3)
        self.axes, self.between, self.spelling = axes, between, spelling
        for name, low in (("w", 0.5), ("b", -1.0), ("m", -1.0), ("v", 0.5)):
            self.register_buffer(name, torch.rand(4) + low)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = BETWEEN[self.between](self.c1(x), self.axes)
        w, b, m, v = (t.view(-1, *(1,) * self.axes) for t in (self.w, self.b, self.m, self.v))
        h = SPELLINGS[self.spelling](h, w, b, m, v)
        return self.o(self.c2(h.relu()).relu().flatten(2).mean(2))


BETWEEN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nothing": lambda h, axes: h,
    "max pooling": lambda h, axes: (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1](h, 2, 1),
    "cat": lambda h, axes: torch.cat([h[:, :2], h[:, 2:].relu()], 1),
    "relu": lambda h, axes: h.relu(),
}

SPELLINGS: dict[str, Callable[..., Tensor]] = {
    "batch_norm": lambda h, w, b, m, v: F.batch_norm(h, *(t.flatten() for t in (m, v, w, b)), eps=0.0),
    "scale and shift": lambda h, w, b, m, v: h * (w / v.sqrt()) + (b - m * w / v.sqrt()),
    "expanded": lambda h, w, b, m, v: h * (w / v.sqrt()).expand_as(h) + (b - m * w / v.sqrt()).expand_as(h),
    "step by step": lambda h, w, b, m, v: (h - m) / v.sqrt() * w + b,
    "addcmul": lambda h, w, b, m, v: torch.addcmul(b - m * w / v.sqrt(), h, w / v.sqrt()),
    "einsum": lambda h, w, b, m, v: torch.einsum("nc...,c->nc...", h - m, (w / v.sqrt()).flatten()) + b,
}


@pytest.mark.parametrize("composite", ["auto", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_frozen_batch_norm_stands_where_a_batch_norm_does(axes: int, between: str, composite: str) -> None:
    x = torch.randn(2, 2, *[5] * axes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    right = both_forms(Frozen(axes, between, "batch_norm"), x, composite)[0]
    for spelling in SPELLINGS:
        close(both_forms(Frozen(axes, between, spelling), x, composite), right, 1e-4)


@pytest.mark.parametrize("composite", ["guided_backprop", "deconvnet"])
def test_a_relu_by_the_largest_of_a_stack(composite: str) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spelled = Middle(lambda v: torch.stack([v, torch.zeros_like(v)]).amax(0))
    close(both_forms(spelled, x, composite), both_forms(Middle(F.relu), x, composite)[0])
