"""Compiled pieces, checkpoints and hooks: a model is run by the code that it was written as."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.eval_frame
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from saliency_lrp.as_written import AsWritten
from tests.helpers.tiny import Block, Net, close, gradient_times_input, lin, noise, traced


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
