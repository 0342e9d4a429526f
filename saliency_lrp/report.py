"""The relevance account: what arrived at every site, what left it, and what was absorbed on the way."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import verdict as words
from . import waterfall
from .model.devices import accumulator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What may absorb relevance at a site.
SINKS = ("bias", "epsilon", "rule")


@dataclass
class Row:
    """One site's account; all amounts are sums of relevance over the whole batch.

    ``folded``: whether the bias is that of a batch norm folded into the layer. ``constant``: the parameter, buffer or
    module whose values the site adds, where that is known. ``open``: by how much what left misses Euler's identity,
    which holds for every sum: what it hands back is what it computed, less what its constants did.
    """

    index: int
    path: str
    op: str
    kind: str
    rule: str
    arrived: float
    left: float
    bias: float = 0.0
    epsilon: float = 0.0
    by_rule: float = 0.0
    folded: bool = False
    constant: str = ""
    open: float = 0.0

    @property
    def lost(self) -> float:
        """Relevance that arrived but did not leave."""
        return self.arrived - self.left

    @property
    def unexplained(self) -> float:
        """What neither bias, ε nor the rule accounts for: constants that the site mixes in."""
        return self.lost - self.bias - self.epsilon - self.by_rule

    @property
    def constants(self) -> float:
        """``unexplained`` where it is more than what sums in another order leave."""
        return 0.0 if abs(self.unexplained) < words.NEGLIGIBLE * abs(self.arrived) else self.unexplained


class Account:
    """Collects sums during one backward pass, as tensors on the model's device; read once at the end."""

    def __init__(self) -> None:
        self.entries: dict[int, dict[str, Any]] = {}

    def _entry(self, site: Any) -> dict[str, Any]:
        return self.entries.setdefault(
            site.index, {"site": site, "arrived": [], "left": [], "bias": [], "epsilon": [], "rule": []}
        )

    def add(self, site: Any, R: Any, R_in: tuple[Tensor | None, ...]) -> None:
        """Relevance that arrived at a site (a tuple where it has several outputs) and that left it."""
        if site.parent is not None:
            return  # a step of a fused call, which has a row of its own
        entry = self._entry(site)
        entry["arrived"].extend(total(r) for r in (R if isinstance(R, tuple) else (R,)) if r is not None)
        entry["left"].extend(total(r) for r in R_in if r is not None)

    def absorb(self, site: Any, amounts: dict[str, Tensor]) -> None:
        """Relevance that bias, stabiliser or rule took at a site, or at a step of it."""
        entry = self._entry(site if site.parent is None else site.parent)
        for sink, amount in amounts.items():
            entry[sink].append(total(amount))

    def close(self, site: Any, due: Tensor, size: Tensor, messages: tuple[Tensor | None, ...]) -> None:
        """Note by how much the relevance of the inputs of a sum misses what is due to them, beyond rounding."""
        given = [m for m in messages if m is not None]
        missed = due - sum(total(m) for m in given)
        size = size + sum(total(m.abs()) for m in given)
        entry = self._entry(site if site.parent is None else site.parent)
        entry.setdefault("open", []).append(torch.where(missed.abs() > OPEN * size, missed, 0.0))

    def rows(self, rule_for: Any, name_of: Any = lambda site: "") -> list[Row]:
        """One row per site, in execution order; ``name_of`` says which constant a site adds."""
        rows = []
        for entry in self.entries.values():
            site = entry["site"]
            sums = {k: sum(float(v) for v in entry[k]) for k in ("arrived", "left", *SINKS)}
            rows.append(
                Row(
                    site.index,
                    site.path,
                    site.op,
                    site.kind,
                    repr(rule_for(site)),
                    sums["arrived"],
                    sums["left"],
                    sums["bias"],
                    sums["epsilon"],
                    sums["rule"],
                    getattr(site, "batch_norm", None) is not None,
                    name_of(site),
                    sum(float(v) for v in entry.get("open", ())),
                )
            )
        return sorted(rows, key=lambda row: row.index)


#: How much of what is due may be missing at a sum before it counts as no sum.
OPEN = 1e-3


def not_closed(rows: list[Row]) -> list[str]:
    """Which sites hand back other amounts than a sum would, in words."""
    return [
        f"{row.op} at {row.path!r} counts as a sum, but what it hands back misses what it computed by "
        f"{row.open:.4g} of {row.arrived:.4g}: it is none. Say what it is: "
        f"saliency_lrp.functions.register({row.op!r}, ...)"
        for row in rows
        if row.open
    ]


def total(t: Tensor) -> Tensor:
    """Sum in float64 (of both parts of complex relevance), still on the device."""
    t = torch.view_as_real(t) if t.is_complex() else t
    return t.detach().sum(dtype=accumulator(t))


