"""Every function of the table, in every spelling, against closed-form answers in float64.

Three oracles cover the kinds whose relevance has one form: what an element-wise function gets, passes (`activation`);
values that only move carry relevance where autograd carries it (`routing`); a function that is linear in its inputs
shares in proportion, ``x · Jᵀ(R / z)`` (`sum`). Every name in those tables is tried. Other kinds have a formula each.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import functions, rules
from saliency_lrp.functions import HANDLERS
from saliency_lrp.functions.activations import activation
from saliency_lrp.functions.facts import TABLE
from saliency_lrp.functions.routing import constant, routing
from saliency_lrp.functions.sums import sum_like
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import Doubled

aten = torch.ops.aten
EXACT = rules.Epsilon(1e-14)


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, f: Callable) -> None:
        super().__init__()
        self.f = f

    def forward(self, *x: Tensor) -> Tensor:
        return self.f(*x)


def explain(f: Callable, *x: Tensor, R: Tensor | None = None, unknown: str = "error") -> tuple[list[Tensor], Tensor]:
    """Relevance of each input, from a fixed relevance of the output, which must be the plain function's own."""
    with torch.no_grad():
        own = f(*(t.clone() for t in x))
    before = [t.clone() for t in x]
    trace = RelevancePropagator(Function(f), EXACT, unknown=unknown).trace(*x)
    assert torch.equal(trace.output, own)
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True)), "the caller's tensor was written into"
    R = seed_like(own) if R is None else R
    maps = trace.relevance(lambda out: out, seed=R)
    return list(maps) if isinstance(maps, tuple) else [maps], own


