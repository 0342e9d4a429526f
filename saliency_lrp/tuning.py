"""Which rules suit a model of one's own: a search over rules by depth, measured on images of one's own.

One forward pass serves every composite that is tried, because a trace binds rules late. What the search finds is
measured once more, beside ``auto``, on images that it did not see.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import composites as c
from . import rules as r
from .composites import Composite
from .errors import InputError, unknown_name
from .evaluation import morf_lerf, positive_share
from .evaluation.question import asked
from .evaluation.run import checked_masks
from .propagator import RelevancePropagator

GUARD = 1e-12  # only exact zeros need a stabilizer
BATCH = 8
#: Of 256 regions; fewer steps than for a measurement, but the same for all that is compared.
REMOVED = (8, 24, 64, 128, 192, 232, 248)


@dataclass(frozen=True)
class Images:
    """What maps are measured on: a model, images, their classes, and perhaps where the objects are."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    masks: np.ndarray | None

    def __getitem__(self, index: Any) -> Images:
        masks = None if self.masks is None else self.masks[index]
        return Images(self.model, self.inputs[index], self.targets[index], masks)


# ------------------------------------------------------------------------------------------------ what is good

#: From images and their maps, (N, 1, H, W), to one score an image; higher is better.
Objective = Callable[[Images, np.ndarray], np.ndarray]


def perturbation(images: Images, maps: np.ndarray) -> np.ndarray:
    """LeRF-MoRF with blurred infill."""
    return morf_lerf(images.model, images.inputs, images.targets, maps, infill="blur", removed=REMOVED)


def relevance_mass(images: Images, maps: np.ndarray) -> np.ndarray:
    """Share of positive relevance in the mask."""
    assert images.masks is not None
    return positive_share(maps[:, 0], images.masks)


OBJECTIVES: dict[str, Objective] = {"morf_lerf": perturbation, "relevance_mass": relevance_mass}

# ------------------------------------------------------------------------------------------------ what is searched

FIRST: dict[str, r.Rule | None] = {"z+": r.ZPlus(GUARD), "as the others": None, "flat": r.Flat(GUARD)}
DENSE: dict[str, r.Rule | None] = {
    "relative ε 0.1": r.Epsilon(0.1, relative=True),
    "ε": r.Epsilon(GUARD),
    "as convolutions": None,
}


@dataclass(frozen=True)
class Choice:
    """One point of the search: how γ changes from the model's input to its deepest layer, and what stands apart.

    Attributes
    ----------
    gamma : pair of float
        At the input and at the deepest linear site.
    first : str
        The rule of convolutions that read the input; a key of ``FIRST``.
    dense : str
        The rule of dense layers, that of the output excepted; a key of ``DENSE``.
    """

    gamma: tuple[float, float]
    first: str = "z+"
    dense: str = "relative ε 0.1"

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"γ {self.gamma[0]:g} to {self.gamma[1]:g}; first: {self.first}; dense: {self.dense}"

    def composite(self, over: int) -> Composite:
        """What it stands for in a network of a depth."""
        first, dense = FIRST[self.first], DENSE[self.dense]
        among = [c.family("convolution", "batch_norm")] + ([] if dense else [c.family("dense")])
        rows: list[c.Row] = [] if first is None else [((c.first(), c.family("convolution")), first)]
        rows.append(((c.family("dense"), c.at_output()), r.Epsilon(GUARD)))
        for family in among:
            rows += c.graded(lambda gamma: r.GeneralizedGamma(gamma, GUARD), *self.gamma, over=over, where=family)
        if dense is not None:
            rows.append((c.family("dense"), dense))
        return Composite(rows, name=f"tuned ({self.name})")


GAMMAS = [(a, b) for a in (2.0, 0.5, 0.1) for b in (2.0, 0.5, 0.1, 0.025) if b <= a]
NAMED = ("epsilon_plus", "epsilon")
AUTO = "auto"


