"""The original implementations' own numbers, case by case (tests/data/README.md says how they were made).

Questionable cases are bugs or disputed conventions of the originals; docs/differences.md lists them. Those whose number
is the documented convention of a rule that is offered here under the same name are tested all the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite
from saliency_lrp.inverter_util import InnvestigateModel
from saliency_lrp.inverter_util import RelevancePropagator as LayerPropagator
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers import golden_nets, reference
from tests.helpers.golden import array, assert_golden, manifest, tensor

pytestmark = pytest.mark.exhaustive

F64, F32 = torch.float64, torch.float32
CPU = torch.device("cpu")


def cases(family: str, keep: Callable[[dict], bool] = lambda c: True, name: str = "manifest.json") -> list:
    """The cases of a family that are targets, as pytest parameters."""
    chosen = [c for c in manifest(family, name)["cases"] if keep(c)]
    assert chosen
    return [pytest.param(c, id=c["id"]) for c in chosen]


def clean(case: dict) -> bool:
    return "questionable" not in case


def role(family: str, case: dict, name: str, dtype: torch.dtype = F64) -> Tensor:
    return tensor(family, case["npz"], case["arrays"][name], dtype)


def check(family: str, case: dict, dtype: torch.dtype, got: Tensor, rtol: float = 1e-9) -> None:
    """float64: the original's float64 number. float32: as near to it as the original's own float32 was, times 16."""
    assert got.dtype == dtype
    want = array(family, case["npz"], case["arrays"]["R_in_f64"])
    if dtype == F64:
        assert_golden(got, want, rtol=rtol)
        return
    own = np.abs(array(family, case["npz"], case["arrays"]["R_in_f32"]) - want).max()
    assert np.abs(got.double().numpy() - want).max() <= 16 * (own + 1e-6 * np.abs(want).max())


both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


# -- Pytorch-LRP / TensorWatch -------------------------------------------------------------------------------


def method_of(case: dict) -> dict:
    rule = case["rule"]
    method = rule["method"] if rule["method"] in ("e-rule", "b-rule") else "e-rule"
    numbers = {"lrp_exponent": rule.get("p", 1), "beta": rule.get("beta", 0.5), "epsilon": rule.get("eps", 1e-6)}
    return {"method": method, **numbers}


def through_one_layer(layer: nn.Module, x: Tensor, R: Tensor, how: dict) -> Tensor:
    propagator = LayerPropagator(device=CPU, **how)
    handle = layer.register_forward_hook(propagator.get_layer_fwd_hook(layer))
    layer(x)
    handle.remove()
    return propagator.compute_propagated_relevance(layer, R)


@pytest.mark.filterwarnings("ignore:b-rule with beta")
@both_dtypes
@pytest.mark.parametrize("case", cases("pytorch_lrp", lambda c: c["kind"] == "layer"))
def test_pytorch_lrp_layer(case, dtype):
    """All of them: batch norm passing relevance and LogSoftmax are this API's documented conventions."""
    layer = golden_nets.layer((case["layer"]["type"], case["layer"]["args"]), "pytorch_lrp", case, dtype)
    x, R = (role("pytorch_lrp", case, name, dtype) for name in ("x", "R_out"))
    check("pytorch_lrp", case, dtype, through_one_layer(layer, x, R, method_of(case)))


CRASHES = manifest("pytorch_lrp", "original_crashes.json")


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in CRASHES["cases"]])
def test_pytorch_lrp_layer_where_the_original_crashes(case):
    case = {"npz": CRASHES["npz"], **case}
    layer = golden_nets.layer((case["layer"]["type"], case["layer"]["args"]), "pytorch_lrp", case, F64)
    x, R, how = role("pytorch_lrp", case, "x"), role("pytorch_lrp", case, "R_out"), method_of(case)
    want = reference.relevance("power", layer, x, R, how["epsilon"], "zero", drop_zero=True, p=how["lrp_exponent"])
    assert_golden(through_one_layer(layer, x, R, how), want)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in CRASHES["wrong_results"]])
