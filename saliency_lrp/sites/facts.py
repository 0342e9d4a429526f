"""A row of the table of torch functions, and how it is looked up; the rows are in ``functions/facts.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .tag import PLAIN

if TYPE_CHECKING:
    from .call import Call

Claim = bool | Callable[["Call"], bool]


@dataclass(frozen=True)
class Facts:
    """What one torch function does; the columns are explained in ``functions/facts.py``."""

    kind: str | Callable[[Call], str]
    elementwise: Claim = False
    homogeneous: Claim = False
    zero_to_zero: Claim = False
    never_negative: Claim = False
    keeps_sign: Claim = False
    average: Claim = False
    pooling: Claim = False
    rectifier: Claim = False
    maximum: Claim = False
    winner: Claim = False
    matrix_product: Claim = False
    several: Claim = False
    views: Claim = False
    diagonal: Claim = False
    random: Claim = False
    statistic: Claim = False
    gate: int | Callable[[Call], int] = PLAIN
    shape_only: tuple[tuple[int, str], ...] = ()
    signs: tuple[float, float] = (1.0, 1.0)
    factors: tuple[str, str] = ("input", "other")
    limit: str = ""

    def says(self, claim: str, call: Call) -> bool:
        """Whether a claim holds for a call."""
        value = getattr(self, claim)
        return value(call) if callable(value) else value

    def gate_of(self, call: Call) -> int:
        """The gate level of the result, ``AS_INPUT`` not yet looked up."""
        return self.gate(call) if callable(self.gate) else self.gate

    def kind_of(self, call: Call) -> str:
        """The kind of a call."""
        return self.kind(call) if callable(self.kind) else self.kind


#: Canonical name of a torch function, or a function object that was registered, -> its row.
TABLE: dict[str | Callable[..., Any], Facts] = {}

#: What a function that is in no row claims: nothing.
NOTHING = Facts("unknown")


def rows(kind: str | Callable[[Call], str], names: str, claims: str = "", **more: Any) -> None:
    """Add a row for each of ``names``: its kind, claims that always hold, and others by keyword."""
    always: dict[str, Any] = dict.fromkeys(claims.split(), True)
    facts = Facts(kind, **always, **more)
    for name in names.split():
        if name in TABLE:
            raise InputError(f"{name!r} has a row in the table of torch functions already: {TABLE[name]}")
        TABLE[name] = facts


def of(func: Callable[..., Any], name: str) -> Facts:
    """The row of a function, by itself or by its canonical name."""
    return TABLE.get(func) or TABLE.get(name) or NOTHING


def names(kind: str) -> list[str]:
    """Names of the functions that are always of a kind."""
    return [name for name, facts in TABLE.items() if facts.kind == kind and isinstance(name, str)]
