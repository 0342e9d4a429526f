"""A model run by the code that its author wrote, so that all of it can be seen.

Inside :class:`AsWritten`, in the thread that entered it:

* compiled functions and modules run their original code;
* checkpointed blocks run once, as if they were not checkpointed;
* ``torch.inference_mode()`` inside the model is passed, as ``torch.no_grad()`` is: both say how a value is computed,
  not what it depends on;
* backward hooks of modules are not set up: they are about gradients, and never run on relevance.

Nothing is put on the model. Some functions of torch have a stand-in for that while, which asks what thread it is in.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from .model.as_found import Frame

#: Per thread: what was passed so far, one set for each explanation that is running a model.
_running = threading.local()


def _passed() -> list[set[str]]:
    if not hasattr(_running, "passed"):
        _running.passed = []
    return _running.passed


# ------------------------------------------------------------------------------------------------ stand-ins


def _no_hooks(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: ([], [])


def _no_pre_hooks(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: []


def _gradients_all_the_same(original: Callable[..., Any]) -> Callable[..., Any]:
    def enter(self: Any) -> None:
        if not self.mode:
            return original(self)
        _passed()[-1].add("torch.inference_mode()")
        self._inference_mode_context = contextlib.nullcontext()
        return None

    return enter


def _once(original: Callable[..., Any]) -> Callable[..., Any]:
    def generator(*_: Any, **__: Any) -> Iterator[None]:
        yield

    return generator


class _Plainly:
    """In place of the function of reentrant checkpoints."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if _passed() else self.original.apply(function, preserve, *args)


def _in_our_threads(stand_in: Callable[..., Any]) -> Callable[[Any], Any]:
    """A stand-in that threads which explain nothing do not meet."""

    def made(original: Any) -> Any:
        ours = stand_in(original)
        return lambda *args, **kwargs: (ours if _passed() else original)(*args, **kwargs)

    return made


#: Owner and name of a function of torch, and what makes its stand-in.
_STAND_INS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (nn.Module, "_get_backward_hooks", _in_our_threads(_no_hooks)),
    (nn.Module, "_get_backward_pre_hooks", _in_our_threads(_no_pre_hooks)),
    (torch.inference_mode, "__enter__", _in_our_threads(_gradients_all_the_same)),
    (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _in_our_threads(_once)),
    (torch.utils.checkpoint, "CheckpointFunction", _Plainly),
]

_lock = threading.RLock()
_originals: list[tuple[Any, str, Any]] = []
_holders: set[AsWritten] = set()
_eagerly: list[Any] = []  # the compiler's stance is one for all threads: the first holder's, put back by the last


def _put_in(holder: AsWritten) -> None:
    with _lock:
        if not _holders:
            for owner, name, make in _STAND_INS:
                original = getattr(owner, name, None)  # private names, which a later torch may not have
                if original is not None:
                    _originals.append((owner, name, original))
                    setattr(owner, name, make(original))
        _holders.add(holder)
        set_stance = getattr(torch.compiler, "set_stance", None)
        if set_stance is not None and not _eagerly and "torch._dynamo" in sys.modules:  # else nothing was compiled
            _eagerly.append(set_stance("force_eager"))


def _take_out(holder: AsWritten) -> None:
    with _lock:
        _holders.discard(holder)
        while not _holders and _originals:
            setattr(*_originals[-1])
            _originals.pop()
        while not _holders and _eagerly:
            _eagerly[-1].__exit__(None, None, None)
            _eagerly.pop()


class AsWritten(Frame):
    """Run a model by its original code in this thread.

    Attributes
    ----------
    passed : set of str
        Names of what is passed meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[str] = set()

    def begin(self) -> None:
        running = _passed()
        self.undoing(lambda: _take_out(self))
        self.undoing(lambda: running.__setitem__(slice(None), [p for p in running if p is not self.passed]))
        running.append(self.passed)
        _put_in(self)
