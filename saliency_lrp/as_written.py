"""A model run by the code that its author wrote, so that all of it can be seen.

Inside :class:`AsWritten`, in the thread that entered it:

* compiled functions and modules run their original code;
* checkpointed blocks run once, as if they were not checkpointed;
* ``torch.inference_mode()`` inside the model is passed, as ``torch.no_grad()`` is: both say how a value is computed,
  not what it depends on;
* backward hooks of modules are not set up: they are about gradients, and never run on relevance;
* a pool of threads that the model has (``concurrent.futures``) runs what it is given as the model's own thread would,
  so that a ``no_grad()`` there is passed, too; what calls it makes is not seen, but is in the graph.

Nothing is put on the model. Some functions of torch have a stand-in for that while, which asks what thread it is in.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from .model.as_found import CallMode, Frame

#: Per thread: the explanations that are running a model, the innermost one last.
_running = threading.local()


def _holders_here() -> list[AsWritten]:
    if not hasattr(_running, "holders"):
        _running.holders = []
    return _running.holders


class GradientsAllTheSame(CallMode):
    """Passes a model's own ``torch.no_grad()``: it says how a value is computed, not what it depends on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not args[0]:
            return None
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------------------ stand-ins


def _no_hooks(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: ([], [])


def _no_pre_hooks(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: []


def _gradients_all_the_same(original: Callable[..., Any]) -> Callable[..., Any]:
    def enter(self: Any) -> None:
        if not self.mode:
            return original(self)
        _holders_here()[-1].passed.add("torch.inference_mode()")
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
        return function(*args) if _holders_here() else self.original.apply(function, preserve, *args)


def _in_its_pool(submit: Callable[..., Any]) -> Callable[..., Any]:
    def submit_along(self: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        holder = _holders_here()[-1]
        holder.uses_threads = True

        def run(*args: Any, **kwargs: Any) -> Any:
            holders = _holders_here()
            holders.append(holder)
            try:
                with GradientsAllTheSame():
                    return function(*args, **kwargs)
            finally:
                holders.remove(holder)

        return submit(self, run, *args, **kwargs)

    return submit_along


def _noted(start: Callable[..., Any]) -> Callable[..., Any]:
    def start_noted(self: threading.Thread) -> None:
        _holders_here()[-1].uses_threads = True
        start(self)

    return start_noted


def _in_our_threads(stand_in: Callable[..., Any]) -> Callable[[Any], Any]:
    """A stand-in that threads which explain nothing do not meet."""

    def made(original: Any) -> Any:
        ours = stand_in(original)
        return lambda *args, **kwargs: (ours if _holders_here() else original)(*args, **kwargs)

    return made


#: Owner and name of a function of torch, and what makes its stand-in.
_STAND_INS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (nn.Module, "_get_backward_hooks", _in_our_threads(_no_hooks)),
    (nn.Module, "_get_backward_pre_hooks", _in_our_threads(_no_pre_hooks)),
    (torch.inference_mode, "__enter__", _in_our_threads(_gradients_all_the_same)),
    (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _in_our_threads(_once)),
    (torch.utils.checkpoint, "CheckpointFunction", _Plainly),
    (ThreadPoolExecutor, "submit", _in_our_threads(_in_its_pool)),
    (threading.Thread, "start", _in_our_threads(_noted)),
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
    uses_threads : bool
        Whether the model has given work to other threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[str] = set()
        self.uses_threads = False

    def begin(self) -> None:
        holders = _holders_here()
        self.undoing(lambda: _take_out(self))
        self.undoing(lambda: holders.__setitem__(slice(None), [h for h in holders if h is not self]))
        holders.append(self)
        _put_in(self)
