"""LRP through recurrent layers in plain NumPy, one sequence and one step at a time, from the papers' formulas.

Independent of torch: forward and relevance of LSTM (Arras et al. 2017), GRU and Elman layers with any number of layers,
both directions and projections. A *rule* turns contributions (outputs, inputs), a bias and the relevance of the outputs
into that of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

Array = np.ndarray
Rule = Callable[[Array, Array, Array], Array]


def epsilon_rule(epsilon: float, spread: bool = False) -> Rule:
    """LRP-ε; with ``spread``, bias and ε go evenly to all inputs."""

    def rule(contributions: Array, bias: Array, R: Array) -> Array:
        z = contributions.sum(1) + bias
        sign = np.where(z < 0, -1.0, 1.0)
        shared = (bias + epsilon * sign) / contributions.shape[1] if spread else np.zeros_like(z)
        return ((contributions + shared[:, None]) / (z + epsilon * sign)[:, None] * R[:, None]).sum(0)

    return rule


def z_plus_rule(contributions: Array, bias: Array, R: Array) -> Array:
    """LRP-z⁺."""
    up = np.maximum(contributions, 0)
    return (up / (up.sum(1) + np.maximum(bias, 0) + 1e-6)[:, None] * R[:, None]).sum(0)


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


class Layer:
    """One layer in one direction."""

    def __init__(self, module: nn.RNNBase, layer: int, reverse: bool) -> None:
        def get(name: str) -> Array | None:
            p = getattr(module, f"{name}_l{layer}{'_reverse' if reverse else ''}", None)
            return None if p is None else p.detach().numpy()

        self.mode = module.mode
        self.d = module.hidden_size
        self.w, self.u, self.v = get("weight_ih"), get("weight_hh"), get("weight_hr")
        zeros = np.zeros(len(self.w))
        self.b = zeros if get("bias_ih") is None else get("bias_ih")
        self.b_h = zeros if get("bias_hh") is None else get("bias_hh")

    def gate(self, k: int, x: Array, h: Array) -> Array:
        """Pre-activation of the k-th block of rows."""
        rows = slice(k * self.d, (k + 1) * self.d)
        return self.w[rows] @ x + self.b[rows] + self.u[rows] @ h + self.b_h[rows]

    def step(self, x: Array, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], dict]:
        """New state, and what the relevance of this step needs."""
        h = state[0]
        r, kept, new = 1.0, None, None
        if self.mode == "LSTM":
            i, f, o = (sigmoid(self.gate(k, x, h)) for k in (0, 1, 3))
            block, kept, new = 2, f * state[1], i * np.tanh(self.gate(2, x, h))
            hidden = o * np.tanh(kept + new)
            after = (hidden if self.v is None else self.v @ hidden, kept + new)
        elif self.mode == "GRU":
            r, z = sigmoid(self.gate(0, x, h)), sigmoid(self.gate(1, x, h))
            block = 2
            rows = slice(2 * self.d, 3 * self.d)
            pre = self.w[rows] @ x + self.b[rows] + r * (self.u[rows] @ h + self.b_h[rows])
            kept, new = z * h, (1 - z) * np.tanh(pre)
            after = (kept + new,)
        else:
            block = 0
            pre = self.gate(0, x, h)
            after = (np.tanh(pre) if self.mode == "RNN_TANH" else np.maximum(pre, 0),)
        rows = slice(block * self.d, (block + 1) * self.d)
        contributions = np.concatenate([self.w[rows] * x, (self.u[rows] * h) * np.reshape(r, (-1, 1))], 1)
        record = {
            "contributions": contributions,
            "bias": self.b[rows] + r * self.b_h[rows],
            "sum": (kept, new),
            "projected": None if self.v is None else self.v * hidden,
        }
        return after, record

    def hand_back(
        self, record: dict, R: tuple[Array, ...], rule: Rule, sum_rule: Rule
    ) -> tuple[Array, tuple[Array, ...]]:
        """Relevance of a step's input and of the state before it."""
        R_h = R[0]
        if record["projected"] is not None:
            R_h = rule(record["projected"], np.zeros(len(R_h)), R_h)
        kept, new = record["sum"]
        R_kept = None
        if kept is not None:
            R_sum = R_h + R[1] if self.mode == "LSTM" else R_h
            # an identity-weight layer of d outputs and 2d inputs
            both = sum_rule(np.concatenate([np.diag(kept), np.diag(new)], 1), np.zeros(self.d), R_sum)
            R_kept, R_h = both[: self.d], both[self.d :]
        R_xh = rule(record["contributions"], record["bias"], R_h)
        n = self.w.shape[1]
        R_x, R_before = R_xh[:n], R_xh[n:]
        if self.mode == "LSTM":
            return R_x, (R_before, R_kept)
        return R_x, (R_before if R_kept is None else R_before + R_kept,)


def relevance(
    module: nn.RNNBase,
    x: Array,
    states: list[Array],
    R_out: Array,
    R_states: list[Array],
    rule: Rule,
    sum_rule: Rule,
) -> tuple[Array, list[Array], Array]:
    """Relevance of one sequence ``x`` (T, e) and of the initial states (layers·directions, d); and the output."""
    directions = 2 if module.bidirectional else 1
    runs, inputs = [], x
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            cell = Layer(module, layer, direction == 1)
            state = tuple(s[layer * directions + direction] for s in states)
            order = range(len(x))[::-1] if direction else range(len(x))
            records, made = {}, {}
            for t in order:
                state, records[t] = cell.step(inputs[t], state)
                made[t] = state[0]
            runs.append((cell, order, records))
            outputs.append(np.stack([made[t] for t in range(len(x))]))
        inputs = np.concatenate(outputs, 1)
    output = inputs
    R_first = [np.zeros_like(s) for s in states]
    for layer in reversed(range(module.num_layers)):
        R_in = 0
        for direction in range(directions):
            k = layer * directions + direction
            cell, order, records = runs[k]
            size = R_out.shape[1] // directions
            R_own = R_out[:, direction * size : (direction + 1) * size]
            R = tuple(r[k] for r in R_states)
            R_x = {}
            for t in reversed(order):
                R_x[t], R = cell.hand_back(records[t], (R[0] + R_own[t], *R[1:]), rule, sum_rule)
            for first, r in zip(R_first, R, strict=True):
                first[k] = r
            R_in = R_in + np.stack([R_x[t] for t in range(len(x))])
        R_out = R_in
    return R_out, R_first, output
