"""The linear LRP step of Arras et al. (2017), as a function of arrays."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch

from .errors import InputError

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def lrp_linear(
    hin: Array,
    w: Array,
    b: Array | None,
    hout: Array,
    Rout: Array,
    bias_nb_units: int,
    eps: float,
    bias_factor: float = 0.0,
) -> Array:
    r"""Hand the relevance of a linear layer's output back to one of its inputs.

    .. math:: R_i = \sum_j \frac{h_i w_{ij} + \delta\,(b_j + \epsilon\,\mathrm{sgn}\,z_j)/N}
                               {z_j + \epsilon\,\mathrm{sgn}\,z_j} R_j,
              \qquad \mathrm{sgn}\,0 = +1

    with :math:`z` = `hout`, :math:`\delta` = `bias_factor` and :math:`N` = `bias_nb_units`. `hout` may hold
    more than ``hin @ w + b``: where several layers feed one sum (the input and the recurrent one of an LSTM
    gate), call this once per layer with the same `hout` and `b`, and with `bias_nb_units` counting the units
    of all of them.

    Parameters
    ----------
    hin : array of shape (..., D)
        Input of the layer; one sample of shape (D,) or any batch of them.
    w : array of shape (D, M)
        Weights, inputs first (the transpose of ``torch.nn.Linear.weight``).
    b : array of shape (M,), or None
        Bias; None is a bias of zero. Matters only where `bias_factor` is not 0.
    hout : array of shape (..., M)
        Pre-activation of the layer.
    Rout : array of shape (..., M)
        Relevance of the output.
    bias_nb_units : int
        Number of input units that share bias and stabiliser.
    eps : float
        Stabiliser, not negative.
    bias_factor : float, default 0.0
        Share of bias and stabiliser that goes to the inputs: with 1.0 relevance is conserved exactly (if the
        layer has `bias_nb_units` inputs in all), with 0.0 the bias absorbs its share.

    Returns
    -------
    array of shape (..., D)
        Relevance of the input: NumPy for NumPy input, torch (same dtype and device) for torch input.
        Half precision is computed in float32. No argument is changed.

    Raises
    ------
    InputError
        If shapes do not fit, NumPy and torch are mixed, `eps` is negative or `bias_nb_units` is not positive.

    References
    ----------
    Arras, Montavon, Müller, Samek: Explaining Recurrent Neural Network Predictions in Sentiment Analysis.
    WASSA 2017.
    """
    given: dict[str, Any] = {"hin": hin, "w": w, "b": b, "hout": hout, "Rout": Rout}
    is_numpy = _is_numpy(given)
    tensors = {name: _as_tensor(value) for name, value in given.items() if value is not None}
    _check_shapes(tensors)
    _check_numbers(bias_nb_units, eps, bias_factor)
    dtype = _common_dtype(tensors)
    work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    tensors = {name: tensor.to(work) for name, tensor in tensors.items()}
    relevance: Any = _redistribute(tensors, bias_nb_units, eps, bias_factor).to(dtype)
    return relevance.numpy() if is_numpy else relevance


def _redistribute(t: dict[str, torch.Tensor], bias_nb_units: int, eps: float, bias_factor: float) -> torch.Tensor:
    sign = 1 - 2 * (t["hout"] < 0).to(t["hout"].dtype)
    stabilizer = eps * sign
    per_output = t["Rout"] / (t["hout"] + stabilizer)
    relevance = t["hin"] * (per_output @ t["w"].T)
    if bias_factor == 0.0:
        return relevance
    leak = stabilizer + t["b"] if "b" in t else stabilizer
    shared = (leak * per_output).sum(-1, keepdim=True)
    return relevance + bias_factor * shared / bias_nb_units


def _is_numpy(given: dict[str, object]) -> bool:
    kinds = {name: isinstance(v, torch.Tensor) for name, v in given.items() if v is not None}
    if len(set(kinds.values())) > 1:
        torch_ones = ", ".join(name for name, is_torch in kinds.items() if is_torch)
        numpy_ones = ", ".join(name for name, is_torch in kinds.items() if not is_torch)
        raise InputError(f"lrp_linear got NumPy ({numpy_ones}) and torch ({torch_ones}) together; convert to one kind.")
    return not any(kinds.values())


def _as_tensor(value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    array = np.ascontiguousarray(value)
    return torch.from_numpy(array.copy() if not array.flags.writeable else array)


def _common_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    dtype = tensors["hin"].dtype
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype if dtype.is_floating_point else torch.float64


def _check_shapes(t: dict[str, torch.Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in t.items()}
    if len(shapes["w"]) != 2 or not shapes["hin"] or not shapes["hout"]:
        raise InputError(f"lrp_linear expects hin (..., D), w (D, M), hout and Rout (..., M); got {shapes}.")
    n_in, n_out = shapes["w"]
    expected = {
        "hin": (*shapes["hin"][:-1], n_in),
        "hout": (*shapes["hin"][:-1], n_out),
        "Rout": (*shapes["hin"][:-1], n_out),
        "b": (n_out,),
    }
    wrong = [name for name in shapes if name in expected and shapes[name] != expected[name]]
    if wrong:
        what = ", ".join(f"{name} has shape {shapes[name]}, expected {expected[name]}" for name in wrong)
        raise InputError(
            f"lrp_linear: {what}, from w of shape {shapes['w']} = (inputs, outputs) and hin of shape "
            f"{shapes['hin']}. A torch.nn.Linear weight must be transposed."
        )


def _check_numbers(bias_nb_units: int, eps: float, bias_factor: float) -> None:
    if not bias_nb_units > 0:
        raise InputError(f"bias_nb_units (inputs sharing the bias) must be positive, got {bias_nb_units!r}.")
    if not (eps >= 0 and math.isfinite(eps)):
        raise InputError(f"eps must be finite and not negative, got {eps!r}.")
    if not math.isfinite(bias_factor):
        raise InputError(f"bias_factor must be finite, got {bias_factor!r}.")
