"""Rules for any kind of site: in proportion, unchanged, nothing, the plain gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import unknown_name
from ..report import total
from .arithmetic import divide, measured_over, message, stabilizer_width, working
from .base import ANY_KIND, BiasMode, Rule, always, unless_distributed
from .views import Messages, SiteView, SumView


class Norm(Rule):
    """In proportion to contributions: ``R_i = a_i · [Jᵀ (R / s(z))]_i`` with J the site's linear part.

    Serves sums, means, pooling, interpolation and normalisations (whose statistics count as constants), and is LRP-ε
    on linear sites.

    Parameters
    ----------
    epsilon : float
        Stabiliser.
    relative : bool
        Measure ``epsilon`` in units of rms(z) of one position's own outputs; see :class:`Epsilon`.
    bias : {"keep", "distribute"}
        ``"keep"``: a constant operand acts as a bias; it and ε absorb their share. ``"distribute"``: that share is
        spread evenly over the inputs, on sums of real tensors (other sites then take the next rule of the composite).
    """

    kinds = frozenset({"sum", "normalization", "linear", "matmul", "unknown"})
    keeps_zeros = unless_distributed

    def __init__(self, epsilon: float = 1e-12, relative: bool = False, bias: BiasMode = "keep") -> None:
        if bias not in ("keep", "distribute"):
            raise unknown_name("bias mode of Norm", bias, ("keep", "distribute"))
        self.epsilon = epsilon
        self.relative = relative
        self.bias = bias

    @property
    def batches_maps(self) -> bool:  # type: ignore[override]
        return self.bias == "keep"

    def applies_to(self, site: SumView) -> bool:
        return site.kind in self.kinds and (self.bias == "keep" or site.kind == "sum")

    def relevance(self, site: SumView, R: Tensor) -> Messages:
        c = divide(R, site.output, self.epsilon, measured_over(site, self.relative), int(site.rectified))
        spread = self.taken(site, c) if site.account or self.bias == "distribute" else None
        due = self.due(site, c) if site.account and site.kind == "sum" and spread is None else None
        grads = site.vjp(c)
        messages = tuple(
            None if g is None else message(working(a), g, last=g is c and not any(g is h for h in grads[k + 1 :]))
            for k, (a, g) in enumerate(zip(site.inputs, grads, strict=True))
        )
        if due is not None:
            site.binding.account.close(site, *due, messages)
        if spread is None:
            return messages
        return tuple(None if m is None else m + share for m, share in zip(messages, spread, strict=True))

    @staticmethod
    def due(site: SumView, c: Tensor) -> tuple[Tensor, Tensor]:
        """What the inputs of a sum are due by Euler's identity, c · (f(a) − f(0)), and the size of its summands."""
        amounts = c * (working(site.output) - site.constant_part())
        return total(amounts), total(amounts.abs())

    def taken(self, site: SumView, c: Tensor) -> tuple[Tensor, ...] | None:
        """What stabiliser and constants take: each input's part of it, or None where it is absorbed (and noted)."""
        z = working(site.output)
        by_epsilon = torch.where(z < 0, -c, c) * stabilizer_width(z, self.epsilon, measured_over(site, self.relative))
        if self.bias == "distribute":
            parts = site.spread(by_epsilon + c * site.constant_part())
            if parts is not None:
                return parts
        site.absorb(epsilon=by_epsilon)
        return None


class Taylor(Norm):
    """What an op without a rule of its own gets: :class:`Norm`, reported to the user as not understood."""

    keeps_zeros = unless_distributed


class Pass(Rule):
    """Relevance passes unchanged: ``R_in = R``, for one-to-one functions (activations; a batch norm of its own)."""

    kinds = frozenset({"activation", "scale", "normalization", "linear", "softmax", "unknown", "sum"})
    batches_maps = True

    def relevance(self, site: SiteView, R: Tensor) -> Messages:
        return site.pass_through(R)

    def keeps_zeros(self, site: SiteView) -> bool:
        return bool(site.keeps_zero)


class Stop(Rule):
    """Relevance ends here: every input gets 0. What arrived is noted in the account as absorbed by the rule."""

    kinds = ANY_KIND
    keeps_zeros = always

    def relevance(self, site: SiteView, R: Tensor) -> Messages:
        if site.account:
            for r in R if isinstance(R, tuple) else (R,):
                if r is not None:
                    site.absorb(rule=r)
        return (None,) * site.arity


class Gradient(Rule):
    """No relevance at all but the plain gradient, ``Jᵀ R``: for the gradient methods built on this engine."""

    kinds = ANY_KIND

    def relevance(self, site: SiteView, R: Tensor) -> Messages:
        return site.gradient(R)
