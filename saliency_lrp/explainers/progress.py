"""Progress of long explanations: a line that counts forward passes, or whoever is watching.

The line appears after a second, says honestly how long the passes still take, and is gone when they are done: from
a terminal, and from the notebook that is saved.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor

Forward = Callable[[Tensor], Tensor]

#: seconds before a line appears, and between two of its states
DELAY, INTERVAL = 1.0, 0.25

_watcher: ContextVar[Callable[[int, int], None] | None] = ContextVar("watcher", default=None)


class Screen(Protocol):
    """Where one line of text is shown, replaced and taken away again."""

    def show(self, text: str) -> None: ...

    def clear(self) -> None: ...


class Terminal:
    """The last line of standard error."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, text: str) -> None:
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)


class NotebookOutput:
    """An output of the running cell; emptied at the end, so that a saved notebook shows nothing of it."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        from IPython.display import display

        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def clear(self) -> None:
        if self._handle is not None:
            self._handle.update({}, raw=True)


def _screen() -> Screen:
    """The screen of this process: a notebook's cell where one runs, else the terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return NotebookOutput() if hasattr(shell, "kernel") else Terminal()


def duration(seconds: float) -> str:
    """A duration in words that promise no more than is known: ``~40 s``, ``~3 min``, ``~2 h``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"~{seconds / size:.0f} {unit}"
    return f"~{max(seconds, 1):.0f} s"


class Line:
    """``occlusion 97/730, ~3 min``: passes made, passes in all, time they still take at the speed so far."""

    def __init__(self, title: str, total: int, screen: Screen | None = None) -> None:
        self.title, self.total, self.done = title, total, 0
        self._screen = screen or _screen()
        self._start = time.monotonic()
        self._drawn = self._start + DELAY - INTERVAL

    def reached(self, done: int) -> None:
        """So many passes have been made."""
        self.done = done
        now = time.monotonic()
        if now - self._drawn >= INTERVAL:
            self._drawn = now
            self._screen.show(self.text(now - self._start))

    def text(self, seconds: float) -> str:
        """What the line says when its passes have taken so many seconds."""
        left = (self.total - self.done) * seconds / self.done if self.done else float("nan")
        return f"{self.title} {self.done}/{self.total}" + (f", {duration(left)}" if self.done else "")

    def close(self) -> None:
        """Take the line away."""
        self._screen.clear()


@contextmanager
def watching(reached: Callable[[int, int], None]) -> Iterator[None]:
    """Tell `reached(done, total)` about passes made inside, in this thread, instead of drawing a line.

    What it raises ends the explanation: so a user interface cancels one.
    """
    token = _watcher.set(reached)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def progress(forward: Forward, total: int, title: str) -> Iterator[Forward]:
    """Wrap `forward` so that a line, or whoever is :func:`watching`, counts the samples that went through it."""
    watcher = _watcher.get()
    if watcher is not None:
        yield _told(forward, total, watcher)
        return
    line = Line(title, total)

    def counted(x: Tensor) -> Tensor:
        output = forward(x)
        line.reached(min(line.done + x.shape[0], total))
        return output

    try:
        yield counted
    finally:
        line.close()


def _told(forward: Forward, total: int, watcher: Callable[[int, int], None]) -> Forward:
    """`forward` that tells the watcher how many samples went through it."""
    done = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal done
        watcher(done, total)  # before the pass, so that cancelling does not wait for one more
        output = forward(x)
        done = min(done + x.shape[0], total)
        return output

    return counted
