"""This package's composites and those of the papers, the default ``auto`` among them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .. import rules as r
from ..errors import InputError
from ..rules import BiasMode, Rule
from .composite import Composite, Row, defaults, defaults_for, graded
from .selectors import any_site, at_output, family, first, kind, rectifier
from .table import named


def convolution_and_dense(
    name: str, convolution: Rule, dense: Rule, first_row: Row | None = None, epsilon: float = 1e-6
) -> Composite:
    """One rule for convolutions, one for dense layers, and perhaps one for the first layer."""
    rows = [] if first_row is None else [first_row]
    rows += [(family("convolution"), convolution), (family("dense"), dense)]
    return Composite(rows, defaults_for(dense, epsilon), name)


@named("epsilon")
def epsilon(epsilon: float = 1e-12, bias: BiasMode = "keep") -> Composite:
    """LRP-ε on every linear site, AttnLRP in attention.

    The default ε only guards zeros: on ReLU networks the map is then gradient × input (Ancona et al. 2018), to 1e-6 of
    its largest value. An ε of 1e-9 departs from that by up to 4e-4 where activations are small (see
    ``docs/differences.md``).
    """
    rule = r.Epsilon(epsilon, bias=bias)
    return Composite([(kind("linear"), rule)], defaults_for(rule), "epsilon")


@named("attnlrp")
def attnlrp(epsilon: float = 1e-12) -> Composite:
    """AttnLRP for transformers (Achtibat et al. 2024): relevance through attention weights and values."""
    return Composite([(kind("linear"), r.Epsilon(epsilon))], name="attnlrp")


@named("cp_lrp")
def cp_lrp(epsilon: float = 1e-12) -> Composite:
    """CP-LRP for transformers (Ali et al. 2022): attention weights are constants."""
    rows: list[Row] = [
        (kind("linear"), r.Epsilon(epsilon)),
        (kind("matmul"), r.SignalTakesAll()),
        ((kind("softmax"), at_output()), r.Pass()),
        (kind("softmax"), r.Stop()),
        (kind("attention"), r.AttentionCPLRP()),
    ]
    return Composite(rows, name="cp_lrp")


@named("lrp_lstm")
@named("arras")
def arras(epsilon: float = 0.001, bias_factor: float = 0.0) -> Composite:
    """LRP for LSTMs (Arras et al. 2017, 2019): ε on linear maps and on the sums in cells, gates get nothing.

    Parameters
    ----------
    epsilon : float
        Stabiliser, absolute.
    bias_factor : {0.0, 1.0}
        1 spreads the share of biases and of ε evenly over the inputs, so that relevance is conserved exactly; with 0
        it is absorbed.
    """
    if bias_factor not in (0, 1):
        raise InputError(f"bias_factor must be 0.0 (absorb) or 1.0 (spread over the inputs), got {bias_factor!r}")
    bias: Literal["distribute", "keep"] = "distribute" if bias_factor else "keep"
    rows = [(kind("linear"), r.Epsilon(epsilon, bias=bias)), (kind("sum"), r.Norm(epsilon, bias=bias))]
    return Composite(rows, name="arras")


@named("epsilon_plus")
def epsilon_plus(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """z⁺ on convolutions, ε on dense layers (zennit's EpsilonPlus)."""
    return convolution_and_dense("epsilon_plus", r.ZPlus(bias=bias), r.Epsilon(epsilon, bias=bias))


@named("epsilon_plus_flat")
def epsilon_plus_flat(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """Like epsilon_plus, flat on the first layer (zennit's EpsilonPlusFlat)."""
    return convolution_and_dense(
        "epsilon_plus_flat", r.ZPlus(bias=bias), r.Epsilon(epsilon, bias=bias), (first(), r.Flat())
    )


@named("epsilon_alpha2_beta1")
def epsilon_alpha2_beta1(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """αβ with α = 2, β = 1 on convolutions, ε on dense layers."""
    return convolution_and_dense("epsilon_alpha2_beta1", r.AlphaBeta(2, 1, bias=bias), r.Epsilon(epsilon, bias=bias))


@named("epsilon_alpha2_beta1_flat")
def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """Like epsilon_alpha2_beta1, flat on the first layer."""
    return convolution_and_dense(
        "epsilon_alpha2_beta1_flat",
        r.AlphaBeta(2, 1, bias=bias),
        r.Epsilon(epsilon, bias=bias),
        (first(), r.Flat()),
    )


@named("epsilon_gamma_box")
def epsilon_gamma_box(
    low: float | Tensor = -3.0,
    high: float | Tensor = 3.0,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    bias: BiasMode = "keep",
) -> Composite:
    """Generalised γ on convolutions, ε on dense layers, z^B on the first convolution (zennit's EpsilonGammaBox).

    ``low`` and ``high`` bound the model's input; with images normalised by mean and std, ±3 holds all of them.
    """
    return convolution_and_dense(
        "epsilon_gamma_box",
        r.GeneralizedGamma(gamma, bias=bias),
        r.Epsilon(epsilon, bias=bias),
        ((first(), family("convolution")), r.ZBox(low, high)),
    )


@named("excitation_backprop")
def excitation_backprop(bias: BiasMode = "keep") -> Composite:
    """z⁺ on every linear site, gradient at activations (Zhang et al. 2018)."""
    rows = [(family("convolution", "dense"), r.ZPlus(bias=bias)), (kind("activation"), r.ExcitationBackprop())]
    return Composite(rows, defaults(1e-6), "excitation_backprop")


def gradient_with(name: str, relu: Rule | None) -> Composite:
    """The plain gradient everywhere, with another rule at ReLUs."""
    rows: list[Row] = [] if relu is None else [(rectifier(), relu)]
    return Composite(rows, [(any_site(), r.Gradient())], name)


@named("gradient")
def gradient() -> Composite:
    """The plain gradient everywhere: no relevance, but what it is compared with."""
    return gradient_with("gradient", None)


@named("deconvnet")
def deconvnet() -> Composite:
    """The gradient, with only positive signals through ReLUs (Zeiler and Fergus 2014)."""
    return gradient_with("deconvnet", r.DeconvNet())


@named("guided_backprop")
def guided_backprop() -> Composite:
    """The gradient, with only positive signals through active ReLUs (Springenberg et al. 2015)."""
    return gradient_with("guided_backprop", r.GuidedBackprop())


@named("beta_smooth")
def beta_smooth(beta: float = 10.0) -> Composite:
    """The gradient, with ReLUs smoothed to softplus (Dombrowski et al. 2019)."""
    return gradient_with("beta_smooth", r.BetaSmooth(beta))


#: Over how many linear sites γ of ``auto`` falls: those of the networks that it was chosen on.
DEEP = 48


@named("auto")
def auto(gamma: float | tuple[float, float] = (1.0, 0.05), epsilon: float = 0.1) -> Composite:
    """The default: γ that falls with depth on convolutions, relative ε on dense layers, AttnLRP in attention.

    Chosen on ImageNet networks and photographed things, and held against a network on which nothing was chosen; see
    ``docs/quality.md``. Near the input a large γ keeps maps from breaking up into the noise of single weights. What it
    blurs adds up from layer to layer, so that deep layers get a small one: they keep the evidence against a class,
    which tells classes apart (Montavon et al. 2019, 10.3).

    Parameters
    ----------
    gamma : float or pair of float
        How much more contributions of the output's own sign count (Andéol et al. 2021): at the model's input, and at 48
        linear sites behind it and deeper; or everywhere. At a site Σ|R| grows by (2 + γ)/γ at most.
    epsilon : float
        In units of rms(z) of each position: scale-free, and damps contradictory evidence (Montavon et al. 2019, 10.2).
        The layer of the output keeps all relevance; there ε would only scale the map.
    """
    guard = 1e-12  # ratios of γ and z⁺ are bounded: only exact zeros need a stabiliser
    convolutional = family("convolution", "batch_norm")

    def favoring(gamma: float) -> Rule:
        return r.GeneralizedGamma(gamma, guard)

    rows: list[Row] = [
        ((first(), family("convolution")), r.ZPlus(guard)),
        *(
            graded(favoring, *gamma, over=DEEP, where=convolutional)
            if isinstance(gamma, tuple | list)
            else [(convolutional, favoring(gamma))]
        ),
        ((family("dense"), at_output()), r.Epsilon(guard)),
        (family("dense"), r.Epsilon(epsilon, relative=True)),
    ]
    return Composite(rows, name="auto")
