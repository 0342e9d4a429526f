"""The tensor that relevance starts at, in one recorded forward pass, and that relevance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves

from ..errors import InputError
from ..model.as_found import Calling, as_found
from . import start
from .recording import Recording


class Start(NamedTuple):
    """A tensor inside the graph, and the relevance that starts there, of its shape."""

    at: Tensor | GradientEdge
    relevance: Tensor


def check_alive(recording: Recording) -> None:
    """Refuse a recording that was let go of."""
    if recording.freed:
        raise InputError("an explanation with retain=False was this trace's last; leave retain out to go on")


def choose(recording: Recording, target: Any) -> start.Choice:
    """Which number of each item's scores a target means."""
    found = start.find_scores(recording.raw)
    last = None
    if found.values.dim() == 3:
        last = start.last_positions(recording.arguments.padding_mask(), found.values.shape[1])
    return start.choose(found, target, last)


def at_the_output(recording: Recording, target: Any, seed: Any) -> Start:
    """Where the relevance of a target starts."""
    check_alive(recording)
    start.check_seed(seed)
    out = asked(recording, target) if callable(target) else start.find_scores(recording.raw).values
    if not out.requires_grad:
        raise InputError(
            "the model's output does not depend on its input, as far as can be seen: is it detached, computed in "
            f"inference mode or outside of torch?{recording.notes_on_inputs()}"
        )
    start.check_finite(out.detach())
    given = start.given_seed(seed, out)
    if given is not None:
        return Start(out, given)
    if callable(target):
        return Start(out, start.whole_seed(out.detach(), seed, "a callable target has no classes"))
    return Start(out, start.seed_of(choose(recording, target), seed))


def asked(recording: Recording, target: Callable[[Any], Tensor]) -> Tensor:
    """What a callable target says of the output."""
    try:
        with Calling(), recording.interceptor:
            out = target(recording.raw)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        found = start.find_scores(recording.raw)
        raise InputError(
            f"the callable target could not read the model's output ({type(error).__name__}: {error}). The output "
            f"is a {type(recording.raw).__name__}, whose {found.where} has shape {tuple(found.values.shape)}: say, for "
            f"example, target=lambda out: {start.example(found)}"
        ) from error
    if not isinstance(out, Tensor) or not out.requires_grad:
        raise InputError("the callable target must return a tensor computed from the model's output")
    return out


def inside(recording: Recording, name: str, index: Any, target: Any, seed: Any) -> Start:
    """Where the relevance of neurons of a module starts."""
    check_alive(recording)
    start.check_seed(seed)
    if target is not None:
        raise InputError(f"target={target!r:.80} is of the model's output, at={name!r} of a module: give one of them")
    places = recording.places(name)
    if len(places) != 1 or places[0].edge is None:
        raise InputError(f"module {name!r} has {len(places)} outputs that relevance could start at, not one")
    return Start(places[0].edge, start.hidden_seed(values_of(recording, name), index, seed, name))


def values_of(recording: Recording, name: str) -> Tensor:
    """The output of a module, of its last call, by running the model again."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, result: Any) -> None:
        found[:] = [t.detach().clone() for t in tree_leaves(result) if isinstance(t, Tensor)][:1]

    (module,) = (m for m, path in recording.modules.items() if path == name)
    args, kwargs = recording.arguments.fresh()
    with as_found(recording.model, recording.modules), torch.no_grad():
        module.register_forward_hook(keep)  # which the frame takes off again
        recording.model(*args, **kwargs)
    return found[0]
