"""A forward pass that takes a gradient itself (test-time training, energies and forces, Langevin steps).

Autograd hands relevance on while a model is traced, so that a gradient asked for inside its forward would be relevance.
The model is therefore run once as it is, its gradients are noted, and the traced forward is given those: its output is
the model's own. Relevance does not pass such a gradient, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils._pytree import tree_map_only

from ..as_written import AsWritten
from ..errors import InputError
from ..model.as_found import CallMode, as_found


class TakesGradient(BaseException):
    """A traced forward asked for a gradient; not an exception that a model would catch."""


def is_backward(func: Callable[..., Any]) -> bool:
    """Whether a function runs a backward pass."""
    return func is torch.autograd.grad or func is Tensor.backward


class Noted(CallMode):
    """Notes what ``torch.autograd.grad`` gives."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.autograd.grad and peek_interpreter_stack() is None:  # else it is a step of torch.func's
            self.gradients.append(tree_map_only(Tensor, lambda t: t.detach().clone(), found))
        return found


def gradients_inside(model: nn.Module, modules: Iterable[nn.Module], arguments: Any) -> list[Any]:
    """What the model's own gradients are, in the order in which it takes them."""
    args, kwargs = arguments.fresh()
    with as_found(model, modules), AsWritten(), Noted() as noted:
        model(*args, **kwargs)
    return noted.gradients


def next_gradient(interceptor: Any, func: Callable[..., Any]) -> Any:
    """What a traced forward gets that asks for a gradient."""
    where = repr(interceptor.location()[0] or "the model itself")
    if func is Tensor.backward:
        raise InputError(
            f"{where} calls backward() inside its forward, which would put gradients on its parameters while it is "
            "explained; let it use torch.autograd.grad"
        )
    if interceptor.gradients is None:
        raise TakesGradient
    interceptor.unknown_call(
        "torch.autograd.grad",
        "the model takes a gradient itself",
        "it counts as a constant: relevance does not pass it",
    )
    try:
        return next(interceptor.gradients)
    except StopIteration:
        raise InputError(
            f"{where} takes other gradients (torch.autograd.grad) each time it runs, so that it cannot be explained"
        ) from None
