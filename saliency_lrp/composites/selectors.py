"""Selectors: which sites a row of a composite means."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import InputError, unknown_name
from ..rules.base import ANY_KIND

Selector = type | str | Callable[[Any], bool] | tuple


class Where:
    """A named predicate on sites, so that tables print readably.

    ``foresees`` says that it asks what comes after the site, which is not known in the forward pass; ``kinds``, which
    kinds of sites it may select (None: any), and ``whole``, whether it selects all of those.
    """

    def __init__(
        self,
        name: str,
        test: Callable[[Any], bool],
        foresees: bool = False,
        kinds: Iterable[str] | None = None,
        whole: bool = False,
    ) -> None:
        self.name = name
        self.test = test
        self.foresees = foresees
        self.kinds = None if kinds is None else frozenset(kinds)
        self.whole = whole

    def __call__(self, site: Any) -> bool:
        return self.test(site)

    def __repr__(self) -> str:
        return self.name


#: Families of linear sites.
FAMILIES = ("convolution", "dense", "batch_norm")


def check_names(what: str, names: tuple[str, ...], known: Iterable[str]) -> None:
    """Refuse a name that no site can have."""
    for name in names:
        if name not in known:
            raise unknown_name(what, name, known)


OTHER_SPELLINGS = {"normalisation": "normalization"}


def kind(*names: str) -> Where:
    """Sites of these kinds, such as ``"linear"``, ``"sum"``, ``"softmax"``."""
    names = tuple(OTHER_SPELLINGS.get(name, name) for name in names)
    check_names("kind of site", names, ANY_KIND)
    return Where(f"kind({', '.join(names)})", lambda site: site.kind in names, kinds=names, whole=True)


def family(*names: str) -> Where:
    """Linear sites of these families: ``"convolution"``, ``"dense"``, ``"batch_norm"``."""
    check_names("family of linear sites", names, FAMILIES)
    return Where(f"family({', '.join(names)})", lambda site: site.family in names, kinds=["linear"])


def op(*names: str) -> Where:
    """Sites of these torch functions, by canonical name, such as ``"relu"``."""
    return Where(f"op({', '.join(names)})", lambda site: site.op in names)


def any_site() -> Where:
    """Every site."""
    return Where("any_site()", lambda site: True)


def claims(*names: str) -> Where:
    """Sites of functions that the table of facts makes these claims of, such as ``"pooling"``."""
    return Where(f"claims({', '.join(names)})", lambda site: all(name in site.claims for name in names))


def rectifier() -> Where:
    """Sites that are ReLUs, also bounded above, in whatever spelling."""
    return Where("rectifier()", lambda site: site.rectifies)


def first(n: int = 1) -> Where:
    """Linear sites that read the model's input, moved, scaled or shifted at most; with ``n``, the first ``n`` of a way.

    Every branch of a network has its own, and a layer that runs earlier beside them changes nothing.
    """
    return Where(f"first({n})", lambda site: 0 <= site.depth < n, kinds=["linear"])


def until(k: int) -> Where:
    """Linear sites up to and including the ``k``-th (counted from 0) on the way from the model's input."""
    return Where(f"until({k})", lambda site: 0 <= site.depth <= k, kinds=["linear"])


def depth(low: int, high: int | None = None) -> Where:
    """Linear sites with ``low`` to below ``high`` (None: any number of) linear sites between them and the input."""
    if not 0 <= low < (low + 1 if high is None else high):
        raise InputError(f"depth({low!r}, {high!r}): depths are counted from 0 at the model's input and rise")
    return Where(
        f"depth({low}, {'' if high is None else high})",
        lambda site: low <= site.depth and (high is None or site.depth < high),
        kinds=["linear"],
    )


def last(n: int = 1) -> Where:
    """The last ``n`` linear sites in execution order."""
    return Where(
        f"last({n})", lambda site: site.rank >= 0 and site.rank >= site.binding.linear_count - n, True, ["linear"]
    )


def at_output() -> Where:
    """The site that computes the model's output."""
    return Where("at_output()", lambda site: site.is_output, True)


def unmatched(selector: Selector, paths: Iterable[str], modules: Iterable[Any]) -> str:
    """Why a selector can select nothing in a model: its glob or its class, in words; "" where it may.

    Parameters
    ----------
    selector : Selector
        As a row of a composite has it.
    paths : iterable of str
        Paths of the modules that ran.
    modules : iterable of torch.nn.Module
        The model's modules.
    """
    if isinstance(selector, tuple):
        return next(filter(None, (unmatched(s, paths, modules) for s in selector)), "")
    if isinstance(selector, str) and not any(fnmatch.fnmatchcase(path, selector) for path in paths):
        near = difflib.get_close_matches(selector, list(paths), 3)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        return f"no module that ran has a path like {selector!r}{hint}"
    if isinstance(selector, type) and not any(isinstance(m, selector) for m in modules):
        return f"the model has no {selector.__name__}"
    return ""


def selects(selector: Selector, site: Any) -> bool:
    """Whether a selector selects a site."""
    if isinstance(selector, tuple):
        return all(selects(s, site) for s in selector)
    if isinstance(selector, type):
        return isinstance(site.module, selector)
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(site.path, selector)
    return bool(selector(site))


def selects_in_forward(selector: Selector, site: Any) -> bool | None:
    """As :func:`selects`, during the forward pass; None where it depends on what comes later, or cannot be told."""
    if isinstance(selector, tuple):
        answers = [selects_in_forward(s, site) for s in selector]
        return False if False in answers else None if None in answers else True
    if isinstance(selector, type | str):
        return selects(selector, site)
    if not isinstance(selector, Where) or selector.foresees:
        return None
    return selector(site)


def selects_kind(selector: Selector, kind: str) -> bool | None:
    """Whether a selector selects every site of a kind (True) or none (False); None where that depends on the site."""
    if isinstance(selector, tuple):
        return False if any(selects_kind(s, kind) is False for s in selector) else None
    if not isinstance(selector, Where):
        return None
    if selector.kinds is not None and kind not in selector.kinds:
        return False
    return True if selector.whole else None
