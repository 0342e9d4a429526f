"""Items per second of a whole data set with 1, 2, ... processes, as ``torchrun`` would start them, or Ray workers.

python benchmarks/scale.py                                         # the demo network, 1 and 2 processes
python benchmarks/scale.py --ray                                   # the same on a local Ray cluster
python benchmarks/scale.py --workers 1 2 4 --items 512 --torchvision resnet50
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def share(out: str, items: int, batch: int, name: str) -> None:
    """One process's share of the work; prints seconds from the first batch to the last."""
    from saliency_lrp.dataset import explain_dataset
    from saliency_lrp.demo import demo_dataset, load_demo_model

    torch.set_num_threads(1)
    if name:
        from speed import build

        model, x = build(name, "cpu"), torch.randn(items, 3, 224, 224)
    else:
        model, x = load_demo_model(), demo_dataset(items).inputs
    started = time.time()
    explain_dataset(model, x, out, batch_size=batch, progress=False)
    print(started, time.time())


def measure(workers: int, items: int, batch: int, name: str) -> tuple[float, int]:
    """Seconds from the first start to the last end, without imports; and bytes per item in the store."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "maps.zarr"
        command = [sys.executable, __file__, "--one", str(out), str(items), str(batch), name]
        path = os.pathsep.join(filter(None, sys.path))
        processes = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                    "RANK": str(rank), "WORLD_SIZE": str(workers),
                },
            )
            for rank in range(workers)
        ]  # fmt: skip
        spans = [tuple(map(float, process.communicate()[0].split())) for process in processes]
        stored = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return max(end for _, end in spans) - min(start for start, _ in spans), stored // items


def measure_ray(workers: int, items: int, batch: int) -> tuple[float, int]:
    """Seconds that Ray workers need once they are up, and bytes per item.

    A worker starts by importing torch, which counts for nothing on a data set of any size: what is measured is how much
    longer the whole job takes than one of a quarter of its items.
    """
    import ray

    from saliency_lrp.demo import demo_dataset, load_demo_model
    from saliency_lrp.ray_dataset import explain_dataset_on_ray

    model, x = load_demo_model(), demo_dataset(items).inputs
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        try:
            seconds = []
            for part in (items // 4, items):
                out = Path(folder) / f"{part}.zarr"
                started = time.time()
                explain_dataset_on_ray(model, x[:part], out, batch_size=batch, workers=workers)
                seconds.append(time.time() - started)
        finally:
            ray.shutdown()
        stored = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return (seconds[1] - seconds[0]) / (1 - (items // 4) / items), stored // items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--items", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--torchvision", default="", metavar="NAME", help="a classifier instead of the demo network")
    parser.add_argument("--ray", action="store_true", help="workers of a local Ray cluster; the demo network")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        share(args.one[0], int(args.one[1]), int(args.one[2]), args.one[3])
        return
    print("| processes | items | seconds | items/s | bytes/item |\n|---|---|---|---|---|")
    for workers in args.workers:
        if args.ray:
            seconds, stored = measure_ray(workers, args.items, args.batch)
        else:
            seconds, stored = measure(workers, args.items, args.batch, args.torchvision)
        print(f"| {workers} | {args.items} | {seconds:.1f} | {args.items / seconds:.1f} | {stored} |", flush=True)


if __name__ == "__main__":
    main()