@dataclass
class Report:
    """Where the relevance went.

    Attributes
    ----------
    seed : float
        Relevance that started at the output, summed over the batch.
    result : float
        Relevance that reached the model's inputs.
    rows : list of Row
        One per site, in execution order.
    warnings : list of str
        Why the map should not be trusted as it is, if anything.
    notes : list of str
        Choices that were made on the way.
    seed_size, size : float
        Sums of absolute values of what started, and of the map: signs that cancel show in them.
    joined : list of str
        Parameters and buffers that were joined to activations (class tokens, learned padding), by name.
    unknown : list of str
        Functions that relevance met and nobody has classified.
    likeness : float or None
        Least cosine of the map with those of unlike classes; None where that was not looked at.
    """

    seed: float
    result: float
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _: KW_ONLY
    seed_size: float = math.nan
    size: float = math.nan
    joined: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    likeness: float | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.seed_size):
            self.seed_size = abs(self.seed)
        if math.isnan(self.size):
            self.size = abs(self.result)

    @property
    def verdict(self) -> str:
        """What the map is worth, in one or two sentences."""
        return words.verdict(self)

    @property
    def sinks(self) -> list[tuple[str, float]]:
        """(name, share) of everything that took relevance, largest first; with ``conserved`` they sum to 1.

        A negative share was added on the way. Shares are of the seed, or of its absolute values where it sums to 0.
        """
        return words.sinks(self)

    @property
    def scale(self) -> float:
        """What shares are shares of."""
        return self.seed if abs(self.seed) > words.NEGLIGIBLE * self.seed_size else self.seed_size

    @property
    def conserved(self) -> float:
        """ΣR at the inputs / ΣR at the output: 1 where nothing was absorbed."""
        if self.seed == 0:
            return 1.0 if self.result == 0 else math.nan
        return self.result / self.seed

    @property
    def absorbed(self) -> dict[str, float]:
        """Totals by sink; ``constants`` is what went to tokens, masks, padding and other constants."""
        sums = {
            "bias": sum(r.bias for r in self.rows),
            "epsilon": sum(r.epsilon for r in self.rows),
            "rule": sum(r.by_rule for r in self.rows),
        }
        sums["constants"] = self.seed - self.result - sum(sums.values())
        return sums

    def by_loss(self) -> list[Row]:
        """Rows sorted by how much relevance they lost or made, most first."""
        return sorted(self.rows, key=lambda row: -abs(row.lost) if math.isfinite(row.lost) else -math.inf)

    def summary(self) -> str:
        """The sums in one line, without what is too small to count."""
        least = words.NEGLIGIBLE * self.seed_size
        parts = [f"{name} {amount:+.4g}" for name, amount in self.absorbed.items() if not abs(amount) < least]
        absorbed = f"absorbed: {', '.join(parts)}" if parts else "nothing absorbed"
        return f"relevance {self.seed:.6g} -> {self.result:.6g} (conserved {self.conserved:.4g}); {absorbed}"

    def plot(self, figsize: tuple[float, float] | None = None) -> Figure:
        """Draw where every percent of the score went, from the output to the input."""
        return waterfall.plot(self, figsize)

    def table(self, limit: int | None = 20) -> str:
        """The account as text, the largest losses first."""
        rows = self.by_loss()[:limit]
        width = max([len(r.path) for r in rows] + [6])
        lines = [
            self.verdict,
            self.summary(),
            *(f"warning: {w}" for w in self.warnings),
            *(f"note: {n}" for n in self.notes),
            f"{'module':<{width}}  {'op':<18}" + "".join(f"{name:>12}" for name in COLUMNS) + "  rule",
        ]
        for row in rows:
            numbers = "".join(f"{read(row):>12.4g}" for read in COLUMNS.values())
            lines.append(f"{row.path:<{width}}  {row.op:<18}{numbers}  {row.rule}")
        if limit is not None and len(self.rows) > limit:
            lines.append(f"... {len(self.rows) - limit} more sites")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Report: {self.summary()}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("module", "op", "by", *COLUMNS))
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(t)}</td>" for t in (r.path, r.op, r.rule))
            + "".join(f"<td>{read(r):.4g}</td>" for read in COLUMNS.values())
            + "</tr>"
            for r in self.by_loss()[:20]
        )
        warnings = "".join(f"<p><b>Warning:</b> {html.escape(w)}</p>" for w in self.warnings)
        notes = "".join(f"<p>Note: {html.escape(n)}</p>" for n in self.notes)
        more = f"<p>{len(self.rows) - 20} more sites</p>" if len(self.rows) > 20 else ""
        return (
            f"<p><strong>{html.escape(self.verdict)}</strong></p>{waterfall.as_html(self)}{warnings}{notes}"
            f"<details><summary>{html.escape(self.summary())}</summary>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}</details>"
        )


#: Columns of the account's table: what is read of a row.
COLUMNS: dict[str, Callable[[Row], float]] = {
    "arrived": lambda row: row.arrived,
    "left": lambda row: row.left,
    "bias": lambda row: row.bias,
    "epsilon": lambda row: row.epsilon,
    "rule": lambda row: row.by_rule,
    "constants": lambda row: row.constants,
}
