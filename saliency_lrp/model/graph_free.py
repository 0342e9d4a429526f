"""What a model keeps of a traced forward (states, caches, buffers) is free of its graph, which would live on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..functions.call import Tag, tag_of
from ..interception import TAG

#: Types of most attributes, in which no tensor can be.
PLAIN = frozenset({bool, int, float, str, type(None)})

#: What every module has.
MODULE_TABLES = frozenset(vars(nn.Module()))


def apart(values: Any, kept: Iterable[Tensor]) -> Any:
    """Results of a forward, those that are tensors it wrote into as tensors of their own: these keep the graph."""
    ids = {id(t) for t in kept}

    def own(t: Tensor) -> Tensor:
        if id(t) not in ids or t.grad_fn is None:
            return t
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            alias = torch.ops.aten._unsafe_view(t, t.shape)
        tag: Tag | None = tag_of(t)
        if tag is not None and tag.version == t._version:
            tag.version = alias._version
            setattr(alias, TAG, tag)
        return alias

    return tree_map_only(Tensor, own, values) if ids else values


def free(written: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
    """Take graph and tag off everything that outlives the forward: tensors it wrote into, buffers and attributes."""
    modules = list(modules)
    buffers = [b for module in modules for b in module._buffers.values() if b is not None]
    kept = [t for t in (*written, *buffers) if t.requires_grad and (t.grad_fn is not None or hasattr(t, TAG))]
    for t in kept:
        base = t._base if t._is_view() else t
        if base.grad_fn is not None and not base._is_view():
            base.detach_()
    for t in kept:
        if t._is_view() and t.requires_grad:
            renew(t)
        vars(t).pop(TAG, None)
    for module in modules:
        free_attributes(module)


def renew(view: Tensor) -> None:
    """The same tensor object as the same view of the same memory, without the graph that was written into it."""
    with torch.inference_mode(False), torch.enable_grad():
        fresh = view._base.as_strided(view.shape, view.stride(), view.storage_offset())
    vars(fresh).update(vars(view))
    torch.utils.swap_tensors(view, fresh)


def free_attributes(module: nn.Module) -> None:
    """Activations that a module keeps under a name, also in lists, tuples and dicts, without their graph."""
    for name in vars(module).keys() - MODULE_TABLES:
        value = vars(module)[name]
        if type(value) not in PLAIN and holds_activations(value):
            vars(module)[name] = tree_map_only(Tensor, lambda t: t.detach() if hasattr(t, TAG) else t, value)


def holds_activations(value: Any) -> bool:
    """Whether a value is, or contains in lists, tuples and dicts, a tensor of a trace."""
    if isinstance(value, Tensor):
        return hasattr(value, TAG)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):  # noqa: UP038  # a union is slower, and this is asked of all attributes
        return False
    return any(holds_activations(v) for v in value)
