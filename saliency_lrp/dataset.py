"""Whole data sets: relevance maps streamed to a Zarr store, in constant memory, resumable after a kill.

Items are explained in batches, and a batch is one chunk of every array, so that batches never touch each other's
files: a killed run goes on where it stopped, and several processes can share one store. The last thing written of a
batch is its chunk of ``status``; a batch without it is explained again, to the same bits.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import composites
from .composites import Composite
from .engine.start import choose, find_scores
from .errors import InputError
from .model.devices import on_device
from .model.unwrapped import unwrapped
from .propagator import RelevancePropagator
from .rules import Rule

if TYPE_CHECKING:
    import zarr

#: What ``status`` says of an item.
PENDING, EXPLAINED, SKIPPED = 0, 1, 2
#: Longest name and reason that are kept, in bytes of UTF-8.
NAME_BYTES, REASON_BYTES = 256, 256
#: Files that count as images in a folder.
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .ppm .pgm".split())
DTYPES = ("float32", "float16")
#: How long a process of several waits for the first to make the store, in seconds.
PATIENCE = 600.0
FORMAT = 1


# ----------------------------------------------------------------------------------------------
# Where items come from
# ----------------------------------------------------------------------------------------------


class Unreadable(Exception):
    """An item that is skipped, and why."""


class Items:
    """Items by number: the model's input, the item's own label where it has one, and its name.

    Parameters
    ----------
    source : path, sequence, Tensor, numpy.ndarray, torch Dataset or DataLoader
        As in :func:`explain_dataset`.
    model : torch.nn.Module
        Whose preprocessing images get.
    transform : callable, optional
        From a PIL image to the model's tensor, in place of that preprocessing.
    """

    def __init__(self, source: Any, model: nn.Module, transform: Callable[[Any], Any] | None = None) -> None:
        self.names: list[str] | None = None
        self.transform = transform
        from .images import input_channels, preprocessing_of

        self.preprocessing = preprocessing_of(model)
        self.channels = input_channels(model)
        if isinstance(source, (str, os.PathLike)):
            folder = Path(source)
            source = images_in(folder)
            self.names = [path.relative_to(folder).as_posix() for path in source]
        elif isinstance(source, torch.utils.data.DataLoader):
            source = in_order(source)
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise InputError(
                f"the data set must have a length and numbered items, so that a run can be resumed; a "
                f"{type(source).__name__} has not. Give a folder of images, a torch Dataset, a sequence or a tensor"
            )
        self.source = source
        if not len(self):
            raise InputError("the data set is empty")

    def __len__(self) -> int:
        return len(self.source)

    def name(self, k: int) -> str:
        """Path of an image in its folder, or the item's number."""
        return str(k) if self.names is None else self.names[k]

    def __getitem__(self, k: int) -> tuple[Tensor, int | None]:
        """Input, without the batch axis, and label.

        Raises
        ------
        Unreadable
            Whatever goes wrong in reading it; corrupt files must not stop a run.
        """
        try:
            found = self.source[k]
            label = None
            if isinstance(found, (tuple, list)) and found:
                label = int(found[1]) if len(found) > 1 and np.ndim(found[1]) == 0 else None
                found = found[0]
            value = self._tensor(found)
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise Unreadable("it has values that are NaN or infinite")
        return value, label

    def _tensor(self, found: Any) -> Tensor:
        if isinstance(found, Tensor):
            return found.detach()
        if isinstance(found, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(found))
        from .images import as_batch, load_image

        image = load_image(found)
        if self.transform is not None:
            return as_batch(self.transform(image.picture()))[0]
        return self.preprocessing(image, self.channels)[0]


