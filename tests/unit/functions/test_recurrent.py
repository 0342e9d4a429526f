"""Recurrent layers and cells: forward untouched, relevance as in an independent step-by-step computation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite, kind
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers import recurrent_reference as reference
from tests.helpers.golden import assert_golden, manifest, tensor

E, D, T, N = 3, 4, 5, 2
F64 = torch.float64

VARIANTS = {
    "lstm": lambda: nn.LSTM(E, D),
    "lstm layers both ways": lambda: nn.LSTM(E, D, num_layers=2, bidirectional=True),
    "lstm batch first": lambda: nn.LSTM(E, D, batch_first=True),
    "lstm no bias": lambda: nn.LSTM(E, D, bias=False),
    "lstm projected": lambda: nn.LSTM(E, D, num_layers=2, proj_size=2, bidirectional=True),
    "lstm projected no bias": lambda: nn.LSTM(E, D, proj_size=2, bias=False),
    "gru": lambda: nn.GRU(E, D),
    "gru layers both ways": lambda: nn.GRU(E, D, num_layers=2, bidirectional=True, batch_first=True),
    "gru no bias": lambda: nn.GRU(E, D, bias=False),
    "rnn tanh": lambda: nn.RNN(E, D, num_layers=3),
    "rnn relu": lambda: nn.RNN(E, D, nonlinearity="relu", bidirectional=True),
}

RULES = {
    "keep": (lambda: composites.get("arras", epsilon=0.01), 0.01, False),
    "distribute": (lambda: composites.get("arras", epsilon=0.01, bias_factor=1.0), 0.01, True),
    "tiny": (lambda: composites.get("arras", epsilon=1e-9), 1e-9, False),
}


class Everything(nn.Module):
    """All that a recurrent layer returns, in one tensor with one row per sequence."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        hx = (states if len(states) > 1 else states[0]) if states else None
        out, final = self.layer(x, hx)
        batched = out if self.layer.batch_first else out.transpose(0, 1)
        finals = final if isinstance(final, tuple) else (final,)
        return torch.cat([batched.flatten(1), *(s.transpose(0, 1).flatten(1) for s in finals)], 1)


def initial_states(layer: nn.RNNBase, n: int = N) -> list[Tensor]:
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or D, D] if isinstance(layer, nn.LSTM) else [D]
    return [torch.randn(cells, n, size, dtype=F64) for size in sizes]