def around(choice: Choice) -> list[Choice]:
    """Neighbors of a point: a step of γ at either end, another first rule, another dense rule."""
    a, b = choice.gamma
    ends = [(a * 2, b), (a / 2, b), (a, b * 2), (a, b / 2)]
    return [
        *(Choice(gamma, choice.first, choice.dense) for gamma in ends),
        *(Choice(choice.gamma, first, choice.dense) for first in FIRST if first != choice.first),
        *(Choice(choice.gamma, choice.first, dense) for dense in DENSE if dense != choice.dense),
    ]


# ------------------------------------------------------------------------------------------------ what is found


@dataclass
class Tuned:
    """What :func:`tune` found; shows itself as a table.

    Attributes
    ----------
    composite : Composite
        The best for the model: what the search found, or ``auto`` where that was not worse on images not seen.
    found : str
        What the search found best on the images it saw.
    gain : float
        By how much that is ahead of ``auto`` on the images that the search did not see: the mean of the objective.
    gain_error : float
        Standard error of that.
    scores : dict of str to ndarray
        All that was tried: a score per image that the search saw, the best mean first.
    held_out : dict of str to ndarray
        ``auto`` and what was found: a score per image that the search did not see.
    objective : str
    """

    composite: Composite
    found: str
    gain: float
    gain_error: float
    scores: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    objective: str

    @property
    def verdict(self) -> str:
        """In a sentence, whether it was worth it."""
        n = len(self.held_out[AUTO])
        if self.found == AUTO:
            return f"nothing that was tried is better than auto on the {len(self.scores[AUTO])} images searched on"
        ahead = f"{self.gain:+.3f} ± {self.gain_error:.3f} {self.objective} beside auto on {n} images not seen"
        if self.gain <= 0:
            return f"no gain: {self.found} has {ahead}, so that auto stays"
        sure = "" if self.gain > 2 * self.gain_error else ", which may be chance: give more images"
        return f"{self.found} has {ahead}{sure}"

    def to_frame(self) -> Any:
        """A pandas table: a row per composite tried, mean and standard error where searched and where not seen."""
        import pandas as pd

        rows = [
            {
                "composite": name,
                "seen": scores.mean(),
                "seen_se": standard_error(scores),
                "not_seen": self.held_out[name].mean() if name in self.held_out else np.nan,
                "not_seen_se": standard_error(self.held_out[name]) if name in self.held_out else np.nan,
            }
            for name, scores in self.scores.items()
        ]
        return pd.DataFrame(rows).set_index("composite")

    def _rows(self) -> list[list[str]]:
        def cell(scores: np.ndarray | None) -> str:
            return "" if scores is None else f"{scores.mean():.3f} ± {standard_error(scores):.3f}"

        rows = [[name, cell(scores), cell(self.held_out.get(name))] for name, scores in self.scores.items()]
        return [["composite", f"{self.objective}, searched on", "not seen"], *rows]

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.verdict, *lines])

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        return f"<p>{html.escape(self.verdict)}</p><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def standard_error(scores: np.ndarray) -> float:
    """Of the mean; NaN for fewer than two."""
    return float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else float("nan")


# ------------------------------------------------------------------------------------------------ the search


