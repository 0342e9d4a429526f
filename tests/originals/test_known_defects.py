"""Every defect found in the original implementations, turned round: here the answer is right.

``tests/data/known_defects.json`` says what the originals do, with a minimal repro and the right answer; the
answers below are worked by hand from it, or come from an independent float64 formula (arrays "right").
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import composites, explainers, rules
from saliency_lrp.errors import InputError
from saliency_lrp.inverter_util import InnvestigateModel
from saliency_lrp.inverter_util import RelevancePropagator as LayerPropagator
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.golden import DATA, tensor

KNOWN = {d["id"]: d for d in json.loads((DATA / "known_defects.json").read_text())["known_defects"]}
CHECKS: dict[str, Callable[[], None]] = {}

# Packaging of the original: nothing to compute.
DOCUMENTED_ONLY = {"arras_lstm.code_package"}


def defect(name: str) -> Callable:
    """Register the check of one known defect."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        assert name in KNOWN and name not in CHECKS
        CHECKS[name] = check
        return check

    return register


def T(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(weight: list, bias: list | None = None) -> nn.Linear:
    weight = T(weight)
    layer = nn.Linear(*reversed(weight.shape), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(T(bias))
    return layer


def batch_norm(weight: float, bias: float, mean: float, var: float, eps: float) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(1, eps=eps, dtype=torch.float64).eval()
    for stored, value in zip(
        (layer.weight, layer.bias, layer.running_mean, layer.running_var), (weight, bias, mean, var), strict=True
    ):
        stored.data.fill_(value)
    return layer


def lrp(model: nn.Module, x: Tensor, composite: object, R: Tensor | None = None, **how: object) -> Tensor:
    trace = RelevancePropagator(model, composite).trace(x)
    return trace.relevance(**how) if R is None else trace.relevance(seed=R, **how)


def close(got: Tensor, want: object, rtol: float = 1e-5, atol: float = 1e-9) -> None:
    want = want if isinstance(want, Tensor) else T(want)
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=atol)


def in_order(*by_position: rules.Rule) -> composites.Composite:
    """Rules for the linear sites in order of execution."""
    return composites.Composite([(composites.first(n), rule) for n, rule in enumerate(by_position, start=1)])


class PlusInput(nn.Module):
    """``l(x) + x``: an addition that is no module."""

    def __init__(self, first: nn.Module, then: nn.Module | None = None):
        super().__init__()
        self.first, self.then = first, then or nn.Identity()

    def forward(self, x):
        return self.then(self.first(x) + x)


# -- captum ------------------------------------------------------------------------------------------------


@defect("captum.functional_add")
def _():
    close(lrp(PlusInput(linear([[1.0]])), T([[3.0]]), "epsilon"), [[6.0]])


@defect("captum.alpha1beta0_negative")
def _():
    close(lrp(linear([[1.0, -1.0]], [0.0]), T([[1.0, -2.0]]), rules.AlphaBeta(1, 0)), [[1.0, 2.0]])
    close(lrp(linear([[1.0, 1.0]], [-1.9]), T([[1.0, 1.0]]), rules.AlphaBeta(1, 0)), [[0.05, 0.05]])


@defect("captum.gamma_negative_inputs")
def _():
    layer, x = linear([[1.0, -1.0]], [0.0]), T([[1.0, -2.0]])
    close(lrp(layer, x, rules.GeneralizedGamma(1.0)), [[1.0, 2.0]])
    close(lrp(layer, x, rules.Gamma(1.0)), [[1.5, 1.5]])  # captum's own formula, under its own name


@defect("captum.unsupported")
def _():
    layers = {
        nn.Flatten(): (1, 2, 2), nn.Identity(): (1, 2), nn.Conv1d(1, 1, 1): (1, 1, 2),
        nn.Conv3d(1, 1, 1): (1, 1, 1, 1, 1), nn.BatchNorm1d(2): (1, 2), nn.LeakyReLU(): (1, 2),
        nn.GELU(): (1, 2), nn.Sigmoid(): (1, 2), nn.Softmax(1): (1, 2),
    }  # fmt: skip
    for layer, shape in layers.items():
        x = torch.ones(shape)
        out = layer.eval()(x)
        got = RelevancePropagator(nn.Sequential(layer), "epsilon", unknown="error").trace(x)
        got = got.relevance(seed=torch.ones_like(out))
        assert got.shape == x.shape and got.isfinite().all()


@defect("captum.rule_removed")
def _():
    propagator = RelevancePropagator(nn.Sequential(linear([[1.0, -0.5]], [0.0])), rules.Gamma(1.0))
    for _ in range(2):
        close(propagator.trace(T([[1.0, 1.0]])).relevance(), [[2 / 3, -1 / 6]])


@defect("captum.reused_module")
def _():
    layer = linear([[2.0, 0.0], [1.0, 1.0]])
    close(lrp(nn.Sequential(layer, layer), T([[1.0, 2.0]]), "epsilon", target=0), [[4.0, 0.0]])


# -- iNNvestigate ------------------------------------------------------------------------------------------


@defect("innvestigate.bn_fuse")
def _():
    net = nn.Sequential(linear([[1.0]]), batch_norm(2.0, 1.0, mean=1.0, var=4.0, eps=0.0))
    close(lrp(net, T([[3.0]]), rules.Epsilon(1e-9)), [[3.0]])


@defect("innvestigate.bn_reverse_axis")
def _():
    for dims, norm in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), start=1):
        bn = norm(3, dtype=torch.float64).eval()
        stats = [s.data.uniform_(0.5, 1.5).reshape(1, 3, *[1] * dims)
                 for s in (bn.weight, bn.bias, bn.running_mean, bn.running_var)]  # fmt: skip
        _, shift, mean, _ = stats
        x = torch.randn(2, 3, *[2] * dims, dtype=torch.float64)
        y, R = bn(x).detach(), torch.randn(x.shape, dtype=torch.float64)
        got = lrp(bn, x, composites.Composite([(composites.family("batch_norm"), rules.BatchNormReverse())]), R)
        close(got, R * x * (y - shift) / ((x - mean) * y), rtol=1e-4)


