"""Whole data sets on a Ray cluster: the job of ``explain_dataset``, shared out by Ray Data.

Every worker holds the model, reads its items itself and writes its chunks itself: all machines must see the images
and the store under the same path (a network file system). What is sent around is batch numbers. A worker that dies is
replaced, and its batches are explained again, to the same bits and into the same chunks: nothing is lost or doubled.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from .job import Job, JobOptions, make_job
from .run import DatasetSummary, finish

#: Into how many parts the work is cut, for each worker.
BLOCKS_PER_WORKER = 64
#: Ray's own setting; where it is off, as on the systems it is named after, a local cluster stays on loopback.
OTHER_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class _Worker:
    """What runs on the cluster: one model, many batches."""

    def __init__(self, job: Job, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        if job.options.device is not None:
            job.model.to(job.options.device)
        self.job = job

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        counts = [self.job.explain_batch(int(batch)) for batch in rows["item"]]
        return {"explained": np.array([explained for explained, _ in counts])}


def explain_dataset_on_ray(
    model: nn.Module,
    dataset: Any,
    out: str | os.PathLike[str] = "maps.zarr",
    targets: Any = None,
    layers: Sequence[str] = (),
    overwrite: bool = False,
    workers: int = 2,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    **options: Any,
) -> DatasetSummary:
    """Explain a whole data set on the Ray cluster that ``ray.init`` connected to, or RAY_ADDRESS names.

    Without either, a local cluster is started that listens on the loopback interface alone, without a dashboard.

    Parameters
    ----------
    model, dataset, out, targets, layers, overwrite, **options
        As for :func:`saliency_lrp.dataset.explain_dataset`; an interrupted run can be resumed by either. By default
        ``device`` is ``"cuda"`` if a worker was given a GPU, else the CPU.
    workers : int
        How many hold a model.
    cpus_per_worker, gpus_per_worker : float
        What Ray reserves for each; torch uses that many CPU threads.

    Returns
    -------
    DatasetSummary

    Raises
    ------
    InputError
        If Ray is not installed, the store was made by another job, or an argument makes no sense.
    """
    ray = _ray()
    if workers < 1:
        raise InputError(f"workers={workers}: expected at least one")
    job = make_job(model, dataset, os.path.abspath(out), JobOptions(targets, layers, **options))
    if job.options.device is None:
        job.options.device = torch.device("cuda" if gpus_per_worker else "cpu")
    started = time.monotonic()
    job.prepare(overwrite=overwrite)
    batches = job.pending()
    here = 0
    if batches:
        connect(ray)
        # blocks are retried as a whole; made here, they need no tasks beside the workers, who may hold every CPU
        numbers = ray.data.from_items(batches, override_num_blocks=min(len(batches), BLOCKS_PER_WORKER * workers))
        done = numbers.map_batches(
            _Worker,
            batch_size=1,
            fn_constructor_kwargs={"job": job, "threads": max(1, int(cpus_per_worker))},
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(batches))),
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker or None,
        )
        here = int(sum(row["explained"] for row in done.iter_rows()))
    return finish(job, here, time.monotonic() - started)


def connect(ray: Any) -> None:
    """To the cluster that the user has named; else a local one that nobody else can reach."""
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init()
        else:
            with on_loopback():
                ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1")


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Start Ray here, and what it starts listens on 127.0.0.1 alone.

    By itself Ray puts the address that other machines see in the place of 127.0.0.1, and then listens on all.
    """
    from ray._private import ray_constants

    before = os.environ.get(OTHER_MACHINES), getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    os.environ[OTHER_MACHINES], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        if before[0] is None:
            del os.environ[OTHER_MACHINES]
        else:
            os.environ[OTHER_MACHINES] = before[0]


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("explaining on a cluster needs Ray: pip install 'saliency-lrp[scale]'") from error
    return ray
