"""A job over the demo images, run in a process of its own so that it can be killed: ``dataset_job.py OUT [SECONDS]``.

SECONDS is how long each batch is held up, so that a kill lands in the middle.
"""

from __future__ import annotations

import sys
import time

import torch

from saliency_lrp import dataset
from saliency_lrp.demo import demo_dataset, load_demo_model

ITEMS, BATCH = 22, 4
OPTIONS = {"targets": [None, 3], "layers": ("features.4",), "batch_size": BATCH, "progress": False}


def inputs() -> torch.Tensor:
    """(22, 3, 64, 64)"""
    return demo_dataset(ITEMS).inputs


def run(out: str) -> dataset.DatasetSummary:
    return dataset.explain_dataset(load_demo_model(), inputs(), out, **OPTIONS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        write, seconds = dataset.Store.write_arrays, float(sys.argv[2])

        def slow(self, span, rows, arrays):
            write(self, span, rows, arrays)
            print(span.start, flush=True)  # data are there, the flag is not
            time.sleep(seconds)

        dataset.Store.write_arrays = slow
    run(sys.argv[1])
