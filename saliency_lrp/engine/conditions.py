"""Conditional relevance: only what passes through chosen parts of some modules' outputs (Achtibat et al. 2023).

A path of relevance counts if it passes *every* conditioned module on its way, through a chosen part each time; what
goes around one, by a skip connection, does not. So relevance is first taken from the output to the uppermost of these
modules, where it is held, then from there to the next, and at last to the model's inputs. Modules on branches beside
each other cannot both be passed: there, what passes any of them counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..errors import InputError

Mask = Callable[[Tensor], Tensor]


@dataclass
class Gate:
    """One output of a conditioned module: where relevance arrives, and what of it passes."""

    name: str
    edge: GradientEdge
    mask: Mask


def mask_of(part: Any, shape: torch.Size, name: str) -> Mask:
    """What keeps the chosen part of the relevance of a module's output.

    Parameters
    ----------
    part : sequence of int, Tensor or callable
        Channel indices (axis 1; the last axis of (items, tokens, features)), a mask that broadcasts to the output, or
        a function of the relevance.
    shape : torch.Size
        Of the output.
    name : str
        The module's path, for errors.

    Raises
    ------
    InputError
        If it chooses nothing, or channels that the module does not have.
    """
    if callable(part):
        return part
    if isinstance(part, Tensor) and (part.dtype == torch.bool or part.is_floating_point()):
        if not bool(part.any()):
            raise InputError(f"the condition of module {name!r} is a mask without anything in it: it chooses nothing")
        return lambda R: R * part.to(R.device)
    axis = -1 if len(shape) == 3 else 1 if len(shape) > 1 else 0
    try:
        index = torch.as_tensor(part).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the condition of {name!r} should be channel indices, not {part!r:.80}") from error
    if index.numel() == 0:
        raise InputError(f"the condition of module {name!r} chooses no channel; give at least one of {shape[axis]}")
    if index.dtype == torch.bool and index.numel() == shape[axis]:
        index = index.nonzero().reshape(-1)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise InputError(
            f"the condition of module {name!r} should be channel indices, a mask or a function: {part!r:.80}"
        )
    if not -shape[axis] <= int(index.min()) <= int(index.max()) < shape[axis]:
        raise InputError(f"module {name!r} has {shape[axis]} channels; condition asks for {part!r}")

    def keep(R: Tensor) -> Tensor:
        mask = torch.zeros(R.shape[axis], dtype=R.dtype, device=R.device)
        mask[index.to(R.device)] = 1
        return R * mask.reshape(-1, *(1,) * (R.dim() - 1 - axis % R.dim()))

    return keep


def floors(gates: Sequence[Gate]) -> list[list[Gate]]:
    """Conditioned modules in the order in which relevance meets them; those beside each other together."""
    by_name: dict[str, list[Gate]] = {}
    for gate in gates:
        by_name.setdefault(gate.name, []).append(gate)
    nodes = {name: {gate.edge.node for gate in group} for name, group in by_name.items()}
    below = {name: ancestors(found) for name, found in nodes.items()}
    found, left = [], list(by_name)
    while left:
        top = [n for n in left if not any(nodes[n] & below[other] for other in left if other != n)] or left
        left = [n for n in left if n not in top]
        if len(top) > 1 and left:
            raise InputError(
                f"the conditioned modules {', '.join(map(repr, top))} lie beside each other, above {left[0]!r}: no "
                "relevance can pass all of them. Give one condition for each branch in a call of its own"
            )
        found.append([gate for n in top for gate in by_name[n]])
    return found


def ancestors(nodes: Iterable[Any]) -> set[Any]:
    """Nodes of the graph that relevance can reach from these, without them."""
    seen: set[Any] = set()
    pending = list(nodes)
    while pending:
        for before, _ in pending.pop().next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                pending.append(before)
    return seen


def at_edge(edge: GradientEdge, change: Mask) -> Any:
    """Change the relevance that arrives at one output of an autograd node; a handle to undo it."""

    def hook(Rs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(change(R) if k == edge.output_nr and R is not None else R for k, R in enumerate(Rs))

    return edge.node.register_prehook(hook)


def down_to_the_last(
    outputs: Sequence[Any],
    relevance: Sequence[Tensor],
    gates: Sequence[Gate],
    places: Sequence[GradientEdge],
    handles: list[Any],
) -> tuple[list[GradientEdge], list[Tensor], list[Tensor | None]]:
    """Where the relevance that counts starts: at the lowest conditioned modules, and how much of it.

    Also what arrives at some places on the way there, None where nothing does.

    Parameters
    ----------
    outputs, relevance
        Where relevance starts at the model's output.
    gates : sequence of Gate
        The conditioned modules.
    places : sequence of GradientEdge
        Where else relevance is read.
    handles : list
        Takes what undoes the masks, which stay for the pass that starts here.
    """
    above: list[Tensor | None] = [None] * len(places)
    for floor in floors(gates):
        edges = list({(g.edge.node, g.edge.output_nr): g.edge for g in floor}.values())
        holding = [at_edge(edge, torch.zeros_like) for edge in edges]
        try:
            values = torch.autograd.grad(outputs, [*edges, *places], relevance, retain_graph=True, allow_unused=True)
        finally:
            for handle in holding:
                handle.remove()
        arrived = values[: len(edges)]
        above = [old if new is None else new for old, new in zip(above, values[len(edges) :], strict=True)]
        outputs = [edge for edge, R in zip(edges, arrived, strict=True) if R is not None]
        relevance = [R for R in arrived if R is not None]
        if not outputs:
            break
        handles.extend(at_edge(gate.edge, gate.mask) for gate in floor)
    return list(outputs), list(relevance), above
