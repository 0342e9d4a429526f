"""The user's model as it was found, whatever happens while it is explained: one frame around every explanation.

Inside, modules are in eval mode and gradients are on, whatever the caller's mode. Outside, all is as before, after
exceptions and interrupts as well: training flags, torch's random state, the calling thread's gradient, inference and
interception modes; and, for methods that put something on a model, its hooks, patched ``forward`` methods,
``requires_grad`` and ``.grad``.

Each step is undone by a function that is known before the step is taken and may run twice. Signals wait while steps
are taken or undone (``interrupts``). What neither reaches, an exception that another thread is sent, say, stays in the
list of open frames: the next one finds that it no longer runs, and undoes its steps.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _pop_mode_temporarily,
    _push_mode,
)

from . import graph_free
from .devices import random_states
from .interrupts import Shields, deliver, delivering, unbroken
from .unwrapped import named_modules

if TYPE_CHECKING:
    from typing_extensions import Self

# ------------------------------------------------------------------------------------------------ frames


class Frame:
    """Steps that are undone when it ends, the last one first, whatever happens.

    Subclasses take their steps in :meth:`begin`.
    """

    def __init__(self) -> None:
        self._shields = Shields()
        self._thread = ThreadModes()
        self._steps: list[Callable[[], object]] = []

    def undoing(self, step: Callable[[], object]) -> None:
        """Have something undone at the end; called before it is done. ``step`` may run twice, or in vain."""
        self._steps.append(step)

    def begin(self) -> None:
        """Take the steps."""

    def wait(self) -> None:
        """Wait until the steps can be taken; signals are handled meanwhile."""

    def __enter__(self) -> Self:
        try:
            self._shields.up()
            self.wait()
            self._enter(caller(sys._getframe(1)))
            deliver()
        except BaseException:
            self._undo()
            deliver()
            raise
        return self

    @delivering
    def __exit__(self, *exception: Any) -> None:
        self._undo()

    @unbroken
    def _enter(self, owner: FrameType | None) -> None:
        mend()
        _open[self] = (threading.get_ident(), owner)
        self.begin()

    @unbroken
    def _undo(self) -> None:
        failed = None
        self._thread.forget_calls()
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as error:  # noqa: BLE001  # the other steps are undone all the same
                failed = error
            self._steps.pop()
        self._thread.restore()
        _open.pop(self, None)
        self._shields.down()
        if failed is not None:
            raise failed


#: Frames that have not ended: the thread, and the function that waits for the end (None where that cannot be told).
_open: dict[Frame, tuple[int, FrameType | None]] = {}


def caller(frame: FrameType | None) -> FrameType | None:
    """The function that holds a ``with`` statement, if it is on the stack until the end of that."""
    while frame is not None and frame.f_globals.get("__name__") in ("contextlib", __name__):
        frame = frame.f_back
    suspends = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    return None if frame is None or frame.f_code.co_flags & suspends else frame


def mend() -> None:
    """End the frames whose function has ended without: something broke between two instructions."""
    for frame, (thread, owner) in list(_open.items()):
        if owner is not None and not is_running(thread, owner):
            with contextlib.suppress(Exception):
                frame._undo()  # noqa: SLF001  # a frame of this module


def is_running(thread: int, frame: FrameType) -> bool:
    """Whether a function is on the stack of a thread."""
    running = sys._current_frames().get(thread)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


class ThreadModes:
    """What a thread's torch calls are subject to: gradient and inference mode, interception, hooks of saved tensors."""

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.gradients = torch.is_grad_enabled()
        self.calls = calls_seen_by()
        self.hooks = top_hooks()
        self.inference: torch.inference_mode | None = None

    def explain(self) -> None:
        """Gradients on, also under inference mode."""
        if torch.is_inference_mode_enabled():
            self.inference = torch.inference_mode(False)
            self.inference.__enter__()
        torch.set_grad_enabled(True)

    def forget_calls(self) -> None:
        """No interception and no hooks but those that were there before."""
        if threading.get_ident() != self.owner:
            return  # the modes of a thread that has ended went with it
        see_calls_by(self.calls)
        while (top := top_hooks()) is not None and (self.hooks is None or top[0] is not self.hooks[0]):
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def restore(self) -> None:
        """Gradient and inference mode as they were."""
        if threading.get_ident() != self.owner:
            return
        inference, self.inference = self.inference, None
        if inference is not None:
            inference.__exit__(None, None, None)
        if torch.is_grad_enabled() != self.gradients:
            torch.set_grad_enabled(self.gradients)


