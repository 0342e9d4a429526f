"""What is explained, how, and where it goes: everything a process needs for its batches."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import composites
from ..composites import Composite
from ..engine.start import choose, find_scores, sum_of
from ..errors import InputError
from ..model.devices import device_of
from ..model.unwrapped import unwrapped
from ..prepared import PreparedMaps
from ..propagator import RelevancePropagator
from ..rules import Rule
from . import identity
from .items import Items, Unreadable
from .store import FORMAT, Store, zarr

DTYPES = ("float32", "float16")


@dataclass
class JobOptions:
    """How a data set is explained.

    Attributes
    ----------
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
    keep_input : bool
        Whether the relevance of the input itself is kept; without it, that of ``layers`` alone.
    compiled : bool or str
        As for ``LrpExplainer``: maps by a captured graph, batches padded to ``batch_size``. Without ``layers``.
    """

    targets: Any = None
    layers: Sequence[str] = ()
    composite: str | Composite | Rule = "auto"
    batch_size: int | None = None
    dtype: str = "float32"
    device: str | torch.device | None = None
    seed: Any = "logit"
    unknown: str = "warn"
    transform: Callable[[Any], Any] | None = None
    keep_input: bool = True
    compiled: bool | str = False

    def checked(self, dataset: Any) -> JobOptions:
        """The same, with what follows from the data set; errors for what makes no sense."""
        if self.dtype not in DTYPES:
            raise InputError(f"dtype={self.dtype!r}: expected one of {', '.join(map(repr, DTYPES))}")
        size = getattr(dataset, "batch_size", None) or 16 if self.batch_size is None else self.batch_size
        if not isinstance(size, int) or size < 1:
            raise InputError(f"batch_size={size!r}: expected a positive number")
        targets = list(self.targets) if isinstance(self.targets, list | tuple) else [self.targets]
        for target in targets:
            if not (target is None or target == "label" or callable(target) or type(target) is int):
                raise InputError(f"targets: expected class indices, None, 'label' or callables, got {target!r:.80}")
        if not targets:
            raise InputError("targets is an empty list; use None for the model's own answer")
        layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        if not layers and not self.keep_input:
            raise InputError("keep_input=False without layers keeps nothing; name some modules by layers=")
        if self.compiled and layers:
            raise InputError("compiled= keeps the relevance of the input alone: leave out layers=, or compiled=")
        device = None if self.device is None else torch.device(self.device)
        return JobOptions(
            targets, layers, composites.get(self.composite), size, self.dtype, device, self.seed, self.unknown,
            self.transform, self.keep_input, self.compiled,
        )  # fmt: skip


@dataclass
class Explained:
    """Relevance of some items for one target."""

    maps: Tensor
    layers: dict[str, Tensor]
    index: Tensor
    score: Tensor
    conserved: Tensor

    def is_finite(self) -> Tensor:
        """(n,): whether there is anything but numbers in an item's maps."""
        parts = (self.maps, *self.layers.values())
        return torch.stack([torch.isfinite(p).flatten(1).all(1) for p in parts]).all(0)