@defect("innvestigate.alphabeta_bias")
def _():
    net, x = linear([[1.0, 1.0]], [-1.0]), T([[1.0, 1.0]])
    close(lrp(net, x, "lrp.alpha_1_beta_0"), [[0.5, 0.5]])
    close(lrp(net, x, "lrp.alpha_2_beta_1"), [[1.0, 1.0]])
    close(lrp(net, x, "lrp.alpha_1_beta_0_IB"), [[0.5, 0.5]])


@defect("innvestigate.alphabetax_alpha1")
def _():
    layer, x = linear([[1.0, -1.0]]), T([[1.0, -1.0]])
    close(lrp(layer, x, rules.AlphaBetaX(alpha=(1, 1), beta=(0, 0))), [[2.0, 2.0]])
    close(lrp(layer, x, rules.AlphaBetaX(alpha=(1, 0), beta=(0, 1))), [[2.0, 0.0]])


@defect("innvestigate.augment_positional")
def _():
    net, x = linear([[1.0, 3.0], [2.0, 4.0]], [0.0, 0.0]), T([[1.0, 1.0], [2.0, 2.0]])
    for ind in (1, [1, 1], torch.tensor([1, 1])):
        close(explainers.get("integrate_grad", net).explain(x, ind), [[2.0, 4.0], [4.0, 8.0]])


@defect("innvestigate.rule_list_reversed")
def _():
    net, x = nn.Sequential(linear([[1.0, 3.0], [0.0, 2.0]]), linear([[1.0, 3.0]])), T([[1.0, 1.0]])
    z, flat = rules.Epsilon(1e-9), rules.Flat()
    close(lrp(net, x, in_order(z, flat)), [[1.25, 8.75]])
    close(lrp(net, x, in_order(flat, z)), [[5.0, 5.0]])


