"""One explanation of a recorded forward pass: a backward pass, by a composite, from where relevance starts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..composites import Composite
from ..errors import InputError
from ..model.as_found import Calling
from ..report import Account, Report
from ..sites.site import Site
from ..values import holds, is_finite
from .conditions import Gate, down_to_the_last, mask_of
from .nodes import NoCoefficient
from .places import Place
from .recording import Recording
from .reporting import report_of
from .starting import Start, check_alive

#: Why a seed may have no coefficient, whatever the model.
ON_ZERO = "relevance starts at an output that is 0"

#: A factor that is no number takes the relevance of what it multiplied along, also where that is 0.
NOT_FINITE = "a coefficient is no number"


@dataclass
class Explanation:
    """What came of a backward pass.

    Attributes
    ----------
    maps : list
        For each start, relevance of the model's inputs, as the caller gave them.
    at : list of Tensor
        Relevance at places inside the model, of the first start.
    unknown : list of Site
        Functions that relevance reached and that are not in the table.
    report : Report or None
        The account, where it was kept.
    parameters : dict
        Storage of a parameter -> (the part of it that a site used, its relevance), where that was asked for.
    """

    maps: list[Any]
    at: list[Tensor]
    unknown: list[Site]
    report: Report | None = None
    parameters: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


def explain(
    recording: Recording,
    starts: Sequence[Start],
    composite: Composite,
    account: bool = False,
    retain: bool = True,
    places: Sequence[Place] = (),
    condition: Mapping[str, Any] | None = None,
    parameters: bool = False,
) -> Explanation:
    """Hand relevance back from one start, or from several on the same output at once."""
    check_alive(recording)
    binding, several = recording.binding, len(starts) > 1
    leaves = where_relevance_ends(recording)
    edges = [recording.edges(place) for place in places]
    inside = [edge for group in edges for edge in group]
    out: Any = starts[0].at
    seeds = torch.stack([s.relevance for s in starts]) if several else starts[0].relevance
    gates = gates_of(recording, condition or {})
    if recording.bound:
        assert isinstance(out, Tensor), "what is inside the model is asked in the reference form"
        seeds = as_coefficient(seeds, out.detach())
    outputs: list[Any] = [out]
    relevance = [seeds.clone() if seeds.is_inference() else seeds]
    above: list[Tensor | None] = [None] * len(inside)
    handles: list[Any] = []
    with Calling():
        kept = Account() if account else None
        binding.use(composite, None if gates else kept, maps=len(starts))
        try:
            if gates:
                outputs, relevance, above = down_to_the_last(outputs, relevance, gates, inside, handles)
                binding.account = kept
            binding.retain, recording.freed = retain, not retain
            binding.parameters = {} if parameters else None
            ends: list[Any] = [*leaves, *inside]
            values: Sequence[Tensor | None] = [None] * len(ends)
            if outputs:
                values = torch.autograd.grad(
                    outputs,
                    ends,
                    relevance,
                    retain_graph=retain or recording.interceptor.ids.from_floats,
                    allow_unused=True,
                    is_grads_batched=several,
                )
            if recording.bound and holds(lambda: not are_finite(values), unknown=False):
                raise NoCoefficient(NOT_FINITE)
            arrived = values[: len(leaves)]
            found = [at_arguments(recording, arrived, k if several else None) for k in range(len(starts))]
            made = Explanation([recording.arguments.arranged(f) for f in found], [], [*binding.unknown_sites.values()])
            if kept is not None:
                made.report = report_of(recording, kept, seeds, list(found[0].values()), made.unknown, composite)
            made.parameters = binding.parameters or {}
        finally:
            for handle in handles:
                handle.remove()
            binding.release()
    if not retain:
        recording.raw = None
    read = iter([v if v is not None else w for v, w in zip(values[len(leaves) :], above, strict=True)])
    for place, group in zip(places, edges, strict=True):
        parts = [v for v in itertools.islice(read, len(group)) if v is not None]
        made.at.append(functools.reduce(torch.add, parts) if parts else place.no_relevance())
    return made


def are_finite(values: Iterable[Tensor | None]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(is_finite(v) for v in values if v is not None)


def as_coefficient(R: Tensor, out: Tensor) -> Tensor:
    """R / output; an output that is 0 can have no relevance."""
    c = R / out
    if holds(lambda: is_finite(c), unknown=False):
        return c
    zero = out == 0
    if holds((zero & (R != 0)).any, unknown=False):
        raise NoCoefficient(ON_ZERO)
    return torch.where(zero, 0.0, c)


def gates_of(recording: Recording, condition: Mapping[str, Any]) -> list[Gate]:
    """Where conditioned relevance has to pass, and what of it does: every output of every call of the modules."""
    return [
        Gate(name, edge, mask_of(part, place.shape, name))
        for name, part in condition.items()
        for call in range(len(recording.calls.get(name, ())) or 1)
        for place in recording.places(name, "output", call)
        for edge in recording.edges(place)
    ]


def where_relevance_ends(recording: Recording) -> list[Tensor]:
    """At float arguments, and at what integers became."""
    floats = [a.leaf for a in recording.arguments.tensors if a.leaf is not None]
    leaves = [*floats, *(ending.leaf for ending in recording.interceptor.ids.endings)]
    if not leaves:
        raise InputError(
            "the model was given no tensor that relevance could be attributed to (a floating-point tensor, "
            f"integers that it looks something up by, or a picture of integers){recording.notes_on_inputs()}"
        )
    return leaves


def at_arguments(recording: Recording, values: Sequence[Tensor | None], which: int | None) -> dict[int, Tensor]:
    """Relevance by the number of the argument, of one of several maps."""
    values = [v if v is None or which is None else v[which] for v in values]
    ids, tensors = recording.interceptor.ids, recording.arguments.tensors
    floats = {k: a.leaf for k, a in enumerate(tensors) if a.leaf is not None}
    named = ids.explained()
    integers = [k for k, a in enumerate(tensors) if a.name in named]
    found = {k: torch.zeros_like(floats[k]) if v is None else v for k, v in zip(floats, values, strict=False)}
    of_floats = floats if ids.from_floats else {}
    targets = [ids.roots[tensors[k].name] for k in integers] + list(of_floats.values())
    handed = ids.hand_on(list(values[len(floats) :]), targets)
    for k, R in zip([*integers, *of_floats], handed, strict=True):
        if k in found:
            found[k] = found[k] if R is None else found[k] + R
        else:
            found[k] = (torch.zeros_like(ids.roots[tensors[k].name]) if R is None else R).to(ids.result_dtype)
    return found


def by_parameter(recording: Recording, collected: dict[int, list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """Relevance of the model's parameters, by name, from that of the parts of them that sites used."""
    found: dict[str, Tensor] = {}
    for name, p in recording.model.named_parameters():
        if p.layout is not torch.strided:
            continue
        for view, share in collected.get(p.untyped_storage().data_ptr(), ()):
            offset = view.storage_offset() - p.storage_offset()
            if not 0 <= offset < p.numel():
                continue  # another parameter in the same storage
            whole = found.setdefault(name, torch.zeros_like(p, dtype=share.dtype, requires_grad=False))
            # a site may have used part of the parameter, or its transpose
            whole.as_strided(view.shape, view.stride(), offset).add_(share.reshape(view.shape))
    return found
