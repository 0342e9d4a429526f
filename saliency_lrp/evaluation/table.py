"""Scores of methods by metrics, as a table that shows itself."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .metrics import METRICS, Metric


@dataclass
class Evaluation:
    """Scores of methods by metrics; shows itself as a table.

    Attributes
    ----------
    scores : dict of dict of ndarray
        ``scores[method][metric]``, one number per item.
    seconds : dict of float
        Per method, for one map.
    errors : dict of str
        Per method, or per ``"method / metric"``, what went wrong.
    """

    metrics: list[Metric]
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def mean(self, method: str, metric: str) -> float:
        """Mean over the items; NaN where the metric could not be computed."""
        scores = self.scores.get(method, {}).get(metric)
        return float("nan") if scores is None or not len(scores) else float(np.nanmean(scores))

    def standard_error(self, method: str, metric: str) -> float:
        """Standard error of the mean; NaN for fewer than two items."""
        scores = self.scores.get(method, {}).get(metric)
        if scores is None or np.isfinite(scores).sum() < 2:
            return float("nan")
        return float(np.nanstd(scores, ddof=1) / np.isfinite(scores).sum() ** 0.5)

    def best(self, metric: str) -> str | None:
        """The method with the best mean, or None."""
        direction = 1 if METRICS[metric].higher_is_better else -1
        means = {m: direction * self.mean(m, metric) for m in self.scores}
        means = {m: v for m, v in means.items() if np.isfinite(v)}
        return max(means, key=means.__getitem__) if means else None

    def to_frame(self) -> Any:
        """A pandas table: a row per method; mean and standard error (``_se``) of each metric, seconds, error."""
        import pandas as pd

        rows = []
        for method in self.scores:
            row: dict[str, Any] = {"method": method}
            for metric in self.metrics:
                row[metric.name] = self.mean(method, metric.name)
                row[metric.name + "_se"] = self.standard_error(method, metric.name)
            row["seconds"] = self.seconds.get(method, float("nan"))
            row["error"] = "; ".join(v for k, v in self.errors.items() if k == method or k.startswith(f"{method} / "))
            rows.append(row)
        return pd.DataFrame(rows).set_index("method")

    def plot(self, figsize: tuple[float, float] | None = None) -> Any:
        """Bars with standard errors, one panel per metric; the best method of each is dark.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from matplotlib.figure import Figure

        methods, n = list(self.scores), len(self.metrics)
        figsize = figsize or (1.5 + 2.4 * max(n, 1), 1.2 + 0.28 * len(methods))
        figure = Figure(figsize=figsize, layout="constrained")
        axes = figure.subplots(1, max(n, 1), sharey=True, squeeze=False)[0]
        for axis, metric in zip(axes, self.metrics, strict=False):
            best = self.best(metric.name)
            axis.barh(
                methods,
                [self.mean(m, metric.name) for m in methods],
                xerr=[self.standard_error(m, metric.name) for m in methods],
                color=["#00518a" if m == best else "#8fbbd9" for m in methods],
            )
            axis.set_title(f"{metric.title} {metric.arrow}", fontsize="medium")
        axes[0].invert_yaxis()
        return figure

    def _cell(self, method: str, metric: str) -> str:
        mean, error = self.mean(method, metric), self.standard_error(method, metric)
        if not np.isfinite(mean):
            return "–"
        return f"{mean:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")

    def __repr__(self) -> str:
        widths = [max(len(m) for m in ("method", *self.scores)), *(max(15, len(m.title) + 2) for m in self.metrics)]
        lines = [["method", *(f"{m.title} {m.arrow}" for m in self.metrics)]]
        lines += [[method, *(self._cell(method, m.name) for m in self.metrics)] for method in self.scores]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join(text + [f"{where}: {what}" for where, what in self.errors.items()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(m.title)} {m.arrow}</th>" for m in self.metrics)
        best = {m.name: self.best(m.name) for m in self.metrics}
        rows = []
        for method in self.scores:
            cells = [(self._cell(method, m.name), best[m.name] == method) for m in self.metrics]
            tds = "".join(f"<td>{f'<b>{text}</b>' if bold else text}</td>" for text, bold in cells)
            rows.append(f"<tr><th style='text-align:left'>{html.escape(method)}</th>{tds}</tr>")
        errors = "".join(f"<p><b>{html.escape(k)}</b>: {html.escape(v)}</p>" for k, v in self.errors.items())
        return (
            f"<table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<p>mean ± standard error; ↑ higher is better, ↓ lower is better</p>{errors}"
        )