def tune(
    model: nn.Module,
    inputs: Tensor,
    targets: Any = None,
    masks: Any = None,
    objective: str | Objective = "morf_lerf",
    progress: bool = True,
    seed: int = 0,
) -> Tuned:
    """Find the rules that suit a model: how γ changes with depth, the first layer's rule, that of dense layers.

    Half of the images, drawn at random, are searched on; the other half only judges what was found. Each search step
    makes one forward pass and as many maps as there are composites to try.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier of images; left as it was.
    inputs : Tensor, shape (N, C, H, W)
        Images as the model wants them, at least 4; some dozens tell small differences.
    targets : None, int, sequence of int or Tensor
        The class to explain of each; None for the highest score.
    masks : array or Tensor, shape (N, H, W) or (N, 1, H, W), optional
        True where the object is; ``objective="relevance_mass"`` needs them.
    objective : {"morf_lerf", "relevance_mass"} or callable
        What is to be high: LeRF-MoRF with blurred infill, the share of positive relevance in the masks, or a function
        of (images, maps) to one score per image, where images has ``model``, ``inputs``, ``targets`` and ``masks``, and
        maps is an ndarray of shape (N, 1, H, W).
    progress : bool
        Whether to draw a progress bar.
    seed : int
        Which images are searched on.

    Returns
    -------
    Tuned
        With ``composite`` to pass on: ``get_saliency(..., composite=tuned.composite)``. Where what was found is not
        better than ``auto`` on the images not seen, that is ``auto``, and ``verdict`` says so.

    Raises
    ------
    InputError
        For fewer than 4 images, or inputs, targets, masks that do not fit.

    Examples
    --------
    >>> tuned = saliency_lrp.tune(model, images)                                             # doctest: +SKIP
    >>> saliency_lrp.get_saliency(model, photo, composite=tuned.composite)                   # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    name, score = _objective(objective, masks)
    model, inputs, targets = asked(model, inputs, targets)
    if len(inputs) < 4:
        raise InputError(
            f"tune needs at least 4 images, half of them to judge what the others chose; got {len(inputs)}"
        )
    images = Images(model, inputs, targets, checked_masks(masks, inputs))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).numpy()
    seen, unseen = (images[np.sort(half)] for half in np.array_split(order, 2))
    over = _deepest(images)
    tried: dict[str, Composite] = {AUTO: c.get(AUTO), **{given: c.get(given) for given in NAMED}}
    scores: dict[str, np.ndarray] = {}
    first_round = [Choice(gamma) for gamma in GAMMAS]
    with tqdm(total=len(tried) + len(first_round) + len(around(first_round[0])), disable=not progress) as bar:
        known = {choice.name: choice for choice in first_round}
        tried |= {choice.name: choice.composite(over) for choice in first_round}
        scores |= _scores(seen, tried, score, bar)
        best = max(known, key=lambda choice: scores[choice].mean())
        nearby = {choice.name: choice.composite(over) for choice in around(known[best])}
        nearby = {label: composite for label, composite in nearby.items() if label not in tried}
        scores |= _scores(seen, nearby, score, bar)
        tried |= nearby
    scores = dict(sorted(scores.items(), key=lambda item: -item[1].mean()))
    found = next(iter(scores))
    if scores[found].mean() <= scores[AUTO].mean():
        found = AUTO
    held_out = _scores(unseen, {label: tried[label] for label in (AUTO, found)}, score, None)
    gap = held_out[found] - held_out[AUTO]
    gain = float(gap.mean())
    kept = tried[found if gain > 0 else AUTO]
    return Tuned(kept, found, gain, standard_error(gap), scores, held_out, name)


def _objective(objective: str | Objective, masks: Any) -> tuple[str, Objective]:
    """Name and function of what is to be high."""
    if callable(objective):
        return getattr(objective, "__name__", "objective"), objective
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    if objective == "relevance_mass" and masks is None:
        raise InputError("objective 'relevance_mass' needs masks=, the true place of the object in each image")
    return objective, OBJECTIVES[objective]


def _deepest(images: Images) -> int:
    """How deep the deepest linear site of the model is."""
    trace = RelevancePropagator(images.model).trace(images.inputs[:1])
    return max(1, max((site.depth for site in trace.sites), default=1))


def _scores(images: Images, tried: dict[str, Composite], score: Objective, bar: Any) -> dict[str, np.ndarray]:
    """Scores of composites, one forward pass for all of them."""
    maps: dict[str, list[Tensor]] = {label: [] for label in tried}
    for inputs, targets in zip(images.inputs.split(BATCH), images.targets.split(BATCH), strict=True):
        trace = RelevancePropagator(images.model).trace(inputs)
        for label, composite in tried.items():
            maps[label].append(trace.relevance(targets, composite=composite).sum(1, keepdim=True))
    scores = {}
    for label, parts in maps.items():
        scores[label] = np.asarray(score(images, torch.cat(parts).cpu().double().numpy()), dtype=np.float64)
        if scores[label].shape != (len(images.inputs),):
            raise InputError(
                f"the objective should give one score per image, {(len(images.inputs),)}; got {scores[label].shape}"
            )
        if bar is not None:
            bar.update()
    return scores
