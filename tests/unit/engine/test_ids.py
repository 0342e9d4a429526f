"""Ids followed from the argument to where they become numbers: one map each, in the argument's own shape and order.

The right value is computed without the package, on the vectors that ids stand for: each is multiplied by a 1 of its
own, and the derivative of the score by that 1 is what the id contributes to a bias-free ReLU network.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import LrpExplainer, RelevancePropagator
from saliency_lrp.errors import InputError
from tests.helpers.tiny import EXACT, Net, noise

IDS = torch.tensor([[1, 2, 3], [4, 0, 5]])
OFFSETS = torch.tensor([0, 10, 20])
TABLE = noise(40, 4, seed=3)


class Head(nn.Module):
    """(N, T, 4) vectors -> ReLU network without biases -> 2 scores; any T."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8, bias=False)
        self.mix = nn.Linear(8, 2, bias=False)

    def forward(self, e):
        steps = torch.arange(1, e.shape[1] + 1, dtype=e.dtype)[:, None]
        return self.mix(F.relu(self.hidden(e * steps)).sum(1))


def make(function, **modules):
    torch.manual_seed(0)
    net = Net(function, emb=nn.Embedding(40, 4), head=Head(), **modules)
    net.emb.weight.data.copy_(TABLE)
    return net


def right(net, vectors, ids=IDS, score=None):
    """d score / d s at s = 1, where ``vectors(s)`` are what the head reads, each id's vector multiplied by its s."""
    s = torch.ones(ids.shape, dtype=torch.float64, requires_grad=True)
    out = net.head(vectors(s)) if score is None else score(s)
    return torch.autograd.grad(out[:, 1].sum(), s)[0]


def scaled(s, ids=IDS):
    return TABLE[ids] * s[..., None]


def shift_right(ids):
    shifted = ids.new_zeros(ids.shape)
    shifted[..., 1:] = ids[..., :-1].clone()
    shifted[..., 0] = 7
    return shifted


def through_a_buffer(ids):
    buffer = torch.full((2, 5), 7, dtype=torch.long)
    buffer[:, 1:4].copy_(ids)
    return buffer


def by_columns(ids):
    out = torch.zeros_like(ids)
    for k, column in enumerate(ids.unbind(1)):
        out[:, k].copy_(column + 1)
    return out


def in_place(ids):
    ids = ids.clone()
    ids += OFFSETS
    ids.clamp_(max=39)
    return ids


CLS = torch.full((2, 1), 7)
FLAT = torch.tensor([[5, 1], [0, 0]])
PERM = torch.tensor([2, 0, 1])
KEEP = torch.tensor([[True, True, False], [True, False, True]])

