"""The original's API: whole models and layer by layer, on any graph, leaving everything as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from saliency_lrp import composites, inverter_util
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.inverter_util import InnvestigateModel
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers import reference

METHODS = ("e-rule", "b-rule")
CPU = torch.device("cpu")


def layerwise(method: str = "e-rule", exponent: float = 1, beta: float = 0.5) -> inverter_util.RelevancePropagator:
    return inverter_util.RelevancePropagator(exponent, beta, method, 1e-6, CPU)


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Dropout(0.5),
        nn.Conv2d(4, 3, 2), nn.ELU(), nn.Flatten(), nn.Linear(12, 4),
    ).double().eval()  # fmt: skip


class Branches(nn.Module):
    """What the original could not do: a shared layer, a skip connection, a concatenation, functional pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(3, 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.shared(F.relu(self.shared(x)))) + x
        pooled = F.max_pool1d(h[:, None], 2).flatten(1)
        return self.head(torch.cat([self.left(h), self.right(pooled)], dim=1))


def by_matrices(net: Branches, x: Tensor, R: Tensor, form: str, **args: object) -> Tensor:
    """The same net, worked through by hand with the matrix forms of the rules."""

    def through(layer: nn.Module, a: Tensor, R: Tensor) -> Tensor:
        return reference.relevance(form, layer, a, R, 1e-6, "zero", drop_zero=form == "power", **args)

    with torch.no_grad():
        first = F.relu(net.shared(x))
        second = F.relu(net.shared(first))
        h = second + x
        pooled, index = F.max_pool1d(h[:, None], 2, return_indices=True)
        joined = torch.cat([net.left(h), net.right(pooled[:, 0])], dim=1)
    R = through(net.head, joined, R)
    at_pooled = through(net.right, pooled[:, 0], R[:, 3:])
    at_h = through(net.left, h, R[:, :3]).scatter_add(1, index[:, 0], at_pooled)
    at_second, at_x = at_h * second / h, at_h * x / h
    return at_x + through(net.shared, x, through(net.shared, first, at_second))