@defect("innvestigate.rules_mutated")
def _():
    table = [(composites.kind("linear"), rules.Epsilon())]
    composite = composites.Composite(table) | composites.Composite([(composites.first(), rules.Flat())])
    close(lrp(linear([[1.0, 3.0]]), T([[1.0, 1.0]]), composite), [[2.0, 2.0]])
    assert len(table) == 1 and len(composite.rows) == 2


@defect("innvestigate.relu_layer_refused")
def _():
    class Functional(nn.Sequential):
        def forward(self, x):
            return self[1](F.relu(self[0](x)))

    first, last, x = linear([[1.0, 0.0], [-1.0, 1.0]]), linear([[1.0, 1.0]]), T([[2.0, 1.0]])
    close(lrp(nn.Sequential(first, nn.ReLU(), last), x, "lrp.flat"), [[1.0, 1.0]])
    close(lrp(Functional(first, last), x, "lrp.flat"), [[1.0, 1.0]])


@defect("innvestigate.head_value")
def _():
    net, x = nn.Sequential(linear([[2.0, 0.0]]), nn.ReLU()), T([[3.0, 1.0]])
    for method in ("guided_backprop", "deconvnet"):
        close(lrp(net, x, method, seed="one"), [[2.0, 0.0]])
        close(lrp(net, x, method, seed="logit"), [[12.0, 0.0]])


@defect("innvestigate.deep_taylor_last_layer")
def _():
    # its numbers (z+ on the head) are the golden ones; the w^2 rule that its table names is one option away
    net, x = linear([[1.0, 3.0]], [0.0]), T([[1.0, 1.0]])
    close(lrp(net, x, "deep_taylor"), [[1.0, 3.0]])
    close(lrp(net, x, composites.Composite([(composites.last(), rules.WSquare())])), [[0.4, 3.6]])


# -- the notebook's z-rule -----------------------------------------------------------------------------------


@defect("notebook_zrule.weight_grad")
def _():
    w = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)

    class Functional(nn.Module):
        def forward(self, x):
            return F.linear(x, w)

    close(lrp(Functional(), T([[1.0, 2.0]]), "epsilon", R=T([[1.0]])), [[1 / 3, 2 / 3]])
    assert w.grad is None


@defect("notebook_zrule.no_stabiliser")
def _():
    got = lrp(linear([[1.0, -1.0]]), T([[1.0, 1.0]]), rules.Epsilon(0.01), R=T([[1.0]]))
    close(got, [[100.0, -100.0]])


# -- Pytorch-LRP and TensorWatch: single layers --------------------------------------------------------------


class MyConv(nn.Conv1d):
    pass


LAYERS = {
    "e_rule_dilation": (nn.Conv2d(1, 2, 3, dilation=2, bias=False), "e-rule"),
    "b_rule_dilation": (nn.Conv2d(1, 2, 3, dilation=2, bias=False), "b-rule"),
    "e_rule_stride_remainder": (nn.Conv2d(1, 2, 3, stride=2, bias=False), "e-rule"),
    "padding_same": (nn.Conv2d(1, 1, 3, padding="same", bias=False), "e-rule"),
    "padding_mode_circular": (nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False), "e-rule"),
    "maxpool_overlap": (nn.MaxPool1d(2, stride=1), "e-rule"),
    "maxpool_return_indices": (nn.MaxPool1d(2, return_indices=True), "e-rule"),
    "linear_b_rule_3d": (nn.Linear(3, 2), "b-rule"),
    "linear_b_rule_out1_batch": (nn.Linear(3, 1), "b-rule"),
    "tensorwatch_linear_shape": (nn.Linear(3, 2), "b-rule"),
    "b_rule_float64_conv": (nn.Conv1d(1, 1, 2, bias=False), "b-rule"),
    "b_rule_float64_linear": (nn.Linear(5, 3), "b-rule"),
    "conv_subclass": (MyConv(1, 1, 2, bias=False), "e-rule"),
    "unbatched_conv_b_rule": (nn.Conv2d(1, 2, 2, bias=False), "b-rule"),
}


