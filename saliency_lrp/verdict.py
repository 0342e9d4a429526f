"""An account of relevance in words: how much arrived, what took the rest, and what that means for the map.

``conserved`` alone is no verdict: a trained network with folded batch norms may hand its input a thousandth of the
score, and the map is good all the same, because the biases take a like share everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .report import Report, Row

#: A share of the score too small to be worth a word.
NEGLIGIBLE = 1e-6
#: What is left to read where the map's Σ|R| is this small against the seed's: rounding.
ROUNDING = 1e-10
#: How many times the seed's Σ|R| the map's may be before its parts are more cancellation than score.
CANCELLING = 10.0
#: From which cosine on the maps of unlike classes count as the same picture.
ALIKE = 0.9
#: How far from 1 ``conserved`` may be for the map to add up to the score.
ADDS_UP = 0.05
#: Which part of what a kind of sink took has to lie in the stages that are named for it.
NAMED_PART = 0.8


class Loss(NamedTuple):
    """Relevance that one site lost to one kind of sink (negative where the sink added some)."""

    sink: str
    stage: str
    amount: float


# ------------------------------------------------------------------------------------------------ where it went

#: Sinks, and how they are said; ``{}`` is where.
SINKS = {
    "folded": "folded batch norms of {}",
    "batch norm": "batch norms of {}",
    "bias": "biases of {}",
    "activation": "bounds of the activations in {}",
    "norm": "biases of normalizations in {}",
    "epsilon": "the stabilizer ε in {}",
    "rule": "the rules in {}",
    "state": "initial states of {}",
    "constants": "constants added in {}",
    "constant": "the constant {}",
    "position": "position embeddings ({})",
    "unknown": "functions that are not understood in {}",
    "joined": "constants joined on the way ({})",
}

#: What the part of a loss that neither bias, ε nor rule has noted is, by the kind of the site; else the rule's doing.
UNNOTED = {
    "sum": "constants",
    "scale": "constants",
    "matmul": "constants",
    "activation": "activation",
    "normalization": "norm",
    "recurrent": "state",
    "unknown": "unknown",
}


def stage(path: str) -> str:
    """The part of a module's path that a reader thinks in: up to the first name that ends in a number."""
    if not path:
        return "the model itself"
    names = path.split(".")
    end = next((k for k, name in enumerate(names, 1) if name[-1:].isdigit()), len(names))
    return ".".join(names[:end])


#: What tables of positions are called: pos_embed, position_embeddings, encoder.pos_encoding, positions, ...
POSITIONS = re.compile(r"(^|[._])pos(ition)?(al)?s?([._]|$)|pos_?emb|pos_?enc")


def constant_sink(name: str) -> str:
    """Which kind of sink a parameter, buffer or module is that was added as it is."""
    return "position" if POSITIONS.search(name.lower()) else "constant"


def row_losses(row: Row) -> Iterator[Loss]:
    """What one site lost, sink by sink."""
    where = stage(row.path)
    bias = "batch norm" if row.op == "batch_norm" else "folded" if row.folded else "bias"
    yield Loss(bias, where, row.bias)
    yield Loss("epsilon", where, row.epsilon)
    yield Loss("rule", where, row.by_rule)
    if row.constant:
        yield Loss(constant_sink(row.constant), row.constant, row.constants)
    else:
        yield Loss(UNNOTED.get(row.kind, "rule"), where, row.constants)


def losses(report: Report) -> list[Loss]:
    """Everything that took or added relevance, in execution order; with ``report.result`` it sums to the seed."""
    found = [loss for row in report.rows for loss in row_losses(row)]
    between = report.seed - report.result - sum(loss.amount for loss in found)
    if abs(between) > NEGLIGIBLE * report.scale:  # what sums in another order leaves is no sink
        found.insert(0, Loss("joined", ", ".join(report.joined) or "tokens, masks, padding", between))
    return [loss for loss in found if loss.amount]


def sinks(report: Report) -> list[tuple[str, float]]:
    """(name, share of the seed) of everything that took relevance, the largest first."""
    if not math.isfinite(report.result) or not report.scale:
        return []
    groups: dict[str, list[Loss]] = {}
    for loss in losses(report):
        groups.setdefault(loss.sink, []).append(loss)
    named = [entry for sink, group in groups.items() for entry in by_stage(sink, group)]
    return sorted(((name, amount / report.scale) for name, amount in named), key=lambda entry: -abs(entry[1]))


