"""The model inside its wrappers, and in words why some cannot be explained."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


def unwrapped(model: Any) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile.

    Raises
    ------
    InputError
        For what is no ``nn.Module``, and for TorchScript, quantised and sharded models, and those without values.
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            break
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}: {model!r:.80}")
    for module, path in named_modules(model).items():
        if (why := refusal(module)) is not None:
            raise InputError(f"{path or 'the model'} ({type(module).__name__}) {why}")
        for kind, table in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, t in table.items():
                if t is not None and (why := refusal_of_values(t)) is not None:
                    raise InputError(f"{kind} {f'{path}.{name}'.lstrip('.')!r} {why}")
    return model


def refusal(module: nn.Module) -> str | None:
    """Why a module cannot be explained."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is TorchScript, whose calls cannot be seen: give the Python model that was scripted or traced"
    if ".quantized" in type(module).__module__ and not module._modules:
        return "is quantised and has no gradients: give the float model that was quantised"
    if is_a(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
        return (
            "is sharded (FSDP), so that no process has its whole weights: gather them, by a state dict of type "
            "FULL_STATE_DICT say, and give an unsharded copy of the model"
        )
    return None


def refusal_of_values(t: Tensor) -> str | None:
    """Why a parameter or buffer cannot be used."""
    if t.is_meta:
        return (
            "is on the meta device and has no values: load weights first, for example by "
            "model.to_empty(device='cpu') and model.load_state_dict(...)"
        )
    if is_a(t, "torch.distributed.tensor", "DTensor"):
        return (
            "is a DTensor, of which this process has a shard: give a copy of the model with whole weights, for "
            "example of parameter.full_tensor()"
        )
    if t.is_nested:
        return "is a nested tensor, whose items differ in size: give a padded one"
    return None


def is_a(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of a module that is imported only if somebody else has."""
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and isinstance(value, found)


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
