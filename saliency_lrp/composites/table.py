"""Composites by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import InputError, unknown_name
from ..registry import Registry
from ..rules import Rule
from .composite import Composite, defaults_for
from .selectors import kind

COMPOSITES: Registry[Callable[..., Composite]] = Registry("composite")


def register(name: str, build: Callable[..., Composite]) -> None:
    """Give a composite a name; ``build(**options)`` makes it."""
    COMPOSITES.add(name, build)


def list_composites() -> list[str]:
    """Names of all composites, sorted."""
    return COMPOSITES.names()


def get(composite: str | Composite | Rule | None, **options: Any) -> Composite:
    """A composite by name, as it is, or made of one rule for every linear site.

    Parameters
    ----------
    composite : str, Composite or Rule
        A name of :func:`list_composites`, or a composite, or a rule on linear sites.
    **options
        For a name: the options of that composite, such as ``epsilon=1e-6``, ``gamma=0.25`` or ``low=-2, high=2``.
    """
    if composite is None:
        composite = "auto"
    if options and not isinstance(composite, str):
        raise InputError(f"options such as {options} are for composites given by name, not for {composite!r:.80}")
    if isinstance(composite, Composite):
        return composite
    if isinstance(composite, type) and issubclass(composite, Rule):
        composite = composite()
    if isinstance(composite, Rule):
        return Composite([(kind("linear"), composite)], defaults_for(composite), repr(composite))
    build = COMPOSITES[composite]
    known = inspect.signature(build).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in options:
        if name not in known and not takes_any:
            raise unknown_name(f"option of composite {composite!r}", name, known)
    return build(**options)


#: decorator: register a builder under a name
named = COMPOSITES.register
