"""Batch norms and factors of channels become part of the weights beside them; copies that nothing needs go.

A frozen batch norm multiplies and shifts channels, and so does much of what rules do to the outputs of a convolution.
In a graph of fixed weights all of that is arithmetic on the weights, done once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .nodes import constant_of, new_call, new_constant, unused_removed

aten = torch.ops.aten

#: Precisions in which weights may be changed: in lower ones they would be rounded once more.
WIDE = (torch.float32, torch.float64)
SHAPES = frozenset({aten.reshape.default, aten.view.default, aten.expand.default})
LEGIT_NORM = aten._native_batch_norm_legit_no_training.default  # noqa: SLF001  # an operator that graphs have
#: Calls that give their argument as it is, where nothing is written into anything.
COPIES = frozenset({aten.detach.default, aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default})


def without_copies(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph without copies of what nobody writes into, and without new shapes that are the old ones."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and (
            node.target in COPIES or (node.target in SHAPES and is_of_one_shape(node, node.args[0]))
        ):
            node.replace_all_uses_with(node.args[0])
    return unused_removed(graph)


def fold_factors(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with frozen batch norms, factors and summands of channels in the weights of convolutions."""
    for folds in (
        BACKWARD,
        FORWARD,
    ):  # what the derivative of a norm wants of its input is gone before its output's turn
        for node in list(graph.graph.nodes):
            fold = folds.get(node.target)
            if fold is not None:
                fold(graph, node)
        graph = unused_removed(graph)
    return graph


def is_of_one_shape(node: fx.Node, other: Any) -> bool:
    """Whether two values were seen to have the same shape."""
    now, before = (n.meta.get("tensor_meta") for n in (node, other))
    return now is not None and before is not None and now.shape == before.shape


# ------------------------------------------------------------------------------------------------ batch norms


def norm(graph: fx.GraphModule, node: fx.Node) -> None:
    """A frozen batch norm: x · scale + shift."""
    x, weight, bias, mean, variance, *rest = node.args
    if node.target is aten.native_batch_norm.default:
        training, rest = rest[0], rest[1:]
        if training:
            return
    scale = scale_of(graph, weight, variance, float(rest[-1]))  # type: ignore[arg-type]
    average, offset = constant_of(graph, mean), constant_of(graph, bias)
    if scale is None or average is None or (bias is not None and offset is None):
        return
    shift = -average * scale if offset is None else offset - average * scale
    dims = dims_of(x)
    if dims is None:
        return
    made = scaled(graph, node, x, scale, dims)
    made = shifted(graph, node, made, shift, dims)
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(made)


def norm_backward(graph: fx.GraphModule, node: fx.Node) -> None:
    """The derivative of a frozen batch norm: c · scale."""
    c, _, weight, _, variance, _, _, training, epsilon, mask = node.args
    if training or mask != [True, False, False]:
        return
    scale, dims = scale_of(graph, weight, variance, float(epsilon)), dims_of(c)  # type: ignore[arg-type]
    if scale is None or dims is None:
        return
    made = scaled(graph, node, c, scale, dims)
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(made)


def scale_of(graph: fx.GraphModule, weight: Any, variance: Any, epsilon: float) -> Tensor | None:
    """What a frozen batch norm multiplies each channel by."""
    spread, factor = constant_of(graph, variance), constant_of(graph, weight)
    if spread is None or (weight is not None and factor is None) or spread.dtype not in WIDE:
        return None
    scale = torch.rsqrt(spread + epsilon)
    return scale if factor is None else scale * factor


def dims_of(node: Any) -> int | None:
    """How many axes a value has, as it was seen when the graph was captured."""
    seen = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return None if seen is None else len(seen.shape)


# ------------------------------------------------------------------------------------------------ into weights


def scaled(graph: fx.GraphModule, before: fx.Node, x: Any, scale: Tensor, dims: int) -> fx.Node:
    """x · scale by channel: by the weights of the convolution that makes x, if it makes it for this alone."""
    if is_own_convolution(graph, x):
        _, weight, bias, *rest = x.args
        old = constant_of(graph, weight)
        assert old is not None
        new_bias = None
        if bias is not None:
            shift = constant_of(graph, bias)
            assert shift is not None
            new_bias = new_constant(graph, shift * scale, before)
        new_weight = new_constant(graph, old * scale.reshape(-1, *[1] * (old.dim() - 1)), before)
        return like(new_call(graph, before, x.target, x.args[0], new_weight, new_bias, *rest), x)
    return like(new_call(graph, before, aten.mul.Tensor, x, by_channel(graph, before, scale, dims)), x)


