"""Which rules give no relevance to an input that is exactly 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .any_site import Norm, Pass, Stop, Taylor
from .base import Rule
from .linear import AlphaBeta, AlphaBetaX, Beta, Epsilon, Gamma, GeneralizedGamma, Power, ZeroRule, ZPlus
from .product import AttentionAttnLRP, AttentionCPLRP, SignalTakesAll, SoftmaxTaylor, Uniform


def keeps_bias(rule: Any, site: Any) -> bool:
    return getattr(rule, "bias", "keep") != "distribute"


#: Rules that give no relevance to an input that is exactly 0, provided that outputs that are exactly 0 have none.
#: A rule that is not here may give some; subclasses count as rules of their own.
VANISHES: dict[type[Rule], Callable[[Any, Any], bool]] = {
    **dict.fromkeys((Epsilon, ZeroRule, Gamma, GeneralizedGamma, ZPlus, AlphaBeta, AlphaBetaX, Beta), keeps_bias),
    **dict.fromkeys((Norm, Taylor), keeps_bias),
    **dict.fromkeys((Uniform, SignalTakesAll, SoftmaxTaylor, AttentionAttnLRP, AttentionCPLRP), lambda *_: True),
    Stop: lambda *_: True,
    Power: lambda rule, site: rule.p > 0 and keeps_bias(rule, site),
    Pass: lambda rule, site: site.keeps_zero,
}


def vanishes(rule: Rule, site: Any) -> bool:
    """Whether :data:`VANISHES` holds for a rule at a site.

    Where it holds for all rules of a pass, what a ReLU cut off needs no denominator of its own: its relevance is 0.
    """
    return VANISHES.get(type(rule), lambda *_: False)(rule, site)
