"""An explanation as a graph: the engine's map on other inputs, for any values; refusals; other runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saliency_lrp
from saliency_lrp import LrpExplainer, rules
from saliency_lrp.errors import InputError


class Residual(nn.Module):
    """Batch norms, a skip connection, in-place activations, poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        for norm in (self.norm, self.inner):
            nn.init.uniform_(norm.weight, -1.0, 1.5)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x)), inplace=True), 2)
        x = F.relu(x + self.inner(self.body(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Squeeze(nn.Module):
    """A gate beside what it multiplies, SiLU, average pooling with a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x):
        x = F.silu(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(F.avg_pool2d(x, 3, 2).mean((2, 3)))


class Encoder(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layer(self.patch(x).flatten(2).mT).mean(1))


class Reader(nn.Module):
    """An LSTM over every fourth row of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(36, 10, batch_first=True), nn.Linear(10, 5)

    def forward(self, x):
        return self.head(self.lstm(x[:, :, ::4].permute(0, 2, 1, 3).flatten(2))[0][:, -1])


NETS = {"residual": Residual, "squeeze": Squeeze, "encoder": Encoder, "lstm": Reader}


def net_and_input(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    return NETS[name]().to(dtype).eval(), torch.randn(2, 3, 12, 12, dtype=dtype)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "auto"])
@pytest.mark.parametrize("name", NETS)
def test_the_graph_gives_the_engines_map_on_other_inputs(name, composite):
    net, x = net_and_input(name)
    compiled = saliency_lrp.compile(net, x, composite=composite, target=torch.tensor([0, 1]))
    explainer = LrpExplainer(net, composite)
    for seed, target in ((11, [4, 2]), (12, [0, 0])):
        other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        output, relevance = compiled(other, target=torch.tensor(target))
        torch.testing.assert_close(output, net(other), rtol=1e-12, atol=1e-12)
        want = explainer.explain(other, target)
        assert (relevance - want).abs().max() <= 1e-6 * want.abs().max()


def test_the_highest_score_one_class_and_a_callable():
    net, x = net_and_input("residual")
    other = torch.randn_like(x)
    for target in (None, 3, lambda out: out[:, 1] - out[:, 2]):
        _, relevance = saliency_lrp.compile(net, x, composite="epsilon", target=target)(other)
        want = LrpExplainer(net, "epsilon").explain(other, target)
        torch.testing.assert_close(relevance, want, rtol=1e-9, atol=1e-12)


def test_what_the_example_was_does_not_matter():
    """γ and αβ take a shortcut where rounding allows it: the graph may not, whatever the example allowed."""
    net, x = net_and_input("residual")
    compiled = saliency_lrp.compile(net, x.abs() * 1e-3, composite=rules.AlphaBeta(2, 1), target=1)
    for other in (torch.randn_like(x) * 50, torch.zeros_like(x), torch.randn_like(x)):
        want = LrpExplainer(net, rules.AlphaBeta(2, 1)).explain(other, 1)
        assert (compiled(other)[1] - want).abs().max() <= 1e-6 * max(float(want.abs().max()), 1e-9)


def test_several_composites_share_the_graph():
    net, x = net_and_input("residual")
    compiled = saliency_lrp.compile(net, x, composite={"a": "epsilon", "b": "epsilon_plus"}, target=1)
    found = compiled(x)[1]
    assert list(found) == ["a", "b"]
    for name, composite in (("a", "epsilon"), ("b", "epsilon_plus")):
        torch.testing.assert_close(found[name], LrpExplainer(net, composite).explain(x, 1), rtol=1e-9, atol=1e-12)


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, left, right):
            return self.head(F.relu(self.a(left) + self.b(right)))

    torch.manual_seed(0)
    net, left, right = Two().double(), torch.randn(3, 4).double(), torch.randn(3, 3).double()
    compiled = saliency_lrp.compile(net, left, right, composite="epsilon", target=0)
    for got, want in zip(compiled(left, right)[1], LrpExplainer(net, "epsilon").explain((left, right), 0), strict=True):
        torch.testing.assert_close(got, want)


def test_batches_of_other_sizes():
    net, x = net_and_input("squeeze")
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=1)
    other = torch.randn(5, 3, 12, 12, dtype=x.dtype)
    torch.testing.assert_close(compiled(other)[1], LrpExplainer(net, "epsilon").explain(other, 1))
    fixed = saliency_lrp.compile(net, x, composite="epsilon", target=1, dynamic_batch=False)
    with pytest.raises(InputError, match=r"shape \(5, 3, 12, 12\); the graph was made for \(2, 3, 12, 12\)"):
        fixed(other)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda c, x: c(x[..., :8]), "was made for"),
        (lambda c, x: c(x.float()), "torch.float64"),
        (lambda c, x: c(x, x), "takes 1 inputs, got 2"),
        (lambda c, x: c(x[:0]), "empty"),
        (lambda c, x: c(x.numpy()), "torch tensor"),
        (lambda c, x: c(x, target=2), "explains target 1"),
    ],
)
def test_what_the_graph_was_not_made_for_is_refused(call, match):
    net, x = net_and_input("squeeze")
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=1)
    with pytest.raises(InputError, match=match):
        call(compiled, x)


