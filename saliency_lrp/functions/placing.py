"""Values that are written into places of a tensor: where a place is named twice, only what stays there counts.

torch's own derivative gives every value what arrives at its place, also one that another has been written over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..sites.call import Call
from .by_hand import may_be_normed
from .registry import kind
from .routing import moved
from .sums import CompleteSum


class Places(NamedTuple):
    """Where a function writes: the position and name of its values, and how it writes and reads those places."""

    values: tuple[int, str]
    write: Callable[[Call, Tensor, Tensor], Any]
    read: Callable[[Call, Tensor], Tensor]


def items_of(call: Call) -> Any:
    return call.arg(1, "indices")


def dim_of(call: Call) -> tuple[int, Tensor]:
    return call.arg(1, "dim"), call.arg(2, "index")


PLACES: dict[str, Places] = {
    "__setitem__": Places(
        (2, "value"), lambda call, t, n: t.__setitem__(items_of(call), n), lambda call, t: t[items_of(call)]
    ),
    "index_put": Places(
        (2, "values"),
        lambda call, t, n: t.index_put_(items_of(call), n),
        lambda call, t: torch.ops.aten.index(t, items_of(call)),
    ),
    "index_copy": Places(
        (3, "source"),
        lambda call, t, n: t.index_copy_(*dim_of(call), n),
        lambda call, t: t.index_select(*dim_of(call)),
    ),
    "scatter": Places(
        (3, "src"), lambda call, t, n: t.scatter_(*dim_of(call), n), lambda call, t: t.gather(*dim_of(call))
    ),
    "put": Places(
        (2, "source"),
        lambda call, t, n: t.put_(call.arg(1, "index"), n),
        lambda call, t: t.take(call.arg(1, "index")),
    ),
}


@kind("placing")
def placing(call: Call) -> Any:
    """Write values; those that do not stay are constants."""
    places = PLACES[call.name]
    values = call.arg(*places.values)
    if call.is_activation(values) and may_repeat(call):
        put_in_place_of(call, places.values, those_that_stay(call, places, values))
    return moved(call)


def may_repeat(call: Call) -> bool:
    """Whether the places are a list that could name one twice."""
    index: Any = items_of(call) if call.name in ("__setitem__", "index_put") else call.args[1:3]
    index = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(i, Sequence) or (hasattr(i, "dtype") and i.dtype is not torch.bool and i.ndim > 0) for i in index
    )


def those_that_stay(call: Call, places: Places, values: Tensor) -> Tensor:
    """The values, those as constants that others are written over: found by writing their numbers."""
    with torch.no_grad():
        # laid out as the tensors are: torch goes through places in the order of their memory
        written = torch.full_like(call.args[0], -1, dtype=torch.long)
        shape = places.read(call, written).shape

        def of_places(values: Tensor) -> Tensor:
            if call.name == "scatter":  # reads as many values as there are places
                return values[tuple(slice(n) for n in shape)]
            return values.reshape(values.shape[max(0, values.dim() - len(shape)) :]).expand(shape)

        numbers = torch.empty_like(of_places(values), dtype=torch.long)
        numbers.copy_(torch.arange(shape.numel(), device=values.device).reshape(shape))
        places.write(call, written, numbers)
        stays = places.read(call, written) == numbers

    return call.reroute(lambda: torch.where(stays, of_places(values), of_places(values.detach())))


def put_in_place_of(call: Call, where: tuple[int, str], values: Tensor) -> None:
    """Give the call other values."""
    position, name = where
    before = call.arg(*where)
    if len(call.args) > position:
        call.args = (*call.args[:position], values, *call.args[position + 1 :])
    else:
        call.kwargs = {**call.kwargs, name: values}
    still_read = any(v is before for v in (*call.args, *call.kwargs.values()))
    call.activations = [a for a in call.activations if a is not before or still_read] + [values]


@kind("scattered sum")
def scattered_sum(call: Call) -> Any:
    """``scatter(..., reduce="add")``, of which torch knows no derivative: ``scatter_add``, of which it does."""
    added = torch.Tensor.scatter_add_ if call.inplace else torch.scatter_add

    def run(t: Tensor, dim: int, index: Tensor, src: Any, **_: Any) -> Tensor:
        values = src if isinstance(src, Tensor) else torch.full(index.shape, src, dtype=t.dtype, device=t.device)
        return added(t, dim, index, values)

    same = call.of_function(lambda t, *args, **kwargs: run(t, *named(args, kwargs)))
    return may_be_normed(same.node(CompleteSum(same), gate=call.gate(), nonnegative=call.nonnegative()))


def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Dimension, index and values of a scatter, however they are given."""
    values = kwargs.get("src", kwargs.get("value"))
    return [args[k] if len(args) > k else kwargs.get(n, values) for k, n in enumerate(("dim", "index", "src"))]
