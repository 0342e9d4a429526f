"""Recurrent layers with all that can be batched over time batched: what is left of a step is one small product.

The states of all steps are known from the forward pass, so that the gates of all steps are one product, and with them
all that relevance is multiplied by. Where gates get nothing, linear maps have ε and sums are in proportion, the
relevance u of a step's state reaches the step before as

    R(h') = h' · ((u · G) W_h)        R(kept) = u · F

with F = what a cell keeps / s(sum), and G = what it adds / s(sum) / s(pre-activation). The share of the inputs of all
steps, x · ((u · G) W_x), is one product at the end. The numbers are those of the steps one by one (``recurrent.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rules import any_site, linear, product
from ..rules.arithmetic import divide, measured_over
from ..sites.site import Site

if TYPE_CHECKING:
    from .recurrent import Weights

# ------------------------------------------------------------------------------------------------ rules of a step


@dataclass(frozen=True)
class Stabilizer:
    """How a denominator is stabilised: as the rule of a site says."""

    epsilon: float
    axes: tuple[int, ...] | None

    @classmethod
    def of(cls, site: Site, rule: Any) -> Stabilizer:
        return cls(rule.epsilon, measured_over(site, rule.relative))

    def divide(self, a: Tensor, z: Tensor) -> Tensor:
        """a / s(z)."""
        return divide(a, z, self.epsilon, self.axes)


@dataclass(frozen=True)
class StepRules:
    """Stabilisers of a step's linear maps and of its sum."""

    linear: Stabilizer
    sum: Stabilizer | None


def step_rules(sites: Sequence[Site], rule_for: Callable[[Site], Any]) -> StepRules | None:
    """What the sites of one step ask, where that can be batched over time; None where a rule needs the steps."""
    found: dict[str, set[Stabilizer]] = {"linear": set(), "sum": set()}
    for site in sites:
        rule = rule_for(site)
        allowed = BATCHED.get(site.kind)
        if allowed is None or type(rule) not in allowed or (site.kind == "gate") != bool(site.gates):
            return None
        if site.kind in found:
            if rule.bias == "distribute" or (rule.bias == "zero" and getattr(site, "has_bias", False)):
                return None
            found[site.kind].add(Stabilizer.of(site, rule))
    if len(found["linear"]) != 1 or len(found["sum"]) > 1:
        return None
    return StepRules(found["linear"].pop(), found["sum"].pop() if found["sum"] else None)


#: Kind of a step's site -> the rules that can be batched over time; subclasses count as rules of their own.
BATCHED: dict[str, tuple[type, ...]] = {
    "linear": (linear.Epsilon, linear.ZeroRule, any_site.Norm),
    "sum": (any_site.Norm,),
    "gate": (product.SignalTakesAll,),
    "activation": (any_site.Pass,),
}

# ------------------------------------------------------------------------------------------------ all steps at once


@dataclass
class Flow:
    """What relevance is multiplied by on its way through the steps of one layer in one direction; rows are (n, ...)."""

    #: of a cell's state: what it keeps, over the sum; None where nothing is kept
    kept: Tensor | None
    #: what is added, over the sum and over its pre-activation; and the same with a factor that the state has alone
    added: Tensor
    added_of_state: Tensor
    x: Tensor
    #: the state that each step read
    h: Tensor
    w_x: Tensor
    w_h: Tensor
    #: a projection of the new state: 1 / s(projected), what is projected, the weight
    projection: tuple[Tensor, Tensor, Tensor] | None = None


def gates(weights: Weights, x: Tensor, h: Tensor, rows: slice) -> Tensor:
    """Pre-activations of some gates, rows in units of the hidden size, of all steps."""
    w, b = weights.joint(rows)
    return F.linear(torch.cat([x, h], -1), w, b)


def lstm_flow(weights: Weights, rules: StepRules, x: Tensor, h: Tensor, cells: CellStates) -> Flow:
    d = weights.size
    i, f, z, o = gates(weights, x, h, slice(0, 4)).chunk(4, -1)
    f, g = torch.sigmoid(f), torch.sigmoid(i).mul_(torch.tanh(z))
    before, c = cells(f, g)
    projection = None
    if weights.w_hr is not None:
        full = torch.sigmoid(o) * torch.tanh(c)
        projected = F.linear(full, weights.w_hr)
        projection = rules.linear.divide(torch.ones_like(projected), projected), full, weights.w_hr
    assert rules.sum is not None
    added = rules.linear.divide(rules.sum.divide(g, c), z)
    new = slice(2 * d, 3 * d)
    kept = rules.sum.divide(f.mul_(before), c)
    return Flow(kept, added, added, x, h, weights.w_ih[new], weights.w_hh[new], projection)


