"""Recurrent layers and cells: the original call forward, its steps one by one for relevance.

A fused LSTM, GRU or RNN is one autograd node. In the backward pass its steps run again as the torch code below, with
interception on, so that they become sites that rules are bound to:

* The input and the hidden state of a step enter **one** linear site, ``[x, h] @ [W_ih, W_hh]ᵀ + b_ih + b_hh``, with
  one denominator, as in Arras et al. 2017 and 2019. The signal (cell input, new state) and the gates are sites of
  their own.
* Gates are sigmoids, so that by default the signal they multiply takes all.
* ``c = f · c' + i · g`` is a sum: in proportion to contributions (rule ``Norm``).
* Initial states count as inputs. Where the model made them up (zeros), what reaches them ends there, and the account
  shows it among the constants.

Rules for a model's first layer (flat, w², z^B) are about pixels. A recurrent layer, whose linear map reads its own
state too, never counts as such: it takes the composite's rule for dense layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..rules.arithmetic import working
from ..sites.call import Call
from ..sites.linear import linear_node
from ..sites.site import Slot, fill
from ..sites.tag import Tag
from .dense import Dense
from .over_time import FLOWS, Flow, StateRelevance, StepRules, Steps, relevance_over_time, step_rules
from .registry import handles, kind
from .rerun import DecomposedSite, as_tuple
from .sums import AddSite

# ------------------------------------------------------------------------------------------------ steps of a cell


class Weights(NamedTuple):
    """One layer's weights in one direction, as torch stacks them; None where there is none."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    def joint(self, gates: slice) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of some gates as one linear map of ``[x, h]``; ``gates`` in units of the hidden size."""
        d = self.size
        rows = slice(gates.start * d, gates.stop * d)
        w = torch.cat([self.w_ih[rows], self.w_hh[rows]], 1)
        if self.b_ih is None or self.b_hh is None:
            return w, None
        return w, self.b_ih[rows] + self.b_hh[rows]

    @property
    def size(self) -> int:
        """The hidden size d."""
        return (self.w_hh if self.w_hr is None else self.w_hr).shape[1]

    def working(self) -> Weights:
        """The weights in a dtype that relevance can be computed in."""
        return Weights(*(None if w is None else working(w) for w in self))  # type: ignore[arg-type]

    def no_rows(self, function: str) -> list[Tensor]:
        """An input and states without rows."""
        sizes = [self.w_ih.shape[1], self.w_hh.shape[1], *([self.size] if function == "lstm" else [])]
        return [self.w_ih.new_zeros(0, size) for size in sizes]


State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def lstm_step(weights: Weights) -> Step:
    """``c' = f · c + i · g``, ``h' = o · tanh(c')``, projected where there is a projection."""
    (w_if, b_if), (w_g, b_g), (w_o, b_o) = (weights.joint(rows) for rows in (slice(0, 2), slice(2, 3), slice(3, 4)))
    w_gates = torch.cat([w_if, w_o])
    b_gates = None if b_if is None or b_o is None else torch.cat([b_if, b_o])

    def step(x: Tensor, state: State) -> State:
        h, c = state
        xh = torch.cat([x, h], -1)
        i, f, o = torch.sigmoid(F.linear(xh, w_gates, b_gates)).chunk(3, -1)
        g = torch.tanh(F.linear(xh, w_g, b_g))
        c = cell_sum(f * c, i * g)
        h = o * torch.tanh(c)
        return (h if weights.w_hr is None else F.linear(h, weights.w_hr)), c

    return step


def gru_step(weights: Weights) -> Step:
    """``h' = (1 − z) · n + z · h`` with ``n = tanh(W x + b + r · (W' h + b'))``; the gates r and z are sigmoids."""
    w_gates, b_gates = weights.joint(slice(0, 2))
    w_n, _ = weights.joint(slice(2, 3))
    d = weights.size
    b_x, b_h = (None if b is None else b[2 * d :] for b in (weights.b_ih, weights.b_hh))

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        xh = torch.cat([x, h], -1)
        r, z = torch.sigmoid(F.linear(xh, w_gates, b_gates)).chunk(2, -1)
        n = torch.tanh(reset_linear(xh, r, w_n, b_x, b_h))
        return (cell_sum((1 - z) * n, z * h),)

    return step


def rnn_step(activation: Callable[[Tensor], Tensor]) -> Callable[[Weights], Step]:
    """``h' = activation(W x + b + W' h + b')``."""

    def build(weights: Weights) -> Step:
        w, b = weights.joint(slice(0, 1))
        return lambda x, state: (activation(F.linear(torch.cat([x, state[0]], -1), w, b)),)

    return build


#: Name of the torch function -> its step; the cell's name is the same with ``_cell``.
STEPS: dict[str, Callable[[Weights], Step]] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_step(torch.tanh),
    "rnn_relu": rnn_step(torch.relu),
}

