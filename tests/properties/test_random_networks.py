"""Networks of ``random_networks.py``: none has a wrong map without a word, and few have to be reported."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.helpers.random_networks import generate, judge

#: How many networks are tried, in how many tests.
NETWORKS, TESTS = 500, 10


@pytest.mark.parametrize("part", range(TESTS))
def test_no_map_is_wrong_without_a_word(part: int) -> None:
    tally: Counter[str] = Counter()
    for seed in range(part, NETWORKS, TESTS):
        program = generate(seed)
        outcome = judge(program)
        assert outcome.verdict in ("right", "reported"), f"{outcome.verdict}: {outcome.why}\n{program}"
        assert not outcome.needless, f"right, and warned of all the same: {outcome.why}\n{program}"
        tally[outcome.verdict] += 1
    assert tally["reported"] <= 0.15 * sum(tally.values())


def test_a_wrong_map_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge compares: where the surrogate is another network's, nothing is right."""
    program = generate(3)
    assert judge(program).verdict == "right"
    for t in program.inputs.values():
        t.mul_(1.1)  # the surrogate was evaluated before
    assert judge(program).verdict != "right"


def test_a_program_prints_as_source() -> None:
    text = str(generate(3))
    assert "def forward(self, x" in text
    assert "def surrogate(self, x" in text
