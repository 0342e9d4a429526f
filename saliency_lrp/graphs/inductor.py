"""A captured graph under ``torch.compile``, in the form and with the settings that suit where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from .blocked import AS_CONVOLUTIONS, products_as_convolutions
from .constants import computed_once, fold_constants, without_parameters


def for_cpu(graph: fx.GraphModule, arguments: tuple[Tensor, ...]) -> fx.GraphModule:
    """The same computation in calls that oneDNN serves with weights laid out in advance."""
    with torch.no_grad():
        found = make_fx(graph, decomposition_table=AS_CONVOLUTIONS)(*arguments)
        found = fold_constants(without_parameters(found))
        return computed_once(products_as_convolutions(found))


def inductor(graph: fx.GraphModule, arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The graph under ``torch.compile``; it is compiled here and now."""
    if arguments[0].device.type != "cpu":
        return torch.compile(graph)
    from torch._inductor import config

    # weights are constants to Inductor where this is so while it looks at the graph, not only while it makes code of it
    with torch.no_grad(), config.patch(freezing=True):
        compiled = torch.compile(for_cpu(graph, arguments))
        compiled(*arguments)
    return compiled


#: How a graph can be run, by name; None is the graph as it is.
BACKENDS: dict[str | None, Callable[[fx.GraphModule, tuple[Tensor, ...]], Callable[..., Any]]] = {
    None: lambda graph, arguments: graph,
    "inductor": inductor,
}
