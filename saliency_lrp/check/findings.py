"""The questions that a check asks of a map; each gives a finding, or None where it cannot be asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..explainers.plan import Plan
from ..explainers.registry import LRP_PREFIX
from ..verdict import percent
from .deletion import delete
from .head import head_drawn_anew
from .subject import Subject, TooDear, cosine

#: From which share of other places on the strongest tenth counts as what the model looks at.
BEATEN = 0.6
#: Below which cosine the map is not the one that the model gives now.
SAME = 0.98
#: From which cosine on a map that should differ does not.
UNCHANGED = 0.93
#: Maps of two rules are compared as smoothed by windows of such a part of each side.
COARSE = 13
#: How many new heads are drawn.
HEADS = 3
#: From which cosine on the smoothed maps of two rules show the same.
AGREES = 0.5

#: The second rule for a first one, and for every other.
SECOND_RULE = {"epsilon_gamma_box": "epsilon_plus", "epsilon_plus": "epsilon_gamma_box"}
USUAL_SECOND_RULE = "epsilon_gamma_box"


class Finding(NamedTuple):
    """One answer.

    Attributes
    ----------
    name : str
    value : float
        What was measured.
    text : str
        The same for a reader.
    holds : bool
        Whether it speaks for the map.
    says : str
        Half a sentence for the verdict.
    grave : bool
        Whether a map that fails here should not be used at all.
    map : Tensor or None
        The map that was compared with.
    """

    name: str
    value: float
    text: str
    holds: bool
    says: str
    grave: bool = False
    map: Tensor | None = None


def made_again(subject: Subject, random_seed: int) -> Finding | None:
    """The map the model gives now: another one belongs to other weights, another input or another class."""
    if not subject.repeatable:
        return None
    again = subject.explain()
    value = cosine(subject.relevance, again)
    holds = value >= SAME
    says = "made again it is the same" if holds else f"it is not what the model gives now (cosine {value:.2f})"
    return Finding("made again", value, f"cosine {value:.2f}", holds, says, grave=True, map=again)


def deletion(subject: Subject, random_seed: int) -> Finding:
    """The strongest tenth blurred away, against the same shape elsewhere."""
    found = delete(subject, random_seed)
    value, numbers = found.beaten, (found.whole, found.without, float(found.elsewhere.mean()))
    if subject.has_classes:
        what, (whole, without, mean) = "probability", (percent(math.exp(number)) for number in numbers)
    else:
        what, (whole, without, mean) = "score", (f"{number:.3g}" for number in numbers)
    text = f"the {what} goes from {whole} to {without} without the strongest tenth, to {mean} without as much elsewhere"
    holds = value >= BEATEN
    says = (
        f"its strongest tenth matters more than {percent(value)} of other places"
        if holds
        else f"the model hardly misses its strongest tenth (it matters more than {percent(value)} of other places)"
    )
    return Finding("deletion", value, text, holds, says)


def another_class(subject: Subject, random_seed: int) -> Finding | None:
    """The map of a class in the middle of the model's order, or of the other of two."""
    if subject.answer is None or len(subject.answer.scores) < 2:
        return None
    order = [k for k in subject.answer.scores.argsort(descending=True).tolist() if k != subject.answer.target]
    other = order[len(order) // 2]
    of_other = subject.explain(label=subject.label.new_tensor([other]))
    value = cosine(subject.relevance, of_other)
    alike = abs(value) if len(order) > 1 else value  # of two classes, one is what the other is not
    name = subject.answer.name(other)
    holds = alike <= UNCHANGED
    says = "it is another for another class" if holds else f"it is the same for another class ({name})"
    return Finding(f"another class: {name}", value, f"cosine {value:.2f}", holds, says, map=of_other)


def random_head(subject: Subject, random_seed: int) -> Finding | None:
    """The map once the last layer's weights are drawn anew, a few times: one new head may happen to be like the old."""
    maps = []
    for k in range(HEADS):
        changed = head_drawn_anew(subject.model, subject.input, random_seed + k)
        if changed is None:
            return None
        maps.append(subject.explain(changed))
    value = sum(abs(cosine(subject.relevance, other)) for other in maps) / HEADS
    holds = value <= UNCHANGED
    says = (
        "it changes with the model's head"
        if holds
        else "it stays when the model's last layer is drawn anew, so that it shows the picture more than the decision"
    )
    return Finding("head drawn anew", value, f"|cosine| {value:.2f} on average of {HEADS}", holds, says, map=maps[0])


def second_rule(subject: Subject, random_seed: int) -> Finding:
    """What another LRP rule shows, both maps smoothed."""
    plan = Plan(LRP_PREFIX + second_rule_for(subject.plan), {})
    other = subject.explain(plan=plan)
    value = cosine(subject.flat(subject.relevance, COARSE), subject.flat(other, COARSE))
    holds = value >= AGREES
    says = "a second rule shows the same" if holds else f"a second rule ({plan.method}) shows something else"
    return Finding(f"second rule: {plan.method}", value, f"cosine {value:.2f}", holds, says, map=other)


def second_rule_for(plan: Plan) -> str:
    """A composite other than the first, made of other rules."""
    first = plan.options.get("composite", plan.method.removeprefix(LRP_PREFIX))
    return SECOND_RULE.get(getattr(first, "name", first), USUAL_SECOND_RULE)


QUESTIONS: tuple[Callable[[Subject, int], Finding | None], ...] = (
    made_again,
    deletion,
    second_rule,
    another_class,
    random_head,
)


def ask_all(subject: Subject, random_seed: int) -> tuple[list[Finding], list[str]]:
    """Findings, and which questions would have taken too many passes."""
    findings, left_out = [], []
    for question in QUESTIONS:
        try:
            found = question(subject, random_seed)
        except TooDear as cost:
            left_out.append(f"{question.__name__.replace('_', ' ')}: one more map takes {cost} passes")
            continue
        if found is not None:
            findings.append(found)
    return findings, left_out