def gru_flow(weights: Weights, rules: StepRules, x: Tensor, h: Tensor, cells: CellStates) -> Flow:
    d = weights.size
    r, z = torch.sigmoid(gates(weights, x, h, slice(0, 2))).chunk(2, -1)
    new = slice(2 * d, 3 * d)
    b_x, b_h = (None if b is None else b[new] for b in (weights.b_ih, weights.b_hh))
    w_x, w_h = weights.w_ih[new], weights.w_hh[new]
    pre = F.linear(x, w_x, b_x) + r * F.linear(h, w_h, b_h)
    kept, g = z * h, (1 - z) * torch.tanh(pre)
    out = kept + g
    assert rules.sum is not None
    added = rules.linear.divide(rules.sum.divide(g, out), pre)
    return Flow(rules.sum.divide(kept, out), added, added * r, x, h, w_x, w_h)


def rnn_flow(weights: Weights, rules: StepRules, x: Tensor, h: Tensor, cells: CellStates) -> Flow:
    pre = gates(weights, x, h, slice(0, 1))
    added = rules.linear.divide(torch.ones_like(pre), pre)
    return Flow(None, added, added, x, h, weights.w_ih, weights.w_hh)


#: Name of the torch function, without ``_cell`` -> what relevance is multiplied by.
FLOWS: dict[str, Callable[..., Flow]] = {
    "lstm": lstm_flow,
    "gru": gru_flow,
    "rnn_tanh": rnn_flow,
    "rnn_relu": rnn_flow,
}

#: f and i · g of all steps -> the cell's state before each step, and after it.
CellStates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


# ------------------------------------------------------------------------------------------------ along time