def test_pytorch_lrp_pooling_where_the_original_is_wrong(case):
    """Overlapping or dilated windows: a winner takes the sum over all windows that it wins."""
    pool = golden_nets.sequential([case["layer"]])[0]
    x = torch.randn(2, 3, *(7,) * int(case["layer"]["type"][-2]), dtype=F64)
    y = pool(x)
    R, want = torch.randn_like(y), torch.zeros_like(x)
    for index in np.ndindex(*y.shape):
        channel = index[:2]  # in which every value occurs once
        want[channel] += torch.where(x[channel] == y[index], R[index], 0.0)
    got = through_one_layer(pool, x, R, {"method": "e-rule", "lrp_exponent": 1, "beta": 0.5, "epsilon": 1e-6})
    assert_golden(got, want)


def pytorch_lrp_net(case: dict, dtype: torch.dtype) -> nn.Module:
    made = golden_nets.sequential(case["net"]) if case["kind"] == "net" else golden_nets.MnistNet()
    return golden_nets.load(made, "pytorch_lrp", case["npz"], case["params"], dtype)


@pytest.mark.filterwarnings("ignore:b-rule with beta")
@both_dtypes
@pytest.mark.parametrize("case", cases("pytorch_lrp", lambda c: c["kind"] != "layer"))
def test_pytorch_lrp_net(case, dtype):
    """All of them, LogSoftmax too: in these every sample's relevance is negative, so batch and sample sums agree."""
    model = InnvestigateModel(pytorch_lrp_net(case, dtype), **method_of(case))
    prediction, got = model.innvestigate(role("pytorch_lrp", case, "x", dtype), case["rel_for_class"])
    assert prediction.dtype == dtype
    check("pytorch_lrp", case, dtype, got)
    if dtype == F64:
        assert_golden(prediction, role("pytorch_lrp", case, "y_f64"))


def has_clean_r_values(case: dict) -> bool:
    return clean(case) and "r_values_per_layer_f64" in case


@pytest.mark.filterwarnings("ignore:b-rule with beta")
@pytest.mark.parametrize("case", cases("pytorch_lrp", has_clean_r_values))
def test_pytorch_lrp_relevance_per_layer(case):
    model = InnvestigateModel(pytorch_lrp_net(case, F64), **method_of(case))
    model.innvestigate(role("pytorch_lrp", case, "x"), case["rel_for_class"])
    got = model.get_r_values_per_layer()
    assert len(got) == len(case["r_values_per_layer_f64"]) == len(case["net"]) + 1
    for k, key in enumerate(case["r_values_per_layer_f64"]):
        want = tensor("pytorch_lrp", case["npz"], key)
        # the original leaves relevance flat at the input of a Flatten
        assert_golden(got[k].reshape(want.shape), want, name=f"r_values[{k}]")


# -- Arras et al. --------------------------------------------------------------------------------------------


class SentenceModel(nn.Module):
    """A bidirectional LSTM whose last states feed a layer without bias."""

    def __init__(self, d: int, e: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(e, d, bidirectional=True)
        self.linear = nn.Linear(2 * d, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x[:, None])
        return self.linear(torch.cat([h[0], h[1]], dim=1))


@pytest.mark.parametrize("case", cases("arras_lstm", lambda c: c["kind"] == "lstm"))
def test_arras_lstm(case):
    made = manifest("arras_lstm")["models"][case["model"]]
    net = SentenceModel(made["d"], made["e"], made["C"])
    net = golden_nets.load(net, "arras_lstm", case["npz"], made["params_torch_layout"], F64)
    composite = composites.get("arras", epsilon=case["eps"], bias_factor=case["bias_factor"])
    trace = RelevancePropagator(net, composite).trace(role("arras_lstm", case, "x"))
    assert_golden(trace.output[0], role("arras_lstm", case, "scores"))
    got = trace.relevance(target=case["class"])
    assert_golden(got, role("arras_lstm", case, "Rx") + role("arras_lstm", case, "Rx_rev"))
    assert_golden(got.sum(1), role("arras_lstm", case, "R_words"))
    if case["globally_conserving"]:
        assert got.sum().item() + case["R_rest"] == pytest.approx(case["score"], rel=1e-9)


# -- the notebook's z-rule -----------------------------------------------------------------------------------


class Functional(nn.Module):
    """One call of a torch function, with its constants."""

    def __init__(self, op: str, args: dict, w: Tensor | None, b: Tensor | None, skip: bool) -> None:
        super().__init__()
        self.function = getattr(F, op)
        self.kwargs = {k: v for k, v in args.items() if k not in ("bias", "args")}
        if w is not None:
            self.kwargs |= {"weight": w, "bias": b}
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x, **self.kwargs)
        return y + x if self.skip else y


