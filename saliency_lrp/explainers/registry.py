"""The table of saliency methods: names to explainer classes and their options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..errors import unknown_name
from ..registry import Registry

#: prefix of the methods that are LRP with a named composite, ``lrp:epsilon_plus``
LRP_PREFIX = "lrp:"

#: what is shown side by side unless told otherwise: each costs a few passes at most
DEFAULT_METHODS = ("lrp", "gradcam", "grad_x_input")

# Modules that register explainers when imported; importing them is cheap (captum comes later).
_MODULES = ("gradient", "perturbation", "cam", "deeplift", "combined")

#: Saliency methods by name. A class is called as ``cls(model, **options)`` and has ``explain(inp, ind=None,
#: raw_inp=None) -> Tensor``, which returns a tensor like ``inp`` and leaves the model as it was.
EXPLAINERS: Registry[type] = Registry("method")


def register_explainer(*names: str) -> Callable[[type], type]:
    """Class decorator that makes a saliency method known by ``names``."""
    return EXPLAINERS.register(*names)


def _load() -> None:
    for name in _MODULES:
        importlib.import_module(f"{__package__}.{name}")


def _composite_names() -> list[str]:
    from ..composites import list_composites

    return list_composites()


def list_methods(pattern: str = "*") -> list[str]:
    """Names of all saliency methods, ``lrp:<composite>`` for every composite included.

    Parameters
    ----------
    pattern : str
        A shell-style pattern, such as ``"lrp*"``.
    """
    _load()
    names = [*EXPLAINERS, *(LRP_PREFIX + name for name in _composite_names())]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def find(name: str) -> tuple[type, dict[str, Any]]:
    """The class behind a method name, and the options that the name itself fixes.

    Raises
    ------
    UnknownNameError
        With the nearest known name.
    """
    _load()
    if name in EXPLAINERS:
        return EXPLAINERS[name], {}
    if isinstance(name, str) and name.startswith(LRP_PREFIX) and name in list_methods("lrp:*"):
        return EXPLAINERS["lrp"], {"composite": name.removeprefix(LRP_PREFIX)}
    raise unknown_name("method", name, list_methods())


def option_names(name: str) -> set[str]:
    """Names of the options that a method takes."""
    cls, fixed = find(name)
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)} - fixed.keys()


def is_signed(name: str) -> bool:
    """Whether the maps of a method have a sign: for and against, not only how much."""
    return bool(getattr(find(name)[0], "signed", True))


def with_random_seed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which ``seed`` is what LRP starts from: a number is the older name of ``random_seed``."""
    if isinstance(options.get("seed"), int):
        return {"random_seed": options["seed"], **{k: v for k, v in options.items() if k != "seed"}}
    return dict(options)


def get(name: str, model: nn.Module, **options: Any) -> Any:
    """Build the explainer `name` for `model`.

    Raises
    ------
    UnknownNameError
        For a method or an option that does not exist, with the nearest one that does.
    """
    cls, fixed = find(name)
    options = with_random_seed(options)
    for option in options:
        if option not in option_names(name):
            raise unknown_name(f"option of method {name!r}", option, option_names(name))
    return cls(model, **fixed, **options)