def seeds_of(layer: nn.RNNBase, R: Tensor, steps: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """One row of relevance of :class:`Everything`, taken apart again: of the outputs and of the final states."""
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    size = layer.proj_size or D
    sizes = [steps * size * (2 if layer.bidirectional else 1), cells * size]
    sizes += [cells * D] if isinstance(layer, nn.LSTM) else []
    out, *finals = R.split(sizes)
    return out.reshape(steps, -1).numpy(), [f.reshape(cells, -1).numpy() for f in finals]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_like_the_reference(variant, rule):
    layer = VARIANTS[variant]().double()
    build, epsilon, spread = RULES[rule]
    x = torch.randn((N, T, E) if layer.batch_first else (T, N, E), dtype=F64)
    states = initial_states(layer)
    trace = RelevancePropagator(Everything(layer), build()).trace(x, *states)
    seed = torch.randn(trace.output.shape, dtype=F64)
    R_x, *R_states = trace.relevance(seed=seed)
    by_epsilon = reference.epsilon_rule(epsilon, spread)
    for n in range(N):
        sequence = (x[n] if layer.batch_first else x[:, n]).numpy()
        own = [s[:, n].numpy() for s in states]
        want, want_states, _ = reference.relevance(
            layer, sequence, own, *seeds_of(layer, seed[n], T), by_epsilon, by_epsilon
        )
        assert_golden(R_x[n] if layer.batch_first else R_x[:, n], want, name="x")
        for got, expected in zip(R_states, want_states, strict=True):
            assert_golden(got[:, n], expected, name="initial state")


@pytest.mark.parametrize("variant", ["lstm layers both ways", "gru layers both ways", "rnn tanh", "lstm projected"])
def test_other_rules_on_the_linear_maps(variant):
    """A rule for linear sites reaches those inside the layer; sums keep theirs."""
    layer = VARIANTS[variant]().double()
    x = torch.randn((N, T, E) if layer.batch_first else (T, N, E), dtype=F64)
    states = initial_states(layer)
    trace = RelevancePropagator(Everything(layer), rules.ZPlus()).trace(x, *states)
    seed = torch.randn(trace.output.shape, dtype=F64)
    R_x, *_ = trace.relevance(seed=seed)
    for n in range(N):
        sequence = (x[n] if layer.batch_first else x[:, n]).numpy()
        want, _, _ = reference.relevance(
            layer,
            sequence,
            [s[:, n].numpy() for s in states],
            *seeds_of(layer, seed[n], T),
            reference.z_plus_rule,
            reference.epsilon_rule(1e-12),
        )
        assert_golden(R_x[n] if layer.batch_first else R_x[:, n], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_is_the_original(variant, dtype):
    net = Everything(VARIANTS[variant]()).to(dtype)
    x = torch.randn(N, T, E, dtype=dtype) if net.layer.batch_first else torch.randn(T, N, E, dtype=dtype)
    state = copy.deepcopy(net.state_dict())
    net.train()
    trace = RelevancePropagator(net).trace(x)
    R = trace.relevance(target=1)
    with torch.no_grad():  # with autograd on, torch's float32 LSTM takes another kernel, which differs in the last bit
        assert torch.equal(trace.output, net(x))
    assert R.shape == x.shape and R.dtype == dtype
    assert net.training and net.layer.training and not net.layer._forward_hooks
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_gradient(variant):
    """Under the composite "gradient" a recurrent layer gives its exact gradient, gates included."""
    net = Everything(VARIANTS[variant]().double())
    x = torch.randn((N, T, E) if net.layer.batch_first else (T, N, E), dtype=F64)
    got = RelevancePropagator(net, "gradient").trace(x).relevance(target=3, seed="one")
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(net(leaf)[:, 3].sum(), leaf)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_conserved_exactly_when_spread(variant):
    """What bias and ε take is spread: all relevance arrives at the input and at the initial states."""
    net = Everything(VARIANTS[variant]().double())
    x = torch.randn((N, T, E) if net.layer.batch_first else (T, N, E), dtype=F64)
    trace = RelevancePropagator(net, composites.get("arras", bias_factor=1.0)).trace(x, *initial_states(net.layer))
    seed = torch.randn(trace.output.shape, dtype=F64)
    parts = trace.relevance(seed=seed, account=True)
    assert sum(float(p.sum()) for p in parts) == pytest.approx(float(seed.sum()), rel=1e-10)
    assert trace.report().conserved == pytest.approx(1, rel=1e-10)
    # each sequence keeps its own
    per_item = sum(p.sum((1, 2)) if p is parts[0] and net.layer.batch_first else p.sum((0, 2)) for p in parts)
    torch.testing.assert_close(per_item, seed.sum(1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variant", ["lstm no bias", "lstm projected no bias", "gru no bias"])
def test_without_bias_nothing_is_lost(variant):
    net = Everything(VARIANTS[variant]().double())
    trace = RelevancePropagator(net, composites.get("arras", epsilon=1e-13)).trace(torch.randn(T, N, E, dtype=F64))
    seed = torch.rand(trace.output.shape, dtype=F64)
    # the initial state is zero: without a bias it contributes nothing
    assert float(trace.relevance(seed=seed).sum()) == pytest.approx(float(seed.sum()), rel=1e-8)


def test_account_of_bias_and_epsilon():
    net = Everything(nn.LSTM(E, D, num_layers=2, bidirectional=True).double())
    trace = RelevancePropagator(net, "arras").trace(torch.randn(T, N, E, dtype=F64))
    trace.relevance(target=2)
    report = trace.report()
    (row,) = [r for r in report.rows if r.op == "lstm"]
    assert row.path == "layer" and row.rule == "Unrolled()"
    assert row.bias != 0 and row.epsilon != 0
    assert row.arrived - row.left == pytest.approx(row.bias + row.epsilon, abs=1e-10)
    assert report.absorbed["constants"] == pytest.approx(0, abs=1e-10)


def test_relevance_of_made_up_initial_states_is_reported():
    """With nothing absorbed by bias and ε, what the zero initial state gets shows as gone to constants."""
    net = Everything(nn.LSTM(E, D).double())
    x = torch.randn(T, N, E, dtype=F64)
    composite = composites.get("arras", epsilon=0.1, bias_factor=1.0)
    zeros = torch.zeros(1, N, D, dtype=F64)
    R_x, R_h, R_c = RelevancePropagator(net, composite).trace(x, zeros, zeros).relevance(target=0)
    trace = RelevancePropagator(net, composite).trace(x)
    torch.testing.assert_close(trace.relevance(target=0), R_x)
    absorbed = trace.report().absorbed
    assert float((R_h + R_c).sum()) != 0
    assert absorbed["constants"] == pytest.approx(float((R_h + R_c).sum()), rel=1e-9)
    assert absorbed["bias"] == 0 and absorbed["epsilon"] == 0


# -- packed, unbatched, cells ---------------------------------------------------------------------------------


class LastOfPacked(nn.Module):
    """Pads, packs and reads everything: the padded outputs and the final states."""

    def __init__(self, layer: nn.RNNBase, enforce_sorted: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.enforce_sorted = enforce_sorted

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=self.enforce_sorted)
        out, final = self.layer(packed)
        padded, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        finals = final if isinstance(final, tuple) else (final,)
        return torch.cat([padded.flatten(1), *(s.transpose(0, 1).flatten(1) for s in finals)], 1)


@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [2, 5, 1, 5]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("variant", ["lstm layers both ways", "lstm projected", "gru layers both ways", "rnn relu"])
def test_packed(variant, lengths):
    """Each packed sequence gets what it gets alone, at its own length; padding gets nothing."""
    layer = VARIANTS[variant]().double()
    net = LastOfPacked(layer, enforce_sorted=lengths == sorted(lengths, reverse=True))
    x = torch.randn(len(lengths), T, E, dtype=F64)
    trace = RelevancePropagator(net, composites.get("arras", epsilon=0.01)).trace(x, torch.tensor(lengths))
    assert torch.equal(trace.output, net(x, torch.tensor(lengths)))
    assert not trace.warnings()
    seed = torch.randn(trace.output.shape, dtype=F64)
    R = trace.relevance(seed=seed)
    rule = reference.epsilon_rule(0.01)
    for n, length in enumerate(lengths):
        R_out, R_states = seeds_of(layer, seed[n], T)
        zeros = [np.zeros_like(r) for r in R_states]
        want, _, _ = reference.relevance(layer, x[n, :length].numpy(), zeros, R_out[:length], R_states, rule, rule)
        assert_golden(R[n, :length], want)
        assert not R[n, length:].any()


class PackedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(E, D)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.layer(packed)[1][0]


def test_packed_sequence_as_the_models_input():
    net = PackedInput().double()
    sequences = [torch.randn(n, E, dtype=F64) for n in (4, 2)]
    trace = RelevancePropagator(net, "arras").trace(pack_sequence(sequences))
    R = trace.relevance(target=1)
    packed = pack_sequence(sequences)
    assert R.shape == packed.data.shape
    padded, lengths = pad_packed_sequence(PackedSequence(R, packed.batch_sizes))
    for n, sequence in enumerate(sequences):
        alone = RelevancePropagator(net, "arras").trace(pack_sequence([sequence])).relevance(target=1)
        torch.testing.assert_close(padded[: lengths[n], n], alone)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_unbatched(make):
    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make(E, D)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][-1:]

    net = Unbatched().double()
    x = torch.randn(T, E, dtype=F64)
    trace = RelevancePropagator(net, "arras").trace(x)
    assert torch.equal(trace.output, net(x))
    R_out = np.zeros((T, D))
    R_out[-1, 2] = float(trace.output[0, 2])
    states = [np.zeros((1, D))] * (2 if make is nn.LSTM else 1)
    rule = reference.epsilon_rule(0.001)
    want, _, _ = reference.relevance(net.layer, x.numpy(), states, R_out, states, rule, rule)
    assert_golden(trace.relevance(target=2), want)


class Cells(nn.Module):
    """A layer written as a loop over a cell that has its weights."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        made = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[type(layer)]
        options = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
        self.cell = made(E, D, bias=layer.bias, **options)
        self.cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for x_t in x:
            state = self.cell(x_t, state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("variant", ["lstm", "lstm no bias", "gru", "gru no bias"])
@pytest.mark.parametrize("bias_factor", [0.0, 1.0])
def test_a_loop_over_cells_is_a_layer(variant, bias_factor):
    layer = VARIANTS[variant]()
    check_cells(layer, bias_factor)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_loop_over_elman_cells_is_a_layer(nonlinearity):
    check_cells(nn.RNN(E, D, nonlinearity=nonlinearity), 0.0)


def check_cells(layer: nn.RNNBase, bias_factor: float) -> None:
    composite = composites.get("arras", epsilon=0.01, bias_factor=bias_factor)
    net = Cells(layer.double()).double()
    x = torch.randn(T, N, E, dtype=F64)
    trace = RelevancePropagator(net, composite).trace(x)
    assert torch.equal(trace.output, net(x))
    R = trace.relevance(target=1)
    rule = reference.epsilon_rule(0.01, bool(bias_factor))
    for n in range(N):
        R_state = np.zeros((1, D))
        R_state[0, 1] = float(trace.output[n, 1])
        zeros = [np.zeros((1, D))] * (2 if isinstance(layer, nn.LSTM) else 1)
        want, _, _ = reference.relevance(
            layer, x[:, n].numpy(), zeros, np.zeros((T, D)), [R_state, *zeros[1:]], rule, rule
        )
        assert_golden(R[:, n], want)
    gradient = trace.relevance(target=1, seed="one", composite="gradient")
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0])


# -- what surrounds a layer -----------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Token ids to classes."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, D, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * D, 3)
        self.packed = packed

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.packed:
            x = pack_padded_sequence(x, (tokens != 0).sum(1).cpu(), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(x)
        return self.head(torch.cat([h[0], h[1]], 1))

    def from_vectors(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.head(torch.cat([h[0], h[1]], 1))


@pytest.mark.parametrize("packed", [False, True])
def test_token_ids(packed):
    """One value per token: the sum of the relevance of its vector."""
    net = Classifier(packed).double()
    tokens = torch.tensor([[3, 7, 7, 1], [5, 2, 9, 4]])
    trace = RelevancePropagator(net, "arras").trace(tokens)
    assert torch.equal(trace.output, net(tokens))
    R = trace.relevance(target=(2, 0))
    assert R.shape == tokens.shape

    class FromVectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net.from_vectors(x)

    vectors = net.embedding(tokens).detach()
    want = RelevancePropagator(FromVectors(), "arras").trace(vectors).relevance(target=(2, 0))
    torch.testing.assert_close(R, want.sum(-1))


def test_packed_padding_tokens_get_nothing():
    net = Classifier(packed=True).double()
    R = RelevancePropagator(net, "arras").trace(torch.tensor([[3, 7, 0, 0], [5, 2, 9, 4]])).relevance()
    assert not R[0, 2:].any() and R[0, :2].all() and R[1].all()
    alone = RelevancePropagator(net, "arras").trace(torch.tensor([[3, 7]])).relevance()
    torch.testing.assert_close(R[:1, :2], alone)


def test_layer_relevance():
    """The relevance of output, h_n and c_n, and of the layer's input."""
    net = Classifier().double()
    trace = RelevancePropagator(net, "arras").trace(torch.tensor([[3, 7, 7, 1]]))
    output, h, c = trace.layer_relevance("lstm", target=1)
    assert output.shape == (1, 4, 2 * D) and h.shape == c.shape == (2, 1, D)
    assert not output.any() and not c.any()
    assert_golden(h.reshape(-1), trace.layer_relevance("head", target=1, which="input").reshape(-1))
    x = trace.layer_relevance("lstm", target=1, which="input")
    torch.testing.assert_close(x.sum(-1), trace.relevance(target=1))


def test_several_targets_in_one_batched_pass():
    net = Classifier().double()
    trace = RelevancePropagator(net, "arras").trace(torch.tensor([[3, 7, 7, 1], [1, 2, 3, 4]]))
    for got, target in zip(trace.relevances([0, 1, 2]), range(3), strict=True):
        torch.testing.assert_close(got, trace.relevance(target=target))


def test_half_precision():
    net = Everything(nn.LSTM(E, D)).to(torch.bfloat16)
    x = torch.randn(T, N, E, dtype=torch.bfloat16)
    trace = RelevancePropagator(net, "arras").trace(x)
    R = trace.relevance(target=0)
    assert R.dtype == torch.bfloat16 and torch.isfinite(R).all() and R.any()
    precise = RelevancePropagator(copy.deepcopy(net).float(), "arras").trace(x.float()).relevance(target=0)
    assert (R.float() - precise).abs().max() < 0.1 * precise.abs().max()


class Decoder(nn.Module):
    """The input is the initial state; the steps read a constant."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.layer = kind(E, D)
        self.start = nn.Parameter(torch.randn(T, 1, E))

    def forward(self, context: Tensor) -> Tensor:
        hx = (context[None], context[None]) if isinstance(self.layer, nn.LSTM) else context[None]
        return self.layer(self.start.expand(T, len(context), E), hx)[0][-1]


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_only_the_initial_state_depends_on_the_input(make):
    net = Decoder(make).double()
    context = torch.randn(N, D, dtype=F64)
    trace = RelevancePropagator(net, "arras").trace(context)
    R = trace.relevance(target=0)
    rule = reference.epsilon_rule(0.001)
    for n in range(N):
        R_out = np.zeros((T, D))
        R_out[-1, 0] = float(trace.output[n, 0])
        states = [context[n : n + 1].numpy()] * (2 if make is nn.LSTM else 1)
        zeros = [np.zeros((1, D))] * len(states)
        x = net.start[:, 0].detach().numpy()
        _, want, _ = reference.relevance(net.layer, x, states, R_out, zeros, rule, rule)
        assert_golden(R[n], sum(w[0] for w in want))


def test_rules_by_module_and_position():
    """A row for the layer's class reaches its linear maps; "first" never means a recurrent layer or what follows it."""
    net = Classifier().double()
    trace = RelevancePropagator(net, "epsilon").trace(torch.tensor([[3, 7, 7, 1]]))
    plain = trace.relevance(target=0)
    by_class = trace.relevance(target=0, composite=Composite([(nn.LSTM, rules.ZPlus())]))
    assert not torch.allclose(plain, by_class)
    flat_first = trace.relevance(target=0, composite=Composite([(composites.first(), rules.Flat())]))
    torch.testing.assert_close(flat_first, plain)
    stopped = trace.relevance(target=0, composite=Composite([(kind("recurrent"), rules.Stop())]), account=True)
    assert not stopped.any()
    assert trace.report().absorbed["rule"] == pytest.approx(float(trace.layer_relevance("lstm", target=0)[1].sum()))


def test_parametrised_weights():
    """Weights that are computed (here by weight norm) are constants like any other."""
    layer = nn.LSTM(E, D)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    net = Everything(layer).double()
    plain = Everything(nn.LSTM(E, D)).double()
    weights = {k: getattr(layer, k).detach() for k, _ in plain.layer.named_parameters()}
    plain.layer.load_state_dict(weights)
    x = torch.randn(T, N, E, dtype=F64)
    got = RelevancePropagator(net, "arras").trace(x).relevance(target=0)
    torch.testing.assert_close(got, RelevancePropagator(plain, "arras").trace(x).relevance(target=0))


def test_dropout_between_layers_is_off():
    net = Everything(nn.LSTM(E, D, num_layers=2, dropout=0.9)).double().train()
    x = torch.randn(T, N, E, dtype=F64)
    trace = RelevancePropagator(net, "arras").trace(x)
    torch.testing.assert_close(trace.output, net.eval()(x))
    assert not trace.report().notes


def test_bias_factor_is_checked():
    with pytest.raises(InputError, match="0.5"):
        composites.get("arras", bias_factor=0.5)
    assert repr(composites.get("lrp_lstm", epsilon=0.01)) == repr(composites.get("arras", epsilon=0.01))


# -- the original's numbers -----------------------------------------------------------------------------------


class Sentence(nn.Module):
    """Arras et al.'s model: the last states of both directions feed a layer without bias."""

    def __init__(self, d: int, e: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(e, d, bidirectional=True)
        self.linear = nn.Linear(2 * d, classes, bias=False)

    def forward(self, x: Tensor, reverse: Tensor) -> Tensor:
        """Two copies of a sentence: one is read forwards, the other backwards."""
        forwards = self.lstm(x[:, None])[1][0][0]
        backwards = self.lstm(reverse[:, None])[1][0][1]
        return self.linear(torch.cat([forwards, backwards], 1))


GOLDEN = [c for c in manifest("arras_lstm")["cases"] if c["kind"] == "lstm"]


@pytest.mark.parametrize("case", GOLDEN, ids=[c["id"] for c in GOLDEN])
def test_arras(case):
    """Number by number: both directions, every word and embedding axis, gates and states of every step."""

    def role(name: str) -> Tensor:
        return tensor("arras_lstm", case["npz"], case["arrays"][name])

    made = manifest("arras_lstm")["models"][case["model"]]
    net = Sentence(made["d"], made["e"], made["C"]).double()
    keys = made["params_torch_layout"]
    net.load_state_dict({k: tensor("arras_lstm", case["npz"], v) for k, v in keys.items()}, strict=False)
    assert {k for k in net.state_dict() if k not in keys} == set()
    composite = composites.get("arras", epsilon=case["eps"], bias_factor=case["bias_factor"])
    x = role("x")
    trace = RelevancePropagator(net, composite).trace(x, x.clone())
    assert_golden(trace.output[0], role("scores"))
    Rx, Rx_rev = trace.relevance(target=case["class"])
    assert_golden(Rx, role("Rx"), name="Rx")
    assert_golden(Rx_rev, role("Rx_rev"), name="Rx_rev")
    assert_golden((Rx + Rx_rev).sum(1), role("R_words"), name="R_words")
    absorbed = trace.report().absorbed
    assert absorbed["constants"] == pytest.approx(case["R_rest"], rel=1e-9, abs=1e-11)
    if case["globally_conserving"]:
        assert absorbed["bias"] == absorbed["epsilon"] == 0
        assert float(Rx.sum() + Rx_rev.sum()) + case["R_rest"] == pytest.approx(case["score"], rel=1e-9)
    if "Rh_Left" in case["arrays"]:
        state = trace.layer_relevance("lstm", target=case["class"], call=0)[1][0, 0]
        assert_golden(state, role("Rh_Left")[case["T"] - 1], name="Rh_Left")
