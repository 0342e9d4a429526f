"""Rules that take a folded batch norm apart from its linear layer again."""

from __future__ import annotations

from torch import Tensor

from .any_site import Pass
from .arithmetic import divide, working
from .base import Rule
from .linear import Epsilon
from .views import LinearView, Messages


class SplitBatchNorm(Rule):
    """A batch norm takes the rule ``rule`` by itself, the linear layer it follows the rule ``then``.

    Without it they are one layer, folded. A batch norm is not one-to-one in value, so that folding is the better
    choice; this is for the numbers of peers that do not fold (captum: ε on both; see ``docs/differences.md``).
    """

    kinds = frozenset({"linear"})

    def __init__(self, rule: Rule, then: Rule) -> None:
        self.rule = rule
        self.then = then

    def applies_to(self, site: LinearView) -> bool:
        return site.kind == "linear" and site.batch_norm is not None

    def keeps_zeros(self, site: LinearView) -> bool:
        return (self.rule if site.family == "batch_norm" else self.then).keeps_zeros(site)

    def relevance(self, site: LinearView, R: Tensor) -> Messages:
        (R_norm,) = self.rule.relevance(site.batch_norm_alone(), R)
        return (None,) if R_norm is None else site.below_batch_norm(self.then, R_norm)


class PassBatchNorm(SplitBatchNorm):
    """A batch norm passes relevance unchanged; the linear layer it follows takes the rule ``then``.

    The convention of Pytorch-LRP and TensorWatch, and of zennit without its canonizers.
    """

    def __init__(self, then: Rule) -> None:
        super().__init__(Pass(), then)

    keeps_zeros = SplitBatchNorm.keeps_zeros


class BatchNormReverse(Rule):
    """iNNvestigate's rule for a batch norm of its own: ``R_in = R · x (y − β) / ((x − μ) y)``, stabilised.

    On a site where a linear layer and its batch norm were folded, the batch norm takes this rule and the linear
    layer the rule ``then``.
    """

    kinds = frozenset({"linear"})

    def __init__(self, epsilon: float = 1e-7, then: Rule | None = None) -> None:
        self.epsilon = epsilon
        self.then = then if then is not None else Epsilon(1e-7)

    def applies_to(self, site: LinearView) -> bool:
        return site.kind == "linear" and site.batch_norm is not None

    def keeps_zeros(self, site: LinearView) -> bool:
        return self.then.keeps_zeros(site)

    def relevance(self, site: LinearView, R: Tensor) -> Messages:
        x = site.batch_norm_input()
        mean, shift = site.batch_norm_constants()
        y = site.output
        ratio = divide(x * (y - shift), (x - mean) * y, self.epsilon)
        return site.below_batch_norm(self.then, working(R) * ratio)
