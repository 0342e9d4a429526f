"""Which tensors from before a traced forward it wrote into."""

from __future__ import annotations

import weakref

from torch import Tensor

#: Where what a trace knows of a tensor is kept.
TAG = "_saliency_lrp"


class Written:
    """Tensors from before the forward that it wrote into; they are free of graphs again once it has ended."""

    def __init__(self) -> None:
        self._tensors: dict[int, weakref.ref[Tensor]] = {}

    def note(self, target: Tensor) -> None:
        """The model is about to write into a tensor, which may be a view of another."""
        for t in (target, target._base):
            if t is not None and t.grad_fn is None:
                self._tensors.setdefault(id(t), weakref.ref(t))

    def alive(self) -> list[Tensor]:
        """Those that still exist; they are noted no longer, since a weak reference keeps a tensor as it is."""
        found = [t for reference in self._tensors.values() if (t := reference()) is not None]
        self._tensors.clear()
        return found