def stored(name: str) -> dict[str, Tensor]:
    arrays = KNOWN[f"pytorch_lrp.{name}"]["arrays"]
    return {role: tensor("pytorch_lrp", "known_defects.npz", key) for role, key in arrays.items()}


def with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer = copy.deepcopy(layer).double()
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def one_layer(layer: nn.Module, x: Tensor, R: Tensor, method: str = "e-rule", **how: object) -> Tensor:
    """The original's layer-by-layer use."""
    args = {"lrp_exponent": 1, "beta": 0.5, "epsilon": 1e-6, "device": torch.device("cpu"), **how}
    propagator = LayerPropagator(method=method, **args)
    handle = layer.register_forward_hook(propagator.get_layer_fwd_hook(layer))
    try:
        layer(x)
    finally:
        handle.remove()
    return propagator.compute_propagated_relevance(layer, R)


def _check_layer(name: str) -> None:
    layer, method = LAYERS[name]
    a = stored(name)
    if "weight" in a:
        layer = with_weights(layer, a["weight"], a.get("bias"))
    got = one_layer(layer.double(), a["x"], a["R"], method)
    assert got.dtype == torch.float64
    own_precision = 1e-9 if "float64" in name else 2e-5  # of the stored answer, mostly float32
    close(got, a["right"], rtol=own_precision, atol=own_precision)


for _name in LAYERS:
    defect(f"pytorch_lrp.{_name}")(lambda name=_name: _check_layer(name))


@defect("pytorch_lrp.caller_relevance_mutated")
def _():
    R = T([[3.0, 4.0]])
    got = one_layer(linear([[1.0, 1.0], [1.0, -1.0]]), T([[1.0, 1.0]]), R)
    close(R, [[3.0, 4.0]], rtol=0, atol=0)
    close(got, [[1.5, 1.5]])


@defect("pytorch_lrp.beta_pm_lost")
def _():
    with pytest.warns(UserWarning, match="beta"):
        close(one_layer(linear([[-1.0]]), T([[1.0]]), T([[1.0]]), "b-rule", beta=0.0), [[0.0]])


@defect("pytorch_lrp.p_even_sign")
def _():
    layer, x, R = linear([[1.0, -1.0]]), T([[1.0, 1.0]]), T([[1.0]])
    with pytest.raises(InputError, match="1.5"):
        one_layer(layer, x, R, lrp_exponent=1.5)
    close(one_layer(layer, x, R, lrp_exponent=2), [[0.5, 0.5]])


@defect("pytorch_lrp.out_shape_mutated")
def _():
    layer, x = nn.Conv1d(1, 3, 2, bias=False), torch.randn(1, 1, 4)
    before = set(vars(layer))
    one_layer(layer, x, torch.randn(1, 3, 3), "b-rule")
    assert set(vars(layer)) == before and not layer._forward_hooks


@defect("pytorch_lrp.list_index")
def _():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_layer(nn.Conv1d(1, 1, 2, bias=False), torch.randn(1, 1, 4), torch.randn(1, 1, 3), "b-rule")


@defect("pytorch_lrp.unsupported_layers")
def _():
    layers = (
        nn.Flatten(), nn.Identity(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.LeakyReLU(), nn.Tanh(), nn.GELU(),
        nn.Softplus(), nn.ConvTranspose2d(1, 1, 2), nn.LayerNorm(2), nn.ZeroPad2d(1), nn.Sigmoid(), nn.Softmax(1),
    )  # fmt: skip
    for layer in layers:
        x = torch.rand(1, 1, 2, 2) + 0.5
        got = one_layer(layer, x, torch.rand_like(layer(x)))
        assert got.shape == x.shape and got.isfinite().all(), layer
    lstm, x = nn.LSTM(2, 2), torch.rand(3, 1, 2)
    assert one_layer(lstm, x, torch.rand(3, 1, 2)).shape == x.shape
    net = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(4, 1))
    per_layer = InnvestigateModel(net)
    per_layer.innvestigate(torch.tensor([[1, 3]]), rel_for_class=0)
    at_embedding = per_layer.get_r_values_per_layer()[-1]
    assert at_embedding.shape == (1, 2, 2) and at_embedding.abs().sum() > 0