def images_in(folder: Path) -> list[Path]:
    """Image files below a folder, by name."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"folder {str(folder)!r} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def in_order(loader: torch.utils.data.DataLoader) -> Any:
    """The data set of a loader that reads it in order; another order could not be resumed."""
    if not isinstance(loader.sampler, torch.utils.data.SequentialSampler):
        raise InputError(
            f"the loader must read its data set in order, so that a run can be resumed, but its sampler is a "
            f"{type(loader.sampler).__name__}. Use shuffle=False, or give the data set itself"
        )
    return loader.dataset


# ----------------------------------------------------------------------------------------------
# The job: what is explained, and where it goes
# ----------------------------------------------------------------------------------------------


@dataclass
class Job:
    """Everything that a process needs to explain one batch and write it; can be sent to another machine.

    Attributes
    ----------
    targets : list
        As in :func:`explain_dataset`, always a list.
    out : Path
        The store.
    """

    model: nn.Module
    items: Items
    out: Path
    targets: list[Any]
    layers: tuple[str, ...]
    composite: Composite
    batch_size: int
    dtype: str
    seed: Any
    unknown: str
    device: torch.device | None

    @property
    def batches(self) -> int:
        """How many there are."""
        return math.ceil(len(self.items) / self.batch_size)

    def span(self, batch: int) -> range:
        """The items of a batch."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.items)))

    # ------------------------------------------------------------------ the store

    def description(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            "format": FORMAT,
            "model": type(self.model).__name__,
            "weights": fingerprint(self.model),
            "items": len(self.items),
            "names": _digest("\n".join(self.items.names or [])),
            "targets": [t if t is None or isinstance(t, int | str) else repr(t) for t in self.targets],
            "layers": list(self.layers),
            "composite": repr(self.composite),
            "seed": self.seed if isinstance(self.seed, str) else repr(self.seed),
            "batch_size": self.batch_size,
            "dtype": self.dtype,
        }

    def open(self) -> zarr.Group:
        """The store, for reading and writing."""
        return _zarr().open_group(str(self.out), mode="r+")

    def prepare(self, first: bool = True, overwrite: bool = False) -> None:
        """Make the store, or see that the one there is of the same job.

        Raises
        ------
        InputError
            If it is of another job, or no store at all.
        """
        if overwrite and first and self.out.exists():
            _check_is_store(self.out)
            shutil.rmtree(self.out)
        if not self.out.exists() and first:
            self._make()
        waited_since = time.monotonic()
        while not self.out.exists():
            if time.monotonic() - waited_since > PATIENCE:
                raise InputError(f"the process of rank 0 has not made the store {str(self.out)!r} in {PATIENCE:.0f} s")
            time.sleep(0.05)
        _check_is_store(self.out)
        there, wanted = self.open().attrs.asdict().get("job", {}), self.description()
        different = [key for key in wanted if there.get(key) != wanted[key]]
        if different:
            said = "; ".join(f"{key}: {_short(there.get(key))} there, {_short(wanted[key])} now" for key in different)
            raise InputError(
                f"the store {str(self.out)!r} was made by another job ({said}). Choose another one, or overwrite=True"
            )

    def _make(self) -> None:
        """All arrays, empty, in a folder that takes its name when it is complete."""
        maps, layers = self._shapes()
        making = self.out.with_name(f"{self.out.name}.{uuid.uuid4().hex}.making")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        n, t, b = len(self.items), len(self.targets), self.batch_size
        try:
            store = _zarr().open_group(str(making), mode="w")

            def array(name: str, shape: tuple[int, ...], dtype: str, fill: Any, axes: list[str]) -> None:
                store.create_array(
                    name, shape=(n, *shape), chunks=(b, *shape), dtype=dtype, fill_value=fill, dimension_names=axes
                )

            array("input", (t, *maps), self.dtype, np.nan, _axes(maps))
            for name, shape in layers.items():
                array(f"layers/{name}", (t, *shape), self.dtype, np.nan, _axes(shape))
            array("target", (t,), "int64", -1, ["item", "target"])
            array("score", (t,), "float32", np.nan, ["item", "target"])
            array("conserved", (t,), "float32", np.nan, ["item", "target"])
            array("reason", (REASON_BYTES,), "uint8", 0, ["item", "byte"])
            array("status", (), "uint8", PENDING, ["item"])
            if self.items.names is not None:
                array("name", (NAME_BYTES,), "uint8", 0, ["item", "byte"])
                for k in range(self.batches):
                    store["name"][_slice(self.span(k))] = _as_bytes(map(self.items.name, self.span(k)), NAME_BYTES)
            store.attrs.update({"job": self.description(), "made": _provenance(self.model), "complete": False})
            making.rename(self.out)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _shapes(self) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
        """Shapes of one item's maps, by explaining the first that can be read."""
        for k in range(len(self.items)):
            try:
                value, label = self.items[k]
            except Unreadable:
                continue
            (maps, layers, *_), *_ = self._explain([value], [label])
            return tuple(maps.shape[1:]), {name: tuple(R.shape[1:]) for name, R in layers.items()}
        raise InputError(f"none of the {len(self.items)} items can be read; the first says: {self._why(0)}")

    def _why(self, k: int) -> str:
        try:
            self.items[k]
        except Unreadable as error:
            return str(error)
        return ""

    # ------------------------------------------------------------------ one batch

    def explain_batch(self, batch: int, store: zarr.Group | None = None) -> tuple[int, int]:
        """Explain the items of a batch and write its chunks.

        Returns
        -------
        (int, int)
            How many items were explained, and how many skipped.
        """
        store = self.open() if store is None else store
        span = self.span(batch)
        values, labels, rows, reasons = [], [], [], [""] * len(span)
        for row, k in enumerate(span):
            try:
                value, label = self.items[k]
            except Unreadable as error:
                reasons[row] = str(error)
                continue
            if tuple(value.shape) != store["input"].shape[2:]:
                raise InputError(
                    f"item {self.items.name(k)} has shape {tuple(value.shape)}, the ones before "
                    f"{store['input'].shape[2:]}: let the data set or transform= make them one size"
                )
            values.append(value), labels.append(label), rows.append(row)
        if rows:
            self._write(store, span, rows, self._explain(values, labels))
        if len(rows) < len(span):
            store["reason"][_slice(span)] = _as_bytes(reasons, REASON_BYTES)
        status = np.full(len(span), SKIPPED, np.uint8)
        status[rows] = EXPLAINED
        store["status"][_slice(span)] = status  # last: what comes before it is complete
        return len(rows), len(span) - len(rows)

    def _explain(self, values: list[Tensor], labels: list[int | None]) -> list[tuple[Any, ...]]:
        """(maps, layers, class index, score, conserved) for each target, from one forward pass."""
        parameter = next(self.model.parameters(), None)
        x = torch.stack(values)
        if parameter is not None:
            x = x.to(parameter.device, parameter.dtype if x.is_floating_point() else x.dtype)
        trace = RelevancePropagator(self.model, self.composite, self.unknown).trace(x)
        found = []
        for k, target in enumerate(self.targets):
            if target == "label":
                target = self._labels(labels)
            R, layers = trace.all_relevance(self.layers, target, self.seed, retain=k + 1 < len(self.targets))
            if not isinstance(R, Tensor) or any(not isinstance(v, Tensor) for v in layers.values()):
                raise InputError("only models and layers with one tensor going in and out can be explained in bulk")
            index, score = _scores(trace.output, target, self.targets[k], len(values))
            started = score if self.seed == "logit" else torch.ones_like(score) if self.seed == "one" else None
            arrived = R.double().flatten(1).sum(1) if R.numel() else R.new_zeros(len(values))
            conserved = torch.full_like(arrived, math.nan) if started is None else arrived / started.double()
            found.append((R, layers, index, score, conserved))
        trace.warn()
        return found

    @staticmethod
    def _labels(labels: list[int | None]) -> tuple[int, ...]:
        if any(label is None for label in labels):
            raise InputError("targets='label' needs a data set whose items are (input, class index) pairs")
        return tuple(labels)  # type: ignore[arg-type]

    def _write(self, store: zarr.Group, span: range, rows: list[int], found: list[tuple[Any, ...]]) -> None:
        maps, layers, index, score, conserved = zip(*found, strict=True)
        arrays = {"input": maps, "target": index, "score": score, "conserved": conserved}
        arrays |= {f"layers/{name}": [given[name] for given in layers] for name in self.layers}
        for name, parts in arrays.items():
            array = store[name]
            chunk = np.full((len(span), *array.shape[1:]), array.fill_value, array.dtype)
            exact = torch.stack([p.float() if p.is_floating_point() else p for p in parts], 1).cpu().numpy()
            with np.errstate(over="ignore"):
                chunk[rows] = exact
            if self.dtype == "float16" and (np.isinf(chunk[rows]) & np.isfinite(exact)).any():
                raise InputError(
                    f"relevance of {name!r} is up to {np.abs(exact).max():.3g}, more than float16 can hold; "
                    "use dtype='float32', or seed='one'"
                )
            array[_slice(span)] = chunk


