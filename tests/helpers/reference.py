"""Every rule once more: slow, in float64, from the printed formula and an explicit matrix.

Nothing here is shared with the package. A layer becomes the matrix that it is, found by pushing unit vectors
through torch's own functional; a rule becomes NumPy on that matrix, with one entry per (output, input) pair.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Matrix:
    """A layer on inputs of one shape: ``y = weights @ (pad @ x) + bias``.

    `pad` is the copying that a padding mode other than zeros does, so that `weights` has at most one kernel
    entry per element; `wired` is 1 where an element of the (padded) input reaches an output, whatever its weight.
    """

    pad: np.ndarray
    weights: np.ndarray
    wired: np.ndarray
    bias: np.ndarray | None


@functools.lru_cache(maxsize=4096)
def matrix_of(layer: nn.Module, shape: tuple[int, ...]) -> Matrix:
    """The matrix of a linear, convolution or transposed convolution layer for one sample of `shape`.

    Remembered: a layer must not be changed between two calls.
    """
    layer = copy.deepcopy(layer).double().cpu()
    bias = _bias_matrix(layer, shape)
    if layer.bias is not None:
        layer.bias = None
    pad, shape = _pad_matrix(layer, shape)
    weights = _matrix(layer, shape)
    layer.weight.data.fill_(1.0)
    return Matrix(pad, weights, (_matrix(layer, shape) != 0).astype(float), bias)


def _matrix(function: Callable, shape: tuple[int, ...]) -> np.ndarray:
    """Columns are the function of unit vectors; the function is linear, without bias, on a batch."""
    size = int(np.prod(shape))
    with torch.no_grad():
        out = function(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    return out.reshape(size, -1).numpy().T


def _pad_matrix(layer: nn.Module, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    mode = getattr(layer, "padding_mode", "zeros")
    if mode == "zeros":
        return np.eye(int(np.prod(shape))), shape
    widths = _pad_widths(layer)
    layer.padding_mode, layer.padding = "zeros", (0,) * len(layer.kernel_size)

    def function(x):
        return F.pad(x, widths, mode=mode)

    padded = tuple(function(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    return _matrix(function, shape), padded


def _pad_widths(layer: nn.Module) -> list[int]:
    """Left and right width of every spatial dim, last dim first; "same" puts the odd one at the end."""
    widths: list[int] = []
    for i, kernel in reversed(list(enumerate(layer.kernel_size))):
        if layer.padding == "same":
            total = layer.dilation[i] * (kernel - 1)
            widths += [total // 2, total - total // 2]
        elif layer.padding == "valid":
            widths += [0, 0]
        else:
            widths += [layer.padding[i]] * 2
    return widths


def _bias_matrix(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray | None:
    if layer.bias is None:
        return None
    with torch.no_grad():
        return layer(torch.zeros(1, *shape, dtype=torch.float64)).reshape(-1).numpy()


@dataclass
class Part:
    """One fraction of a rule: contributions per (sample, output, input), the bias' own, and a factor."""

    contributions: np.ndarray
    bias: np.ndarray | None = None
    factor: float | np.ndarray = 1.0
    keep: np.ndarray | None = None  # 0 where an output gives this part nothing


def pos(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0.0)


def neg(a: np.ndarray) -> np.ndarray:
    return np.minimum(a, 0.0)


def epsilon(m: Matrix, x: np.ndarray) -> list[Part]:
    return [Part(x[:, None] * m.weights, m.bias)]


def z_plus(m: Matrix, x: np.ndarray) -> list[Part]:
    return alpha_beta(m, x, 1.0, 0.0)[:1]


def alpha_beta(m: Matrix, x: np.ndarray, alpha: float, beta: float) -> list[Part]:
    c, b = x[:, None] * m.weights, m.bias
    return [
        Part(pos(c), None if b is None else pos(b), alpha),
        Part(neg(c), None if b is None else neg(b), -beta),
    ]


def gamma(m: Matrix, x: np.ndarray, gamma: float) -> list[Part]:
    return [Part(x[:, None] * (m.weights + gamma * pos(m.weights)), m.bias)]


def generalized_gamma(m: Matrix, x: np.ndarray, gamma: float) -> list[Part]:
    c = x[:, None] * m.weights
    z = c.sum(-1) + (0.0 if m.bias is None else m.bias)

    def part(clip, keep):
        return Part(c + gamma * clip(c), None if m.bias is None else m.bias + gamma * clip(m.bias), keep=keep)

    return [part(pos, z > 0), part(neg, z < 0)]


def w_square(m: Matrix, x: np.ndarray) -> list[Part]:
    squares = np.broadcast_to(m.weights**2, (len(x), *m.weights.shape))
    return [Part(squares, None if m.bias is None else m.bias**2)]


