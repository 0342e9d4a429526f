"""Attention in every form against an independent computation, in float64, of AttnLRP and CP-LRP.

The reference knows nothing of the package: it has one head's matrices and the printed formulas (Achtibat et al. 2024,
propositions 3.1 to 3.3; Ali et al. 2022), one loop per batch item and head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import composites
from saliency_lrp.propagator import RelevancePropagator

COMPOSITES = {"attnlrp": composites.get("attnlrp", epsilon=1e-14), "cp_lrp": composites.get("cp_lrp", epsilon=1e-14)}


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ reference


def matmul_shares(a: Tensor, b: Tensor, R: Tensor, left: float, right: float) -> tuple[Tensor, Tensor]:
    """Relevance of the factors of ``a @ b``: every term a_ik b_kj takes its part of R_ij, split left and right."""
    terms = a[:, :, None] * b[None, :, :]
    shares = terms * (R / (a @ b))[:, None, :]
    return left * shares.sum(2), right * shares.sum(0)


def one_head(
    q: Tensor, k: Tensor, v: Tensor, R: Tensor, bias: Tensor, scale: float, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance of queries, keys and values of one head; ``bias`` is added to the scores (−inf: masked)."""
    scores = scale * q @ k.T + bias
    A = torch.nan_to_num(torch.softmax(scores, -1))
    if method == "cp_lrp":
        _, R_v = matmul_shares(A, v, R, 0.0, 1.0)
        return torch.zeros_like(q), torch.zeros_like(k), R_v
    R_A, R_v = matmul_shares(A, v, R, 0.5, 0.5)
    finite = torch.where(torch.isinf(scores), 0.0, scores)
    R_scores = finite * (R_A - A * R_A.sum(-1, keepdim=True))
    # the product's share of a score that also holds a constant bias; divided by the score as the ε-rule does
    c = R_scores / torch.where(finite == 0, 1.0, finite)
    terms = scale * q[:, :, None] * k.T[None] * c[:, None, :]
    return terms.sum(2) / 2, terms.sum(0).T / 2, R_v