def is_z_rule(case: dict) -> bool:
    # the doubled skip connection is the defect; the conserving answer is a case of its own
    return case["id"] != "plain_gradient_w" and "skip_emulation" not in case["id"]


@pytest.mark.parametrize("case", cases("notebook_zrule", is_z_rule))
def test_notebook_z_rule(case):
    dtypes = [F32] if case["id"].endswith("f32") else [F64] if case["id"].endswith("f64") else [F64, F32]
    for dtype in dtypes:
        w, b = (role("notebook_zrule", case, k, dtype) if k in case["arrays"] else None for k in "wb")
        model = Functional(case["op"], case["args"], w, b, skip="skip" in case["id"])
        x, R = (role("notebook_zrule", case, k, dtype) for k in ("x", "R_out"))
        got = RelevancePropagator(model, composites.get("epsilon", epsilon=0.0)).trace(x).relevance(seed=R)
        suffix = {F64: "R_in_f64", F32: "R_in_f32"}[dtype]
        want = role("notebook_zrule", case, suffix if suffix in case["arrays"] else "R_in", F64)
        assert_golden(got, want, rtol=1e-9 if dtype == F64 and want.dtype == F64 and suffix in case["arrays"] else 1e-5)
        if "R_in" in case.get("printed", {}):
            printed = tensor("notebook_zrule", case["npz"], case["printed"]["R_in"])
            assert (got.double() - printed).abs().max() <= case["printed_tolerance"]
        if "R_in" in case["arrays"] and "skip" in case["id"]:
            assert got.sum().item() == pytest.approx(R.sum().item(), rel=1e-5)


def test_notebook_plain_gradient():
    (case,) = (c for c in manifest("notebook_zrule")["cases"] if c["id"] == "plain_gradient_w")
    w, x, R = (role("notebook_zrule", case, k, F32) for k in ("w", "x", "R_out"))
    got = RelevancePropagator(Functional("conv2d", case["args"], w, None, False), rules.Gradient()).trace(x)
    assert_golden(got.relevance(seed=R), role("notebook_zrule", case, "x_grad"), rtol=1e-6)


# -- iNNvestigate ----------------------------------------------------------------------------------------------

TINY = 1e-12  # the original only replaces exact zeros of a denominator


def rule_of(name: str) -> rules.Rule:
    """A rule by iNNvestigate's name."""
    return {
        "Z": rules.Epsilon(TINY),
        "ZIgnoreBias": rules.Epsilon(TINY, bias="zero"),
        "ZRule(bias=False)": rules.Epsilon(TINY, bias="zero"),
        "Epsilon": rules.Epsilon(1e-7),
        "Flat": rules.Flat(TINY),
        "WSquare": rules.WSquare(TINY),
        "Alpha1Beta0IgnoreBias": rules.AlphaBeta(1, 0, TINY, "zero"),
        "Alpha2Beta1IgnoreBias": rules.AlphaBeta(2, 1, TINY, "zero"),
        "AlphaBetaX1000Rule": rules.AlphaBetaX((1, 0), (0, 0), TINY),
        "AlphaBetaX2m100Rule": rules.AlphaBetaX((2, 0), (1, 0), TINY),
    }[name]


def input_layer(kwargs: dict) -> dict:
    """iNNvestigate's option input_layer_rule: a name, or bounds."""
    rule = kwargs.get("input_layer_rule")
    if rule is None:
        return kwargs
    made = rule_of(rule) if isinstance(rule, str) else rules.ZBox(*map(float, rule), TINY)
    return {**kwargs, "input_layer_rule": made}


