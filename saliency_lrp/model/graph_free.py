"""What a model keeps of a traced forward (states, caches, buffers) is free of its graph, which would live on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .written import TAG

#: Types of most attributes, in which no tensor can be.
SIMPLE = frozenset({bool, int, float, str, type(None)})

#: What every module has.
MODULE_TABLES = frozenset(vars(nn.Module()))


def apart(values: Any, kept: Iterable[Tensor | None]) -> Any:
    """Results of a forward, those that are tensors it wrote into as tensors of their own: these keep the graph."""
    ids = {id(t) for t in kept}

    def own(t: Tensor) -> Tensor:
        if id(t) not in ids or t.grad_fn is None:
            return t
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            alias = torch.ops.aten._unsafe_view(t, t.shape)
        tag = getattr(t, TAG, None)
        if tag is not None and tag.version == t._version:
            tag.version = alias._version
            setattr(alias, TAG, tag)
        return alias

    return tree_map_only(Tensor, own, values) if ids else values


def with_graphs(modules: Iterable[nn.Module]) -> dict[int, Tensor]:
    """Buffers and attributes that depend on something already, as those that another network made do."""
    tables = (table.values() for m in modules for table in (m._buffers, own_attributes(m)) if table)
    return {id(t): t for table in tables for t in table if isinstance(t, Tensor) and t.grad_fn is not None}


def free(written: Iterable[Tensor], modules: Iterable[nn.Module], before: Mapping[int, Tensor] | None = None) -> None:
    """Take graph and tag off everything that outlives the forward: tensors it wrote into, buffers and attributes.

    Parameters
    ----------
    written : iterable of Tensor
        Those that were written into, as far as it is known.
    modules : iterable of torch.nn.Module
        All of the model's.
    before : mapping, optional
        What :func:`with_graphs` said before the forward: all that has a graph now and had none then was made by it.
        Without, only tensors of a trace, which carry its tag.
    """

    def made(t: Tensor) -> bool:
        return hasattr(t, TAG) or (before is not None and t.grad_fn is not None and id(t) not in before)

    modules = list(modules)
    buffers = [b for module in modules for b in module._buffers.values() if b is not None]
    kept = [t for t in (*written, *buffers) if t.requires_grad and (t.grad_fn is not None or hasattr(t, TAG))]
    kept = [t for t in kept if before is None or id(t) not in before]
    for t in kept:
        base = t._base if t._is_view() else t
        if base is not None and base.grad_fn is not None and not base._is_view():
            base.detach_()
    for t in kept:
        if t._is_view() and t.requires_grad:
            renew(t)
        vars(t).pop(TAG, None)
    for module in modules:
        for name, value in own_attributes(module).items():
            if holds(value, made):
                vars(module)[name] = tree_map_only(Tensor, lambda t: t.detach() if made(t) else t, value)


def renew(view: Tensor) -> None:
    """The same tensor object as the same view of the same memory, without the graph that was written into it."""
    base = view._base
    assert base is not None, "a view has a base"
    with torch.inference_mode(False), torch.enable_grad():
        fresh = base.as_strided(view.shape, view.stride(), view.storage_offset())
    vars(fresh).update(vars(view))
    torch.utils.swap_tensors(view, fresh)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """What is kept on a module under a name, and may be or contain a tensor."""
    table = vars(module)
    return {name: value for name in table.keys() - MODULE_TABLES if type(value := table[name]) not in SIMPLE}


def holds(value: Any, made: Callable[[Tensor], bool]) -> bool:
    """Whether a value is, or contains in lists, tuples and dicts, such a tensor."""
    if isinstance(value, Tensor):
        return made(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):  # a union is slower, and this is asked of all attributes
        return False
    return not SIMPLE.issuperset(map(type, value)) and any(holds(v, made) for v in value)