def seed_like(out: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def transposed(f: Callable, x: Tensor, c: Tensor) -> Tensor:
    """Jᵀ c by autograd on the plain function."""
    leaf = x.clone().requires_grad_(True)
    return torch.autograd.grad(f(leaf.clone()), leaf, c)[0]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # defaults stabilise by 1e-12


def values(*shape: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low


def find(name: str) -> Callable:
    """A torch function by its canonical name."""
    for place in (F, torch, torch.special, torch.fft, torch.linalg, torch.Tensor, aten):
        found = getattr(place, name.removeprefix("fft_").removeprefix("linalg_") if place in NAMED else name, None)
        if found is not None and (place not in NAMED or name.startswith(NAMED[place])):
            return found
    raise LookupError(name)


NAMED = {torch.fft: "fft_", torch.linalg: "linalg_"}


def names_of(handler: Callable) -> list[str]:
    """The names in the table that a handler serves."""
    return sorted(name for name, h in HANDLERS.items() if h is handler and isinstance(name, str))


# ------------------------------------------------------------------------------------------------ activations

#: More arguments than the input.
ACTIVATION_ARGUMENTS: dict[str, tuple] = {
    "prelu": (torch.tensor([0.3], dtype=torch.float64),),
    "threshold": (0.1, 20.0),
    "clamp": (-0.5, 0.5),
    "clip": (-0.5, 0.5),
    "clamp_min": (0.2,),
    "clamp_max": (0.2,),
    "pow": (3,),
    "__pow__": (3,),
    "float_power": (3,),
}
#: Where the input must lie, for those that are not defined everywhere.
ACTIVATION_DOMAINS = {
    **dict.fromkeys("log log2 log10 log1p sqrt rsqrt logit reciprocal erfinv".split(), (0.1, 0.9)),
    **dict.fromkeys("asin acos atanh arctanh".split(), (-0.9, 0.9)),
    "acosh": (1.1, 3.0),
}


@pytest.mark.parametrize("name", names_of(activation))
def test_an_activation_passes_relevance_unchanged(name):
    f, more = find(name), ACTIVATION_ARGUMENTS.get(name, ())
    x = values(3, 5, low=ACTIVATION_DOMAINS.get(name, (-2, 2))[0], high=ACTIVATION_DOMAINS.get(name, (-2, 2))[1])
    (R,), out = explain(lambda x: f(x, *more), x)
    assert torch.equal(R, seed_like(out))


# ------------------------------------------------------------------------------------------------ routing

INDEX = torch.tensor([[2, 0, 1, 1, 0], [0, 1, 2, 0, 0], [1, 1, 0, 2, 2]])
MASK = torch.tensor([[True, False, True, False, True]]).expand(3, 5)
X = values(3, 5)
IMAGE = values(2, 4, 6, 6)
POOLED, WHERE = F.max_pool2d(IMAGE, 2, return_indices=True)

#: How each routing function is called; ``True`` stands for ``f(x)``.
ROUTING: dict[str, Callable] = {
    "view": lambda x: x.view(5, 3),
    "reshape": lambda x: x.reshape(-1),
    "_unsafe_view": lambda x: aten._unsafe_view(x, [5, 3]),
    "permute": lambda x: x.permute(1, 0),
    "transpose": lambda x: x.transpose(0, 1),
    "t": lambda x: x.t(),
    "T.get": lambda x: x.T,
    "mT.get": lambda x: x.mT,
    "H.get": lambda x: x.H,
    "mH.get": lambda x: x.mH,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "swapdims": lambda x: x.swapdims(0, 1),
    "movedim": lambda x: x.movedim(0, 1),
    "moveaxis": lambda x: x.moveaxis(0, 1),
    "flatten": lambda x: x.flatten(),
    "unflatten": lambda x: x[:, :4].unflatten(1, (2, 2)),
    "ravel": lambda x: x.ravel(),
    "squeeze": lambda x: x[:1].squeeze(0),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "view_as": lambda x: x.view_as(torch.zeros(15)),
    "reshape_as": lambda x: x.reshape_as(torch.zeros(15)),
    "expand": lambda x: x.expand(2, 3, 5),
    "expand_as": lambda x: x.expand_as(torch.zeros(2, 3, 5)),
    "broadcast_to": lambda x: x.broadcast_to(2, 3, 5),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, torch.zeros(2, 3, 5))[0],
    "atleast_1d": torch.atleast_1d,
    "atleast_2d": torch.atleast_2d,
    "atleast_3d": torch.atleast_3d,
    "as_strided": lambda x: x.contiguous().as_strided((2, 2), (5, 1)),
    "contiguous": lambda x: x.T.contiguous(),
    "clone": torch.clone,
    "alias": lambda x: aten.alias(x),
    "positive": lambda x: +x,
    "conj": torch.conj,
    "resolve_conj": torch.resolve_conj,
    "resolve_neg": torch.resolve_neg,
    "cat": lambda x: torch.cat([x, x[:1], torch.ones(1, 5, dtype=x.dtype)]),
    "concat": lambda x: torch.concat([x, x], 1),
    "concatenate": lambda x: torch.concatenate([x, x], 1),
    "stack": lambda x: torch.stack([x, x]),
    "hstack": lambda x: torch.hstack([x, x]),
    "vstack": lambda x: torch.vstack([x, x]),
    "dstack": lambda x: torch.dstack([x, x]),
    "row_stack": lambda x: torch.vstack([x, x]),
    "column_stack": lambda x: torch.column_stack([x, x]),
    "split": lambda x: x.split(2, 1)[1],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "hsplit": lambda x: x.hsplit([2])[1],
    "vsplit": lambda x: x.vsplit([2])[1],
    "dsplit": lambda x: x[None].dsplit([2])[1],
    "split_with_sizes": lambda x: x.split_with_sizes([2, 3], 1)[1],
    "unsafe_split": lambda x: x.unsafe_split(2, 1)[1],
    "unsafe_chunk": lambda x: x.unsafe_chunk(2, 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "block_diag": lambda x: torch.block_diag(x, x),
    "meshgrid": lambda x: torch.meshgrid(x[0], x[1], indexing="ij")[0],
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0], x[1]),
    "__getitem__": lambda x: x[1:, [0, 3]],
    "select": lambda x: x.select(1, 2),
    "narrow": lambda x: x.narrow(1, 1, 3),
    "index": lambda x: aten.index(x, [torch.tensor([0, 2])]),
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 0])),
    "gather": lambda x: x.gather(0, INDEX),
    "take": lambda x: x.take(INDEX),
    "take_along_dim": lambda x: x.take_along_dim(INDEX, 0),
    "masked_select": lambda x: x.masked_select(MASK),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, torch.arange(5).flip(0).expand(3, 5), x),
    "index_put": lambda x: x.index_put((torch.tensor([0]),), torch.ones(5, dtype=x.dtype)),
    "index_copy": lambda x: x.index_copy(0, torch.tensor([1]), x[:1]),
    "index_fill": lambda x: x.index_fill(0, torch.tensor([1]), 2.0),
    "masked_fill": lambda x: x.masked_fill(MASK, 3.0),
    "masked_scatter": lambda x: x.masked_scatter(MASK, torch.ones_like(x)),
    "slice_scatter": lambda x: x.slice_scatter(torch.ones(1, 5, dtype=x.dtype), 0, 1, 2),
    "select_scatter": lambda x: x.select_scatter(torch.ones(5, dtype=x.dtype), 0, 1),
    "diagonal_scatter": lambda x: x.diagonal_scatter(torch.ones(3, dtype=x.dtype)),
    "where": lambda x: torch.where(MASK, x, torch.ones_like(x)),
    "tril": torch.tril,
    "triu": torch.triu,
    "diag": torch.diag,
    "diagonal": torch.diagonal,
    "diag_embed": torch.diag_embed,
    "diagflat": torch.diagflat,
    "unfold": lambda x: x.unfold(1, 3, 1),
    "im2col": lambda x: aten.im2col(x[None, None], [2, 2], [1, 1], [0, 0], [1, 1]),
    "repeat": lambda x: x.repeat(2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: x.tile(2),
    "flip": lambda x: x.flip(0),
    "fliplr": torch.fliplr,
    "flipud": torch.flipud,
    "fft_fftshift": torch.fft.fftshift,
    "fft_ifftshift": torch.fft.ifftshift,
    "roll": lambda x: x.roll(1, 1),
    "rot90": torch.rot90,
    "pad": lambda x: F.pad(x, (1, 2)),
    "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, 2), 1.0),
    "type": lambda x: x.type(torch.float64),
    "to": lambda x: x.to(torch.float64),
    "type_as": lambda x: x.type_as(torch.zeros(1, dtype=torch.float64)),
    "double": lambda x: x.double(),
    "cpu": lambda x: x.cpu(),
    "max": lambda x: x.max(1).values,
    "min": lambda x: x.min(1)[0],
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "minimum": lambda x: torch.minimum(x[:1], x[1:]),
    "fmax": lambda x: torch.fmax(x[:1], x[1:]),
    "fmin": lambda x: torch.fmin(x[:1], x[1:]),
    "topk": lambda x: x.topk(2, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "msort": torch.msort,
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "median": lambda x: x.median(1)[0],
    "nanmedian": lambda x: x.nanmedian(1)[0],
    "mode": lambda x: x.mode(1)[0],
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(1)[0],
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, False),
    "feature_alpha_dropout": lambda x: torch.feature_alpha_dropout(x, 0.5, False),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=False),
    "dropout1d": lambda x: F.dropout1d(x, 0.5, training=False),
    "nan_to_num": torch.nan_to_num,
    "logsumexp": lambda x: x.logsumexp(1),
    "__iter__": lambda x: torch.stack(list(x)),
    "__reversed__": lambda x: reversed(x),
    "zero": lambda x: torch.cat([x, x.clone().zero_()]),
    "fill": lambda x: torch.cat([x, x.clone().fill_(2.0)]),
    "copy": lambda x: torch.zeros_like(x).copy_(x),
    "to_dense": lambda x: x.to_dense(),
}
#: The same on images.
IMAGE_ROUTING: dict[str, Callable] = {
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "max_pool1d": lambda x: F.max_pool1d(x[0], 3, 2, 1),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x[0], 4),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 4),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x, 2),
    "max_pool1d_with_indices": lambda x: F.max_pool1d(x[0], 2, return_indices=True)[0],
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max_pool3d_with_indices": lambda x: F.max_pool3d(x, 2, return_indices=True)[0],
    "max_unpool2d": lambda x: F.max_unpool2d(x[..., :3, :3], WHERE, 2),
    "dropout2d": lambda x: F.dropout2d(x, 0.5, training=False),
    "dropout3d": lambda x: F.dropout3d(x, 0.5, training=False),
    "circular pad": lambda x: F.pad(x, (2, 1, 1, 2), mode="circular"),
    "reflection pad": lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"),
    "replication pad": lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"),
    "F.unfold": lambda x: F.unfold(x, 3, padding=1),
}
CASES = [(name, f, X) for name, f in ROUTING.items()] + [(name, f, IMAGE) for name, f in IMAGE_ROUTING.items()]