# ------------------------------------------------------------------------------------------------ sites inside a step


def cell_sum(kept: Tensor, added: Tensor) -> Tensor:
    """``kept + added``: what a cell keeps of its state and what it adds."""
    if has_torch_function((kept, added)):
        return handle_torch_function(cell_sum, (kept, added), kept, added)
    return kept + added


class CellSum(AddSite):
    """The sum in a cell: a layer of d outputs and 2d inputs.

    A share that is spread goes to all 2d of them, as from the identity-weight layer of Arras et al. 2017.
    """

    def spread(self, amount: Tensor) -> tuple[Tensor, Tensor]:
        share = (amount.sum(-1, keepdim=True) / (2 * amount.shape[-1])).expand(amount.shape)
        return share, share


@handles(cell_sum)
def cell_sum_site(call: Call) -> Any:
    return call.node(CellSum(call, (1.0, 1.0)), list(call.args))


def reset_linear(xh: Tensor, r: Tensor, weight: Tensor, b_x: Tensor | None, b_h: Tensor | None) -> Tensor:
    """``W_x x + b_x + r · (W_h h + b_h)`` with ``xh = [x, h]`` and ``weight = [W_x, W_h]``: a GRU's new state."""
    if has_torch_function((xh, r)):
        return handle_torch_function(reset_linear, (xh, r), xh, r, weight, b_x, b_h)
    h = r.shape[-1]
    x_part, h_part = xh[..., :-h], xh[..., -h:]
    return F.linear(x_part, weight[:, :-h], b_x) + r * F.linear(h_part, weight[:, -h:], b_h)


class ResetLinear(Dense):
    """A GRU's new state as one linear map of ``[x, h]``: the reset gate r is a factor of the weights of h.

    As a gate it gets no relevance. Rules that change weights (γ, w², flat) change those of h before r scales them.
    """

    def __init__(self, call: Call) -> None:
        _, r, weight, b_x, b_h = call.args
        self.r = working(r.detach())
        bias = None if b_x is None else b_x.detach() + r.detach() * b_h.detach()
        super().__init__(call, weight, bias)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        return reset_linear(a, self.r, w, None, None)

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        d = self.r.shape[-1]
        return torch.cat([c @ w[:, :-d], (c * self.r) @ w[:, -d:]], -1)

    def as_output(self, b: Tensor) -> Tensor:
        return b

    def spread(self, amount: Tensor) -> Tensor:
        fan_in = self.own_weight.shape[1]
        return (amount.sum(-1, keepdim=True) / fan_in).expand(*amount.shape[:-1], fan_in)


@handles(reset_linear)
def reset_linear_site(call: Call) -> Any:
    return linear_node(call, ResetLinear(call), call.args[0])


# ------------------------------------------------------------------------------------------------ the fused call


