"""Whether a map points at the class that was asked for, where several classes are in one picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .methods import Method
from .question import asked, maps_of


def positive_share(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of the positive relevance of each map, (N, H, W), that lies in its mask; 0 where there is none."""
    positive = np.clip(maps, 0, None)
    total = positive.sum((1, 2))
    return np.divide((positive * masks).sum((1, 2)), total, out=np.zeros_like(total), where=total > 0)


def compose_grids(classes: Tensor, size: int = 2, count: int | None = None, seed: int = 0) -> Tensor:
    """Which images stand together in grids of ``size`` × ``size``: all of different classes, each used equally often.

    Parameters
    ----------
    classes : Tensor, shape (N,)
        The class of each image.
    size : int
        How many images stand in a row, at least 2.
    count : int, optional
        How many grids; by default as many as use every image about once.
    seed : int
        Of the draw.

    Returns
    -------
    Tensor, shape (count, size²)
        Indices of images, row by row.
    """
    cells, known = size * size, classes.unique()
    if size < 2 or len(known) < cells:
        raise InputError(
            f"a grid of {size} × {size} needs a size of at least 2 and {cells} images of different classes; got "
            f"{len(classes)} images of {len(known)} classes"
        )
    draw = torch.Generator().manual_seed(seed)
    uses = torch.zeros(len(classes))
    grids = []
    for _ in range(count or max(1, len(classes) // cells)):
        chosen: list[int] = []
        # those used least come first, in random order among equals
        for k in (uses + torch.rand(len(classes), generator=draw)).argsort().tolist():
            if len(chosen) < cells and all(classes[k] != classes[j] for j in chosen):
                chosen.append(k)
        uses[chosen] += 1
        grids.append([chosen[k] for k in torch.randperm(cells, generator=draw).tolist()])
    return torch.tensor(grids)


def grid_pointing_game(
    model: nn.Module,
    images: Tensor,
    targets: object = None,
    method: Method = "lrp",
    size: int = 2,
    grids: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The grid pointing game (Böhle et al. 2021): images of different classes in one picture, explained one by one.

    Each picture is a grid of ``size`` × ``size`` images of different classes. For the class of each cell the method
    explains the whole picture; the score is the share of positive relevance that lies in that cell. A method that
    paints whatever is conspicuous, whichever class was asked for, gets ``1 / size²``.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier that takes images ``size`` times as high and wide, as ConvNets with global pooling do; left as it
        was.
    images : Tensor, shape (N, C, H, W)
        Of at least ``size²`` classes. The paper takes images that the network is sure of.
    targets : None, int, sequence of int or Tensor
        The class of each; None for what the network says.
    method : str, Composite, Rule or function
        As for ``evaluate``: a name of ``list_methods()``, a composite, a rule, a function of (model, inputs, targets).
    size : int
        Images per side of a grid.
    grids : int, optional
        How many grids; by default as many as use every image about once.
    seed : int
        Which images meet.

    Returns
    -------
    ndarray, shape (grids, size²)
        A score in [0, 1] per cell, row by row; 0 where a map has no positive relevance.

    Raises
    ------
    InputError
        Where there are fewer classes than cells, or the network does not take the larger picture.

    Examples
    --------
    >>> grid_pointing_game(model, images, method="gradcam").mean()                           # doctest: +SKIP
    """
    model, images, classes = asked(model, images, targets)
    if isinstance(method, Tensor | np.ndarray):
        raise InputError("the grid pointing game explains pictures of its own making: give a method, not maps")
    together = compose_grids(classes.cpu(), size, grids, seed).to(images.device)
    height, width = images.shape[-2:]
    scores = []
    for members in together:
        rows = [torch.cat(list(images[row]), dim=-1) for row in members.view(size, size)]
        picture = torch.cat(rows, dim=-2)[None].expand(len(members), -1, -1, -1).contiguous()
        maps = maps_of(method, model, picture, classes[members], seed)[:, 0]
        cells = maps.clip(0).reshape(len(members), size, height, size, width).sum((2, 4)).reshape(len(members), -1)
        total = cells.sum(1)
        scores.append(np.divide(cells.diagonal(), total, out=np.zeros_like(total), where=total > 0))
    return np.stack(scores)
