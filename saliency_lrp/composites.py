"""Composites: which site gets which rule.

A composite is a table of ``(selector, rule)``; a site gets the rule of the first row that selects it *and* whose rule
is defined for its kind, and the row of its kind in the defaults where no row does. Selectors are

* a module class: sites called by such a module (``nn.Conv2d``),
* a string: a glob on the module path (``"layer4.*"``),
* :func:`kind`, :func:`family`, :func:`op`: what the site computes,
* :func:`first`, :func:`last`, :func:`until`: execution order among the linear sites,
* any predicate ``site -> bool``; and a tuple of selectors, which selects what all of them do.

``base | override`` puts the rows of ``override`` before those of ``base``.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from . import rules as r
from .errors import InputError, unknown_name
from .rules import BiasMode, Rule

Selector = type | str | Callable[[Any], bool] | tuple
Row = tuple[Selector, Rule]

# ------------------------------------------------------------------------------------------------ selectors


class Where:
    """A named predicate on sites, so that tables print readably."""

    def __init__(self, name: str, test: Callable[[Any], bool]) -> None:
        self.name = name
        self.test = test

    def __call__(self, site: Any) -> bool:
        return self.test(site)

    def __repr__(self) -> str:
        return self.name


def kind(*names: str) -> Where:
    """Sites of these kinds, such as ``"linear"``, ``"sum"``, ``"softmax"``."""
    return Where(f"kind({', '.join(names)})", lambda site: site.kind in names)


def family(*names: str) -> Where:
    """Linear sites of these families: ``"convolution"``, ``"dense"``, ``"batch_norm"``."""
    return Where(f"family({', '.join(names)})", lambda site: site.family in names)


def op(*names: str) -> Where:
    """Sites of these torch functions, by canonical name, such as ``"relu"``."""
    return Where(f"op({', '.join(names)})", lambda site: site.op in names)


def first(n: int = 1) -> Where:
    """The first ``n`` linear sites in execution order."""
    return Where(f"first({n})", lambda site: 0 <= site.rank < n)


def until(k: int) -> Where:
    """Linear sites up to and including the ``k``-th (counted from 0) in execution order."""
    return Where(f"until({k})", lambda site: 0 <= site.rank <= k)


def last(n: int = 1) -> Where:
    """The last ``n`` linear sites in execution order."""
    return Where(f"last({n})", lambda site: site.rank >= 0 and site.rank >= site.binding.linear_count - n)


def at_output() -> Where:
    """The site that computes the model's output."""
    return Where("at_output()", lambda site: site.is_output)


def selects(selector: Selector, site: Any) -> bool:
    """Whether a selector selects a site."""
    if isinstance(selector, tuple):
        return all(selects(s, site) for s in selector)
    if isinstance(selector, type):
        return isinstance(site.module, selector)
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(site.path, selector)
    return bool(selector(site))


# ------------------------------------------------------------------------------------------------ composites


def defaults(epsilon: float = 1e-12) -> list[Row]:
    """The rows that every composite ends with: one per kind.

    ``epsilon`` stabilises sums, products and normalisations, where relevance is in proportion to the denominator, so
    that it only has to guard exact zeros.
    """
    return [
        (kind("linear"), r.Epsilon(epsilon)),
        (kind("sum", "normalisation"), r.Norm(epsilon)),
        (kind("activation", "scale"), r.Pass()),
        (kind("gate"), r.SignalTakesAll(epsilon)),
        (kind("product", "matmul"), r.Uniform(epsilon)),
        # a model that ends in a softmax is explained from its logits
        ((kind("softmax"), at_output()), r.Pass()),
        (kind("softmax"), r.SoftmaxTaylor()),
        (kind("attention"), r.AttentionAttnLRP(epsilon)),
        (kind("recurrent", "steps"), r.Unrolled()),
        (kind("unknown"), r.Taylor(epsilon)),
    ]


def defaults_for(rule: Rule, epsilon: float = 1e-12) -> list[Row]:
    """The defaults beside a rule on linear sites: where it spreads what biases take, sums do so, too."""
    rows = defaults(epsilon)
    if getattr(rule, "bias", "keep") == "distribute":
        return [(kind("sum"), r.Norm(epsilon, bias="distribute")), *rows]
    return rows