def flat(m: Matrix, x: np.ndarray) -> list[Part]:
    return [Part(np.broadcast_to(m.wired, (len(x), *m.wired.shape)))]


def z_box(m: Matrix, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Part]:
    low, high = (np.broadcast_to(v, x.shape)[:, None] for v in (low, high))
    return [Part(x[:, None] * m.weights - low * pos(m.weights) - high * neg(m.weights))]


def power(m: Matrix, x: np.ndarray, p: int) -> list[Part]:
    return [Part(x[:, None] ** p * m.weights**p, None if m.bias is None else m.bias**p)]


def beta(m: Matrix, x: np.ndarray, beta: float, stabilizer: float) -> list[Part]:
    """(1 + beta) of the positive part, -beta of the negative one; an output with one sign keeps (nearly) its R."""
    c = x[:, None] * m.weights
    plus, minus = pos(c), neg(c)
    total = np.abs(c.sum(-1))
    kept = total / (total + stabilizer)

    def alone(factor):
        return np.where(factor != 0, abs(factor) / (1 - (1 - abs(factor)) * kept), 0.0)

    has_plus, has_minus = plus.sum(-1) > 0, minus.sum(-1) < 0
    factor_plus = np.where(has_minus, 1.0 + beta, alone(1.0 + beta))
    factor_minus = np.where(has_plus, -beta, alone(-beta))
    return [Part(plus, None, factor_plus), Part(minus, None, factor_minus)]


RULES: dict[str, Callable[..., list[Part]]] = {
    "epsilon": epsilon,
    "z_plus": z_plus,
    "alpha_beta": alpha_beta,
    "gamma": gamma,
    "generalized_gamma": generalized_gamma,
    "w_square": w_square,
    "flat": flat,
    "z_box": z_box,
    "power": power,
    "beta": beta,
}


def redistribute(part: Part, wired: np.ndarray, R: np.ndarray, eps: float, bias: str, drop_zero: bool) -> np.ndarray:
    """Relevance (N, inputs) of one part; the three bias modes of the design."""
    b = np.zeros(R.shape[1]) if part.bias is None or bias == "zero" else part.bias
    z = part.contributions.sum(-1) + b
    stabilizer = eps * np.where(z < 0, -1.0, 1.0)
    factor = part.factor * (1.0 if part.keep is None else part.keep)
    if drop_zero:
        factor = factor * (z != 0)
    share = part.contributions
    if bias == "distribute":
        share = share + (b + stabilizer)[..., None] * wired / np.maximum(wired.sum(-1, keepdims=True), 1.0)
    return (share * (factor * R / (z + stabilizer))[..., None]).sum(1)


def relevance(
    rule: str,
    layer: nn.Module,
    x: torch.Tensor,
    R: torch.Tensor,
    eps: float = 1e-6,
    bias: str = "keep",
    drop_zero: bool = False,
    **args: object,
) -> torch.Tensor:
    """Relevance of `x` under `rule`, given relevance `R` of ``layer(x)``; everything in float64."""
    m = matrix_of(layer, tuple(x.shape[1:]))
    flat_x = x.detach().double().reshape(len(x), -1).numpy() @ m.pad.T
    flat_R = R.detach().double().reshape(len(R), -1).numpy()
    parts = RULES[rule](m, flat_x, **args)
    padded = sum(redistribute(part, m.wired, flat_R, eps, bias, drop_zero) for part in parts)
    return torch.from_numpy(padded @ m.pad).reshape(x.shape)


def well_conditioned(
    rule: str, layer: nn.Module, x: torch.Tensor, bias: str = "keep", margin: float = 0.05, **args: object
) -> torch.Tensor:
    """Where an output's denominators are not the small difference of large contributions (float64 tells nothing
    about a lower precision elsewhere: rounding there decides the sign). 1 or 0, shaped like ``layer(x)``."""
    m = matrix_of(layer, tuple(x.shape[1:]))
    flat_x = x.detach().double().reshape(len(x), -1).numpy() @ m.pad.T
    good = np.ones((len(x), len(m.weights)), dtype=bool)
    for part in [*RULES[rule](m, flat_x, **args), *epsilon(m, flat_x)]:
        b = np.zeros(len(m.weights)) if part.bias is None or bias == "zero" else part.bias
        size = np.abs(part.contributions).sum(-1) + np.abs(b)
        good &= (np.abs(part.contributions.sum(-1) + b) >= margin * size) & (size > 0)
    with torch.no_grad():
        return torch.from_numpy(good).to(x.dtype).reshape(layer(x).shape)