def lrp_class(rule: str, bn_layer_rule: str | None = "Z", input_layer_rule: rules.Rule | None = None, **_: object):
    """The class LRP: one rule, and one for batch norms; None is their own reversal."""
    one = rule_of(rule)
    if bn_layer_rule is None:
        return Composite([(composites.kind("linear"), r) for r in (rules.BatchNormReverse(then=one), one)])
    of_batch_norm = rule_of(bn_layer_rule)
    rows = [] if input_layer_rule is None else composites.apart(composites.first(), input_layer_rule, of_batch_norm)
    return Composite(rows + composites.apart(composites.kind("linear"), one, of_batch_norm))


#: authors' class names of the older references
CLASSES = {
    "LRPZ": "lrp.z", "LRPZIgnoreBias": "lrp.z", "LRPEpsilon": "lrp.epsilon", "LRPEpsilonIgnoreBias": "lrp.epsilon",
    "LRPWSquare": "lrp.w_square", "LRPFlat": "lrp.flat", "LRPAlpha1Beta0": "lrp.alpha_1_beta_0",
    "LRPAlpha1Beta0IgnoreBias": "lrp.alpha_1_beta_0_IB", "LRPAlpha2Beta1": "lrp.alpha_2_beta_1",
    "LRPAlpha2Beta1IgnoreBias": "lrp.alpha_2_beta_1_IB", "LRPZPlus": "lrp.z_plus", "LRPZPlusFast": "lrp.z_plus_fast",
    "LRPSequentialPresetA": "lrp.sequential_preset_a", "LRPSequentialPresetAFlat": "lrp.sequential_preset_a_flat",
    "LRPSequentialPresetB": "lrp.sequential_preset_b", "LRPSequentialPresetBFlat": "lrp.sequential_preset_b_flat",
    "DeepTaylor": "deep_taylor", "BoundedDeepTaylor": "deep_taylor.bounded", "Gradient": "gradient",
    "InputTimesGradient": "input_t_gradient", "IntegratedGradients": "integrated_gradients",
    "Deconvnet": "deconvnet", "GuidedBackprop": "guided_backprop",
}  # fmt: skip

GRADIENT_SEEDS = {"deconvnet": "logit", "guided_backprop": "logit"}


def analyzer(case: dict) -> Composite:
    """The composite of a case's analyzer."""
    name, kwargs = CLASSES.get(case["analyzer"], case["analyzer"]), dict(case["kwargs"])
    kwargs = input_layer(kwargs)
    if name == "lrp (class LRP)":
        return lrp_class(**kwargs)
    if name in ("deconvnet", "guided_backprop"):
        return composites.get(name)
    if name in ("gradient", "input_t_gradient", "integrated_gradients", "smoothgrad"):
        return composites.get("gradient")
    made = composites.get(name, **kwargs)
    return made | plain_gradients_of_deep_taylor(made) if name.startswith("deep_taylor") else made


def plain_gradients_of_deep_taylor(composite: Composite) -> Composite:
    """What the original leaves to the gradient, so that relevance is not conserved there: additions, batch norms and
    ReLUs that are layers of their own (``r1`` in its nets). Here they share, fold and pass it.
    """
    gradient = rules.Gradient()
    linear = [
        (selector, rules.SplitBatchNorm(gradient, rule.then))
        for selector, rule in composite.rows
        if isinstance(rule, rules.SplitBatchNorm)
    ]
    return Composite([("r1", gradient), (composites.op("add"), gradient), *linear])