def reference(
    q: Tensor, k: Tensor, v: Tensor, R: Tensor, bias: Tensor | None, scale: float, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The same over leading axes; one key head may serve several query heads."""
    L, S = q.shape[-2], k.shape[-2]
    shared = q.shape[1] // k.shape[1]
    full = torch.zeros(*q.shape[:2], L, S, dtype=q.dtype) if bias is None else bias.expand(*q.shape[:2], L, S)
    found = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for n in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h // shared
            parts = one_head(q[n, h], k[n, g], v[n, g], R[n, h], full[n, h], scale, method)
            for total, at, part in zip(found, (h, g, g), parts, strict=True):
                total[n, at] += part
    return found


# ------------------------------------------------------------------------------------------------ forms of attention


class Attention(nn.Module):
    def __init__(self, f: Callable) -> None:
        super().__init__()
        self.f = f

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.f(q, k, v)


def explain(f: Callable, q: Tensor, k: Tensor, v: Tensor, R: Tensor, method: str) -> tuple[Tensor, ...]:
    trace = RelevancePropagator(Attention(f), COMPOSITES[method], unknown="error").trace(q, k, v)
    assert torch.equal(trace.output, f(q, k, v))
    return trace.relevance(lambda out: out, seed=R)


CAUSAL = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -math.inf)
BIAS = values(4, 4)
MASK = torch.tensor([[True, True, False, True]] * 3 + [[True, False, True, False]])
MASKED = torch.zeros(4, 4, dtype=torch.float64).masked_fill(~MASK, -math.inf)
SCALE = 1 / math.sqrt(3)


def sdpa(**options) -> Callable:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1) @ v


def by_hand_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.mT) / math.sqrt(3)
    return torch.matmul(F.softmax(scores.masked_fill(~MASK, -math.inf), -1), v)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", torch.softmax(torch.einsum("bhid,bhjd->bhij", q * SCALE, k), -1), v)


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    A = F.softmax(torch.baddbmm(torch.zeros(1, dtype=q.dtype), flat[0], flat[1].mT, beta=0, alpha=SCALE), -1)
    return torch.bmm(A, flat[2]).unflatten(0, q.shape[:2])


#: name -> (function, what it adds to the scores, its scale)
FORMS: dict[str, tuple[Callable, Tensor | None, float]] = {
    "sdpa": (sdpa(), None, SCALE),
    "sdpa scale": (sdpa(scale=0.7), None, 0.7),
    "sdpa causal": (sdpa(is_causal=True), CAUSAL, SCALE),
    "sdpa boolean mask": (sdpa(attn_mask=MASK), MASKED, SCALE),
    "sdpa float mask": (sdpa(attn_mask=BIAS), BIAS, SCALE),
    "by hand": (by_hand, None, SCALE),
    "by hand, masked": (by_hand_masked, MASKED, SCALE),
    "einsum": (by_einsum, None, SCALE),
    "bmm": (by_bmm, None, SCALE),
}


@pytest.mark.parametrize("method", COMPOSITES)
@pytest.mark.parametrize("form", FORMS)
def test_attention_against_the_reference(form, method):
    f, bias, scale = FORMS[form]
    q, k, v, R = values(2, 2, 4, 3), values(2, 2, 4, 3, seed=1), values(2, 2, 4, 5), values(2, 2, 4, 5, seed=1)
    found = explain(f, q, k, v, R, method)
    for ours, expected in zip(found, reference(q, k, v, R, bias, scale, method), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", COMPOSITES)
def test_heads_that_share_keys(method):
    q, k, v, R = values(2, 4, 4, 3), values(2, 2, 4, 3), values(2, 2, 4, 5), values(2, 4, 4, 5)
    found = explain(sdpa(enable_gqa=True), q, k, v, R, method)
    for ours, expected in zip(found, reference(q, k, v, R, None, SCALE, method), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_a_row_masked_altogether_carries_nothing():
    mask = MASK.clone()
    mask[1] = False
    q, k, v, R = values(1, 1, 4, 3), values(1, 1, 4, 3, seed=1), values(1, 1, 4, 5), values(1, 1, 4, 5, seed=1)

    def f(q, k, v):
        return torch.nan_to_num(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    R[0, 0, 1] = 0
    for method in COMPOSITES:
        parts = explain(f, q, k, v, R, method)
        assert all(torch.isfinite(part).all() for part in parts)
        assert not parts[0][0, 0, 1].any() and parts[2].any()


# ------------------------------------------------------------------------------------------------ MultiheadAttention


class Wrapped(nn.Module):
    """A MultiheadAttention, called one way."""

    def __init__(self, attention: nn.MultiheadAttention, **options) -> None:
        super().__init__()
        self.attention = attention
        self.options = options

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        k, v = context if context else (x, x)
        return self.attention(x, k, v, **self.options)[0]


KEY_PADDING = torch.tensor([[False, False, False, True], [False, True, False, False]])
MODES: dict[str, tuple[dict, dict]] = {
    "plain": ({}, {}),
    "without weights": ({}, {"need_weights": False}),
    "weights of each head": ({}, {"average_attn_weights": False}),
    "batch first": ({"batch_first": True}, {}),
    "batch first without weights": ({"batch_first": True}, {"need_weights": False}),
    "boolean mask": ({"batch_first": True}, {"attn_mask": ~MASK}),
    "float mask": ({"batch_first": True}, {"attn_mask": BIAS}),
    "key padding": ({"batch_first": True}, {"key_padding_mask": KEY_PADDING}),
    "causal": ({"batch_first": True}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "bias_kv": ({"batch_first": True, "add_bias_kv": True}, {}),
    "zero attention": ({"batch_first": True, "add_zero_attn": True}, {}),
    "no bias": ({"batch_first": True, "bias": False}, {}),
}


def attention_layer(**options) -> nn.MultiheadAttention:
    torch.manual_seed(3)
    layer = nn.MultiheadAttention(6, 2, **options).double().eval()
    for p in layer.parameters():
        nn.init.normal_(p, 0, 0.5)
    return layer


@pytest.mark.parametrize("mode", MODES)
def test_multihead_attention_runs_in_every_mode(mode):
    layer_options, call_options = MODES[mode]
    model = Wrapped(attention_layer(**layer_options), **call_options)
    x = values(2, 4, 6) if layer_options.get("batch_first") else values(4, 2, 6)
    trace = RelevancePropagator(model, "attnlrp", unknown="error").trace(x)
    assert torch.equal(trace.output, model(x))
    R = trace.relevance(lambda out: out)
    assert torch.isfinite(R).all() and R.any()


@pytest.mark.parametrize("mode", [m for m in MODES if m != "bias_kv"])
def test_multihead_attention_without_biases_conserves(mode):
    layer_options, call_options = MODES[mode]
    layer = attention_layer(**{**layer_options, "bias": False})
    x = values(2, 4, 6) if layer_options.get("batch_first") else values(4, 2, 6)
    trace = RelevancePropagator(Wrapped(layer, **call_options), COMPOSITES["cp_lrp"]).trace(x)
    R = trace.relevance(lambda out: out)
    torch.testing.assert_close(R.sum(), trace.output.sum(), rtol=1e-7, atol=1e-9)


def test_other_sizes_of_keys_and_values():
    layer = attention_layer(kdim=5, vdim=7, batch_first=True, bias=False)
    x, k, v = values(2, 4, 6), values(2, 3, 5), values(2, 3, 7)
    trace = RelevancePropagator(Wrapped(layer), COMPOSITES["cp_lrp"], unknown="error").trace(x, k, v)
    R_x, R_k, R_v = trace.relevance(lambda out: out)
    assert not R_x.any() and not R_k.any()
    torch.testing.assert_close(R_v.sum(), trace.output.sum(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("method", COMPOSITES)
def test_multihead_attention_against_matrices(method, need_weights):
    """The whole layer: projections by ε, heads by the reference."""
    layer = attention_layer(batch_first=True)
    x, R = values(2, 4, 6), values(2, 4, 6, seed=1)
    model = Wrapped(layer, need_weights=need_weights)
    ours = RelevancePropagator(model, COMPOSITES[method]).trace(x).relevance(lambda out: out, seed=R)

    W, b = layer.in_proj_weight.detach(), layer.in_proj_bias.detach()
    Wo, bo = layer.out_proj.weight.detach(), layer.out_proj.bias.detach()
    packed = x @ W.T + b
    q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in packed.chunk(3, -1))
    mixed = torch.softmax(q @ k.mT * SCALE, -1) @ v
    joined = mixed.transpose(1, 2).flatten(2)
    out = joined @ Wo.T + bo
    R_mixed = (joined * ((R / out) @ Wo)).unflatten(-1, (2, 3)).transpose(1, 2)
    parts = reference(q, k, v, R_mixed, None, SCALE, method)
    R_packed = torch.cat([t.transpose(1, 2).flatten(2) for t in parts], -1)
    expected = x * ((R_packed / packed) @ W)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------------ encoders


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padding", [None, KEY_PADDING])
def test_transformer_encoder_with_its_fast_path(norm_first, padding):
    """In eval mode torch runs the whole layer as one fused call; while it is traced it does not."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=norm_first, dropout=0.3)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).double()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.head = nn.Linear(6, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])

    model, x = Model().eval(), values(2, 4, 6)
    trace = RelevancePropagator(model, "attnlrp", unknown="error").trace(x)
    torch.testing.assert_close(trace.output, model(x), rtol=1e-10, atol=1e-10)
    R = trace.relevance()
    assert torch.isfinite(R).all() and R.any()
    if padding is not None:
        assert not R[padding].any()  # what is masked has no relevance
    assert torch.backends.mha.get_fastpath_enabled()


def test_softmax_rule_is_lxt_like():
    """LXT's formulas (AttnLRP): x (R − s ΣR) at the softmax; factors of a product A·(R / 2z) Bᵀ."""
    q, k, v, R = values(1, 1, 4, 3), values(1, 1, 4, 3, seed=1), values(1, 1, 4, 5), values(1, 1, 4, 5, seed=1)
    R_q, R_k, R_v = explain(sdpa(), q, k, v, R, "attnlrp")
    scores = SCALE * q @ k.mT
    A = torch.softmax(scores, -1)
    c = R / (2 * (A @ v))
    R_A = A * (c @ v.mT)
    torch.testing.assert_close(R_v, v * (A.mT @ c), rtol=1e-6, atol=1e-8)
    R_scores = scores * (R_A - A * R_A.sum(-1, keepdim=True))
    c = R_scores / (2 * scores)
    torch.testing.assert_close(R_q, q * (c @ k) * SCALE, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(R_k, k * (c.mT @ q) * SCALE, rtol=1e-6, atol=1e-8)
