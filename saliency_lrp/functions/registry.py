"""The table of torch functions: name or function -> handler, and kinds that a user's own function can be given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import unknown_name
from ..sites.call import Call
from . import facts
from .facts import Facts

Handler = Callable[[Call], Any]

#: Canonical name of a torch function, or a function object of anybody's -> what to do with a call of it.
HANDLERS: dict[str | Callable[..., Any], Handler] = {}

#: What interceptors have looked up so far; emptied when the table changes.
LOOKED_UP: dict[Callable[..., Any], Any] = {}

#: Kinds by name, for :func:`register`.
KINDS: dict[str, Handler] = {}


def handles(*names: str | Callable[..., Any]) -> Callable[[Handler], Handler]:
    """Decorator: the handler serves calls of these functions (canonical names, or function objects)."""

    def add(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        LOOKED_UP.clear()
        return handler

    return add


def kind(*names: str) -> Callable[[Handler], Handler]:
    """Decorator: the handler serves all functions that the table of facts says are of these kinds."""

    def add(handler: Handler) -> Handler:
        for name in names:
            KINDS[name] = handler
            handles(*facts.names(name))(handler)
        return handler

    return add


def by_call(call: Call) -> Any:
    """A function whose kind depends on its arguments."""
    return KINDS[call.facts.kind_of(call)](call)


handles(*(name for name, row in facts.TABLE.items() if callable(row.kind)))(by_call)


def as_registered(how: str, call: Call) -> Any:
    """A function of which a user has said what kind it is: that is what is known of it."""
    call.facts = Facts(how, homogeneous=True)
    return KINDS[how](call)


def register(function: str | Callable[..., Any], how: str | Handler) -> None:
    """Say how a torch function (or any function that goes through ``__torch_function__``) hands relevance back.

    Parameters
    ----------
    function : callable or str
        The function itself, such as ``torch.fft.rfft``, or the canonical name of a torch function, such as ``"erf"``.
    how : str or callable
        A kind: ``"routing"`` (autograd as it is), ``"sum"`` (in proportion to contributions), ``"activation"``
        (identity), ``"constant"`` (carries no relevance), ...; or a handler ``call -> output``.

    Examples
    --------
    >>> from saliency_lrp import functions
    >>> functions.register("my_library::rotate", "routing")
    """
    if isinstance(how, str):
        if how not in KINDS:
            raise unknown_name("kind of function", how, KINDS)
        # what is constant is looked for by its handler
        how = KINDS[how] if how == "constant" else partial(as_registered, how)
    handles(function)(how)