def attribute(model: nn.Module, x: Tensor, target: object, case: dict, noise: Tensor | None = None) -> Tensor:
    """What the case's analyzer gives."""
    name, composite = CLASSES.get(case["analyzer"], case["analyzer"]), analyzer(case)
    explain = RelevancePropagator(model, composite)

    def gradient(points: Tensor) -> Tensor:
        return explain.trace(points).relevance(target=target, seed="one")

    if name == "integrated_gradients":
        steps, start = case["kwargs"].get("steps", 64), case["kwargs"].get("reference_inputs", 0.0)
        # the original's convention: a left Riemann sum
        return (x - start) * sum(gradient(start + k / steps * (x - start)) for k in range(steps)) / steps
    if name == "smoothgrad":
        return sum(gradient(x + noise[:, k]) for k in range(noise.shape[1])) / noise.shape[1]
    if name == "input_t_gradient":
        return x * gradient(x)
    if name == "gradient":
        post = {None: lambda g: g, "abs": torch.abs, "square": torch.square}[case["kwargs"].get("postprocess")]
        return post(gradient(x))
    # guided backpropagation and the deconvnet start with the neuron's value there, like LRP
    return explain.trace(x).relevance(target=target)


def target_of(model: nn.Module, x: Tensor, case: dict) -> object:
    """The neuron of the clean input, also where the analyzer looks at other points."""
    if case["neuron"] != "max_activation":
        return int(case["neuron"])
    with torch.no_grad():
        return model(x).argmax(1)


def is_innvestigate_target(case: dict) -> bool:
    # the fast z+ rule assumes non-negative inputs of every layer, and what goes into a batch norm is signed
    return clean(case) and not (case["analyzer"] == "lrp.z_plus_fast" and case["net"].startswith("cnn_bn"))


@both_dtypes
@pytest.mark.parametrize("case", cases("innvestigate", is_innvestigate_target))
def test_innvestigate(case, dtype):
    model = golden_nets.innvestigate_net(case["net"], dtype)
    x = role("innvestigate", case, "x", dtype)
    noise = role("innvestigate", case, "noise", dtype) if "noise" in case["arrays"] else None
    got = attribute(model, x, target_of(model, x, case), case, noise)
    # with another reference input the original's float64 run is a float32 one somewhere (README)
    rtol = 1e-7 if "reference_inputs" in case["kwargs"] else 1e-9
    if case["kwargs"].get("bn_layer_fuse_mode") == "two_linear":
        rtol = 1e-5  # the original's batch norm is two layers there, each with a stabiliser of 1e-7
    if "z_plus_fast" in case["analyzer"]:  # assumes non-negative inputs: only sample 2 has them
        want = role("innvestigate", case, "R_in_f64")
        assert_golden(got[2], want[2], rtol=1e-9 if dtype == F64 else 1e-4)
    else:
        check("innvestigate", case, dtype, got, rtol)


@pytest.mark.parametrize("case", cases("innvestigate", lambda c: clean(c) and "R_at_node_output_f64" in c))
def test_innvestigate_relevance_at_nodes(case):
    model = golden_nets.innvestigate_net(case["net"], F64)
    x = role("innvestigate", case, "x")
    trace = RelevancePropagator(model, analyzer(case)).trace(x)
    for node, key in case["R_at_node_output_f64"].items():
        if node == "in" or (node == "c1" and hasattr(model, "b1")):
            continue  # a layer and its batch norm are one site: nothing is read between them
        name = f"{node}_act" if hasattr(model, f"{node}_act") else node
        got = trace.layer_relevance(name, target=target_of(model, x, case), which="output")
        want = tensor("innvestigate", case["npz"], key)
        assert_golden(got.reshape(want.shape), want, name=node)


class OneLayer(nn.Module):
    """A layer of the authors' tests, its output flattened so that one neuron of it can be chosen."""

    def __init__(self, layer: nn.Module, activation: bool) -> None:
        super().__init__()
        self.layer, self.activation = layer, nn.ReLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x)).flatten(1)


