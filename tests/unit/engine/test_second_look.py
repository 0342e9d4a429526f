"""What a model computes outside of the graph, and gradients that it takes itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp.errors import InputError
from tests.helpers.tiny import Net, gradient_times_input, lin, noise, traced


def net(run):
    torch.manual_seed(0)
    return Net(run, a=lin(6, 5), b=lin(5, 3), c=lin(6, 3))


# ------------------------------------------------------------------------------------------------ a second look

HIDDEN = {
    "numpy()": lambda s, x: s.b(s.a(torch.from_numpy(np.tanh(x.numpy())))) + s.c(x),
    "asarray": lambda s, x: s.b(s.a(torch.from_numpy(np.asarray(x) * 2))) + s.c(x),
    "detach()": lambda s, x: s.b(s.a(x).relu().detach()) + s.c(x),
    ".data": lambda s, x: s.b(s.a(x).data.relu()) + s.c(x),
    "tolist()": lambda s, x: s.c(x) + s.c(torch.tensor(x.tolist(), dtype=x.dtype)).square(),
    "item()": lambda s, x: s.c(x) * x.sum().item(),
    "float()": lambda s, x: s.c(x) * float(x.mean()),
    "written through .data": lambda s, x: s.b((h := s.a(x).relu(), h.data.mul_(h.detach().sum()))[0]) + s.c(x),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_branch_outside_of_the_graph_is_reported(name):
    model, x = net(HIDDEN[name]), noise(3, 6)
    want = model(x).detach()
    trace = traced(model, x)
    torch.testing.assert_close(trace.output, want, rtol=0, atol=0)
    trace.relevance(0)
    report = trace.report()
    if name in ("detach()", ".data", "written through .data"):  # by these a model says that it is meant
        assert any("out of the graph" in n for n in report.notes)
        return
    assert any("out of the graph" in w for w in report.warnings)
    with pytest.raises(InputError, match="out of the graph"):
        traced(model, x, unknown="error")


def maximum_subtracted(s, x):
    h = s.a(x)
    e = (h - h.max(1, keepdim=True).values.detach()).exp()
    return s.b(e / e.sum(1, keepdim=True)) + s.c(x)


def checked(s, x):
    h = s.a(x).relu()
    if float(h.detach().max()) > 1e6 or h.sum().item() == np.pi or not np.isfinite(h.detach().numpy()).all():
        raise ValueError("too large")
    return s.b(h) + s.c(x)


def printed(s, x):
    s.seen = s.a(x).detach().mean().item()
    return s.b(s.a(x).relu()) + s.c(x)


def shape_only(s, x):
    return s.b(s.a(x).relu()) + s.c(x) + torch.zeros_like(s.c(x).detach())


@pytest.mark.parametrize("run", [maximum_subtracted, checked, printed, shape_only], ids=lambda f: f.__name__)
def test_values_that_are_only_looked_at_are_not(run):
    model, x = net(run), noise(3, 6)
    trace = traced(model, x, unknown="error")
    trace.relevance(0)
    assert not any("out of the graph" in w for w in (*trace.report().warnings, *trace.report().notes))


def test_the_place_that_matters_is_named_and_others_are_not():
    class Part(nn.Module):
        def __init__(self, run):
            super().__init__()
            self.run = run

        def forward(self, h):
            return self.run(h)

    model = net(lambda s, x: s.b(s.hidden(s.harmless(s.a(x)))) + s.c(x))
    model.harmless = Part(lambda h: h + 0 * h.detach().amax())
    model.hidden = Part(lambda h: h * h.detach())
    trace = traced(model, noise(2, 6))
    trace.relevance(0)
    (noted,) = (n for n in trace.report().notes if "out of the graph" in n)
    assert "'hidden'" in noted
    assert "harmless" not in noted


def test_a_second_look_leaves_the_models_states_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = lin(6, 3).double()
            self.register_buffer("runs", torch.zeros(()))
            self.history, self.state = 0, torch.zeros(3).double()

        def forward(self, x):
            self.runs += 1
            self.history += 1
            self.state = self.state + self.a(x).detach().mean(0)
            return self.a(x) * x.sum().item()

    model, x = Counting(), noise(2, 6)
    trace = traced(model, x)
    trace.relevance(0)
    assert trace.report().warnings
    assert (float(model.runs), model.history) == (1, 1)
    torch.testing.assert_close(model.state, model.a(x).detach().mean(0))


def test_random_numbers_are_the_same_in_both_looks():
    model = net(lambda s, x: s.b(F.dropout(s.a(x).relu(), 0.5, training=True)) + 0 * s.c(x).detach())
    trace = traced(model, noise(2, 6))
    trace.relevance(0)
    assert not any("out of the graph" in w for w in (*trace.report().warnings, *trace.report().notes))


# ------------------------------------------------------------------------------------------------ inner gradients


def test_time_training(s, x):
    with torch.enable_grad():
        w = s.a.weight
        (g,) = torch.autograd.grad(F.linear(x.detach(), w).pow(2).mean(), w)
    return s.b(F.relu(F.linear(x, w.detach() - 0.1 * g)))


test_time_training.__test__ = False


def trained_on_the_input(s, x):
    w = s.a.weight
    (g,) = torch.autograd.grad(F.linear(x, w).pow(2).mean(), w)
    return s.b(F.relu(F.linear(x, w - 0.1 * g)))


def energy_and_forces(s, x):
    x = x.requires_grad_()
    energy = s.b(s.a(x).tanh())
    return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


def two_steps(s, x):
    shift = torch.zeros_like(x)
    for _ in range(2):
        point = (x.detach() + shift).requires_grad_()
        shift = shift - 0.1 * torch.autograd.grad(s.a(point).tanh().sum(), point)[0]
    return s.b(s.a(x + shift).relu())


@pytest.mark.parametrize("run", [test_time_training, trained_on_the_input, energy_and_forces, two_steps])
def test_a_gradient_inside_the_forward(run):
    model, x = net(run), noise(3, 6)
    want = model(x.clone())
    want = want[0] if isinstance(want, tuple) else want
    trace = traced(model, x)
    got = trace.output[0] if isinstance(trace.output, tuple) else trace.output
    assert torch.equal(got, want.detach())
    trace.relevance(0)
    assert any("torch.autograd.grad" in w for w in trace.report().warnings)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(InputError, match="takes a gradient itself"):
        traced(model, x, unknown="error")


def test_the_map_with_a_gradient_inside_is_that_of_the_adapted_weight():
    model, x = net(test_time_training), noise(3, 6)
    w = model.a.weight.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(F.linear(x, w).pow(2).mean(), w)
    adapted = (w - 0.1 * g).detach()
    plain = Net(lambda s, x: s.b(F.relu(F.linear(x, adapted))), b=model.b)
    torch.testing.assert_close(traced(model, x).relevance(0), gradient_times_input(plain, x), rtol=1e-8, atol=1e-12)


def forces_alone(s, x):
    x = x.requires_grad_()
    return -torch.autograd.grad(s.b(s.a(x).tanh()).sum(), x, create_graph=True)[0]


def test_forces_are_refused_in_words():
    with pytest.raises(InputError, match=r"torch\.autograd\.grad.*takes a gradient itself"):
        traced(net(forces_alone), noise(3, 6)).relevance(0)


def test_backward_inside_the_forward_is_refused_in_words():
    def run(s, x):
        s.a(x).pow(2).sum().backward()
        return s.b(s.a(x))

    model = net(run)
    with pytest.raises(InputError, match=r"backward\(\)"):
        traced(model, noise(3, 6))
    assert all(p.grad is None for p in model.parameters())
