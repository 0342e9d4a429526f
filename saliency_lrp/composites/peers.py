"""Composites of other programs, by their names: Pytorch-LRP and TensorWatch, iNNvestigate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import rules as r
from ..rules import BiasMode, Rule
from .composite import Composite, Row, defaults
from .selectors import Selector, claims, family, first, kind, until
from .table import COMPOSITES, named, register


@named("e_rule")
def e_rule(p: float = 1, epsilon: float = 1e-6) -> Composite:
    """The e-rule of Pytorch-LRP and TensorWatch on every linear site; batch norms pass."""
    return Composite(
        [(kind("linear"), r.PassBatchNorm(r.Power(p, epsilon))), (kind("linear"), r.Power(p, epsilon))],
        [(kind("softmax"), r.Pass()), *defaults()],
        "e_rule",
    )


@named("b_rule")
def b_rule(beta: float = 0.5, epsilon: float = 1e-6) -> Composite:
    """The b-rule of Pytorch-LRP and TensorWatch on every linear site; batch norms pass."""
    return Composite(
        [(kind("linear"), r.PassBatchNorm(r.Beta(beta, epsilon))), (kind("linear"), r.Beta(beta, epsilon))],
        [(kind("softmax"), r.Pass()), *defaults()],
        "b_rule",
    )


def bias_mode(bias: bool) -> BiasMode:
    """iNNvestigate's option ``bias`` as a bias mode."""
    return "keep" if bias else "zero"


#: what the one-rule analyzers do, by the beginning of their names
ANALYZERS = {
    "lrp.z": "LRP-0 on every linear site",
    "lrp.epsilon": "LRP-ε on every linear site",
    "lrp.w_square": "w² on every linear site",
    "lrp.flat": "Equal shares on every linear site",
    "lrp.alpha_beta": "αβ on every linear site, α and β as given",
    "lrp.alpha_2_beta_1": "αβ with α = 2, β = 1 on every linear site",
    "lrp.alpha_1_beta_0": "αβ with α = 1, β = 0 on every linear site",
    "lrp.z_plus": "z⁺ without bias on every linear site",
}
#: rule of the one-rule analyzers; ``_IB`` ignores the bias
INNVESTIGATE: dict[str, Callable[..., Rule]] = {
    "lrp.z": lambda bias=True: r.Epsilon(1e-12, bias=bias_mode(bias)),
    "lrp.z_IB": lambda: r.Epsilon(1e-12, bias="zero"),
    "lrp.epsilon": lambda epsilon=1e-7, bias=True: r.Epsilon(epsilon, bias=bias_mode(bias)),
    "lrp.epsilon_IB": lambda epsilon=1e-7: r.Epsilon(epsilon, bias="zero"),
    "lrp.w_square": lambda: r.WSquare(1e-12),
    "lrp.flat": lambda: r.Flat(1e-12),
    "lrp.alpha_beta": lambda alpha=2, beta=1, bias=True: r.AlphaBeta(alpha, beta, 1e-12, bias_mode(bias)),
    "lrp.alpha_2_beta_1": lambda: r.AlphaBeta(2, 1, 1e-12),
    "lrp.alpha_2_beta_1_IB": lambda: r.AlphaBeta(2, 1, 1e-12, "zero"),
    "lrp.alpha_1_beta_0": lambda: r.AlphaBeta(1, 0, 1e-12),
    "lrp.alpha_1_beta_0_IB": lambda: r.AlphaBeta(1, 0, 1e-12, "zero"),
    "lrp.z_plus": lambda: r.ZPlus(1e-12, "zero"),
    "lrp.z_plus_fast": lambda: r.ZPlus(1e-12, "zero"),
}


def apart(selector: Selector, rule: Rule, batch_norm: Rule | None = None) -> list[Row]:
    """Rows in which a batch norm is a layer of its own, as in iNNvestigate, by the same or another rule."""
    return [
        (selector, r.SplitBatchNorm(batch_norm if batch_norm is not None else rule, then=rule)),
        (selector, rule),
    ]