class Steps:
    """The steps of one direction in the order they are taken; packed sequences give them unlike numbers of rows.

    Values of all times are (..., n, features), rows of one time after those of the other.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each time.
    backwards : bool
        Whether the last time comes first.
    """

    def __init__(self, sizes: Sequence[int], backwards: bool) -> None:
        self.sizes = list(sizes)
        self.backwards = backwards
        self.even = min(self.sizes) == max(self.sizes)

    def of(self, rows: Tensor) -> Sequence[Tensor]:
        """Values of all times, step by step."""
        parts = rows.unflatten(-2, (len(self.sizes), -1)).unbind(-3) if self.even else rows.split(self.sizes, -2)
        return parts[::-1] if self.backwards else parts

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of :meth:`of`."""
        return torch.cat(parts[::-1] if self.backwards else parts, -2)  # type: ignore[arg-type]

    def before(self, after: Tensor, initial: Tensor) -> Tensor:
        """The state that each step read, where ``after`` is what each step made."""
        if self.even:
            n = self.sizes[0]
            return torch.cat([after[n:], initial] if self.backwards else [initial, after[:-n]])
        read, state = [], initial[:0]
        for made in self.of(after):
            read.append(resized(state, initial, len(made)))
            state = made
        return self.joined(read)

    def cell_states(self, initial: Tensor | None) -> CellStates:
        """The one scan of the forward pass: ``c = f · c' + g``."""

        def states(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            assert initial is not None
            after = []
            c, addcmul = initial[:0], torch.addcmul
            for keep, add in zip(self.of(f), self.of(g), strict=True):
                c = addcmul(add, keep, c if len(c) == len(add) else resized(c, initial, len(add)))
                after.append(c)
            made = self.joined(after)
            return self.before(made, initial), made

        return states

    def stretches(self) -> list[tuple[int, int, int]]:
        """Steps of equally many rows, from the last to the first: the first, the last, the rows."""
        order = self.sizes[::-1] if self.backwards else self.sizes
        found, start = [], 0
        for rows, steps in itertools.groupby(order):
            count = len(list(steps))
            found.append((start, start + count - 1, rows))
            start += count
        return found[::-1]


def resized(state: Tensor, initial: Tensor, rows: int) -> Tensor:
    """A state for the next step: sequences that have ended left out, or those that start now put in."""
    return state[:rows] if rows <= len(state) else torch.cat([state, initial[len(state) : rows]])


#: Relevance of the hidden state, and of a cell's state where there is one.
StateRelevance = tuple[Tensor, ...]


def relevance_over_time(
    flow: Flow, steps: Steps, R_out: Tensor, R_final: StateRelevance
) -> tuple[Tensor, StateRelevance]:
    """Relevance of one direction's input, and of its initial states.

    Parameters
    ----------
    flow : Flow
        Of all steps.
    steps : Steps
        Their order.
    R_out : Tensor, shape (..., n, H)
        Relevance of the outputs of all times.
    R_final : tuple of Tensor, shape (..., B, H)
        Relevance of the final states.
    """
    run = (through_projected if flow.projection is not None else through)(flow, steps, R_out)
    R = tuple(r[..., :0, :] for r in R_final)
    ended: list[StateRelevance] = []
    u_of_all: list[Tensor] = []
    for start, end, rows in steps.stretches():
        known = R[0].shape[-2]
        if rows < known:  # sequences whose first step was the one after
            ended.append(tuple(r[..., rows:, :] for r in R))
            R = tuple(r[..., :rows, :] for r in R)
        elif rows > known:  # sequences whose last step is this one
            R = tuple(torch.cat([r, f[..., known:rows, :]], -2) for r, f in zip(R, R_final, strict=True))
        R = run(start, end, R, u_of_all)
    R_initial = tuple(torch.cat(parts, -2) for parts in zip(R, *reversed(ended), strict=True)) if ended else R
    share = (steps.joined(u_of_all[::-1]) * flow.added) @ flow.w_x
    return share.mul_(flow.x), R_initial


#: From the relevance that a stretch of steps (its first, its last) hands on to that which reaches it; notes each u.
Run = Callable[[int, int, StateRelevance, list[Tensor]], StateRelevance]


def through(flow: Flow, steps: Steps, R_out: Tensor) -> Run:
    """The usual step: whatever reaches the hidden state reaches the cell's state as well, u is both."""
    added, states, arriving = (steps.of(t) for t in (flow.added_of_state, flow.h, R_out))
    kept = None if flow.kept is None else steps.of(flow.kept)
    w_h, addcmul = flow.w_h, torch.addcmul
    product = torch.mm if R_out.dim() == 2 else torch.matmul

    def run(start: int, end: int, R: StateRelevance, noted: list[Tensor]) -> StateRelevance:
        u = arriving[end] + R[0] if len(R) == 1 else arriving[end] + R[0] + R[1]
        noted.append(u)
        for k in range(end, start, -1):
            by_product = product(u * added[k], w_h)
            if kept is None:
                u = addcmul(arriving[k - 1], states[k], by_product)
            else:
                u = addcmul(arriving[k - 1], u, kept[k]).addcmul_(states[k], by_product)
            noted.append(u)
        R_h = product(u * added[start], w_h).mul_(states[start])
        if kept is None:
            return (R_h,)
        R_kept = u * kept[start]
        return (R_h.add_(R_kept),) if len(R) == 1 else (R_h, R_kept)

    return run


def through_projected(flow: Flow, steps: Steps, R_out: Tensor) -> Run:
    """A step whose hidden state is projected, so that it is not the cell's state in other words."""
    assert flow.projection is not None and flow.kept is not None
    inverse, full = (steps.of(t) for t in flow.projection[:2])
    w_hr = flow.projection[2]
    kept, added, states, arriving = (steps.of(t) for t in (flow.kept, flow.added_of_state, flow.h, R_out))

    def run(start: int, end: int, R: StateRelevance, noted: list[Tensor]) -> StateRelevance:
        R_h, R_c = R
        for k in range(end, start - 1, -1):
            u = torch.addcmul(R_c, ((arriving[k] + R_h) * inverse[k]) @ w_hr, full[k])
            noted.append(u)
            R_h, R_c = ((u * added[k]) @ flow.w_h).mul_(states[k]), u * kept[k]
        return R_h, R_c

    return run
