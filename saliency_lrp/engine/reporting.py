"""The report of one explanation: the account's rows, what was noted, what to be warned of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..composites import Composite
from ..constants import Constants
from ..report import Account, Report, not_closed, total
from ..sites.site import Site
from ..values import is_finite
from .recording import Recording

#: How many times larger than the seed a map's total magnitude may be before it is called exploded.
EXPLODED = 1e4


def report_of(
    recording: Recording,
    account: Account,
    seeds: Tensor,
    values: Sequence[Tensor],
    unknown: Sequence[Site],
    composite: Composite,
) -> Report:
    """Where the relevance went that started as ``seeds`` and arrived as ``values``."""
    constants = Constants(recording.model, recording.interceptor.constants)
    not_understood = [f"{s.op} at {s.path!r}" for s in unknown]
    not_understood += [n.partition(" is not ")[0] for n in recording.notes(unknown=True)]
    report = Report(
        float(total(seeds)),
        sum(float(total(v)) for v in values),
        account.rows(recording.binding.rule_for, constants.name_of),
        warnings_of(recording, unknown, composite),
        recording.notes(unknown=False),
        seed_size=float(total(seeds.abs())),
        size=sum(float(total(v.abs())) for v in values),
        joined=constants.names_of(recording.interceptor.joined),
        unknown=list(dict.fromkeys(not_understood)),
    )
    report.warnings += not_closed(report.rows)
    if not all(is_finite(v) for v in values):
        worst = next((r for r in reversed(report.rows) if r.left != r.left or abs(r.left) == float("inf")), None)
        where = f"; first at {worst.op} of {worst.path!r}" if worst is not None else ""
        report.warnings.append(f"the map has NaN or infinite values{where}")
    elif report.seed and report.size > EXPLODED * report.seed_size:
        report.warnings.append(
            f"Σ|R| of the map is {report.size / report.seed_size:.3g} times that of the seed: relevance of "
            "opposite signs nearly cancels somewhere; do not trust single pixels (rules such as z⁺ or "
            "γ avoid this)"
        )
    return report


def warnings_of(recording: Recording, unknown: Sequence[Site], composite: Composite) -> list[str]:
    """Functions that an explanation met and that are not understood, and rows of the composite without effect."""
    return [
        *(
            f"{where} is not in the table of functions; relevance was shared by a first-order expansion. Say how it "
            f"hands relevance back: saliency_lrp.functions.register({op!r}, 'sum')"
            for where, op in {f"{s.op} at {s.path!r}": s.op for s in unknown}.items()
        ),
        *recording.notes(unknown=True),
        *composite.idle_rows(recording.calls, recording.modules),
    ]