@dataclass
class Job:
    """Everything that a process needs to explain one batch and write it; can be sent to another machine."""

    model: nn.Module
    items: Items
    store: Store
    options: JobOptions

    @functools.cached_property
    def propagator(self) -> RelevancePropagator:
        """What explains; it remembers from batch to batch whether relevance has a coefficient."""
        return RelevancePropagator(self.model, self.options.composite, self.options.unknown)

    @functools.cached_property
    def prepared(self) -> PreparedMaps:
        """What explains by captured graphs."""
        options, backend = self.options, None if self.options.compiled is True else str(self.options.compiled)
        return PreparedMaps(
            self.model, options.composite, options.seed, options.unknown, backend, size=options.batch_size
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("propagator", "prepared")}

    @property
    def batch_size(self) -> int:
        """Items in one batch, settled by the time that there is a job."""
        assert self.options.batch_size is not None
        return self.options.batch_size

    @property
    def batches(self) -> int:
        """How many there are."""
        return math.ceil(len(self.items) / self.batch_size)

    def span(self, batch: int) -> range:
        """The items of a batch."""
        size = self.batch_size
        return range(batch * size, min((batch + 1) * size, len(self.items)))

    def pending(self) -> list[int]:
        """Batches that are not done."""
        return self.store.pending(map(self.span, range(self.batches)))

    # ------------------------------------------------------------------ the store

    def description(self, changing: Iterable[str] = ()) -> dict[str, Any]:
        """What must be the same for a run to be resumed; ``changing`` are settings that a forward changes itself."""
        options = self.options
        return {
            "format": FORMAT,
            "model": type(self.model).__name__,
            "weights": identity.of_weights(self.model),
            "settings": identity.by_module(identity.settings(self.model), changing),
            "changing": list(changing),
            **self.items.identity(),
            "targets": [identity.named(t) if callable(t) else t for t in options.targets],
            "layers": list(options.layers),
            "keep_input": options.keep_input,
            "composite": identity.plain_repr(options.composite),
            "seed": options.seed if isinstance(options.seed, str) else identity.of(options.seed),
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            # maps by a graph are the same but for rounding; without one, jobs are told apart as they always were
            "compiled": options.compiled or None,
        }

    def prepare(self, first: bool = True, overwrite: bool = False) -> None:
        """Make the store, or see that the one there is of the same job.

        Raises
        ------
        InputError
            If it is of another job, or no store at all.
        """
        if overwrite and first and self.store.exists():
            self.store.delete()
        if not self.store.exists() and first:
            before = identity.settings(self.model)
            found, shape = self._first()
            maps = {"input": found.maps} if self.options.keep_input else {}
            maps |= {f"layers/{name}": R for name, R in found.layers.items()}
            # what a forward itself changes on its modules (counters, caches) tells no two jobs apart
            after = identity.settings(self.model)
            changing = sorted(".".join(key) for key in {**before, **after} if before.get(key) != after.get(key))
            shapes = {name: tuple(R.shape[1:]) for name, R in maps.items()}
            description = self.description(changing)
            self.store.make(description, shapes, shape, self.items.names, device_of(self.model))
        self.store.wait()
        self.store.check(self.description(self.store.job().get("changing", ())))

    def _first(self) -> tuple[Explained, tuple[int, ...]]:
        """The first item that can be explained, and its shape."""
        why = ""
        for k in range(len(self.items)):
            try:
                value, label = self.items[k]
                rows, found, reasons = self.explain([value], [label])
                if rows:
                    return found[0], tuple(value.shape)
                why = why or reasons[0]
            except Unreadable as error:
                why = why or str(error)
        raise InputError(f"none of the {len(self.items)} items can be explained; the first says: {why}")

    # ------------------------------------------------------------------ one batch

    def explain_batch(self, batch: int) -> tuple[int, int]:
        """Explain the items of a batch and write its chunks.

        Returns
        -------
        (int, int)
            How many items were explained, and how many skipped.
        """
        span, shape = self.span(batch), self.store.item_shape
        values, labels, rows, reasons = [], [], [], [""] * len(span)
        for row, k in enumerate(span):
            try:
                value, label = self.items[k]
            except Unreadable as error:
                reasons[row] = str(error)
                continue
            if tuple(value.shape) != shape:
                raise InputError(
                    f"item {self.items.name(k)} has shape {tuple(value.shape)}, the ones before "
                    f"{shape}: let the data set or transform= make them one size"
                )
            values.append(value)
            labels.append(label)
            rows.append(row)
        kept, found, whys = self.explain(values, labels)
        for position, why in whys.items():
            reasons[rows[position]] = why
        rows = [rows[position] for position in kept]
        self.store.write(span, rows, self._arrays(found), reasons)
        return len(rows), len(span) - len(rows)

    def _arrays(self, found: list[Explained]) -> dict[str, list[Tensor]]:
        arrays = {"input": [e.maps for e in found]} if self.options.keep_input else {}
        arrays |= {f"layers/{name}": [e.layers[name] for e in found] for name in self.options.layers}
        return arrays | {name: [getattr(e, to) for e in found] for name, to in SCALARS.items()}

    def explain(
        self, values: list[Tensor], labels: list[int | None]
    ) -> tuple[list[int], list[Explained], dict[int, str]]:
        """Which of these items can be explained, what was found for each target, and why the others cannot."""
        kept = list(range(len(values)))
        reasons: dict[int, str] = {}
        while kept:
            found, whys = self._together([values[k] for k in kept], [labels[k] for k in kept])
            if not whys:
                return kept, found, reasons
            reasons |= {kept[k]: why for k, why in whys.items()}
            kept = [k for k in kept if k not in reasons]
        return [], [], reasons

    def _together(self, values: list[Tensor], labels: list[int | None]) -> tuple[list[Explained], dict[int, str]]:
        """One forward pass, and a backward pass for each target; or which items must not be among them."""
        options = self.options
        x = torch.stack(values)
        parameter = next(self.model.parameters(), None)
        if parameter is not None:
            x = x.to(parameter.device, parameter.dtype if x.is_floating_point() else x.dtype)
        if options.compiled:
            return self._by_graphs(x, labels)
        # rules are bound in the forward pass where only the input's relevance is wanted: faster, in less memory
        trace = self.propagator.trace(x) if options.layers else self.propagator.bound_trace(x)
        whys = dict.fromkeys(not_finite(trace.output, options.targets, len(values)), OUTPUT_NOT_FINITE)
        found = []
        for k, asked in enumerate(options.targets if not whys else ()):
            target = label_indices(labels) if asked == "label" else asked
            retain = k + 1 < len(options.targets)
            if options.layers:
                R, layers = trace.all_relevance(options.layers, target, options.seed, retain=retain)
            else:
                R, layers = trace.relevance(target, options.seed, retain=retain), {}
            if not isinstance(R, Tensor) or any(not isinstance(v, Tensor) for v in layers.values()):
                raise InputError("only models and layers with one tensor going in and out can be explained in bulk")
            found.append(self._weighed(trace.output, R, layers, target, asked))
            whys |= {int(row): MAP_NOT_FINITE for row in torch.nonzero(~found[-1].is_finite())}
        trace.warn()
        return found, whys

    def _by_graphs(self, x: Tensor, labels: list[int | None]) -> tuple[list[Explained], dict[int, str]]:
        """As :meth:`_together`, by captured graphs."""
        whys: dict[int, str] = {}
        found = []
        for asked in self.options.targets:
            target = label_indices(labels) if asked == "label" else asked
            output, maps = self.prepared.maps((x,), target)
            found.append(self._weighed(output, maps[0], {}, target, asked))
            whys |= dict.fromkeys(not_finite(output, [asked], len(x)), OUTPUT_NOT_FINITE)
            whys |= {int(row): MAP_NOT_FINITE for row in torch.nonzero(~found[-1].is_finite()) if int(row) not in whys}
        return found, whys

    def _weighed(self, output: Any, R: Tensor, layers: dict[str, Tensor], target: Any, asked: Any) -> Explained:
        """Maps with the score that they explain, and how much of it they account for."""
        n = len(R)
        index, score = scores(output, target, asked, n)
        started = sum_of(self.options.seed, score)
        arrived = R.double().flatten(1).sum(1) if R.numel() else R.new_zeros(n)
        conserved = torch.full_like(arrived, math.nan) if started is None else arrived / started.double()
        return Explained(R, layers, index, score, conserved)


