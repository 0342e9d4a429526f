"""The map of an item depends on the item alone; the first layer is every layer that reads the input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import Net, epsilon, noise
from tests.helpers.tiny import close as near

close = partial(near, tolerance=1e-9)


def explain(model, *inputs, composite="auto", target=1):
    return RelevancePropagator(model, composite).trace(*inputs).relevance(target)


# ------------------------------------------------------------------------------------------------ relative ε


class Turned(nn.Module):
    """Sequence first inside, whatever layer is in the middle."""

    def __init__(self, middle=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.middle = middle
        self.double().eval()

    def forward(self, x):
        h = F.relu(self.a(x.transpose(0, 1)))
        h = h if self.middle is None else self.middle(h)
        h = h[0] if isinstance(h, tuple) else h
        return self.out(F.relu(self.b(h)).mean(0))


class Columns(nn.Module):
    """Features by items: the batch is the last axis."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b = nn.Parameter(noise(16, 8)), nn.Parameter(noise(2, 16, seed=1))

    def forward(self, x):
        h = self.how(self.a, x.flatten(1).T[:8]).relu()
        return self.how(self.b, h).T


LAYOUTS = {
    "sequence first": Turned,
    "LSTM": lambda: Turned(nn.LSTM(16, 16)),
    "GRU": lambda: Turned(nn.GRU(16, 16)),
    "encoder": lambda: Turned(nn.TransformerEncoderLayer(16, 2, 16)),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval(),
    "matmul, items last": lambda: Columns(torch.matmul),
    "@, items last": lambda: Columns(lambda w, h: w @ h),
    "einsum, items last": lambda: Columns(lambda w, h: torch.einsum("of,fn->on", w, h)),
    "tensordot, items last": lambda: Columns(lambda w, h: torch.tensordot(w, h, 1)),
    "linear of the transposed": lambda: Columns(lambda w, h: F.linear(h.T, w).T),
}


