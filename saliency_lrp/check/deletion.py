"""Does the model miss what the map calls important: its strongest tenth against as large pieces elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .subject import Subject

#: The part of the input that is taken away.
PART = 0.1
#: The map is smoothed by windows of such a part of each side.
FINE = 26
#: How many other places the same piece is taken away from.
PLACES = 20


class Deletion(NamedTuple):
    """What the model says of the whole input, without its strongest tenth, and without as much elsewhere, (PLACES,).

    Log-probabilities of the class; the explained number where the model has no classes.
    """

    whole: float
    without: float
    elsewhere: Tensor

    @property
    def beaten(self) -> float:
        """Share of the other places that the answer hung on less."""
        return float((self.elsewhere > self.without).double().mean())


def delete(subject: Subject, random_seed: int) -> Deletion:
    """Take the strongest tenth away, and the same shape moved, turned round and mirrored about the input."""
    x, strongest = subject.input, strongest_tenth(subject)
    generator = torch.Generator().manual_seed(random_seed)
    masks = torch.cat([strongest, *(moved(strongest, subject.spatial, generator) for _ in range(PLACES))])
    masks = (masks[:, None] if subject.spatial else masks).to(x.device)
    scores = subject.scores(torch.cat([x, torch.where(masks, infill(x, subject.spatial), x)]))
    return Deletion(float(scores[0]), float(scores[1]), scores[2:])


def strongest_tenth(subject: Subject) -> Tensor:
    """Where the smoothed map is strongest, (1, H, W) bool."""
    values = subject.flat(subject.relevance, FINE)
    flat = values.flatten()
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(max(1, round(PART * len(flat)))).indices] = True
    return chosen.view(values.shape)


def moved(mask: Tensor, spatial: int, generator: torch.Generator) -> Tensor:
    """The same shape somewhere else; without space, as many values drawn at random."""
    if not spatial:
        return mask[:, torch.randperm(mask.shape[1], generator=generator)]
    axes = list(range(1, 1 + spatial))
    mirrored = [axis for axis in axes if torch.rand(1, generator=generator) < 0.5]
    shifts = [int(torch.randint(mask.shape[axis], (1,), generator=generator)) for axis in axes]
    return mask.flip(mirrored).roll(shifts, axes) if mirrored else mask.roll(shifts, axes)


def infill(x: Tensor, spatial: int) -> Tensor:
    """What stands in for what is taken away: the input blurred twice over a quarter of its sides; else its mean."""
    if not 1 <= spatial <= 3:
        return x.mean(1, keepdim=True).expand_as(x)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1]
    sides = [max(1, side // 4) | 1 for side in x.shape[2:]]
    for _ in range(2):
        x = pool(x, sides, 1, [side // 2 for side in sides], count_include_pad=False)
    return x
