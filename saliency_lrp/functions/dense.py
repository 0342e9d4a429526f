"""Dense layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sites.call import Call
from ..sites.linear import LinearSite
from .any_linear import weighted
from .registry import kind


class Dense(LinearSite):
    """``a @ wᵀ``."""

    family = "dense"
    batches_maps = True
    own_axes: tuple[int, ...] = (-1,)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        return F.linear(a, w)

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        return torch.matmul(c, w)

    def scaled(self, w: Tensor, scale: Tensor) -> Tensor:
        return w * scale[:, None]


class DenseToScalar(Dense):
    """``a @ w`` with a weight vector: one output, without an axis of its own."""

    own_axes = ()

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        return c[..., None] * w

    def as_output(self, b: Tensor) -> Tensor:
        return b


@kind("linear")
def linear(call: Call) -> Any:
    return weighted(call, lambda w, b: (DenseToScalar if w.dim() == 1 else Dense)(call, w, b))
