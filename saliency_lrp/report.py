"""The relevance account: what arrived at every site, what left it, and what was absorbed on the way."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: What may absorb relevance at a site.
SINKS = ("bias", "epsilon", "rule")


@dataclass
class Row:
    """One site's account; all amounts are sums of relevance over the whole batch."""

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

    @property
    def lost(self) -> float:
        """Relevance that arrived but did not leave."""
        return self.arrived - self.left

    @property
    def unexplained(self) -> float:
        """What neither bias, ε nor the rule accounts for: constants that the site mixes in."""
        return self.lost - self.bias - self.epsilon - self.by_rule


class Account:
    """Collects sums during one backward pass, as tensors on the model's device; read once at the end."""

    def __init__(self) -> None:
        self.entries: dict[int, dict[str, Any]] = {}

    def _entry(self, site: Any) -> dict[str, Any]:
        return self.entries.setdefault(
            id(site), {"site": site, "arrived": [], "left": [], "bias": [], "epsilon": [], "rule": []}
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

    def rows(self, rule_for: Any) -> list[Row]:
        """One row per site, in execution order."""
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
                )
            )
        return sorted(rows, key=lambda row: row.index)


def total(t: Tensor) -> Tensor:
    """Sum in float64 (the real part of complex relevance), still on the device."""
    t = t.real if t.is_complex() else t
    dtype = torch.float32 if t.device.type == "mps" else torch.float64
    return t.detach().sum(dtype=dtype)


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
    """

    seed: float
    result: float
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
        """One line."""
        parts = ", ".join(f"{k} {v:+.4g}" for k, v in self.absorbed.items())
        return f"relevance {self.seed:.6g} -> {self.result:.6g} (conserved {self.conserved:.4g}); absorbed: {parts}"

    def table(self, limit: int | None = 20) -> str:
        """The account as text, the largest losses first."""
        rows = self.by_loss()[:limit]
        width = max([len(r.path) for r in rows] + [6])
        lines = [
            self.summary(),
            *(f"warning: {w}" for w in self.warnings),
            *(f"note: {n}" for n in self.notes),
            f"{'module':<{width}}  {'op':<18}{'arrived':>12}{'left':>12}{'bias':>12}{'epsilon':>12}{'rule':>12}  rule",
        ]
        lines += [
            f"{r.path:<{width}}  {r.op:<18}{r.arrived:>12.4g}{r.left:>12.4g}{r.bias:>12.4g}{r.epsilon:>12.4g}"
            f"{r.by_rule:>12.4g}  {r.rule}"
            for r in rows
        ]
        if limit is not None and len(self.rows) > limit:
            lines.append(f"... {len(self.rows) - limit} more sites")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Report: {self.summary()}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{h}</th>" for h in ("module", "op", "rule", "arrived", "left", "bias", "ε", "rule took"))
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{html.escape(t)}</td>" for t in (r.path, r.op, r.rule))
            + "".join(f"<td>{v:.4g}</td>" for v in (r.arrived, r.left, r.bias, r.epsilon, r.by_rule))
            + "</tr>"
            for r in self.by_loss()[:20]
        )
        warnings = "".join(f"<p><b>Warning:</b> {html.escape(w)}</p>" for w in self.warnings)
        notes = "".join(f"<p>Note: {html.escape(n)}</p>" for n in self.notes)
        more = f"<p>{len(self.rows) - 20} more sites</p>" if len(self.rows) > 20 else ""
        return (
            f"<p>{html.escape(self.summary())}</p>{warnings}{notes}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
        )