class Composite:
    """A table from selectors to rules.

    Parameters
    ----------
    rows : iterable of (selector, Rule)
        Earlier rows win.
    base : list of (selector, Rule), optional
        What sites get that no row selects; by default LRP-ε, AttnLRP in attention.
    name : str
        For printing.

    Examples
    --------
    >>> from saliency_lrp import composites, rules
    >>> boxed = composites.get("epsilon_plus") | composites.Composite([(composites.first(), rules.ZBox(-2, 2))])
    """

    def __init__(self, rows: Iterable[Row], base: list[Row] | None = None, name: str = "custom") -> None:
        self.rows = list(rows)
        self.base = defaults() if base is None else base
        self.name = name
        for row in (*self.rows, *self.base):
            if not (isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], Rule)):
                raise InputError(
                    f"a row of a composite is a pair (selector, rule), such as (nn.Conv2d, rules.ZPlus()); got {row!r}"
                )

    def rule_for(self, site: Any) -> Rule:
        """The rule that a site gets."""
        for selector, rule in (*self.rows, *self.base):
            if rule.applies_to(site) and selects(selector, site):
                return rule
        raise InputError(f"composite {self.name!r} has no rule for {site.describe()} (kind {site.kind!r})")

    @property
    def needs_preactivation(self) -> bool:
        """Whether a rule looks at what went into an activation."""
        return any(rule.needs_preactivation for _, rule in (*self.rows, *self.base))

    def __or__(self, override: Composite) -> Composite:
        return Composite(override.rows + self.rows, self.base, f"{self.name} | {override.name}")

    def explain(self, trace: Any) -> str:
        """Which rule each site of a trace gets, as text, in execution order."""
        lines = [f"{'#':>4}  {'module':<32} {'op':<20} {'kind':<14} rule"]
        for site in trace.sites:
            if not site.superseded:
                lines.append(f"{site.index:>4}  {site.path:<32} {site.op:<20} {site.kind:<14} {self.rule_for(site)!r}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        def show(selector: Selector) -> str:
            if isinstance(selector, tuple):
                return " & ".join(show(s) for s in selector)
            return selector.__name__ if isinstance(selector, type) else repr(selector)

        lines = [f"Composite {self.name!r}"]
        lines += [f"  {show(s):<32} -> {rule!r}" for s, rule in self.rows]
        lines += [f"  {show(s):<32} -> {rule!r}   (default)" for s, rule in self.base]
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the table

COMPOSITES: dict[str, Callable[..., Composite]] = {}


def register(name: str, build: Callable[..., Composite]) -> None:
    """Give a composite a name; ``build(**options)`` makes it."""
    COMPOSITES[name] = build


def list_composites() -> list[str]:
    """Names of all composites, sorted."""
    return sorted(COMPOSITES)


def get(composite: str | Composite | Rule | None, **options: Any) -> Composite:
    """A composite by name, as it is, or made of one rule for every linear site.

    Parameters
    ----------
    composite : str, Composite or Rule
        A name of :func:`list_composites`, or a composite, or a rule on linear sites.
    **options
        For a name: the options of that composite, such as ``epsilon=1e-6``, ``gamma=0.25`` or ``low=-2, high=2``.
    """
    if composite is None:
        composite = "auto"
    if options and not isinstance(composite, str):
        raise InputError(f"options such as {options} are for composites given by name, not for {composite!r:.80}")
    if isinstance(composite, Composite):
        return composite
    if isinstance(composite, type) and issubclass(composite, Rule):
        composite = composite()
    if isinstance(composite, Rule):
        return Composite([(kind("linear"), composite)], defaults_for(composite), repr(composite))
    if not isinstance(composite, str) or composite not in COMPOSITES:
        raise unknown_name("composite", composite, COMPOSITES)
    known = inspect.signature(COMPOSITES[composite]).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in options:
        if name not in known and not takes_any:
            raise unknown_name(f"option of composite {composite!r}", name, known)
    return COMPOSITES[composite](**options)


def _composite(name: str) -> Callable[[Callable[..., Composite]], Callable[..., Composite]]:
    """Decorator: register a builder under ``name``."""

    def add(build: Callable[..., Composite]) -> Callable[..., Composite]:
        register(name, build)
        return build

    return add


def convolution_and_dense(
    name: str, convolution: Rule, dense: Rule, first_row: Row | None = None, epsilon: float = 1e-6
) -> Composite:
    """One rule for convolutions, one for dense layers, and perhaps one for the first layer."""
    rows = [] if first_row is None else [first_row]
    rows += [(family("convolution"), convolution), (family("dense"), dense)]
    return Composite(rows, defaults_for(dense, epsilon), name)


@_composite("epsilon")
def epsilon(epsilon: float = 1e-12, bias: BiasMode = "keep") -> Composite:
    """LRP-ε on every linear site, AttnLRP in attention.

    The default ε only guards zeros: on ReLU networks the map is then gradient × input (Ancona et al. 2018), to 1e-6 of
    its largest value. An ε of 1e-9 departs from that by up to 4e-4 where activations are small (see
    ``docs/differences.md``).
    """
    rule = r.Epsilon(epsilon, bias=bias)
    return Composite([(kind("linear"), rule)], defaults_for(rule), "epsilon")


@_composite("attnlrp")
def attnlrp(epsilon: float = 1e-12) -> Composite:
    """AttnLRP (Achtibat et al. 2024)."""
    return Composite([(kind("linear"), r.Epsilon(epsilon))], name="attnlrp")


@_composite("cp_lrp")
def cp_lrp(epsilon: float = 1e-12) -> Composite:
    """CP-LRP (Ali et al. 2022): attention weights are constants."""
    rows = [
        (kind("linear"), r.Epsilon(epsilon)),
        (kind("matmul"), r.SignalTakesAll()),
        ((kind("softmax"), at_output()), r.Pass()),
        (kind("softmax"), r.Stop()),
        (kind("attention"), r.AttentionCPLRP()),
    ]
    return Composite(rows, name="cp_lrp")


@_composite("lrp_lstm")
@_composite("arras")
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
    bias = "distribute" if bias_factor else "keep"
    rows = [(kind("linear"), r.Epsilon(epsilon, bias=bias)), (kind("sum"), r.Norm(epsilon, bias=bias))]
    return Composite(rows, name="arras")


@_composite("epsilon_plus")
def epsilon_plus(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """z⁺ on convolutions, ε on dense layers (zennit's EpsilonPlus)."""
    return convolution_and_dense("epsilon_plus", r.ZPlus(bias=bias), r.Epsilon(epsilon, bias=bias))


@_composite("epsilon_plus_flat")
def epsilon_plus_flat(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """Like epsilon_plus, flat on the first layer (zennit's EpsilonPlusFlat)."""
    return convolution_and_dense(
        "epsilon_plus_flat", r.ZPlus(bias=bias), r.Epsilon(epsilon, bias=bias), (first(), r.Flat())
    )


@_composite("epsilon_alpha2_beta1")
def epsilon_alpha2_beta1(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """αβ with α = 2, β = 1 on convolutions, ε on dense layers."""
    return convolution_and_dense("epsilon_alpha2_beta1", r.AlphaBeta(2, 1, bias=bias), r.Epsilon(epsilon, bias=bias))


@_composite("epsilon_alpha2_beta1_flat")
def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, bias: BiasMode = "keep") -> Composite:
    """Like epsilon_alpha2_beta1, flat on the first layer."""
    return convolution_and_dense(
        "epsilon_alpha2_beta1_flat",
        r.AlphaBeta(2, 1, bias=bias),
        r.Epsilon(epsilon, bias=bias),
        (first(), r.Flat()),
    )


@_composite("epsilon_gamma_box")
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


@_composite("excitation_backprop")
def excitation_backprop(bias: BiasMode = "keep") -> Composite:
    """z⁺ on every linear site, gradient at activations (Zhang et al. 2018)."""
    rows = [(family("convolution", "dense"), r.ZPlus(bias=bias)), (kind("activation"), r.ExcitationBackprop())]
    return Composite(rows, defaults(1e-6), "excitation_backprop")


RELUS = ("relu", "relu6")


def gradient_with(name: str, relu: Rule | None) -> Composite:
    """The plain gradient everywhere, with another rule at ReLUs."""
    rows: list[Row] = [] if relu is None else [(op(*RELUS), relu)]
    return Composite(rows, [(lambda site: True, r.Gradient())], name)


register("gradient", lambda: gradient_with("gradient", None))
register("deconvnet", lambda: gradient_with("deconvnet", r.DeconvNet()))
register("guided_backprop", lambda: gradient_with("guided_backprop", r.GuidedBackprop()))
register("beta_smooth", lambda beta=10.0: gradient_with("beta_smooth", r.BetaSmooth(beta)))


@_composite("e_rule")
def e_rule(p: float = 1, epsilon: float = 1e-6) -> Composite:
    """The e-rule of Pytorch-LRP and TensorWatch on every linear site; batch norms pass."""
    return Composite(
        [(kind("linear"), r.PassBatchNorm(r.Power(p, epsilon))), (kind("linear"), r.Power(p, epsilon))],
        [(kind("softmax"), r.Pass()), *defaults()],
        "e_rule",
    )


@_composite("b_rule")
def b_rule(beta: float = 0.5, epsilon: float = 1e-6) -> Composite:
    """The b-rule of Pytorch-LRP and TensorWatch on every linear site; batch norms pass."""
    return Composite(
        [(kind("linear"), r.PassBatchNorm(r.Beta(beta, epsilon))), (kind("linear"), r.Beta(beta, epsilon))],
        [(kind("softmax"), r.Pass()), *defaults()],
        "b_rule",
    )


# ---------------------------------------------------------------- iNNvestigate's analyzers, by their names


def _mode(bias: bool) -> BiasMode:
    """iNNvestigate's option ``bias`` as a bias mode."""
    return "keep" if bias else "zero"


#: rule of the one-rule analyzers; ``_IB`` ignores the bias
INNVESTIGATE: dict[str, Callable[..., Rule]] = {
    "lrp.z": lambda bias=True: r.Epsilon(1e-12, bias=_mode(bias)),
    "lrp.z_IB": lambda: r.Epsilon(1e-12, bias="zero"),
    "lrp.epsilon": lambda epsilon=1e-7, bias=True: r.Epsilon(epsilon, bias=_mode(bias)),
    "lrp.epsilon_IB": lambda epsilon=1e-7: r.Epsilon(epsilon, bias="zero"),
    "lrp.w_square": lambda: r.WSquare(1e-12),
    "lrp.flat": lambda: r.Flat(1e-12),
    "lrp.alpha_beta": lambda alpha=2, beta=1, bias=True: r.AlphaBeta(alpha, beta, 1e-12, _mode(bias)),
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


def _analyzer(name: str, rule: Callable[..., Rule]) -> Callable[..., Composite]:
    def build(input_layer_rule: Rule | None = None, **options: Any) -> Composite:
        one = rule(**options)
        rows = [] if input_layer_rule is None else apart(first(), input_layer_rule, batch_norm=one)
        return Composite(rows + apart(kind("linear"), one), defaults(1e-12), name)

    first_layer = inspect.Parameter("input_layer_rule", inspect.Parameter.KEYWORD_ONLY, default=None)
    build.__signature__ = inspect.Signature([*inspect.signature(rule).parameters.values(), first_layer])
    return build


for _name, _rule in INNVESTIGATE.items():
    register(_name, _analyzer(_name, _rule))

#: rule of a batch norm in the presets
_PRESET_BATCH_NORM = r.AlphaBetaX((2, 0), (1, 0), 1e-12)


def _preset(name: str, convolution: Rule, flat: Selector | None) -> Callable[..., Composite]:
    def build(
        epsilon: float = 0.1, until_layer_idx: int | None = None, input_layer_rule: Rule | None = None
    ) -> Composite:
        selector = until(until_layer_idx) if until_layer_idx is not None else flat
        rows: list[Row] = []
        if input_layer_rule is not None:
            rows += apart(first(), input_layer_rule, _PRESET_BATCH_NORM)
        if selector is not None:
            rows += apart(selector, r.Flat(1e-12), _PRESET_BATCH_NORM)
        rows += apart(family("convolution"), convolution, _PRESET_BATCH_NORM)
        rows += apart(family("dense"), r.Epsilon(epsilon), _PRESET_BATCH_NORM)
        return Composite([*rows, (family("batch_norm"), _PRESET_BATCH_NORM)], defaults(1e-12), name)

    return build


for _letter, _alpha in (("a", 1), ("b", 2)):
    _rule_of_preset = r.AlphaBeta(_alpha, _alpha - 1, 1e-12)
    for _ending, _flat in (("", None), ("_flat", first())):
        _name = f"lrp.sequential_preset_{_letter}{_ending}"
        register(_name, _preset(_name, _rule_of_preset, _flat))
        register(_name.replace("preset", "composite"), COMPOSITES[_name])
register(
    "lrp.sequential_preset_b_flat_until_idx",
    _preset("lrp.sequential_preset_b_flat_until_idx", r.AlphaBeta(2, 1, 1e-12), None),
)


AVERAGES = tuple(f"{kind_of}avg_pool{n}d" for kind_of in ("", "adaptive_") for n in (1, 2, 3))


def _deep_taylor(name: str, input_rule: Rule | None) -> Composite:
    """z⁺ without bias, w² at batch norms, equal shares in average pooling; relevance is never negative."""
    batch_norm, z_plus = r.WSquare(1e-12), r.Rectified(r.ZPlus(1e-12, "zero"))
    rows = [] if input_rule is None else apart(first(), r.Rectified(input_rule), batch_norm)
    rows += [(family("batch_norm"), batch_norm), *apart(kind("linear"), z_plus, batch_norm)]
    return Composite([*rows, (op(*AVERAGES), r.Gradient())], defaults(1e-12), name)


@_composite("deep_taylor")
def deep_taylor() -> Composite:
    """Deep Taylor decomposition (Montavon et al. 2017): z⁺ without bias on every linear site."""
    return _deep_taylor("deep_taylor", None)


@_composite("deep_taylor_bounded")
def deep_taylor_bounded(low: float | Tensor = -1.0, high: float | Tensor = 1.0) -> Composite:
    """Like deep_taylor, z^B on the first layer, for inputs in [low, high]."""
    return _deep_taylor("deep_taylor_bounded", r.ZBox(low, high, 1e-12))


register("deep_taylor.bounded", COMPOSITES["deep_taylor_bounded"])  # iNNvestigate's spelling


@_composite("auto")
def auto(gamma: float = 1.0, epsilon: float = 0.1) -> Composite:
    """What ``method="lrp"`` uses: z⁺ first, generalised γ on convolutions, relative ε on dense layers, AttnLRP.

    Chosen by ``docs/quality.md``. Relevance mass on held-out images of the demo CNN, a ResNet and a ViT: 0.926, 0.970,
    0.935 (±0.003); epsilon_plus 0.911, 0.930, 0.920; epsilon_gamma_box 0.894, 0.913, 0.922.

    Parameters
    ----------
    gamma : float
        How much more contributions of the output's own sign count (Andéol et al. 2021). At a site Σ|R| grows by
        (2 + γ)/γ at most, so that maps of deep networks stay bounded where those of ε do not.
    epsilon : float
        In units of rms(z) of each sample: scale-free, and damps contradictory evidence (Montavon et al. 2019, 10.2).
        The layer of the output keeps all relevance; there ε would only scale the map.
    """
    guard = 1e-12  # ratios of γ and z⁺ are bounded: only exact zeros need a stabiliser
    rows: list[Row] = [
        ((first(), family("convolution")), r.ZPlus(guard)),
        (family("convolution", "batch_norm"), r.GeneralizedGamma(gamma, guard)),
        ((family("dense"), at_output()), r.Epsilon(guard)),
        (family("dense"), r.Epsilon(epsilon, relative=True)),
    ]
    return Composite(rows, name="auto")
