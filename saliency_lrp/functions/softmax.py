"""Softmax: its output is a gate, its own relevance is the composite's choice (AttnLRP or CP-LRP)."""

from __future__ import annotations

from typing import Any

from ..sites.call import Call
from ..sites.site import Site
from ..sites.tag import GATE
from .pointwise import ActivationSite
from .registry import kind


class SoftmaxSite(Site):
    """``exp(x) / Σ exp(x)`` along ``dim``."""

    kind = "softmax"

    def __init__(self, call: Call, dim: int) -> None:
        super().__init__(call)
        self.dim = dim


@kind("softmax")
def softmax(call: Call) -> Any:
    x = call.activations[0]
    dim = call.arg(1, "dim")
    if dim is None:  # torch's legacy choice
        dim = 0 if x.dim() in (0, 1, 3) else 1
    return call.node(SoftmaxSite(call, dim), gate=GATE, nonnegative=True)


@kind("log softmax")
def log_softmax(call: Call) -> Any:
    return call.node(ActivationSite(call))
