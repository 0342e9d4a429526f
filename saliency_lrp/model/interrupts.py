"""Ctrl-C waits while a model is being changed or put back, and is delivered as soon as that is done.

Python runs a signal's handler between two bytecodes of the main thread, wherever that is: also inside the code that
restores what an interrupted explanation has left. While a :class:`Shield` stands in for the handler, it looks at what
is running. In a function marked :func:`unbroken`, or anything that such a function calls, the signal waits.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

try:  # what `signal` wraps: its two functions take 70 times as long, since they make enumerations of numbers
    from _signal import getsignal
    from _signal import signal as set_signal
except ImportError:
    from signal import getsignal
    from signal import signal as set_signal

#: Signals that come from outside at any time; only those are shielded that have a handler written in Python.
SIGNALS = tuple(
    int(getattr(signal, name))
    for name in "SIGINT SIGTERM SIGHUP SIGQUIT SIGALRM SIGVTALRM SIGPROF SIGUSR1 SIGUSR2 SIGBREAK".split()
    if hasattr(signal, name)
)

_unbroken: set[CodeType] = set()
_waiting: list[tuple[Callable[[int, FrameType | None], Any], int]] = []

F = TypeVar("F", bound=Callable[..., Any])


def unbroken(function: F) -> F:
    """Mark a function that no shielded signal interrupts; whoever calls it calls :func:`deliver` afterwards."""
    _unbroken.add(function.__code__)
    return function


def delivering(function: F) -> F:
    """A function that is :func:`unbroken`; signals that came meanwhile are handled when it has ended."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            deliver()

    unbroken(function)
    return unbroken(run)  # type: ignore[return-value]


def deliver() -> None:
    """Handle the signals that came in the meantime; the first exception that a handler raises is raised in the end."""
    raised: BaseException | None = None
    while _waiting and in_main_thread():
        handler, number = _waiting.pop(0)
        try:
            handler(number, sys._getframe(1))
        except BaseException as error:  # noqa: BLE001  # raised below, when all are handled
            raised = raised or error
    if raised is not None:
        raise raised


def in_main_thread() -> bool:
    """Whether this is the thread in which handlers run."""
    return threading.get_ident() == threading.main_thread().ident


class Shield:
    """Stands in for a signal's handler, and passes the signal on to it, now or later."""

    def __init__(self, number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.number = number
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        running = frame
        while running is not None:
            if running.f_code in _unbroken:
                _waiting.append((self.handler, number))
                return
            running = running.f_back
        self.handler(number, frame)


class Shields:
    """Shields before all handlers that have none yet; in the main thread only, where handlers run."""

    def __init__(self) -> None:
        self._raised: list[Shield] = []

    def up(self) -> None:
        """Put them in place."""
        if not in_main_thread():
            return
        for number in SIGNALS:
            handler = getsignal(number)
            if callable(handler) and not isinstance(handler, Shield):
                shield = Shield(number, handler)
                self._raised.append(shield)
                set_signal(number, shield)

    def down(self) -> None:
        """Give the handlers back, but those that somebody else has put in their place since."""
        try:
            self._lower()
        finally:
            self._lower()  # the first handler that is back may have raised

    def _lower(self) -> None:
        while self._raised:
            shield = self._raised[-1]
            number, handler = shield.number, shield.handler
            if getsignal(number) is shield:
                set_signal(number, handler)
            self._raised.pop()
