"""Every rule on every kind of linear layer, in every precision, against the matrix form of the reference."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saliency_lrp import rules
from saliency_lrp.propagator import RelevancePropagator, Trace
from tests.helpers import reference

pytestmark = pytest.mark.exhaustive

# name: layer, shape of one sample
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear_no_bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "linear_ntf": (lambda: nn.Linear(5, 3), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), (2, 7)),
    "conv1d_stride_remainder": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 8)),
    "conv1d_dilation": (lambda: nn.Conv1d(2, 2, 3, dilation=2, padding=1), (2, 7)),
    "conv1d_groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), (4, 6)),
    "conv1d_same_odd": (lambda: nn.Conv1d(2, 3, 3, padding="same"), (2, 6)),
    "conv1d_same_even": (lambda: nn.Conv1d(2, 3, 4, padding="same"), (2, 6)),
    "conv1d_circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 5)),
    "conv1d_reflect": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5)),
    "conv1d_replicate_same": (lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="replicate"), (2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "conv2d_no_bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 5, 5)),
    "conv2d_stride_remainder": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(1, 0)), (2, 6, 6)),
    "conv2d_dilation": (lambda: nn.Conv2d(1, 3, 3, dilation=2), (1, 6, 7)),
    "conv2d_depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (3, 4, 4)),
    "conv2d_same_even": (lambda: nn.Conv2d(2, 3, 2, padding="same"), (2, 4, 4)),
    "conv2d_circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "conv2d_reflect": (lambda: nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode="reflect"), (2, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "conv3d_all": (lambda: nn.Conv3d(2, 2, 3, stride=2, padding=1, groups=2), (2, 4, 3, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 3, 3), (2, 5)),
    "conv_transpose1d_all": (
        lambda: nn.ConvTranspose1d(4, 2, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2),
        (4, 4),
    ),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3)),
    "conv_transpose2d_all": (
        lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=(1, 0), groups=2),
        (2, 3, 4),
    ),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2, stride=(1, 2, 1), output_padding=(0, 1, 0)), (1, 2, 2, 2)),
}  # fmt: skip

# name: rule of the package for (epsilon, bias), name and arguments of the reference
RULES: dict[str, tuple[Callable[[float, str], rules.Rule], str, dict]] = {
    "epsilon": (lambda e, b: rules.Epsilon(e, bias=b), "epsilon", {}),
    "gamma": (lambda e, b: rules.Gamma(0.25, e, b), "gamma", {"gamma": 0.25}),
    "generalized_gamma": (lambda e, b: rules.GeneralizedGamma(0.5, e, b), "generalized_gamma", {"gamma": 0.5}),
    "z_plus": (lambda e, b: rules.ZPlus(e, b), "z_plus", {}),
    "alpha2_beta1": (lambda e, b: rules.AlphaBeta(2, 1, e, b), "alpha_beta", {"alpha": 2.0, "beta": 1.0}),
    "alpha1.4_beta0.4": (lambda e, b: rules.AlphaBeta(1.4, 0.4, e, b), "alpha_beta", {"alpha": 1.4, "beta": 0.4}),
    "w_square": (lambda e, b: rules.WSquare(e, b), "w_square", {}),
    "power1": (lambda e, b: rules.Power(1, e, b), "power", {"p": 1}),
    "power2": (lambda e, b: rules.Power(2, e, b), "power", {"p": 2}),
    "power3": (lambda e, b: rules.Power(3, e, b), "power", {"p": 3}),
}  # fmt: skip
WITHOUT_BIAS: dict[str, tuple[Callable[[float], rules.Rule], str, dict]] = {
    "flat": (lambda e: rules.Flat(e), "flat", {}),
    "norm": (lambda e: rules.Norm(e), "epsilon", {}),
    "z_box": (lambda e: rules.ZBox(-3.0, 2.5, e), "z_box", {"low": -3.0, "high": 2.5}),
    "beta0.5": (lambda e: rules.Beta(0.5, e), "beta", {"beta": 0.5}),
    "beta0": (lambda e: rules.Beta(0.0, e), "beta", {"beta": 0.0}),
    "beta-0.5": (lambda e: rules.Beta(-0.5, e), "beta", {"beta": -0.5}),
    "beta-1": (lambda e: rules.Beta(-1.0, e), "beta", {"beta": -1.0}),
}
BIAS_MODES = ("keep", "zero", "distribute")
CASES = [(r, b) for r in RULES for b in BIAS_MODES] + [(r, None) for r in WITHOUT_BIAS]

# dtype: stabiliser, largest error in units of the largest relevance, and whether ill-conditioned outputs get no R
PRECISION = {
    torch.float64: (1e-6, 1e-9, False),
    torch.float32: (1e-2, 2e-5, True),
    torch.bfloat16: (1e-2, 1e-1, True),
    torch.float16: (1e-2, 1e-2, True),
}


def seeded(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


@functools.cache
def layer_and_input(name: str, dtype: torch.dtype, batch: int) -> tuple[nn.Module, Tensor]:
    """Signed numbers that every dtype can hold; sample 0 of a batch of three is a sparse, non-negative one."""
    make, shape = LAYERS[name]
    layer, g = make(), seeded(name, batch)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g).to(dtype)
    x = torch.randn(batch, *shape, generator=g)
    if batch > 1:
        x[0] = x[0].clamp(min=0)
    return layer.to(dtype).eval(), x.to(dtype)


@functools.cache
def trace_of(name: str, dtype: torch.dtype, batch: int) -> Trace:
    layer, x = layer_and_input(name, dtype, batch)
    return RelevancePropagator(layer, rules.Epsilon()).trace(x)


@pytest.mark.parametrize(("rule", "bias"), CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("name", LAYERS)
def test_rule_equals_its_matrix_form(name, rule, bias):
    for dtype, batch in itertools.product(PRECISION, (1, 3)):
        check_rule(name, rule, bias, dtype, batch)


def check_rule(name: str, rule: str, bias: str | None, dtype: torch.dtype, batch: int) -> None:
    """One rule in one precision, on a batch of one or of several."""
    epsilon, tolerance, mask = PRECISION[dtype]
    if bias is None:
        make, form, args = WITHOUT_BIAS[rule]
        mine, how = make(epsilon), {"bias": "keep"}
        args = {**args, "stabilizer": epsilon} if form == "beta" else args
    else:
        make, form, args = RULES[rule]
        mine, how = make(epsilon, bias), {"bias": bias}
    layer, x = layer_and_input(name, dtype, batch)
    trace = trace_of(name, dtype, batch)
    R = torch.randn(trace.output.shape, generator=seeded(name, rule)).to(dtype)
    if mask:
        R = R * reference.well_conditioned(form, layer, x, **how, **args).to(dtype)
    got = trace.relevance(seed=R, composite=mine)
    want = reference.relevance(form, layer, x, R, epsilon, drop_zero=rule.startswith("power"), **how, **args)
    assert got.shape == x.shape and got.dtype == dtype
    error = (got.double() - want).abs().max().item()
    limit = tolerance * want.abs().max().item()
    assert error <= limit, f"{dtype}, batch of {batch}: off by {error}, {limit} is allowed"


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d"])
def test_box_with_bounds_per_element(name):
    layer, x = layer_and_input(name, torch.float64, 3)
    low, high = x - torch.rand(x.shape, generator=seeded(0)), x + torch.rand(x.shape, generator=seeded(1))
    trace = trace_of(name, torch.float64, 3)
    R = torch.randn(trace.output.shape, generator=seeded(name), dtype=torch.float64)
    bounds = {k: v.reshape(3, -1).numpy() for k, v in (("low", low), ("high", high))}
    got = trace.relevance(seed=R, composite=rules.ZBox(low, high))
    torch.testing.assert_close(got, reference.relevance("z_box", layer, x, R, **bounds), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_the_reference_is_the_layer(name):
    """The matrix form gives the layer's own output: what the rules are measured with is itself measured."""
    layer, x = layer_and_input(name, torch.float64, 3)
    m = reference.matrix_of(layer, tuple(x.shape[1:]))
    y = x.reshape(3, -1).numpy() @ m.pad.T @ m.weights.T + (0 if m.bias is None else m.bias)
    np.testing.assert_allclose(y, layer(x).detach().reshape(3, -1).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relative", [0.1, 0.25])
def test_relative_epsilon_is_measured_by_the_sample(relative):
    layer, x = layer_and_input("linear", torch.float64, 3)
    got = RelevancePropagator(layer, rules.Epsilon(relative, relative=True)).trace(x).relevance(seed=torch.ones(3, 4))
    for i in range(3):
        width = relative * layer(x[i : i + 1]).detach().square().mean().sqrt().item()
        want = reference.relevance("epsilon", layer, x[i : i + 1], torch.ones(1, 4), width)
        torch.testing.assert_close(got[i : i + 1], want, rtol=1e-9, atol=1e-12)
