"""What is explained: classes, tokens at positions, neurons inside, and what starts there."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import LrpExplainer, RelevancePropagator
from saliency_lrp.engine.start import find_scores
from saliency_lrp.errors import InputError
from tests.helpers.tiny import EXACT, Net, gradient_times_input, noise

N, T, V = 2, 5, 7
X = noise(N, T, 3)
#: (N, T, V) scores; every position sees those before it, so that what is explained matters
MIX = torch.tril(noise(T, T, seed=5).abs() + 0.1)


class LanguageModel(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.wrap = nn.Linear(3, 8, bias=False), nn.Linear(8, V, bias=False), wrap
        self.double().eval()

    def forward(self, x, attention_mask=None):
        return self.wrap(self.b(F.relu(MIX @ self.a(x))))


def language_model(wrap=lambda y: y):
    return LanguageModel(wrap)


def expected(x, target):
    """Plain gradient × input of a number of each item's (N, T, V) scores."""
    return gradient_times_input(language_model(), x, target)


def at(positions, tokens):
    return lambda out: out[torch.arange(N), positions, tokens]


def best(position):
    return lambda out: out[torch.arange(N), position].amax(-1)


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
LAST = torch.tensor([2, 4])


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (None, best(-1)),
        (3, at(-1, 3)),
        (-1, at(-1, 6)),
        ((1, 3), at(1, 3)),
        ((-2, -7), at(3, 0)),
        (torch.tensor([3, 5]), at(-1, torch.tensor([3, 5]))),
        ((torch.tensor([0, 4]), 2), at(torch.tensor([0, 4]), 2)),
    ],
)
def test_tokens_at_positions(target, what):
    trace = RelevancePropagator(language_model(), EXACT).trace(X)
    torch.testing.assert_close(trace.relevance(target), expected(X, what))


@pytest.mark.parametrize(
    ("mask", "target", "what"),
    [
        (MASK, None, best(LAST)),
        (MASK, 3, at(LAST, 3)),
        (MASK.bool(), (-2, 3), at(LAST - 1, 3)),
        (MASK, (1, 3), at(1, 3)),
        (MASK.double(), 3, at(LAST, 3)),
        (LEFT, 3, at(-1, 3)),
        (torch.zeros(N, T), 3, at(-1, 3)),
        (torch.ones(N, T, T), 3, at(-1, 3)),
    ],
)
def test_the_last_position_is_the_last_that_is_no_padding(mask, target, what):
    propagator = RelevancePropagator(language_model(), EXACT, constants="attention_mask")
    for trace in (propagator.trace(x=X, attention_mask=mask), propagator.trace(X, mask)):
        torch.testing.assert_close(trace.relevance(target), expected(X, what))


class Output(dict):
    """As Hugging Face returns it: entries are attributes, too."""

    def __getattr__(self, name):
        return self[name]


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda y: {"loss": y.sum(), "logits": y}, "out['logits']"),
        (lambda y: Output(loss=y.sum(), logits=y, hidden=y * 2), "out.logits"),
        (lambda y: (y.sum(), y, y * 2), "out[1]"),
        (lambda y: [None, {"scores": y}], "out[1]['scores']"),
        (lambda y: type("Answer", (), {"logits": y})(), "out.logits"),
    ],
)
def test_scores_are_found_and_hints_are_of_the_very_output(wrap, where):
    model = language_model(wrap)
    assert find_scores(model(X)).where == where
    trace = RelevancePropagator(model, EXACT).trace(X)
    torch.testing.assert_close(trace.relevance(3), expected(X, at(-1, 3)))
    with pytest.raises(InputError) as caught:
        trace.relevance(lambda out: out[:, 3].mean((1, 2)))
    hint = f"{where}[:, -1, token]"
    assert hint in str(caught.value)
    found = eval("lambda out, token: " + hint)  # what the hint says does run
    torch.testing.assert_close(trace.relevance(lambda out: found(out, 3)), expected(X, at(-1, 3)))


def test_hidden_states_are_no_scores():
    trace = RelevancePropagator(language_model(lambda y: Output(last_hidden_state=y)), EXACT).trace(X)
    with pytest.raises(InputError, match=r"lambda out: out.last_hidden_state\[:, 0, unit\]"):
        trace.relevance()


def test_a_list_of_targets_is_one_backward_pass(monkeypatch):
    trace = RelevancePropagator(language_model(), EXACT).trace(X)
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: passes.append(k.get("is_grads_batched")) or grad(*a, **k)
    )
    targets = [0, (1, 3), -1, None, torch.tensor([1, 2])]
    maps = trace.relevance(targets)
    assert maps.shape == (5, *X.shape) and [batched for batched in passes if batched is not None] == [True]
    for R, target in zip(maps, targets, strict=True):
        torch.testing.assert_close(R, trace.relevance(target))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (7, "target 7 is out of range: the model has 7 tokens"),
        (-8, "out of range"),
        ((5, 0), "positions 0 to 4"),
        ((-6, 0), "positions 0 to 4"),
        ((0, 0, 0), r"pair \(position, token\)"),
        ("word", "not a class index"),
        (True, "not a class index"),
        (torch.tensor([0, 1, 2]), "3 targets were given for a batch of 2"),
        (1.5, "not a class index"),
    ],
)
def test_tokens_that_are_not_there(target, words):
    with pytest.raises(InputError, match=words):
        RelevancePropagator(language_model(), EXACT).trace(X).relevance(target)