def shifted(graph: fx.GraphModule, before: fx.Node, x: Any, shift: Tensor, dims: int) -> fx.Node:
    """x + shift by channel, as the bias of the convolution that makes x, if it makes it for this alone."""
    if is_own_convolution(graph, x):
        y, weight, bias, *rest = x.args
        old = constant_of(graph, bias)
        new_bias = new_constant(graph, shift if old is None else old + shift, before)
        return like(new_call(graph, before, x.target, y, weight, new_bias, *rest), x)
    return like(new_call(graph, before, aten.add.Tensor, x, by_channel(graph, before, shift, dims)), x)


def is_own_convolution(graph: fx.GraphModule, x: Any) -> bool:
    """Whether x is made by a convolution of constant weights, and nothing else wants it as it is."""
    if not isinstance(x, fx.Node) or x.target is not aten.convolution.default or len(x.users) > 1:
        return False
    weight, bias, transposed = x.args[1], x.args[2], x.args[6]
    value = constant_of(graph, weight)
    if transposed or value is None or value.dtype not in WIDE:
        return False
    return bias is None or constant_of(graph, bias) is not None


def by_channel(graph: fx.GraphModule, before: fx.Node, values: Tensor, dims: int) -> fx.Node:
    """Values of channels as a constant that spreads over (N, C, ...)."""
    return new_constant(graph, values.reshape(-1, *[1] * (dims - 2)), before)


def like(made: fx.Node, other: fx.Node) -> fx.Node:
    """A node of the shape of another."""
    if "tensor_meta" in other.meta:
        made.meta["tensor_meta"] = other.meta["tensor_meta"]
    return made


def channels(value: Tensor | None, x: Any) -> Tensor | None:
    """The values (C,) of a constant that multiplies or shifts the channels of x (N, C, ...), if it is one."""
    dims = dims_of(x)
    if value is None or dims is None or dims < 3:
        return None
    shape = [1] * (dims - value.dim()) + list(value.shape)
    count = x.meta["tensor_meta"].shape[1]
    if len(shape) != dims or any(n != 1 for axis, n in enumerate(shape) if axis != 1) or shape[1] not in (1, count):
        return None
    return value.reshape(-1).expand(count)


def factor(graph: fx.GraphModule, node: fx.Node) -> None:
    """A product with constants of channels."""
    x, by = node.args
    scale = channels(constant_of(graph, by), x)
    if scale is not None and is_own_convolution(graph, x):
        node.replace_all_uses_with(scaled(graph, node, x, scale, dims_of(x)))  # type: ignore[arg-type]


def summand(graph: fx.GraphModule, node: fx.Node) -> None:
    """A sum with constants of channels."""
    x, by = node.args
    shift = channels(constant_of(graph, by), x)
    if shift is not None and is_own_convolution(graph, x) and not node.kwargs:
        node.replace_all_uses_with(shifted(graph, node, x, shift, dims_of(x)))  # type: ignore[arg-type]


def factor_before(graph: fx.GraphModule, node: fx.Node) -> None:
    """A product with constants of channels that a convolution's derivative is given."""
    c, x, weight, *rest = node.args
    old = constant_of(graph, weight)
    transposed, mask = rest[4], rest[7]
    if old is None or old.dtype not in WIDE or transposed or mask != [True, False, False]:
        return
    if not isinstance(c, fx.Node) or c.target is not aten.mul.Tensor:
        return
    scale = channels(constant_of(graph, c.args[1]), c.args[0])
    if scale is None:
        return
    new_weight = new_constant(graph, old * scale.reshape(-1, *[1] * (old.dim() - 1)), node)
    node.args = (c.args[0], x, new_weight, *rest)


Fold = Callable[[fx.GraphModule, fx.Node], None]
BACKWARD: dict[Any, Fold] = {aten.native_batch_norm_backward.default: norm_backward}
FORWARD: dict[Any, Fold] = {
    aten.native_batch_norm.default: norm,
    LEGIT_NORM: norm,
    aten.mul.Tensor: factor,
    aten.add.Tensor: summand,
    aten.convolution_backward.default: factor_before,
}
