"""Relevance as a coefficient and relevance itself are the same relevance.

``LrpExplainer`` binds its composite in the forward pass and lets autograd carry coefficients (R = x · c); ``trace``
carries R itself. Every model here is explained in both forms by every composite; where one has no coefficient, the
explanation must be made in the reference form without being asked.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saliency_lrp import RelevancePropagator, list_composites, rules
from tests.helpers.tiny import count_passes

F64 = torch.float64
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}


def model(*shape: int):
    """Decorator: a model, and the shape of its input."""

    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        MODELS[build.__name__] = build, shape
        return build

    return add


class Lambda(nn.Module):
    """Modules, and what a forward pass does with them."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


IMAGE = (2, 3, 8, 8)


@model(*IMAGE)
def conv_relu():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(80, 4)
    )


@model(*IMAGE)
def batch_norms():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


@model(*IMAGE)
def residual():
    def run(m, x):
        y = F.relu(m.norm(m.one(x)))
        z = m.norm2(m.two(y))
        z += y
        y = F.relu(z, inplace=True)
        return m.head(F.relu(m.three(y) + m.short(y)).mean((2, 3)))

    return Lambda(
        run, one=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4), two=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        norm2=nn.BatchNorm2d(4), three=nn.Conv2d(4, 6, 3, 2), short=nn.Conv2d(4, 6, 3, 2, bias=False),
        head=nn.Linear(6, 3),
    )  # fmt: skip


@model(*IMAGE)
def dense_blocks():
    def run(m, x):
        y = m.stem(x)
        for norm, conv in ((m.n1, m.c1), (m.n2, m.c2)):
            y = torch.cat([y, conv(F.relu(norm(y)))], 1)
        return m.head(F.avg_pool2d(F.relu(y), 2).flatten(1))

    return Lambda(
        run, stem=nn.Conv2d(3, 4, 3, padding=1), n1=nn.BatchNorm2d(4), c1=nn.Conv2d(4, 3, 3, padding=1),
        n2=nn.BatchNorm2d(7), c2=nn.Conv2d(7, 3, 3, padding=1), head=nn.Linear(160, 3),
    )  # fmt: skip


@model(*IMAGE)
def squeeze_and_excite():
    def run(m, x):
        y = F.silu(m.norm(m.one(x)))
        y = F.silu(m.depth(y), inplace=True)
        s = torch.sigmoid(m.up(F.silu(m.down(y.mean((2, 3), keepdim=True)))))
        y = m.project(s * y)
        return m.head(F.hardswish(y).mean((2, 3)))

    return Lambda(
        run, one=nn.Conv2d(3, 6, 3, padding=1), norm=nn.BatchNorm2d(6), depth=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        down=nn.Conv2d(6, 2, 1), up=nn.Conv2d(2, 6, 1), project=nn.Conv2d(6, 5, 1), head=nn.Linear(5, 3),
    )  # fmt: skip


@model(*IMAGE)
def mobile():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
        nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.Hardtanh(-0.5, 0.5), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


@model(*IMAGE)
def convnext():
    def run(m, x):
        y = m.stem(x)
        z = m.depth(y).permute(0, 2, 3, 1)
        z = m.down(F.gelu(m.up(m.norm(z)))) * m.scale.weight[0]
        y = y + z.permute(0, 3, 1, 2)
        return m.head(F.layer_norm(y.mean((2, 3)), (6,)))

    return Lambda(
        run, stem=nn.Conv2d(3, 6, 2, 2), depth=nn.Conv2d(6, 6, 3, padding=1, groups=6), norm=nn.LayerNorm(6),
        up=nn.Linear(6, 12), down=nn.Linear(12, 6), scale=nn.Linear(6, 1), head=nn.Linear(6, 3),
    )  # fmt: skip


