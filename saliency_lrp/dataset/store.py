"""The Zarr store of a job: how it is made, opened, written and counted. The only file here that knows Zarr."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

#: What ``status`` says of an item.
PENDING, EXPLAINED, SKIPPED = 0, 1, 2
#: Longest name and reason that are kept, in bytes of UTF-8.
NAME_BYTES, REASON_BYTES = 256, 256
#: How long a process of several waits for the first to make the store, in seconds.
PATIENCE = 600.0
FORMAT = 2
#: the oldest Zarr whose stores these are
ZARR = 3
#: Beside the arrays of relevance.
ARRAYS = ("target", "score", "conserved", "reason", "status", "name")


class Store:
    """The store of one job.

    Parameters
    ----------
    out : Path
        Where it is.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._group: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_group": None}  # opened again on another machine

    @property
    def group(self) -> Any:
        """The Zarr group, for reading and writing."""
        if self._group is None:
            self._group = zarr().open_group(str(self.out), mode="r+")
        return self._group

    # ------------------------------------------------------------------ making and opening

    def exists(self) -> bool:
        return self.out.exists() or self.out.is_symlink()

    def make(
        self,
        description: Mapping[str, Any],
        maps: Mapping[str, tuple[int, ...]],
        shape: tuple[int, ...],
        names: list[str] | None,
        device: torch.device,
    ) -> None:
        """All arrays, empty, in a folder that takes its name when it is complete; the first of several processes wins.

        Parameters
        ----------
        description : mapping
            The job.
        maps : mapping
            Shape of one item's relevance, by name of its array.
        shape : tuple of int
            Shape of one item.
        names : list of str or None
            Names of the items; None where they have none.
        device : torch.device
            Where the job's model was when the arrays were made.
        """
        making = self.out.with_name(f"{self.out.name}.{uuid.uuid4().hex}.making")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        n, t, b = description["items"], len(description["targets"]), description["batch_size"]
        try:
            group = zarr().open_group(str(making), mode="w")

            def array(name: str, shape: tuple[int, ...], dtype: str, fill: Any, axes: list[str]) -> None:
                group.create_array(
                    name, shape=(n, *shape), chunks=(b, *shape), dtype=dtype, fill_value=fill, dimension_names=axes
                )

            for name, of_item in maps.items():
                array(name, (t, *of_item), description["dtype"], np.nan, axes_of(of_item))
            array("target", (t,), "int64", -1, ["item", "target"])
            array("score", (t,), "float32", np.nan, ["item", "target"])
            array("conserved", (t,), "float32", np.nan, ["item", "target"])
            array("reason", (REASON_BYTES,), "uint8", 0, ["item", "byte"])
            array("status", (), "uint8", PENDING, ["item"])
            if names is not None:
                array("name", (NAME_BYTES,), "uint8", 0, ["item", "byte"])
                for k in range(0, n, b):
                    group["name"][k : k + b] = as_bytes(names[k : k + b], NAME_BYTES)
            group.attrs.update(
                {"job": dict(description), "shape": list(shape), "made": provenance(device), "complete": False}
            )
            try:
                making.rename(self.out)
            except OSError:
                if not self.exists():
                    raise  # else another process, begun at the same time, was first
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def wait(self) -> None:
        """Until another process has made it."""
        since = time.monotonic()
        while not self.exists():
            if time.monotonic() - since > PATIENCE:
                raise InputError(f"the process of rank 0 has not made the store {str(self.out)!r} in {PATIENCE:.0f} s")
            time.sleep(0.05)

    def check(self, wanted: Mapping[str, Any]) -> None:
        """See that the store is of this job.

        Raises
        ------
        InputError
            If it is of another job, or none of ours.
        """
        there = self.job()
        different = [key for key in wanted if there.get(key) != wanted[key]]
        if different:
            said = "; ".join(f"{key}: {short(there.get(key), wanted[key])}" for key in different)
            raise InputError(
                f"the store {str(self.out)!r} was made by another job ({said}). Choose another one, or overwrite=True"
            )

    def job(self) -> dict[str, Any]:
        """The description of the job that made it."""
        if self.out.is_symlink() and not self.out.exists():
            raise InputError(f"{str(self.out)!r} is a link that leads nowhere; choose another name")
        if not (self.out / "zarr.json").is_file():
            raise InputError(f"{str(self.out)!r} is there, but it is no Zarr store; choose another name")
        try:
            job = json.loads((self.out / "zarr.json").read_bytes()).get("attributes", {}).get("job")
        except (ValueError, AttributeError):
            job = None
        if not isinstance(job, dict) or "format" not in job:
            raise InputError(f"{str(self.out)!r} is a Zarr store, but no job of this kind made it; choose another name")
        return job

    def delete(self) -> None:
        """Delete the store, if there is nothing in it but what a job put there.

        Raises
        ------
        InputError
            If it is no store of a job, a link, or holds anything else.
        """
        ours = {"zarr.json", "input", "layers", *ARRAYS}
        layers = {"zarr.json", *self.job().get("layers", ())}
        foreign = sorted(p.name for p in self.out.iterdir() if p.name not in ours)
        if (self.out / "layers").is_dir():
            inside = (p.name for p in (self.out / "layers").iterdir())
            foreign += sorted(f"layers/{name}" for name in inside if name not in layers)
        if foreign or self.out.is_symlink():
            what = "is a link" if self.out.is_symlink() else f"holds {', '.join(foreign[:5])}, which no job put there"
            raise InputError(f"overwrite=True would delete {str(self.out)!r}, which {what}. Choose another name")
        gone = self.out.with_name(f"{self.out.name}.{uuid.uuid4().hex}.old")
        self.out.rename(gone)
        shutil.rmtree(gone)
        self._group = None

    # ------------------------------------------------------------------ batches

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item."""
        return tuple(self.group.attrs["shape"])

    def pending(self, spans: Iterable[range]) -> list[int]:
        """Numbers of the batches that are not done."""
        status = self.group["status"][:]
        return [k for k, span in enumerate(spans) if (status[as_slice(span)] == PENDING).any()]

    def write(self, span: range, rows: list[int], arrays: Mapping[str, list[Tensor]], reasons: list[str]) -> None:
        """The chunks of one batch, the flag last: what comes before it is complete.

        Parameters
        ----------
        span : range
            The batch's items.
        rows : list of int
            Which of them were explained.
        arrays : mapping
            For each array one tensor per target, of those rows.
        reasons : list of str
            Why the others were not.
        """
        if rows:
            self.write_arrays(span, rows, arrays)
        if len(rows) < len(span):
            self.group["reason"][as_slice(span)] = as_bytes(reasons, REASON_BYTES)
        status = np.full(len(span), SKIPPED, np.uint8)
        status[rows] = EXPLAINED
        self.group["status"][as_slice(span)] = status

    def write_arrays(self, span: range, rows: list[int], arrays: Mapping[str, list[Tensor]]) -> None:
        """All of a batch but its flag."""
        for name, parts in arrays.items():
            array = self.group[name]
            chunk = np.full((len(span), *array.shape[1:]), array.fill_value, array.dtype)
            exact = torch.stack([p.float() if p.is_floating_point() else p for p in parts], 1).cpu().numpy()
            with np.errstate(over="ignore"):
                chunk[rows] = exact
            if chunk.dtype == np.float16 and (np.isinf(chunk[rows]) & np.isfinite(exact)).any():
                raise InputError(
                    f"relevance of {name!r} is up to {np.abs(exact).max():.3g}, more than float16 can hold; "
                    "use dtype='float32', or seed='one'"
                )
            array[as_slice(span)] = chunk

    def finish(self, name_of: Any) -> tuple[int, list[tuple[int, str, str]]]:
        """Count what was explained, list what was skipped, and mark the store as complete if it is."""
        status, reasons = self.group["status"][:], self.group["reason"]
        skipped = [(int(k), name_of(int(k)), as_text(reasons[int(k)])) for k in np.flatnonzero(status == SKIPPED)]
        explained = int((status == EXPLAINED).sum())
        listed = [{"item": k, "name": name, "reason": reason} for k, name, reason in skipped]
        complete = explained + len(skipped) == len(status)
        self.group.attrs.update({"explained": explained, "skipped": listed, "complete": complete})
        return explained, skipped


# ------------------------------------------------------------------------------------------------ small things


def zarr() -> Any:
    """The library."""
    try:
        import zarr

        if int(zarr.__version__.split(".")[0]) < ZARR:
            raise ImportError(f"{zarr.__version__} is here")
    except ImportError as error:
        raise InputError(
            f"whole data sets need zarr {ZARR} or newer (for Python 3.11 and later) and {error}: "
            "pip install 'saliency-lrp[scale]'"
        ) from error
    return zarr


def short(there: Any, wanted: Any) -> str:
    """Both, short enough for one line."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        return (
            "other ones in "
            + ", ".join(repr(key) for key in {**there, **wanted} if there.get(key) != wanted.get(key))[:80]
        )
    texts = [json.dumps(value) for value in (there, wanted)]
    one, other = (text if len(text) < 60 else text[:57] + "..." for text in texts)
    return f"{one} there, {other} now"


def provenance(device: torch.device) -> dict[str, Any]:
    """When, by which versions and where."""
    from .. import __version__

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "saliency_lrp": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "zarr": zarr().__version__,
        "python": platform.python_version(),
        "device": str(device),
    }


def axes_of(shape: tuple[int, ...]) -> list[str]:
    """Names of the axes of a map."""
    names = {3: ["channel", "row", "column"]}.get(len(shape), [f"axis {k}" for k in range(len(shape))])
    return ["item", "target", *names]


def as_slice(span: range) -> slice:
    return slice(span.start, span.stop)


def as_bytes(texts: Iterable[str], width: int) -> np.ndarray:
    """(n, width) bytes of UTF-8 (names of files: of what they are), cut and padded with zeros."""
    cut = [os.fsencode(text)[:width].ljust(width, b"\0") for text in texts]
    return np.frombuffer(b"".join(cut), np.uint8).reshape(-1, width)


def as_text(row: np.ndarray) -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="ignore")
