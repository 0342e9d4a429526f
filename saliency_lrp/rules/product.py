"""Rules for products of activations, softmax, attention and fused steps."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .arithmetic import unmasked, working
from .base import Rule, always
from .views import AttentionView, Messages, ProductView, SoftmaxView, StepsView


class Uniform(Rule):
    """Equal shares for the factors of a product: ``R_k = R / n`` (AttnLRP, Achtibat et al. 2024, prop. 3.2, 3.3).

    A matrix product of two activations splits ``R / 2`` over the summands of each output in proportion.
    """

    kinds = frozenset({"product", "gate", "matmul"})
    keeps_zeros = always

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon

    def relevance(self, site: ProductView, R: Tensor) -> Messages:
        return site.split(R, [1.0 / site.arity] * site.arity, self.epsilon)


class SignalTakesAll(Rule):
    """A gate gets nothing, the signal it multiplies gets all (Arras et al. 2017); without a gate, equal shares."""

    kinds = frozenset({"product", "gate", "matmul"})
    keeps_zeros = always

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon

    def relevance(self, site: ProductView, R: Tensor) -> Messages:
        n = site.arity
        signals = [k not in site.gates for k in range(n)]
        if not any(signals):
            signals = [True] * n
        share = 1.0 / sum(signals)
        return site.split(R, [share if s else 0.0 for s in signals], self.epsilon)


class SoftmaxTaylor(Rule):
    """Softmax by deep Taylor decomposition: ``R_i = x_i (R_i − y_i Σ_k R_k)`` (AttnLRP, proposition 3.1).

    The sum runs along the softmax's own axis. Entries masked with −inf get 0.
    """

    kinds = frozenset({"softmax"})
    keeps_zeros = always

    def relevance(self, site: SoftmaxView, R: Tensor) -> Messages:
        x, y, R = unmasked(working(site.inputs[0])), working(site.output), working(R)
        R_in = (R - y * R.sum(dim=site.dim, keepdim=True)).mul_(x)
        if site.account:
            site.absorb(rule=R.sum() - R_in.sum())
        return (R_in,)


class Unrolled(Rule):
    """A fused call (LSTM, GRU, ...) takes its steps one by one; each is a site with a rule of its own."""

    kinds = frozenset({"recurrent", "steps"})
    batches_maps = True

    def relevance(self, site: StepsView, R: Any) -> Messages:
        return site.through_steps(R)


class AttentionRule(Rule, abstract=True):
    """Rules on a fused scaled dot-product attention: what query, key and value get of the relevance."""

    kinds = frozenset({"attention"})
    batches_maps = True
    shares: ClassVar[tuple[float, float, float]]

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon

    def relevance(self, site: AttentionView, R: Tensor) -> Messages:
        R_in = site.share(R, self.shares, self.epsilon)
        if site.account and self.shares[0]:  # the softmax takes some
            site.absorb(rule=R.sum() - sum(r.sum() for r in R_in if r is not None))
        return R_in


class AttentionAttnLRP(AttentionRule):
    """AttnLRP (Achtibat et al. 2024): uniform at A·V and at Q·Kᵀ, deep Taylor at the softmax."""

    keeps_zeros = always
    shares = (0.25, 0.25, 0.5)


class AttentionCPLRP(AttentionRule):
    """CP-LRP (Ali et al. 2022): the attention weights are a gate, the values take all."""

    keeps_zeros = always
    shares = (0.0, 0.0, 1.0)