@pytest.mark.parametrize(("f", "x"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_values_that_only_move_take_their_relevance_along(f, x):
    (R,), out = explain(f, x)
    close(R, transposed(f, x, seed_like(out)))


#: Not called above: complex numbers and packed sequences (tested elsewhere), named axes, other devices and precisions,
#: random windows, and what has no gradient in torch.
NOT_CALLED = set(
    "_pack_padded_sequence _pad_packed_sequence pad_sequence native_channel_shuffle align_to refine_names rename names "
    "real.get imag.get view_as_real view_as_complex requires_grad_ cuda to_mkldnn half float bfloat16 "
    "adaptive_max_pool1d_with_indices fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices "
    "cfloat cdouble chalf complex real imag type_as aminmax "
    "fractional_max_pool3d_with_indices max_unpool1d max_unpool3d __setitem__".split()
)


def test_every_routing_function_is_tried():
    assert set(names_of(routing)) - set(ROUTING) - set(IMAGE_ROUTING) - NOT_CALLED == set()


# ------------------------------------------------------------------------------------------------ sums

#: Functions that are linear in their input: relevance is shared in proportion.
SUMS: dict[str, tuple[Callable, Tensor]] = {
    "sum": (lambda x: x.sum(1), X),
    "mean": (lambda x: x.mean((0, 1)), X),
    "nansum": (lambda x: x.nansum(1), X),
    "nanmean": (lambda x: x.nanmean(1), X),
    "avg_pool1d": (lambda x: F.avg_pool1d(x[0], 3, 2, 1), IMAGE),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), IMAGE),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x[0], 4), IMAGE),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 4), IMAGE),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), IMAGE),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), IMAGE),
    "upsample": (lambda x: F.interpolate(x, 9, mode="nearest"), IMAGE),
    "upsample_bicubic": (lambda x: F.interpolate(x, 9, mode="bicubic"), IMAGE),
    "cumsum": (lambda x: x.cumsum(1), X),
    "trace": (torch.trace, X),
    "fold": (lambda x: F.fold(F.unfold(x, 3), (6, 6), 3), IMAGE),
    "lerp": (lambda x: torch.lerp(x[:1], x[1:], 0.3), X),
    "index_add": (lambda x: x.index_add(0, torch.tensor([1]), x[:1]), X),
    "scatter_add": (lambda x: x.scatter_add(0, INDEX, x), X),
    "diff": (torch.diff, X),
    "add": (lambda x: torch.add(x[:1], x[1:], alpha=0.5), X),
    "sub": (lambda x: torch.sub(x[:1], x[1:], alpha=2), X),
    "rsub": (lambda x: torch.rsub(x[:1], x[1:], alpha=2), X),
    "grid_sample": (lambda x: F.grid_sample(x, GRID, align_corners=False), IMAGE),
    "addcmul": (lambda x: torch.addcmul(x[:1], x[1:], torch.full((2, 5), 0.5, dtype=x.dtype), value=3), X),
    "einsum of one": (lambda x: torch.einsum("ij->j", x), X),
}
GRID = values(2, 3, 3, 2, low=-0.9, high=0.9)


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_shares_in_proportion(name):
    f, x = SUMS[name]
    (R,), out = explain(f, x)
    close(R, x * transposed(f, x, seed_like(out) / out))


def test_a_constant_summand_takes_its_share():
    for f in (lambda x: x + 2.0, lambda x: 2.0 + x, lambda x: 3 - x, lambda x: x - torch.full((5,), 2.0).double()):
        (R,), out = explain(f, X)
        close(R, X * transposed(f, X, seed_like(out) / out))


