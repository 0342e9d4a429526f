"""MoRF-LeRF: how the probability of a class falls when what a map calls relevant is taken out of the image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, unknown_name
from ..explainers.base import class_scores
from ..model.as_found import as_found
from .methods import Method
from .question import BATCH, asked, maps_of

GRID = 16  # regions per side of an image; with 8 it hardly tells methods apart
#: How many of the GRID² regions are gone: dense at the ends, where curves bend, and symmetric: −R has −score.
REMOVED = (8, 16, 24, 36, 48, 64, 96, 160, 192, 208, 220, 232, 240, 248)
BLUR = 1 / 16  # standard deviation of the blur, in sides of the image


def mean_color(images: Tensor) -> Tensor:
    """Each image's mean color."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def blurred(images: Tensor) -> Tensor:
    """Each image behind a Gaussian of a sixteenth of its side: no detail is left, and no edge is new."""
    for axis in (2, 3):
        sigma = BLUR * images.shape[axis]
        radius = min(round(3 * sigma), images.shape[axis] - 1)
        steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
        kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1).unsqueeze(-1 if axis == 2 else -2)
        padding = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        images = F.conv2d(F.pad(images, padding, mode="reflect"), kernel, groups=images.shape[1])
    return images


#: What stands in the place of what is taken out.
INFILLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": mean_color, "blur": blurred}


def morf_lerf(
    model: nn.Module,
    inputs: Tensor,
    targets: object = None,
    maps: Method = "lrp",
    infill: str = "mean",
    removed: Sequence[int] = REMOVED,
) -> np.ndarray:
    """Area between the curves of removing the least and the most relevant regions first.

    The probability of the class is followed while regions of the image, in order of their relevance, are replaced. A
    single curve depends more on the model's reaction to what replaces them than on the map; in the difference of the
    two orders that cancels (Samek et al. 2017; Blücher et al. 2024).

    Parameters
    ----------
    model : torch.nn.Module
        A classifier; left as it was.
    inputs : Tensor, shape (N, C, H, W)
        Images, as the model takes them.
    targets : None, int, sequence of int or Tensor
        The class of each; None for the highest score.
    maps : Tensor or ndarray, shape (N, 1 or C, H, W); or a method
        Signed relevance, or what makes it: a name of ``list_methods()``, a composite, a rule, a function of
        (model, inputs, targets).
    infill : {"mean", "blur"}
        What stands in for a region: the image's mean color, or the image behind a wide blur, which adds no edges and
        keeps photographs looking like photographs.
    removed : sequence of int
        After how many of the 16 × 16 regions the network is asked; rising, between 0 and 256, which are always asked.

    Returns
    -------
    ndarray, shape (N,)
        In [-1, 1]; higher is better, 0 for a random order.

    Raises
    ------
    InputError
        For inputs, targets, maps, or names that do not fit.

    Notes
    -----
    Quantus' ``RegionPerturbation`` removes one region per forward pass, 512 of them for both orders; the curves bend
    at their ends, so that the 30 used here tell the same (``tests/unit/evaluation/test_evaluation.py``
    compares the two).

    Examples
    --------
    >>> morf_lerf(model, images, classes, "lrp:epsilon_plus", infill="blur").mean()          # doctest: +SKIP
    """
    if infill not in INFILLS:
        raise unknown_name("infill", infill, INFILLS)
    counts = (0, *removed, GRID * GRID)
    if any(a >= b for a, b in itertools.pairwise(counts)):
        raise InputError(f"removed= should rise, between 0 and {GRID * GRID}; got {list(removed)}")
    model, inputs, targets = asked(model, inputs, targets)
    relevance = torch.as_tensor(maps_of(maps, model, inputs, targets), device=inputs.device)
    with as_found(model), torch.no_grad():
        curves = _curves(model, inputs, targets, relevance, INFILLS[infill](inputs), counts)
    return (curves[1] - curves[0]).cpu().double().numpy()


def _curves(
    model: nn.Module, inputs: Tensor, targets: Tensor, relevance: Tensor, behind: Tensor, counts: tuple[int, ...]
) -> list[Tensor]:
    """The areas under both curves, (N,) each: the most relevant regions first, the least relevant first."""
    order = F.adaptive_avg_pool2d(relevance, GRID).flatten(1).argsort(dim=1, descending=True, stable=True)
    rank, regions = order.argsort(dim=1), GRID * GRID

    def probability(removed: Tensor) -> Tensor:
        gone = F.interpolate(removed.view(-1, 1, GRID, GRID).float(), inputs.shape[-2:]).bool()
        parts = zip(torch.where(gone, behind, inputs).split(BATCH), targets.split(BATCH), strict=True)
        return torch.cat([class_scores(model(x)).softmax(1).gather(1, y[:, None])[:, 0] for x, y in parts])

    ends = [probability(torch.full_like(rank, k, dtype=torch.bool)) for k in (0, 1)]
    fractions = torch.tensor(counts, dtype=ends[0].dtype, device=ends[0].device) / regions
    curves = []
    for ranks in (rank, regions - 1 - rank):
        between = [probability(ranks < k) for k in counts[1:-1]]
        curves.append(torch.trapezoid(torch.stack([ends[0], *between, ends[1]]), fractions, dim=0))
    return curves
