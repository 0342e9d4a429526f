"""LRP by name, and methods made of two others: smoothed LRP, and detail weighted by Grad-CAM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Explainer, Question
from .cam import class_activation, only_positive, spread
from .gradient import RandomExplainer, noise_scale
from .lrp import LrpExplainer
from .progress import progress
from .registry import get, register_explainer

register_explainer("lrp")(LrpExplainer)


@register_explainer("smooth_lrp")
class SmoothLrp(RandomExplainer):
    """Mean LRP map over noisy copies of the input.

    Parameters
    ----------
    model : torch.nn.Module
    composite : str, Composite or rule
        As for ``lrp``.
    samples : int
        Noisy copies.
    noise : float
        Standard deviation of the noise as a share of the input's range.
    random_seed : int
        Of the noise.
    """

    several = None

    def __init__(
        self, model: nn.Module, composite: Any = "auto", samples: int = 16, noise: float = 0.1, random_seed: int = 0
    ) -> None:
        super().__init__(model, random_seed)
        self.lrp = get("lrp", self.model, composite=composite)
        self.samples = samples
        self.noise = noise

    def attribute_one(self, x: Tensor, question: Question, target: Tensor | None, batch: int) -> Tensor:
        label = question.label if target is None else target
        total = torch.zeros_like(x)
        with progress(lambda noisy: self.lrp.explain(noisy, label), self.samples, "smooth_lrp") as explain:
            for start in range(0, self.samples, batch):
                n = min(batch, self.samples - start)
                copies = x.expand(n, *x.shape[1:])
                noisy = copies + torch.randn_like(copies) * noise_scale(x, self.noise)
                total += explain(noisy).sum(0, keepdim=True)
        return total / self.samples


class _TimesCam(Explainer):
    """Another method's map times the Grad-CAM map of the same question."""

    method: str

    def __init__(self, model: nn.Module, layer_path: Any = None) -> None:
        super().__init__(model)
        self.other = get(self.method, self.model)
        self.layer_path = layer_path

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        cam = only_positive(class_activation(self.model, x, question, self.layer_path)).abs()
        label = question.label if callable(question.label) else question.target
        return self.other.explain(x, label) * spread(cam, x) * x.shape[1]


@register_explainer("lrp_gradcam")
class LrpGradCam(_TimesCam):
    """LRP times Grad-CAM: fine detail where the last features speak for the class.

    Parameters
    ----------
    model : torch.nn.Module
    layer_path : str or sequence of str, optional
        As for ``gradcam``.
    """

    method = "lrp"


@register_explainer("guided_gradcam")
class GuidedGradCam(_TimesCam):
    """Guided backpropagation times Grad-CAM (Selvaraju et al. 2017).

    Parameters
    ----------
    model : torch.nn.Module
    layer_path : str or sequence of str, optional
        As for ``gradcam``.
    """

    method = "guided_backprop"
