"""Methods that change parts of the input and watch the score: occlusion, ablation, LIME."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .base import Explainer, Question
from .batching import samples_per_pass
from .gradient import RandomExplainer, baseline_like
from .progress import progress
from .registry import register_explainer

# Tried in turn: on a noisy picture SLIC's usual 10 melts everything into a few superpixels.
_COMPACTNESS = (10.0, 100.0, 1000.0, 10000.0)
# An input of 224 pixels gets windows of 16; smaller and larger ones in proportion, but never below 4.
_WINDOWS_PER_SIDE = 14
_SMALLEST_WINDOW = 4
# Half-overlapping windows then stand at 27 x 27 places; those of a volume are so large that they do not stand at more.
_PLACES = (2 * _WINDOWS_PER_SIDE - 1) ** 2

Window = int | Sequence[int]


def default_window(sides: tuple[int, ...]) -> int:
    """Side of an occlusion window for a series or a picture with these spatial sides."""
    return min(*sides, max(_SMALLEST_WINDOW, round(min(sides) / _WINDOWS_PER_SIDE)), max(sides))


def default_sides(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of an occlusion window for an input with these spatial sides."""
    if len(sides) < 3:
        return (default_window(sides),) * len(sides)
    per_side = (_PLACES ** (1 / len(sides)) + 1) / 2
    return tuple(min(side, max(_SMALLEST_WINDOW, math.ceil(side / per_side))) for side in sides)


def _per_side(given: Window | None, sides: tuple[int, ...], default: tuple[int, ...], what: str) -> tuple[int, ...]:
    """A number for every side, from one for all or one each."""
    if given is None:
        return default
    numbers = (given,) * len(sides) if isinstance(given, int) else tuple(given)
    if len(numbers) != len(sides):
        raise InputError(f"{what} {tuple(numbers)} has {len(numbers)} numbers for an input of sides {sides}.")
    return numbers


def _positive(**numbers: Window | None) -> None:
    for name, given in numbers.items():
        for number in () if given is None else (given,) if isinstance(given, int) else given:
            if not isinstance(number, int) or number < 1:
                raise InputError(f"{name} must be positive whole numbers, not {given}.")


def _spatial(x: Tensor, method: str) -> tuple[int, ...]:
    if x.ndim < 3:
        raise InputError(f"{method} needs an input of shape (N, C, ...) with spatial sides, not {tuple(x.shape)}.")
    return tuple(x.shape[2:])


