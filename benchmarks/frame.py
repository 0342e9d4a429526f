"""What giving a model back as it was costs one explanation, as a share of one plain input gradient.

CPU time of one thread, since that hardly depends on what else a machine does: of all that is put around a model and
taken off again, without the model's own work.

    python benchmarks/frame.py
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from speed import build
from torch import Tensor, nn

from saliency_lrp.as_written import AsWritten
from saliency_lrp.model import graph_free
from saliency_lrp.model.as_found import Calling, as_found
from saliency_lrp.model.unwrapped import named_modules

#: Calls measured together, and how often.
CALLS, ROUNDS = 20, 60


def small() -> nn.Module:
    """Two convolutions and a dense layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 10),
    )  # fmt: skip


def seconds(task: Callable[[], object], calls: int = CALLS, rounds: int = ROUNDS) -> float:
    """CPU seconds of this thread for one call, the least of several rounds."""
    task()
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            task()
        found.append((time.thread_time() - start) / calls)
    return min(found)


def around_lrp(model: nn.Module) -> None:
    """What one map of ``LrpExplainer`` is within: the frame of the forward pass, and that of the backward pass."""
    modules = named_modules(model)
    with as_found(model, modules, patched=False) as frame, AsWritten():
        frame.undoing(lambda: graph_free.free((), modules))
    with Calling():
        pass


def around_gradients(model: nn.Module) -> None:
    """What a gradient method is within."""
    with as_found(model), AsWritten():
        pass


def gradient(model: nn.Module, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).amax(), leaf)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = [
        ("small", small(), 32),
        ("resnet18", build("resnet18", "cpu"), 64),
        ("resnet50", build("resnet50", "cpu"), 224),
    ]
    print(
        "| model | modules | picture | gradient, µs | around LRP | around a gradient method |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for name, model, side in cases:
        x = torch.randn(1, 3, side, side)
        model.eval()
        calls, rounds = (CALLS, ROUNDS) if name == "small" else (1, 10)
        plain = seconds(lambda model=model, x=x: gradient(model, x), calls, rounds)
        model.train()
        lrp, other = (seconds(lambda model=model, do=do: do(model)) for do in (around_lrp, around_gradients))
        print(
            f"| {name} | {sum(1 for _ in model.modules())} | {side} × {side} | {1e6 * plain:,.0f} "
            f"| {1e6 * lrp:.0f} µs, {lrp / plain:.1%} | {1e6 * other:.0f} µs, {other / plain:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
