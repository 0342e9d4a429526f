"""lrp_linear against the numbers of the authors' NumPy code and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saliency_lrp.errors import InputError
from saliency_lrp.lrp_linear import lrp_linear
from tests.helpers.golden import assert_golden, manifest, roles

pytestmark = pytest.mark.exhaustive

CASES = [c for c in manifest("arras_lstm")["cases"] if c["kind"] == "lrp_linear"]
INPUTS = ("hin", "w", "b", "hout", "Rout")


def by_definition(hin, w, b, hout, Rout, units, eps, factor):
    """The printed formula, one loop per index."""
    sign = np.where(hout >= 0, 1.0, -1.0)
    relevance = np.zeros_like(hin)
    for i in range(len(hin)):
        for j in range(len(hout)):
            message = w[i, j] * hin[i] + factor * (b[j] + eps * sign[j]) / units
            relevance[i] += message / (hout[j] + eps * sign[j]) * Rout[j]
    return relevance


def example(batch=()):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(5, 3)), rng.normal(size=3)
    hin = rng.normal(size=(*batch, 5))
    return {"hin": hin, "w": w, "b": b, "hout": hin @ w + b, "Rout": rng.normal(size=(*batch, 3))}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_equals_the_original(case, kind):
    arrays = roles("arras_lstm", case)
    args = [arrays[name] if kind == "numpy" else torch.from_numpy(arrays[name]) for name in INPUTS]
    got = lrp_linear(*args, case["bias_nb_units"], case["eps"], case["bias_factor"])
    assert isinstance(got, np.ndarray if kind == "numpy" else torch.Tensor)
    assert_golden(got, arrays["Rin"])
    if case["locally_conserving"]:
        assert np.asarray(got).sum() == pytest.approx(arrays["Rout"].sum(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_formula_also_at_zero_preactivation(factor):
    a = example()
    a["hout"][1] = 0.0
    got = lrp_linear(**a, bias_nb_units=5, eps=0.01, bias_factor=factor)
    np.testing.assert_allclose(got, by_definition(*a.values(), 5, 0.01, factor), rtol=1e-12)


@pytest.mark.parametrize("batch", [(4,), (2, 3), (0,)])
def test_batch_is_the_samples_one_by_one(batch):
    a = example(batch)
    got = lrp_linear(**a, bias_nb_units=5, eps=0.001, bias_factor=1.0)
    assert got.shape == a["hin"].shape
    for index in np.ndindex(*batch):
        one = {k: a[k][index] if k in ("hin", "hout", "Rout") else a[k] for k in INPUTS}
        np.testing.assert_allclose(got[index], lrp_linear(**one, bias_nb_units=5, eps=0.001, bias_factor=1.0))


def test_no_bias_is_a_bias_of_zero():
    a = example((2,))
    zero = lrp_linear(**{**a, "b": np.zeros(3)}, bias_nb_units=5, eps=0.1, bias_factor=1.0)
    none = lrp_linear(**{**a, "b": None}, bias_nb_units=5, eps=0.1, bias_factor=1.0)
    np.testing.assert_array_equal(none, zero)


def test_arguments_are_left_alone_and_no_graph_is_built():
    a = {k: torch.from_numpy(v).requires_grad_() for k, v in example((2,)).items()}
    before = {k: v.detach().clone() for k, v in a.items()}
    got = lrp_linear(**a, bias_nb_units=5, eps=0.1, bias_factor=1.0)
    assert not got.requires_grad
    for name, value in a.items():
        assert torch.equal(value.detach(), before[name]) and value.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept_and_small_denominators_do_not_overflow(dtype):
    a = {k: torch.from_numpy(v).to(dtype) for k, v in example((2,)).items()}
    a["hout"] = a["hout"].clone()
    a["hout"][0, 0], a["Rout"][0, 0] = 0.0, 0.0
    got = lrp_linear(**a, bias_nb_units=5, eps=1e-9, bias_factor=1.0)
    want = lrp_linear(**{k: v.double() for k, v in a.items()}, bias_nb_units=5, eps=1e-9, bias_factor=1.0)
    assert got.dtype == dtype
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=rtol * float(want.abs().max()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"w": np.zeros((3, 5))}, "transposed"),
        ({"b": np.zeros(4)}, r"b has shape \(4,\), expected \(3,\)"),
        ({"Rout": np.zeros(2)}, "Rout has shape"),
        ({"w": np.zeros(5)}, r"expects hin"),
        ({"hin": torch.zeros(5)}, "NumPy .* and torch"),
        ({"eps": -1.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"bias_nb_units": 0}, "bias_nb_units"),
        ({"bias_factor": float("inf")}, "bias_factor"),
    ],
)
def test_what_cannot_be_is_refused(change, match):
    args = {**example(), "bias_nb_units": 5, "eps": 0.001, **change}
    with pytest.raises(InputError, match=match):
        lrp_linear(**args)
