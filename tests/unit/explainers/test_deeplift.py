"""DeepLIFT is complete: attributions sum to the difference of the scores, or a warning says by how much they do not."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp.explainers import get
from tests.helpers.tiny import noise

WEIGHT = torch.arange(32.0, dtype=torch.float64).view(2, 4, 4) / 32
PAIRS = {
    "max(dim)": lambda h: h.view(-1, 4, 2).max(2)[0],
    "min(dim)": lambda h: h.view(-1, 4, 2).min(2).values,
    "amax": lambda h: h.view(-1, 4, 2).amax(2),
    "amin": lambda h: h.view(-1, 4, 2).amin(2),
    "maximum": lambda h: torch.maximum(h[:, :4], h[:, 4:]),
    "minimum": lambda h: torch.minimum(h[:, :4], h[:, 4:]),
    "topk": lambda h: h.topk(4, 1)[0],
    "sort": lambda h: h.sort(1)[0],
    "median": lambda h: h.view(-1, 2, 4).median(2)[0],
    "kthvalue": lambda h: h.view(-1, 2, 4).kthvalue(2, 2)[0],
    "max_pool1d": lambda h: F.max_pool1d(h[:, None], 2)[:, 0],
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "where with a number": lambda h: torch.where(h > 0.1, h, 0.3),
    "masked_fill": lambda h: h.masked_fill(h < 0, 1.0),
    "mask of another": lambda h: h * (h.roll(1, 1) > 0),
    "float mask": lambda h: h * (h > 0).to(h.dtype),
    "mul_": lambda h: (k := h + 0).mul_(k > 0),
    "threshold": lambda h: F.threshold(h, 0.1, 0.0),
    "rrelu": lambda h: F.rrelu(h, training=False),
    "atan": torch.atan,
    "abs": lambda h: h.abs(),
    "cube": lambda h: h**3,
    "1 / x": lambda h: 1 / (2 + h.abs()),
    "x / y": lambda h: h[:, :4] / (1 + h[:, 4:].abs()),
    "logsumexp": lambda h: h.view(-1, 4, 2).logsumexp(2),
    "softmax": lambda h: (5 * h).softmax(1),
    "confident softmax": lambda h: (80 * h).softmax(1),
    "log_softmax": lambda h: (30 * h).log_softmax(1),
    "softmin": lambda h: F.softmin(20 * h, 1),
    "prod": lambda h: h.view(-1, 4, 2).prod(2),
    "cumprod": lambda h: h.cumprod(1),
    "bilinear": lambda h: F.bilinear(h[:, :4], h[:, 4:], WEIGHT),
    "einsum": lambda h: torch.einsum("bi,bi->b", h[:, :4], h[:, 4:])[:, None],
    "lerp": lambda h: torch.lerp(h[:, :4], h[:, 4:], h[:, :4].sigmoid()),
    "addcmul": lambda h: torch.addcmul(h[:, :4], h[:, :4], h[:, 4:]),
    "cosine_similarity": lambda h: F.cosine_similarity(h[:, None, :4], torch.stack([h[:, 4:], h[:, 2:6]], 1), dim=2),
    "pairwise_distance": lambda h: F.pairwise_distance(h[:, :4], h[:, 4:])[:, None],
    "cdist": lambda h: torch.cdist(h.view(-1, 4, 2), h.view(-1, 4, 2)).flatten(1),
    "linalg.norm": lambda h: torch.linalg.norm(h.view(-1, 4, 2), dim=2),
    "x.norm": lambda h: h.view(-1, 4, 2).norm(dim=2),
    "var": lambda h: h.view(-1, 4, 2).var(2),
    "std": lambda h: h.view(-1, 2, 4).std(2),
    "layer_norm": lambda h: F.layer_norm(h, (8,)),
    "group_norm": lambda h: F.group_norm(h, 2),
    "instance_norm": lambda h: F.instance_norm(h.view(-1, 2, 4)).flatten(1),
    "glu": lambda h: F.glu(h, 1),
    "attention": lambda h: F.scaled_dot_product_attention(*(3 * h.view(-1, 1, 4, 2),) * 3).flatten(1),
}


class Between(nn.Module):
    """A function between two dense layers."""

    def __init__(self, f):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.a = f, nn.Linear(6, 8).double()
        self.out = nn.Linear(f(noise(2, 8)).shape[-1], 3).double()

    def forward(self, x):
        return self.out(self.f(self.a(x)))


def difference(net, x, baseline, label=1):
    with torch.no_grad():
        return net(x)[:, label] - net(baseline.expand_as(x))[:, label]


@pytest.mark.parametrize("flat", [True, False], ids=["flat baseline", "another input"])
@pytest.mark.parametrize("name", PAIRS)
def test_attributions_sum_to_the_difference(name, flat):
    net, x = Between(PAIRS[name]), noise(3, 6, seed=1)
    baseline = torch.zeros(1, 6, dtype=x.dtype) if flat else noise(1, 6, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = get("deeplift", net, baseline=baseline).explain(x, 1)
    torch.testing.assert_close(found.sum(1), difference(net, x, baseline), rtol=1e-6, atol=1e-9)


RELUS = {
    "x * (x > 0)": lambda h: h * (h > 0),
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.0),
    "threshold": lambda h: F.threshold(h, 0.0, 0.0),
    "clamp": lambda h: h.clamp(min=0),
}


@pytest.mark.parametrize("name", RELUS)
def test_the_rescale_rule_by_hand(name):
    net, x, b = Between(RELUS[name]), noise(3, 6, seed=1), noise(1, 6, seed=2)
    h, h0 = (net.a(v).detach() for v in (x, b))
    multiplier = (h.relu() - h0.relu()) / (h - h0)
    want = (net.out.weight[1] * multiplier) @ net.a.weight * (x - b)
    torch.testing.assert_close(get("deeplift", net, baseline=b).explain(x, 1), want.detach(), rtol=1e-9, atol=1e-12)


class Recurrent(nn.Module):
    def __init__(self, rnn, cell=False):
        super().__init__()
        self.rnn, self.cell = rnn, cell
        size = 5 * (2 if getattr(rnn, "bidirectional", False) else 1)
        self.out = nn.Linear(size, 3)
        self.double()

    def forward(self, x):
        if not self.cell:
            return self.out(self.rnn(x)[0][:, -1])
        h = None
        for t in range(x.shape[1]):
            h = self.rnn(x[:, t], h)
        return self.out(h[0] if isinstance(h, tuple) else h)


RECURRENT = {
    "LSTM": lambda: Recurrent(nn.LSTM(4, 5, batch_first=True)),
    "GRU": lambda: Recurrent(nn.GRU(4, 5, batch_first=True)),
    "RNN": lambda: Recurrent(nn.RNN(4, 5, batch_first=True)),
    "RNN of ReLUs": lambda: Recurrent(nn.RNN(4, 5, batch_first=True, nonlinearity="relu")),
    "two layers, both ways": lambda: Recurrent(nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)),
    "GRU without bias": lambda: Recurrent(nn.GRU(4, 5, bias=False, batch_first=True)),
    "LSTMCell": lambda: Recurrent(nn.LSTMCell(4, 5), True),
    "GRUCell": lambda: Recurrent(nn.GRUCell(4, 5), True),
    "RNNCell": lambda: Recurrent(nn.RNNCell(4, 5), True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_networks_are_complete(name):
    torch.manual_seed(0)
    net, x, b = RECURRENT[name]().eval(), noise(2, 6, 4), noise(1, 6, 4, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = get("deeplift", net, baseline=b).explain(x, 1)
    torch.testing.assert_close(found.flatten(1).sum(1), difference(net, x, b), rtol=1e-6, atol=1e-9)


class ReadFromAToken(nn.Module):
    """A class token, the same on every baseline, takes all from the others by attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.token, self.out = nn.Linear(4, 8), nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.double().eval()

    def forward(self, x):
        h = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.out(self.layer(h)[:, 0])


def test_a_class_token_is_complete():
    net, x, b = ReadFromAToken(), noise(3, 5, 4), noise(1, 5, 4, seed=1)
    found = get("deeplift", net, baseline=b).explain(x, 1)
    torch.testing.assert_close(found.flatten(1).sum(1), difference(net, x, b), rtol=1e-6, atol=1e-9)


INCOMPLETE = {
    "atan2": lambda h: torch.atan2(h[:, :4], h[:, 4:]),
    "hypot": lambda h: torch.hypot(h[:, :4], h[:, 4:]),
    "times its sign": lambda h: h * h.sign(),
    "det": lambda h: torch.linalg.det(h[:, :4].view(-1, 2, 2))[:, None],
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_what_is_missing_is_said(name):
    net, x, b = Between(INCOMPLETE[name]), noise(3, 6, seed=1), noise(1, 6, seed=2)
    with pytest.warns(UserWarning, match="deeplift: the attributions of item"):
        found = get("deeplift", net, baseline=b).explain(x, 1).sum(1)
    assert not torch.allclose(found, difference(net, x, b), rtol=1e-3)
