"""What no interception sees: autograd nodes that no intercepted call made, found by walking the graph.

A scripted or traced function, ``torch.vmap`` and ``torch.func``, a compiled piece, a custom ``autograd.Function``,
another thread: their calls are not intercepted, but what they compute is in the graph. A tensor that enters a call, or
leaves a module, without a tag of this trace has its graph walked to the next known node. So every node between output
and input is a site, was made by a call that was seen, moves values unchanged, or is named in the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..sites.site import Site

#: Key of what is known of a node of the graph, in its metadata: (trace, how deep in the model its result is).
KNOWN = "saliency_lrp"

#: Nodes that move values, or casts them, whoever made them: relevance passes them as a gradient does.
MOVES = frozenset(
    f"{name}Backward{k}"
    for k in (0, 1, 2)
    for name in (
        *"View UnsafeView ReshapeAlias Reshape Permute Transpose T Mt Expand Squeeze Unsqueeze Slice Select".split(),
        *"AsStrided Alias Clone ToCopy Narrow Diagonal Unfold Flip Roll Repeat Split SplitWithSizes Unbind".split(),
        *"UnsafeSplit UnsafeSplitWithSizes Cat Stack Index IndexSelect Gather Take MaskedSelect Movedim".split(),
        *"Flatten Unflatten Swapaxes Lift LiftFresh ViewAsReal ViewAsComplex Detach Tril Triu Trace".split(),
    )
) - {"TraceBackward0"} | {"CopyBackwards", "AccumulateGrad"}


#: What nodes are called that stand for more than one operation.
FUSED = {"CppFunction": "a graph of TorchScript"}


@dataclass
class Origin:
    """Where a tensor comes from.

    Attributes
    ----------
    depth : int or None
        How many linear sites lie between the model's input and it; None where it does not depend on the input.
    foreign : list
        Nodes on the way that no intercepted call made.
    """

    depth: int | None = None
    foreign: list[Any] = field(default_factory=list)


def mark(t: Tensor, token: object, depth: int) -> None:
    """Note that a call which was seen made this tensor, unless its node needs no such note."""
    node: Any = t.grad_fn
    if node is not None and type(node).__name__ not in MOVES:
        node.metadata[KNOWN] = (token, depth)


def origin(t: Tensor, token: object, binding: object, roots: Iterable[Tensor]) -> Origin:
    """Walk the graph of a tensor to the next nodes that are known; linear in what lies between."""
    start = t.grad_fn
    if start is None:
        return Origin()
    leaves = {id(root) for root in roots}
    users: dict[Any, list[Any]] = {start: []}
    pending, known = [start], {}
    while pending:
        node = pending.pop()
        depth = depth_of(node, token, binding, leaves)
        if depth is not None:
            known[node] = depth
            continue
        for before, _ in node.next_functions:
            if before is None:
                continue
            if before not in users:
                users[before] = []
                pending.append(before)
            users[before].append(node)
    if not known:
        return Origin()
    between: set[Any] = set()
    pending = list(known)
    while pending:
        for user in users[pending.pop()]:
            if user not in between:
                between.add(user)
                pending.append(user)
    foreign = [n for n in users if n in between and n not in known and type(n).__name__ not in MOVES]
    return Origin(max(known.values()), foreign)


def depth_of(node: Any, token: object, binding: object, leaves: set[int]) -> int | None:
    """How deep in the model the result of a known node is; None for a node that nothing is known of."""
    site = getattr(node, "site", None)
    if isinstance(site, Site):
        return site.depth_after if site.binding is binding else None
    leaf = getattr(node, "variable", None)
    if leaf is not None:
        return 0 if id(leaf) in leaves else None
    made_by, depth = node.metadata.get(KNOWN, (None, 0))
    return depth if made_by is token else None


def operations(nodes: Iterable[Any]) -> str:
    """The names of what nodes of the graph compute, each once: ``"add, mul"``."""
    names = {type(node).__name__.rstrip("0123456789").removesuffix("Backward") for node in nodes}
    return ", ".join(sorted(FUSED.get(name, name[:1].lower() + name[1:]) for name in names))


def is_custom(node: Any) -> bool:
    """Whether somebody's own ``torch.autograd.Function`` made a node."""
    return isinstance(node, BackwardCFunction)