def test_negative_classes_mean_the_same_to_every_door():
    import saliency_lrp
    from saliency_lrp.explainers import get

    net = Net(lambda s, x: s.a(x.flatten(1)), a=nn.Linear(12, 4, bias=False))
    x = noise(2, 3, 2, 2)
    trace = RelevancePropagator(net, EXACT).trace(x)
    for target, same in ((-1, 3), ((-4, -2), (0, 2)), (torch.tensor([-1, 1]), (3, 1))):
        torch.testing.assert_close(trace.relevance(target), trace.relevance(same), rtol=0, atol=0)
        for method in ("grad_x_input", "lrp", "integrate_grad"):
            a, b = (get(method, net).explain(x, t) for t in (target, same))
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    a, b = (saliency_lrp.get_saliency(net, None, input=x[:1], label=t) for t in (-1, 3))
    assert (a == b).all()


# ------------------------------------------------------------------------------------------------ seeds


def classifier():
    torch.manual_seed(1)
    return Net(lambda s, x: s.b(F.relu(s.a(x))), a=nn.Linear(6, 9, bias=False), b=nn.Linear(9, 4, bias=False))


def test_softmax_is_the_class_against_its_competitors():
    """On a bias-free ReLU network: input × the gradient of the log-probability."""
    net, x = classifier(), noise(3, 6)
    log_probability = lambda out: out.log_softmax(1)[:, 2]  # noqa: E731
    wanted = gradient_times_input(net, x, log_probability)
    torch.testing.assert_close(RelevancePropagator(net, EXACT).trace(x).relevance(2, "softmax"), wanted)
    torch.testing.assert_close(LrpExplainer(net, EXACT, seed="softmax").explain(x, 2), wanted)
    of_tokens = RelevancePropagator(language_model(), EXACT).trace(X).relevance((1, 3), "softmax")
    torch.testing.assert_close(of_tokens, expected(X, lambda out: out.log_softmax(-1)[:, 1, 3]))


def test_softmax_over_several_targets_and_where_it_makes_no_sense():
    net, x = classifier(), noise(3, 6)
    trace = RelevancePropagator(net, EXACT).trace(x)
    several = trace.relevance([0, 1], seed="softmax")
    torch.testing.assert_close(several[1], trace.relevance(1, seed="softmax"))
    with pytest.raises(InputError, match="a callable target has no classes"):
        trace.relevance(lambda out: out[:, 0], seed="softmax")
    with pytest.raises(InputError, match="two classes"):
        RelevancePropagator(nn.Linear(3, 1)).trace(torch.rand(1, 3)).relevance(seed="softmax")


# ------------------------------------------------------------------------------------------------ neurons inside


def conv_net(norm: bool = False):
    torch.manual_seed(2)
    middle = [nn.BatchNorm2d(5)] if norm else []
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), *middle, nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(5, 4, 3, bias=False), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double().eval()  # fmt: skip


IMAGE = noise(2, 3, 6, 6)


def inside(net, name, index):
    """Plain gradient × input of a neuron that a hook shows."""
    seen: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    try:
        leaf = IMAGE.clone().requires_grad_()
        net(leaf * 1)
    finally:
        handle.remove()
    (g,) = torch.autograd.grad(seen[-1][(slice(None), *index)].sum(), leaf)
    return g * leaf.detach()


@pytest.mark.parametrize("name", ["0", "0.0", "1.0", "1", "2", "3"])
def test_any_hidden_neuron(name):
    net = conv_net()
    index = {"2": (5,), "3": (1,)}.get(name, (2, 1, 0))
    trace = RelevancePropagator(net, EXACT).trace(IMAGE)
    before = trace.relevance(1)
    R = trace.relevance(at=name, index=index)
    wanted = inside(net, name, index)
    if name == "3":
        assert wanted.any()  # the last layer has a bias, which takes its share
        wanted = trace.relevance(1)
    torch.testing.assert_close(R, wanted)
    torch.testing.assert_close(LrpExplainer(net, EXACT, at=name, index=index).explain(IMAGE), R)
    torch.testing.assert_close(trace.relevance(1), before, rtol=0, atol=0)