#: Arrays of one number per item and target, and where it is.
SCALARS = {"target": "index", "score": "score", "conserved": "conserved"}
OUTPUT_NOT_FINITE = "the model's output has NaN or infinite values"
MAP_NOT_FINITE = "its relevance has NaN or infinite values"


def not_finite(output: Any, targets: list[Any], n: int) -> list[int]:
    """Items of which the model, or a callable target, says something that is no number."""
    bad = torch.zeros(n, dtype=torch.bool)
    for target in targets:
        values = target(output) if callable(target) else find_scores(output).values
        if isinstance(values, Tensor) and values.dim() and values.shape[0] == n:
            bad |= (
                ~torch.isfinite(values.detach()).flatten(1).all(1).cpu()
                if values.dim() > 1
                else (~torch.isfinite(values.detach()).cpu())
            )
    return torch.nonzero(bad)[:, 0].tolist()


def label_indices(labels: list[int | None]) -> tuple[int, ...]:
    """The items' own classes."""
    if any(label is None for label in labels):
        raise InputError("targets='label' needs a data set whose items are (input, class index) pairs")
    return tuple(label for label in labels if label is not None)


def scores(output: Any, target: Any, asked: Any, n: int) -> tuple[Tensor, Tensor]:
    """Class indices (-1 for a callable) and the values that were explained, (n,) each."""
    if callable(asked):
        value = asked(output)
        return torch.full((n,), -1), value.detach().reshape(n, -1).sum(1)
    chosen = choose(find_scores(output), target)
    return chosen.index, chosen.values.float()


def make_job(model: nn.Module, dataset: Any, out: str | os.PathLike[str], options: JobOptions) -> Job:
    """Check the arguments of :func:`explain_dataset`."""
    zarr()
    model = unwrapped(model)
    return Job(model, Items(dataset, model, options.transform), Store(Path(out)), options.checked(dataset))
