"""Batch norms: a linear layer by themselves, folded into the one before where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites.batch_norm import BatchNorm
from ..sites.call import Call
from ..sites.linear import BatchNormSite, linear_node
from ..sites.tag import tag_of
from .layers import fold, layer_before
from .normalization import NormalizationSite, per_channel
from .registry import kind


@kind("batch norm")
def batch_norm(call: Call) -> Any:
    x = call.arg(0, "input")
    mean, var = call.arg(1, "running_mean"), call.arg(2, "running_var")
    training = call.name == "batch_norm" and call.arg(5, "training", False)
    if call.func is torch.batch_norm or hasattr(call.func, "overloads") or hasattr(call.func, "_overloadname"):
        # the order of torch and aten is (input, weight, bias, mean, var, training, momentum, eps, cudnn)
        weight, bias, mean, var, eps = call.args[1], call.args[2], call.args[3], call.args[4], call.args[7]
    else:
        weight, bias, eps = call.arg(3, "weight"), call.arg(4, "bias"), call.arg(7, "eps", 1e-5)
    if training or mean is None:
        return statistics_of_the_batch(call, x, weight, bias, eps)
    out = call.as_is("linear", [x])
    if out is not None:
        return out
    affine = BatchNorm(mean, var, weight, bias, eps)
    tag = tag_of(x)
    layer = layer_before(tag, x) if tag is not None and x.dim() > 1 else None
    # a dense layer on (N, C, features) puts features last, where the batch norm's channels are not
    out = fold(call, layer, affine, 1 - x.dim(), None) if layer is not None else None
    if out is not None:
        return out
    return linear_node(call, BatchNormSite(call, affine, channel_axis=1 - x.dim() if x.dim() > 1 else -1), x)


@kind("instance norm")
def instance_norm(call: Call) -> Any:
    x = call.arg(0, "input")
    use_input_stats = call.arg(5, "use_input_stats", True)
    if not use_input_stats:
        return batch_norm(call)  # its first arguments stand in the same order
    gain = per_channel(call.arg(3, "weight"), x)
    return call.node(NormalizationSite(call, (*x.shape[:2], -1), (2,), call.arg(7, "eps", 1e-5), gain), [x])


def statistics_of_the_batch(call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """A batch norm without running statistics: it normalises by those of the batch it is given."""
    axes = (0, *range(2, x.dim()))
    call.interceptor.note(
        f"{call.name} at {call.path!r} has no running statistics: the map of an image depends on the rest of its batch"
    )
    return call.node(NormalizationSite(call, tuple(x.shape), axes, eps, per_channel(weight, x)), [x])
