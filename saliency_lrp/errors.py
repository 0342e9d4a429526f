"""Errors that quote what was given and say how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The model, image, label or option given cannot be explained as it is."""


class ModelCallError(InputError, RuntimeError):
    """The model itself raised an error, most often because it takes input of another shape; that is ``__cause__``."""


class UnknownNameError(InputError):
    """A method, composite, rule or option name that is not in its table."""


def unknown_name(what: str, given: object, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not in a table, with the nearest known one.

    Parameters
    ----------
    what : str
        What was looked up, such as ``"method"``.
    given : object
        The name as the caller wrote it.
    known : iterable of str
        All names of the table.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {what} {given!r}.{hint} Known: {', '.join(names)}.")
