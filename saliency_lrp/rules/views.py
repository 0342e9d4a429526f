"""What a rule sees of a site: the members that it may ask for, by the kind of site.

Sites stand above rules, so that these are protocols; that sites have these members is checked by the type checker
(at the end of ``functions/__init__.py``). R and c are relevance and R / z, of the output's shape, perhaps with an axis
of several maps in front; results are one tensor for each input, None for one that gets nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from .base import Rule

#: One tensor for each input.
Messages = tuple[Tensor | None, ...]


class SiteView(Protocol):
    """Any site: one call of a torch function."""

    @property
    def kind(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def arity(self) -> int:
        """How many inputs receive relevance."""

    @property
    def gates(self) -> frozenset[int]:
        """Which of the factors of a product only weigh the others."""

    @property
    def own_axes(self) -> tuple[int, ...]:
        """Axes of the output (negative) that hold one position's own values: never one that could be the batch."""

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def input(self) -> Tensor: ...
    @property
    def output(self) -> Tensor: ...
    @property
    def rectified(self) -> bool:
        """Whether ``output`` is that of the ReLU behind it, which relevance comes back from alone."""

    @property
    def keeps_zero(self) -> bool:
        """Whether the function maps 0 to 0."""

    @property
    def account(self) -> bool:
        """Whether it matters what a rule takes."""

    @property
    def binding(self) -> Any:
        """What is decided for this backward pass; its ``account`` takes what does not close."""

    def describe(self) -> str: ...
    def absorb(self, **amounts: Tensor) -> None:
        """Note what ``bias``, ``epsilon`` or ``rule`` took."""

    def vjp(self, c: Tensor) -> Messages:
        """Transposed Jacobian of the linear part, applied to c."""

    def gradient(self, c: Tensor) -> Messages:
        """The plain vector-Jacobian product."""

    def pass_through(self, R: Tensor) -> Messages:
        """The relevance as it is, for one-to-one functions."""


class LinearView(SiteView, Protocol):
    """``z = L(a, w) + b``, a following batch norm folded in."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def own_weight(self) -> Tensor:
        """The weight as the model has it, without the batch norm."""

    @property
    def bias(self) -> Tensor | None: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def nonnegative(self) -> bool:
        """Whether the input is known to be never negative."""

    @property
    def rounded(self) -> bool:
        """Whether the output is too coarse for differences to be taken of it."""

    @property
    def few_channels(self) -> bool:
        """Whether calls for several inputs are better made one."""

    @property
    def channel_axis(self) -> int: ...
    @property
    def collects(self) -> bool:
        """Whether the relevance of parameters is asked for."""

    @property
    def batch_norm(self) -> Any:
        """The batch norm that was folded in, if any."""

    def weight_and_scale(self, of_any_sign: bool = False) -> tuple[Tensor, Tensor | None]:
        """The weight, and what its outputs are still to be multiplied by."""

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """L(a, w), without bias."""

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        """Lᵀ(c, w): a fresh tensor of the input's shape."""

    def as_output(self, b: Tensor) -> Tensor:
        """A bias shaped so that it broadcasts against the output."""

    def ones_like_input(self) -> Tensor: ...
    def spread(self, amount: Tensor) -> Tensor:
        """Relevance of each output, spread evenly over the inputs that are connected to it."""

    def collect_parameters(self, part: Any, c: Tensor) -> None:
        """Note the share of every weight in the messages of one part of a rule."""

    def batch_norm_alone(self) -> LinearView: ...
    def batch_norm_input(self) -> Tensor: ...
    def batch_norm_constants(self) -> tuple[Tensor, Tensor]:
        """Mean and shift."""

    def below_batch_norm(self, rule: Rule, R: Tensor) -> Messages:
        """Relevance of the input, by ``rule`` on the linear layer alone."""


class SumView(SiteView, Protocol):
    """A function that is linear in its activations; what constants add acts as a bias."""

    def constant_part(self) -> Tensor | float: ...
    def spread(self, amount: Tensor) -> tuple[Tensor, ...] | None:
        """Relevance of each output, spread evenly over its inputs; None where it cannot be told."""


class ProductView(SiteView, Protocol):
    """A product of activations."""

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> Messages:
        """Relevance of each factor, by its share."""


class SoftmaxView(SiteView, Protocol):
    """``exp(x) / Σ exp(x)`` along ``dim``."""

    @property
    def dim(self) -> int: ...


class AttentionView(SiteView, Protocol):
    """A fused attention."""

    def share(self, R: Tensor, shares: tuple[float, float, float], epsilon: float) -> Messages:
        """Relevance of the operands that depend on the input, by what query, key and value get of it."""


class StepsView(SiteView, Protocol):
    """A fused call whose steps are sites."""

    def through_steps(self, R: Any) -> Messages:
        """Relevance by way of the steps."""