@model(*IMAGE)
def preprocessing_inside():
    def run(m, x):
        x = (x * 2.0 - 0.3) / torch.tensor([0.5, 0.6, 0.7], dtype=x.dtype)[:, None, None]
        return m.head(F.relu(m.one(F.pad(x, (1, 1, 1, 1)))).flatten(1))

    return Lambda(run, one=nn.Conv2d(3, 4, 3), head=nn.Linear(4 * 64, 3))


@model(*IMAGE)
def input_used_twice():
    def run(m, x):
        y = torch.cat([F.relu(m.one(x)), x], 1)
        return m.head((m.two(y) + x.mean(1, keepdim=True)).flatten(1))

    return Lambda(run, one=nn.Conv2d(3, 4, 3, padding=1), two=nn.Conv2d(7, 2, 3, padding=1), head=nn.Linear(128, 3))


@model(*IMAGE)
def unet():
    def run(m, x):
        y = F.leaky_relu(m.one(x), 0.1)
        z = F.elu(m.two(F.max_pool2d(y, 2)))
        z = torch.cat([F.interpolate(z, scale_factor=2.0, mode="bilinear"), y], 1)
        return m.up(F.group_norm(z, 2)).mean((2, 3)) + m.three(z).amax((2, 3))

    return Lambda(
        run, one=nn.Conv2d(3, 4, 3, padding=1), two=nn.Conv2d(4, 4, 3, padding=1), three=nn.Conv2d(8, 3, 1),
        up=nn.ConvTranspose2d(8, 3, 2, 2),
    )  # fmt: skip


@model(*IMAGE)
def instance_norms():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4),
        nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


@model(*IMAGE)
def ends_in_softmax():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4), nn.Softmax(-1))


@model(*IMAGE)
def ends_in_log_softmax():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4), nn.LogSoftmax(-1))


@model(3, 6, 4)
def series():
    return nn.Sequential(
        nn.Conv1d(6, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 8), nn.SELU(), nn.Linear(8, 3)
    )


@model(4, 7)
def table():
    return nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 9), nn.Sigmoid(), nn.Linear(9, 3))


@model(4, 7)
def wide_and_deep():
    def run(m, x):
        return m.deep(F.relu(m.one(x))) + m.wide(x) + torch.outer(x.sum(1), torch.ones(3, dtype=x.dtype))

    return Lambda(run, one=nn.Linear(7, 9), deep=nn.Linear(9, 3), wide=nn.Linear(7, 3))


TOKENS = (2, 5, 8)