class RecurrentSite(DecomposedSite):
    """A call of a recurrent function; its operands are the input and the initial states, constant or not."""

    kind = "recurrent"
    batches_maps = True

    #: the weights of each layer and direction
    weights: list[Weights]
    #: how many axes each output has
    output_dims: tuple[int, ...]

    def __init__(self, call: Call, operands: Sequence[Tensor]) -> None:
        super().__init__(call)
        #: the name of the torch function without what says that it is one step
        self.function = self.op.removesuffix("_cell")
        self.operands = [
            next((Slot(k) for k, a in enumerate(call.activations) if a is t), None) or t.detach() for t in operands
        ]

    def every_operand(self) -> list[Tensor]:
        return fill(self.operands, list(self.inputs))

    def active_operands(self) -> list[int | None]:
        return [t.index if isinstance(t, Slot) else None for t in self.operands]

    def through_steps(self, R: Any) -> tuple[Tensor | None, ...]:
        """All steps at once where their rules can be batched over time; else one by one, and map by map."""
        given = as_tuple(R)
        several = any(r is not None and r.dim() > dim for r, dim in zip(given, self.output_dims, strict=True))
        rules = self.batched_rules()
        if rules is not None:
            return self.per_activation(self.over_time(rules, given))
        if not several:
            return super().through_steps(R)
        maps = range(next(len(r) for r in given if r is not None))
        found = [super(RecurrentSite, self).through_steps(tuple(r if r is None else r[k] for r in given)) for k in maps]
        return tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*found, strict=True))  # type: ignore[arg-type]

    def batched_rules(self) -> StepRules | None:
        """What a step's sites ask, found by one step of no rows with interception on; None where rules need each."""
        binding = self.binding
        if binding.account is not None or binding.parameters is not None or self.inputs[0].dim() < 2:
            return None
        interceptor = binding.intercept(self)
        with torch.inference_mode(False), torch.enable_grad():
            x, *state = (
                interceptor.tag(t.requires_grad_(True).clone(), Tag(interceptor.token))
                for t in self.weights[0].no_rows(self.function)
            )
            with interceptor:
                STEPS[self.function](self.weights[0])(x, tuple(state))
        return step_rules(interceptor.sites, binding.rule_for)

    def over_time(self, rules: StepRules, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Relevance of every operand from that of the outputs, all steps at once."""
        raise NotImplementedError

    def arrived(self, given: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Relevance of every output, zeros where none arrived, with the axis of several maps where there is one."""
        k, some = next((k, r) for k, r in enumerate(given) if r is not None)
        lead = some.shape[: some.dim() - self.output_dims[k]]
        return [some.new_zeros(*lead, *shape) if r is None else r for r, shape in zip(given, shapes, strict=True)]


class LayersSite(RecurrentSite):
    """``nn.LSTM``, ``nn.GRU``, ``nn.RNN``: layers, directions, time; a padded batch or a packed one."""

    #: Names of the arguments of torch.lstm, torch.gru, ...; packed calls have their own order.
    NAMES: ClassVar[tuple[str, ...]] = tuple(
        "input hx params has_biases num_layers dropout train bidirectional batch_first".split()
    )
    PACKED: ClassVar[tuple[str, ...]] = tuple(
        "data batch_sizes hx params has_biases num_layers dropout train bidirectional".split()
    )

    def __init__(self, call: Call) -> None:
        # only packed calls have the list of weights in the fourth place
        packed = "batch_sizes" in call.kwargs or (len(call.args) > 3 and isinstance(call.args[3], tuple | list))
        names = self.PACKED if packed else self.NAMES
        given = {name: call.arg(k, name) for k, name in enumerate(names)}
        states = given["hx"]
        operands = [
            given["data" if packed else "input"],
            *(states if isinstance(states, tuple | list) else (states,)),
        ]
        super().__init__(call, operands)
        self.batch_sizes = given["batch_sizes"].tolist() if packed else None
        self.batch_first = bool(given.get("batch_first"))
        self.directions = 2 if given["bidirectional"] else 1
        params = [p.detach() for p in given["params"]]
        biased = given["has_biases"]
        per_cell = len(params) // (given["num_layers"] * self.directions)
        self.weights = [_weights(params[k : k + per_cell], biased) for k in range(0, len(params), per_cell)]
        self.output_dims = (2 if packed else 3, *(3,) * (len(operands) - 1))
        if given["train"] and given["dropout"]:
            call.interceptor.note(f"{call.name} at {call.path!r}: its dropout was on; relevance ignores it")

    def expand(self, *operands: Tensor) -> tuple[Tensor, ...]:
        signal, *states = operands
        sizes = self.batch_sizes
        shape: tuple[int, ...] = ()
        if sizes is None:
            if self.batch_first:
                signal = signal.transpose(0, 1)
            shape = tuple(signal.shape[:2])
            steps = list(signal.unbind(0))
        else:
            steps = list(signal.split(sizes))
        finals: list[State] = []
        for layer in range(0, len(self.weights), self.directions):
            outputs = []
            for direction in range(self.directions):
                cell = layer + direction
                step = STEPS[self.function](self.weights[cell])
                made, final = run_direction(step, steps, tuple(s[cell] for s in states), direction == 1)
                outputs.append(made)
                finals.append(final)
            steps = [torch.cat(o, -1) if len(o) > 1 else o[0] for o in zip(*outputs, strict=True)]
        out = torch.stack(steps) if shape else torch.cat(steps)
        out = out.transpose(0, 1) if self.batch_first else out
        return (out, *(torch.stack(s) for s in zip(*finals, strict=True)))

    def over_time(self, rules: StepRules, given: Sequence[Tensor | None]) -> list[Tensor]:
        signal, *states = (working(t) for t in self.every_operand())
        width = self.directions * self.weights[0].w_hh.shape[1]
        R, *R_final = self.arrived(given, [(*signal.shape[:-1], width), *(s.shape for s in states)])
        sizes = self.batch_sizes
        if sizes is None:
            signal, R = (t.transpose(-3, -2) if self.batch_first else t for t in (signal, R))
            sizes = [signal.shape[1]] * signal.shape[0]
            signal, R = signal.flatten(0, 1), R.flatten(-3, -2)
        steps = [Steps(sizes, backwards) for backwards in (False, True)[: self.directions]]
        flows = self.flows(rules, signal, states, steps)
        R_initial: list[StateRelevance] = [()] * len(flows)
        for layer in reversed(range(0, len(flows), self.directions)):
            parts, R = R.chunk(self.directions, -1), torch.zeros(())
            for k, (order, part) in enumerate(zip(steps, parts, strict=True)):
                final = tuple(r[..., layer + k, :, :] for r in R_final)
                R_x, R_initial[layer + k] = relevance_over_time(flows[layer + k], order, part, final)
                R = R_x + R if k else R_x
        if self.batch_sizes is None:
            R = R.unflatten(-2, (len(sizes), -1))
            R = R.transpose(-3, -2) if self.batch_first else R
        return [R, *(torch.stack(of_cells, -3) for of_cells in zip(*R_initial, strict=True))]

    def flows(self, rules: StepRules, x: Tensor, states: Sequence[Tensor], steps: Sequence[Steps]) -> list[Flow]:
        """What relevance is multiplied by in each layer and direction; x is (n, features), states are (cells, B, H)."""
        found: list[Flow] = []
        for layer in range(0, len(self.weights), self.directions):
            cells = [w.working() for w in self.weights[layer : layer + self.directions]]
            initial = [s[layer : layer + self.directions] for s in states]
            out = self.outputs_of(cells, x, initial)
            for cell, order, made, *state in zip(cells, steps, out.chunk(self.directions, -1), *initial, strict=True):
                before = order.before(made, state[0])
                cell_states = order.cell_states(state[-1])
                found.append(FLOWS[self.function](cell, rules, x, before, cell_states))
            x = out
        return found

    def outputs_of(self, cells: Sequence[Weights], x: Tensor, initial: Sequence[Tensor]) -> Tensor:
        """What one layer makes of its input, (n, directions · H), by the fused call."""
        hx = tuple(initial) if len(initial) > 1 else initial[0]
        weights = [w for cell in cells for w in cell if w is not None]
        options = cells[0].b_ih is not None, 1, 0.0, False, len(cells) > 1
        fused = getattr(torch, self.function)
        with torch.no_grad():
            if self.batch_sizes is not None:
                return fused(x, torch.tensor(self.batch_sizes), hx, weights, *options)[0]
            return fused(x.unflatten(0, (-1, initial[0].shape[1])), hx, weights, *options, False)[0].flatten(0, 1)


def _weights(params: Sequence[Tensor], biased: bool) -> Weights:
    """The weights of one cell from torch's flat list: (w_ih, w_hh[, b_ih, b_hh][, w_hr])."""
    n = 4 if biased else 2
    return Weights(*params[:n], **({"w_hr": params[n]} if len(params) > n else {}))


def run_direction(step: Step, inputs: Sequence[Tensor], initial: State, backwards: bool) -> tuple[list[Tensor], State]:
    """Outputs (in order of time) and final state of one layer in one direction.

    Inputs of later times may have fewer rows, as in packed sequences: the last rows are the first to end.
    """
    rows = inputs[-1 if backwards else 0].shape[0]
    state = tuple(s if s.shape[0] == rows else s[:rows] for s in initial)
    ended: list[State] = []
    outputs = []
    for x in reversed(inputs) if backwards else inputs:
        n = x.shape[0]
        if n < rows:
            ended.append(tuple(s[n:] for s in state))
            state = tuple(s[:n] for s in state)
        elif n > rows:
            state = tuple(torch.cat([s, s0[rows:n]]) for s, s0 in zip(state, initial, strict=True))
        rows = n
        state = step(x, state)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return (outputs[::-1] if backwards else outputs), state


class CellSite(RecurrentSite):
    """``nn.LSTMCell``, ``nn.GRUCell``, ``nn.RNNCell``: one step."""

    def __init__(self, call: Call) -> None:
        names = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
        signal, states, *weights = (call.arg(k, name) for k, name in enumerate(names))
        super().__init__(call, [signal, *(states if isinstance(states, tuple | list) else (states,))])
        self.weights = [Weights(*(None if w is None else w.detach() for w in weights))]  # type: ignore[arg-type]
        self.output_dims = (signal.dim(),) * (len(self.operands) - 1)

    def expand(self, *operands: Tensor) -> tuple[Tensor, ...]:
        signal, *states = operands
        return STEPS[self.function](self.weights[0])(signal, tuple(states))

    def over_time(self, rules: StepRules, given: Sequence[Tensor | None]) -> list[Tensor]:
        signal, *states = (working(t) for t in self.every_operand())
        one = Steps(signal.shape[:1], False)
        flow = FLOWS[self.function](self.weights[0].working(), rules, signal, states[0], one.cell_states(states[-1]))
        R_final = tuple(self.arrived(given, [s.shape for s in states]))
        R_x, R_initial = relevance_over_time(flow, one, torch.zeros_like(R_final[0]), R_final)
        return [R_x, *R_initial]


@kind("recurrent layers")
def recurrent_layers(call: Call) -> Any:
    return call.node(LayersSite(call), nonnegative=call.name == "rnn_relu")


@kind("recurrent cell")
def recurrent_cell(call: Call) -> Any:
    return call.node(CellSite(call), nonnegative=call.name == "rnn_relu_cell")