def calls_seen_by() -> list[Any]:
    """The modes that see this thread's torch calls, the innermost one last."""
    return list(_get_current_function_mode_stack())


@unbroken
def finish_detours(traceback: TracebackType | None) -> None:
    """End what torch began when it took a mode off for one call, in the frames that an interrupt tore down.

    It does so by a generator; one that was left half-way would put the mode back when the traceback is forgotten.
    """
    while traceback is not None:
        manager = traceback.tb_frame.f_locals.get("self")
        generator = getattr(manager, "gen", None)
        if generator is not None and getattr(generator, "gi_code", None) is DETOUR:
            generator.close()
        traceback = traceback.tb_next


#: torch's own way to call something without the innermost mode
DETOUR = inspect.unwrap(_pop_mode_temporarily).__code__


def see_calls_by(modes: list[Any]) -> None:
    """Have these modes see the calls and no others: torch itself takes one off for a while, and may not come back."""
    now = calls_seen_by()
    shared = 0
    while shared < min(len(now), len(modes)) and now[shared] is modes[shared]:
        shared += 1
    for _ in now[shared:]:
        _pop_mode()
    for mode in modes[shared:]:
        _push_mode(mode)


class CallMode(TorchFunctionMode):
    """Sees a thread's torch calls while it is entered; afterwards they are seen as before, whatever broke it off.

    Torch's own mode takes off whatever is the innermost one then, which need not be itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: list[list[Any]] = []

    def __enter__(self) -> Self:
        self._before.append(calls_seen_by())
        return super().__enter__()

    @delivering
    def __exit__(self, kind: Any = None, error: Any = None, traceback: Any = None) -> None:
        finish_detours(traceback)
        see_calls_by(self._before.pop())


def top_hooks() -> Any:
    """The pair of hooks of saved tensors that is in force; None where torch (before 2.5) does not tell."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if ask is None else ask(True)


class Calling(Frame):
    """Torch calls on behalf of an explanation that concern no model: gradients on, modes given back."""

    def begin(self) -> None:
        self._thread.explain()


# ------------------------------------------------------------------------------------------------ the model


class AsFound(Frame):
    """A model in eval mode for a while.

    Parameters
    ----------
    model : torch.nn.Module
        What is explained.
    modules : iterable of torch.nn.Module, optional
        All of its modules, where the caller knows them.
    patched : bool
        Whether the method puts hooks and the like on the model. These are taken off again; and only one thread at a
        time gets in for models that share a module.
    """

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module] | None = None, patched: bool = True) -> None:
        super().__init__()
        self.model = model
        self.modules = list(named_modules(model) if modules is None else modules)
        self.patched = patched

    def wait(self) -> None:
        if self.patched:
            mend()
            for lock in locks_of(self.modules):
                while not self._get(lock):
                    deliver()

    @unbroken
    def _get(self, lock: threading.RLock) -> bool:
        """Whether it is this thread's turn, within a moment."""
        if not lock.acquire(timeout=0.05):
            return False
        self.undoing(once(lambda: give_back(lock, self.modules)))
        return True

    def begin(self) -> None:
        self._keep_random_state()
        if self.patched:
            self.undoing(Patches(self.modules).restore)
            before = graph_free.with_graphs(self.modules)
            self.undoing(lambda: graph_free.free((), self.modules, before))
        self.undoing(lambda: release_modes(self, self.modules))
        hold_modes(self, self.modules)
        self._thread.explain()

    def _keep_random_state(self) -> None:
        """Torch's generators: the CPU's, and those of the devices that the model is on."""
        for back in random_states({p.device for m in self.modules for p in m._parameters.values() if p is not None}):
            self.undoing(back)


def as_found(model: nn.Module, modules: Iterable[nn.Module] | None = None, patched: bool = True) -> AsFound:
    """The frame around an explanation; see :class:`AsFound`."""
    return AsFound(model, modules, patched)