def attention(x, qkv, heads=2, causal=False, fused=True, mask=None):
    n, s, d = x.shape
    q, k, v = qkv(x).reshape(n, s, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    if fused:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    else:
        scores = q @ k.transpose(-2, -1) / (d // heads) ** 0.5
        y = scores.softmax(-1) @ v
    return y.transpose(1, 2).reshape(n, s, d)


@model(*TOKENS)
def vit():
    def run(m, x):
        x = torch.cat([m.token.weight.expand(len(x), -1, -1), x + m.places.weight], 1)
        x = x + m.out(attention(m.n1(x), m.qkv))
        x = x + m.down(F.gelu(m.up(m.n2(x))))
        return m.head(m.n3(x)[:, 0])

    parts = {k: nn.LayerNorm(8) for k in ("n1", "n2", "n3")}
    return Lambda(
        run, **parts, token=nn.Linear(8, 1), places=nn.Linear(8, 5), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8),
        up=nn.Linear(8, 16), down=nn.Linear(16, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


@model(*TOKENS)
def eager_attention():
    def run(m, x):
        x = x + m.out(attention(m.n1(x), m.qkv, fused=False))
        return m.head(F.relu(x).mean(1))

    return Lambda(run, n1=nn.LayerNorm(8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), head=nn.Linear(8, 3))


@model(*TOKENS)
def llama():
    def norm(x, weight):
        variance = x.pow(2).mean(-1, keepdim=True)
        return weight * (x * torch.rsqrt(variance + 1e-6))

    def run(m, x):
        x = x + m.out(attention(norm(x, m.g.weight[0]), m.qkv, causal=True))
        y = norm(x, m.g.weight[1])
        x = x + m.down(F.silu(m.gate(y)) * m.up(y))
        return m.head(norm(x, m.g.weight[2])[:, -1])

    return Lambda(
        run, g=nn.Linear(8, 3), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), gate=nn.Linear(8, 16), up=nn.Linear(8, 16),
        down=nn.Linear(16, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


@model(*TOKENS)
def masked_attention():
    def run(m, x):
        mask = torch.zeros(5, 5, dtype=x.dtype).masked_fill(torch.ones(5, 5).triu(2).bool(), float("-inf"))
        return m.head(attention(x, m.qkv, mask=mask).flatten(1))

    return Lambda(run, qkv=nn.Linear(8, 24), head=nn.Linear(40, 3))


@model(*TOKENS)
def grouped_queries():
    def run(m, x):
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (m.q, m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.3)
        return m.head(y.transpose(1, 2).flatten(1))

    return Lambda(run, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), head=nn.Linear(80, 3))


@model(*TOKENS)
def encoder_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
    return Lambda(lambda m, x: m.head(m.layer(x)[:, 0]), layer=layer, head=nn.Linear(8, 3))


@model(*TOKENS)
def multihead_with_weights():
    attend = nn.MultiheadAttention(8, 2, batch_first=True)
    return Lambda(lambda m, x: m.head((x + m.attend(x, x, x)[0]).mean(1)), attend=attend, head=nn.Linear(8, 3))


@model(*TOKENS)
def lstm():
    return Lambda(
        lambda m, x: m.head(m.two(F.relu(m.one(x)[0]))[0][:, -1]), one=nn.LSTM(8, 6, batch_first=True),
        two=nn.GRU(6, 6, batch_first=True), head=nn.Linear(6, 3),
    )  # fmt: skip


@model(*TOKENS)
def gated():
    def run(m, x):
        y = F.glu(m.one(x)) * torch.tanh(m.two(x))
        y = y / y.norm(dim=-1, keepdim=True)
        return m.head((y * y).sum(1)) + m.head(y.prod(1))

    return Lambda(run, one=nn.Linear(8, 16), two=nn.Linear(8, 8), head=nn.Linear(8, 3))


@model(*TOKENS)
def bilinear():
    def run(m, x):
        y = m.one(x)
        return torch.einsum("nsd,nsd,dk->nk", y, y + 1.0, m.w.weight.T) + m.two(x.mean(1), x.amax(1))

    return Lambda(run, one=nn.Linear(8, 8), w=nn.Linear(8, 3), two=nn.Bilinear(8, 8, 3))


@model(*TOKENS)
def fourier():
    def run(m, x):
        mixed = torch.fft.irfft2(torch.fft.rfft2(m.two(x))[:, :, :3], s=x.shape[1:])
        return m.head(F.relu(m.one(x) + mixed).cumsum(1)[:, -1])

    return Lambda(run, one=nn.Linear(8, 8), two=nn.Linear(8, 8), head=nn.Linear(8, 3))


@model(*TOKENS)
def statistics():
    def run(m, x):
        y = m.one(x)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        e = torch.exp(y - y.max(-1, keepdim=True)[0])
        return m.head(((e / e.sum(-1, keepdim=True)) * m.two(x)).sum(1))

    return Lambda(run, one=nn.Linear(8, 8), two=nn.Linear(8, 8), head=nn.Linear(8, 3))


@model(*TOKENS)
def routed():
    def run(m, x):
        y = torch.flip(m.one(x), [1])
        y[:, 0] *= 2.0
        y = torch.where(y > 0, y, 0.1 * y)
        y, _ = y.sort(-1)
        return m.head(y.topk(2, 1)[0].flatten(1))

    return Lambda(run, one=nn.Linear(8, 8), head=nn.Linear(16, 3))


def built(name: str) -> tuple[nn.Module, Tensor]:
    """The model with all its parameters and statistics drawn, and an input."""
    torch.manual_seed(1)
    build, shape = MODELS[name]
    net = build().to(F64).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net, torch.randn(shape, dtype=F64)


#: Composites that are another's rules under another name need not be run twice.
COMPOSITES = [name for name in list_composites() if not name.startswith("lrp.sequential_composite")]


def test_there_are_enough_models():
    assert len(MODELS) >= 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_both_forms_agree(name):
    """To 1e-6 of the largest value, by every composite; and the output is the model's own."""
    net, x = built(name)
    bound = {}
    for composite in COMPOSITES:
        propagator = RelevancePropagator(net, composite)
        trace = propagator.bound_trace(x)
        assert torch.equal(trace.output, net(x))
        got, want = trace.relevance(1), propagator.trace(x).relevance(1)
        assert got.shape == want.shape and got.dtype == want.dtype
        assert (got - want).abs().max() <= 1e-6 * want.abs().max(), composite
        bound[composite] = trace.bound
    assert bound["epsilon"] and bound["attnlrp"] and bound["auto"], bound


# ------------------------------------------------------------------------------------------------ long sequences


class Largest(TorchDispatchMode):
    """The most elements that any operator's result has inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max(self.most, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)), 0)
        return out


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "epsilon_plus", "auto"])
@pytest.mark.parametrize("form", ["bound_trace", "trace"])
@pytest.mark.parametrize("variant", [{}, {"is_causal": True}, {"scale": 0.1}])
def test_no_matrix_of_all_pairs_is_made(variant, form, composite):
    """Attention over S positions: nothing of S × S elements, forward or backward, for one map or several."""
    S, heads, d = 512, 1, 8

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(d, 3 * d), nn.Linear(d, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, heads, d)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, **variant)
            return self.head(y.transpose(1, 2).flatten(2)[:, -1])

    net, x = Net(), torch.randn(1, S, d)
    with Largest() as size:
        trace = getattr(RelevancePropagator(net, composite), form)(x)
        assert trace.bound == (form == "bound_trace")
        trace.relevance(1)
        trace.relevance([0, 1, 2])
    assert 0 < size.most < S * S


def test_what_the_last_test_counts():
    """Where attention is written out, the matrix is there: else the test above shows nothing."""
    with Largest() as size:
        q = torch.randn(1, 1, 512, 8)
        torch.softmax(q @ q.mT, -1) @ q
    assert size.most == 512 * 512


# ------------------------------------------------------------------------------------------------ what falls back


def test_a_composite_without_a_coefficient_is_found_out_once():
    net, x = built("conv_relu")
    passes = count_passes(net)
    propagator = RelevancePropagator(net, rules.Flat())
    for _ in range(3):
        trace = propagator.bound_trace(x)
        assert not trace.bound and "Flat" in propagator.reference_only
    # the first try ends at the first layer whose rule has no coefficient, before the model is through
    assert len(passes) == 3


def test_a_bound_trace_can_be_asked_anything():
    """It runs the model once more, and then is a trace like any other."""
    net, x = built("residual")
    passes = count_passes(net)
    trace, full = RelevancePropagator(net, "epsilon").bound_trace(x), RelevancePropagator(net, "epsilon").trace(x)
    assert len(passes) == 2 and trace.bound
    R = trace.relevance(2)
    torch.testing.assert_close(trace.relevance([2, 0])[0], R)
    assert trace.bound and len(passes) == 2
    full.relevance(2, account=True)
    assert trace.report().seed == pytest.approx(full.report().seed)
    assert not trace.bound and len(passes) == 3
    for ask in (
        lambda t: t.layer_relevance("two", 1),
        lambda t: t.relevance(1, composite="epsilon_plus"),
        lambda t: t.relevance(1, condition={"one": [0, 1]}),
        lambda t: t.parameter_relevance(1)["one.weight"],
    ):
        torch.testing.assert_close(ask(trace), ask(full))
    assert len(passes) == 3


def test_a_seed_on_a_zero_is_explained_all_the_same():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).to(F64)
    x = torch.randn(1, 3, 6, 6, dtype=F64)
    propagator = RelevancePropagator(net, rules.Epsilon(0.1))
    want = propagator.trace(x).relevance(seed=torch.ones(1, 64, dtype=F64))
    trace = propagator.bound_trace(x)
    assert trace.bound
    torch.testing.assert_close(trace.relevance(seed=torch.ones(1, 64, dtype=F64)), want)
    assert not trace.bound and not propagator.reference_only  # other seeds have coefficients


def test_what_a_model_writes_over_is_found_out():
    """Autograd keeps what a convolution read; a model that writes into it is explained in the reference form."""

    def run(m, x):
        y = torch.tanh(m.one(x))
        z = m.two(y)
        y *= 2.0
        return m.head((z + y).flatten(1))

    net = Lambda(
        run, one=nn.Conv2d(3, 4, 3), two=nn.Conv2d(4, 4, 3, padding=1), head=nn.Linear(64, 3)
    ).to(F64)  # fmt: skip
    x = torch.randn(1, 3, 6, 6, dtype=F64)
    for composite in ("epsilon", "epsilon_plus", "auto"):
        propagator = RelevancePropagator(net, composite)
        got, want = propagator.bound_trace(x).relevance(1), propagator.trace(x).relevance(1)
        assert (got - want).abs().max() <= 1e-6 * want.abs().max()


def test_a_model_that_catches_every_exception_does_not_swallow_the_fallback():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                y = self.one(x)
                return self.two(y)
            except Exception:
                return x[:, :3] * 0.0

    net, x = Net(), torch.randn(2, 4)
    trace = RelevancePropagator(net, rules.Flat()).bound_trace(x)
    assert torch.equal(trace.output, net(x))
    torch.testing.assert_close(trace.relevance(1), RelevancePropagator(net, rules.Flat()).trace(x).relevance(1))


def test_softmax_that_is_read_and_returned():
    """Attention weights among the outputs are no end of the model."""

    def run(m, x):
        a = (m.q(x) @ m.k(x).mT).softmax(-1)
        return m.head((a @ x).mean(1)), a

    net = Lambda(run, q=nn.Linear(8, 4), k=nn.Linear(8, 4), head=nn.Linear(8, 3)).to(F64)
    x = torch.randn(2, 5, 8, dtype=F64)
    propagator = RelevancePropagator(net, "attnlrp")
    trace = propagator.bound_trace(x)
    got, want = (t.relevance(lambda out: out[0][:, 1]) for t in (trace, propagator.trace(x)))
    assert trace.bound
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


class Shifted(nn.Module):
    """A position that is added to the input, and a linear layer."""

    def __init__(self, position: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.position = nn.Parameter(position)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.position) @ self.weight.T


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_a_position_cancels_keeps_its_share(dtype):
    """x · c also where x + position is exactly 0, as half precision makes it now and then: no ratio is taken."""
    x, weight = torch.tensor([[1.5, -2.0, 0.5]], dtype=dtype), torch.tensor([[2.0, -1.0, 4.0], [1.0, 1.0, 1.0]])
    net = Shifted(torch.tensor([-1.5, 1.0, 0.25], dtype=dtype), weight.to(dtype))
    trace = RelevancePropagator(net, "epsilon").bound_trace(x)
    torch.testing.assert_close(trace.relevance(target=0), (x * weight[0]).to(dtype))
    assert trace.bound


def test_statistics_of_half_precision_are_not_rounded():
    """Relevance through a layer norm in bfloat16: off by what x, c and R are rounded, not by a rounded deviation."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 512, generator=generator).bfloat16()
    c = torch.rand(32, 512, generator=generator) - 0.5
    trace = RelevancePropagator(nn.LayerNorm(512).bfloat16(), "epsilon").bound_trace(x)
    R, x = trace.relevance(seed=(trace.output * c).bfloat16()).double(), x.double()
    want = x * (c - c.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    ratio = (R * want).sum(1) / want.square().sum(1)  # of a position: roundings of its values cancel
    assert (ratio - 1).abs().max() < 1e-3