def by_stage(sink: str, group: Sequence[Loss]) -> list[tuple[str, float]]:
    """(name, amount) of a kind of sink, named for the shortest run of stages that holds most of it."""
    amounts: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for loss in group:
        amounts[loss.stage] = amounts.get(loss.stage, 0.0) + loss.amount
        sizes[loss.stage] = sizes.get(loss.stage, 0.0) + abs(loss.amount)
    words = SINKS[sink]
    if sink in ("constant", "position", "joined"):
        return [(words.format(name), amount) for name, amount in amounts.items()]
    names = list(amounts)
    start, end = shortest_run(list(sizes.values()), NAMED_PART)
    where = names[start] if end - start == 1 else f"{names[start]} to {names[end - 1]}"
    if end - start < len(names):
        where += " and elsewhere"
    return [(words.format(where), sum(amounts.values()))]


def shortest_run(sizes: Sequence[float], part: float) -> tuple[int, int]:
    """The shortest run (start, end) of numbers that sums to a part of all; the largest of equally short ones."""
    enough = part * sum(sizes)
    for length in range(1, len(sizes) + 1):
        runs = [(sum(sizes[k : k + length]), k) for k in range(len(sizes) - length + 1)]
        most, start = max(runs, key=lambda run: run[0])
        if most >= enough:
            return start, start + length
    return 0, len(sizes)


# ------------------------------------------------------------------------------------------------ in words


def percent(share: float) -> str:
    """A share for a reader: two digits that count."""
    size = abs(share)
    if size < 0.001:
        return "0 %" if size == 0 else "less than 0.1 %"
    digits = 1 if size < 0.095 or 0.995 <= size < 0.9995 else 0
    return f"{100 * share:.{digits}f} %".replace("-", "−")


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([part for part in (", ".join(words[:-1]), *words[-1:]) if part])


def taken(report: Report, at_most: int = 2, least: float = 0.01) -> str:
    """``folded batch norms of blocks.0 to blocks.3 took 96 %``: the largest sinks; empty where none counts."""
    told = [(name, share) for name, share in report.sinks if abs(share) >= least][:at_most]
    return listed([f"{name} {'took' if share > 0 else 'added'} {percent(abs(share))}" for name, share in told])


def arrival(report: Report) -> str:
    """How much of the score arrived, and what took the rest; no full stop."""
    if abs(report.seed) < NEGLIGIBLE * report.seed_size:
        return "What was explained sums to 0 (one class against the others), so that no share of it can be counted"
    rest = taken(report)
    return f"{percent(report.conserved)} of the score arrived at the input{'; ' + rest if rest else ''}"


def _nothing(report: Report) -> str:
    took = taken(report, least=NEGLIGIBLE)
    return (
        f"Nothing arrived at the input{': ' + took if took else ''}. The map is empty and says nothing about the input."
    )


def _unknown(report: Report) -> str:
    names = list(dict.fromkeys(report.unknown))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{arrival(report)}. The way led through functions that are not understood ({', '.join(names[:3])}{more}): "
        "the map may be wrong behind them."
    )


def _alike(report: Report) -> str:
    return (
        f"{arrival(report)}. The map is not about this class: the maps of unlike classes are the same picture "
        f"(cosine {report.likeness:.2f}); take another rule."
    )


def _cancelling(report: Report) -> str:
    times = report.size / report.seed_size
    return (
        f"The map is what is left of parts of both signs that sum to {times:,.0f} times the score: do not read single "
        f"pixels, compare areas, or take a rule such as γ. {arrival(report)}."
    )


#: Situations, the first that holds is told: whether it holds, and what to say.
SITUATIONS: tuple[tuple[Callable[[Report], bool], Callable[[Report], str]], ...] = (
    (
        lambda r: not math.isfinite(r.result) or math.isinf(r.size),
        lambda r: "The map has NaN or infinite values and cannot be read.",
    ),
    (
        lambda r: r.seed_size == 0,
        lambda r: "The explained score is 0: there is nothing to explain, and the map is empty.",
    ),
    (lambda r: r.size <= ROUNDING * r.seed_size, _nothing),
    (lambda r: bool(r.unknown), _unknown),
    (lambda r: r.likeness is not None and r.likeness > ALIKE, _alike),
    (lambda r: r.size > CANCELLING * r.seed_size, _cancelling),
    (
        lambda r: abs(r.conserved - 1) <= ADDS_UP,
        lambda r: f"{arrival(r)}. The map adds up: every value is a share of the score.",
    ),
    (lambda r: True, lambda r: f"{arrival(r)}. Relative strengths are meaningful; the sum is not."),
)


def verdict(report: Report) -> str:
    """What a map is worth, in one or two sentences."""
    said = next(say(report) for holds, say in SITUATIONS if holds(report))
    return said[0].upper() + said[1:]
