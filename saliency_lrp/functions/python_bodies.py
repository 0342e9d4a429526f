"""Functions of torch.nn.functional that are written in Python: their own code runs, with interception inside.

So ``F.multi_head_attention_forward`` becomes the linear layers, the attention and the reshapes it is made of, and its
output stays that of the original, bit for bit, because it *is* the original.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from ..sites.call import Call
from .registry import kind

#: What such functions ask before they hand the call over to an interceptor.
GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@functools.cache
def opened(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """A copy of ``func`` that runs its body instead of handing the whole call to the interceptor; None if it cannot."""
    func = getattr(func, "__wrapped__", func)
    if not isinstance(func, FunctionType) or not any(g in func.__code__.co_names for g in GUARDS):
        return None
    scope = {**func.__globals__, **dict.fromkeys(GUARDS, _never)}
    copy = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any) -> bool:
    return False


@kind("opened")
def open_up(call: Call) -> Any:
    body = opened(call.func)
    if body is None:
        from .unknown import unknown

        return unknown(call)
    return call.reroute(body, *call.args, **call.kwargs)
