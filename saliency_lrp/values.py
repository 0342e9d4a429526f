"""Questions about values, and what is answered while an explanation is captured as a graph.

A graph is made for any values, so that nothing in it may depend on those of the example it was captured with. Where the
engine looks at values to be faster, or to refuse what cannot be explained, it asks :func:`holds`, which then gives an
answer that is right for all. Where values tell how a function was spelled, the example's are as good as any others:
:func:`of_the_example` lets them be seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_state = threading.local()


@contextmanager
def captured() -> Iterator[None]:
    """Until this is left, what runs in this thread becomes a graph."""
    before, _state.captured = is_captured(), True
    try:
        yield
    finally:
        _state.captured = before


def is_captured() -> bool:
    """Whether what runs in this thread becomes a graph."""
    return getattr(_state, "captured", False)


def holds(question: Callable[[], Any], unknown: bool) -> bool:
    """What values answer to a question, or ``unknown`` where they must not matter."""
    return unknown if is_captured() else bool(question())


def is_finite(t: Tensor) -> bool:
    """Whether every number is finite; by one pass, the sum, unless that overflows."""
    import torch

    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())


def of_the_example() -> AbstractContextManager[Any]:
    """What runs inside sees values as they are, and is no part of the graph."""
    if not is_captured():
        return nullcontext()
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    return disable_proxy_modes_tracing()
