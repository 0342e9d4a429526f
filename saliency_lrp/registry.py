"""Tables of things by name: one kind of table for rules, composites, explainers, metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from fnmatch import fnmatchcase
from typing import TypeVar

from .errors import InputError, UnknownNameError, unknown_name

T = TypeVar("T")


class UnknownKeyError(UnknownNameError, KeyError):
    """A name that is not in the table, also for those who look it up as in any other mapping."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would quote it


class Registry(MutableMapping[str, T]):
    """Names and what they stand for; a name is given once, and a wrong one is answered with the nearest.

    Parameters
    ----------
    what : str
        What the table holds, for its errors: ``"rule"``.

    Examples
    --------
    >>> drinks = Registry("drink")
    >>> drinks.add("tea", 1)
    1
    >>> drinks["tea"]
    1
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def add(self, name: str, value: T) -> T:
        """Give ``value`` a name; returns it.

        Raises
        ------
        InputError
            If something else has that name. The same definition may come again, as when a notebook's cell is run twice.
        """
        known = self._entries.get(name)
        if known is not None and not _is_redefinition(known, value):
            raise InputError(
                f"there is a {self.what} {name!r} already, {known!r}: give another name, or take it out of the table"
            )
        self._entries[name] = value
        return value

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator: make what is defined known by these names."""

        def add(value: T) -> T:
            for name in names:
                self.add(name, value)
            return value

        return add

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell-style pattern."""
        return sorted(name for name in self._entries if fnmatchcase(name, pattern))

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise UnknownKeyError(str(unknown_name(self.what, name, self._entries))) from None

    def __setitem__(self, name: str, value: T) -> None:
        self.add(name, value)

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{len(self)} entries of kind {self.what}: {', '.join(self.names())}>"


def _is_redefinition(known: object, value: object) -> bool:
    """Whether the same lines were run twice, or a notebook replaces what a notebook defined."""
    if known is value:
        return True
    homes = [getattr(v, "__module__", None) for v in (known, value)]
    names = [getattr(v, "__qualname__", None) for v in (known, value)]
    if homes[0] != homes[1] or None in names:
        return False
    return homes[0] == "__main__" or (names[0] == names[1] and "<lambda>" not in str(names[0]))
