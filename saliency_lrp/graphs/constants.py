"""Weights become a graph's own, what depends on them alone is computed once, and nothing is computed twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InputError
from .nodes import attribute, is_pure, new_constant, unused_removed, writes

aten = torch.ops.aten


def with_any_strides(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph without views, whose arguments may be laid out otherwise once writes are taken out."""
    for node in graph.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    graph.recompile()
    return graph


def without_parameters(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with weights as constants of its own: on the model's memory, off autograd."""
    found = [node for node in graph.graph.nodes if node.op == "get_attr"]
    values = {node.target: attribute(graph, node.target) for node in found}
    for target, value in values.items():
        if isinstance(value, Tensor):
            delattr(graph, target) if "." not in target else None
            graph.register_buffer(target.replace(".", "_"), value.detach(), persistent=True)
    for node in found:
        if isinstance(values[node.target], Tensor):
            node.target = node.target.replace(".", "_")
    graph.recompile()
    return graph


def keep_constants(graph: fx.GraphModule, model: nn.Module) -> None:
    """Let the graph keep its weights as they are now, whatever becomes of the model's."""
    live = {
        t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()) if t.layout == torch.strided
    }
    for name, value in list(graph.named_buffers()):
        if value.layout == torch.strided and value.untyped_storage().data_ptr() in live:
            setattr(graph, name, value.clone())


def computed_once(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with one call in place of equal ones: explanations share the forward pass, sites their weights.

    Nothing may be written into anything any more: what is shared here must stay as it is.
    """
    share_constants(graph)
    first: dict[str, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            key = str(node.target)
        elif node.op == "call_function" and is_pure(node):
            key = f"{node.target} {node.args!r} {node.kwargs!r}"
        else:
            continue
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.graph.erase_node(node)
        else:
            first[key] = node
    return unused_removed(graph)


def share_constants(graph: fx.GraphModule) -> None:
    """Let nodes for equal constants name the same."""
    alike: dict[Any, list[tuple[str, Tensor]]] = {}
    names: dict[str, str] = {}
    for name, value in graph.named_buffers():
        key = (value.shape, value.dtype, value.device, value.stride())
        known = alike.setdefault(key, [])
        names[name] = next((other for other, seen in known if torch.equal(seen, value)), name)
        if names[name] == name:
            known.append((name, value))
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(node.target, node.target)


def fold_constants(graph: fx.GraphModule) -> fx.GraphModule:
    """Compute once what depends on weights alone: folded batch norms, weights by sign, masks."""
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = attribute(graph, node.target)
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes) and is_pure(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])  # type: ignore[misc]
            if writes(node) and node.args[0].op == "get_attr":  # type: ignore[union-attr]
                continue  # into a weight: not here
            known[node] = node.target(*args, **kwargs)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node not in known or not isinstance(known[node], Tensor):
            continue
        if all(user in known for user in node.users):
            continue  # only what others need is kept
        node.replace_all_uses_with(new_constant(graph, known[node].detach().clone(), node))
    # what was written into a constant has been, once
    for node in reversed(list(graph.graph.nodes)):
        if node in known and not node.users:
            graph.graph.erase_node(node)
    graph = unused_removed(graph)
    if left := [node.format_node() for node in graph.graph.nodes if writes(node)]:
        raise InputError(f"a captured graph must not write into its constants, but this one does: {left[:3]}")
    return graph
