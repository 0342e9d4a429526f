"""Composites by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, overload

from ..errors import InputError, unknown_name
from ..registry import Registry
from ..rules import Rule
from .composite import Composite, defaults_for
from .selectors import kind

COMPOSITES: Registry[Callable[..., Composite]] = Registry("composite")


def register(name: str, build: Callable[..., Composite]) -> None:
    """Give a composite a name; ``build(**options)`` makes it."""
    COMPOSITES.add(name, build)


#: groups of composites, those to begin with first; the programs' own names last
GROUPS = {
    "Start here": ("auto", "epsilon", "epsilon_plus", "epsilon_gamma_box", "attnlrp", "cp_lrp"),
    "From papers": (
        "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat", "excitation_backprop",
        "deep_taylor", "deep_taylor_bounded", "arras", "lrp_lstm",
    ),
    "Gradients": ("gradient", "guided_backprop", "deconvnet", "beta_smooth"),
    "Other programs": (),
}  # fmt: skip


class Described(dict[str, str]):
    """Names and a line about each; shows itself as a list."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {line}" for name, line in self.items())


@overload
def list_composites() -> list[str]: ...
@overload
def list_composites(verbose: Literal[False]) -> list[str]: ...
@overload
def list_composites(verbose: Literal[True]) -> Described: ...
def list_composites(verbose: bool = False) -> list[str] | Described:
    """Names of all composites.

    Parameters
    ----------
    verbose : bool
        Also a line about each.

    Returns
    -------
    list of str or Described
        Sorted; or a mapping from name to line, those to begin with first, which shows itself as a list.
    """
    if not verbose:
        return COMPOSITES.names()
    return Described({name: describe(name) for names in grouped().values() for name in names})


def describe(name: str) -> str:
    """The first line about a composite."""
    return (inspect.getdoc(COMPOSITES[name]) or "").partition("\n")[0] or "A composite of your own."


def grouped() -> dict[str, list[str]]:
    """Names of all composites by group; what is in none is by other programs, or one's own."""
    known = COMPOSITES.names()
    rest = [name for name in known if not any(name in names for names in GROUPS.values())]
    return {group: [name for name in names if name in known] or rest for group, names in GROUPS.items()}


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
