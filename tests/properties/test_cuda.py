"""On a GPU: the map of a CPU, by fused kernels, without waiting for the device inside a map.

Run on a machine with one GPU: ``SALIENCY_LRP_REQUIRE=cuda python -m pytest -q -n0 tests/properties/test_cuda.py``
"""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import LrpExplainer, RelevancePropagator

pytestmark = pytest.mark.cuda


class Block(nn.Module):
    """A transformer block over what a convolution sees, with a batch norm before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 32, 4, 4), nn.BatchNorm2d(32)
        self.one, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True).flatten(2).mT
        q, k, v = self.qkv(self.one(x)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


COMPOSITES = ["epsilon", "attnlrp", "cp_lrp", "auto", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"]


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("form", ["bound_trace", "trace"])
def test_a_map_is_that_of_the_cpu(form, composite):
    net, x = Block().eval().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    want = getattr(RelevancePropagator(net, composite), form)(x).relevance(3)
    got = getattr(RelevancePropagator(net.cuda(), composite), form)(x.cuda()).relevance(3)
    assert got.device.type == "cuda"
    assert (got.cpu() - want).abs().max() <= 1e-6 * want.abs().max()


@contextlib.contextmanager
def waiting_is_an_error():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_nothing_waits_for_the_device_inside_a_map(composite, monkeypatch):
    """Neither in the forward pass nor in the backward pass; what is asked is whether input and output are finite."""
    net, x = Block().eval().cuda(), torch.randn(2, 3, 32, 32, device="cuda")
    explainer = LrpExplainer(net, composite)
    explainer.explain(x, 3)
    passes = []
    forward, grad = Block.forward, torch.autograd.grad

    def watched(name, original):
        def run(*args, **kwargs):
            passes.append(name)
            with waiting_is_an_error():
                return original(*args, **kwargs)

        return run

    monkeypatch.setattr(Block, "forward", watched("forward", forward))
    monkeypatch.setattr(torch.autograd, "grad", watched("backward", grad))
    R = explainer.explain(x, 3)
    monkeypatch.undo()
    assert passes[0] == "forward" and passes.count("forward") == 1  # in the coefficient form
    assert passes[1:] and set(passes[1:]) == {"backward"}  # a site may have a small one of its own
    torch.testing.assert_close(R, explainer.explain(x, 3))


def test_flash_attention_is_kept():
    """Forward and backward are the fused kernels that the model itself uses in half precision."""
    from torch.profiler import ProfilerActivity, profile

    net, x = Block().eval().cuda().half(), torch.randn(2, 3, 64, 64, device="cuda").half()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        LrpExplainer(net, "attnlrp").explain(x, 3)
    names = {event.key for event in profiled.key_averages()}
    assert any("flash_attention" in n or "efficient_attention" in n or "cudnn_attention" in n for n in names)
    assert any("attention_backward" in n for n in names), sorted(n for n in names if "attention" in n)


def test_memory_of_attention_grows_with_the_length():
    """Twice the tokens, twice the memory: not four times, as a matrix of all pairs would."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval().cuda()
    model = nn.Sequential(net, nn.Flatten(2)).cuda()
    peaks = []
    for length in (4096, 8192):
        x = torch.randn(1, length, 64, device="cuda")
        propagator = RelevancePropagator(model, "attnlrp")
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            trace = propagator.bound_trace(x)
            assert trace.bound
            trace.relevance(lambda out: out[:, -1, 0], retain=False)
            peak = torch.cuda.max_memory_allocated() - before
            del trace
        peaks.append(peak)
    assert peaks[1] < 2.3 * peaks[0]
