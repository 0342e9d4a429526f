"""The LRP rules: how one site hands the relevance of its output to its inputs.

A *site* is one call of a torch function during the traced forward pass. Every rule is a small class with one
method, ``relevance(site, R)``, that maps the relevance of the site's output to the relevance of each of its
inputs. A rule sees a site only through

* ``site.inputs``, ``site.output`` -- the activations that went in and came out,
* ``site.vjp(c)`` -- the transposed Jacobian of the (linearised) function applied to ``c``, one tensor per input,

and, on linear sites (convolutions, dense layers, folded batch norms, ...), through

* ``site.weight``, ``site.bias`` -- with a following batch norm already folded in,
* ``site.forward(a, w)``, ``site.transpose(c, w)`` -- the bias-free map and its transpose for any weight.

Notation: input a, weight w, bias b, output z = Σ a w + b, a⁺ = max(a, 0), a⁻ = min(a, 0), and the signed
stabiliser s(z) = z + ε·sgn(z) with sgn(0) = +1.

Papers: Bach et al. 2015 (ε, αβ), Montavon et al. 2017 (z⁺, z^B, w²: deep Taylor), Montavon et al. 2019 (γ, 0),
Lapuschkin et al. 2019 (flat), Andéol et al. 2021 (generalised γ), Arras et al. 2017 (signal takes all),
Achtibat et al. 2024 (AttnLRP: uniform, softmax), Zeiler & Fergus 2014 (DeconvNet),
Springenberg et al. 2015 (guided backpropagation), Zhang et al. 2018 (excitation backpropagation).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .errors import InputError, unknown_name

BiasMode = Literal["keep", "zero", "distribute"]

RULES: dict[str, type[Rule]] = {}


def list_rules() -> list[str]:
    """Names of all rules, sorted."""
    return sorted(RULES)


def get(name: str, **options: Any) -> Rule:
    """Build a rule by its class name, such as ``get("Epsilon", epsilon=1e-9)``."""
    if name not in RULES:
        raise unknown_name("rule", name, RULES)
    return RULES[name](**options)


# --------------------------------------------------------------------------------------------- stabiliser


def stabilizer_width(z: Tensor, epsilon: float, relative: bool) -> float | Tensor:
    """ε itself, or ε · rms(z) of each sample (the first axis) where ``relative``."""
    if not relative:
        return epsilon
    axes = tuple(range(1, z.dim())) if z.dim() > 1 else tuple(range(z.dim()))
    size = math.prod(z.shape[axis] for axis in axes)
    rms = torch.linalg.vector_norm(z, dim=axes, keepdim=True) / math.sqrt(max(size, 1))
    # where all z are 0 there is no scale: any width guards the division
    return epsilon * torch.where(rms > 0, rms, 1.0)


def stabilize(z: Tensor, epsilon: float, relative: bool = False) -> Tensor:
    """s(z) = z + ε·sgn(z), sgn(0) = +1; for complex z the sign is z / |z|.

    Parameters
    ----------
    z : Tensor
        Denominators.
    epsilon : float
        Width of the stabiliser, absolute or in units of rms(z) of each sample.
    relative : bool
        Whether ``epsilon`` is relative (scale-free, Montavon et al. 2019 section 10.2).
    """
    width = stabilizer_width(z, epsilon, relative)
    if z.is_complex():
        return z + width * torch.where(z == 0, torch.ones_like(z), torch.sgn(z))
    if not isinstance(width, Tensor):
        width = torch.full((), width, dtype=z.dtype, device=z.device)
    return torch.copysign(width, z).add_(z)


def divide(R: Tensor, z: Tensor, epsilon: float, relative: bool = False, sign: int = 0, spent: bool = False) -> Tensor:
    """R / s(z); where s(z) is exactly 0 (only without stabiliser) the relevance is dropped.

    Half-precision operands are divided in float32: 1e-6 is subnormal there and R / 1e-6 overflows.

    Parameters
    ----------
    R, z, epsilon, relative
        As in :func:`stabilize`; R may have an axis of several maps before those of z.
    sign : {0, 1, -1}
        1 or -1 where z is known to be of no other sign, which saves a pass over its signs; 0 has the sign given.
    spent : bool
        Whether z is of no use afterwards, so that it may be written over.
    """
    R, z = working(R), working(z)
    if epsilon == 0:
        some = (z != 0).to(z.dtype)
        return torch.div(R, 1 - some + z).mul_(some)
    if sign:
        s = torch.add(z, sign * stabilizer_width(z, epsilon, relative), out=z if spent else None)
    else:
        s = stabilize(z, epsilon, relative)
    if R.dtype == s.dtype and R.shape == s.shape:
        return torch.div(R, s, out=s)  # s is ours: one pass over fresh memory less
    return R / s


def denominators(site: Any, relative: bool) -> tuple[Tensor, int]:
    """The outputs to divide by, and their sign where it is known; a relative stabiliser looks at all of them."""
    return (site.uncut(), 0) if relative else (site.output, int(site.rectified))


def working(t: Tensor) -> Tensor:
    """The tensor in a dtype that relevance can be computed in: half precision becomes float32."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


