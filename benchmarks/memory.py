"""Peak memory of one map above that of the loaded model, as a ratio to one plain input gradient.

Every measurement is a process of its own, so that nothing that another one left behind counts. There the library is
first warmed up on a tiny model; what is measured is how far the resident set rises above where it stood with the model
and the input loaded.

    python benchmarks/memory.py                                        # ours, zennit, captum on three models
    python benchmarks/memory.py --models vgg16 --batch 8 --methods epsilon "zennit epsilon"
    python benchmarks/memory.py --device cuda --batch 64 --methods epsilon attnlrp auto
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import warnings

import torch
from speed import build, method, plain_gradient
from torch import nn

METHODS = ("epsilon", "epsilon_plus", "epsilon_gamma_box", "auto", "zennit epsilon", "zennit epsilon_plus", "captum")


def status(key: str) -> int:
    """A line of this process's status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measure(name: str, what: str, batch: int, device: str = "cpu") -> int:
    """Bytes that the resident set (on a GPU: what is allocated there) rises by during one call."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)

    def runner(model: nn.Module):
        return plain_gradient(model) if what == "gradient" else method(model, what)

    tiny = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    with contextlib.suppress(Exception):  # imports and first-call set-up; captum refuses the tiny model after them
        runner(tiny.eval().requires_grad_(False))(torch.randn(1, 3, 8, 8))
    model = build(name, device)
    x = torch.randn(batch, 3, 224, 224, device=device)
    run = runner(model)
    gc.collect()
    if device != "cpu":
        run(x[:1])  # workspaces of libraries, which stay
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(x)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    run(x)
    return status("VmHWM") - before


def fresh(name: str, what: str, batch: int, repeats: int, device: str = "cpu") -> float | str:
    """Median of that in fresh processes, in bytes; or why there is none."""
    command = [sys.executable, __file__, "--one", name, what, str(batch), "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    found = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            return "raises " + done.stderr.strip().splitlines()[-1].split(":")[0].rpartition(".")[2]
        found.append(int(done.stdout.split()[-1]))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50", "vit_b_16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one[0], args.one[1], int(args.one[2]), args.device))
        return
    print(f"batch {args.batch}; gradient in MB, the rest as ratios to it")
    print("| model | gradient | " + " | ".join(args.methods) + " |\n" + "|---" * (len(args.methods) + 2) + "|")
    for name in args.models:
        base = fresh(name, "gradient", args.batch, args.repeats, args.device)
        assert not isinstance(base, str), base
        cells = [fresh(name, what, args.batch, args.repeats, args.device) for what in args.methods]
        shown = [cell if isinstance(cell, str) else f"{cell / base:.2f}" for cell in cells]
        print(f"| {name} | {base / 1e6:.0f} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
