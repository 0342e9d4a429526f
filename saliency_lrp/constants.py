"""Names of what a model adds to its activations as it is: position embeddings, learned tables, buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .sites.site import fill, iter_tensors


class Constants:
    """Finds the name of a constant by the memory it lies in.

    Parameters
    ----------
    model : torch.nn.Module
        Whose parameters and buffers have names.
    outputs : mapping of str to Tensor
        What modules gave that were not asked about the input (an embedding of positions), by the module's path.
    """

    def __init__(self, model: nn.Module, outputs: Mapping[str, Tensor]) -> None:
        owned = {**outputs, **dict(model.named_buffers()), **dict(model.named_parameters())}
        self.names = {address: name for name, t in owned.items() if (address := address_of(t)) is not None}

    def name_of(self, site: Any) -> str:
        """The constants that a sum adds, by name; empty where none is known."""
        if site.kind != "sum":
            return ""
        nothing = [None] * len(site.saved)  # in place of the activations
        constants = iter_tensors(fill(site.args, nothing), {k: fill(v, nothing) for k, v in site.kwargs.items()})
        return ", ".join(self.names_of(map(address_of, constants)))

    def names_of(self, addresses: Iterable[int | None]) -> list[str]:
        """The names of what begins at these addresses, each once."""
        return list(
            dict.fromkeys(self.names[address] for address in addresses if address is not None and address in self.names)
        )


def address_of(t: Tensor) -> int | None:
    """Where the memory of a tensor begins; a sparse one has none of its own."""
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else None
