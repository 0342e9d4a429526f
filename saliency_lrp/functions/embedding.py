"""Rows looked up in a table that itself depends on the model's input (constant tables are where ids enter)."""

from __future__ import annotations

from typing import Any

from ..sites.call import Call
from .decompositions import in_steps
from .registry import kind
from .sums import CompleteSum
from .unknown import unknown


@kind("embedding")
def embedding(call: Call) -> Any:
    """Values only move; what the options say of gradients does not concern relevance."""
    table = call.arg(1, "weight")
    if not call.is_activation(table) or call.arg(3, "max_norm") is not None or len(call.activations) > 1:
        return unknown(call)
    return call.reroute(lambda ids: table[ids], call.arg(0, "input"))


@kind("embedding bag")
def embedding_bag(call: Call) -> Any:
    """Sums, means or maxima of rows: linear in the table, or in the weights of the rows."""
    torchs_own = not call.kwargs  # the operator, which returns more than the sums
    if torchs_own or call.arg(4, "max_norm") is not None:
        return unknown(call)
    if len(call.activations) > 1:  # products of vectors and their weights
        return in_steps(call)
    options = {**call.kwargs, "scale_grad_by_freq": False, "sparse": False}
    plain = Call(call.func, call.name, call.args, options, call.activations, False, call.interceptor)
    return plain.node(CompleteSum(plain))