def test_a_fourier_transform_is_a_linear_map():
    """Through the complex plane and back, without an op unknown; nothing is lost."""
    gain = torch.view_as_complex(values(4, 2))

    def f(x):
        return torch.fft.irfft(torch.fft.rfft(x) * gain, n=6)

    (R,), out = explain(f, values(3, 6))
    torch.testing.assert_close(R.sum(), seed_like(out).sum(), rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------------------------------------ products, gates


def test_scaling_by_a_constant_changes_nothing():
    factor = torch.tensor([2.0, -1.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    (R,), out = explain(lambda x: x * factor, X)
    close(R, seed_like(out) * (factor != 0))
    for f in (lambda x: x * -3, lambda x: -3 * x, lambda x: x / 7, lambda x: torch.div(x, factor + 5), operator.neg):
        (R,), out = explain(f, X)
        close(R, seed_like(out))


GATES: dict[str, Callable] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda g: F.softmax(g, -1),
    "hardsigmoid": F.hardsigmoid,
    "by hand": lambda g: F.relu6(g + 3) / 6,
    "one minus": lambda g: 1 - torch.sigmoid(g),
    "tanh of positive": lambda g: torch.tanh(F.softplus(g)),
    "one plus tanh": lambda g: 0.5 * (1 + torch.tanh(g)),
    "rsqrt": lambda g: torch.rsqrt(g * g + 1),
    "exp": torch.exp,
    "norm": lambda g: g.norm(dim=-1, keepdim=True),
}


@pytest.mark.parametrize("swap", [False, True], ids=["signal first", "gate first"])
@pytest.mark.parametrize("gate", [g for g in GATES if g != "by hand"])
def test_the_signal_takes_all_and_the_gate_nothing(gate, swap):
    def f(a, g):
        return GATES[gate](g) * torch.tanh(a) if swap else torch.tanh(a) * GATES[gate](g)

    (R_a, R_g), out = explain(f, X, values(3, 5, low=-1))
    close(R_a, seed_like(out))
    assert not R_g.any()


def test_two_signals_take_half_each():
    y = values(3, 5, low=-1)
    for f in (operator.mul, torch.mul, lambda a, b: F.silu(a) * b, lambda a, b: torch.tanh(a) * b):
        (R_a, R_b), out = explain(f, X, y)
        close(R_a, seed_like(out) / 2)
        close(R_b, seed_like(out) / 2)
    (R,), out = explain(lambda x: x * x, X)
    close(R, seed_like(out))


def test_a_divisor_gets_nothing():
    (R_x, R_y), out = explain(operator.truediv, X, values(3, 5, low=1))
    close(R_x, seed_like(out))
    assert not R_y.any()


def test_glu_is_a_signal_and_its_gate():
    x = values(3, 6)
    (R,), out = explain(F.glu, x)
    close(R, torch.cat([seed_like(out), torch.zeros(3, 3)], 1))


def matrix_product_relevance(a: Tensor, b: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """AttnLRP, proposition 3.3, from sums over every term: half of each output's relevance to either factor."""
    terms = a[..., :, :, None] * b[..., None, :, :]  # (i, k, j)
    shares = terms * (R / (a @ b))[..., :, None, :] / 2
    return shares.sum(-1), shares.sum(-3)


MATMULS: dict[str, Callable] = {
    "@": operator.matmul,
    "matmul": torch.matmul,
    "method": lambda a, b: a.matmul(b),
    "keyword": lambda a, b: torch.matmul(input=a, other=b),
    "bmm": torch.bmm,
    "aten": lambda a, b: aten.bmm.default(a, b),
    "aten matmul": lambda a, b: aten.matmul(a, b),
    "einsum": lambda a, b: torch.einsum("bik,bkj->bij", a, b),
    "einsum of a list": lambda a, b: torch.einsum("bik,bkj->bij", [a, b]),
    "baddbmm": lambda a, b: torch.baddbmm(torch.zeros(1, dtype=a.dtype), a, b),
}


@pytest.mark.parametrize("name", MATMULS)
def test_a_product_of_two_activations_is_halved(name):
    a, b = values(2, 3, 4), values(2, 4, 5)
    (R_a, R_b), out = explain(MATMULS[name], a, b)
    expected = matrix_product_relevance(a, b, seed_like(out))
    torch.testing.assert_close(R_a, expected[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(R_b, expected[1], rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------------------------------ softmax

SOFTMAXES: dict[str, Callable] = {
    "F": lambda x: F.softmax(x, 1),
    "F keyword": lambda x: F.softmax(input=x, dim=1),
    "torch": lambda x: torch.softmax(x, 1),
    "method": lambda x: x.softmax(dim=1),
    "module": nn.Softmax(1),
    "aten": lambda x: aten._softmax.default(x, 1, False),
    "aten int": lambda x: aten.softmax.int(x, 1),
    "special": lambda x: torch.special.softmax(x, 1),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_is_expanded_along_its_own_axis(name):
    x = values(2, 4, 3)
    (R,), out = explain(lambda x: SOFTMAXES[name](x) * torch.ones((), dtype=x.dtype), x)
    R_out = seed_like(out)
    close(R, x * (R_out - out * R_out.sum(1, keepdim=True)))


def test_a_masked_score_gets_nothing():
    x = X.clone()
    (R,), out = explain(lambda x: F.softmax(x.masked_fill(MASK, -torch.inf), -1) * 2, x)
    assert torch.isfinite(R).all() and not R[MASK].any() and R[~MASK].any()


# ------------------------------------------------------------------------------------------------ normalisation

GAIN, SHIFT = values(5, low=0.5), values(5)


def by_hand(x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt(centered.pow(2).mean(-1, keepdim=True) + 1e-5) * GAIN + SHIFT


LAYER_NORMS: dict[str, Callable] = {
    "F": lambda x: F.layer_norm(x, (5,), GAIN, SHIFT),
    "keywords": lambda x: F.layer_norm(input=x, normalized_shape=[5], weight=GAIN, bias=SHIFT, eps=1e-5),
    "torch": lambda x: torch.layer_norm(x, (5,), GAIN, SHIFT, 1e-5),
    "aten": lambda x: aten.layer_norm.default(x, [5], GAIN, SHIFT),
    "native": lambda x: torch.native_layer_norm(x, [5], GAIN, SHIFT, 1e-5)[0],
}


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm_has_constant_statistics(name):
    (R,), out = explain(LAYER_NORMS[name], X)
    std = torch.sqrt(X.var(-1, correction=0, keepdim=True) + 1e-5)
    close(R, X * transposed(lambda x: (x - x.mean(-1, keepdim=True)) / std * GAIN, X, seed_like(out) / out))


def test_layer_norm_by_hand_conserves_relevance():
    (R,), out = explain(lambda x: by_hand(x) - SHIFT, X)  # the shift is taken out again
    (ours,), _ = explain(lambda x: F.layer_norm(x, (5,), GAIN), X)
    assert torch.isfinite(R).all() and torch.isfinite(ours).all()
    close(ours.sum(-1), seed_like(out).sum(-1))


def constant_statistics(normalize: Callable, x: Tensor) -> Callable:
    """A normalisation that is linear: by the statistics of ``x``, whatever it is given."""
    return lambda t: normalize(t, x)


NORMALIZATIONS: dict[str, tuple[Callable, Callable, Tensor]] = {
    "group_norm": (
        lambda x: F.group_norm(x, 2),
        lambda t, x: grouped(t, t.reshape(2, 2, -1).mean(-1), x.reshape(2, 2, -1).var(-1, correction=0)),
        IMAGE,
    ),
    "instance_norm": (
        lambda x: F.instance_norm(x),
        lambda t, x: (t - t.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt(),
        IMAGE,
    ),
    "rms_norm": (
        lambda x: F.rms_norm(x, (5,), GAIN, 1e-6),
        lambda t, x: t / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt() * GAIN,
        X,
    ),
    "normalize": (lambda x: F.normalize(x, dim=-1), lambda t, x: t / x.norm(dim=-1, keepdim=True), X),
    "divided by its norm": (
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda t, x: t / x.norm(dim=-1, keepdim=True),
        X,
    ),
    "rms by hand": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda t, x: t / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt(),
        X,
    ),
    "batch statistics": (
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda t, x: (t - t.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt(),
        X,
    ),
}


def grouped(t: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return ((t.reshape(2, 2, -1) - mean[..., None]) / (var[..., None] + 1e-5).sqrt()).reshape(t.shape)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalization_is_linear_with_constant_statistics(name):
    f, linear, x = NORMALIZATIONS[name]
    (R,), out = explain(f, x)
    fixed = constant_statistics(linear, x)
    torch.testing.assert_close(fixed(x), out)
    close(R, x * transposed(fixed, x, seed_like(out) / out))


# ------------------------------------------------------------------------------------------------ spellings

W, B = values(5, 4), values(4)
KERNEL, BIAS = values(3, 4, 3, 3), values(3)
POSITIVE = values(4, low=0.5)
Y = values(3, 5, low=-1)


def in_place(f: Callable) -> Callable:
    """A function that writes into its argument, on a copy."""
    return lambda x: f(x.clone())


#: Ways to write the same computation: every one must give the first one's map.
SPELLINGS: dict[str, tuple[Tensor, list[Callable]]] = {
    "relu": (
        X,
        [
            F.relu,
            torch.relu,
            lambda x: x.relu(),
            nn.ReLU(),
            nn.ReLU(inplace=True),
            lambda x: F.relu(input=x),
            in_place(lambda x: F.relu(x, True)),
            in_place(lambda x: F.relu_(x)),
            in_place(lambda x: x.relu_()),
            in_place(torch.relu_),
            lambda x: aten.relu(x),
            lambda x: aten.relu.default(x),
            in_place(lambda x: aten.relu_.default(x)),
        ],
    ),
    "gelu": (X, [F.gelu, nn.GELU(), lambda x: aten.gelu.default(x), lambda x: F.gelu(input=x, approximate="none")]),
    "silu": (X, [F.silu, nn.SiLU(inplace=True), in_place(lambda x: F.silu(x, inplace=True)), aten.silu.default]),
    "sigmoid": (X, [torch.sigmoid, F.sigmoid, lambda x: x.sigmoid(), torch.special.expit, in_place(torch.sigmoid_)]),
    "add": (
        X,
        [
            lambda x: x + x[:1],
            lambda x: torch.add(x, x[:1]),
            lambda x: x.add(x[:1]),
            lambda x: x.add(other=x[:1]),
            lambda x: torch.add(input=x, other=x[:1]),
            lambda x: aten.add.Tensor(x, x[:1]),
            lambda x: operator.iadd(x.clone(), x[:1]),
            lambda x: x.clone().add_(x[:1]),
            lambda x: x.__radd__(x[:1]),
            lambda x: x.sub(x[:1], alpha=-1),
        ],
    ),
    "subtract": (
        X,
        [
            lambda x: x - x[:1],
            lambda x: torch.sub(x, x[:1]),
            lambda x: x.subtract(x[:1]),
            lambda x: torch.rsub(x[:1], x),
            lambda x: x[:1].__rsub__(x),
            lambda x: x.clone().sub_(x[:1]),
            lambda x: operator.isub(x.clone(), x[:1]),
            lambda x: aten.sub.Tensor(x, x[:1]),
        ],
    ),
    "scale": (
        X,
        [
            lambda x: x * 3.0,
            lambda x: 3.0 * x,
            lambda x: torch.mul(x, 3.0),
            lambda x: x.multiply(3.0),
            lambda x: x.clone().mul_(3.0),
            lambda x: aten.mul.Tensor(x, torch.tensor(3.0, dtype=x.dtype)),
            lambda x: operator.imul(x.clone(), 3.0),
        ],
    ),
    "gate": (
        X,
        [
            lambda x: x * torch.sigmoid(x),
            lambda x: torch.sigmoid(x) * x,
            lambda x: torch.mul(other=torch.sigmoid(x), input=x),
            lambda x: x.clone().mul_(x.sigmoid()),
            lambda x: F.glu(torch.cat([x, x], -1), -1),
        ],
    ),
    "dense": (
        X,
        [
            lambda x: F.linear(x, W.T, B),
            lambda x: F.linear(input=x, weight=W.T, bias=B),
            lambda x: torch._C._nn.linear(x, W.T, B),
            lambda x: aten.linear.default(x, W.T, B),
            lambda x: torch.addmm(B, x, W),
            lambda x: torch.addmm(input=B, mat1=x, mat2=W),
            lambda x: aten.addmm.default(B, x, W),
        ],
    ),
    "dense without bias": (
        X,
        [
            lambda x: F.linear(x, W.T),
            lambda x: x @ W,
            lambda x: torch.matmul(x, W),
            lambda x: torch.matmul(input=x, other=W),
            lambda x: x.matmul(W),
            lambda x: torch.mm(x, W),
            lambda x: torch.mm(input=x, mat2=W),
            lambda x: x.mm(W),
            lambda x: aten.mm.default(x, W),
            lambda x: torch.einsum("ij,jk->ik", x, W),
            lambda x: torch.tensordot(x, W, 1),
            lambda x: torch.bmm(x[None], W[None])[0],
            lambda x: (W.T @ x.T).T,
            lambda x: W.__rmatmul__(x),
            lambda x: F.bilinear(x, torch.ones(3, 1).double(), W.T[..., None].contiguous()),
            lambda x: F.conv1d(x[..., None], W.T[..., None])[..., 0],
            lambda x: torch.stack([x @ w for w in W.T], 1),
            lambda x: torch.stack([torch.mv(x, w) for w in W.T], 1),
            lambda x: torch.stack([torch.stack([torch.dot(r, w) for w in W.T]) for r in x]),
            lambda x: torch.inner(x, W.T),
        ],
    ),
    "convolution": (
        IMAGE,
        [
            lambda x: F.conv2d(x, KERNEL, BIAS, 2, 1),
            lambda x: F.conv2d(input=x, weight=KERNEL, bias=BIAS, stride=(2, 2), padding=(1, 1)),
            lambda x: torch.conv2d(x, KERNEL, BIAS, stride=2, padding=1),
            lambda x: torch.convolution(x, KERNEL, BIAS, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
            lambda x: aten.convolution.default(x, KERNEL, BIAS, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
            lambda x: aten.conv2d.default(x, KERNEL, BIAS, [2, 2], [1, 1]),
            lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), KERNEL, BIAS, 2),
            lambda x: F.conv3d(x[:, :, None], KERNEL[:, :, None], BIAS, (1, 2, 2), (0, 1, 1))[:, :, 0],
            lambda x: torch.stack([F.conv2d(one, KERNEL, BIAS, 2, 1) for one in x]),
        ],
    ),
    "convolution without bias": (
        IMAGE,
        [
            lambda x: F.conv2d(x, KERNEL),
            lambda x: (KERNEL.flatten(1) @ F.unfold(x, 3)).unflatten(-1, (4, 4)),
            lambda x: F.conv2d(x, KERNEL, padding="valid"),
            lambda x: torch.einsum("ncyxhw,ochw->noyx", x.unfold(2, 3, 1).unfold(3, 3, 1), KERNEL),
        ],
    ),
    "batch_norm": (
        IMAGE,
        [
            lambda x: F.batch_norm(x, B, POSITIVE, POSITIVE, B),
            lambda x: F.batch_norm(input=x, running_mean=B, running_var=POSITIVE, weight=POSITIVE, bias=B, eps=1e-5),
            lambda x: torch.batch_norm(x, POSITIVE, B, B, POSITIVE, False, 0.1, 1e-5, False),
            lambda x: aten.batch_norm.default(x, POSITIVE, B, B, POSITIVE, False, 0.1, 1e-5, False),
            lambda x: F.instance_norm(x, B, POSITIVE, POSITIVE, B, use_input_stats=False),
        ],
    ),
    "mean": (
        X,
        [
            lambda x: x.mean(-1),
            lambda x: torch.mean(x, dim=-1),
            lambda x: torch.mean(input=x, dim=(1,)),
            lambda x: x.sum(-1) / 5,
            lambda x: F.adaptive_avg_pool1d(x, 1)[:, 0],
            lambda x: F.avg_pool1d(x, 5)[:, 0],
            lambda x: aten.mean.dim(x, [-1]),
            lambda x: torch.einsum("ij->i", x) / 5,
            lambda x: x @ torch.full((5,), 0.2, dtype=x.dtype),
        ],
    ),
    "max_pool2d": (
        IMAGE,
        [
            lambda x: F.max_pool2d(x, 2),
            nn.MaxPool2d(2),
            lambda x: torch.max_pool2d(x, 2),
            lambda x: F.max_pool2d(input=x, kernel_size=2, return_indices=True)[0],
            lambda x: aten.max_pool2d.default(x, [2, 2]),
            lambda x: aten.max_pool2d_with_indices.default(x, [2, 2])[0],
            lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).amax(-1),
            lambda x: F.adaptive_max_pool2d(x, 3),
        ],
    ),
    "concatenation": (
        X,
        [
            lambda x: torch.cat([x, F.relu(x)]),
            lambda x: torch.cat(tensors=(x, F.relu(x)), dim=0),
            lambda x: torch.vstack([x, F.relu(x)]),
            lambda x: aten.cat.default([x, F.relu(x)]),
            lambda x: torch.stack([x, F.relu(x)]).flatten(0, 1),
            lambda x: written(torch.zeros(6, 5, dtype=x.dtype), x, F.relu(x)),
        ],
    ),
}


def written(buffer: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Two halves written into a buffer."""
    buffer[:3] = first
    buffer[3:].copy_(second)
    return buffer


@pytest.mark.parametrize(
    ("name", "k"), [(name, k) for name, (_, forms) in SPELLINGS.items() for k in range(1, len(forms))]
)
def test_every_spelling_gives_the_same_map(name, k):
    x, forms = SPELLINGS[name]
    (expected,), out = explain(forms[0], x)
    (R,), same = explain(forms[k], x, R=seed_like(out))
    torch.testing.assert_close(same, out)
    torch.testing.assert_close(R, expected, rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------------------------------ constants, unknown


@pytest.mark.parametrize("f", [Tensor.detach, torch.sign, torch.floor, lambda x: (x > 0).double(), torch.round])
def test_what_carries_no_relevance(f):
    (R,), out = explain(lambda x: f(x) + 0 * x, X)
    close(R, torch.zeros_like(X))


def test_every_constant_function_is_free_of_gradients():
    """Nothing in the list of functions without relevance is a function with a useful derivative."""
    for name in names_of(constant):
        if callable(getattr(torch, name, None)) and name not in ("detach", "detach_"):
            x = X.clone().requires_grad_(True)
            try:
                out = getattr(torch, name)(x)
                (g,) = torch.autograd.grad(out.sum(), x, allow_unused=True) if out.requires_grad else (None,)
            except (TypeError, RuntimeError, ValueError, NotImplementedError, AttributeError):
                continue  # it wants more arguments, gives no tensor, or has no derivative
            else:
                assert g is None or not g.any(), name


def test_an_unknown_function_is_named():
    trace = RelevancePropagator(Function(lambda x: torch.special.i0(x)), EXACT).trace(X)
    R = trace.relevance(lambda out: out)
    out = torch.special.i0(X)
    close(R, X * transposed(torch.special.i0, X, out / out))
    (told,) = trace.warnings()
    assert "i0" in told and "register" in told


def test_a_registered_function_is_known(monkeypatch):
    monkeypatch.setattr(functions.registry, "HANDLERS", HANDLERS)
    functions.register("i0", "activation")
    try:
        (R,), out = explain(torch.special.i0, X)
        close(R, seed_like(out))
    finally:
        del HANDLERS["i0"]
        functions.registry.LOOKED_UP.clear()


class Summed(torch.autograd.Function):
    """One that changes the shape."""

    @staticmethod
    def forward(ctx, x):
        ctx.n = x.shape[1]
        return x.sum(1)

    @staticmethod
    def backward(ctx, g):
        return g[:, None].expand(-1, ctx.n)


@pytest.mark.parametrize("last", [False, True])
def test_a_custom_autograd_function_is_reported(last):
    """It is no function of torch's; where it keeps the shape it counts as an activation."""
    f = Doubled.apply if last else lambda x: F.relu(Doubled.apply(F.relu(x)))
    trace = RelevancePropagator(Function(f), EXACT).trace(X)
    (told,) = trace.warnings()
    assert "Doubled" in told and "unchanged" in told
    close(trace.relevance(lambda out: out), trace.output)
    gradient = trace.relevance(lambda out: out, composite="gradient")
    assert torch.equal(gradient, 2 * trace.output * (1 if last else X > 0))
    several = trace.relevances([lambda out: out, lambda out: out])
    close(several[1], trace.output)


def test_a_custom_autograd_function_of_another_shape_is_reported():
    trace = RelevancePropagator(Function(lambda x: Summed.apply(F.relu(x)) * 2), EXACT).trace(X)
    R = trace.relevance(lambda out: out)
    (told,) = trace.warnings()
    assert "Summed" in told and "like a gradient" in told and torch.isfinite(R).all()


def test_backward_hooks_are_not_custom_functions():
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    model[0].register_full_backward_hook(lambda *_: None)
    trace = RelevancePropagator(model, EXACT, unknown="error").trace(X)
    close(trace.relevance(lambda out: out), trace.output)
    assert trace.warnings() == []


def test_a_custom_autograd_function_can_be_refused():
    with pytest.raises(ValueError, match="Doubled"):
        RelevancePropagator(Function(lambda x: F.relu(Doubled.apply(x))), EXACT, unknown="error").trace(X)


# ------------------------------------------------------------------------------------------------ the table itself


def test_every_sum_is_tried():
    tried = set(SUMS) | {name for name in names_of(sum_like) if name.startswith("fft_")}
    left = set(names_of(sum_like)) - tried
    assert left <= set(
        "upsample_nearest upsample_bilinear col2im scatter_reduce trapezoid norm vector_norm linalg_vector_norm "
        "linalg_norm linalg_matrix_norm frobenius_norm stft istft index_reduce trapz cumulative_trapezoid".split()
    ), left


#: Of other libraries, and axes with names, which torch has no more.
ELSEWHERE = frozenset(
    "grouped_mm_fallback deform_conv2d rename refine_names align_to names has_names type_check".split()
)


def exists_in_torch(name: str) -> bool:
    """As a function, a method, an operator (``__add__``) or in place (``add_``); ``T.get`` is a tensor's attribute."""
    base = name.removesuffix(".get")
    for prefix, place in (("special_", torch.special), ("linalg_", torch.linalg), ("fft_", torch.fft)):
        if base.startswith(prefix) and hasattr(place, base.removeprefix(prefix)):
            return True
    places = (torch, F, torch.Tensor, torch.special, torch.linalg, torch.fft, aten, torch.sparse, torch.nested)
    return any(hasattr(place, spelled) for place in places for spelled in (base, f"__{base}__", f"_{base}", f"{base}_"))


def test_names_in_the_table_exist_in_torch():
    """A typing error in the table would be a function that is silently unknown."""
    names = {name for name in TABLE if isinstance(name, str)}
    assert {name for name in names if not exists_in_torch(name)} <= ELSEWHERE <= names
    assert not exists_in_torch("relo")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_stays_near_and_finite(dtype):
    def f(x):
        return F.softmax(F.layer_norm(F.relu(x @ W.to(x.dtype)), (4,)), -1) * 3

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (R,), _ = explain(f, X.to(dtype))
    assert R.dtype == dtype and torch.isfinite(R).all()


# ------------------------------------------------------------------------------------------------ steps


STEPS: dict[str, tuple[Callable, Callable]] = {
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, value=2), lambda a, b: a + 2 * a * b),
    "addcmul_": (lambda a, b: a.clone().addcmul_(a, b), lambda a, b: a + a * b),
    "addcdiv": (lambda a, b: torch.addcdiv(a, a, b), lambda a, b: a + a / b),
    "lerp": (lambda a, b: torch.lerp(a, b, b), lambda a, b: a + b * (b - a)),
    "addmm": (lambda a, b: torch.addmm(a[:, :3], a, b.T, alpha=2), lambda a, b: a[:, :3] + 2 * (a @ b.T)),
    "addmv": (lambda a, b: torch.addmv(a[:, 0], a, b[0]), lambda a, b: a[:, 0] + a @ b[0]),
    "addr": (lambda a, b: torch.addr(a, a[:, 0], b[0]), lambda a, b: a + a[:, :1] * b[0]),
    "baddbmm": (
        lambda a, b: torch.baddbmm(a[None, :, :3], a[None], b.T[None], beta=3),
        lambda a, b: 3 * a[None, :, :3] + a[None] @ b.T[None],
    ),
    "addbmm": (
        lambda a, b: torch.addbmm(a[:, :3], a[None], b.T[None]),
        lambda a, b: a[:, :3] + (a[None] @ b.T[None]).sum(0),
    ),
    "multi_dot": (lambda a, b: torch.linalg.multi_dot([a, b.T, a]), lambda a, b: (a @ b.T) @ a),
    "cosine_similarity": (
        lambda a, b: F.cosine_similarity(a, b),
        lambda a, b: (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1),
    ),
    "pairwise_distance": (lambda a, b: F.pairwise_distance(a, b), lambda a, b: (a - b + 1e-6).norm(dim=-1)),
    "cdist": (lambda a, b: torch.cdist(a, b), lambda a, b: (a[:, None] - b[None]).norm(dim=-1)),
    "var": (lambda a, b: a.var(1) * b[:, 0], lambda a, b: (a - a.mean(1, True)).square().sum(1) / 4 * b[:, 0]),
    "std": (
        lambda a, b: a.std(1, correction=0) + b[0, 0],
        lambda a, b: (a - a.mean(1, True)).square().mean(1).sqrt() + b[0, 0],
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_several_steps_in_one_are_those_steps(name):
    f, steps = STEPS[name]
    b = values(3, 5, low=0.5)
    expected, out = explain(steps, X, b)
    found, same = explain(f, X, b, R=seed_like(out))
    torch.testing.assert_close(same, out, rtol=1e-7, atol=1e-9)
    for R, S in zip(found, expected, strict=True):
        torch.testing.assert_close(R, S, rtol=1e-6, atol=1e-8)


def test_factors_of_prod_share_alike():
    for f, n in ((torch.prod, 15), (lambda x: x.prod(1), 5), (lambda x: x.prod(0, keepdim=True), 3)):
        (R,), out = explain(f, X)
        close(
            R,
            (seed_like(out) / n).reshape(-1, *[1] * (out.dim() == 1)).expand(X.shape)
            if out.dim()
            else seed_like(out).expand(X.shape) / n,
        )
