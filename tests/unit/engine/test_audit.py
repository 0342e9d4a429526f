"""Nothing unseen: what no interception can see is followed all the same, or named with its module."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch._dynamo.eval_frame

from saliency_lrp.errors import InputError
from tests.helpers.tiny import Block, Net, close, gradient_times_input, lin, noise, traced

# ------------------------------------------------------------------------------------------------ named in the report


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and used

    @torch.jit.script
    def scripted(h: torch.Tensor) -> torch.Tensor:
        return h + 0.5 * h

    @torch.jit.script
    def scripted_in_place(h: torch.Tensor) -> torch.Tensor:
        h.mul_(2.0)
        return h

    @torch.jit.script
    def scripted_into_a_view(h: torch.Tensor) -> torch.Tensor:
        h[:, 0].mul_(3.0)
        return h

    jit_traced = torch.jit.trace(lambda h: h * h.relu(), torch.randn(2, 5, dtype=torch.float64))


def in_a_thread(h):
    found = []
    worker = threading.Thread(target=lambda: found.append(h + h.mean(1, keepdim=True)))
    worker.start()
    worker.join()
    return found[0]


UNSEEN = {
    "script": (scripted, "add, mul"),
    "script, in place": (lambda h: scripted_in_place(h + 0), "mul"),
    "script, in place on a view": (lambda h: scripted_into_a_view(h + 0), "copySlices"),
    "jit.trace": (jit_traced, "mul, relu"),
    "vmap": (lambda h: torch.vmap(lambda v: v * v.sum())(h), "mul"),
    "func.grad": (lambda h: torch.func.grad(lambda v: v.pow(3).sum())(h), "pow"),
    "func.vjp": (lambda h: torch.func.vjp(lambda v: v.pow(3), h)[0], "pow"),
    "func.jvp": (lambda h: torch.func.jvp(lambda v: v.pow(3), (h,), (torch.ones_like(h),))[1], "pow"),
    "thread": (in_a_thread, "add, mean"),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_cannot_be_seen_is_named_with_its_module(name):
    function, operations = UNSEEN[name]
    model = Net(lambda s, x: s.b(s.block(s.a(x).relu())), a=lin(6, 5), block=Block(function), b=lin(5, 3))
    x = noise(3, 6)
    want = model(x).detach()
    trace = traced(model, x)
    assert torch.equal(trace.output, want)
    trace.relevance(0)
    # a call whose arguments were written into unseen may be found not to close, besides
    (warning,) = [w for w in trace.report().warnings if "no call can be seen" in w]
    assert operations in warning or "a graph of TorchScript" in warning
    assert "'block'" in warning
    with pytest.raises(InputError, match="cannot|can be seen"):
        traced(model, x, unknown="error")


def test_unseen_at_the_very_end():
    model, x = Net(lambda s, x: scripted(s.a(x)), a=lin(6, 3)), noise(2, 6)
    trace = traced(model, x)
    trace.relevance(0)
    assert any("add" in w or "a graph of TorchScript" in w for w in trace.report().warnings)


def test_unseen_but_only_moved():
    """A scripted function that only moves values is right as it is, and nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turn = torch.jit.script(lambda_free_turn)
    model, x = Net(lambda s, x: s.b(turn(s.a(x).relu())), a=lin(6, 5), b=lin(5, 3)), noise(3, 6)
    trace = traced(model, x)
    close(trace.relevance(0), gradient_times_input(model, x))
    assert trace.report().warnings == []


def lambda_free_turn(h: torch.Tensor) -> torch.Tensor:
    return h.reshape(h.shape[0], 5, 1).transpose(1, 2).flatten(1)


def test_what_depends_on_parameters_alone_is_not_reported():
    model, x = Net(lambda s, x: s.a(x).relu() @ scripted(s.b.weight).t(), a=lin(6, 5), b=lin(5, 3)), noise(3, 6)
    trace = traced(model, x)
    close(trace.relevance(0), gradient_times_input(model, x))
    assert trace.report().warnings == []


def test_writes_that_are_seen_are_not_reported():
    def run(s, x):
        h = s.a(x).relu()
        buffer = torch.zeros_like(h)
        for k in range(h.shape[1]):
            buffer[:, k] = h[:, k] * 2
            buffer[:, k].mul_(3)
        return s.b(buffer)

    model, x = Net(run, a=lin(6, 5), b=lin(5, 3)), noise(3, 6)
    trace = traced(model, x)
    close(trace.relevance(0), gradient_times_input(model, x))
    assert trace.report().warnings == []


def test_sparse_constants_are_matrices_and_sparse_activations_are_refused():
    mix = torch.tensor([[0.0, 2, 0], [1, 0, 0], [0, 3, 1]], dtype=torch.float64)
    model = Net(lambda s, x: s.b(mix.to_sparse() @ s.a(x).relu()), a=lin(6, 5), b=lin(5, 3))
    x = noise(3, 6)
    trace = traced(model, x)
    close(trace.relevance(lambda out: out[:, 0]), gradient_times_input(model, x))
    for run in (lambda s, x: s.b(s.a(x).to_sparse().to_dense()), lambda s, x: torch.sparse.mm(s.a(x).to_sparse(), x.T)):
        with pytest.raises(InputError, match="sparse"):
            traced(Net(run, a=lin(6, 5), b=lin(5, 3)), x).relevance(0)
