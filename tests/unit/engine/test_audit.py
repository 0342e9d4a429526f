"""Nothing unseen: what no interception can see is followed all the same, or named with its module."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch._dynamo.eval_frame
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from saliency_lrp.as_written import AsWritten
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import EXACT, Net, gradient_times_input, noise


def lin(before, after):
    return nn.Linear(before, after, bias=False)


def traced(model, x, unknown="warn"):
    return RelevancePropagator(model, EXACT, unknown).trace(x)


def close(got, want, tolerance=1e-8):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


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


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


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


# ------------------------------------------------------------------------------------------------ run as it was written


def layers():
    torch.manual_seed(0)
    return nn.Sequential(lin(6, 5), nn.Sequential(nn.ReLU(), lin(5, 5), nn.ReLU()), lin(5, 3)).double().eval()


def compiled_whole():
    model = layers()
    model.compile(backend="eager")
    return model


def compiled_part():
    model = layers()
    model[1] = torch.compile(model[1], backend="eager")
    return model


def compiled_by_its_own_method():
    model = layers()
    model[1].compile(backend="eager")
    return model


def compiled_function():
    model = layers()
    model[1] = Block(torch.compile(model[1].forward, backend="eager"))
    return model


@pytest.mark.parametrize("make", [compiled_whole, compiled_part, compiled_by_its_own_method, compiled_function])
def test_compiled_models_are_explained_by_their_own_code(make):
    x = noise(3, 6)
    trace = traced(make(), x)
    close(trace.relevance(0), gradient_times_input(layers(), x))
    assert trace.report().warnings == []
    assert sum(site.kind == "linear" for site in trace.sites) == 3


def test_compiling_goes_on_afterwards():
    runs = []

    def backend(graph, inputs):
        runs.append(graph)
        return graph.forward

    class Compiled(nn.Module):  # a class of its own, whose code nothing has compiled yet
        def __init__(self):
            super().__init__()
            self.a = lin(6, 3).double()

        def forward(self, x):
            return self.a(x).relu()

    model, x = Compiled(), noise(3, 6)
    model.compile(backend=backend)
    traced(model, x).relevance(0)
    assert not runs
    model(x)
    assert runs


def test_explanations_that_overlap_leave_the_compilers_stance_alone():
    stance = torch._dynamo.eval_frame._stance
    first, second = AsWritten(), AsWritten()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as a thread that began earlier and ends earlier
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance == stance


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_checkpointed_blocks_run_once(reentrant, moved):
    def block(s, h):
        h = s.a(h).relu()
        return h.view(len(h), -1, 1).amax(2) if moved else h

    model = Net(
        lambda s, x: s.b(checkpoint(lambda h: block(s, h), x, use_reentrant=reentrant)), a=lin(6, 5), b=lin(5, 3)
    )
    plain, x = Net(lambda s, x: s.b(block(s, x)), a=model.a, b=model.b), noise(3, 6)
    trace = traced(model, x)
    close(trace.relevance(0), gradient_times_input(plain, x))
    assert trace.report().warnings == []
    assert torch.utils.checkpoint.CheckpointFunction.__name__ == "CheckpointFunction"


@pytest.mark.parametrize("whole", [True, False])
def test_inference_mode_inside_a_model_is_passed_and_noted(whole):
    def branch(s, x):
        with torch.inference_mode():
            return s.a(x).relu()

    def run(s, x):
        return s.b(branch(s, x)) + s.c(x)

    parts = {"a": lin(6, 5), "b": lin(5, 3), "c": lin(6, 3)}
    model = Net(torch.inference_mode()(run) if whole else run, **parts)
    plain, x = Net(lambda s, x: s.b(s.a(x).relu()) + s.c(x), **parts), noise(3, 6)
    trace = traced(model, x)
    close(trace.relevance(0), gradient_times_input(plain, x))
    assert any("inference_mode" in note for note in trace.report().notes)
    assert torch.inference_mode.__enter__.__qualname__ == "inference_mode.__enter__"


# ------------------------------------------------------------------------------------------------ hooks


HOOKS = {
    "full backward": lambda m, hook: m.register_full_backward_hook(hook),
    "full backward pre": lambda m, hook: m.register_full_backward_pre_hook(lambda module, out: hook(module, out, out)),
    "of all modules": lambda m, hook: nn.modules.module.register_module_full_backward_hook(hook),
    "old": lambda m, hook: m.register_backward_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_backward_hooks_of_modules_never_run_on_relevance(kind):
    model, x, seen = layers(), noise(3, 6), []
    want = gradient_times_input(model, x)
    handle = HOOKS[kind](model[2], lambda module, inward, outward: seen.append(1) or tuple(0.5 * g for g in inward))
    try:
        trace = traced(model, x)
        close(trace.relevance(0), want)
        assert not seen
        model(x.clone().requires_grad_())[:, 0].sum().backward()
        assert seen  # where gradients are asked for, they do run
    finally:
        handle.remove()


@pytest.mark.parametrize("way", ["register_hook", "retain_grad", "register_post_accumulate_grad_hook"])
def test_hooks_of_tensors_never_run_on_relevance(way):
    seen, kept = [], []

    def run(s, x):
        h = s.a(x)
        kept.append(h)
        if way == "retain_grad":
            h.retain_grad()
        elif way == "register_hook":
            kept.append(h.register_hook(lambda g: seen.append(1) or g * 0.5))
        elif not h.requires_grad:
            h.register_post_accumulate_grad_hook(seen.append)
        return s.b(F.relu(h))

    model, x = Net(run, a=lin(6, 5), b=lin(5, 3)), noise(3, 6)
    plain = Net(lambda s, x: s.b(s.a(x).relu()), a=model.a, b=model.b)
    close(traced(model, x).relevance(0), gradient_times_input(plain, x))
    assert not seen
    for handle in kept[1:]:
        if hasattr(handle, "remove"):
            handle.remove()