# -- Pytorch-LRP and TensorWatch: whole models ---------------------------------------------------------------


@defect("pytorch_lrp.r_values_mutated")
def _():
    net = nn.Sequential(linear([[1.0, -1.0], [0.0, 0.0]], [7.0, 0.0]))
    model = InnvestigateModel(net)
    model.innvestigate(T([[1.0, 1.0]]))
    close(model.get_r_values_per_layer()[0], [[7.0, 0.0]], rtol=0, atol=0)


@defect("pytorch_lrp.logsoftmax_r_values")
def _():
    a = stored("logsoftmax_r_values")
    model = InnvestigateModel(nn.Sequential(with_weights(nn.Linear(2, 3), a["weight"], a["bias"]), nn.LogSoftmax(1)))
    model.innvestigate(a["x"])
    close(model.get_r_values_per_layer()[0], a["right"], rtol=1e-6)


@defect("pytorch_lrp.logsoftmax_batch_sum")
def _():
    a = stored("logsoftmax_batch_sum")
    close(one_layer(nn.LogSoftmax(dim=1), a["x"], a["R"])[:1], a["right"], rtol=1e-6)


@defect("pytorch_lrp.second_call")
def _():
    a = stored("second_call")
    model = InnvestigateModel(nn.Sequential(with_weights(nn.Linear(2, 2), a["weight"], a["bias"])))
    model.innvestigate(a["x"])
    for _ in range(2):
        close(model.innvestigate(rel_for_class=0)[1], a["right"], rtol=1e-6)


@defect("pytorch_lrp.shared_linear")
def _():
    a = stored("shared_linear")
    shared = with_weights(nn.Linear(3, 3), a["weight"], a["bias"])
    close(InnvestigateModel(nn.Sequential(shared, nn.ReLU(), shared)).innvestigate(a["x"])[1], a["right"], atol=1e-6)


@defect("pytorch_lrp.skip_connection")
def _():
    net = PlusInput(linear([[0.0, 1.0], [1.0, 0.0]]), linear([[1.0, 0.0]]))
    close(InnvestigateModel(net).innvestigate(T([[1.0, 2.0]]))[1], [[1.0, 2.0]])


@defect("pytorch_lrp.parallel_branches")
def _():
    class Two(nn.Module):
        def __init__(self, a, b, c):
            super().__init__()
            self.a, self.b, self.c = a, b, c

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    a = stored("parallel_branches")
    branch = [with_weights(nn.Linear(2, 2, bias=False), a[w]) for w in ("weight_a", "weight_b")]
    net = Two(*branch, with_weights(nn.Linear(4, 1, bias=False), a["weight_c"]))
    close(InnvestigateModel(net).innvestigate(a["x"])[1], a["right"], rtol=1e-5, atol=1e-6)


@defect("pytorch_lrp.functional_pooling")
def _():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.l = nn.Conv1d(1, 1, 1, bias=False), nn.Linear(2, 1, bias=False)
            nn.init.ones_(self.c.weight)
            nn.init.ones_(self.l.weight)

        def forward(self, x):
            return self.l(F.max_pool1d(self.c(x), 2).flatten(1))

    got = InnvestigateModel(Pooled().double()).innvestigate(T([[[1.0, 3.0, 2.0, 1.0]]]))[1]
    close(got, [[[0.0, 3.0, 2.0, 0.0]]])


@defect("pytorch_lrp.bare_layer")
def _():
    a = stored("bare_layer")
    model = InnvestigateModel(with_weights(nn.Linear(3, 2), a["weight"], a["bias"]))
    close(model.innvestigate(a["x"])[1], a["right"], rtol=1e-5, atol=1e-6)