class OnChannels(nn.Module):
    """A dense layer on the channels of every pixel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def authors_layer(case: dict) -> nn.Module:
    kind, _, activation = case["layer"].partition("_")
    if kind.endswith("Pooling2D"):
        return OneLayer({"Max": nn.MaxPool2d, "Average": nn.AvgPool2d}[kind.removesuffix("Pooling2D")](2), False)
    w, b = (role("innvestigate", case, name) for name in ("weight", "bias"))
    dense = w.dim() == 2
    layer = nn.Linear(w.shape[1], w.shape[0]) if dense else nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:])
    layer.weight.data, layer.bias.data = w, b
    return OneLayer(OnChannels(layer) if dense else layer, activation == "relu")


@pytest.mark.parametrize("case", cases("innvestigate", clean, "authors_references.json"))
def test_innvestigate_authors_own_references(case):
    """Their stored outputs are float32."""
    model, x = authors_layer(case), role("innvestigate", case, "x")
    with torch.no_grad():
        target = model(x).argmax(1)
    got, want = attribute(model, x, target, case), role("innvestigate", case, "R_in")
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


# -- zennit ------------------------------------------------------------------------------------------------------


def zennit_rule(case: dict) -> rules.Rule:
    a, bias = case["args"], "zero" if case["args"].get("zero_params") == "bias" else "keep"
    eps = a.get("stabilizer", 1e-6)
    table = {
        "Epsilon": lambda: rules.Epsilon(a["epsilon"], bias=bias),
        "Gamma": lambda: rules.GeneralizedGamma(a["gamma"], eps, bias),
        "ZPlus": lambda: rules.ZPlus(eps, bias),
        "AlphaBeta": lambda: rules.AlphaBeta(a["alpha"], a["beta"], eps, bias),
        "ZBox": lambda: rules.ZBox(a["low"], a["high"], eps),
        "WSquare": lambda: rules.WSquare(eps, bias),
        "Flat": lambda: rules.Flat(eps),
        "Norm": lambda: rules.Norm(eps),
        "Pass": lambda: rules.Pass(),
        "ReLUDeconvNet": lambda: rules.DeconvNet(),
        "ReLUGuidedBackprop": lambda: rules.GuidedBackprop(),
        "ReLUBetaSmooth": lambda: rules.BetaSmooth(a["beta_smooth"]),
        "(no hook: plain gradient)": lambda: rules.Gradient(),
    }
    return table[case["rule"]]()


def zennit_layer_check(case: dict, dtype: torch.dtype) -> None:
    layer = golden_nets.layer(tuple(case["layer"]), "zennit", case, dtype)
    x, R = (role("zennit", case, name, dtype) for name in ("x", "R_out"))
    composite = Composite([(lambda site: True, zennit_rule(case))])
    check("zennit", case, dtype, RelevancePropagator(layer, composite).trace(x).relevance(seed=R))


@both_dtypes
@pytest.mark.parametrize("case", cases("zennit", lambda c: c["kind"] == "layer"))
def test_zennit_layer(case, dtype):
    """All of them: squaring the bias too is the documented meaning of ``WSquare(bias="keep")``."""
    zennit_layer_check(case, dtype)


def zennit_composite(case: dict) -> Composite:
    """zennit's composite by its name; its batch norms pass relevance unless merged."""
    name, bias = case["composite"], "keep"
    if name.endswith("_zerobias"):
        name, bias = name.removesuffix("_zerobias"), "zero"
    if name == "none_gradient":
        return composites.get("gradient")
    if name.startswith("beta_smooth"):
        return composites.get("beta_smooth", beta=float(name.rsplit("_", 1)[1]))
    if name in ("deconvnet", "guided_backprop"):
        return composites.get(name)
    if name == "excitation_backprop":
        return composites.get(name, bias=bias)
    made = {
        "epsilon_gamma_box": lambda: composites.get("epsilon_gamma_box", low=-1.0, high=1.0),
        "epsilon_gamma_box_eps0.01_gamma0.5": lambda: composites.get(
            "epsilon_gamma_box", low=-1.0, high=1.0, epsilon=0.01, gamma=0.5
        ),
        "layer_map_epsilon": lambda: zennit_epsilon(1e-6),
        "layer_map_epsilon_0.1": lambda: zennit_epsilon(0.1),
        "name_map_mixed": name_map_mixed,
    }.get(name, lambda: composites.get(name, bias=bias))()
    return made if case["canonizers"] else batch_norm_passes(made)


def zennit_epsilon(epsilon: float) -> Composite:
    return composites.get(rules.Epsilon(epsilon)) | Composite([(composites.kind("sum"), rules.Norm(1e-6))])


