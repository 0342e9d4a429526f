"""Whether a map is about its class: it is compared with the maps of classes that have little to do with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .verdict import ALIKE

#: Where in the order of scores unlike classes are taken from: near the top are kin, at the bottom opposites.
RANKS = (1 / 2, 1 / 3, 2 / 3)


def class_likeness(trace: Any, relevance: Tensor, target: Any, seed: Any) -> float | None:
    """The least cosine of one item's map with the maps of unlike classes, by a backward pass for each.

    Parameters
    ----------
    trace : Trace
        Of one item, still to be used.
    relevance : Tensor
        The item's map for ``target``.
    target : int, tensor, sequence of int or None
        As for :meth:`Trace.relevance`.
    seed : str
        What the map started from.

    Returns
    -------
    float or None
        None where there are no other classes to compare with (one output, a callable target, a tensor as seed). Looking
        ends with the first map that differs. A map with its colors turned round is the same picture: rules such as z⁺
        give that to a class of negative score. Not so with two classes, one of which is what the other is not.
    """
    scores = _scores(trace.output)
    if scores is None or callable(target) or not isinstance(seed, str) or not isinstance(relevance, Tensor):
        return None
    others = scores.argsort(descending=True).tolist()
    others.remove(_index(scores, target))
    if not others:
        return None
    if len(others) == 1:
        return _cosine(relevance, trace.relevance(others[0], seed))
    least = 1.0
    for k in dict.fromkeys(int(rank * len(others)) for rank in RANKS):
        # a score of 0 would give an empty map
        other = trace.relevance(others[k], "one" if seed == "logit" else seed)
        least = min(least, abs(_cosine(relevance, other)))
        if least <= ALIKE:
            break
    return least


def _scores(output: Any) -> Tensor | None:
    """(C,) class scores of the one item, or None."""
    scores = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return scores[0] if isinstance(scores, Tensor) and scores.dim() == 2 and len(scores) == 1 else None


def _index(scores: Tensor, target: Any) -> int:
    index = int(scores.argmax()) if target is None else int(torch.as_tensor(target).reshape(-1)[0])
    return index % len(scores)


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = (t.detach().double().flatten() for t in (a, b))
    return float(torch.nn.functional.cosine_similarity(a, b, 0, eps=1e-300))
