"""Mixtures of experts in one call: rows sorted by expert, each through its own expert's weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.linear import linear_node
from .any_linear import AnyLinear, dynamic_weight
from .registry import kind
from .unknown import unknown


@kind("experts")
def grouped_matrix_product(call: Call) -> Any:
    """``grouped_mm(rows, weights, offs)``: rows to ``offs[0]`` by the first weight, on to ``offs[1]`` by the next."""
    x, w = call.args[0], call.args[1]
    offs = call.arg(2, "offs")
    if call.arg(3, "bias") is not None or not call.is_activation(x) or x.dim() != 2 or w.dim() != 3 or offs is None:
        return unknown(call)
    dynamic_weight(call, x)
    ends = offs.tolist()

    def run(a: Tensor, weights: Tensor) -> Tensor:
        """In any precision; the fused function takes few."""
        starts = [0, *ends]
        parts = [a[s:e] @ v for s, e, v in zip(starts, ends, weights, strict=False)]
        return torch.cat([*parts, a.new_zeros(len(a) - starts[-1], weights.shape[-1])])

    return linear_node(call, AnyLinear(call, w, run, own_axes=(-1,)), x)
