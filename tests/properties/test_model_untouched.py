"""Whatever is asked, and however it ends, the model is afterwards what it was before."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import rules
from saliency_lrp.composites import Composite, list_composites
from saliency_lrp.errors import InputError
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.nets import fingerprint
from tests.helpers.tiny import Net, noise, statistics


def residual(s, x):
    y = s.norm(s.conv(x)).relu_()
    y = s.skip(y).add_(y)
    return s.head(s.drop(s.pool(y)).flatten(1))


def conv_net():
    convs = {"conv": nn.Conv2d(3, 4, 3, padding=1), "skip": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    return statistics(Net(residual, **convs, pool=nn.MaxPool2d(2), drop=nn.Dropout(), head=nn.Linear(36, 5)))


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Net(lambda s, x: s.head(s.layer(x).mean(1)), layer=layer, head=nn.Linear(8, 5))


def recurrent():
    layer = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    return Net(lambda s, x: s.head(s.layer(x)[0][:, -1]), layer=layer, head=nn.Linear(8, 5))


MODELS = {"conv": (conv_net, (3, 6, 6)), "transformer": (transformer, (4, 8)), "recurrent": (recurrent, (4, 3))}


def dressed(model):
    """With everything a user may have put on it: modes, frozen parts, gradients, hooks, attributes."""
    model.train()
    next(model.children()).eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    for p in parameters[1:]:
        p.grad = torch.randn_like(p)
    model.register_forward_hook(lambda m, i, o: None)
    model.head.register_full_backward_hook(lambda m, i, o: None)
    model.head.register_forward_pre_hook(lambda m, i: None)
    model.note = "mine"
    return model


def global_hooks():
    tables = [v for k, v in vars(nn.modules.module).items() if k.startswith("_global") and k.endswith("hooks")]
    return [dict(t) for t in tables if t is not None]


def gradients(model, x):
    """The model's own gradients, in eval mode."""
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(twin(leaf)[:, 0].sum(), [leaf, *twin.parameters()], allow_unused=True)


def everything(trace):
    trace.relevance(1, account=True)
    trace.relevance(None, seed="contrastive")
    trace.relevances([0, 1])
    trace.relevance(lambda out: out[:, 0] - out[:, 1])
    trace.layer_relevance(["head", ""], 2)
    trace.report()


@pytest.mark.parametrize("name", MODELS)
def test_everything_one_can_ask(name):
    make, shape = MODELS[name]
    model, x = dressed(make()), noise(2, *shape)
    before, hooks, kept = fingerprint(model), global_hooks(), x.clone()
    want = gradients(model, x)
    for composite in ("auto", "epsilon", "epsilon_plus", "cp_lrp"):
        everything(RelevancePropagator(model, composite).trace(x))
        LrpExplainer(model, composite).explain(x, 1)
    assert fingerprint(model) == before
    assert global_hooks() == hooks
    assert torch.equal(x, kept) and x.grad is None
    for a, b in zip(gradients(model, x), want, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("composite", list_composites())
def test_every_composite(composite):
    model, x = dressed(conv_net()), noise(2, 3, 6, 6)
    before = fingerprint(model)
    RelevancePropagator(model, composite).trace(x).relevance(1, account=True)
    assert fingerprint(model) == before


class Boom(Exception):
    pass


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "where", ["first module", "last module", "own code", "shape", "rule", "target", "seed", "interrupt"]
)
def test_every_way_to_fail(name, where):
    make, shape = MODELS[name]
    model, x = dressed(make()), noise(2, *shape)
    inner, function = list(model.children()), model.function

    def fails(*_):
        raise KeyboardInterrupt if where == "interrupt" else Boom

    handle = None
    if where in ("first module", "last module"):
        handle = inner[0 if where == "first module" else -1].register_forward_hook(fails)
    if where in ("own code", "interrupt"):
        model.function = lambda s, x: fails(function(s, x))
    if where == "shape":
        x = noise(2, 2, *shape)[..., :1]
    composite = "epsilon"
    if where == "rule":
        rule = type("_Fails", (rules.Epsilon,), {"relevance": lambda self, site, R: fails()})()
        composite = Composite([("head", rule)])
    before, hooks = fingerprint(model), global_hooks()
    mine = {"target": fails} if where == "target" else {"seed": fails} if where == "seed" else {}
    with pytest.raises((Boom, KeyboardInterrupt, InputError)):
        RelevancePropagator(model, composite).trace(x).relevance(**mine)
    assert fingerprint(model) == before
    assert global_hooks() == hooks
    assert torch._C._len_torch_function_stack() == 0
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model.function = function
    if handle is not None:
        handle.remove()
    assert RelevancePropagator(model).trace(noise(2, *shape)).relevance(0).shape == (2, *shape)


def test_the_modes_are_set_without_the_models_own_train():
    """Some models do more in ``train()`` than set a flag."""
    model = conv_net().train()
    model.train = model.eval = lambda *_: pytest.fail("the model's own train() or eval() was called")
    RelevancePropagator(model).trace(noise(2, 3, 6, 6)).relevance(0)
    assert model.training and model.norm.training


def test_user_hooks_run_and_may_change_the_output():
    """A hook is part of the model: what it returns is what is explained."""
    model, x = Net(lambda s, x: s.b(s.a(x).relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 2)), noise(2, 3)
    model.a.register_forward_hook(lambda m, i, o: o * torch.tensor([1.0, 0.0, 1.0, 0.0]))
    twin = Net(lambda s, x: s.b((s.a(x) * torch.tensor([1.0, 0.0, 1.0, 0.0])).relu()), a=model.a, b=model.b)
    twin.a = copy.deepcopy(model.a)
    twin.a._forward_hooks.clear()
    a, b = (RelevancePropagator(m, "epsilon").trace(x) for m in (model, twin))
    assert torch.equal(a.output, b.output) and torch.equal(a.relevance(1), b.relevance(1))


def test_dropout_is_off_and_statistics_stand_still():
    model, x = conv_net(), noise(8, 3, 6, 6)
    want = RelevancePropagator(model, "epsilon").trace(x).relevance(0)
    mean = model.norm.running_mean.clone()
    model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(RelevancePropagator(model, "epsilon").trace(x).relevance(0), want)
    assert torch.equal(model.norm.running_mean, mean) and int(model.norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert F.dropout(torch.ones(100), 0.5, model.training).eq(0).any()


class SetsItsOwnMode(nn.Module):
    """A model whose forward turns a part of it to train mode, as Monte Carlo dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 3), nn.Dropout(0.0)

    def forward(self, x):
        self.drop.train()
        return self.layer(self.drop(x))


def test_modes_that_the_forward_sets_are_set_back():
    model = SetsItsOwnMode().eval()
    RelevancePropagator(model, "epsilon").trace(torch.randn(2, 4))
    assert not any(module.training for module in model.modules())
