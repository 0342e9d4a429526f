"""Methods made of input gradients: plain, times input, integrated, smoothed, with other ReLU rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import Explainer, Question, Target
from .batching import samples_per_pass
from .progress import progress
from .registry import register_explainer
from .several import Bundle


def input_gradient(x: Tensor, question: Question) -> Tensor:
    """Gradient of the asked score with respect to `x`; zero where the score does not depend on it."""
    x = x.detach().clone().requires_grad_()
    score = question.score(x)
    if not score.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(score.sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


@register_explainer("vanilla_grad")
class VanillaGrad(Explainer):
    """Gradient of the score with respect to the input (Simonyan et al. 2013), signed."""

    several = "together"

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        return input_gradient(x, question)


@register_explainer("saliency")
class Saliency(Explainer):
    """Absolute gradient of the score with respect to the input (Simonyan et al. 2013)."""

    several = "together"
    signed = False

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        return input_gradient(x, question).abs()


@register_explainer("grad_x_input")
class GradXInput(Explainer):
    """Gradient times input (Shrikumar et al. 2016)."""

    several = "together"

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        return input_gradient(x, question) * x


class _ReluRule(Explainer):
    """The gradient with another rule at every ReLU: functional, in-place and reused ones included."""

    composite: str

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        from ..propagator import RelevancePropagator

        question.settle(x)
        label = question.label if callable(question.label) else question.target
        trace = RelevancePropagator(self.model, self.composite).trace(x)
        if not any(site.rectifies for site in trace.sites):
            warnings.warn(
                f"{self.composite}: {type(self.model).__name__} has no ReLU between input and output, so that "
                "this map is the plain gradient",
                stacklevel=5,
            )
        R = trace.relevance(label, seed="one", retain=False)
        trace.warn()  # what is not seen may hold a ReLU
        return R

    def attribute_several(self, bundle: Bundle, label: Target) -> dict[int, Tensor]:
        from ..propagator import RelevancePropagator

        tensors = bundle.arguments.tensors
        held = [k for k in range(len(tensors)) if k not in bundle.explained]
        args, kwargs = bundle.arguments.filled(bundle.given)
        trace = RelevancePropagator(self.model, self.composite, constants=held).trace(*args, **kwargs)
        label = tuple(label) if isinstance(label, list) else label  # one class per item, not several maps
        maps = trace.relevance(label, seed="one", retain=False)
        trace.warn()
        if len(bundle.explained) == 1:
            return {bundle.explained[0]: maps}
        return dict(zip(bundle.explained, maps.values() if isinstance(maps, dict) else maps, strict=True))


@register_explainer("deconv")
class Deconv(_ReluRule):
    """DeconvNet: ReLUs pass on what is positive in the signal from above (Zeiler and Fergus 2013)."""

    composite = "deconvnet"


@register_explainer("guided_backprop")
class GuidedBackprop(_ReluRule):
    """Guided backpropagation: deconvnet and gradient at once (Springenberg et al. 2014)."""

    composite = "guided_backprop"


@register_explainer("integrate_grad")
class IntegratedGradients(Explainer):
    """Integrated gradients along the straight line from a baseline (Sundararajan et al. 2017).

    Parameters
    ----------
    model : torch.nn.Module
    steps : int
        Points on the line (Gauss-Legendre).
    baseline : float or Tensor
        Start of the line, broadcast to the input. 0 is the mean image of a normalised input.
    """

    several = "together"

    def __init__(self, model: nn.Module, steps: int = 50, baseline: float | Tensor = 0.0) -> None:
        super().__init__(model)
        self.steps = steps
        self.baseline = baseline

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        from captum.attr import IntegratedGradients as Captum

        target = question.settle(x)
        batch = samples_per_pass(self.model, x, question.forward, gradient=True)
        with progress(question.forward, self.steps * len(x), "integrate_grad") as forward:
            return Captum(forward).attribute(
                x,
                baselines=baseline_like(x, self.baseline),
                target=target,
                n_steps=self.steps,
                internal_batch_size=max(batch, len(x)),
            )


def baseline_like(x: Tensor, baseline: float | Tensor) -> Tensor:
    """A baseline broadcast to the shape of `x`."""
    return torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x).clone()


class RandomExplainer(Explainer):
    """A method that draws random numbers: item by item, each from the same ``random_seed``.

    So a batch of one and of many give the same maps, and the caller's generators are not touched.
    """

    random = True
    several: str | None = "together"

    def __init__(self, model: nn.Module, random_seed: int = 0) -> None:
        super().__init__(model)
        self.random_seed = random_seed

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        target = question.settle(x)
        batch = samples_per_pass(self.model, x[:1], question.of_item(0).forward, gradient=True)
        maps = []
        for i in range(len(x)):
            torch.manual_seed(self.random_seed)
            maps.append(
                self.attribute_one(
                    x[i : i + 1], question.of_item(i), None if target is None else target[i : i + 1], batch
                )
            )
        return torch.cat(maps)

    def attribute_one(self, x: Tensor, question: Question, target: Tensor | None, batch: int) -> Tensor:
        """Attribution of one item, (1, ...), with up to `batch` samples per pass."""
        raise NotImplementedError


def noise_scale(x: Tensor, noise: float) -> float:
    """Standard deviation of the noise: a share of the range of the values of `x`."""
    return noise * float(x.max() - x.min())


@register_explainer("smooth_grad")
class SmoothGrad(RandomExplainer):
    """Mean gradient over noisy copies of the input (Smilkov et al. 2017), signed.

    Parameters
    ----------
    model : torch.nn.Module
    samples : int
        Noisy copies.
    noise : float
        Standard deviation of the noise as a share of the input's range.
    random_seed : int
        Of the noise.
    """

    def __init__(self, model: nn.Module, samples: int = 25, noise: float = 0.15, random_seed: int = 0) -> None:
        super().__init__(model, random_seed)
        self.samples = samples
        self.noise = noise

    def attribute_one(self, x: Tensor, question: Question, target: Tensor | None, batch: int) -> Tensor:
        from captum.attr import NoiseTunnel
        from captum.attr import Saliency as Captum

        with progress(question.forward, self.samples, "smooth_grad") as forward:
            return NoiseTunnel(Captum(forward)).attribute(
                x,
                nt_type="smoothgrad",
                nt_samples=self.samples,
                nt_samples_batch_size=min(batch, self.samples),
                stdevs=noise_scale(x, self.noise),
                target=target,
                abs=False,
            )


@register_explainer("shap_gradient")
class ShapGradient(RandomExplainer):
    """Expected gradients from noisy inputs to a baseline (Lundberg and Lee 2017; captum's GradientShap).

    Parameters
    ----------
    model : torch.nn.Module
    samples : int
        Random points between baseline and noisy input.
    noise : float
        Standard deviation of the noise as a share of the input's range.
    baseline : float or Tensor
        Broadcast to the input.
    random_seed : int
        Of the random points.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: int = 25,
        noise: float = 0.1,
        baseline: float | Tensor = 0.0,
        random_seed: int = 0,
    ) -> None:
        super().__init__(model, random_seed)
        self.samples = samples
        self.noise = noise
        self.baseline = baseline

    def attribute_one(self, x: Tensor, question: Question, target: Tensor | None, batch: int) -> Tensor:
        import numpy as np
        from captum.attr import GradientShap

        state = np.random.get_state()  # captum draws the points between from NumPy's global generator
        np.random.seed(self.random_seed)
        try:
            with progress(question.forward, self.samples, "shap_gradient") as forward:
                return _in_chunks(
                    lambda n: GradientShap(forward).attribute(
                        x,
                        baselines=baseline_like(x, self.baseline),
                        n_samples=n,
                        stdevs=noise_scale(x, self.noise),
                        target=target,
                    ),
                    self.samples,
                    batch,
                )
        finally:
            np.random.set_state(state)


def _in_chunks(mean_of: Callable[[int], Tensor], samples: int, batch: int) -> Tensor:
    """Mean over `samples` random samples, `batch` at a time; ``mean_of(n)`` averages n of them."""
    total: Any = 0
    left = samples
    while left:
        n = min(left, batch)
        total = total + n * mean_of(n)
        left -= n
    return total / samples
