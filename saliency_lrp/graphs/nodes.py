"""Nodes of a captured graph: what they stand for, whether they may be moved, and constants of the graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx


def attribute(graph: fx.GraphModule, name: str) -> Any:
    """What a ``get_attr`` node stands for."""
    return operator.attrgetter(name)(graph)


def constant_of(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor that a node stands for, where that is a constant of the graph."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attribute(graph, str(node.target))
    return value if isinstance(value, Tensor) else None


def new_constant(graph: fx.GraphModule, value: Tensor, before: fx.Node) -> fx.Node:
    """A node for a new constant of the graph."""
    taken = {name for name, _ in graph.named_buffers()}
    name = next(f"constant_{k}" for k in range(len(taken), 2 * len(taken) + 1) if f"constant_{k}" not in taken)
    graph.register_buffer(name, value, persistent=True)
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(name)


def new_call(graph: fx.GraphModule, before: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call before a node."""
    with graph.graph.inserting_before(before):
        return graph.graph.call_function(target, args)


def is_pure(node: fx.Node) -> bool:
    """Whether a call gives the same whenever it is made."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    return torch.Tag.nondeterministic_seeded not in target.tags


def writes(node: fx.Node) -> bool:
    """Whether a call writes into an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def looks_at_inputs(graph: fx.GraphModule) -> bool:
    """Whether Python was told a number that depends on the graph's inputs.

    Of constants (positions, masks) it may be told any: those calls are taken out.
    """
    depends: set[fx.Node] = set()
    for node in list(graph.graph.nodes):
        if node.op == "placeholder" or any(other in depends for other in node.all_input_nodes):
            depends.add(node)
        if torch.Tag.data_dependent_output in getattr(node.target, "tags", ()):
            if node in depends or node.users:
                return True
            graph.graph.erase_node(node)
    graph.recompile()
    return False


def unused_removed(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph without calls and constants that nothing needs."""
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph.named_buffers() if name not in used]:
        delattr(graph, name)
    graph.recompile()
    return graph
