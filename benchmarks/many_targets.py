"""K maps of one image: one forward and one batched backward pass, against K single calls.

python benchmarks/many_targets.py                                  # resnet50, K = 10
python benchmarks/many_targets.py --models vgg16 vit_b_16 --targets 5 --composites epsilon auto
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from speed import build
from torch import Tensor

from saliency_lrp import RelevancePropagator
from saliency_lrp.propagator import Trace


def seconds(run: Callable[[], Any], device: str) -> float:
    """CPU time of one call; wall time on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(trace: Callable[[Tensor], Trace], x: Tensor, classes: list[int], repeats: int) -> list[list[float]]:
    """Seconds of single calls, of a batched and of a repeated backward pass, in turn, after one round to warm up."""
    ways: tuple[Callable[[], Any], ...] = (
        lambda: [trace(x).relevance(k, retain=False) for k in classes],
        lambda: trace(x).relevances(classes),
        lambda: trace(x).relevances(classes, batched=False),
    )
    return [[seconds(way, x.device.type) for way in ways] for _ in range(repeats + 1)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"])
    parser.add_argument("--composites", nargs="+", default=["epsilon", "epsilon_plus", "epsilon_gamma_box", "auto"])
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"median of {args.repeats}, ratio to {args.targets} single calls (one forward and one backward pass each)")
    print("| model | composite | single calls, s | batched | one forward, backward one by one |\n|---|---|---|---|---|")
    for name in args.models:
        model = build(name, args.device)
        x = torch.randn(1, 3, 224, 224, device=args.device)
        classes = list(range(0, 1000, 1000 // args.targets))[: args.targets]
        for composite in args.composites:
            trace = RelevancePropagator(model, composite).trace

            taken = measure(trace, x, classes, args.repeats)
            base = statistics.median(row[0] for row in taken)
            ratios = [statistics.median(row[k] / row[0] for row in taken) for k in (1, 2)]
            print(f"| {name} | {composite} | {base:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