def once(step: Callable[[], None]) -> Callable[[], None]:
    """A step that is undone at most once."""
    left = [step]
    return lambda: left.pop()() if left else None


# ------------------------------------------------------------------------------------------------ eval mode


class Mode:
    """The training flag of a module that is being explained, and the frames that want it off."""

    __slots__ = ("holders", "module", "training")

    def __init__(self, module: nn.Module, training: bool, holder: Frame) -> None:
        self.module = module
        self.training = training
        self.holders = {holder}


_modes: dict[int, Mode] = {}
_modes_lock = threading.RLock()


def hold_modes(frame: Frame, modules: Iterable[nn.Module]) -> None:
    """Eval mode, module by module: a model's own ``train()`` may do more than that; and models may share modules."""
    with _modes_lock:
        for module in modules:
            mode, training = _modes.get(id(module)), module.training
            if mode is None:
                _modes[id(module)] = Mode(module, training, frame)
            else:
                mode.holders.add(frame)
            if training:
                set_mode(module, False)


def release_modes(frame: Frame, modules: Iterable[nn.Module]) -> None:
    """Each module's own flag again, also where the forward set it, once no other frame holds the module."""
    with _modes_lock:
        for module in modules:
            mode = _modes.get(id(module))
            if mode is None or frame not in mode.holders:
                continue
            if len(mode.holders) == 1:
                if module.training != mode.training:
                    set_mode(module, mode.training)
                del _modes[id(module)]
            else:
                mode.holders.discard(frame)


def set_mode(module: nn.Module, training: bool) -> None:
    """``module.training = training``; without torch's look at whether it is a parameter, which takes ten times that."""
    if type(module).__setattr__ is nn.Module.__setattr__:
        object.__setattr__(module, "training", training)
    else:
        module.training = training


# ------------------------------------------------------------------------------------------------ what methods put on

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


hook_tables = operator.itemgetter(*HOOK_TABLES)


class Patches:
    """What a method could change on modules and their parameters: hooks, ``forward``, ``.grad``, ``requires_grad``.

    It is asked at every explanation, so it goes by the modules' own tables.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.tables = [vars(module) for module in modules]
        #: where there are hooks: the module's table, the name of the table of hooks, that table, what was in it
        self.hooks = [
            (table, name, hooks, dict(hooks))
            for table in self.tables
            if any(hook_tables(table))
            for name in HOOK_TABLES
            if (hooks := table[name])
        ]
        self.forwards = {id(table): table["forward"] for table in self.tables if "forward" in table}
        parameters = {id(p): p for table in self.tables for p in table["_parameters"].values() if p is not None}
        self.parameters = [(p, p.grad, p.requires_grad) for p in parameters.values()]

    def restore(self) -> None:
        """All as it was."""
        had = {id(hooks) for _, _, hooks, _ in self.hooks}
        for table in self.tables:
            if any(hook_tables(table)):
                for name in HOOK_TABLES:
                    if id(table[name]) not in had:
                        table[name].clear()
            if "forward" in table and id(table) not in self.forwards:
                del table["forward"]
            elif id(table) in self.forwards:
                table["forward"] = self.forwards[id(table)]
        for table, name, hooks, saved in self.hooks:
            table[name] = hooks
            if list(hooks.items()) != list(saved.items()):
                # in place: the handles of the user's hooks point at this very table
                hooks.clear()
                hooks.update(saved)
        for parameter, grad, requires_grad in self.parameters:
            if parameter.grad is not grad:
                parameter.grad = grad
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


def locks_of(modules: Iterable[nn.Module]) -> list[threading.RLock]:
    """The locks of these modules, in an order that all threads share; models that share a module share a lock."""
    new = threading.RLock()
    with _locks_guard:
        found = {id(lock): lock for lock in (_locks.setdefault(module, new) for module in modules)}
    return [found[key] for key in sorted(found)]


def give_back(lock: threading.RLock, modules: Iterable[nn.Module]) -> None:
    """Release a lock; one that a thread has taken along is forgotten."""
    try:
        lock.release()
    except RuntimeError:
        with _locks_guard:
            for module in modules:
                if _locks.get(module) is lock:
                    del _locks[module]
