"""The user's model, as it was found: what can be explained, and eval mode for a while."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from .errors import InputError


def named_modules(model: nn.Module) -> dict[nn.Module, str]:
    """Every module and its dotted path, as ``model.named_modules()`` has them, which takes several times as long."""
    found: dict[nn.Module, str] = {}
    pending: list[tuple[str, nn.Module | None]] = [("", model)]
    while pending:
        path, module = pending.pop()
        if module is None or module in found:
            continue
        found[module] = path
        prefix = f"{path}." if path else ""
        pending.extend((prefix + name, child) for name, child in reversed(module._modules.items()))
    return found


_flags_lock = threading.Lock()
_flags: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[tuple[nn.Module, bool]]]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def evaluating(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode for a while, every module's own flag restored; nests, also across threads.

    The flags are set one by one: a model's own ``train()`` may do more than that.
    """
    with _flags_lock:
        count, flags = _flags.get(model, (0, []))
        if count == 0:
            flags = [(m, m.training) for m in modules]
            for m, flag in flags:
                if flag:
                    m.training = False
        _flags[model] = (count + 1, flags)
    try:
        yield
    finally:
        with _flags_lock:
            count, flags = _flags[model]
            if count == 1:
                for m, flag in flags:
                    if m.training != flag:  # also one that the model's own forward set
                        m.training = flag
                del _flags[model]
            else:
                _flags[model] = (count - 1, flags)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, torch.compile; an error for what cannot be explained."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}: {model!r:.80}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{name or 'the model'} is TorchScript, whose calls cannot be seen; give the nn.Module it was made from"
            )
        if "quantized" in type(module).__module__:
            raise InputError(
                f"{name or 'the model'} is a quantised module ({type(module).__name__}); give the float model "
                "that it was made from"
            )
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if p.is_meta:
            raise InputError(f"parameter {name!r} is on the meta device and has no values; load weights first")
    return model