def analyzer(name: str, rule: Callable[..., Rule]) -> Callable[..., Composite]:
    """Builder of a one-rule analyzer."""

    def build(input_layer_rule: Rule | None = None, **options: Any) -> Composite:
        one = rule(**options)
        rows = [] if input_layer_rule is None else apart(first(), input_layer_rule, batch_norm=one)
        return Composite(rows + apart(kind("linear"), one), defaults(1e-12), name)

    first_layer = inspect.Parameter("input_layer_rule", inspect.Parameter.KEYWORD_ONLY, default=None)
    what = ANALYZERS[name.removesuffix("_IB").removesuffix("_fast")]
    build.__doc__ = (
        f"{what}{', biases ignored' if name.endswith('_IB') else ''}; batch norms are layers (iNNvestigate)."
    )
    build.__signature__ = inspect.Signature([*inspect.signature(rule).parameters.values(), first_layer])  # type: ignore[attr-defined]
    return build


for _name, _rule in INNVESTIGATE.items():
    register(_name, analyzer(_name, _rule))


#: rule of a batch norm in the presets
PRESET_BATCH_NORM = r.AlphaBetaX((2, 0), (1, 0), 1e-12)


def preset(name: str, convolution: Rule, flat: Selector | None) -> Callable[..., Composite]:
    """Builder of a preset: αβ on convolutions, ε on dense layers, flat where it is asked for."""

    def build(
        epsilon: float = 0.1, until_layer_idx: int | None = None, input_layer_rule: Rule | None = None
    ) -> Composite:
        selector = until(until_layer_idx) if until_layer_idx is not None else flat
        rows: list[Row] = []
        if input_layer_rule is not None:
            rows += apart(first(), input_layer_rule, PRESET_BATCH_NORM)
        if selector is not None:
            rows += apart(selector, r.Flat(1e-12), PRESET_BATCH_NORM)
        rows += apart(family("convolution"), convolution, PRESET_BATCH_NORM)
        rows += apart(family("dense"), r.Epsilon(epsilon), PRESET_BATCH_NORM)
        return Composite([*rows, (family("batch_norm"), PRESET_BATCH_NORM)], defaults(1e-12), name)

    where = ", flat on the first layer" if flat is not None else ", flat up to a layer" if "until" in name else ""
    alpha = "α = 2, β = 1" if "_b" in name.removeprefix("lrp.sequential") else "α = 1, β = 0"
    build.__doc__ = f"αβ with {alpha} on convolutions, ε = 0.1 on dense layers{where} (iNNvestigate's {name[4:]})."
    return build


for _letter, _alpha in (("a", 1), ("b", 2)):
    _rule_of_preset = r.AlphaBeta(_alpha, _alpha - 1, 1e-12)
    for _ending, _flat in (("", None), ("_flat", first())):
        _name = f"lrp.sequential_preset_{_letter}{_ending}"
        register(_name, preset(_name, _rule_of_preset, _flat))
        register(_name.replace("preset", "composite"), COMPOSITES[_name])


register(
    "lrp.sequential_preset_b_flat_until_idx",
    preset("lrp.sequential_preset_b_flat_until_idx", r.AlphaBeta(2, 1, 1e-12), None),
)


def deep_taylor_with(name: str, input_rule: Rule | None) -> Composite:
    """z⁺ without bias, w² at batch norms, equal shares in average pooling; relevance is never negative."""
    batch_norm, z_plus = r.WSquare(1e-12), r.Rectified(r.ZPlus(1e-12, "zero"))
    rows = [] if input_rule is None else apart(first(), r.Rectified(input_rule), batch_norm)
    rows += [(family("batch_norm"), batch_norm), *apart(kind("linear"), z_plus, batch_norm)]
    return Composite([*rows, (claims("pooling", "average"), r.Gradient())], defaults(1e-12), name)


@named("deep_taylor")
def deep_taylor() -> Composite:
    """Deep Taylor decomposition (Montavon et al. 2017): z⁺ without bias on every linear site."""
    return deep_taylor_with("deep_taylor", None)


@named("deep_taylor_bounded")
def deep_taylor_bounded(low: float | Tensor = -1.0, high: float | Tensor = 1.0) -> Composite:
    """Like deep_taylor, z^B on the first layer, for inputs in [low, high]."""
    return deep_taylor_with("deep_taylor_bounded", r.ZBox(low, high, 1e-12))


register("deep_taylor.bounded", COMPOSITES["deep_taylor_bounded"])  # iNNvestigate's spelling