# --------------------------------------------------------------------------------------------- base classes


class Rule:
    """How a site hands relevance back. Subclass it and give ``kinds`` and ``relevance``; it is then registered.

    Attributes
    ----------
    kinds : frozenset of str
        The kinds of sites that the rule is defined for (see ``saliency_lrp/functions/README.md``).
    """

    kinds: ClassVar[frozenset[str]] = frozenset()
    #: whether activations must keep their input for this rule, also where their output tells the gradient
    needs_preactivation: ClassVar[bool] = False
    #: whether the rule also takes relevance of several maps at once, in an axis before those of the output
    takes_several: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            RULES[cls.__name__] = cls

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        """Relevance of each input of ``site``, given the relevance ``R`` of its output."""
        raise NotImplementedError

    def applies_to(self, site: Any) -> bool:
        """Whether the rule is defined for this kind of site."""
        return site.kind in self.kinds

    def __repr__(self) -> str:
        names = [n for n in constructor_parameters(type(self)) if n in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{n}={vars(self)[n]!r}' for n in names)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


@functools.cache
def constructor_parameters(cls: type) -> tuple[str, ...]:
    """Names that a class's own or inherited constructor takes; looked up once, because it is slow."""
    return tuple(inspect.signature(cls.__init__).parameters)


@dataclass(slots=True)
class Part:
    """One share of a linear rule: contributions Σ a·w over ``terms`` that divide ``share``·R among them.

    ``terms`` are (input, weight) pairs; input ``None`` stands for ones. ``scale`` multiplies the outputs of them all.
    ``total`` is the denominator where it is already known; otherwise it is the sum of the contributions and the bias.
    ``sign`` says that it is never negative (1) or positive (-1), ``spent`` that it is a tensor of the part's own.
    ``only``: outputs where this is not positive take no part. ``stacked``: how many terms were joined to one, channels
    beside channels.
    """

    terms: list[tuple[Tensor | None, Tensor]]
    bias: Tensor | None = None
    scale: Tensor | None = None
    total: Tensor | None = None
    share: float | Tensor = 1.0
    sign: int = 0
    spent: bool = False
    only: Tensor | None = None
    stacked: int = 1

    def stack(self, site: Any) -> None:
        """Make one term of all where the site's input has so few channels that a call costs as much for several."""
        if len(self.terms) > 1 and site.thin:
            inputs, weights = zip(*self.terms, strict=True)
            self.stacked = len(self.terms)
            self.terms = [(torch.cat(inputs, site.channel_axis), torch.cat(weights, 1))]


class _LinearRule(Rule):
    """Rules on linear sites, written as a few :class:`Part` s; this class does the dividing and transposing."""

    kinds = frozenset({"linear"})
    relative = False
    takes_several = True

    def __init__(self, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        if not epsilon >= 0:
            raise InputError(f"epsilon must be >= 0, got {epsilon!r}")
        if bias not in ("keep", "zero", "distribute"):
            raise unknown_name("bias mode", bias, ("keep", "zero", "distribute"))
        self.epsilon = epsilon
        self.bias = bias

    def parts(self, site: Any) -> Iterator[Part]:
        """The shares of this rule at ``site``."""
        raise NotImplementedError

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        for part in self.parts(site):
            share = R if part.only is None else where_positive(R, part.only)
            part.stack(site)
            noted = self.accounts_for(site)
            spent = (part.spent or part.total is None) and not noted
            denominator = contributions(site, part) if part.total is None else part.total
            sign = 0 if noted else part.sign  # what ε absorbs is told by the sign of the denominator itself
            c = divide(share, denominator, self.epsilon, self.relative, sign, spent)
            if isinstance(part.share, Tensor) or part.share != 1.0:
                c = c.mul_(part.share)
            if site.collects:
                site.collect_parameters(part, c)
            scaled = c if part.scale is None else c * part.scale
            for a, w in part.terms:
                message = site.transpose(scaled, w)
                if a is not None:
                    message = message.mul_(a)
                if part.stacked > 1:
                    message = sum_of_parts(message, part.stacked, site.channel_axis)
                total = message if total is None else total.add_(message)
            if noted:
                absorbed = self.absorbed(site, part, denominator, c)
                if self.bias == "distribute":
                    total = total + site.spread(absorbed)
        return (torch.zeros_like(working(site.input)) if total is None else total,)

    def accounts_for(self, site: Any) -> bool:
        """Whether it matters what bias and stabiliser take."""
        return site.account or self.bias == "distribute"

    def absorbed(self, site: Any, part: Part, denominator: Tensor, c: Tensor) -> Tensor:
        """What bias and stabiliser take of the relevance, per output; noted in the account unless distributed."""
        width = stabilizer_width(denominator, self.epsilon, self.relative)
        by_epsilon = torch.where(denominator < 0, -c, c) * width
        if self.epsilon == 0:
            by_epsilon = torch.zeros_like(c)
        by_bias = torch.zeros_like(c) if part.bias is None else site.as_output(part.bias) * c
        if self.bias != "distribute":
            site.absorb(epsilon=by_epsilon, bias=by_bias)
        return by_epsilon + by_bias

    def bias_of(self, site: Any) -> Tensor | None:
        """The site's bias, or None where it has none or this rule leaves it out."""
        return None if self.bias == "zero" else site.bias

    def output_serves(self, site: Any) -> bool:
        """Whether the site's output is, exactly enough, the sum that this rule divides into parts."""
        return not site.rounded and (self.bias != "zero" or not site.has_bias)


#: How large a difference must be, relative to what it was taken from, to be used as a denominator.
RELIABLE = 1 / 32


def remainder(z: Tensor, up: Tensor) -> Tensor | None:
    """The sum of the negative contributions as what the positive ones leave of the output, without a convolution.

    None where rounding would count: some difference is small against ``up``. The question is not put to a GPU, which
    would have to be waited for.
    """
    if up.device.type != "cpu":
        return None
    down = torch.sub(z, up, alpha=1 - RELIABLE)
    return None if bool(down.amax() > 0) else torch.sub(z, up, out=down)


def contributions(site: Any, part: Part) -> Tensor:
    """Σ a·w over the terms of ``part``, plus its bias: a fresh tensor."""
    part.stack(site)
    total: Tensor | None = None
    for a, w in part.terms:
        z = site.forward(site.ones_like_input() if a is None else a, w)
        total = z if total is None else total.add_(z)
    assert total is not None
    if part.scale is not None:
        total = total.mul_(part.scale)
    return total if part.bias is None else total.add_(site.as_output(part.bias))


def sum_of_parts(t: Tensor, n: int, axis: int) -> Tensor:
    """The sum of ``n`` equal parts of a tensor along an axis."""
    return t.unflatten(axis, (n, -1)).sum(axis - 1 if axis < 0 else axis)


def positive(t: Tensor) -> Tensor:
    """max(t, 0)."""
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    """min(t, 0)."""
    return t.clamp(max=0)


def where_positive(R: Tensor, z: Tensor) -> Tensor:
    """R where z > 0, else 0; on CPUs an order of magnitude faster than ``torch.where``."""
    return torch.ops.aten.threshold_backward(working(R), z, 0)


def split_terms(
    site: Any, w: Tensor, same: Callable[[Tensor], Tensor], opposite: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor | None, Tensor]]:
    """The pairs (a⁺, ``same(w)``), (a⁻, ``opposite(w)``); one pair where the input is known to be non-negative."""
    a = site.input
    if site.nonnegative:
        return [(a, same(w))]
    return [(positive(a), same(w)), (negative(a), opposite(w))]


def favoured(gamma: float, sign: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function w + γ w⁺ or w + γ w⁻, by ``sign``."""

    def favour(w: Tensor) -> Tensor:
        chosen = sign(w)
        return torch.add(w, chosen, alpha=gamma, out=chosen)

    return favour


#: What ``site.factored()`` gives: a weight, and what its outputs are still to be multiplied by (≥ 0), if anything.
Factored = tuple[Tensor, Tensor | None]


def positive_part(site: Any, weight: Factored, b: Tensor | None) -> Part:
    """The share of z⁺: all contributions that are not negative, ``a⁺w⁺ + a⁻w⁻ + b⁺``."""
    w, scale = weight
    return Part(split_terms(site, w, positive, negative), None if b is None else positive(b), scale, sign=1)


def negative_part(site: Any, weight: Factored, b: Tensor | None) -> Part:
    """The share of all contributions that are not positive, ``a⁺w⁻ + a⁻w⁺ + b⁻``."""
    w, scale = weight
    return Part(split_terms(site, w, negative, positive), None if b is None else negative(b), scale, sign=-1)


# --------------------------------------------------------------------------------------------- linear rules


class Epsilon(_LinearRule):
    """LRP-ε: ``R_i = a_i Σ_j w_ij R_j / s(z_j)`` (Bach et al. 2015, eq. 58).

    Parameters
    ----------
    epsilon : float
        Stabiliser; iNNvestigate uses 1e-7, captum 1e-9, zennit 1e-6.
    relative : bool
        Measure ``epsilon`` in units of rms(z) of the sample (0.1 to 0.25 give the sparser maps of the literature).
    bias : {"keep", "zero", "distribute"}
        ``"keep"``: part of z, its share is absorbed (zennit, captum). ``"zero"``: left out of z (the original
        inverter_util, iNNvestigate's ``IgnoreBias``). ``"distribute"``: bias and ε are spread over the inputs,
        so that relevance is conserved exactly (Arras et al. 2017, ``bias_factor=1``).
    """

    def __init__(self, epsilon: float = 1e-6, relative: bool = False, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        self.relative = relative

    def parts(self, site: Any) -> Iterator[Part]:
        w, scale = site.factored(of_any_sign=True)
        if self.bias == "zero" and site.has_bias:
            yield Part([(site.input, w)], None, scale)
        else:
            bias = site.bias if site.collects or self.accounts_for(site) else None  # else it is just part of the output
            z, sign = denominators(site, self.relative)
            yield Part([(site.input, w)], bias, scale, z, sign=sign)


class ZeroRule(Epsilon):
    """LRP-0: :class:`Epsilon` without stabiliser; outputs that are exactly 0 drop their relevance."""

    def __init__(self, bias: BiasMode = "keep") -> None:
        super().__init__(0.0, False, bias)


class Gamma(_LinearRule):
    """LRP-γ: ``R_i = a_i Σ_j (w + γ w⁺)_ij R_j / s(Σ a (w + γ w⁺) + b)`` (Montavon et al. 2019).

    Meant for non-negative inputs: they are not split by sign, and the bias is used as it is. These are captum's
    numbers. For inputs of any sign take :class:`GeneralizedGamma` (zennit's ``Gamma``).
    """

    def __init__(self, gamma: float = 0.25, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        self.gamma = gamma

    def parts(self, site: Any) -> Iterator[Part]:
        w, scale = site.factored()
        yield Part([(site.input, favoured(self.gamma, positive)(w))], self.bias_of(site), scale)


class GeneralizedGamma(_LinearRule):
    """Generalised LRP-γ for inputs and outputs of any sign (Andéol et al. 2021; zennit's ``Gamma``).

    Where the output is positive, positive contributions count (1 + γ) times:
    ``z = a⁺(w + γw⁺) + a⁻(w + γw⁻) + b + γb⁺``; where it is negative the negative ones do:
    ``z = a⁺(w + γw⁻) + a⁻(w + γw⁺) + b + γb⁻``. Outputs that are exactly 0 drop their relevance.
    The sign is that of the site's output, bias included, also where ``bias="zero"``.
    """

    def __init__(self, gamma: float = 0.25, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        self.gamma = gamma

    def parts(self, site: Any) -> Iterator[Part]:
        (w, scale), b, z = site.factored(), self.bias_of(site), site.output
        up, down = favoured(self.gamma, positive), favoured(self.gamma, negative)
        total_up = total_down = None  # then the sum of the contributions
        if self.output_serves(site):
            total_up, total_down = self.totals(site, (w, scale), b, z)
        b_up, b_down = (None, None) if b is None else (up(b), down(b))
        if site.rectified:  # no relevance where the output was not positive
            sign = int(total_up is not None)
            yield Part(split_terms(site, w, up, down), b_up, scale, total_up, sign=sign, spent=True)
        else:
            yield Part(split_terms(site, w, up, down), b_up, scale, total_up, only=z)
            yield Part(split_terms(site, w, down, up), b_down, scale, total_down, only=-z)

    def totals(self, site: Any, weight: Factored, b: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both denominators by the convolutions of z⁺ alone: ``z + γ z⁺`` and ``z + γ z⁻``, where z⁻ = z − z⁺.

        Where they serve (outputs of their sign) the terms of each have one sign, so that nothing cancels.
        """
        z_pos = contributions(site, positive_part(site, weight, b))
        down = None if site.rectified else torch.sub((1 + self.gamma) * z, z_pos, alpha=self.gamma)
        return torch.add(z, z_pos, alpha=self.gamma, out=z_pos), down


class ZPlus(_LinearRule):
    """LRP-z⁺: ``R_i = Σ_j (a⁺w⁺ + a⁻w⁻)_ij R_j / s(Σ a⁺w⁺ + a⁻w⁻ + b⁺)`` (Montavon et al. 2017).

    Equal to αβ with α = 1, β = 0. Inputs are split by sign, so negative inputs are handled rightly.
    """

    def parts(self, site: Any) -> Iterator[Part]:
        yield positive_part(site, site.factored(), self.bias_of(site))


class AlphaBeta(_LinearRule):
    """LRP-αβ: α times the positive share minus β times the negative share (Bach et al. 2015, eq. 60).

    ``R_i = α Σ_j (a⁺w⁺ + a⁻w⁻) R_j / s(Σ a⁺w⁺ + a⁻w⁻ + b⁺) − β Σ_j (a⁺w⁻ + a⁻w⁺) R_j / s(Σ a⁺w⁻ + a⁻w⁺ + b⁻)``

    α − β must be 1 (compared with a tolerance), both must be ≥ 0. iNNvestigate's version with bias puts the whole
    bias into both denominators; that is a bug and is not reproduced (see ``docs/differences.md``).
    """

    def __init__(self, alpha: float = 2.0, beta: float = 1.0, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        if alpha < 0 or beta < 0 or abs(alpha - beta - 1.0) > 1e-6:
            raise InputError(f"alpha and beta must be >= 0 with alpha - beta = 1, got {alpha} and {beta}")
        self.alpha = float(alpha)
        self.beta = float(beta)

    def parts(self, site: Any) -> Iterator[Part]:
        weight, b = site.factored(), self.bias_of(site)
        up = positive_part(site, weight, b)
        up.share = self.alpha
        if not self.beta:
            yield up
            return
        up.total, up.spent = contributions(site, up), True
        down = negative_part(site, weight, b)
        down.share = -self.beta
        if self.output_serves(site):
            down.total, down.spent = remainder(site.output, up.total), True
        yield up
        yield down


class AlphaBetaX(_LinearRule):
    """iNNvestigate's AlphaBetaX: the four sign combinations of input and weight, each divided by its own sum.

    ``R = α₀ P(a⁺w⁺) + α₁ P(a⁻w⁻) − β₀ P(a⁺w⁻) − β₁ P(a⁻w⁺)`` with ``P(aw)_i = Σ_j (aw)_ij R_j / s(Σ_i (aw)_ij + b±)``,
    b⁺ in the positive combinations and b⁻ in the negative ones. The original multiplies the second term by β₁
    instead of α₁; that is not reproduced.

    Parameters
    ----------
    alpha, beta : pair of float
        The factors (α₀, α₁) and (β₀, β₁).
    """

    def __init__(
        self,
        alpha: tuple[float, float] = (0.5, 0.5),
        beta: tuple[float, float] = (0.5, 0.5),
        epsilon: float = 1e-6,
        bias: BiasMode = "keep",
    ) -> None:
        super().__init__(epsilon, bias)
        self.alpha = tuple(map(float, alpha))
        self.beta = tuple(map(float, beta))

    def parts(self, site: Any) -> Iterator[Part]:
        a, w, b = site.input, site.weight, self.bias_of(site)
        up, down = (None, None) if b is None else (positive(b), negative(b))
        combinations = (
            (self.alpha[0], positive(a), positive(w), up),
            (self.alpha[1], negative(a), negative(w), up),
            (-self.beta[0], positive(a), negative(w), down),
            (-self.beta[1], negative(a), positive(w), down),
        )
        for share, part_of_a, part_of_w, part_of_b in combinations:
            if share:
                yield Part([(part_of_a, part_of_w)], part_of_b, share=share)


class WSquare(_LinearRule):
    """LRP-w²: ``R_i = Σ_j w²_ij R_j / s(Σ_i w²_ij)`` (Montavon et al. 2017), for unbounded real inputs.

    The paper and iNNvestigate have no bias here, hence the default ``bias="zero"``; with ``"keep"`` b² joins the
    denominator as in zennit.
    """

    def __init__(self, epsilon: float = 1e-6, bias: BiasMode = "zero") -> None:
        super().__init__(epsilon, bias)

    def parts(self, site: Any) -> Iterator[Part]:
        b = self.bias_of(site)
        yield Part([(None, site.weight**2)], None if b is None else b**2)


class Flat(_LinearRule):
    """LRP-flat: every connected input gets the same share (Lapuschkin et al. 2019); aware of borders."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__(epsilon, "zero")

    def parts(self, site: Any) -> Iterator[Part]:
        yield Part([(None, torch.ones_like(site.weight))])


class ZBox(_LinearRule):
    """LRP-z^B for inputs in a box, such as pixels (Montavon et al. 2017; iNNvestigate's ``BoundedRule``).

    ``R_i = Σ_j (a w − l w⁺ − h w⁻)_ij R_j / s(Σ_i (a w − l w⁺ − h w⁻)_ij)``

    Parameters
    ----------
    low, high : float or Tensor
        Smallest and largest value of the input, l ≤ a ≤ h; a tensor must broadcast to the input (a longer batch
        axis is cut). With normalised images these are the normalised black and white.
    """

    def __init__(self, low: float | Tensor = -1.0, high: float | Tensor = 1.0, epsilon: float = 1e-6) -> None:
        super().__init__(epsilon, "zero")
        self.low = low
        self.high = high

    def parts(self, site: Any) -> Iterator[Part]:
        a, (w, scale) = site.input, site.factored()
        low, high = (self.bound(v, a) for v in (self.low, self.high))
        yield Part([(a, w), (low, -positive(w)), (high, -negative(w))], None, scale)

    @staticmethod
    def bound(value: float | Tensor, a: Tensor) -> Tensor:
        """``value`` as a tensor of the input's shape."""
        value = torch.as_tensor(value, dtype=a.dtype, device=a.device)
        if value.dim() == a.dim() and value.shape[0] > a.shape[0]:
            value = value[: a.shape[0]]
        try:
            return value.expand(a.shape)
        except RuntimeError:
            raise InputError(
                f"bounds of shape {tuple(value.shape)} do not fit what the layer reads, {tuple(a.shape)} (with the "
                "padding of a mode other than zeros); give numbers, or one value per channel such as shape (1, C, 1, 1)"
            ) from None


class Power(_LinearRule):
    """The e-rule of Pytorch-LRP and TensorWatch: ``R_i = a_i^p Σ_j w_ij^p R_j / (z_j + ε·sign z_j)``, z = Σ a^p w^p.

    Parameters
    ----------
    p : int
        The original's ``lrp_exponent``. Even exponents drop all signs, by definition. A non-integer exponent is an
        error where an input or weight is negative (the original returns NaN).
    bias : {"zero", "keep", "distribute"}
        The original leaves the bias out. Outputs with z = 0 exactly drop their relevance.
    """

    def __init__(self, p: float = 1, epsilon: float = 1e-6, bias: BiasMode = "zero") -> None:
        super().__init__(epsilon, bias)
        self.p = p

    def parts(self, site: Any) -> Iterator[Part]:
        b = self.bias_of(site)
        part = Part(
            [(self.power(site.input, "input"), self.power(site.weight, "weight"))],
            None if b is None else self.power(b, "bias"),
        )
        part.total = contributions(site, part)
        part.share = torch.sgn(part.total).abs()
        yield part

    def power(self, t: Tensor, what: str) -> Tensor:
        """t^p, refusing roots of negative numbers."""
        if self.p == 1:
            return t
        if float(self.p).is_integer():
            return t ** int(self.p)
        if bool((t < 0).any()):
            raise InputError(
                f"the e-rule with the non-integer exponent p={self.p} is undefined for negative values, and the {what} "
                "has some; use an integer p"
            )
        return t**self.p


class Beta(_LinearRule):
    """The b-rule of Pytorch-LRP and TensorWatch: αβ with α = 1 + β, bias left out, and rare neurons rescaled.

    ``R_i = (1 + β) · positive share − β · negative share``. An output that only has contributions of one sign (a
    *rare neuron*) hands on its whole relevance, so that relevance is conserved, except where the factor of that sign
    is 0 (β = −1 or 0): there it is lost, by definition. With ε its factor f becomes |f| / (1 − (1 − |f|) z / s(z)),
    as in the original: 1 for a vanishing ε.
    """

    def __init__(self, beta: float = 0.5, epsilon: float = 1e-6) -> None:
        super().__init__(epsilon, "zero")
        if not beta >= -1:
            raise InputError(f"beta must be in [-1, inf), got {beta!r}")
        self.beta = float(beta)

    def parts(self, site: Any) -> Iterator[Part]:
        weight = site.factored()
        up, down = positive_part(site, weight, None), negative_part(site, weight, None)
        up.total, down.total = contributions(site, up), contributions(site, down)
        up.share = self.rescaled(1.0 + self.beta, up.total, other=down.total)
        down.share = self.rescaled(-self.beta, down.total, other=up.total)
        yield up
        yield down

    def rescaled(self, factor: float, own: Tensor, other: Tensor) -> Tensor:
        """``factor``, or what makes up for the missing other sign; a factor of 0 stays 0."""
        size = abs(factor)
        alone = size / (1.0 - (1.0 - size) * divide(own, own, self.epsilon)) if size else torch.zeros_like(own)
        return torch.where(other == 0, alone, factor)


class Rectified(Rule):
    """Positive relevance only: ``then`` gets ``max(R, 0)``.

    Deep Taylor decomposition explains a rectified output: a class with a negative score has no relevance.
    """

    kinds = frozenset({"linear"})

    def __init__(self, then: Rule) -> None:
        self.then = then

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return self.then.relevance(site, positive(R))


class SplitBatchNorm(Rule):
    """A batch norm takes the rule ``rule`` by itself, the linear layer it follows the rule ``then``.

    Without it they are one layer, folded. A batch norm is not one-to-one in value, so that folding is the better
    choice; this is for the numbers of peers that do not fold (captum: ε on both; see ``docs/differences.md``).
    """

    kinds = frozenset({"linear"})

    def __init__(self, rule: Rule, then: Rule) -> None:
        self.rule = rule
        self.then = then

    def applies_to(self, site: Any) -> bool:
        return site.kind == "linear" and site.batch_norm is not None

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        (R_norm,) = self.rule.relevance(site.batch_norm_alone(), R)
        return site.below_batch_norm(self.then, R_norm)


class PassBatchNorm(SplitBatchNorm):
    """A batch norm passes relevance unchanged; the linear layer it follows takes the rule ``then``.

    The convention of Pytorch-LRP and TensorWatch, and of zennit without its canonizers.
    """

    def __init__(self, then: Rule) -> None:
        super().__init__(Pass(), then)


class BatchNormReverse(Rule):
    """iNNvestigate's rule for a batch norm of its own: ``R_in = R · x (y − β) / ((x − μ) y)``, stabilised.

    On a site where a linear layer and its batch norm were folded, the batch norm takes this rule and the linear
    layer the rule ``then``.
    """

    kinds = frozenset({"linear"})

    def __init__(self, epsilon: float = 1e-7, then: Rule | None = None) -> None:
        self.epsilon = epsilon
        self.then = then if then is not None else Epsilon(1e-7)

    def applies_to(self, site: Any) -> bool:
        return site.kind == "linear" and site.batch_norm is not None

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, shift = site.batch_norm_input(), *site.batch_norm_constants()
        y = site.output
        ratio = divide(x * (y - shift), (x - mean) * y, self.epsilon)
        return site.below_batch_norm(self.then, working(R) * ratio)


# --------------------------------------------------------------------------------------------- any kind of site

ANY_KIND = frozenset(
    {
        "linear",
        "sum",
        "activation",
        "scale",
        "product",
        "gate",
        "matmul",
        "softmax",
        "attention",
        "normalisation",
        "recurrent",
        "steps",
        "unknown",
    }
)


def message(a: Tensor, g: Tensor, last: bool = False) -> Tensor:
    """a · g, in the memory of g where this is the last use of it."""
    if g.is_complex():
        return a * g.conj()
    return g.mul_(a) if last else a * g


class Norm(Rule):
    """In proportion to contributions: ``R_i = a_i · [Jᵀ (R / s(z))]_i`` with J the site's linear part.

    Serves sums, means, pooling, interpolation and normalisations (whose statistics count as constants), and is LRP-ε
    on linear sites.

    Parameters
    ----------
    epsilon : float
        Stabiliser.
    relative : bool
        Measure ``epsilon`` in units of rms(z) of the sample.
    bias : {"keep", "distribute"}
        ``"keep"``: a constant operand acts as a bias; it and ε absorb their share. ``"distribute"``: that share is
        spread evenly over the inputs, on sums of real tensors (other sites then take the next rule of the composite).
    """

    kinds = frozenset({"sum", "normalisation", "linear", "matmul", "unknown"})

    def __init__(self, epsilon: float = 1e-12, relative: bool = False, bias: BiasMode = "keep") -> None:
        if bias not in ("keep", "distribute"):
            raise unknown_name("bias mode of Norm", bias, ("keep", "distribute"))
        self.epsilon = epsilon
        self.relative = relative
        self.bias = bias

    @property
    def takes_several(self) -> bool:  # type: ignore[override]
        return self.bias == "keep"

    def applies_to(self, site: Any) -> bool:
        return site.kind in self.kinds and (self.bias == "keep" or site.kind == "sum")

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        z, sign = denominators(site, self.relative)
        c = divide(R, z, self.epsilon, self.relative, sign)
        spread = self.taken(site, c) if (site.account or self.bias == "distribute") and not c.is_complex() else None
        # real tensors: conj() is a no-op; complex ones carry c·z, whose real part is the relevance
        grads = site.vjp(c.conj() if c.is_complex() else c)
        messages = tuple(
            None if g is None else message(working(a), g, last=g is c and not any(g is h for h in grads[k + 1 :]))
            for k, (a, g) in enumerate(zip(site.inputs, grads, strict=True))
        )
        if spread is None:
            return messages
        return tuple(None if m is None else m + share for m, share in zip(messages, spread, strict=True))

    def taken(self, site: Any, c: Tensor) -> tuple[Tensor, ...] | None:
        """What stabiliser and constants take: each input's part of it, or None where it is absorbed (and noted)."""
        z = working(site.output)
        by_epsilon = torch.where(z < 0, -c, c) * stabilizer_width(z, self.epsilon, self.relative)
        if self.bias == "distribute":
            parts = site.spread(by_epsilon + c * site.constant_part())
            if parts is not None:
                return parts
        site.absorb(epsilon=by_epsilon)
        return None


class Taylor(Norm):
    """What an op without a rule of its own gets: :class:`Norm`, reported to the user as not understood."""


class Pass(Rule):
    """Relevance passes unchanged: ``R_in = R``, for one-to-one functions (activations; a batch norm of its own)."""

    kinds = frozenset({"activation", "scale", "normalisation", "linear", "softmax", "unknown", "sum"})
    takes_several = True

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return site.pass_through(R)


class Stop(Rule):
    """Relevance ends here: every input gets 0. What arrived is noted in the account as absorbed by the rule."""

    kinds = ANY_KIND

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        if site.account:
            for r in R if isinstance(R, tuple) else (R,):
                if r is not None:
                    site.absorb(rule=r)
        return (None,) * site.arity


class Gradient(Rule):
    """No relevance at all but the plain gradient, ``Jᵀ R``: for the gradient methods built on this engine."""

    kinds = ANY_KIND

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return site.gradient(R)


# --------------------------------------------------------------------------------------------- activations


class DeconvNet(Rule):
    """DeconvNet at a ReLU: ``R_in = max(R, 0)`` (Zeiler & Fergus 2014)."""

    kinds = frozenset({"activation"})

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return (positive(R),)


class GuidedBackprop(Rule):
    """Guided backpropagation at a ReLU: ``R_in = max(R, 0) · [z > 0]`` (Springenberg et al. 2015)."""

    kinds = frozenset({"activation"})

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return (positive(R) * (site.output > 0),)


class BetaSmooth(Rule):
    """The gradient of the softplus that replaces a ReLU: ``R_in = R · sigmoid(β z)`` (Dombrowski et al. 2019).

    A trace keeps what went into its ReLUs only if a composite with this rule was chosen before the forward pass.
    """

    kinds = frozenset({"activation"})
    needs_preactivation = True

    def __init__(self, beta: float = 10.0) -> None:
        self.beta = beta

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        if site.from_output:
            raise InputError(
                f"BetaSmooth needs what went into {site.describe()}, which was not kept; choose the composite "
                'before the forward pass: RelevancePropagator(model, "beta_smooth").trace(...)'
            )
        return (R * torch.sigmoid(self.beta * site.input),)


class ExcitationBackprop(Gradient):
    """Excitation backpropagation at an activation: its gradient (Zhang et al. 2018); linear sites take z⁺."""

    kinds = frozenset({"activation"})


# --------------------------------------------------------------------------------------------- products, softmax


class Uniform(Rule):
    """Equal shares for the factors of a product: ``R_k = R / n`` (AttnLRP, Achtibat et al. 2024, prop. 3.2, 3.3).

    A matrix product of two activations splits ``R / 2`` over the summands of each output in proportion.
    """

    kinds = frozenset({"product", "gate", "matmul"})

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return site.split(R, [1.0 / site.arity] * site.arity, self.epsilon)


class SignalTakesAll(Rule):
    """A gate gets nothing, the signal it multiplies gets all (Arras et al. 2017); without a gate, equal shares."""

    kinds = frozenset({"product", "gate", "matmul"})

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        n = site.arity
        signals = [k not in site.gates for k in range(n)]
        if not any(signals):
            signals = [True] * n
        share = 1.0 / sum(signals)
        return site.split(R, [share if s else 0.0 for s in signals], self.epsilon)


def unmasked(x: Tensor, fill: float = 0.0) -> Tensor:
    """``x`` with ``fill`` for what is masked by −inf."""
    if x.device.type == "cpu" and x.numel() and bool(x.amin() > -math.inf):
        return x  # asked of CPUs only: one cheap pass instead of several slow ones
    return torch.where(torch.isinf(x), fill, x)


class SoftmaxTaylor(Rule):
    """Softmax by deep Taylor decomposition: ``R_i = x_i (R_i − y_i Σ_k R_k)`` (AttnLRP, proposition 3.1).

    The sum runs along the softmax's own axis. Entries masked with −inf get 0.
    """

    kinds = frozenset({"softmax"})

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        x, y, R = unmasked(working(site.inputs[0])), working(site.output), working(R)
        R_in = (R - y * R.sum(dim=site.dim, keepdim=True)).mul_(x)
        if site.account:
            site.absorb(rule=R.sum() - R_in.sum())
        return (R_in,)


class Unrolled(Rule):
    """A fused call (LSTM, GRU, ...) takes its steps one by one; each is a site with a rule of its own."""

    kinds = frozenset({"recurrent", "steps"})

    def relevance(self, site: Any, R: Any) -> tuple[Tensor | None, ...]:
        return site.through_steps(R)


class _AttentionRule(Rule):
    """Rules on a fused scaled dot-product attention, whose weights are recomputed in the backward pass."""

    kinds = frozenset({"attention"})

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon


class AttentionAttnLRP(_AttentionRule):
    """AttnLRP (Achtibat et al. 2024): uniform at A·V and at Q·Kᵀ, deep Taylor at the softmax."""

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return site.through(Uniform(self.epsilon), SoftmaxTaylor(), R)


class AttentionCPLRP(_AttentionRule):
    """CP-LRP (Ali et al. 2022): the attention weights are a gate, the values take all."""

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        return site.through(SignalTakesAll(self.epsilon), Stop(), R)


# --------------------------------------------------------------------------------------------- zeros


def _keeps_bias(rule: Any, site: Any) -> bool:
    return getattr(rule, "bias", "keep") != "distribute"


#: Rules that give no relevance to an input that is exactly 0, provided that outputs that are exactly 0 have none.
#: A rule that is not here may give some; subclasses count as rules of their own.
VANISHES: dict[type[Rule], Callable[[Any, Any], bool]] = {
    **dict.fromkeys((Epsilon, ZeroRule, Gamma, GeneralizedGamma, ZPlus, AlphaBeta, AlphaBetaX, Beta), _keeps_bias),
    **dict.fromkeys((Norm, Taylor), _keeps_bias),
    **dict.fromkeys((Uniform, SignalTakesAll, SoftmaxTaylor, AttentionAttnLRP, AttentionCPLRP), lambda *_: True),
    Stop: lambda *_: True,
    Power: lambda rule, site: rule.p > 0 and _keeps_bias(rule, site),
    Pass: lambda rule, site: site.keeps_zero,
}


def vanishes(rule: Rule, site: Any) -> bool:
    """Whether :data:`VANISHES` holds for a rule at a site.

    Where it holds for all rules of a pass, what a ReLU cut off needs no denominator of its own: its relevance is 0.
    """
    return VANISHES.get(type(rule), lambda *_: False)(rule, site)
