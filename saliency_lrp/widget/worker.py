"""Worker threads for long methods: progress, cancelling, and nothing that outlives the interpreter."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import ClassVar


class Cancelled(Exception):
    """The work was called off by the user."""


class Progress:
    """Progress of one piece of work, and the way to call it off.

    Parameters
    ----------
    report : callable
        Called with (steps done, steps in all or None) as the work goes on, at most every ``interval`` seconds.
    interval : float
        Seconds between two reports.
    """

    def __init__(
        self, report: Callable[[int, int | None], None] = lambda done, total: None, interval: float = 0.1
    ) -> None:
        self._report = report
        self._interval = interval
        self._reported = time.monotonic()
        self._off = threading.Event()
        self.done = 0

    @property
    def cancelled(self) -> bool:
        """Whether the work has been called off."""
        return self._off.is_set()

    def cancel(self) -> None:
        """Call the work off: its next step raises :class:`Cancelled`."""
        self._off.set()

    def check(self) -> None:
        """Raise :class:`Cancelled` if the work has been called off."""
        if self.cancelled:
            raise Cancelled

    def step(self, total: int | None = None) -> None:
        """Count one step."""
        self.reached(self.done + 1, total)

    def reached(self, done: int, total: int | None = None) -> None:
        """So many steps are done; raises :class:`Cancelled` if the work has been called off."""
        self.check()
        self.done = done
        now = time.monotonic()
        if now - self._reported >= self._interval:
            self._reported = now
            self._report(self.done, total)


class Worker:
    """One daemon thread that does jobs in the order given; it starts with the first job and ends when idle."""

    running: ClassVar[weakref.WeakSet[Worker]] = weakref.WeakSet()

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Progress]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._present: Progress | None = None
        self._closing = False

    def submit(self, job: Callable[[], None], watch: Progress) -> None:
        """Queue a job, which must not raise, and the watch that calls it off."""
        with self._lock:
            self._jobs.put((job, watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                Worker.running.add(self)
                self._thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._closing or self._jobs.empty():
                self._thread = self._present = None
                return None
            job, self._present = self._jobs.get()
            return job

    def close(self, timeout: float = 1.0) -> None:
        """Take no further job, call the present one off and wait a little for it."""
        with self._lock:
            self._closing = True
            thread, present = self._thread, self._present
        if present is not None:
            present.cancel()
        if thread is not None:
            thread.join(timeout)


@atexit.register
def _close_workers() -> None:
    # a daemon thread inside torch while the interpreter is torn down can crash the process
    for worker in list(Worker.running):
        worker.close()
