"""Forms of a graph that CPU kernels with weights laid out in advance serve: all convolutions, and forward ones.

What takes the time of a map on a CPU are convolutions and products with weights. oneDNN is faster where the weight was
laid out for it before, as Inductor does with constants (``freezing``); it does so for forward convolutions. So the
derivative of a convolution by its input is written as the convolution that it is, with the weight turned around, and a
product with a weight as a convolution of one pixel, which is faster than MKL's packed product on some machines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .nodes import constant_of, new_call, new_constant, unused_removed

aten = torch.ops.aten


def turned(w: Tensor, groups: int) -> Tensor:
    """The weight by which a convolution (stride 1) hands its gradient back: kernel mirrored, inputs for outputs."""
    parts = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return parts.flip(tuple(range(2, w.dim())))


def spread_out(y: Tensor, size: tuple[int, ...], stride: list[int]) -> Tensor:
    """Values at every ``stride``-th position of a larger, empty field (N, C, *size)."""
    for k, (n, s) in enumerate(zip(size, stride, strict=True)):
        axis = 2 + k
        if s == 1:
            continue
        y = y.unsqueeze(axis + 1)
        y = aten.constant_pad_nd(y, [0, 0] * (y.dim() - axis - 2) + [0, s - 1])
        y = y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])
        missing = n - y.shape[axis]
        y = aten.constant_pad_nd(y, [0, 0] * (y.dim() - axis - 1) + [0, missing]) if missing else y
    return y


def convolution_backward(
    c: Tensor, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, mask: Any,
) -> Any:  # fmt: skip
    """The gradient of a convolution's input as a convolution."""
    if mask[1] or mask[2] or transposed:
        return NotImplemented
    n = w.dim() - 2
    stride, padding, dilation = ([*v] * n if len(v) == 1 else [*v] for v in (stride, padding, dilation))
    size, kernel = tuple(x.shape[2:]), tuple(w.shape[2:])
    around = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if all(s == 1 for s in stride) and min(around) >= 0:
        return (
            aten.convolution(c, turned(w, groups), None, [1] * n, around, dilation, False, [0] * n, groups),
            None,
            None,
        )
    if all(k == 1 for k in kernel) and not any(padding):
        small = aten.convolution(c, turned(w, groups), None, [1] * n, [0] * n, [1] * n, False, [0] * n, groups)
        return spread_out(small, size, stride), None, None
    reached = [(c.shape[2 + k] - 1) * stride[k] - 2 * padding[k] + dilation[k] * (kernel[k] - 1) + 1 for k in range(n)]
    missing = [a - b for a, b in zip(size, reached, strict=True)]
    return aten.convolution(c, w, None, stride, padding, dilation, True, missing, groups), None, None


#: For ``make_fx``.
AS_CONVOLUTIONS = {aten.convolution_backward.default: convolution_backward}


def products_as_convolutions(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with products of (N, I) values and a constant weight as convolutions of one pixel."""
    for node in list(graph.graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
            continue
        *bias, x, weight = node.args
        value = constant_of(graph, weight)
        shift = constant_of(graph, bias[0]) if bias else None
        if value is None or value.dtype != torch.float32 or (bias and (shift is None or shift.dim() != 1)):
            continue
        kernel = new_constant(graph, value.t()[:, :, None, None].contiguous(), node)
        image = new_call(graph, node, aten.permute.default, x, [1, 0])
        image = new_call(graph, node, aten.unsqueeze.default, image, 0)
        image = new_call(graph, node, aten.unsqueeze.default, image, 3)
        made = new_call(
            graph, node, aten.convolution.default, image, kernel, *(bias or [None]),
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        )  # fmt: skip
        made = new_call(graph, node, aten.squeeze.dims, made, [0, 3])
        node.replace_all_uses_with(new_call(graph, node, aten.permute.default, made, [1, 0]))
    return unused_removed(graph)