@defect("pytorch_lrp.argmax_ties")
def _():
    net, x = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0]])), T([[1.0, 1.0]])
    close(InnvestigateModel(net).innvestigate(x)[1], [[1.0, 0.0]])


@defect("pytorch_lrp.gradients_altered")
def _():
    net, x = nn.Sequential(linear([[1.0]]), nn.ReLU(), linear([[-1.0]])), T([[1.0]]).requires_grad_()
    InnvestigateModel(net).innvestigate(x.detach())
    net(x).sum().backward()
    close(x.grad, [[-1.0]], rtol=0, atol=0)


@defect("pytorch_lrp.mode_not_set")
def _():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.9)).train()
    first = InnvestigateModel(net).innvestigate(torch.ones(8, 2))[1]
    assert net[1].num_batches_tracked == 0 and all(m.training for m in net.modules())
    assert torch.equal(first, InnvestigateModel(net).innvestigate(torch.ones(8, 2))[1])


@defect("pytorch_lrp.batchnorm_pass")
def _():
    net = nn.Sequential(linear([[1.0]]), batch_norm(1.0, 3.0, mean=1.0, var=1.0, eps=0.0))
    close(lrp(net, T([[2.0]]), "epsilon"), [[2.0]])
    close(InnvestigateModel(net).innvestigate(T([[2.0]]))[1], [[4.0]])  # its own convention, under its own name


@defect("pytorch_lrp.bias_ignored")
def _():
    net = nn.Sequential(linear([[-1.0]], [10.0]))
    close(lrp(net, T([[1.0]]), "epsilon"), [[-1.0]])
    close(InnvestigateModel(net).innvestigate(T([[1.0]]))[1], [[9.0]])  # its own convention


# -- zennit ------------------------------------------------------------------------------------------------


@defect("zennit.merge_bn_eps")
def _():
    net, x = nn.Sequential(linear([[2.0]], [0.0]), batch_norm(1.0, 0.0, mean=0.0, var=1.0, eps=0.1)), T([[1.0]])
    trace = RelevancePropagator(net, "epsilon").trace(x)
    assert torch.equal(trace.output, net(x).detach())
    close(trace.relevance(), net(x).detach())


@defect("zennit.wsquare_bias")
def _():
    layer, x, R = linear([[1.0, 1.0]], [1.0]), T([[5.0, 7.0]]), T([[3.0]])
    close(lrp(layer, x, rules.WSquare(), R), [[1.5, 1.5]])
    close(lrp(layer, x, rules.WSquare(bias="keep"), R), [[1.0, 1.0]])


@defect("zennit.zbox_bias")
def _():
    x, R, want = T([[0.5, 0.2]]), T([[1.0]]), [[1.5 / 2.3, 0.8 / 2.3]]
    for bias in ([0.7], [-5.0], None):
        close(lrp(linear([[1.0, -1.0]], bias), x, rules.ZBox(-1.0, 1.0), R), want)


@defect("zennit.reused_module")
def _():
    layer = linear([[2.0, 0.0], [1.0, 1.0]])
    got = lrp(nn.Sequential(layer, layer), T([[1.0, 2.0]]), rules.Epsilon(0.0), T([[1.0, 1.0]]))
    close(got, [[1.6, 0.4]], rtol=1e-12)


@defect("zennit.functional_invisible")
def _():
    close(lrp(PlusInput(linear([[1.0]])), T([[3.0]]), rules.Epsilon(0.0), T([[6.0]])), [[6.0]])


# -- the list ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_answer_is_right(name):
    CHECKS[name]()


def test_every_known_defect_is_checked_or_documented():
    assert set(CHECKS) | DOCUMENTED_ONLY == set(KNOWN)
    text = (DATA.parent.parent / "docs" / "differences.md").read_text()
    missing = [name for name in KNOWN if name not in text]
    assert not missing, f"docs/differences.md does not name {missing}"
