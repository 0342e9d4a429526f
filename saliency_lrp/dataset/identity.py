"""A digest of functions, settings and data that is the same in another process, and another for another job."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: How many items of a data set are looked at.
SAMPLE = 64
#: Up to how many bytes a tensor of all items is looked at as a whole.
AT_ONCE = 2**28
#: How deep settings may nest.
DEPTH = 6

MODULE_TABLES = frozenset(vars(nn.Module())) | {"_forward_module"}


def digest(*parts: bytes | str) -> str:
    """16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]


def of_tensor(t: Tensor) -> str:
    """Type, shape and values."""
    t = t.detach().cpu()
    values = t.to_dense() if t.layout != torch.strided else t
    raw = values.contiguous().reshape(-1).view(torch.uint8) if values.numel() else torch.empty(0, dtype=torch.uint8)
    return digest(str(t.dtype), str(tuple(t.shape)), raw.numpy().tobytes())


def of_weights(model: nn.Module) -> str:
    """All weights and buffers that are saved with the model."""
    state = sorted(model.state_dict().items())
    return digest(*(f"{name} {of_tensor(v) if isinstance(v, Tensor) else of(v)}" for name, v in state))


def settings(model: nn.Module, depth: int = DEPTH) -> dict[tuple[str, str], str]:
    """By path of a module and name, its class and what its author has set on it besides weights."""
    found = {}
    for path, module in model.named_modules():
        found[path, ""] = f"{type(module).__module__}.{type(module).__qualname__} {module.extra_repr()}"
        for name in sorted(vars(module).keys() - MODULE_TABLES):
            found[path, name] = of(vars(module)[name], depth)
    return found


def by_module(found: Mapping[tuple[str, str], str], but: Iterable[str] = ()) -> dict[str, str]:
    """A digest of each module's settings, but of those (``"path.name"``) that a forward changes itself."""
    left_out = set(but)
    parts: dict[str, list[str]] = {}
    for (path, name), value in found.items():
        if f"{path}.{name}" not in left_out:
            parts.setdefault(path, []).append(f"{name}={value}")
    return {path: digest(*values) for path, values in parts.items()}


def of(value: Any, depth: int = DEPTH) -> str:
    """Any value; of a function, where it is, its source, and the values that it closes over."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return f"{type(value).__name__} {value!r}"
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        return of_array(np.asarray(value))
    if isinstance(value, nn.Module):
        return digest(of_weights(value), *map(str, by_module(settings(value, depth - 1)).items()))
    if isinstance(value, Mapping):
        return digest(*(f"{of(k, depth - 1)}: {of(v, depth - 1)}" for k, v in value.items()))
    if isinstance(value, list | tuple):
        return digest(type(value).__name__, *(of(v, depth - 1) for v in value))
    if isinstance(value, set | frozenset):
        return digest(*sorted(of(v, depth - 1) for v in value))
    if isinstance(value, functools.partial):
        return digest("partial", of(value.func, depth - 1), of(value.args, depth - 1), of(value.keywords, depth - 1))
    if isinstance(value, MethodType):
        return digest(of(value.__func__, depth - 1), of(value.__self__, depth - 1))
    if isinstance(value, FunctionType):
        return of_function(value, depth)
    if isinstance(value, type) or inspect.isbuiltin(value):
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value)
    own = getattr(value, "__dict__", {})
    call = of(kind.__call__, depth - 1) if isinstance(getattr(kind, "__call__", None), FunctionType) else ""  # noqa: B004
    return digest(f"{kind.__module__}.{kind.__qualname__}", call, of(own, depth - 1) if own else plain_repr(value))


def of_array(array: np.ndarray) -> str:
    """Type, shape and values."""
    return digest(str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes())


def of_function(function: FunctionType, depth: int) -> str:
    """Name, source (else bytecode), defaults, and what it reads from around it."""
    try:
        code = inspect.getsource(function).strip()
    except (OSError, TypeError):  # typed at a prompt
        code = of_code(function.__code__)
    around = inspect.getclosurevars(function) if function.__closure__ or function.__code__.co_names else None
    read = {} if around is None else {**around.nonlocals, **around.globals}
    parts = [f"{name}={of(v, depth - 1)}" for name, v in sorted(read.items()) if not inspect.ismodule(v)]
    defaults = (function.__defaults__, function.__kwdefaults__)
    return digest(function.__qualname__, code, of(defaults, depth - 1), *parts)


def of_code(code: CodeType) -> str:
    """Instructions, constants and names."""
    constants = [of_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return digest(code.co_code, *constants, *code.co_names)


def plain_repr(value: Any) -> str:
    """``repr`` without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def named(function: Callable[..., Any]) -> str:
    """``"package.module.function#0123456789abcdef"``: for people, and the same in another process."""
    where = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{where}#{digest(of(function))}"
