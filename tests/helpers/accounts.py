"""Accounts of small networks whose numbers are known."""

from __future__ import annotations

import torch
from torch import nn

from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.tiny import EXACT, Net

NOT_THE_SUM = "Relative strengths are meaningful; the sum is not."


def account(model, x, rule=EXACT, target=0, **options):
    trace = RelevancePropagator(model, rule).trace(x)
    trace.relevance(target, account=True, **options)
    return trace.report()


def dense(weight, bias=None):
    weight = torch.tensor(weight).double()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = torch.tensor(bias).double()
    return layer


def convs():
    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "b": nn.Conv2d(3, 3, 3, padding=1)}
    parts["norm"].bias.data = torch.tensor([0.3, -0.2, 0.5])
    return Net(
        lambda s, x: s.head((s.b(y := s.norm(s.a(x)).relu()) + y).relu().flatten(1) + 0.1),
        **parts,
        head=nn.Linear(48, 3),
    )
