"""The table of torch functions: name or function -> handler, and kinds that a user's own function can be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import unknown_name
from .call import Call

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


def kind(name: str, *functions: str | Callable[..., Any]) -> Callable[[Handler], Handler]:
    """Decorator: like :func:`handles`, and the handler can be had by the kind's name in :func:`register`."""

    def add(handler: Handler) -> Handler:
        KINDS[name] = handler
        return handles(*functions)(handler)

    return add


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
        how = KINDS[how]
    handles(function)(how)