def test_a_channel_all_of_a_module_and_other_seeds():
    net = conv_net()
    trace = RelevancePropagator(net, EXACT).trace(IMAGE)
    torch.testing.assert_close(trace.relevance(at="1.0", index=2), inside(net, "1.0", (2,)))
    torch.testing.assert_close(trace.relevance(at="1.0"), inside(net, "1.0", ()))
    rows = (slice(None), slice(0, 1))
    torch.testing.assert_close(trace.relevance(at="1.0", index=rows), inside(net, "1.0", rows))
    seed = torch.zeros(2, 4, 2, 2, dtype=torch.float64)
    seed[:, 2, 1, 0] = net[:2](IMAGE)[:, 2, 1, 0].detach()
    torch.testing.assert_close(trace.relevance(at="1", seed=seed), inside(net, "1", (2, 1, 0)))
    torch.testing.assert_close(
        trace.relevance(at="1", seed=lambda out: out * (out == out.amax())), trace.relevance(at="1", seed=largest(net))
    )


def largest(net):
    out = net[:2](IMAGE).detach()
    return out * (out == out.amax())


def test_the_account_of_a_hidden_neuron():
    trace = RelevancePropagator(conv_net(), EXACT).trace(IMAGE)
    R = trace.relevance(at="1.0", index=(2, 1, 0))
    report = trace.report()
    assert report.result == pytest.approx(float(R.sum())) and report.conserved == pytest.approx(1)
    assert trace.relevance(at="1.0", index=(2, 1, 0), account=True).equal(R)
    assert trace.report().seed == pytest.approx(report.seed)


def test_a_neuron_of_a_batch_norm():
    net = conv_net(norm=True)
    net[0][1].running_mean.copy_(torch.zeros(5))
    trace = RelevancePropagator(net, EXACT).trace(IMAGE)
    torch.testing.assert_close(trace.relevance(at="0.1", index=(2, 1, 0)), inside(net, "0.1", (2, 1, 0)))
    torch.testing.assert_close(trace.relevance(at="0.0", index=(2, 1, 0)), inside(net, "0.0", (2, 1, 0)))


def test_what_cannot_be_asked_inside():
    net = conv_net()
    trace = RelevancePropagator(net, EXACT).trace(IMAGE)
    for call, words in (
        (lambda: trace.relevance(at="1.1.1"), "module"),
        (lambda: trace.relevance(at="1", index=(9, 0, 0)), r"\(2, 4, 2, 2\)"),
        (lambda: trace.relevance(at="1", index=(0, 0, 0, 0)), r"\(2, 4, 2, 2\)"),
        (lambda: trace.relevance(2, at="1"), "give one of them"),
        (lambda: trace.relevance(index=(0, 0, 0)), "name the module"),
        (lambda: trace.relevance(at="1", seed="softmax"), "sets a class against the others"),
    ):
        with pytest.raises(InputError, match=words):
            call()


# ------------------------------------------------------------------------------------------------ what is left


def holds_graph(value, seen=None) -> bool:
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        return value.grad_fn is not None
    if id(value) in seen or isinstance(value, nn.Module):
        return False
    seen.add(id(value))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(holds_graph(p, seen) for p in (*parts, *vars(value).values())) if hasattr(value, "__dict__") else any(
        holds_graph(p, seen) for p in parts
    )  # fmt: skip


class Cache:
    def __init__(self):
        self.keys = []


def test_the_output_holds_no_graph():
    def run(s, x):
        cache = Cache()
        cache.keys.append(s.a(x))
        return Output(logits=s.b(cache.keys[0]), cache=cache, pair=(cache, {"k": cache.keys[0]}))

    net = Net(run, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert holds_graph(net(noise(2, 3)))
    trace = RelevancePropagator(net, EXACT).trace(noise(2, 3))
    assert type(trace.output) is Output and not holds_graph(trace.output)
    assert not holds_graph(vars(trace.output))
    trace.relevance(0, retain=False)
    assert trace.recording.raw is None and torch.equal(trace.output.logits, net(noise(2, 3)).logits.detach())
    with pytest.raises(InputError, match="retain=False"):
        trace.relevance(1)


def test_a_prefix_in_a_cache_is_reported_and_left_as_it_was():
    def run(s, x, past_key_values=None):
        keys = torch.cat([past_key_values.keys[0], s.a(x)], 1) if past_key_values.keys else s.a(x)
        past_key_values.keys.append(keys)
        return s.b(keys)

    net = Net(run, a=nn.Linear(3, 4), b=nn.Linear(4, V))
    cache = Cache()
    net(X[:, :2], past_key_values=cache)
    before = copy.copy(cache.keys)
    trace = RelevancePropagator(net, EXACT).trace(X[:, 2:], past_key_values=cache)
    assert torch.equal(trace.output, net(X, past_key_values=Cache()).detach())
    assert trace.relevance(3).shape == (N, 3, 3)
    assert "prefix" in " ".join(trace.report().notes)
    assert len(cache.keys) == len(before) and cache.keys[0] is before[0]
