"""What goes into the model: copies that relevance can be read at, and maps in the order and names of the arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import MappingKey, SequenceKey, tree_flatten_with_path, tree_unflatten

from ..errors import InputError, unknown_name
from ..model.unwrapped import refusal_of_values
from ..values import holds, is_finite

#: Arguments that hold what a language model has already read.
CACHES = ("past_key_values", "past_key_value", "cache_params", "past")

#: Arguments that say which positions of a text are tokens and which are padding.
PADDING_MASKS = ("attention_mask",)


@dataclass
class Argument:
    """One tensor among the model's arguments.

    Attributes
    ----------
    name : str
        How an error or a report calls it: ``"x"``, ``"batch['ids']"``.
    key : str or None
        Its name in a dict of maps; None where it was given by position.
    value : Tensor
        As the caller gave it.
    constant : bool
        Whether it is not to be explained.
    first : bool
        Whether it is the first tensor of all.
    """

    name: str
    key: str | None
    value: Tensor
    constant: bool = False
    first: bool = False
    leaf: Tensor | None = field(default=None, repr=False)

    @property
    def is_number(self) -> bool:
        """Whether relevance belongs to its values as they are; sparse tensors count as constants."""
        return self.is_dense and (self.value.is_floating_point() or self.value.is_complex())

    @property
    def is_integer(self) -> bool:
        kinds = (self.value.is_floating_point(), self.value.is_complex(), self.value.dtype == torch.bool)
        return self.is_dense and not any(kinds)

    @property
    def is_dense(self) -> bool:
        return self.value.layout is torch.strided


class Arguments:
    """The arguments of one call of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Whose ``forward`` names positional arguments.
    args, kwargs
        As the caller gave them.
    constants : sequence of str or int
        Arguments that are not explained (masks, adjacency matrices), by name or by position.

    Attributes
    ----------
    tensors : list of Argument
        In the order of the arguments.
    notes : list of str
        What the report should say of them.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], constants: Sequence[str | int] = ()
    ) -> None:
        self.notes: list[str] = []
        self.names = positional_names(model, len(args))
        self.kwargs = {name: self._own_cache(name, value) for name, value in kwargs.items()}
        self.args = tuple(self._own_cache(name, value) for name, value in zip(self.names, args, strict=True))
        found, self.spec = tree_flatten_with_path((self.args, self.kwargs))
        self.values = [value for _, value in found]
        self.tensors: list[Argument] = []
        self.slots: list[int] = []
        caches = {k for k, name in enumerate(self.names) if name in CACHES}
        for k, (path, value) in enumerate(found):
            if not isinstance(value, Tensor):
                continue
            name, key = self._names(path)
            argument = Argument(name, key, value, first=not self.tensors)
            steps: tuple[Any, ...] = path
            named = steps[0].idx == 1
            argument.constant = steps[1].key in CACHES if named else steps[1].idx in caches
            self.tensors.append(argument)
            self.slots.append(k)
        self._mark(constants)
        unique = [a.key for a in self.tensors if a.key is not None]
        for a in self.tensors:
            if a.key is not None and unique.count(a.key) > 1:
                a.key = a.name  # two mappings have an entry of this name

    # ------------------------------------------------------------------ names

    def _names(self, path: tuple[Any, ...]) -> tuple[str, str | None]:
        """Name and key of the value at a path of (args, kwargs)."""
        side, top, *rest = path
        named = side.idx == 1
        name = top.key if named else self.names[top.idx]
        key = name if named else None
        for step in rest:
            if isinstance(step, MappingKey):
                name, key = f"{name}[{step.key!r}]", str(step.key)
            elif isinstance(step, SequenceKey):
                name = f"{name}[{step.idx}]"
                key = None if key is None else f"{key}[{step.idx}]"
            else:
                name = f"{name}{step}"
                key = None if key is None else f"{key}{step}"
        return name, key

    def _mark(self, constants: Sequence[str | int]) -> None:
        """Take the arguments out that are not to be explained."""
        given = [constants] if isinstance(constants, str | int) else list(constants)
        for which in given:
            if isinstance(which, int) and not isinstance(which, bool):
                chosen = self.tensors[which : which + 1] if 0 <= which < len(self.tensors) else []
            else:
                chosen = [a for a in self.tensors if which in (a.name, a.key) or a.name.split("[")[0] == which]
            if not chosen:
                if which in self.names or which in self.kwargs:
                    continue  # an argument without tensors: None, a number
                raise unknown_name("input in constants=", which, [a.name for a in self.tensors])
            for a in chosen:
                a.constant = True

    def _own_cache(self, name: str, value: Any) -> Any:
        """A cache is written into by the model: it gets a copy; and the report says that it is not explained."""
        if name not in CACHES or value is None:
            return value
        length = cached_length(value)
        if length != 0:
            many = "" if length is None else f" of {length} positions"
            self.notes.append(
                f"{name} holds a prefix{many} that gets no relevance: what its tokens contribute counts as a constant. "
                "To have them explained, give the whole text as ids, without a cache"
            )
        return copy.deepcopy(without_graph(value))

    # ------------------------------------------------------------------ what the model is called with

    def check(self) -> None:
        """Nothing that is not finite, but -inf after the first tensor, where it stands in masks."""
        for k, a in enumerate(self.tensors):
            if (why := refusal_of_values(a.value)) is not None:
                raise InputError(f"input {k} ({a.name!r}) {why}")
        numbers = [a for a in self.tensors if a.is_dense and a.value.is_floating_point()]
        for k, a in enumerate(numbers):
            t = a.value
            if holds(partial(is_finite, t), unknown=True):
                continue
            bad = ~torch.isfinite(t) if k == 0 else torch.isnan(t) | (t == float("inf"))
            if holds(bad.any, unknown=False):
                raise InputError(
                    f"input {k} ({a.name!r}), of shape {tuple(t.shape)}, has {int(bad.sum())} values that are NaN or "
                    "infinite; clean it first"
                )

    def filled(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors in place of theirs, in the order of ``self.tensors``."""
        values = list(self.values)
        for k, t in zip(self.slots, tensors, strict=True):
            values[k] = t
        return tree_unflatten(values, self.spec)

    def fresh(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments again, as copies that a model may write into."""
        args, kwargs = self.filled(a.value.detach().clone() for a in self.tensors)
        return args, {k: copy.deepcopy(without_graph(v)) if k in CACHES else v for k, v in kwargs.items()}

    def padding_mask(self) -> Tensor | None:
        """(N, S): 1 for tokens and 0 for padding, where the caller gave such a mask."""
        for a in self.tensors:
            base = (a.key or a.name).split("[")[0]
            if base in PADDING_MASKS and a.value.dim() == 2 and holds((a.value >= 0).all, unknown=True):
                return a.value
        return None

    # ------------------------------------------------------------------ what comes back

    def arranged(self, maps: Mapping[int, Tensor]) -> Any:
        """Maps by the number of their argument, as the caller sees them.

        Returns
        -------
        Tensor, tuple of Tensor or dict of Tensor
            A tensor for one input; a dict where all were named; else a tuple in argument order.
        """
        numbers = sorted(maps)
        if len(numbers) == 1:
            return maps[numbers[0]]
        explained = [(self.tensors[k], maps[k]) for k in numbers]
        if all(a.key is not None for a, _ in explained):
            return {a.key: R for a, R in explained}
        return tuple(R for _, R in explained)


def stacked(maps: Sequence[Any]) -> Any:
    """Several maps as one with a first axis more: of a tensor, or of each in a dict or a tuple."""
    if isinstance(maps[0], dict):
        return {name: torch.stack([R[name] for R in maps]) for name in maps[0]}
    if isinstance(maps[0], tuple):
        return tuple(torch.stack(values) for values in zip(*maps, strict=True))
    return torch.stack(list(maps))


def takes(model: nn.Module, name: str) -> bool:
    """Whether ``forward`` has a parameter of this name."""
    try:
        return name in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


def positional_names(model: nn.Module, count: int) -> list[str]:
    """The names that ``forward`` gives its positional arguments; ``input k`` where it gives none."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
        elif p.kind == p.VAR_POSITIONAL:
            names += [f"{p.name}[{k}]" for k in range(count - len(names))]
    names += [f"input {k}" for k in range(len(names), count)]
    return names[:count]


def cached_length(cache: Any) -> int | None:
    """How many positions a cache of keys and values holds; None where it does not say."""
    ask = getattr(cache, "get_seq_length", None)
    if callable(ask):
        return int(ask())
    try:
        return int(cache[0][0].shape[-2])
    except (TypeError, LookupError, AttributeError):
        return None


def without_graph(value: Any) -> Any:
    """An output with every tensor in it detached: in lists, mappings, data classes and other objects alike.

    Objects that hold tensors (a cache of keys and values, say) are copied, so that whoever gave them keeps theirs.
    """
    return _detached(value, {}, 0)


#: How deep tensors are looked for inside objects.
DEPTH = 8


def _detached(value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if depth > DEPTH or isinstance(value, str | int | float | bool | bytes | type | nn.Module) or value is None:
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Mapping):
        found = {k: _detached(v, seen, depth + 1) for k, v in value.items()}
        return found if type(value) is dict else _like(value, found)
    if isinstance(value, tuple | list):
        parts = [_detached(v, seen, depth + 1) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not hasattr(value, "__dict__") or callable(value):
        return value
    made = seen[id(value)] = copy.copy(value)
    for name, part in vars(value).items():
        new = _detached(part, seen, depth + 1)
        if new is not part:
            object.__setattr__(made, name, new)
    return made


def _like(mapping: Any, found: dict[Any, Any]) -> Any:
    """A mapping of the same type with other values: ``ModelOutput`` keeps attributes beside its entries."""
    made = copy.copy(mapping)
    for key, value in found.items():
        made[key] = value
    return made
