"""Batch norms: folded into the linear layer whose output they read, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator

F64 = torch.float64


class Model(nn.Module):
    """Some layers, a function of them and the input, and a dense head on all that it gives."""

    def __init__(self, layers: dict[str, nn.Module], run: Callable[[nn.Module, Tensor], Tensor], width: int) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.weight, self.run, self.head = nn.Parameter(torch.randn(4, 5)), run, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, x).flatten(1))


CASES: dict[str, tuple[Callable[[], Model], tuple[int, ...]]] = {
    "conv": (lambda: Model({"c": nn.Conv2d(2, 3, 3), "b": nn.BatchNorm2d(3)}, lambda m, x: m.b(m.c(x)), 12), (2, 4, 4)),
    "no_affine": (
        lambda: Model({"c": nn.Conv1d(2, 3, 2), "b": nn.BatchNorm1d(3, affine=False)}, lambda m, x: m.b(m.c(x)), 12),
        (2, 5),
    ),
    "transposed_groups": (
        lambda: Model(
            {"c": nn.ConvTranspose2d(4, 6, 2, 2, groups=2), "b": nn.BatchNorm2d(6)}, lambda m, x: m.b(m.c(x)), 96
        ),
        (4, 2, 2),
    ),
    "dense": (lambda: Model({"c": nn.Linear(5, 4), "b": nn.BatchNorm1d(4)}, lambda m, x: m.b(m.c(x)), 4), (5,)),
    # channels are the second axis, the dense layer's outputs the last: nothing to fold, also where both are 4 wide
    "dense_on_sequences": (
        lambda: Model({"c": nn.Linear(5, 4), "b": nn.BatchNorm1d(4)}, lambda m, x: m.b(m.c(x)), 16),
        (4, 5),
    ),
    "dense_on_longer_sequences": (
        lambda: Model({"c": nn.Linear(5, 4), "b": nn.BatchNorm1d(3)}, lambda m, x: m.b(m.c(x)), 12),
        (3, 5),
    ),
    "matmul": (lambda: Model({"b": nn.BatchNorm1d(4)}, lambda m, x: m.b(x @ m.weight.T), 4), (5,)),
    "einsum": (
        lambda: Model({"b": nn.BatchNorm1d(4)}, lambda m, x: m.b(torch.einsum("nf,of->no", x, m.weight)), 4),
        (5,),
    ),
    "functional": (
        lambda: Model(
            {"c": nn.Conv1d(2, 3, 1), "b": nn.BatchNorm1d(3)},
            lambda m, x: F.batch_norm(m.c(x), m.b.running_mean, m.b.running_var, m.b.weight, m.b.bias, eps=0.1),
            12,
        ),
        (2, 4),
    ),
    "read_twice": (
        lambda: Model(
            {"c": nn.Conv1d(2, 3, 1), "b": nn.BatchNorm1d(3)}, lambda m, x: (lambda y: m.b(y) + y)(m.c(x)), 12
        ),
        (2, 4),
    ),
    "two_batch_norms_of_one_layer": (
        lambda: Model(
            {"c": nn.Conv1d(2, 3, 1), "b": nn.BatchNorm1d(3), "d": nn.BatchNorm1d(3)},
            lambda m, x: (lambda y: m.b(y) + m.d(y))(m.c(x)),
            12,
        ),
        (2, 4),
    ),
    "changed_in_between": (
        lambda: Model(
            {"c": nn.Conv1d(2, 3, 1), "b": nn.BatchNorm1d(3)}, lambda m, x: m.b(m.c(x).mul_(2.0).flip(1)), 12
        ),
        (2, 4),
    ),
    "input_changed_in_between": (
        lambda: Model({"c": nn.Conv1d(2, 2, 1), "b": nn.BatchNorm1d(2)}, lambda m, x: twice_in_place(m, x + 0), 8),
        (2, 4),
    ),
    "batch_norm_of_batch_norm": (
        lambda: Model(
            {"c": nn.Conv1d(2, 3, 1), "b": nn.BatchNorm1d(3), "d": nn.BatchNorm1d(3)}, lambda m, x: m.d(m.b(m.c(x))), 12
        ),
        (2, 4),
    ),
    "first": (lambda: Model({"b": nn.BatchNorm1d(2)}, lambda m, x: m.b(x), 8), (2, 4)),
}  # fmt: skip


def twice_in_place(model: nn.Module, x: Tensor) -> Tensor:
    """The layer's input is written to before the batch norm runs."""
    y = model.c(x)
    x *= 3.0
    return model.b(y) + x