#: What a model does to its ids before it embeds them, and the same done to vectors (2, T, 4).
PREPARED = {
    "as they are": (lambda i: i, lambda v: v, 0),
    "clone": (torch.clone, lambda v: v, 0),
    "detach": (lambda i: i.detach(), lambda v: v, 0),
    "data": (lambda i: i.data, lambda v: v, 0),
    "offsets": (lambda i: i + OFFSETS, None, OFFSETS),
    "offsets in place": (in_place, None, OFFSETS),
    "offsets from the left": (lambda i: OFFSETS + i, None, OFFSETS),
    "torch.add": (lambda i: torch.add(i, OFFSETS), None, OFFSETS),
    "remainder": (lambda i: (i + 40) % 40, lambda v: v, 0),
    "clamp": (lambda i: torch.clamp(i, 0, 39), lambda v: v, 0),
    "int32 and back": (lambda i: i.int().long(), lambda v: v, 0),
    "to": (lambda i: i.to(torch.int32).to(dtype=torch.int64), lambda v: v, 0),
    "transposed twice": (lambda i: i.t().contiguous().t(), lambda v: v, 0),
    "cat": (lambda i: torch.cat([CLS, i], 1), lambda v: torch.cat([TABLE[CLS], v], 1), 0),
    "cat twice": (lambda i: torch.cat([i, i], dim=1), lambda v: torch.cat([v, v], 1), 0),
    "pad": (lambda i: F.pad(i, (2, 1), value=7), lambda v: torch.cat([TABLE[CLS], TABLE[CLS], v, TABLE[CLS]], 1), 0),
    "slice": (lambda i: i[:, 1:], lambda v: v[:, 1:], 0),
    "step": (lambda i: i[:, ::2], lambda v: v[:, ::2], 0),
    "narrow": (lambda i: i.narrow(1, 0, 2), lambda v: v[:, :2], 0),
    "masked_fill": (lambda i: i.masked_fill(~KEEP, 7), lambda v: torch.where(KEEP[..., None], v, TABLE[7]), 0),
    "masked_fill in place": (
        lambda i: i.clone().masked_fill_(~KEEP, 7),
        lambda v: torch.where(KEEP[..., None], v, TABLE[7]),
        0,
    ),
    "where": (
        lambda i: torch.where(KEEP, i, torch.tensor(7)),
        lambda v: torch.where(KEEP[..., None], v, TABLE[7]),
        0,
    ),
    "where, as a method": (
        lambda i: i.where(KEEP, torch.tensor(7)),
        lambda v: torch.where(KEEP[..., None], v, TABLE[7]),
        0,
    ),
    "boolean assignment": (
        lambda i: assign(i.clone(), ~KEEP, 7),
        lambda v: torch.where(KEEP[..., None], v, TABLE[7]),
        0,
    ),
    "gather": (lambda i: i.gather(1, PERM.expand(2, 3)), lambda v: v[:, PERM], 0),
    "index_select": (lambda i: i.index_select(1, PERM), lambda v: v[:, PERM], 0),
    "take": (lambda i: torch.take(i, torch.tensor([[5, 1], [0, 0]])), lambda v: v.reshape(6, 4)[FLAT], 0),
    "list index": (lambda i: i[:, [2, 0]], lambda v: v[:, [2, 0]], 0),
    "flip": (lambda i: i.flip(1), lambda v: v.flip(1), 0),
    "roll": (lambda i: i.roll(1, 1), lambda v: v.roll(1, 1), 0),
    "reshape": (lambda i: i.reshape(-1).view(2, 3), lambda v: v, 0),
    "flatten": (lambda i: i.flatten()[None], lambda v: v.reshape(1, 6, 4), 0),
    "stack of columns": (lambda i: torch.stack([i[:, 2], i[:, 0]], 1), lambda v: v[:, [2, 0]], 0),
    "repeat": (lambda i: i.repeat(1, 2), lambda v: v.repeat(1, 2, 1), 0),
    "repeat_interleave": (lambda i: i.repeat_interleave(2, 1), lambda v: v.repeat_interleave(2, 1), 0),
    "expand": (lambda i: i[:, None].expand(2, 2, 3).reshape(2, 6), lambda v: v.repeat(1, 2, 1), 0),
    "windows": (
        lambda i: i.unfold(1, 2, 1).reshape(2, 4),
        lambda v: torch.stack([v[:, :2], v[:, 1:]], 1).reshape(2, 4, 4),
        0,
    ),
    "split": (lambda i: i.split([1, 2], 1)[1], lambda v: v[:, 1:], 0),
    "shifted right": (shift_right, lambda v: torch.cat([TABLE[CLS], v[:, :-1]], 1), 0),
    "into a buffer": (through_a_buffer, lambda v: torch.cat([TABLE[CLS], v, TABLE[CLS]], 1), 0),
    "column by column into a buffer": (by_columns, None, 1),
    "sorted": (lambda i: i.sort(1).values, lambda v: v[torch.arange(2)[:, None], IDS.argsort(1)], 0),
    "the two largest": (lambda i: i.topk(2).values, lambda v: v[torch.arange(2)[:, None], IDS.topk(2).indices], 0),
    "by a remapping": (lambda i: torch.arange(39, -1, -1)[i], None, "39 - ids"),
    "row by row": (lambda i: torch.stack([row + 0 for row in i]), lambda v: v, 0),
    "buckets": (lambda i: torch.bucketize(i, torch.arange(40)), lambda v: v, 0),
}


def assign(ids, mask, value):
    ids[mask] = value
    return ids