class _Perturbation(Explainer):
    """What occlusion and ablation have in common."""

    several = "apart"
    takes_ids = True
    name: str
    baseline: float | Tensor

    def _one_by_one(self, x: Tensor, question: Question) -> Tensor:
        """Drop of the score when one column of (N, F) is replaced: a feature of a table, or a token."""
        from captum.attr import FeatureAblation

        baseline = torch.as_tensor(self.baseline)
        if not x.is_floating_point() and not bool((baseline == baseline.round()).all()):
            raise InputError(f"baseline= should be a token id, a whole number, not {self.baseline}.")
        target = question.settle(x)
        batch = samples_per_pass(self.model, x, question.forward, gradient=False)
        with torch.no_grad(), progress(question.forward, (x.shape[1] + 1) * len(x), self.name) as forward:
            return FeatureAblation(forward).attribute(
                x,
                baselines=baseline_like(x, self.baseline),
                target=target,
                perturbations_per_eval=max(1, batch // len(x)),
            )


@register_explainer("occlusion")
class Occlusion(_Perturbation):
    """Drop of the score when a window is replaced by a baseline (Zeiler and Fergus 2013).

    Every pixel gets the mean drop of the windows over it. Positive: the score needs the pixel. Rows of a table, and
    token ids, (N, F), are taken one column at a time.

    Parameters
    ----------
    model : torch.nn.Module
    window : int or one int a side, optional
        Sides of the window in input pixels; 16 for 224 pixels, in proportion for others, at least 4; for volumes
        a fifth of each side.
    stride : int or one int a side, optional
        Step of the window; half a window.
    baseline : float or Tensor
        What is put in the window. 0 is the mean colour of a normalised input; for ids a token, such as the mask's.
    """

    name = "occlusion"

    def __init__(
        self,
        model: nn.Module,
        window: Window | None = None,
        stride: Window | None = None,
        baseline: float | Tensor = 0.0,
    ) -> None:
        super().__init__(model)
        _positive(window=window, stride=stride)
        self.window = window
        self.stride = stride
        self.baseline = baseline

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        from captum.attr import Occlusion as Captum

        if x.ndim == 2:
            return self._one_by_one(x, question)
        sides = _spatial(x, "occlusion")
        window = _per_side(self.window, sides, default_sides(sides), "window")
        if any(edge > side for edge, side in zip(window, sides, strict=True)):
            raise InputError(f"window {self.window} is larger than the input's sides {sides}: take a smaller one.")
        half = tuple(max(1, edge // 2) for edge in window)
        stride = tuple(map(min, _per_side(self.stride, sides, half, "stride"), window))
        target = question.settle(x)
        batch = samples_per_pass(self.model, x, question.forward, gradient=False)
        positions = math.prod(
            math.ceil((side - edge) / step) + 1 for side, edge, step in zip(sides, window, stride, strict=True)
        )
        with torch.no_grad(), progress(question.forward, (positions + 1) * len(x), "occlusion") as forward:
            return Captum(forward).attribute(
                x,
                sliding_window_shapes=(x.shape[1], *window),
                strides=(x.shape[1], *stride),
                baselines=baseline_like(x, self.baseline),
                target=target,
                perturbations_per_eval=max(1, batch // len(x)),
            )


def grid_cells(x: Tensor, window: Sequence[int]) -> Tensor:
    """Number the cells of a regular grid: int64 of shape (1, 1, ...) over the spatial sides of `x`."""
    cells = torch.zeros((), dtype=torch.long, device=x.device)
    for side, edge in zip(x.shape[2:], window, strict=True):
        steps = torch.arange(side, device=x.device) // edge
        cells = cells[..., None] * (side // edge + 1) + steps
    numbers = torch.unique(cells, return_inverse=True)[1]
    return numbers.reshape(1, 1, *x.shape[2:])


@register_explainer("ablation")
class Ablation(_Perturbation):
    """Drop of the score when one cell of a grid is replaced by a baseline; of a table or of ids, one column.

    Parameters
    ----------
    model : torch.nn.Module
    window : int or one int a side, optional
        Sides of a cell in input pixels; as for occlusion.
    baseline : float or Tensor
        What is put in the cell; for ids a token, such as the mask's.
    """

    name = "ablation"

    def __init__(self, model: nn.Module, window: Window | None = None, baseline: float | Tensor = 0.0) -> None:
        super().__init__(model)
        _positive(window=window)
        self.window = window
        self.baseline = baseline

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        from captum.attr import FeatureAblation

        if x.ndim == 2:
            return self._one_by_one(x, question)
        sides = _spatial(x, "ablation")
        cells = grid_cells(x, _per_side(self.window, sides, default_sides(sides), "window"))
        target = question.settle(x)
        batch = samples_per_pass(self.model, x, question.forward, gradient=False)
        total = (int(cells.max()) + 2) * len(x)
        with torch.no_grad(), progress(question.forward, total, "ablation") as forward:
            return FeatureAblation(forward).attribute(
                x,
                feature_mask=cells,
                baselines=baseline_like(x, self.baseline),
                target=target,
                perturbations_per_eval=max(1, batch // len(x)),
            )


def superpixels(x: Tensor, segments: int) -> Tensor:
    """About `segments` superpixels (SLIC, Achanta et al. 2012) of one image.

    Parameters
    ----------
    x : Tensor
        (1, C, H, W) model input; each channel is scaled to [0, 1] for the purpose.
    segments : int
        How many to aim at.

    Returns
    -------
    Tensor
        (1, 1, H, W) int64, numbered from 0 without gaps.
    """
    from skimage.segmentation import slic

    image = x[0].detach().double().cpu()
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    image = (image - low) / (high - low).clamp_min(1e-12)
    for compactness in _COMPACTNESS:
        labels = slic(
            image.permute(1, 2, 0).numpy(),
            n_segments=segments,
            compactness=compactness,
            convert2lab=image.shape[0] == 3,
            channel_axis=-1,
            start_label=0,
        )
        if labels.max() + 1 >= segments / 2:
            break
    numbers = torch.unique(torch.from_numpy(labels), return_inverse=True)[1]
    return numbers[None, None].to(x.device)


def mean_colors(x: Tensor, cells: Tensor) -> Tensor:
    """`x` with every superpixel replaced by its mean colour."""
    index = cells.flatten()
    counts = torch.bincount(index).to(x.dtype)
    flat = x[0].flatten(1)
    sums = torch.zeros(x.shape[1], len(counts), dtype=x.dtype, device=x.device).index_add_(1, index, flat)
    return (sums / counts)[:, index].reshape(x.shape)


@register_explainer("lime_imagenet", "lime")
class Lime(RandomExplainer):
    """Linear model of the score over superpixels switched on and off (LIME, Ribeiro et al. 2016).

    A superpixel that is off shows its mean colour. Every pixel gets the weight of its superpixel.

    Parameters
    ----------
    model : torch.nn.Module
    samples : int
        Random on/off patterns: each costs one forward pass.
    segments : int
        Superpixels to aim at.
    random_seed : int
        Of the patterns.
    """

    several = "apart"

    def __init__(self, model: nn.Module, samples: int = 500, segments: int = 50, random_seed: int = 0) -> None:
        super().__init__(model, random_seed)
        self.samples = samples
        self.segments = segments

    def attribute_one(self, x: Tensor, question: Question, target: Tensor | None, batch: int) -> Tensor:
        from captum._utils.models.linear_model import SkLearnRidge
        from captum.attr import Lime as Captum

        if x.ndim != 4:
            raise InputError(f"LIME works on images of shape (N, C, H, W), not {tuple(x.shape)}.")
        cells = superpixels(x, self.segments)
        with torch.no_grad(), progress(question.forward, self.samples, "lime_imagenet") as forward:
            return Captum(forward, interpretable_model=SkLearnRidge(alpha=1e-3)).attribute(
                x,
                baselines=mean_colors(x, cells),
                feature_mask=cells,
                target=target,
                n_samples=self.samples,
                perturbations_per_eval=batch,
            )
