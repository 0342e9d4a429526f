"""Run a model for an explanation and leave it exactly as it was found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def _lock_of(model: nn.Module) -> threading.RLock:
    """The lock that keeps two threads from changing one model's flags at the same time."""
    with _locks_guard:
        return _locks.setdefault(model, threading.RLock())


class _ModuleState:
    """What an explanation could change on one module: mode, hooks and a patched ``forward``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.hooks = {name: dict(getattr(module, name)) for name in _HOOK_TABLES}
        self.had_forward = "forward" in module.__dict__
        self.forward = module.__dict__.get("forward")

    def restore(self) -> None:
        self.module.training = self.training
        for name, saved in self.hooks.items():
            table = getattr(self.module, name)
            if list(table.items()) != list(saved.items()):
                # In place: the handles of the user's hooks point at this very table.
                table.clear()
                table.update(saved)
        if self.had_forward:
            self.module.__dict__["forward"] = self.forward
        else:
            self.module.__dict__.pop("forward", None)


class _ParameterState:
    """Gradient and ``requires_grad`` of one parameter."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.grad = parameter.grad
        self.requires_grad = parameter.requires_grad

    def restore(self) -> None:
        if self.parameter.grad is not self.grad:
            self.parameter.grad = self.grad
        if self.parameter.requires_grad != self.requires_grad:
            self.parameter.requires_grad_(self.requires_grad)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer (CPU where it has none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """Give the caller's random number generators back unchanged."""
    device = device_of(model)
    kept = torch.get_rng_state()
    kept_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(kept)
        if kept_device is not None:
            torch.cuda.set_rng_state(kept_device, device)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode inside; restore everything outside.

    Training flags are set module by module, without calling ``train()`` or ``eval()``, which a
    model may override. Restored, also when an exception passes: training flags, hooks, patched
    ``forward`` methods, ``requires_grad``, ``.grad`` and the random number generators. Inside,
    gradients are enabled even under ``torch.no_grad()`` or ``torch.inference_mode()``.

    Parameters
    ----------
    model : torch.nn.Module
        The model about to be explained. Only one thread at a time gets in per model.
    """
    with _lock_of(model), torch.inference_mode(False), torch.enable_grad(), _random_state(model):
        modules = [_ModuleState(module) for module in model.modules()]
        parameters = [_ParameterState(parameter) for parameter in model.parameters()]
        try:
            for state in modules:
                state.module.training = False
            yield
        finally:
            for state in (*modules, *parameters):
                state.restore()


@contextmanager
def _moved(model: nn.Module, device: torch.device) -> Iterator[None]:
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(homes) != 1:
        yield  # spread over devices on purpose, or without any state: moving would break or do nothing
        return
    try:
        model.to(device)
        yield
    finally:
        model.to(homes.pop())


def on_device(model: nn.Module, device: torch.device):
    """Hold the model on `device` for the duration of the context; nothing moves if it is there."""
    return nullcontext() if device_of(model) == device else _moved(model, device)