@pytest.mark.parametrize("name", PREPARED)
def test_ids_that_the_model_prepares(name):
    prepare, move, offset = PREPARED[name]
    net = make(lambda s, ids: s.head(s.emb(prepare(ids))))
    ids = 39 - IDS if offset == "39 - ids" else IDS + offset
    expected = right(net, lambda s: (move or (lambda v: v))(scaled(s, ids)))
    for given in (IDS, IDS.t().contiguous().t()):
        before = given.clone()
        trace = RelevancePropagator(net, EXACT, unknown="error").trace(given)
        assert torch.equal(given, before)
        assert torch.equal(trace.output, net(given.clone()).detach())
        torch.testing.assert_close(trace.relevance(1), expected)


def multi_hot(ids):
    return torch.zeros(2, 40, dtype=torch.float64).scatter_(1, ids, 1.0)


def bag_of_words(ids):
    bag = torch.zeros(2, 40, dtype=torch.float64)
    return bag.scatter_add(1, ids, torch.ones(ids.shape, dtype=torch.float64))


def assigned(ids):
    bag = torch.zeros(2, 40, dtype=torch.float64)
    bag[torch.arange(2)[:, None], ids] = 1.0
    return bag


#: Ways to look vectors up; each gives (2, 3, 4).
LOOKUPS = {
    "module": lambda s, i: s.emb(i),
    "F.embedding": lambda s, i: F.embedding(i, s.emb.weight),
    "torch.embedding": lambda s, i: torch.embedding(s.emb.weight, i),
    "weight[ids]": lambda s, i: s.emb.weight[i],
    "weight[ids, :]": lambda s, i: s.emb.weight[i, :],
    "transposed weight": lambda s, i: s.emb.weight.t()[:, i].permute(1, 2, 0),
    "ellipsis": lambda s, i: s.emb.weight.t()[..., i].permute(1, 2, 0),
    "index_select": lambda s, i: s.emb.weight.index_select(0, i.reshape(-1)).view(2, 3, 4),
    "gather": lambda s, i: s.emb.weight.gather(0, i.reshape(-1, 1).expand(-1, 4)).view(2, 3, 4),
    "take_along_dim": lambda s, i: torch.take_along_dim(s.emb.weight, i.reshape(-1, 1), 0).view(2, 3, 4),
    "take": lambda s, i: s.emb.weight.take(i[..., None] * 4 + torch.arange(4)),
    "one_hot @ weight": lambda s, i: F.one_hot(i, 40).double() @ s.emb.weight,
    "one_hot.to @ weight": lambda s, i: F.one_hot(i, 40).to(s.emb.weight.dtype) @ s.emb.weight,
    "one_hot, moved": lambda s, i: F.one_hot(i, 40).permute(0, 2, 1).type(torch.float64).mT @ s.emb.weight,
    "eye[ids]": lambda s, i: F.linear(torch.eye(40, dtype=torch.float64)[i], s.emb.weight.t()),
    "compared": lambda s, i: (i[..., None] == torch.arange(40)).double() @ s.emb.weight,
    "compared, as a mask": lambda s, i: (i[..., None] == torch.arange(40)).to("cpu").bool().double() @ s.emb.weight,
    "scatter one-hot": lambda s, i: (
        torch.zeros(2, 3, 40, dtype=torch.float64).scatter_(2, i[..., None], 1.0) @ s.emb.weight
    ),
    "one at a time": lambda s, i: torch.stack([s.emb(i[:, t]) for t in range(3)], 1),
    "sequence first": lambda s, i: s.emb(i.t()).transpose(0, 1),
    "bags of one": lambda s, i: F.embedding_bag(i.reshape(-1, 1), s.emb.weight, mode="sum").view(2, 3, 4),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_in_every_spelling(name):
    net = make(lambda s, ids: s.head(LOOKUPS[name](s, ids)))
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(IDS)
    assert torch.equal(trace.output, net(IDS).detach())
    torch.testing.assert_close(trace.relevance(1), right(net, scaled))


def pooled(vectors):
    return vectors.sum(1, keepdim=True)


REPEATED = torch.tensor([[1, 2, 1], [4, 0, 5]])
#: Ways to add vectors up; each gives the sum of an item's vectors, (2, 1, 4). The bag counts every occurrence.
BAGS = {
    "embedding_bag": lambda s, i: F.embedding_bag(i, s.emb.weight, mode="sum")[:, None],
    "EmbeddingBag": lambda s, i: 3 * nn.EmbeddingBag.from_pretrained(s.emb.weight, mode="mean")(i)[:, None],
    "offsets": lambda s, i: F.embedding_bag(i.reshape(-1), s.emb.weight, offsets=torch.tensor([0, 3]), mode="sum")[
        :, None
    ],
    "last offset": lambda s, i: F.embedding_bag(
        i.flatten(), s.emb.weight, torch.tensor([0, 3, 6]), mode="sum", include_last_offset=True
    )[:, None],
    "bag of words": lambda s, i: (bag_of_words(i) @ s.emb.weight)[:, None],
    "sum of one-hots": lambda s, i: (F.one_hot(i, 40).sum(1).double() @ s.emb.weight)[:, None],
    "bincount": lambda s, i: (torch.stack([row.bincount(minlength=40) for row in i]).double() @ s.emb.weight)[:, None],
}


@pytest.mark.parametrize("name", BAGS)
def test_bags_count_every_occurrence(name):
    net = make(lambda s, ids: s.head(BAGS[name](s, ids)))
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(REPEATED)
    torch.testing.assert_close(trace.output, net(REPEATED).detach(), rtol=0, atol=0)
    expected = right(net, lambda s: pooled(scaled(s, REPEATED)))
    torch.testing.assert_close(trace.relevance(1), expected)


@pytest.mark.parametrize("spelling", [multi_hot, assigned])
def test_in_a_set_each_occurrence_has_its_share(spelling):
    net = make(lambda s, ids: s.head((spelling(ids) @ s.emb.weight)[:, None]))
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(REPEATED)
    share = torch.tensor([[0.5, 1, 0.5], [1, 1, 1]], dtype=torch.float64)
    expected = right(net, lambda s: pooled(scaled(s, REPEATED) * share[..., None]))
    torch.testing.assert_close(trace.relevance(1), expected)


def test_the_largest_of_a_bag_takes_all():
    net = make(lambda s, ids: s.head(F.embedding_bag(ids, s.emb.weight, mode="max")[:, None]))
    R = RelevancePropagator(net, EXACT, unknown="error").trace(IDS).relevance(1)
    torch.testing.assert_close(R, right(net, lambda s: scaled(s).amax(1, keepdim=True)))


def test_padding_of_a_bag_gets_nothing():
    net = make(lambda s, ids: s.head(F.embedding_bag(ids, s.emb.weight, mode="sum", padding_idx=1)[:, None]))
    R = RelevancePropagator(net, EXACT, unknown="error").trace(REPEATED).relevance(1)
    kept = (REPEATED != 1).double()
    torch.testing.assert_close(R, right(net, lambda s: pooled(scaled(s, REPEATED) * kept[..., None])))
    assert not R[0, [0, 2]].any() and R[0, 1] != 0


def test_weights_of_a_bag_that_are_constants():
    weights = noise(2, 3, seed=9)
    net = make(lambda s, i: s.head(F.embedding_bag(i, s.emb.weight, mode="sum", per_sample_weights=weights)[:, None]))
    R = RelevancePropagator(net, EXACT, unknown="error").trace(IDS).relevance(1)
    torch.testing.assert_close(R, right(net, lambda s: pooled(scaled(s) * weights[..., None])))


def test_weights_of_a_bag_that_are_an_input():
    """The product of a vector and its weight belongs to each by half, as any product of two activations."""
    weights = noise(2, 3, seed=9)
    bag = make(lambda s, i, w: s.head(F.embedding_bag(i, s.emb.weight, mode="sum", per_sample_weights=w)[:, None]))
    trace = RelevancePropagator(bag, EXACT, unknown="error").trace(IDS, weights)
    assert torch.equal(trace.output, bag(IDS, weights).detach())
    of_ids, of_weights = trace.relevance(1)
    half = right(bag, lambda s: pooled(scaled(s) * weights[..., None])) / 2
    torch.testing.assert_close(of_ids, half)
    torch.testing.assert_close(of_weights, half)


# ------------------------------------------------------------------------------------------------ one map each


def test_ids_embedded_twice_have_one_map():
    net = make(lambda s, ids: s.head(s.emb(ids)) + s.wide(ids).sum(1), wide=nn.Embedding(40, 2))
    for R in (RelevancePropagator(net, EXACT).trace(IDS).relevance(1), LrpExplainer(net, EXACT).explain(IDS, 1)):
        expected = right(net, None, score=lambda s: net.head(scaled(s)) + (net.wide(IDS) * s[..., None]).sum(1))
        torch.testing.assert_close(R, expected)


def test_each_id_input_has_its_own_map():
    def run(s, words, kinds, numbers):
        return s.head(s.emb(words) + s.kind(kinds) + numbers)

    net = make(run, kind=nn.Embedding(5, 4))
    kinds, numbers = torch.tensor([[0, 1, 1], [2, 2, 4]]), noise(2, 3, 4, seed=8)
    expected = [
        right(net, lambda s: scaled(s) + net.kind(kinds) + numbers),
        right(net, lambda s: TABLE[IDS] + net.kind(kinds) * s[..., None] + numbers),
        right(net, lambda s: TABLE[IDS] + net.kind(kinds) + numbers * s[..., None]),
    ]
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(IDS, kinds, numbers)
    for R, wanted in zip(trace.relevance(1), expected, strict=True):
        torch.testing.assert_close(R.sum(-1) if R.dim() == 3 else R, wanted)
    named = RelevancePropagator(net, EXACT).trace(numbers=numbers, kinds=kinds, words=IDS).relevance(1)
    assert list(named) == ["numbers", "kinds", "words"]
    torch.testing.assert_close(named["words"], expected[0])
    torch.testing.assert_close(named["kinds"], expected[1])
    several = trace.relevance([0, 1])
    torch.testing.assert_close(several[1][1], expected[1])


def test_ids_that_pick_together_share_alike():
    net = make(lambda s, rows, columns: s.head(s.grid[rows, columns]))
    net.grid = nn.Parameter(noise(6, 6, 4, seed=5))
    columns = IDS.flip(1)
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(IDS, columns)
    half = right(net, lambda s: net.grid.detach()[IDS, columns] * s[..., None]) / 2
    for R in trace.relevance(1):
        torch.testing.assert_close(R, half)


def test_the_same_tensor_given_twice_is_two_inputs():
    net = make(lambda s, a, b: s.head(s.emb(a) + 2 * s.emb(b)))
    first, second = RelevancePropagator(net, EXACT).trace(IDS, IDS).relevance(1)
    torch.testing.assert_close(2 * first, second)


# ------------------------------------------------------------------------------------------------ what is reported


def said(report):
    return " ".join((*report.warnings, *report.notes))


def lost(ids):
    return torch.unique(ids, return_inverse=True)[1]


@pytest.mark.parametrize(
    "prepare",
    [
        lost,
        lambda i: i.cumsum(1),
        lambda i: torch.diff(i, prepend=i[:, :1]).abs(),
        lambda i: torch.tensor(i.tolist()),
        lambda i: torch.from_numpy(i.numpy().copy()),
        lambda i: torch.stack([torch.tensor([int(v) for v in row]) for row in i]),
    ],
)
def test_ids_that_cannot_be_followed_are_reported(prepare):
    beside = make(lambda s, ids, x: s.head(s.emb(prepare(ids)) + x))
    trace = RelevancePropagator(beside, EXACT).trace(IDS, noise(2, 3, 4))
    assert isinstance(trace.relevance(1), torch.Tensor)
    assert "'args[0]'" in said(trace.report()) and "no relevance" in said(trace.report())
    alone = make(lambda s, ids: s.head(s.emb(prepare(ids))))
    with pytest.raises(InputError, match=r"'args\[0\]'"):
        RelevancePropagator(alone, EXACT).trace(IDS).relevance(1)
    with pytest.raises(InputError, match=r"'args\[0\]'"):
        RelevancePropagator(alone, EXACT, unknown="error").trace(IDS).relevance(1)


def test_masks_lengths_and_positions_are_no_inputs_to_explain():
    def run(s, ids, mask, lengths):
        weight = (mask * (ids != 0)).to(torch.float64)[..., None]
        positions = (ids != 0).cumsum(1)
        e = s.emb(ids) * weight + s.position(positions)
        return s.head(e) / lengths.sqrt()[:, None] / lengths[:, None]

    net = make(run, position=nn.Embedding(9, 4))
    mask, lengths = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([2, 3])
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(IDS, mask, lengths)
    R = trace.relevance(1)
    weight = (mask * (IDS != 0)).double()[..., None]

    def score(s):
        e = scaled(s) * weight + net.position((IDS != 0).cumsum(1))
        return net.head(e) / lengths[:, None] ** 1.5

    torch.testing.assert_close(R, right(net, None, score=score))
    assert R[0, 2] == 0 and R[1, 1] == 0
    assert "'args[2]'" in said(trace.report()) and "'args[1]'" not in said(trace.report())
    assert not trace.report().warnings


# ------------------------------------------------------------------------------------------------ float tables


def tabular(cast):
    return make(lambda s, x: s.head(s.emb(cast(x[:, :3]))) + x[:, 3:].relu() @ s.w)


CASTS = {
    "long": lambda c: c.long(),
    "int": lambda c: c.int(),
    "to": lambda c: c.to(torch.int64),
    "type": lambda c: c.type(torch.long),
    "with offsets": lambda c: (c.long() + OFFSETS) - OFFSETS,
    "one hot": lambda c: c.long().clone(),
}


@pytest.mark.parametrize("name", CASTS)
def test_columns_of_a_float_table_that_become_ids(name):
    net = tabular(CASTS[name])
    net.w = nn.Parameter(noise(3, 2, seed=6))
    x = torch.cat([IDS.double(), noise(2, 3, seed=7)], 1)
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(x)
    R = trace.relevance(1)
    torch.testing.assert_close(R[:, :3], right(net, scaled))
    torch.testing.assert_close(R[:, 3:], x[:, 3:].relu() * net.w.detach()[:, 1])
    assert "became ids" in said(trace.report()) and "'args[0]'" in said(trace.report())
    torch.testing.assert_close(trace.report().result, float(R.sum()))
    torch.testing.assert_close(LrpExplainer(net, EXACT).explain(x, 1), R)  # frees the graph on the way


@pytest.mark.parametrize(
    "cast", [lambda c: c.round().long(), lambda c: (c * 1.0 + 0.2).long(), lambda c: c.clamp(0, 9).int()]
)
def test_computed_columns_that_become_ids_are_reported(cast):
    net = tabular(cast)
    net.w = nn.Parameter(noise(3, 2, seed=6))
    x = torch.cat([IDS.double(), noise(2, 3, seed=7)], 1)
    trace = RelevancePropagator(net, EXACT).trace(x)
    assert not trace.relevance(1)[:, :3].any()
    assert "no relevance" in said(trace.report()) and trace.report().warnings


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.double() / 255,
        lambda x: x.to(torch.float64).div(255),
        lambda x: (x / 255).double(),
        lambda x: x.permute(0, 2, 3, 1).type(torch.float64).permute(0, 3, 1, 2) / 255,
        lambda x: x * torch.tensor(1 / 255, dtype=torch.float64),
        lambda x: (x - torch.zeros(3, 1, 1, dtype=torch.float64)) / 255,
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_pictures_of_integers_are_explained(cast, dtype):
    net = Net(lambda s, x: s.conv(cast(x)).relu().mean((2, 3)), conv=nn.Conv2d(3, 2, 3, bias=False))
    x = torch.randint(0, 255, (2, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(dtype)
    trace = RelevancePropagator(net, EXACT, unknown="error").trace(x)
    assert torch.equal(trace.output, net(x).detach())
    leaf = (x.double() / 255).requires_grad_()
    (g,) = torch.autograd.grad(net.conv(leaf).relu().mean((2, 3))[:, 1].sum(), leaf)
    R = trace.relevance(1)
    assert R.dtype == torch.float64 and R.shape == x.shape
    torch.testing.assert_close(R, g * leaf.detach(), rtol=1e-5, atol=1e-8)


def test_a_model_without_integers_pays_nothing():
    trace = RelevancePropagator(nn.Linear(3, 2), EXACT).trace(noise(2, 3).float())
    assert not trace.recording.interceptor.ids.active


def test_no_warning_of_python_comes_with_following():
    net = make(lambda s, ids: s.head(s.emb(ids[:, 1:].contiguous())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RelevancePropagator(net, EXACT).trace(IDS).relevance([0, 1])
