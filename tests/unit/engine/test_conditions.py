"""Conditional relevance: only what passes through the chosen parts, whatever goes around them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import EXACT, Net, close, noise, statistics


def conv(before, after):
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


def trace_of(run, *inputs, **parts):
    torch.manual_seed(0)
    return RelevancePropagator(Net(run, out=nn.Linear(4, 3, bias=False), **parts), EXACT).trace(*inputs)


def through(run, mask, x, target=1):
    """What passes a masked output, by plain autograd on a network without biases: c is the score's gradient there."""
    leaf = x.clone().requires_grad_()
    h, score = run(leaf)
    (c,) = torch.autograd.grad(score[:, target].sum(), h, retain_graph=True)
    return (torch.autograd.grad(h, leaf, c * mask)[0] * leaf).detach()


JOINS = {
    "no skip": lambda s, h: s.c2(h).relu(),
    "skip": lambda s, h: (s.c2(h) + h).relu(),
    "scaled skip": lambda s, h: (s.c2(h) - 0.5 * h).relu(),
    "concatenated": lambda s, h: torch.cat([s.c2(h)[:, :2], h[:, 2:]], 1).relu(),
    "product": lambda s, h: s.c2(h) * 2 + h.abs(),
    "read twice": lambda s, h: (y := s.c2(h)).relu() + y + h,
    "in place": lambda s, h: (s.c2(h).add_(h)).relu_(),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", JOINS)
def test_what_goes_around_does_not_pass(name, batch):
    def run(s, x):
        return s.out(JOINS[name](s, s.c1(x).relu()).mean((2, 3)))

    x = noise(batch, 1, 6, 6)
    trace = trace_of(run, x, c1=conv(1, 4), c2=conv(4, 4))
    model = trace.recording.model
    arrived = trace.layer_relevance("c2", 1)
    total = 0
    for k in range(4):
        R = trace.relevance(1, condition={"c2": [k]})
        close(R.sum((1, 2, 3)), arrived[:, k].sum((1, 2)), 1e-6)
        total = total + R

        def steps(leaf):
            kept = []

            def c2(h):
                kept.append(model.c2(h))
                return kept[0].clone()

            model_of_functions = SimpleNamespace(c2=c2)
            score = model.out(JOINS[name](model_of_functions, model.c1(leaf).relu()).mean((2, 3)))
            return kept[0], score

        mask = torch.zeros(4, 1, 1, dtype=x.dtype)
        mask[k] = 1
        close(R, through(steps, mask, x))
    close(total, trace.relevance(1, condition={"c2": range(4)}))


def test_two_modules_on_one_way_are_both_to_be_passed():
    def run(s, x):
        h = s.c1(x).relu()
        return s.out((s.c2(h) + h).relu().mean((2, 3)))

    x = noise(2, 1, 6, 6)
    trace = trace_of(run, x, c1=conv(1, 4), c2=conv(4, 4))
    one = [trace.relevance(1, condition={"c2": [2], "c1": [k]}) for k in range(4)]
    close(sum(one), trace.relevance(1, condition={"c2": [2]}))
    assert torch.equal(one[0], trace.relevance(1, condition={"c1": [0], "c2": [2]}))
    assert not torch.allclose(one[0], trace.relevance(1, condition={"c1": [0]}))


def test_modules_beside_each_other_count_together():
    def run(s, x):
        return s.out((s.a(x) + s.b(x)).relu().mean((2, 3)))

    trace = trace_of(run, noise(1, 1, 6, 6), a=conv(1, 4), b=conv(1, 4))
    both = trace.relevance(1, condition={"a": [0], "b": [1, 3]})
    close(both, trace.relevance(1, condition={"a": [0]}) + trace.relevance(1, condition={"b": [1, 3]}))
    everything = trace.relevance(1, condition={"a": range(4), "b": range(4)})
    close(everything, trace.relevance(1))


def test_modules_beside_each_other_above_another_are_refused():
    def run(s, x):
        h = s.c(x).relu()
        return s.out((s.a(h) + s.b(h)).relu().mean((2, 3)))

    trace = trace_of(run, noise(1, 1, 6, 6), a=conv(4, 4), b=conv(4, 4), c=conv(1, 4))
    with pytest.raises(InputError, match="beside each other"):
        trace.relevance(1, condition={"a": [0], "b": [1], "c": [0]})


def test_a_module_that_runs_twice_masks_both_times_and_is_passed_once_at_least():
    def run(s, x):
        h = s.c1(x).relu()
        y = s.c2(h).relu()
        return s.out((s.c2(y) + y + h).mean((2, 3)))

    x = noise(1, 1, 5, 5)
    trace = trace_of(run, x, c1=conv(1, 4), c2=conv(4, 4))
    full = trace.relevance(1)
    around = x * 0
    leaf = x.clone().requires_grad_()
    h = trace.recording.model.c1(leaf).relu()
    around = (torch.autograd.grad(trace.recording.model.out(h.mean((2, 3)))[:, 1].sum(), leaf)[0] * leaf).detach()
    close(trace.relevance(1, condition={"c2": range(4)}), full - around)


def test_a_layer_and_its_batch_norm():
    def run(s, x):
        h = s.c1(x).relu()
        return s.out((s.n(s.c2(h)) + h).relu().mean((2, 3)))

    torch.manual_seed(0)
    parts = {"c1": conv(1, 4), "c2": conv(4, 4), "n": nn.BatchNorm2d(4)}
    model = statistics(Net(run, out=nn.Linear(4, 3), **parts))
    trace = RelevancePropagator(model, EXACT).trace(noise(2, 1, 6, 6))
    arrived = trace.layer_relevance("n", 1)
    for name in ("n", "c2"):
        for k in range(4):
            below = trace.layer_relevance("c2", 1, which="input", condition={name: [k]})
            bias = model.n.bias - model.n.running_mean * model.n.weight / (model.n.running_var + model.n.eps).sqrt()
            assert torch.isfinite(below).all() and bias.numel() == 4
            assert float(below.abs().sum()) > 0
    close(trace.layer_relevance("n", 1, condition={"n": [1]}), arrived)


def test_layers_above_a_condition_are_as_without():
    def run(s, x):
        h = s.c1(x).relu()
        return s.out((s.c2(h) + h).relu().mean((2, 3)))

    trace = trace_of(run, noise(1, 1, 6, 6), c1=conv(1, 4), c2=conv(4, 4))
    close(trace.layer_relevance("c2", 1, condition={"c1": [0]}), trace.layer_relevance("c2", 1))
    close(trace.layer_relevance("c2", 1, condition={"c2": [0]}), trace.layer_relevance("c2", 1))


def test_masks_and_functions_act_once():
    def run(s, x):
        h = s.c1(x).relu()
        return s.out((s.c2(h) + h).relu().mean((2, 3)))

    trace = trace_of(run, noise(1, 1, 6, 6), c1=conv(1, 4), c2=conv(4, 4))
    all_of_it = trace.relevance(1, condition={"c2": range(4)})
    half = torch.full((4, 1, 1), 0.5, dtype=torch.float64)
    close(trace.relevance(1, condition={"c2": half}), all_of_it / 2)
    close(trace.relevance(1, condition={"c2": lambda R: R / 2}), all_of_it / 2)
    close(
        trace.relevance(1, condition={"c2": [True, False, True, False]}), trace.relevance(1, condition={"c2": [0, 2]})
    )
    close(
        trace.relevance([0, 1], condition={"c2": [1]}),
        torch.stack([trace.relevance(t, condition={"c2": [1]}) for t in (0, 1)]),
    )


@pytest.mark.parametrize(
    "nothing", [[], (), torch.zeros(4, 1, 1, dtype=torch.bool), torch.tensor([], dtype=torch.long)]
)
def test_a_choice_of_nothing_is_an_error(nothing):
    trace = trace_of(lambda s, x: s.out(s.c1(x).relu().mean((2, 3))), noise(1, 1, 6, 6), c1=conv(1, 4))
    with pytest.raises(InputError, match="'c1'.*(no channel|chooses nothing)"):
        trace.relevance(1, condition={"c1": nothing})


@pytest.mark.parametrize("wrong", [[4], [-5], [0.5], "ab"])
def test_channels_that_do_not_exist(wrong):
    trace = trace_of(lambda s, x: s.out(s.c1(x).relu().mean((2, 3))), noise(1, 1, 6, 6), c1=conv(1, 4))
    with pytest.raises(InputError, match="'c1'"):
        trace.relevance(1, condition={"c1": wrong})
