"""Somebody's own ``torch.autograd.Function``: no mode sees its call, so it is found in the graph, and reported.

One that maps one tensor to another of its shape is taken for an activation (the memory-efficient Swish of many
EfficientNets, straight-through estimators): relevance passes unchanged, and is conserved. Through any other, relevance
takes the function's own backward pass, like a gradient.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..rules import Gradient
from ..sites.site import Site

#: torch's own, which hand every tensor on as it is: full backward hooks of modules.
IDENTITIES = frozenset({"BackwardHookFunction"})

#: Key of a node's metadata that says that it was reported.
REPORTED = "saliency_lrp reported"


class CustomSite(Site):
    """What a composite is asked about: a function that is not in the table."""

    kind = "unknown"

    def __init__(self, name: str, path: str, module: Any, binding: Any) -> None:
        self.op, self.path, self.module, self.binding = name, path, module, binding
        self.index, self.rank, self.depth, self.arity = -1, -1, -1, 1
        self.is_output = self.folded_into_next = False
        self.gates = frozenset()


def keeps_shape(node: Any) -> bool:
    """Whether a node of the graph maps one tensor to one of its shape."""
    before = [(n, k) for n, k in node.next_functions if n is not None]
    if len(before) != 1 or len(node._input_metadata) != 1:
        return False
    (previous, k) = before[0]
    return tuple(previous._input_metadata[k].shape) == tuple(node._input_metadata[0].shape)


def pass_unchanged(node: Any, site: CustomSite) -> None:
    """Let relevance pass this node as it is; a plain gradient still goes through the function's own backward."""

    def replace(inward: tuple[Tensor | None, ...], outward: tuple[Tensor | None, ...]) -> Any:
        if isinstance(site.binding.composite.rule_for(site), Gradient):
            return None
        return tuple(None if r is None else outward[0] for r in inward)

    node.register_hook(replace)


def report(node: Any, interceptor: Any) -> None:
    """Decide on a custom function's node, and tell the user."""
    name = type(node).__name__.removesuffix("Backward")
    if name in IDENTITIES or REPORTED in node.metadata:
        return
    node.metadata[REPORTED] = True
    if keeps_shape(node):
        interceptor.unknown_call(name, "a custom autograd.Function", "relevance passes it unchanged, as an activation")
        path, module = interceptor.location()
        pass_unchanged(node, CustomSite(name, path, module, interceptor.binding))
    else:
        interceptor.unknown_call(name, "a custom autograd.Function")
