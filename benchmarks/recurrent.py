"""Time of one map of a recurrent net, as a ratio to one plain input gradient of the same net and sequence.

A round is one gradient and then one map by each composite, in one process; medians over rounds of CPU time, the ratio
taken within a round. Random weights, the class of the last step's state explained.

    python benchmarks/recurrent.py
    python benchmarks/recurrent.py --nets "gru" --steps 2000 --sizes 256 --batch 8 --profile
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from speed import plain_gradient
from torch import Tensor, nn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

NETS: dict[str, Callable[[int], nn.Module]] = {
    "lstm": lambda size: nn.LSTM(size, size, batch_first=True),
    "lstm, 2 layers, both ways": lambda size: nn.LSTM(size, size, num_layers=2, bidirectional=True, batch_first=True),
    "gru": lambda size: nn.GRU(size, size, batch_first=True),
    "rnn tanh": lambda size: nn.RNN(size, size, batch_first=True),
}


class Classifier(nn.Module):
    """A recurrent layer and a linear one that reads its last output."""

    def __init__(self, net: str, size: int) -> None:
        super().__init__()
        self.layer = NETS[net](size)
        self.head = nn.Linear(size * (2 if self.layer.bidirectional else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """CPU time of one call."""
    gc.collect()
    start = time.process_time()
    run(x)
    return time.process_time() - start


def main() -> None:
    from saliency_lrp import LrpExplainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 200, 2000])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--composites", nargs="+", default=["epsilon", "arras", "auto"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="where the time of the first composite goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, batch {args.batch}, median of {args.rounds} rounds of CPU time")
    print("| net | steps | size | gradient | " + " | ".join(args.composites) + " |")
    print("|---" * (4 + len(args.composites)) + "|")
    for net in args.nets:
        for steps in args.steps:
            for size in args.sizes:
                torch.manual_seed(0)
                model, x = Classifier(net, size).eval().requires_grad_(False), torch.randn(args.batch, steps, size)
                runs = [plain_gradient(model), *(LrpExplainer(model, composite=c).explain for c in args.composites)]
                for run in runs:
                    run(x)
                rounds = [[seconds(run, x) for run in runs] for _ in range(args.rounds)]
                ratios = [statistics.median(r[k] / r[0] for r in rounds) for k in range(1, len(runs))]
                base = statistics.median(r[0] for r in rounds)
                cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"| {net} | {steps:,} | {size} | {1000 * base:.1f} ms | {cells} |", flush=True)
                if args.profile:
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                        runs[1](x)
                    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))


if __name__ == "__main__":
    main()