def name_map_mixed() -> Composite:
    """The map by layer name of the zennit family; w² keeps the bias there."""
    by_name = {"c1": rules.WSquare(bias="keep"), "c2": rules.GeneralizedGamma(0.5), "c3": rules.ZPlus()}
    return zennit_epsilon(1e-6) | Composite(list(by_name.items()))


def batch_norm_passes(composite: Composite) -> Composite:
    """The same with batch norms that pass: each rule on linear layers, on the layer before the batch norm alone."""
    apart = [(selector, rules.PassBatchNorm(rule)) for selector, rule in composite.rows if "linear" in rule.kinds]
    return composite | Composite([(composites.family("batch_norm"), rules.Pass()), *apart])


def zennit_net_check(case: dict, dtype: torch.dtype, rtol: float = 1e-9) -> None:
    model = golden_nets.peer_net("zennit", case, dtype)
    trace = RelevancePropagator(model, zennit_composite(case)).trace(role("zennit", case, "x", dtype))
    got = trace.relevance(seed=role("zennit", case, "R_out_f64", dtype))
    check("zennit", case, dtype, got, rtol)


@both_dtypes
@pytest.mark.parametrize("case", cases("zennit", lambda c: c["kind"] == "net" and clean(c)))
def test_zennit_net(case, dtype):
    zennit_net_check(case, dtype)


@pytest.mark.parametrize("case", cases("zennit", lambda c: c["kind"] == "net" and not clean(c)))
def test_zennit_net_with_merged_batch_norm(case):
    """Off by the epsilon that zennit 0.5.1 leaves in its merged batch norms, 5e-6 relative each."""
    zennit_net_check(case, F64, rtol=1e-3)


# -- captum ------------------------------------------------------------------------------------------------------


def captum_composite(case: dict) -> Composite:
    """captum's rules: each on every convolution and dense layer; all else takes epsilon 1e-9 by itself."""
    eps = 1e-9
    e, g = rules.Epsilon(eps), rules.Gamma(0.25, eps)
    one = {
        "default": e, "bn_identity": e, "epsilon_0.01": rules.Epsilon(0.01), "epsilon_0.25": rules.Epsilon(0.25),
        "gamma_0.25": g, "gamma_1": rules.Gamma(1.0, eps), "gamma_0.25_zerobias": rules.Gamma(0.25, eps, "zero"),
    }  # fmt: skip
    if case["rules"] == "mixed_gamma_conv_epsilon_dense":
        convolution, dense = g, rules.Epsilon(1e-6)
    else:
        convolution = dense = one[case["rules"]]
    of_batch_norm = rules.Pass() if case["rules"] == "bn_identity" else e
    return Composite([
        (composites.family("convolution"), rules.SplitBatchNorm(of_batch_norm, then=convolution)),
        (composites.family("convolution"), convolution),
        (composites.family("dense"), dense),
    ], composites.defaults(eps))  # fmt: skip


def is_captum_target(case: dict) -> bool:
    """captum's gamma is Gamma here, by its documented formula; its alpha1-beta0 on negative inputs is a bug."""
    return clean(case) or (case["questionable"].startswith("captum.gamma") and "alpha1beta0" not in case["rules"])


@both_dtypes
@pytest.mark.parametrize("case", cases("captum", is_captum_target))
def test_captum(case, dtype):
    model = golden_nets.peer_net("captum", case, dtype)
    trace = RelevancePropagator(model, captum_composite(case)).trace(role("captum", case, "x", dtype))
    target = torch.tensor(case["target"])
    # a stabiliser of 1e-9 meets small denominators: README
    check("captum", case, dtype, trace.relevance(target=target), rtol=1e-6)
    for name, key in (case.get("layer_lrp_output_f64") or {}).items() if dtype == F64 else ():
        if name in ("c1", "c2") and case["net"] == "cnn_bn":
            continue  # folded with its batch norm: no relevance of its own between the two
        got = trace.layer_relevance(name, target=target, which="output")
        assert_golden(got, tensor("captum", case["npz"], key), rtol=1e-6, name=name)
