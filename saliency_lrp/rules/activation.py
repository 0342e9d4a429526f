"""Rules at activations, for the gradient methods that change what a ReLU hands back."""

from __future__ import annotations

import torch
from torch import Tensor

from .any_site import Gradient
from .arithmetic import positive
from .base import Rule
from .views import Messages, SiteView


class DeconvNet(Rule):
    """DeconvNet at a ReLU: ``R_in = max(R, 0)`` (Zeiler & Fergus 2014)."""

    kinds = frozenset({"activation"})
    for_rectifiers = True

    def relevance(self, site: SiteView, R: Tensor) -> Messages:
        return (positive(R),)


class GuidedBackprop(Rule):
    """Guided backpropagation at a ReLU: ``R_in = max(R, 0) · [z > 0]`` (Springenberg et al. 2015)."""

    kinds = frozenset({"activation"})
    for_rectifiers = True

    def relevance(self, site: SiteView, R: Tensor) -> Messages:
        let_through = positive(R) * (site.output > 0)
        return (let_through,) if site.op == "relu" else site.gradient(let_through)  # bounded above, perhaps


class BetaSmooth(Rule):
    """The gradient of the softplus that replaces a ReLU: ``R_in = R · sigmoid(β z)`` (Dombrowski et al. 2019)."""

    kinds = frozenset({"activation"})
    for_rectifiers = True

    def __init__(self, beta: float = 10.0) -> None:
        self.beta = beta

    def relevance(self, site: SiteView, R: Tensor) -> Messages:
        return (R * torch.sigmoid(self.beta * site.input),)


class ExcitationBackprop(Gradient):
    """Excitation backpropagation at an activation: its gradient (Zhang et al. 2018); linear sites take z⁺."""

    kinds = frozenset({"activation"})
