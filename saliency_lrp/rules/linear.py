"""Rules on linear sites: convolutions, dense layers, folded batch norms, products with constants."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, unknown_name
from ..model.devices import knows_cheaply
from ..values import holds
from .arithmetic import (
    divide,
    measured_over,
    negative,
    positive,
    stabilizer_width,
    sum_of_parts,
    where_positive,
    working,
)
from .base import BiasMode, Rule, unless_distributed
from .views import LinearView, Messages


class Term(NamedTuple):
    """Contributions of one input by one weight.

    ``input`` None stands for ones. ``side`` says what of the site's input it is: all (0), its positive part (1), its
    negative part (-1), or something else (None).
    """

    input: Tensor | None
    weight: Tensor
    side: int | None = None


@dataclass(slots=True)
class Part:
    """One share of a linear rule: contributions Σ a·w over ``terms`` that divide ``share``·R among them.

    ``scale`` multiplies the outputs of all terms.
    ``total`` is the denominator where it is already known; otherwise it is the sum of the contributions and the bias.
    ``sign`` says that it is never negative (1) or positive (-1), ``may_overwrite`` that it is a tensor of the part's
    own. ``only_where``: outputs where this is not positive take no part. ``joined``: how many terms were joined to one,
    channels beside channels.
    """

    terms: list[Term]
    bias: Tensor | None = None
    scale: Tensor | None = None
    total: Tensor | None = None
    share: float | Tensor = 1.0
    sign: int = 0
    may_overwrite: bool = False
    only_where: Tensor | None = None
    joined: int = 1

    def stack(self, site: LinearView) -> None:
        """Make one term of all where the site's input has so few channels that a call costs as much for several."""
        if len(self.terms) > 1 and site.few_channels:
            inputs, weights, _ = zip(*self.terms, strict=True)
            self.joined = len(self.terms)
            self.terms = [Term(torch.cat(inputs, site.channel_axis), torch.cat(weights, 1))]