def _scores(output: Any, target: Any, asked: Any, n: int) -> tuple[Tensor, Tensor]:
    """Class indices (-1 for a callable) and the values that were explained, (n,) each."""
    if callable(asked):
        value = asked(output)
        return torch.full((n,), -1), value.detach().reshape(n, -1).sum(1)
    chosen = choose(find_scores(output), target)
    return chosen.index, chosen.values.float()


# ----------------------------------------------------------------------------------------------
# Running it
# ----------------------------------------------------------------------------------------------


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
        Number, name and reason of every item that could not be read.
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
    composite: str | Composite | Rule = "auto",
    batch_size: int | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    seed: Any = "logit",
    unknown: str = "warn",
    transform: Callable[[Any], Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
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
    targets : None, int, "label", callable, or a list of those
        What is explained: the arg-max, a class, the item's own label, or a value computed from the output. Several
        share one forward pass.
    layers : sequence of str
        Modules whose outputs' relevance is kept, too.
    composite, seed, unknown
        As for ``RelevancePropagator`` and ``Trace.relevance``.
    batch_size : int
        Items explained at once, and per chunk; the loader's, or 16.
    dtype : {"float32", "float16"}
        How maps are stored.
    device : str or torch.device, optional
        Where to run; the model is moved there and back. By default it stays where it is.
    transform : callable, optional
        From a PIL image to the model's tensor.
    overwrite : bool
        Start again where the store exists, instead of going on.
    progress : bool
        Show a bar with the time left.

    Returns
    -------
    DatasetSummary

    Raises
    ------
    InputError
        If the store was made by another job, an argument makes no sense, or items differ in shape.
    """
    job = make_job(model, dataset, out, targets, layers, composite, batch_size, dtype, device, seed, unknown, transform)
    rank, world = rank_and_world()
    if overwrite and world > 1:
        raise InputError(f"overwrite=True with {world} processes: delete {str(job.out)!r} before they start")
    started = time.monotonic()
    with on_device(job.model, job.device):
        job.prepare(first=rank == 0, overwrite=overwrite)
        store = job.open()
        mine = [batch for batch in pending(job, store) if batch % world == rank]
        here = 0
        for batch in _bar(mine, job, progress and rank == 0):
            here += job.explain_batch(batch, store)[0]
    return finish(job, here, time.monotonic() - started)


def make_job(
    model: nn.Module,
    dataset: Any,
    out: str | os.PathLike[str],
    targets: Any,
    layers: Sequence[str],
    composite: str | Composite | Rule,
    batch_size: int | None,
    dtype: str,
    device: str | torch.device | None,
    seed: Any,
    unknown: str,
    transform: Callable[[Any], Any] | None,
) -> Job:
    """Check the arguments of :func:`explain_dataset`."""
    _zarr()
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")
    model = unwrapped(model)
    if batch_size is None:
        batch_size = getattr(dataset, "batch_size", None) or 16
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: expected a positive number")
    listed = list(targets) if isinstance(targets, list | tuple) else [targets]
    for target in listed:
        if not (target is None or target == "label" or callable(target) or type(target) is int):
            raise InputError(f"targets: expected class indices, None, 'label' or callables, got {target!r:.80}")
    if not listed:
        raise InputError("targets is an empty list; use None for the model's own answer")
    return Job(
        model,
        Items(dataset, model, transform),
        Path(out),
        listed,
        (layers,) if isinstance(layers, str) else tuple(layers),
        composites.get(composite),
        batch_size,
        dtype,
        seed,
        unknown,
        None if device is None else torch.device(device),
    )


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as ``torchrun`` says; (0, 1) elsewhere."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not 0 <= rank < world:
        raise InputError(f"RANK={rank} and WORLD_SIZE={world} do not fit together")
    return rank, world


def pending(job: Job, store: zarr.Group) -> list[int]:
    """Batches that are not done."""
    status = store["status"][:]
    return [k for k in range(job.batches) if (status[_slice(job.span(k))] == PENDING).any()]


def finish(job: Job, here: int, seconds: float) -> DatasetSummary:
    """Count, list what was skipped, and mark the store as complete if it is."""
    store = job.open()
    status = store["status"][:]
    skipped = [
        (int(k), job.items.name(int(k)), _text(store["reason"][int(k)])) for k in np.flatnonzero(status == SKIPPED)
    ]
    explained = int((status == EXPLAINED).sum())
    summary = DatasetSummary(job.out, len(job.items), explained, here, seconds, skipped)
    listed = [{"item": k, "name": name, "reason": reason} for k, name, reason in skipped]
    store.attrs.update({"explained": explained, "skipped": listed, "complete": summary.complete})
    return summary


def _bar(batches: list[int], job: Job, shown: bool) -> Iterator[int]:
    """The batches, with a bar over the items that shows the time left."""
    from tqdm.auto import tqdm

    done = len(job.items) - sum(len(job.span(k)) for k in batches)
    with tqdm(total=len(job.items), initial=done, unit="item", desc=job.out.name, disable=not shown) as bar:
        for batch in batches:
            yield batch
            bar.update(len(job.span(batch)))


# ----------------------------------------------------------------------------------------------
# Small things
# ----------------------------------------------------------------------------------------------


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError("whole data sets need zarr: pip install 'saliency-lrp[scale]'") from error
    return zarr


def _check_is_store(out: Path) -> None:
    if not (out / "zarr.json").is_file():
        raise InputError(f"{str(out)!r} is there, but it is no Zarr store; choose another name")


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights, so that a run is never resumed with others."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _provenance(model: nn.Module) -> dict[str, Any]:
    from . import __version__

    parameter = next(model.parameters(), None)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "saliency_lrp": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "zarr": _zarr().__version__,
        "python": platform.python_version(),
        "device": str(parameter.device) if parameter is not None else "cpu",
    }


def _axes(shape: tuple[int, ...]) -> list[str]:
    names = {3: ["channel", "row", "column"]}.get(len(shape), [f"axis {k}" for k in range(len(shape))])
    return ["item", "target", *names]


def _slice(span: range) -> slice:
    return slice(span.start, span.stop)


def _as_bytes(texts: Any, width: int) -> np.ndarray:
    """(n, width) bytes of UTF-8, cut and padded with zeros."""
    cut = [text.encode()[:width].ljust(width, b"\0") for text in texts]
    return np.frombuffer(b"".join(cut), np.uint8).reshape(-1, width)


def _text(row: np.ndarray) -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="ignore")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
