"""Sites that are linear in one activation and in a constant weight, and a batch norm folded into them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..rules import Part, Rule
from ..rules.arithmetic import sum_of_parts, working
from .batch_norm import BatchNorm, along, version
from .call import Call
from .site import Site, as_reals
from .tag import Tag, tag_of


class LinearSite(Site):
    """``z = L(a, w) + b``, linear in the activation ``a`` and in the constant ``w``.

    Subclasses give ``forward`` and ``transpose`` for any weight. A batch norm that directly follows is folded at run
    time: ``weight`` and ``bias`` are then those of the merged layer, and ``output`` is the batch norm's.
    """

    kind = "linear"
    #: whether a batch norm can be folded into the weight
    foldable = True
    #: whether the input has so few channels that calls for several inputs are better made one
    few_channels = False
    #: whether it stands for more than the call itself
    is_several_calls = False
    #: axis of the output that the bias and a folded batch norm run along (negative: from the end)
    channel_axis = -1

    def __init__(self, call: Call, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(call)
        self.own_weight = weight.detach()
        self.own_bias = None if bias is None else bias.detach()
        self.version = version(self.own_weight)
        self.batch_norm: BatchNorm | None = None

    def keep(self, slot: int | str, copy: Tensor) -> None:
        super().keep(slot, copy)
        if slot == "own_weight":
            self.version = version(copy)

    # ------------------------------------------------------------------ what rules see

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(working(as_reals(t)) for t in self.saved if t is not None)

    @property
    def output(self) -> Tensor:
        if self.result is None:  # another site took a batch norm in, and was thought to be the only reader
            self.result = self.computed_output()
        return working(as_reals(self.result))

    def computed_output(self) -> Tensor:
        z = self.batch_norm_input()
        return z if self.batch_norm is None else self.batch_norm.apply(z, self.channel_axis)

    @property
    def weight(self) -> Tensor:
        """The weight, with a following batch norm folded in."""
        self.check_unchanged()
        w = working(self.own_weight)
        return w if self.batch_norm is None else self.scaled(w, self.batch_norm.scale)

    def weight_and_scale(self, of_any_sign: bool = False) -> tuple[Tensor, Tensor | None]:
        """The weight, and what its outputs are still to be multiplied by so that a following batch norm is folded in.

        Outputs are multiplied where they are fewer than weights. The factor is not negative, so that a rule may split
        the weight by sign, unless it takes a factor ``of_any_sign``.
        """
        norm = self.batch_norm
        if norm is None or self.output.numel() >= self.own_weight.numel() or not (of_any_sign or norm.keeps_sign):
            return self.weight, None
        self.check_unchanged()
        return working(self.own_weight), self.as_output(norm.scale)

    def check_unchanged(self) -> None:
        """Refuse weights that are not those of the forward pass: their maps would be of no model at all."""
        norm = self.batch_norm
        if version(self.own_weight) != self.version or (norm is not None and version(norm.var) != norm.version):
            raise InputError(
                f"the weights or statistics of {self.describe()} have changed since the forward pass was recorded, "
                "by a training step, say; call trace(...) again"
            )

    @property
    def bias(self) -> Tensor | None:
        """The bias, one per channel, with a following batch norm folded in; None where there is none."""
        b = None if self.own_bias is None else working(self.own_bias)
        return b if self.batch_norm is None else self.batch_norm.merged_bias(b)

    @property
    def rounded(self) -> bool:
        """Whether the output is that of a half-precision call: too coarse for differences to be taken of it."""
        return self.result is not None and working(self.result) is not self.result

    def runs_natively(self, tag: Tag | None) -> bool:
        """Whether the call itself hands coefficients on as LRP-0 does; if folded, with the layer before it."""
        if self.is_several_calls or (self.batch_norm is not None and not self.batch_norm.is_one_call):
            return False
        return self.batch_norm is None or (tag is not None and tag.site is not None and tag.site.native)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias, of its own or by a folded batch norm."""
        return self.own_bias is not None or self.batch_norm is not None

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        """L(a, w), without bias."""
        raise NotImplementedError

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        """Lᵀ(c, w): a fresh tensor of the input's shape."""
        raise NotImplementedError

    def scaled(self, w: Tensor, scale: Tensor) -> Tensor:
        """The weight whose outputs are ``scale`` times as large, channel by channel."""
        raise NotImplementedError

    def as_output(self, b: Tensor) -> Tensor:
        """A bias shaped so that it broadcasts against the output."""
        return along(b, self.channel_axis)

    def ones_like_input(self) -> Tensor:
        """Ones of the shape of one input sample where that is enough, for rules that do not look at the input."""
        return torch.ones_like(self.input)

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        w, scale = self.weight_and_scale(of_any_sign=True)
        return (self.transpose(c if scale is None else c * scale, w),)

    def gradient(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return self.vjp(working(c))

    def spread(self, amount: Tensor) -> Tensor:
        """Relevance of each output, spread evenly over the inputs that are connected to it."""
        ones = torch.ones_like(self.weight)
        fan_in = self.forward(self.ones_like_input(), ones)
        return self.transpose(amount / fan_in, ones)

    # ------------------------------------------------------------------ relevance of the parameters

    @property
    def collects(self) -> bool:
        """Whether the relevance of parameters is asked for in this backward pass."""
        return self.binding.parameters is not None

    def collect_parameters(self, part: Part, c: Tensor) -> None:
        """Note the share of every weight in the messages, and what the bias absorbed, of one part of a rule."""
        if self.own_weight.layout is not torch.strided:
            raise InputError(
                f"relevance of parameters: the weight of {self.describe()} is sparse ({self.own_weight.layout}); give "
                "the model a dense one, weight.to_dense()"
            )
        scaled = c if part.scale is None else c * part.scale
        for a, w, _ in part.terms:
            with torch.enable_grad():
                leaf = w.detach().requires_grad_(True)
                z = self.forward(self.ones_like_input().expand_as(self.input) if a is None else a, leaf)
            share = w * torch.autograd.grad(z, leaf, scaled)[0]
            self.binding.collect(self.own_weight, sum_of_parts(share, part.joined, 1) if part.joined > 1 else share)
        if part.bias is not None and self.own_bias is not None:
            absorbed = (self.as_output(part.bias) * c).transpose(self.channel_axis, -1)
            self.binding.collect(self.own_bias, absorbed.reshape(-1, self.own_bias.shape[-1]).sum(0))

    # ------------------------------------------------------------------ a folded batch norm, taken apart again

    def batch_norm_constants(self) -> tuple[Tensor, Tensor]:
        """Mean and shift of the batch norm, shaped like the output."""
        assert self.batch_norm is not None
        return self.as_output(working(self.batch_norm.mean)), self.as_output(self.batch_norm.shift)

    def batch_norm_input(self) -> Tensor:
        """What the batch norm read: the output of the linear layer alone."""
        z = self.forward(self.input, working(self.own_weight))
        return z if self.own_bias is None else z + self.as_output(working(self.own_bias))

    def batch_norm_alone(self) -> BatchNormSite:
        """The batch norm as a site of its own, as if it had not been folded."""
        assert self.batch_norm is not None
        return BatchNormSite.apart(self, self.batch_norm)

    def below_batch_norm(self, rule: Rule, R: Tensor) -> tuple[Tensor | None, ...]:
        """Relevance of the input, by ``rule`` on the linear layer alone, from that of the layer's output."""
        alone = copy.copy(self)
        alone.batch_norm, alone.result = None, None
        return rule.relevance(alone, R)


class BatchNormSite(LinearSite):
    """A batch norm of its own, not after a linear layer: one weight per channel."""

    family = "batch_norm"
    batches_maps = True

    def __init__(self, call: Call, affine: BatchNorm, channel_axis: int) -> None:
        super().__init__(call, affine.scale, affine.merged_bias(None))
        self.channel_axis = channel_axis
        self.own = affine

    @property
    def own_axes(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(self.channel_axis, 0))

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        return a * along(w, self.channel_axis)

    transpose = forward  # type: ignore[assignment]

    def ones_like_input(self) -> Tensor:
        return torch.ones_like(self.input)

    @property  # type: ignore[override]
    def batch_norm(self) -> BatchNorm | None:
        """The batch norm itself, for rules that look at its constants."""
        return self.own

    @batch_norm.setter
    def batch_norm(self, value: BatchNorm | None) -> None:
        pass

    def runs_natively(self, tag: Tag | None) -> bool:
        return self.own.is_one_call

    @property
    def weight(self) -> Tensor:
        return self.own_weight

    @property
    def bias(self) -> Tensor | None:
        return self.own_bias

    def weight_and_scale(self, of_any_sign: bool = False) -> tuple[Tensor, Tensor | None]:
        return self.own_weight, None

    def computed_output(self) -> Tensor:
        return self.own.apply(self.input, self.channel_axis)

    @classmethod
    def apart(cls, site: LinearSite, affine: BatchNorm) -> BatchNormSite:
        """The batch norm of a folded site."""
        alone = object.__new__(cls)
        alone.__dict__.update(site.__dict__)
        alone.own, alone.own_weight, alone.own_bias = affine, affine.scale, affine.merged_bias(None)
        alone.saved, alone.nonnegative, alone.few_channels = [site.batch_norm_input()], False, False
        return alone

    def batch_norm_alone(self) -> BatchNormSite:
        return self

    def batch_norm_input(self) -> Tensor:
        return self.input

    def below_batch_norm(self, rule: Rule, R: Tensor) -> tuple[Tensor | None, ...]:
        return (R,)


def successor(before: LinearSite) -> LinearSite:
    """A site that will stand for a linear layer and what follows it: it reads what the layer read."""
    site = object.__new__(type(before))
    site.__dict__.update(before.__dict__)
    site.folded_into_next = False  # where another batch norm was folded into it before
    site.native = False
    site.saved, site.result = [], None
    before.result = None  # computed again in the unlikely case that somebody else reads it
    return site


def folded(before: LinearSite, affine: BatchNorm) -> LinearSite:
    """The linear site and the batch norm after it, as one site."""
    site = successor(before)
    site.batch_norm = affine
    return site


def with_bias(before: LinearSite, bias: Tensor) -> LinearSite:
    """The linear site and a bias that is added to its output, as one site."""
    site = successor(before)
    site.own_bias = bias if before.own_bias is None else working(before.own_bias) + bias
    site.is_several_calls = True
    return site


def linear_node(call: Call, site: LinearSite, activation: Tensor) -> Any:
    """Run a linear site, remembering on its output what a batch norm needs to fold into it."""
    tag = tag_of(activation)
    site.nonnegative = tag is not None and tag.nonnegative
    out = call.node(site, [activation])
    made = tag_of(out)
    if made is not None and not call.inplace:
        made.source, made.source_version = activation, activation._version
    return out