@pytest.mark.parametrize("rule", ["auto", "relative"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_an_item_is_explained_alike_alone_and_beside_others(name, rule):
    torch.manual_seed(0)
    model = LAYOUTS[name]()
    composite = "auto" if rule == "auto" else rules.Epsilon(0.25, relative=True)
    target = (lambda out: out.flatten(1)[:, 1]) if name == "attention" else 1
    one, others = noise(1, 6, 8), 5 * noise(3, 6, 8, seed=1)
    alone = explain(model, one, composite=composite, target=target)
    beside = explain(model, torch.cat([others[:1], one, others[1:]]), composite=composite, target=target)[1:2]
    close(beside, alone)


def test_relative_sums_of_items_without_an_axis_of_their_own():
    """A sum to one number per item: its last axis is the batch."""
    model = Net(lambda s, x: s.a(x).sum(1) + s.b(x).sum(1), a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    composite = Composite([(composites.kind("sum"), rules.Norm(0.25, relative=True))])
    x = noise(3, 4)
    together = explain(model, x, composite=composite, target=lambda out: out)
    for k in range(3):
        close(together[k : k + 1], explain(model, x[k : k + 1], composite=composite, target=lambda out: out))


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (2, 3, 5, 8), (8,)])
def test_relative_epsilon_is_that_of_one_position(shape):
    layer, x = nn.Linear(8, 4).double(), noise(*shape)
    got = explain(layer, x, composite=rules.Epsilon(0.25, relative=True), target=lambda out: out)
    w, b, z = layer.weight.detach(), layer.bias.detach(), layer(x).detach()
    width = 0.25 * z.square().mean(-1, keepdim=True).sqrt()
    close(got, epsilon(x, w, b, z, width))


def test_masked_padding_changes_nothing():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    x, target = noise(1, 4, 8), lambda out: out[:, :4, 1].sum(1)
    alone = explain(model, x, target=target)
    padded = torch.cat([x, 7 * noise(1, 3, 8, seed=2)], 1)
    mask = torch.arange(7)[None] >= 4
    net = Net(lambda s, v: s.t(v, src_key_padding_mask=mask), t=model)
    got = explain(net, padded, target=target)
    close(got[:, :4], alone)
    assert not got[:, 4:].any()


# ------------------------------------------------------------------------------------------------ the first layer


FIRST = Composite([(composites.first(), rules.Flat())], composites.defaults())


def firsts(model, *inputs, n=1):
    trace = RelevancePropagator(model).trace(*inputs)
    chosen = composites.first(n)
    return [site.path for site in trace.sites if not site.folded_into_next and chosen(site)]


def conv(before, after, size=3):
    return nn.Conv2d(before, after, size)


def test_each_branch_has_a_first_layer():
    model = Net(
        lambda s, a, b: s.c(torch.cat([s.a2(s.a(a).relu()), s.b(b)], 1)).relu().mean((2, 3)),
        a=conv(3, 4, 1), a2=conv(4, 4, 1), b=conv(3, 4, 1), c=conv(8, 2),
    )  # fmt: skip
    inputs = noise(1, 3, 6, 6), noise(1, 3, 6, 6, seed=1)
    assert firsts(model, *inputs) == ["a", "b"]
    assert firsts(model, *inputs, n=2) == ["a", "a2", "b"]
    assert firsts(model, *inputs, n=3) == ["a", "a2", "b", "c"]


READ = {
    "as it is": lambda s, x: x,
    "normalised inside": lambda s, x: (x - 0.5) / torch.tensor([0.2, 0.3, 0.4], dtype=x.dtype).view(3, 1, 1),
    "scaled and shifted": lambda s, x: 2 * x + 1,
    "in place": lambda s, x: x.clone().sub_(0.5).div_(2),
    "turned": lambda s, x: x.permute(0, 1, 3, 2).flip(1).contiguous(),
    "padded": lambda s, x: F.pad(x, (1, 1, 1, 1)),
    "interpolated": lambda s, x: F.interpolate(x, scale_factor=2),
    "batch norm": lambda s, x: F.batch_norm(x, torch.zeros(3).to(x), torch.ones(3).to(x)) * 1,
}


@pytest.mark.parametrize("name", READ)
def test_the_first_layer_reads_the_input_moved_scaled_or_shifted(name):
    model = Net(lambda s, x: s.b(s.a(READ[name](s, x)).relu()).mean((2, 3)), a=conv(3, 4), b=conv(4, 2))
    found = firsts(model, noise(1, 3, 6, 6))
    assert "a" in found or name == "batch norm"
    assert "b" not in found


def test_a_gate_does_not_make_its_signal_deeper():
    model = Net(lambda s, x: s.b(x * torch.sigmoid(s.gate(x))).mean((2, 3)), gate=conv(3, 3, 1), b=conv(3, 2))
    assert firsts(model, noise(1, 3, 6, 6)) == ["gate", "b"]


def test_a_layer_beside_changes_nothing():
    def net(beside):
        torch.manual_seed(0)
        return Net(
            lambda s, x: (beside(s, x), s.b(s.a(x).relu()).mean((2, 3)))[1], a=conv(3, 4), b=conv(4, 2), c=conv(3, 1)
        )

    x = noise(2, 3, 7, 7)
    for composite in ("auto", "epsilon_plus_flat", "epsilon_gamma_box", "lrp.sequential_preset_a_flat"):
        want = explain(net(lambda s, x: None), x, composite=composite)
        close(explain(net(lambda s, x: s.c(x)), x, composite=composite), want)


@pytest.mark.parametrize("composite", ["auto", "epsilon", "epsilon_plus_flat", "epsilon_gamma_box", FIRST])
@pytest.mark.parametrize("join", ["difference", "product", "cosine"])
def test_swapped_siamese_inputs_swap_their_maps(composite, join):
    torch.manual_seed(0)
    body = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    how = {
        "difference": lambda a, b: (a - b).abs().sum(1, keepdim=True),
        "product": lambda a, b: (a * b).sum(1, keepdim=True),
        "cosine": lambda a, b: F.cosine_similarity(a, b)[:, None],
    }[join]
    model = Net(lambda s, a, b: how(s.body(a), s.body(b)), body=body)
    a, b = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    Ra, Rb = explain(model, a, b, composite=composite, target=0)
    Sb, Sa = explain(model, b, a, composite=composite, target=0)
    close(Sa, Ra)
    close(Sb, Rb)
