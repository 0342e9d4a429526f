"""Which method gets which of the options that one call was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, unknown_name
from ..images import is_window
from . import registry

#: options of the call itself, not of a method
FRAME_OPTIONS = ("transform", "geometry", "class_names", "constants")

#: options that may be given whatever the methods: where relevance starts, and where random numbers do
SEEDS = ("seed", "random_seed")


@dataclass
class Plan:
    """One method and the options that are for it."""

    method: str
    options: dict[str, Any]


def plan_methods(methods: Sequence[str], layer_path: Any, options: Mapping[str, Any]) -> list[Plan]:
    """Send every option to the methods that know it; an option that none knows is an error."""
    if not methods:
        raise InputError(f"no method was given: name one or more of {', '.join(registry.list_methods())}.")
    known = {method: registry.option_names(method) for method in methods}
    everything = set().union(*known.values(), FRAME_OPTIONS, SEEDS)
    for name in frameless(options):
        if name not in everything:
            raise unknown_name(f"option of {', '.join(map(repr, methods))}", name, everything)
    return [Plan(m, options_for(m, layer_path, options)) for m in methods]


def frameless(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those of the call itself: ``window=(low, high)`` is the picture's, a number is a method's."""
    windows = {"window"} if is_window(options.get("window")) else set()
    others = registry.with_random_seed(options).items()
    return {name: value for name, value in others if name not in FRAME_OPTIONS and name not in windows}


def options_for(method: str, layer_path: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are for one method."""
    known = registry.option_names(method)
    chosen = {k: v for k, v in frameless(options).items() if k in known}
    if layer_path is not None and "layer_path" in known:
        chosen["layer_path"] = layer_path
    return chosen
