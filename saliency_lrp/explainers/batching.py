"""How many samples fit in one pass, and a progress bar over the passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_watcher: ContextVar[Callable[[int, int], None] | None] = ContextVar("watcher", default=None)

T = TypeVar("T")

# Larger batches bring nothing on a CPU and only cost cache misses.
_MOST = {"cpu": 16, "cuda": 256}
_CPU_BUDGET = 1 << 30


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return _CPU_BUDGET
    return min(free // 4, _CPU_BUDGET)


@contextmanager
def _activation_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Collect the sizes of the outputs of all leaf modules."""
    sizes: list[int] = []

    def note(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [m.register_forward_hook(note) for m in model.modules() if not list(m.children())]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def samples_per_pass(model: nn.Module, x: Tensor, run: Callable[[Tensor], object], gradient: bool) -> int:
    """How many samples like those of `x` go through the model at once.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor
        (N, ...) input; `run` is called once on it, without gradients.
    run : callable
        Runs the model on a tensor like `x`.
    gradient : bool
        Whether all activations are kept for a backward pass, or only the largest few live.

    Returns
    -------
    int
        At least 1.
    """
    with _activation_bytes(model) as sizes, torch.no_grad():
        run(x)
    sizes.append(x.numel() * x.element_size())
    per_sample = (3 * sum(sizes) if gradient else 6 * max(sizes)) / x.shape[0]
    fitting = int(_free_bytes(x.device) / max(per_sample, 1))
    return max(1, min(fitting, _MOST.get(x.device.type, 64)))


@contextmanager
def watching(reached: Callable[[int, int], None]) -> Iterator[None]:
    """Tell `reached(done, total)` about passes made inside, in this thread, instead of drawing a bar.

    What it raises ends the explanation: so a user interface cancels one.
    """
    token = _watcher.set(reached)
    try:
        yield
    finally:
        _watcher.reset(token)


_outer: ContextVar[Any] = ContextVar("outer", default=None)


def each_with_progress(items: Sequence[T], title: str, name: Callable[[T], str]) -> Iterator[T]:
    """Yield the items under one bar; passes counted by :func:`progress` meanwhile are written behind it.

    Bars appear on standard error after one second and go away when done.
    """
    from tqdm import tqdm

    with tqdm(total=len(items), desc=title, unit="method", delay=1.0, miniters=0, leave=False) as bar:
        for item in items:
            bar.set_postfix_str(name(item), refresh=False)
            token = _outer.set(bar)
            try:
                yield item
            finally:
                _outer.reset(token)
            bar.update()


@contextmanager
def progress(forward: Callable[[Tensor], Tensor], total: int, title: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Wrap `forward` so that a bar, or whoever is :func:`watching`, counts the samples that went through it."""
    watcher = _watcher.get()
    if watcher is not None:
        yield _told(forward, total, watcher)
        return
    from tqdm import tqdm

    outer = _outer.get()
    with tqdm(total=total, desc=title, delay=1.0, leave=False, disable=outer is not None) as bar:
        done = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal done
            output = forward(x)
            step = min(x.shape[0], total - done)
            done += step
            bar.update(step)
            if outer is not None:
                outer.set_postfix_str(f"{title} {done}/{total}", refresh=False)
                outer.update(0)  # draws, but not before the delay
            return output

        yield counted


def _told(
    forward: Callable[[Tensor], Tensor], total: int, watcher: Callable[[int, int], None]
) -> Callable[[Tensor], Tensor]:
    """`forward` that tells the watcher how many samples went through it."""
    done = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal done
        watcher(done, total)  # before the pass, so that cancelling does not wait for one more
        output = forward(x)
        done = min(done + x.shape[0], total)
        return output

    return counted
