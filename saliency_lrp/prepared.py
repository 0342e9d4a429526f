"""Maps by graphs that are captured as they are needed: for explainers and data sets that meet many batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .compiled import Compiled
from .composites import Composite
from .engine.backward import are_finite
from .engine.start import check_finite
from .errors import InputError
from .model.unwrapped import unwrapped
from .rules import Rule

#: How far maps may be apart, relative to the largest value, whose batch was filled up with something else.
APART = 1e-5


class PreparedMaps:
    """Relevance by captured graphs, one for each kind of target and shape of item.

    A batch that is smaller than a graph's is filled up with its last item, and what that gives is cut off. Where the
    model's weights were changed, its graphs are captured again.

    Parameters
    ----------
    model : torch.nn.Module
    composite, seed, unknown, backend
        As for :func:`saliency_lrp.compile`.
    size : int, optional
        Batch size to capture graphs for; else each graph is captured for the first batch that none is large enough for.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite | Rule = "auto",
        seed: Any = "logit",
        unknown: str = "warn",
        backend: str | None = None,
        size: int | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.composite = composite
        self.options = {"seed": seed, "unknown": unknown, "backend": backend}
        self.size = size
        self._compiled: dict[Any, Compiled] = {}
        self._weights: list[tuple[int, int]] = []
        self._apart: dict[tuple[Any, int], bool] = {}

    def __call__(self, inputs: tuple[Tensor, ...], target: Any = None) -> tuple[Tensor, Any]:
        """Scores and relevance of each input, all of them finite.

        Parameters
        ----------
        inputs : tuple of Tensor
            Positional arguments of the model, of N items.
        target : None, int, sequence, callable or Tensor, shape (N,)
            The arg-max, one class, one class per item, or a function of the output.

        Returns
        -------
        scores, relevance
            Relevance is a tensor for one input, a tuple for several.

        Raises
        ------
        InputError
            For a model that cannot be captured, and for input, output or relevance with NaN or infinite values.
        """
        if not inputs or not all(isinstance(t, Tensor) and t.dim() for t in inputs):
            raise InputError("a graph takes tensors with a batch axis; explain other arguments with compiled=False")
        if not are_finite(t for t in inputs if t.is_floating_point()):
            raise InputError("the input has NaN or infinite values; clean it first")
        scores, R = self.maps(inputs, target)
        check_finite(scores)
        if not are_finite(R):
            raise InputError("the map has NaN or infinite values; compiled=False says where they come from")
        return scores, R[0] if len(R) == 1 else R

    def maps(self, inputs: tuple[Tensor, ...], target: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As when called, whatever the values: scores, and the relevance of each input."""
        self._forget_old_weights()
        n = inputs[0].shape[0]
        classes = None if target is None or callable(target) else torch.as_tensor(target).reshape(-1)
        key = (tuple((t.shape[1:], t.dtype, t.device) for t in inputs), target if callable(target) else classes is None)
        compiled = self._compiled.get(key)
        size = self._size_for(key, compiled, n)
        filled = tuple(padded(t, size, t[-1:]) for t in inputs)
        given = None if classes is None else padded(as_many(classes, n), size, classes[-1:])
        if compiled is None:
            asked = given if classes is not None else target
            options: Any = self.options
            compiled = self._compiled[key] = Compiled(self.model, filled, self.composite, asked, **options)
        scores, R = cut(compiled(*filled, target=given), n)
        if size > n and (key, size) not in self._apart:
            zeros = tuple(padded(t, size, torch.zeros_like(t[-1:])) for t in inputs)
            self._apart[key, size] = are_alike((scores, *R), cut(compiled(*zeros, target=given), n))
        if size > n and not self._apart[key, size]:
            return self.maps(inputs, target)  # items of a batch have to do with each other: the size must be their own
        return scores, R

    def _size_for(self, key: Any, compiled: Compiled | None, n: int) -> int:
        """The batch size whose graph serves n items."""
        there = [] if compiled is None else compiled.sizes
        wanted = [self.size] if self.size is not None else []
        return next((size for size in (*wanted, *there) if size >= n and self._apart.get((key, size), True)), n)

    def _forget_old_weights(self) -> None:
        """Graphs hold weights as they were: look whether they still are."""
        now = [(t.data_ptr(), t._version) for t in (*self.model.parameters(), *self.model.buffers())]
        if now != self._weights:
            self._compiled.clear()
            self._apart.clear()
            self._weights = now


def as_many(classes: Tensor, n: int) -> Tensor:
    """One class for each of n items."""
    if len(classes) not in (1, n):
        raise InputError(f"{len(classes)} classes were given for {n} items: give one, or one for each")
    return classes.expand(n)


def padded(t: Tensor, size: int, filling: Tensor) -> Tensor:
    """A batch of a size, filled up with one item again and again."""
    missing = size - t.shape[0]
    return t if missing <= 0 else torch.cat([t, filling.expand(missing, *t.shape[1:])])


def cut(found: tuple[Tensor, Any], n: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The first n items of scores and maps."""
    output, R = found
    return output[:n], tuple(r[:n] for r in (R if isinstance(R, tuple) else (R,)))


def are_alike(found: tuple[Tensor, ...], others: tuple[Tensor, tuple[Tensor, ...]]) -> bool:
    """Whether scores and maps are the same, up to rounding."""
    pairs = zip(found, (others[0], *others[1]), strict=True)
    return all(float((a - b).abs().max()) <= APART * max(float(a.abs().max()), 1e-30) for a, b in pairs)