@pytest.mark.parametrize(
    ("how", "form", "args"),
    [
        ({"method": "e-rule"}, "power", {"p": 1}),
        ({"method": "e-rule", "lrp_exponent": 3}, "power", {"p": 3}),
        ({"method": "b-rule", "beta": 0.5}, "beta", {"beta": 0.5, "stabilizer": 1e-6}),
        ({"method": "b-rule", "beta": -0.5}, "beta", {"beta": -0.5, "stabilizer": 1e-6}),
    ],
    ids=["e", "e3", "b", "b-0.5"],
)
def test_any_graph(how, form, args):
    net, x = Branches().double(), torch.randn(3, 6, dtype=torch.float64)
    prediction, got = InnvestigateModel(net, **how).innvestigate(x)
    assert torch.equal(prediction, net(x).detach())
    R = torch.zeros_like(prediction).scatter_(1, prediction.argmax(1, keepdim=True), prediction.max(1, True).values)
    torch.testing.assert_close(got, by_matrices(net, x, R, form, **args), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_layer_by_layer_is_the_whole_model(method):
    net, x = cnn(), torch.randn(2, 2, 7, 7, dtype=torch.float64)
    propagator = layerwise(method)
    assert list(propagator.available_methods) == list(METHODS) and propagator.module_list == []
    handles = [layer.register_forward_hook(propagator.get_layer_fwd_hook(layer)) for layer in net]
    y = net(x).detach()
    for handle in handles:
        handle.remove()
    assert propagator.module_list == list(net)
    R = torch.zeros_like(y)
    R[:, 2] = y[:, 2]
    per_layer = [R]
    for layer in reversed(propagator.module_list):
        per_layer.append(propagator.compute_propagated_relevance(layer, per_layer[-1]))
    model = InnvestigateModel(net, method=method)
    _, whole = model.innvestigate(x, rel_for_class=2)
    torch.testing.assert_close(per_layer[-1], whole)
    values = model.get_r_values_per_layer()
    assert len(values) == len(per_layer)
    for got, want in zip(values, per_layer, strict=True):
        torch.testing.assert_close(got, want)
    propagator.reset_module_list()
    assert propagator.module_list == []
    with pytest.raises(InputError, match="has not run"):
        propagator.compute_propagated_relevance(net[0], per_layer[-2])


def test_a_layer_used_twice_answers_for_its_calls_from_the_last_one_back():
    layer, propagator = nn.Linear(3, 3).double(), layerwise()
    first, second = torch.randn(2, 1, 3, dtype=torch.float64)
    handle = layer.register_forward_hook(propagator.get_layer_fwd_hook(layer))
    layer(first), layer(second)
    handle.remove()
    R = torch.ones(1, 3, dtype=torch.float64)
    for _ in range(2):  # and around again, for another explanation
        for x in (second, first):
            want = reference.relevance("power", layer, x, R, bias="zero", drop_zero=True, p=1)
            torch.testing.assert_close(propagator.compute_propagated_relevance(layer, R), want)


def snapshot(model: nn.Module) -> tuple:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    names = [sorted(vars(m)) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    everywhere = (len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks))
    return hooks, names, flags, everywhere, copy.deepcopy(model.state_dict()), [p.grad for p in model.parameters()]


def same(before: tuple, after: tuple) -> bool:
    return before[:4] == after[:4] and before[5] == after[5] and all(
        torch.equal(v, after[4][k]) for k, v in before[4].items()
    )  # fmt: skip


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed(method, mode):
    net, x = cnn().train(mode), torch.randn(2, 2, 7, 7, dtype=torch.float64)
    kept, before = x.clone(), snapshot(net)
    model = InnvestigateModel(net, method=method)
    for _ in range(2):
        model.innvestigate(x)
        model.get_r_values_per_layer()
    assert torch.equal(x, kept) and not x.requires_grad and same(before, snapshot(net))


def test_nothing_is_left_behind_by_an_exception():
    class Fails(nn.Sequential):
        def forward(self, x):
            raise RuntimeError(f"no {super().forward(x).shape}")

    net = Fails(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="no torch.Size"):
        InnvestigateModel(net).innvestigate(torch.ones(1, 2))
    assert same(before, snapshot(net))


def test_evaluate_once_explain_many():
    net, x = cnn(), torch.randn(2, 2, 7, 7, dtype=torch.float64)
    model = InnvestigateModel(net)
    y = model.evaluate(x)
    assert torch.equal(y, net(x).detach()) and torch.equal(y, model.prediction)
    maps = [model.innvestigate(rel_for_class=k)[1] for k in (0, 3, 0)]
    assert torch.equal(maps[0], maps[2]) and not torch.equal(maps[0], maps[1])
    torch.testing.assert_close(maps[1], InnvestigateModel(net).innvestigate(x, 3)[1], rtol=0, atol=0)
    torch.testing.assert_close(model.innvestigate()[1], InnvestigateModel(net).innvestigate(x)[1], rtol=0, atol=0)


def test_it_is_a_module_around_the_model():
    net, x = cnn(), torch.randn(2, 2, 7, 7, dtype=torch.float64)
    model = InnvestigateModel(net)
    assert torch.equal(model(x), net(x)) and model.model is net


def test_relevance_of_every_call_of_a_shared_layer():
    shared = nn.Linear(3, 3).double()
    net, x = nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 3, dtype=torch.float64)
    model = InnvestigateModel(net)
    prediction, whole = model.innvestigate(x, rel_for_class=1)
    with torch.no_grad():
        h = F.relu(shared(x))
    start = torch.zeros_like(prediction)
    start[:, 1] = prediction[:, 1]
    at_h = reference.relevance("power", shared, h, start, bias="zero", drop_zero=True, p=1)
    for got, want in zip(model.get_r_values_per_layer(), [start, at_h, at_h, whole], strict=True):
        torch.testing.assert_close(got, want)


def test_equals_the_composites_of_the_engine():
    net, x = Branches(), torch.randn(2, 6)
    for method, composite in (("e-rule", "e_rule"), ("b-rule", composites.get("b_rule", beta=0.5))):
        want = RelevancePropagator(net, composite).trace(x).relevance(target=1)
        assert torch.equal(InnvestigateModel(net, method=method).innvestigate(x, 1)[1], want)


