"""Relevance of a network that is given as an explicit graph: slow, in float64, node by node, from the formulas.

Nothing here is shared with the package. Whatever is linear becomes the matrix that it is, found by pushing unit
vectors through torch's own function; the rules on those matrices are the ones of ``tests/helpers/reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import reference

#: stabiliser of everything that is not a layer with weights
TINY = 1e-12


@dataclass(frozen=True)
class Node:
    """One step: an operation on the results of earlier nodes. Node 0 of a graph is its input."""

    op: str
    inputs: tuple[int, ...]
    layer: int | None = None
    args: tuple = ()
    inplace: bool = False


@dataclass
class Graph:
    """Nodes in execution order (the last one is the output) and the layers that they use, some more than once."""

    nodes: list[Node] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)


def _slice(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    return x.narrow(axis, start, stop - start)


def _add_into(x: Tensor, y: Tensor, start: int) -> Tensor:
    stop = start + y.shape[1]
    return torch.cat([x[:, :start], x[:, start:stop] + y, x[:, stop:]], 1)


#: values only move
ROUTING: dict[str, Callable[..., Tensor]] = {
    "slice": _slice,
    "flip": lambda x, axis: torch.flip(x, (axis,)),
    "roll": lambda x, axis: torch.roll(x, 1, (axis,)),
    "turn": lambda x: x.transpose(2, 3),
    "swap_halves": lambda x: torch.cat([x[:, (x.shape[1] + 1) // 2 :], x[:, : (x.shape[1] + 1) // 2]], 1),
    "pad": lambda x: F.pad(x, (1, 0, 0, 1)),
    "reshape": lambda x: x.reshape(x.shape[0], -1).reshape(x.shape),
    "cat": lambda *xs: torch.cat(xs, 1),
    "stack": lambda *xs: torch.stack(xs, 2).flatten(1, 2),
    "buffer": lambda x, before: torch.cat([x.new_zeros(x.shape[0], before, *x.shape[2:]), x], 1),
    "flatten": lambda x: x.flatten(1),
    "dropout": lambda x: x,
}
#: in proportion to contributions
SUMS: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "mean": lambda x: x.mean((2, 3)),
    "upsample": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
}
#: one value at a time, relevance passes
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "softsign": F.softsign,
    "scale": lambda x, factor: x * factor,
    "divide": lambda x, factor: x / factor,
}
LAYERS_WITH_WEIGHTS = ("conv", "conv_transpose", "linear")


@dataclass
class Result:
    """Values and relevances of all nodes, and how near to 0 / 0 the worst division came."""

    values: list[Tensor]
    relevance: list[Tensor]
    conditioning: float


class Reference:
    """Explains a graph under one rule of ``tests/helpers/reference.py`` for all layers with weights."""

    def __init__(self, graph: Graph, rule: str, epsilon: float, bias: str = "keep", **options: float) -> None:
        self.graph, self.rule, self.epsilon, self.bias, self.options = graph, rule, epsilon, bias, options
        self.conditioning = 1.0

    # ------------------------------------------------------------------ forward

    def value(self, node: Node, xs: Sequence[Tensor]) -> Tensor:
        table = {**ROUTING, **SUMS, **ACTIVATIONS}
        if node.op in table:
            return table[node.op](*xs, *node.args)
        if node.layer is not None:
            return self.graph.layers[node.layer](*xs)
        return {
            "shift": lambda x: x + node.args[0],
            "gate": lambda x, g: x * torch.sigmoid(g),
            "product": lambda x, y: x * y,
            "max_pool": lambda x: F.max_pool2d(x, *node.args),
            "add_into": lambda x, y: _add_into(x, y, *node.args),
        }[node.op](*xs)

    def run(self, x: Tensor, target: int) -> Result:
        nodes = self.graph.nodes
        with torch.no_grad():
            values = [x]
            for node in nodes[1:]:
                values.append(self.value(node, [values[k] for k in node.inputs]))
        R = [torch.zeros_like(v) for v in values]
        R[-1][:, target] = values[-1][:, target]
        for k in range(len(nodes) - 1, 0, -1):
            for source, share in self.hand_back(k, values, R[k]):
                R[source] += share
        return Result(values, R, self.conditioning)

    # ------------------------------------------------------------------ backward

    def hand_back(self, k: int, values: list[Tensor], R: Tensor) -> list[tuple[int, Tensor]]:
        """(input node, its share of the relevance R of node k)."""
        node = self.graph.nodes[k]
        xs = [values[j] for j in node.inputs]
        if node.op in LAYERS_WITH_WEIGHTS:
            matrix = reference.matrix_of(self.graph.layers[node.layer], tuple(xs[0].shape[1:]))
            return [(node.inputs[0], self.by_rule(matrix, xs[0], R))]
        if node.op == "batch_norm":
            return [self.batch_norm(node, values, R)]
        if node.op in ROUTING:
            shares = [self.transposed(node, xs, j, R) for j in range(len(xs))]
        elif node.op in SUMS:
            shares = self.proportional(node, xs, values[k], R)
        elif node.op in ACTIVATIONS:
            shares = [R]
        else:
            shares = getattr(self, node.op)(node, xs, values[k], R)
        return list(zip(node.inputs, shares, strict=True))

    def divide(self, R: Tensor, z: Tensor, size: Tensor, epsilon: float) -> Tensor:
        """R / (z + ε sgn z); ``size`` is Σ|contributions|, from which the conditioning is told."""
        asked = (R != 0) & (size != 0)
        if bool(asked.any()):
            self.conditioning = min(self.conditioning, float((z.abs() / size)[asked].min()))
        return R / (z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z))

    def by_rule(self, matrix: reference.Matrix, x: Tensor, R: Tensor) -> Tensor:
        a, r = x.reshape(len(x), -1).numpy() @ matrix.pad.T, R.reshape(len(R), -1).numpy()
        parts = reference.RULES[self.rule](matrix, a, **self.options)
        for part in [*parts, *reference.epsilon(matrix, a)]:
            b = 0.0 if part.bias is None or self.bias == "zero" else part.bias
            z, size = part.contributions.sum(-1) + b, np.abs(part.contributions).sum(-1) + np.abs(b)
            asked = (r != 0) & (size != 0)
            if asked.any():
                self.conditioning = min(self.conditioning, (np.abs(z)[asked] / size[asked]).min())
        shares = [reference.redistribute(p, matrix.wired, r, self.epsilon, self.bias, False) for p in parts]
        return torch.from_numpy(sum(shares) @ matrix.pad).reshape(x.shape)

    def batch_norm(self, node: Node, values: list[Tensor], R: Tensor) -> tuple[int, Tensor]:
        """Folded into the layer whose output it reads, or a diagonal layer of its own."""
        norm, (k,) = self.graph.layers[node.layer], node.inputs
        gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        shift = (norm.bias - norm.running_mean * gain).detach()
        shape = values[k].shape[1:]
        gain, shift = (v.reshape(-1, 1, 1).expand(shape).reshape(-1).numpy() for v in (gain, shift))
        before = self.graph.nodes[k]
        if before.op not in LAYERS_WITH_WEIGHTS:
            own = reference.Matrix(np.eye(len(gain)), np.diag(gain), np.eye(len(gain)), shift)
            return k, self.by_rule(own, values[k], R)
        (source,) = before.inputs
        m = reference.matrix_of(self.graph.layers[before.layer], tuple(values[source].shape[1:]))
        bias = shift if m.bias is None else m.bias * gain + shift
        merged = replace(m, weights=gain[:, None] * m.weights, bias=bias)
        return source, self.by_rule(merged, values[source], R)

    def transposed(self, node: Node, xs: list[Tensor], j: int, c: Tensor) -> Tensor:
        """The transposed matrix of a linear operation, seen from its j-th input, times c."""
        return (c.reshape(len(c), -1) @ self.matrix(node, xs, j)).reshape(xs[j].shape)

    def matrix(self, node: Node, xs: list[Tensor], j: int) -> Tensor:
        n = xs[j][0].numel()
        units = [torch.zeros(n, *x.shape[1:], dtype=x.dtype) for x in xs]
        units[j] = torch.eye(n, dtype=xs[j].dtype).reshape(n, *xs[j].shape[1:])
        return self.value(node, units).reshape(n, -1).T

    def proportional(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        matrices = [self.matrix(node, xs, j) for j in range(len(xs))]
        size = sum(x.reshape(len(x), -1).abs() @ m.abs().T for x, m in zip(xs, matrices, strict=True))
        c = self.divide(R, z, size.reshape(z.shape), TINY).reshape(len(R), -1)
        return [x * (c @ m).reshape(x.shape) for x, m in zip(xs, matrices, strict=True)]

    # one method per remaining operation, named after it

    def shift(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        (x,) = xs
        return [x * self.divide(R, z, x.abs() + abs(node.args[0]), TINY)]

    def gate(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        return [R, torch.zeros_like(R)]

    def product(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        return [R / 2, R / 2]

    def add_into(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        x, y = xs
        span = slice(node.args[0], node.args[0] + y.shape[1])
        c = self.divide(R[:, span], z[:, span], x[:, span].abs() + y.abs(), TINY)
        whole = R.clone()
        whole[:, span] = x[:, span] * c
        return [whole, y * c]

    def max_pool(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        (x,), (kernel, stride, padding) = xs, node.args
        out = torch.zeros_like(x)
        height, width = x.shape[2:]
        for n, c, i, j in np.ndindex(*R.shape):
            rows = range(max(i * stride - padding, 0), min(i * stride - padding + kernel, height))
            columns = range(max(j * stride - padding, 0), min(j * stride - padding + kernel, width))
            window = [(float(x[n, c, p, q]), p, q) for p in rows for q in columns]
            _, p, q = max(window, key=lambda entry: entry[0])  # the first of equal ones
            out[n, c, p, q] += R[n, c, i, j]
        return [out]

    def normalization(self, node: Node, xs: list[Tensor], z: Tensor, R: Tensor) -> list[Tensor]:
        """(x - mean) / std · gain + shift, where 1 / std is a constant and the mean is linear in x."""
        (x,), layer = xs, self.graph.layers[node.layer]
        groups = {"GroupNorm": lambda: layer.num_groups, "InstanceNorm2d": lambda: x.shape[1]}
        g = groups.get(type(layer).__name__, lambda: 1)()
        grouped = x.reshape(len(x), g, -1)
        size = grouped.shape[-1]
        center = torch.eye(size, dtype=x.dtype) - 1.0 / size
        std = (grouped.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
        gain = torch.ones(x.shape[1:], dtype=x.dtype)
        if layer.weight is not None:
            w = layer.weight.detach()
            gain = gain * (w if w.dim() == 3 else w.reshape(-1, 1, 1))
        parts = (grouped.abs() @ center.abs() / std).reshape(x.shape) * gain.abs()
        shift = torch.zeros_like(parts) if layer.bias is None else layer.bias.detach().abs()
        shift = shift.reshape(-1, 1, 1) if shift.dim() == 1 else shift
        c = self.divide(R, z, parts + shift, TINY) * gain
        return [grouped.mul((c.reshape(grouped.shape) / std) @ center).reshape(x.shape)]