def test_a_target_that_is_asked_for_must_be_given():
    net, x = net_and_input("squeeze")
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=torch.tensor([1]))
    with pytest.raises(InputError, match="takes the classes as an input"):
        compiled(x)
    with pytest.raises(InputError, match="one for each of the 2 items"):
        compiled(x, target=torch.tensor([1, 2, 3]))


def test_what_python_is_told_of_constants_is_no_hindrance():
    """As transformers look at positions of their own making before they build a mask."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            positions = torch.arange(x.shape[1], dtype=x.dtype)
            if (positions >= 0).all() and positions.sum().item() > 0:
                x = x * positions[:, None]
            return self.a(x).sum(1)

    torch.manual_seed(0)
    net, x = Positions().double(), torch.randn(2, 5, 4).double()
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=1)
    other = torch.randn_like(x)
    torch.testing.assert_close(compiled(other)[1], LrpExplainer(net, "epsilon").explain(other, 1))


def test_a_model_that_looks_at_values_is_refused():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.b(x)

    with pytest.raises(InputError, match="Looks cannot be captured as a graph"):
        saliency_lrp.compile(Looks(), torch.randn(1, 4))


def test_the_model_stays_as_it_was_and_the_graph_keeps_its_weights():
    net, x = net_and_input("residual")
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=1)
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(p.requires_grad for p in compiled.graph.parameters())
    assert "Residual" in repr(compiled) and "epsilon" in repr(compiled) and "(2, 3, 12, 12)" in repr(compiled)


def test_the_graph_is_plain_aten():
    """It needs nothing of this package, and exports."""
    net, x = net_and_input("residual")
    compiled = saliency_lrp.compile(net, x, composite="auto", target=1)
    targets = {node.target for node in compiled.graph.graph.nodes if node.op == "call_function"}
    assert all(getattr(t, "namespace", "aten") == "aten" or t.__module__ == "_operator" for t in targets)
    program = compiled.exported()
    torch.testing.assert_close(program.module()(x)[1], compiled(x)[1])


def test_a_graph_stays_what_it_was_when_the_model_learns():
    net, x = net_and_input("residual")
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=1)
    before = compiled(x)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    for got, want in zip(compiled(x), before, strict=True):
        assert torch.equal(got, want)


def test_composites_share_the_forward_pass():
    net, x = net_and_input("residual")
    ways = ("epsilon", "epsilon_plus", "epsilon_gamma_box")
    calls = {
        key: sum(n.target is torch.ops.aten.convolution.default for n in compiled.graph.graph.nodes)
        for key, compiled in (
            *((way, saliency_lrp.compile(net, x, composite=way, target=1)) for way in ways),
            ("all", saliency_lrp.compile(net, x, composite={way: way for way in ways}, target=1)),
        )
    }
    assert calls["epsilon"] == 2  # the forward pass alone; batch norms are in the weights
    assert calls["all"] <= sum(calls[way] for way in ways) - 2 * calls["epsilon"]
    compiled = saliency_lrp.compile(net, x, composite="epsilon", target=1)
    assert not any("batch_norm" in str(n.target) for n in compiled.graph.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "squeeze", "encoder"])
def test_onnx_runtime_gives_the_same_map(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, x = net_and_input(name, torch.float32)
    compiled = saliency_lrp.compile(net, x, composite="epsilon_plus", target=torch.tensor([0, 1]))
    compiled.save_onnx(tmp_path / "map.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "map.onnx"), providers=["CPUExecutionProvider"])
    other, target = torch.randn_like(x), torch.tensor([3, 2])
    other[0, :, 4:] = 0  # where nothing comes in, denominators are but their guard
    output, relevance = session.run(["output", "relevance"], {"input": other.numpy(), "target": target.numpy()})
    want = LrpExplainer(net, "epsilon_plus").explain(other, target)
    np.testing.assert_allclose(output, net(other).detach(), atol=1e-4)
    np.testing.assert_allclose(relevance, want, atol=1e-4 * float(want.abs().max()))