def test_log_softmax_goes_on_with_probabilities_sample_by_sample():
    net = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(dim=1)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    model = InnvestigateModel(net)
    prediction, whole = model.innvestigate(x)
    torch.testing.assert_close(whole.sum(1), prediction.exp().max(1).values, rtol=1e-4, atol=0)
    values = model.get_r_values_per_layer()
    torch.testing.assert_close(values[0].sum(1), prediction.max(1).values)
    for i in range(3):
        torch.testing.assert_close(InnvestigateModel(net).innvestigate(x[i : i + 1])[1], whole[i : i + 1])


@pytest.mark.parametrize("exponent", [0.5, 1.5])
def test_broken_exponent_needs_values_without_sign(exponent):
    layer, x = nn.Linear(3, 2, bias=False).double(), torch.rand(2, 3, dtype=torch.float64)
    layer.weight.data.abs_()
    got = InnvestigateModel(layer, lrp_exponent=exponent).innvestigate(x, 0)[1]
    y = layer(x).detach()[:, :1]
    powers = (x * layer.weight[0].detach()) ** exponent
    torch.testing.assert_close(got, powers / powers.sum(1, keepdim=True) * y, rtol=1e-4, atol=0)
    with pytest.raises(InputError, match=str(exponent)):
        InnvestigateModel(layer, lrp_exponent=exponent).innvestigate(-x, 0)


@pytest.mark.parametrize("beta", [-1, 0])
def test_warning_where_relevance_can_be_lost(beta):
    with pytest.warns(UserWarning, match=f"beta={beta}"):
        InnvestigateModel(nn.Linear(1, 1), beta=beta, method="b-rule")
    with pytest.warns(UserWarning, match=f"beta={beta}"):
        layerwise("b-rule", 1, beta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InnvestigateModel(nn.Linear(1, 1), beta=beta, method="e-rule")
        layerwise("b-rule", 1, 0.5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "e_rule"}, UnknownNameError, "Did you mean 'e-rule'"),
        ({"method": "b-rule", "beta": -1.5}, InputError, r"beta must be in \[-1, inf\), got -1.5"),
        ({"method": "b-rule", "beta": float("nan")}, InputError, "beta"),
        ({"epsilon": -1e-6}, InputError, "epsilon"),
    ],
)
def test_what_cannot_be_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        InnvestigateModel(nn.Linear(1, 1), **options)


def test_errors_say_what_to_do():
    model = InnvestigateModel(nn.Linear(2, 2))
    for ask in (model.innvestigate, model.get_r_values_per_layer):
        with pytest.raises(InputError, match="evaluate"):
            ask()
    with pytest.raises(InputError, match="out of range"):
        model.innvestigate(torch.ones(1, 2), rel_for_class=7)
    with pytest.raises(InputError, match="torch.nn.Module"):
        InnvestigateModel(lambda x: x)
    with pytest.raises(InputError, match="torch.nn.Module"):
        layerwise().get_layer_fwd_hook("layer")


@pytest.mark.parametrize("kind", ["lstm", "attention", "transposed", "layer_norm"])
def test_layers_the_original_refused(kind):
    net, x = {
        "lstm": lambda: (Last(nn.LSTM(3, 4, batch_first=True)), torch.randn(2, 5, 3)),
        "attention": lambda: (Pooled(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), torch.randn(2, 3, 4)),
        "transposed": lambda: (
            nn.Sequential(nn.ConvTranspose2d(1, 2, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            torch.randn(2, 1, 4, 4),
        ),
        "layer_norm": lambda: (
            nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 3)),
            torch.randn(2, 4),
        ),
    }[kind]()  # fmt: skip
    for method in METHODS:
        prediction, R = InnvestigateModel(net, method=method).innvestigate(x)
        assert R.shape == x.shape and R.isfinite().all() and R.abs().sum() > 0
        torch.testing.assert_close(prediction, net.eval()(x).detach())


class Last(nn.Module):
    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


class Pooled(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).mean(1)
