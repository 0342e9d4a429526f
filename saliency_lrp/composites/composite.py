"""Composite: a table from selectors to rules; the rows that every composite ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .. import rules as r
from ..errors import InputError
from ..rules import Rule
from .selectors import Selector, at_output, depth, kind, selects, selects_in_forward, selects_kind, unmatched

Row = tuple[Selector, Rule]


def defaults(epsilon: float = 1e-12) -> list[Row]:
    """The rows that every composite ends with: one per kind.

    ``epsilon`` stabilises sums, products and normalisations, where relevance is in proportion to the denominator, so
    that it only has to guard exact zeros.
    """
    return [
        (kind("linear"), r.Epsilon(epsilon)),
        (kind("sum", "normalization"), r.Norm(epsilon)),
        (kind("activation", "scale"), r.Pass()),
        (kind("gate"), r.SignalTakesAll(epsilon)),
        (kind("product", "matmul"), r.Uniform(epsilon)),
        # a model that ends in a softmax is explained from its logits
        ((kind("softmax"), at_output()), r.Pass()),
        (kind("softmax"), r.SoftmaxTaylor()),
        (kind("attention"), r.AttentionAttnLRP(epsilon)),
        (kind("recurrent", "steps"), r.Unrolled()),
        (kind("unknown"), r.Taylor(epsilon)),
    ]


def defaults_for(rule: Rule, epsilon: float = 1e-12) -> list[Row]:
    """The defaults beside a rule on linear sites: where it spreads what biases take, sums do so, too."""
    rows = defaults(epsilon)
    if getattr(rule, "bias", "keep") == "distribute":
        return [(kind("sum"), r.Norm(epsilon, bias="distribute")), *rows]
    return rows


def graded(
    rule: Callable[[float], Rule], at_input: float, deep: float, over: int, where: Selector = (), steps: int = 8
) -> list[Row]:
    """Rows for a rule whose strength changes with depth, by equal factors.

    Parameters
    ----------
    rule : callable
        Makes the rule of a strength.
    at_input, deep : float
        The strength at the model's input, and at ``over`` linear sites behind it and deeper; > 0.
    over : int
        Over how many linear sites it changes. Shallower networks do not see the whole change.
    where : selector
        Among which linear sites; by default all.
    steps : int
        How many rows: sites of about the same depth share one.

    Examples
    --------
    >>> falling = graded(rules.GeneralizedGamma, 1.0, 0.05, 48, family("convolution"))          # doctest: +SKIP
    """
    steps = min(steps, over)
    if not (at_input > 0 and deep > 0 and steps >= 1):
        raise InputError(
            f"a graded rule takes strengths > 0 and changes over at least one site in at least one step; got "
            f"{at_input!r}, {deep!r}, over={over!r}, steps={steps!r}"
        )
    among = where if isinstance(where, tuple) else (where,)
    bounds = [round(over * k / steps) for k in range(steps)]
    strengths = [at_input * (deep / at_input) ** (k / max(1, steps - 1)) for k in range(steps)]
    return [
        ((*among, depth(low, high)), rule(float(f"{strength:.3g}")))
        for low, high, strength in zip(bounds, [*bounds[1:], None], strengths, strict=True)
    ]


class Composite:
    """A table from selectors to rules.

    Parameters
    ----------
    rows : iterable of (selector, Rule)
        Earlier rows win.
    base : list of (selector, Rule), optional
        What sites get that no row selects; by default LRP-ε, AttnLRP in attention.
    name : str
        For printing.

    Examples
    --------
    >>> from saliency_lrp import composites, rules
    >>> boxed = composites.get("epsilon_plus") | composites.Composite([(composites.first(), rules.ZBox(-2, 2))])
    """

    def __init__(self, rows: Iterable[Row], base: list[Row] | None = None, name: str = "custom") -> None:
        self.rows = list(rows)
        self.base = defaults() if base is None else base
        self.name = name
        for row in (*self.rows, *self.base):
            if not (isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], Rule)):
                raise InputError(
                    f"a row of a composite is a pair (selector, rule), such as (nn.Conv2d, rules.ZPlus()); got {row!r}"
                )

    def rule_for(self, site: Any) -> Rule:
        """The rule that a site gets."""
        for selector, rule in (*self.rows, *self.base):
            if rule.applies_to(site) and selects(selector, site):
                return rule
        raise InputError(f"composite {self.name!r} has no rule for {site.describe()} (kind {site.kind!r})")

    def rule_in_forward(self, site: Any) -> Rule | None:
        """As :meth:`rule_for`, during the forward pass; None where that depends on what comes later."""
        for selector, rule in (*self.rows, *self.base):
            if rule.applies_to(site):
                answer = selects_in_forward(selector, site)
                if answer is None:
                    return None
                if answer:
                    return rule
        raise InputError(f"composite {self.name!r} has no rule for {site.describe()} (kind {site.kind!r})")

    def rule_of_kind(self, kind: str) -> Rule | None:
        """The rule that all sites of a kind get, whatever and wherever they are; None where it depends on the site."""
        for selector, rule in (*self.rows, *self.base):
            if kind not in rule.kinds:
                continue
            answer = selects_kind(selector, kind)
            if answer is None:
                return None
            if answer:
                return rule
        return None

    @property
    def seeks_rectifiers(self) -> bool:
        """Whether a rule is for ReLUs, however the model spells them."""
        return any(rule.for_rectifiers for _, rule in (*self.rows, *self.base))

    def idle_rows(self, paths: Iterable[str], modules: Iterable[Any]) -> list[str]:
        """Rows whose glob or class nothing in a model matches, in words."""
        paths, modules = list(paths), list(modules)
        found = [(selector, rule, unmatched(selector, paths, modules)) for selector, rule in self.rows]
        return [
            f"a row of composite {self.name!r} has no effect: {why}; the row is {selector!r} -> {rule!r}"
            for selector, rule, why in found
            if why
        ]

    def __or__(self, override: Composite) -> Composite:
        return Composite(override.rows + self.rows, self.base, f"{self.name} | {override.name}")

    def explain(self, trace: Any) -> str:
        """Which rule each site of a trace gets, as text, in execution order."""
        lines = [f"{'#':>4}  {'module':<32} {'op':<20} {'kind':<14} rule"]
        lines += [
            f"{site.index:>4}  {site.path:<32} {site.op:<20} {site.kind:<14} {self.rule_for(site)!r}"
            for site in trace.sites
            if not site.folded_into_next
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        def show(selector: Selector) -> str:
            if isinstance(selector, tuple):
                return " & ".join(show(s) for s in selector)
            return selector.__name__ if isinstance(selector, type) else repr(selector)

        lines = [f"Composite {self.name!r}"]
        lines += [f"  {show(s):<32} -> {rule!r}" for s, rule in self.rows]
        lines += [f"  {show(s):<32} -> {rule!r}   (default)" for s, rule in self.base]
        return "\n".join(lines)