class LinearRule(Rule, abstract=True):
    """Rules on linear sites, written as a few :class:`Part` s; this class does the dividing and transposing."""

    kinds = frozenset({"linear"})
    relative = False
    batches_maps = True

    def __init__(self, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        if not epsilon >= 0:
            raise InputError(f"epsilon must be >= 0, got {epsilon!r}")
        if bias not in ("keep", "zero", "distribute"):
            raise unknown_name("bias mode", bias, ("keep", "zero", "distribute"))
        self.epsilon = epsilon
        self.bias = bias

    def parts(self, site: LinearView) -> Iterator[Part]:
        """The shares of this rule at ``site``."""
        raise NotImplementedError

    @property
    def splits_weights(self) -> bool:
        """Whether the rule asks for more of a weight than products with it: its signs, squares or connections."""
        return True

    def parts_at(self, site: LinearView) -> Iterator[Part]:
        """The shares, where the weight of the site can give them."""
        layout = site.own_weight.layout
        if layout is not torch.strided and (self.splits_weights or self.bias == "distribute"):
            raise InputError(
                f"the rule {self!r} asks for signs, squares or connections of the weight of {site.describe()}, which "
                f"is sparse ({layout}): take Epsilon() there, by composite='epsilon' say, or give the model a dense "
                "weight, weight.to_dense()"
            )
        return self.parts(site)

    def relevance(self, site: LinearView, R: Tensor) -> Messages:
        total: Tensor | None = None
        for part in self.parts_at(site):
            share = R if part.only_where is None else where_positive(R, part.only_where)
            if part.only_where is not None and nothing_in(share):
                continue
            part.stack(site)
            noted = self.accounts_for(site)
            may_overwrite = (part.may_overwrite or part.total is None) and not noted
            denominator = contributions(site, part) if part.total is None else part.total
            sign = 0 if noted else part.sign  # what ε absorbs is told by the sign of the denominator itself
            c = divide(share, denominator, self.epsilon, measured_over(site, self.relative), sign, may_overwrite)
            if isinstance(part.share, Tensor) or part.share != 1.0:
                c = c.mul_(part.share)
            if site.collects:
                site.collect_parameters(part, c)
            scaled = c if part.scale is None else c * part.scale
            for a, w, _ in part.terms:
                message = site.transpose(scaled, w)
                if a is not None:
                    message = message.mul_(a)
                if part.joined > 1:
                    message = sum_of_parts(message, part.joined, site.channel_axis)
                total = message if total is None else total.add_(message)
            if noted:
                absorbed = self.absorbed(site, part, denominator, c)
                if self.bias == "distribute":
                    spread = site.spread(absorbed)
                    total = spread if total is None else total + spread
        return (torch.zeros_like(working(site.input)) if total is None else total,)

    def coefficient(self, site: LinearView, c: Tensor) -> Messages | None:
        """The messages without their factor, the input: each term's counts where the input has the term's sign."""
        if self.accounts_for(site) or site.few_channels:
            return None
        R = c * site.output
        sums: dict[int | None, Tensor] = {}
        for part in self.parts_at(site):
            if any(term.side is None for term in part.terms):
                return None
            share = R if part.only_where is None else where_positive(R, part.only_where)
            may_overwrite = part.may_overwrite or part.total is None
            denominator = contributions(site, part) if part.total is None else part.total
            q = divide(share, denominator, self.epsilon, measured_over(site, self.relative), part.sign, may_overwrite)
            if isinstance(part.share, Tensor) or part.share != 1.0:
                q = q.mul_(part.share)
            if part.scale is not None:
                q = q * part.scale
            for _, w, side in part.terms:
                g = site.transpose(q, w)
                sums[side] = sums[side].add_(g) if side in sums else g
        return (by_sign(site.input, sums.get(0), sums.get(1), sums.get(-1)),)

    def accounts_for(self, site: LinearView) -> bool:
        """Whether it matters what bias and stabiliser take."""
        return site.account or self.bias == "distribute"

    def absorbed(self, site: LinearView, part: Part, denominator: Tensor, c: Tensor) -> Tensor:
        """What bias and stabiliser take of the relevance, per output; noted in the account unless distributed."""
        width = stabilizer_width(denominator, self.epsilon, measured_over(site, self.relative))
        by_epsilon = torch.where(denominator < 0, -c, c) * width
        if self.epsilon == 0:
            by_epsilon = torch.zeros_like(c)
        by_bias = torch.zeros_like(c) if part.bias is None else site.as_output(part.bias) * c
        if self.bias != "distribute":
            site.absorb(epsilon=by_epsilon, bias=by_bias)
        return by_epsilon + by_bias

    def bias_of(self, site: LinearView) -> Tensor | None:
        """The site's bias, or None where it has none or this rule leaves it out."""
        return None if self.bias == "zero" else site.bias

    def output_serves(self, site: LinearView) -> bool:
        """Whether the site's output is, exactly enough, the sum that this rule divides into parts."""
        return not site.rounded and (self.bias != "zero" or not site.has_bias)


#: How large a difference must be, relative to what it was taken from, to be used as a denominator.
RELIABLE = 1 / 32


def remainder(z: Tensor, up: Tensor) -> Tensor | None:
    """The sum of the negative contributions as what the positive ones leave of the output, without a convolution.

    None where rounding would count: some difference is small against ``up``. The question is not put to a GPU, which
    would have to be waited for.
    """
    if not knows_cheaply(up):
        return None
    down = torch.sub(z, up, alpha=1 - RELIABLE)
    return None if holds(lambda: down.amax() > 0, unknown=True) else torch.sub(z, up, out=down)


def nothing_in(share: Tensor) -> bool:
    """Whether no output takes part, as behind a ReLU; the question is not put to a GPU."""
    return share.device.type == "cpu" and holds(lambda: not share.any(), unknown=False)


def contributions(site: LinearView, part: Part) -> Tensor:
    """Σ a·w over the terms of ``part``, plus its bias: a fresh tensor."""
    part.stack(site)
    total: Tensor | None = None
    for a, w, _ in part.terms:
        z = site.forward(site.ones_like_input() if a is None else a, w)
        total = z if total is None else total.add_(z)
    assert total is not None
    if part.scale is not None:
        total = total.mul_(part.scale)
    return total if part.bias is None else total.add_(site.as_output(part.bias))


def split_terms(
    site: LinearView, w: Tensor, same: Callable[[Tensor], Tensor], opposite: Callable[[Tensor], Tensor]
) -> list[Term]:
    """The terms (a⁺, ``same(w)``), (a⁻, ``opposite(w)``); one where the input is known to be non-negative."""
    a = site.input
    if site.nonnegative:
        return [Term(a, same(w), 0)]
    return [Term(positive(a), same(w), 1), Term(negative(a), opposite(w), -1)]


def by_sign(x: Tensor, everywhere: Tensor | None, above: Tensor | None, below: Tensor | None) -> Tensor:
    """``everywhere``, plus ``above`` where x > 0 and ``below`` where x < 0."""
    found = [] if everywhere is None else [everywhere]
    if above is not None:
        found.append(where_positive(above, x))
    if below is not None:
        found.append(where_positive(below, -x))
    return functools.reduce(Tensor.add_, found)


def favored(gamma: float, sign: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function w + γ w⁺ or w + γ w⁻, by ``sign``."""

    def favor(w: Tensor) -> Tensor:
        chosen = sign(w)
        return torch.add(w, chosen, alpha=gamma, out=chosen)

    return favor


#: What ``site.weight_and_scale()`` gives: a weight, and what its outputs are to be multiplied by (≥ 0), if anything.
WeightAndScale = tuple[Tensor, Tensor | None]


def positive_part(site: LinearView, weight: WeightAndScale, b: Tensor | None) -> Part:
    """The share of z⁺: all contributions that are not negative, ``a⁺w⁺ + a⁻w⁻ + b⁺``."""
    w, scale = weight
    return Part(split_terms(site, w, positive, negative), None if b is None else positive(b), scale, sign=1)


def negative_part(site: LinearView, weight: WeightAndScale, b: Tensor | None) -> Part:
    """The share of all contributions that are not positive, ``a⁺w⁻ + a⁻w⁺ + b⁻``."""
    w, scale = weight
    return Part(split_terms(site, w, negative, positive), None if b is None else negative(b), scale, sign=-1)


class Epsilon(LinearRule):
    """LRP-ε: ``R_i = a_i Σ_j w_ij R_j / s(z_j)`` (Bach et al. 2015, eq. 58).

    Parameters
    ----------
    epsilon : float
        Stabiliser; iNNvestigate uses 1e-7, captum 1e-9, zennit 1e-6.
    relative : bool
        Measure ``epsilon`` in units of rms(z) (0.1 to 0.25 give the sparser maps of the literature), taken over one
        position's own outputs: the features of a dense layer, the channels and positions of one item of a
        convolution. Never over what could be the batch, so that a map does not depend on its neighbors.
    bias : {"keep", "zero", "distribute"}
        ``"keep"``: part of z, its share is absorbed (zennit, captum). ``"zero"``: left out of z (the original
        inverter_util, iNNvestigate's ``IgnoreBias``). ``"distribute"``: bias and ε are spread over the inputs,
        so that relevance is conserved exactly (Arras et al. 2017, ``bias_factor=1``).
    """

    keeps_zeros = unless_distributed

    def __init__(self, epsilon: float = 1e-6, relative: bool = False, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        self.relative = relative

    @property
    def splits_weights(self) -> bool:
        return False

    def parts(self, site: LinearView) -> Iterator[Part]:
        w, scale = site.weight_and_scale(of_any_sign=True)
        if self.bias == "zero" and site.has_bias:
            yield Part([Term(site.input, w, 0)], None, scale)
        else:
            bias = site.bias if site.collects or self.accounts_for(site) else None  # else it is just part of the output
            yield Part([Term(site.input, w, 0)], bias, scale, site.output, sign=int(site.rectified))


class ZeroRule(Epsilon):
    """LRP-0: :class:`Epsilon` without stabiliser; outputs that are exactly 0 drop their relevance."""

    keeps_zeros = unless_distributed

    def __init__(self, bias: BiasMode = "keep") -> None:
        super().__init__(0.0, False, bias)


class Gamma(LinearRule):
    """LRP-γ: ``R_i = a_i Σ_j (w + γ w⁺)_ij R_j / s(Σ a (w + γ w⁺) + b)`` (Montavon et al. 2019).

    Meant for non-negative inputs: they are not split by sign, and the bias is used as it is. These are captum's
    numbers. For inputs of any sign take :class:`GeneralizedGamma` (zennit's ``Gamma``).
    """

    keeps_zeros = unless_distributed

    def __init__(self, gamma: float = 0.25, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        self.gamma = gamma

    def parts(self, site: LinearView) -> Iterator[Part]:
        w, scale = site.weight_and_scale()
        yield Part([Term(site.input, favored(self.gamma, positive)(w), 0)], self.bias_of(site), scale)


class GeneralizedGamma(LinearRule):
    """Generalised LRP-γ for inputs and outputs of any sign (Andéol et al. 2021; zennit's ``Gamma``).

    Where the output is positive, positive contributions count (1 + γ) times:
    ``z = a⁺(w + γw⁺) + a⁻(w + γw⁻) + b + γb⁺``; where it is negative the negative ones do:
    ``z = a⁺(w + γw⁻) + a⁻(w + γw⁺) + b + γb⁻``. Outputs that are exactly 0 drop their relevance.
    The sign is that of the site's output, bias included, also where ``bias="zero"``.
    """

    keeps_zeros = unless_distributed

    def __init__(self, gamma: float = 0.25, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        self.gamma = gamma

    def parts(self, site: LinearView) -> Iterator[Part]:
        (w, scale), b, z = site.weight_and_scale(), self.bias_of(site), site.output
        up, down = favored(self.gamma, positive), favored(self.gamma, negative)
        total_up = total_down = None  # then the sum of the contributions
        if self.output_serves(site):
            total_up, total_down = self.totals(site, (w, scale), b, z)
        b_up, b_down = (None, None) if b is None else (up(b), down(b))
        if site.rectified:  # no relevance where the output was not positive
            sign = int(total_up is not None)
            yield Part(split_terms(site, w, up, down), b_up, scale, total_up, sign=sign, may_overwrite=True)
        else:
            yield Part(split_terms(site, w, up, down), b_up, scale, total_up, only_where=z)
            yield Part(split_terms(site, w, down, up), b_down, scale, total_down, only_where=-z)

    def totals(
        self, site: LinearView, weight: WeightAndScale, b: Tensor | None, z: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Both denominators by the convolutions of z⁺ alone: ``z + γ z⁺`` and ``z + γ z⁻``, where z⁻ = z − z⁺.

        Where they serve (outputs of their sign) the terms of each have one sign, so that nothing cancels.
        """
        z_pos = contributions(site, positive_part(site, weight, b))
        down = None if site.rectified else torch.sub((1 + self.gamma) * z, z_pos, alpha=self.gamma)
        return torch.add(z, z_pos, alpha=self.gamma, out=z_pos), down


class ZPlus(LinearRule):
    """LRP-z⁺: ``R_i = Σ_j (a⁺w⁺ + a⁻w⁻)_ij R_j / s(Σ a⁺w⁺ + a⁻w⁻ + b⁺)`` (Montavon et al. 2017).

    Equal to αβ with α = 1, β = 0. Inputs are split by sign, so negative inputs are handled rightly.
    """

    keeps_zeros = unless_distributed

    def parts(self, site: LinearView) -> Iterator[Part]:
        yield positive_part(site, site.weight_and_scale(), self.bias_of(site))


class AlphaBeta(LinearRule):
    """LRP-αβ: α times the positive share minus β times the negative share (Bach et al. 2015, eq. 60).

    ``R_i = α Σ_j (a⁺w⁺ + a⁻w⁻) R_j / s(Σ a⁺w⁺ + a⁻w⁻ + b⁺) − β Σ_j (a⁺w⁻ + a⁻w⁺) R_j / s(Σ a⁺w⁻ + a⁻w⁺ + b⁻)``

    α − β must be 1 (compared with a tolerance), both must be ≥ 0. iNNvestigate's version with bias puts the whole
    bias into both denominators; that is a bug and is not reproduced (see ``docs/differences.md``).
    """

    keeps_zeros = unless_distributed

    def __init__(self, alpha: float = 2.0, beta: float = 1.0, epsilon: float = 1e-6, bias: BiasMode = "keep") -> None:
        super().__init__(epsilon, bias)
        if alpha < 0 or beta < 0 or abs(alpha - beta - 1.0) > 1e-6:
            raise InputError(f"alpha and beta must be >= 0 with alpha - beta = 1, got {alpha} and {beta}")
        self.alpha = float(alpha)
        self.beta = float(beta)

    def parts(self, site: LinearView) -> Iterator[Part]:
        weight, b = site.weight_and_scale(), self.bias_of(site)
        up = positive_part(site, weight, b)
        up.share = self.alpha
        if not self.beta:
            yield up
            return
        up.total, up.may_overwrite = contributions(site, up), True
        down = negative_part(site, weight, b)
        down.share = -self.beta
        if self.output_serves(site):
            down.total, down.may_overwrite = remainder(site.output, up.total), True
        yield up
        yield down


class AlphaBetaX(LinearRule):
    """iNNvestigate's AlphaBetaX: the four sign combinations of input and weight, each divided by its own sum.

    ``R = α₀ P(a⁺w⁺) + α₁ P(a⁻w⁻) − β₀ P(a⁺w⁻) − β₁ P(a⁻w⁺)`` with ``P(aw)_i = Σ_j (aw)_ij R_j / s(Σ_i (aw)_ij + b±)``,
    b⁺ in the positive combinations and b⁻ in the negative ones. The original multiplies the second term by β₁
    instead of α₁; that is not reproduced.

    Parameters
    ----------
    alpha, beta : pair of float
        The factors (α₀, α₁) and (β₀, β₁).
    """

    keeps_zeros = unless_distributed

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

    def parts(self, site: LinearView) -> Iterator[Part]:
        a, w, b = site.input, site.weight, self.bias_of(site)
        up, down = (None, None) if b is None else (positive(b), negative(b))
        combinations = (
            (self.alpha[0], Term(positive(a), positive(w), 1), up),
            (self.alpha[1], Term(negative(a), negative(w), -1), up),
            (-self.beta[0], Term(positive(a), negative(w), 1), down),
            (-self.beta[1], Term(negative(a), positive(w), -1), down),
        )
        for share, term, part_of_b in combinations:
            if share:
                yield Part([term], part_of_b, share=share)


class WSquare(LinearRule):
    """LRP-w²: ``R_i = Σ_j w²_ij R_j / s(Σ_i w²_ij)`` (Montavon et al. 2017), for unbounded real inputs.

    The paper and iNNvestigate have no bias here, hence the default ``bias="zero"``; with ``"keep"`` b² joins the
    denominator as in zennit.
    """

    def __init__(self, epsilon: float = 1e-6, bias: BiasMode = "zero") -> None:
        super().__init__(epsilon, bias)

    def parts(self, site: LinearView) -> Iterator[Part]:
        b = self.bias_of(site)
        yield Part([Term(None, site.weight**2)], None if b is None else b**2)


class Flat(LinearRule):
    """LRP-flat: every connected input gets the same share (Lapuschkin et al. 2019); aware of borders."""

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__(epsilon, "zero")

    def parts(self, site: LinearView) -> Iterator[Part]:
        yield Part([Term(None, torch.ones_like(site.weight))])


class ZBox(LinearRule):
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

    def parts(self, site: LinearView) -> Iterator[Part]:
        a, (w, scale) = site.input, site.weight_and_scale()
        low, high = (self.bound(v, a) for v in (self.low, self.high))
        yield Part([Term(a, w, 0), Term(low, -positive(w)), Term(high, -negative(w))], None, scale)

    @staticmethod
    def bound(value: float | Tensor, a: Tensor) -> Tensor:
        """``value`` as a tensor of the input's shape."""
        if not isinstance(value, Tensor):
            return a.new_full((), float(value)).expand(a.shape)  # filled where it is: nothing waits for a GPU
        value = value.to(a)
        if value.dim() == a.dim() and value.shape[0] > a.shape[0]:
            value = value[: a.shape[0]]
        try:
            return value.expand(a.shape)
        except RuntimeError:
            raise InputError(
                f"bounds of shape {tuple(value.shape)} do not fit what the layer reads, {tuple(a.shape)} (with the "
                "padding of a mode other than zeros); give numbers, or one value per channel such as shape (1, C, 1, 1)"
            ) from None


class Power(LinearRule):
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

    @property
    def splits_weights(self) -> bool:
        return self.p != 1

    def parts(self, site: LinearView) -> Iterator[Part]:
        b = self.bias_of(site)
        part = Part(
            [Term(self.power(site.input, "input"), self.power(site.weight, "weight"), 0 if self.p == 1 else None)],
            None if b is None else self.power(b, "bias"),
        )
        part.total = contributions(site, part)
        part.share = torch.sgn(part.total).abs()
        yield part

    def keeps_zeros(self, site: LinearView) -> bool:
        return self.p > 0 and unless_distributed(self, site)

    def power(self, t: Tensor, what: str) -> Tensor:
        """t^p, refusing roots of negative numbers."""
        if self.p == 1:
            return t
        if float(self.p).is_integer():
            return t ** int(self.p)
        if holds((t < 0).any, unknown=False):
            raise InputError(
                f"the e-rule with the non-integer exponent p={self.p} is undefined for negative values, and the {what} "
                "has some; use an integer p"
            )
        return t**self.p


class Beta(LinearRule):
    """The b-rule of Pytorch-LRP and TensorWatch: αβ with α = 1 + β, bias left out, and rare neurons rescaled.

    ``R_i = (1 + β) · positive share − β · negative share``. An output that only has contributions of one sign (a
    *rare neuron*) hands on its whole relevance, so that relevance is conserved, except where the factor of that sign
    is 0 (β = −1 or 0): there it is lost, by definition. With ε its factor f becomes |f| / (1 − (1 − |f|) z / s(z)),
    as in the original: 1 for a vanishing ε.
    """

    keeps_zeros = unless_distributed

    def __init__(self, beta: float = 0.5, epsilon: float = 1e-6) -> None:
        super().__init__(epsilon, "zero")
        if not beta >= -1:
            raise InputError(f"beta must be in [-1, inf), got {beta!r}")
        self.beta = float(beta)

    def parts(self, site: LinearView) -> Iterator[Part]:
        weight = site.weight_and_scale()
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

    def relevance(self, site: LinearView, R: Tensor) -> Messages:
        return self.then.relevance(site, positive(R))

    def keeps_zeros(self, site: LinearView) -> bool:
        return self.then.keeps_zeros(site)
