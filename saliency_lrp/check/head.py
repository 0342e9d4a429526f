"""A copy of a model whose head is drawn anew; everything else is the model's own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..explainers.base import run_model
from ..model.as_found import as_found


def sharing_copy(model: nn.Module) -> nn.Module:
    """A model of its own modules with the same tensors in them: costs no memory, and its hooks are its own."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def last_weighted(model: nn.Module, x: Tensor) -> nn.Module | None:
    """The module with a matrix or kernel of its own that ran last; hooks are put on ``model``, so give a copy."""
    ran: list[nn.Module] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        ran.append(module)

    weighted = [m for m in model.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    hooks = [module.register_forward_hook(note) for module in weighted]
    with as_found(model), torch.no_grad():
        run_model(model, x.clone())
    for hook in hooks:
        hook.remove()
    return ran[-1] if ran else None


def head_drawn_anew(model: nn.Module, x: Tensor, random_seed: int) -> nn.Module | None:
    """A copy with other weights in the last layer: as large as the model's on average, and saying nothing.

    None where the last layer cannot be told (a model that computes with its parameters itself).
    """
    try:
        changed = sharing_copy(model)
    except (RuntimeError, TypeError, AttributeError):
        return None  # it holds what cannot be copied: locks, files, tensors on the way to a gradient
    head = last_weighted(changed, x)
    if head is None:
        return None
    generator = torch.Generator().manual_seed(random_seed)
    for name, p in list(head.named_parameters(recurse=False)):
        values = p.detach().float().cpu()
        drawn = torch.randn(p.shape, generator=generator) * values.std(correction=0) + values.mean()
        setattr(head, name, nn.Parameter(drawn.to(p), requires_grad=p.requires_grad))
    return changed
