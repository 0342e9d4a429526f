"""Explaining a whole data set in this process, or in those that ``torchrun`` has started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..model.on_device import on_device
from .job import Job, JobOptions, make_job


@dataclass
class DatasetSummary:
    """What became of a data set.

    Attributes
    ----------
    out : Path
        The Zarr store.
    items, explained : int
        How many there are, and how many have maps, earlier runs and other processes included.
    here : int
        How many of those were explained by this call.
    skipped : list of (int, str, str)
        Number, name and reason of every item that could not be read or explained.
    seconds : float
        Time that this call took.
    complete : bool
        Whether nothing is left to do; False where other processes are still at work.
    """

    out: Path
    items: int
    explained: int
    here: int
    seconds: float
    skipped: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.explained + len(self.skipped) == self.items

    def __str__(self) -> str:
        rate = f", {self.here / self.seconds:.2f} items/s" if self.here and self.seconds else ""
        lines = [
            f"{self.explained} of {self.items} explained ({self.here} by this run in {self.seconds:.1f} s{rate}), "
            f"{len(self.skipped)} skipped; in {self.out}"
        ]
        return "\n".join([*lines, *(f"  skipped {name}: {reason}" for _, name, reason in self.skipped)])


def explain_dataset(
    model: nn.Module,
    dataset: Any,
    out: str | os.PathLike[str] = "maps.zarr",
    targets: Any = None,
    layers: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> DatasetSummary:
    """Explain a whole data set into a Zarr store; call it again to go on with what was interrupted.

    Under ``torchrun`` (or wherever RANK and WORLD_SIZE are set) every process takes its share of the batches; all
    write into the one store.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was.
    dataset : path, sequence, Tensor, numpy.ndarray, torch Dataset or DataLoader
        A folder of images, read at any depth; or items that are tensors without the batch axis, images (PIL, path,
        array), or pairs of those and a class index. Images get the model's own preprocessing. A loader must read in
        order; it gives its data set and batch size.
    out : path
        Where the store goes: arrays ``input`` and ``layers/<name>`` of shape (items, targets, ...), ``target``,
        ``score`` and ``conserved`` (items, targets), ``status`` (items,): 0 pending, 1 explained, 2 skipped.
    targets, layers
        What is explained, and the modules whose outputs' relevance is kept, too; see :class:`JobOptions`.
    overwrite : bool
        Start again where the store exists, instead of going on.
    progress : bool
        Show a bar with the time left.
    **options
        ``composite``, ``batch_size``, ``dtype``, ``device``, ``seed``, ``unknown``, ``transform`` and ``keep_input``:
        see :class:`JobOptions`.

    Returns
    -------
    DatasetSummary

    Raises
    ------
    InputError
        If the store was made by another job, an argument makes no sense, or items differ in shape.
    """
    job = make_job(model, dataset, out, JobOptions(targets, layers, **options))
    rank, world = rank_and_world()
    if overwrite and world > 1:
        raise InputError(f"overwrite=True with {world} processes: delete {str(job.store.out)!r} before they start")
    started = time.monotonic()
    device = None if job.options.device is None else torch.device(job.options.device)
    with on_device(job.model, device):
        job.prepare(first=rank == 0, overwrite=overwrite)
        mine = [batch for batch in job.pending() if batch % world == rank]
        here = 0
        for batch in bar(mine, job, progress and rank == 0):
            here += job.explain_batch(batch)[0]
    return finish(job, here, time.monotonic() - started)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as ``torchrun`` says; (0, 1) elsewhere."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world:
        raise InputError(f"RANK={rank} and WORLD_SIZE={world} do not fit together")
    return rank, world


def finish(job: Job, here: int, seconds: float) -> DatasetSummary:
    """What became of all items."""
    explained, skipped = job.store.finish(job.items.name)
    return DatasetSummary(job.store.out, len(job.items), explained, here, seconds, skipped)


def bar(batches: list[int], job: Job, shown: bool) -> Iterator[int]:
    """The batches, with a bar over the items that shows the time left."""
    from tqdm.auto import tqdm

    done = len(job.items) - sum(len(job.span(k)) for k in batches)
    with tqdm(total=len(job.items), initial=done, unit="item", desc=job.store.out.name, disable=not shown) as shown_bar:
        for batch in batches:
            yield batch
            shown_bar.update(len(job.span(batch)))