def made(name: str) -> tuple[Model, Tensor]:
    torch.manual_seed(4)
    build, shape = CASES[name]
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model.to(F64).eval().requires_grad_(False), torch.randn(2, *shape, dtype=F64)


def slope(model: nn.Module, shape: tuple[int, ...], target: int) -> Tensor:
    """Gradient of an affine model, from its values alone (autograd refuses one that writes into its input)."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        values = model(torch.cat([torch.zeros(1, size), torch.eye(size)]).to(F64).reshape(-1, *shape))[:, target]
    return (values[1:] - values[0]).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_under_a_vanishing_epsilon_it_is_the_gradient_times_the_input(name):
    """These nets are affine: LRP-0 must give x times the gradient, however layers are folded."""
    model, x = made(name)
    trace = RelevancePropagator(model, rules.Epsilon(1e-14)).trace(x)
    assert torch.equal(trace.output, model(x))
    want = x * slope(model, tuple(x.shape[1:]), target=1)
    torch.testing.assert_close(trace.relevance(target=1), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "rule", [rules.ZPlus(bias="distribute"), rules.AlphaBeta(2, 1, bias="distribute"), rules.Flat()]
)
@pytest.mark.parametrize("name", CASES)
def test_any_rule_conserves(name, rule):
    model, x = made(name)
    sums = (composites.kind("sum"), rules.Norm(1e-9, bias="distribute"))
    composite = Composite([(composites.kind("linear"), rule), sums])
    trace = RelevancePropagator(model, composite).trace(x)
    R = torch.rand(trace.output.shape, dtype=F64)
    torch.testing.assert_close(trace.relevance(seed=R).flatten(1).sum(1), R.sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "rule", [rules.Epsilon(), rules.ZPlus(), rules.GeneralizedGamma(), rules.AlphaBeta(2, 1), rules.Flat()]
)
def test_folded_is_merged(rule):
    """The same as a layer whose weights were merged by hand."""
    model, x = made("conv")
    c, b = model.c, model.b
    gain = b.weight / (b.running_var + b.eps).sqrt()
    merged = nn.Conv2d(2, 3, 3, dtype=F64)
    merged.weight.data = (c.weight * gain[:, None, None, None]).detach()
    merged.bias.data = ((c.bias - b.running_mean) * gain + b.bias).detach()
    other = nn.Sequential(merged, nn.Flatten(), model.head)
    got, want = (RelevancePropagator(m, rule).trace(x).relevance(target=2) for m in (model, other))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_relevance_between_a_layer_and_its_batch_norm_is_what_is_at_the_output():
    model, x = made("conv")
    trace = RelevancePropagator(model, "epsilon").trace(x)
    at_output = trace.layer_relevance("b", which="output")
    assert at_output.abs().sum() > 0
    assert torch.equal(trace.layer_relevance("c", which="output"), at_output)
    assert torch.equal(trace.layer_relevance("b", which="input"), at_output)


def test_bounds_that_do_not_fit_the_padded_input_are_explained():
    layer, x = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), torch.rand(1, 2, 5, 5)
    trace, R = RelevancePropagator(layer).trace(x), torch.ones(1, 3, 5, 5)
    for low in (-1.0, torch.full((1, 2, 1, 1), -1.0)):
        assert trace.relevance(seed=R, composite=rules.ZBox(low, 2.0)).shape == x.shape
    with pytest.raises(InputError, match="one value per channel"):
        trace.relevance(seed=R, composite=rules.ZBox(torch.zeros(1, 2, 5, 5), 2.0))
