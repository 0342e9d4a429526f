"""Linear functions: dense layers, convolutions of any kind, matrix products with a constant, batch norms (eval)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..rules import Part, Rule
from ..rules.arithmetic import sum_of_parts, working
from ..values import of_the_example
from .call import Call, Tag, tag_of
from .registry import KINDS, kind
from .site import Site, any_complex, as_reals


class LinearSite(Site):
    """``z = L(a, w) + b``, linear in the activation ``a`` and in the constant ``w``.

    Subclasses give ``forward`` and ``transpose`` for any weight. A batch norm that directly follows is folded at run
    time: ``weight`` and ``bias`` are then those of the merged layer, and ``output`` is the batch norm's.
    """

    kind = "linear"
    reruns = False
    rectifiable = True
    #: whether a batch norm can be folded into the weight
    foldable = True
    #: whether the input has so few channels that calls for several inputs are better made one
    thin = False
    #: whether it stands for more than the call itself
    is_several_calls = False
    #: axis of the output that the bias and a folded batch norm run along (negative: from the end)
    channel_axis = -1

    def __init__(self, call: Call, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(call)
        self.own_weight = weight.detach()
        self.own_bias = None if bias is None else bias.detach()
        self.version = version(self.own_weight)
        self.batch_norm: Affine | None = None
        #: an activation or normalisation that computes the input again, where that is not kept
        self.maker: Site | None = None

    def keep(self, slot: int | str, copy: Tensor) -> None:
        super().keep(slot, copy)
        if slot == "own_weight":
            self.version = version(copy)

    # ------------------------------------------------------------------ what rules see

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        if self.maker is not None:
            return (working(self.maker.output),)
        return tuple(working(as_reals(t)) for t in self.saved if t is not None)

    def finds_input(self, tags: list[Any]) -> bool:
        made = tags[0].site if tags[0] is not None else None
        self.maker = made if made is not None and made.cheap and made.parent is self.parent else None
        return self.maker is not None

    @property
    def output(self) -> Tensor:
        return working(super().output)

    def uncut(self) -> Tensor:
        return working(super().uncut())

    def computed_output(self) -> Tensor:
        z = self.batch_norm_input()
        return z if self.batch_norm is None else self.batch_norm.apply(z, self.channel_axis)

    @property
    def weight(self) -> Tensor:
        """The weight, with a following batch norm folded in."""
        self.check_unchanged()
        w = working(self.own_weight)
        return w if self.batch_norm is None else self.scaled(w, self.batch_norm.scale)

    def factored(self, of_any_sign: bool = False) -> tuple[Tensor, Tensor | None]:
        """The weight, and what its outputs are still to be multiplied by so that a following batch norm is folded in.

        Outputs are multiplied where they are fewer than weights. The factor is not negative, so that a rule may split
        the weight by sign, unless it takes a factor ``of_any_sign``.
        """
        norm, size = self.batch_norm, (self.input if self.result is None else self.result).numel()
        if norm is None or size >= self.own_weight.numel() or not (of_any_sign or norm.keeps_sign):
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
        w, scale = self.factored(of_any_sign=True)
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
        scaled = c if part.scale is None else c * part.scale
        for a, w, _ in part.terms:
            with torch.enable_grad():
                leaf = w.detach().requires_grad_(True)
                z = self.forward(self.ones_like_input().expand_as(self.input) if a is None else a, leaf)
            share = w * torch.autograd.grad(z, leaf, scaled)[0]
            self.binding.collect(self.own_weight, sum_of_parts(share, part.stacked, 1) if part.stacked > 1 else share)
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

    def batch_norm_alone(self) -> Diagonal:
        """The batch norm as a site of its own, as if it had not been folded."""
        assert self.batch_norm is not None
        return Diagonal.apart(self, self.batch_norm)

    def below_batch_norm(self, rule: Rule, R: Tensor) -> tuple[Tensor | None, ...]:
        """Relevance of the input, by ``rule`` on the linear layer alone, from that of the layer's output."""
        kept = self.batch_norm, self.result, self.cut
        self.batch_norm, self.result, self.cut = None, None, False
        try:
            return rule.relevance(self, R)
        finally:
            self.batch_norm, self.result, self.cut = kept


class Affine:
    """A batch norm in eval mode: ``y = scale · (x − mean) + shift``, one value per channel."""

    #: whether it is one call, or only the last of several
    is_one_call = True

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self.mean, self.var, self.eps = mean.detach(), var.detach(), eps
        self.version = version(self.var)
        self.weight = None if weight is None else weight.detach()
        self.own_bias = None if bias is None else bias.detach()

    @functools.cached_property
    def scale(self) -> Tensor:
        gain = torch.rsqrt(working(self.var) + self.eps)
        return gain if self.weight is None else gain.mul_(working(self.weight))

    @functools.cached_property
    def keeps_sign(self) -> bool:
        """Whether no scale is negative; a GPU is not asked, since it would have to be waited for."""
        with of_the_example():  # weights are the same for all inputs
            return self.scale.device.type == "cpu" and not bool((self.scale < 0).any())

    @functools.cached_property
    def shift(self) -> Tensor:
        return torch.zeros_like(working(self.mean)) if self.own_bias is None else working(self.own_bias)

    def merged_bias(self, b: Tensor | None) -> Tensor:
        """Bias of a linear layer with bias ``b`` followed by this batch norm."""
        return ((0 if b is None else b) - working(self.mean)) * self.scale + self.shift

    def apply(self, z: Tensor, axis: int) -> Tensor:
        """The batch norm itself."""
        return along(self.scale, axis) * (z - along(working(self.mean), axis)) + along(self.shift, axis)


def version(t: Tensor) -> int:
    """How often a tensor was written into; inference tensors cannot be, outside of inference mode."""
    return 0 if t.is_inference() else t._version


def along(b: Tensor, axis: int) -> Tensor:
    """A vector shaped so that it broadcasts along ``axis`` (negative) of another tensor."""
    return b.reshape(b.shape + (1,) * (-axis - 1))


# ------------------------------------------------------------------------------------------------ dense


class Dense(LinearSite):
    """``a @ wᵀ``."""

    family = "dense"
    takes_several = True
    rectifiable = False  # its output is small beside its weight, and relative stabilisers look at all of it
    own_axes: tuple[int, ...] = (-1,)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        return F.linear(a, w)

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        return torch.matmul(c, w)

    def scaled(self, w: Tensor, scale: Tensor) -> Tensor:
        return w * scale[:, None]

    @property
    def is_one_dimensional(self) -> bool:
        return self.own_weight.dim() == 1


class DenseToScalar(Dense):
    """``a @ w`` with a weight vector: one output, without an axis of its own."""

    own_axes = ()

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        return c[..., None] * w

    def as_output(self, b: Tensor) -> Tensor:
        return b


# ------------------------------------------------------------------------------------------------ convolution


class Convolution(LinearSite):
    """Convolution of 1 to 3 dimensions, any stride, padding, dilation and groups, batched or not."""

    family = "convolution"
    takes_several = True
    transposed = False

    def __init__(
        self,
        call: Call,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        output_padding: Any = 0,
    ) -> None:
        super().__init__(call, weight, bias)
        n = self.n = weight.dim() - 2
        self.channel_axis = -n - 1
        self.stride, self.dilation = each(stride, n), each(dilation, n)
        self.output_padding = each(output_padding, n)
        self.groups = groups
        #: what "same" padding adds on one side only
        self.extra: tuple[int, ...] = ()
        if padding == "valid":
            padding = 0
        elif padding == "same":
            spans = [d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
            padding = [span // 2 for span in spans]
            if any(span % 2 for span in spans):
                self.extra = tuple(v for span in reversed(spans) for v in (0, span % 2))
        self.padding = each(padding, n)
        self.thin = not self.transposed and groups == 1 and weight.shape[1] <= 4

    @property
    def own_axes(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(self.channel_axis, 0))  # channels and positions

    def convolve(self, a: Tensor, w: Tensor) -> Tensor:
        """The convolution of a batch."""
        return torch.convolution(
            a,
            w,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )

    def padded(self, a: Tensor) -> Tensor:
        return F.pad(a, self.extra) if self.extra else a

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        if a.dim() == self.n + 1:
            return self.convolve(self.padded(a[None]), w)[0]
        return self.convolve(self.padded(a), w)

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        a, item = self.input, -self.n - 1
        if c.dim() == a.dim() == self.n + 2:
            return self.transpose_batch(c, a, w)
        batch = c.reshape(-1, *c.shape[item:])  # one item, or several maps of a batch
        like = a.new_empty(batch.shape[0], *a.shape[item:])  # only its shape counts
        g = self.transpose_batch(batch, like, w)
        return g.reshape(*c.shape[:item], *g.shape[1:])

    def transpose_batch(self, c: Tensor, a: Tensor, w: Tensor) -> Tensor:
        channels = w.shape[0] if self.transposed else w.shape[1] * self.groups
        if a.shape[1] != channels:  # several inputs in one; only the shape counts
            a = a.new_empty(1).expand(a.shape[0], channels, *a.shape[2:])
        shape = a.shape
        if self.extra:
            a = a.new_empty(1).expand(
                (*shape[:2], *(s + e for s, e in zip(shape[2:], self.extra[1::2][::-1], strict=True)))
            )
        g = torch.ops.aten.convolution_backward(
            c,
            a,
            w,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            [True, False, False],
        )[0]
        within = (..., *(slice(0, s) for s in shape[2:]))
        return g[within].contiguous() if self.extra else g

    def scaled(self, w: Tensor, scale: Tensor) -> Tensor:
        if not self.transposed:
            return w * along(scale, -w.dim())
        groups = w.reshape(self.groups, -1, *w.shape[1:])
        return (groups * scale.reshape(self.groups, 1, -1, *(1,) * self.n)).reshape(w.shape)

    def ones_like_input(self) -> Tensor:
        a = self.input
        return torch.ones_like(a if a.dim() == self.n + 1 else a[:1])


class TransposedConvolution(Convolution):
    """Transposed convolution of 1 to 3 dimensions, with output padding."""

    transposed = True


def each(value: Any, n: int) -> list[int]:
    """One value per dimension."""
    if isinstance(value, int):
        return [value] * n
    values = [int(v) for v in value]
    return values * n if len(values) == 1 else values


# ------------------------------------------------------------------------------------------------ any bilinear map


class GenericLinear(LinearSite):
    """Any function that is linear in one activation and in one constant: matmul, einsum, bilinear, ..."""

    family = "dense"
    #: the axis of the constant along the outputs, where there is one: a batch norm can be folded into that
    weight_axis: int | None = None

    def __init__(
        self, call: Call, weight: Tensor, run: Callable[[Tensor, Tensor], Tensor], own_axes: tuple[int, ...] = ()
    ) -> None:
        super().__init__(call, weight, None)
        self.run = run
        self.own_axes = own_axes
        if len(own_axes) == 1:
            self.channel_axis = own_axes[0]

    @property
    def foldable(self) -> bool:  # type: ignore[override]
        return self.weight_axis is not None

    def scaled(self, w: Tensor, scale: Tensor) -> Tensor:
        assert self.weight_axis is not None
        axis = self.weight_axis if self.weight_axis < 0 else self.weight_axis - w.dim()
        return w * along(scale, axis)

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        return self.run(a, w)

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        with torch.enable_grad():
            a = self.input.detach().requires_grad_(True)
            z = self.forward(a, w)
        return torch.autograd.grad(z, a, c)[0]


class Diagonal(LinearSite):
    """A batch norm of its own, not after a linear layer: one weight per channel."""

    family = "batch_norm"
    takes_several = True

    def __init__(self, call: Call, affine: Affine, channel_axis: int) -> None:
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
    def batch_norm(self) -> Affine | None:
        """The batch norm itself, for rules that look at its constants."""
        return self.own

    @batch_norm.setter
    def batch_norm(self, value: Affine | None) -> None:
        pass

    def runs_natively(self, tag: Tag | None) -> bool:
        return self.own.is_one_call

    @property
    def weight(self) -> Tensor:
        return self.own_weight

    @property
    def bias(self) -> Tensor | None:
        return self.own_bias

    def factored(self, of_any_sign: bool = False) -> tuple[Tensor, Tensor | None]:
        return self.own_weight, None

    def computed_output(self) -> Tensor:
        return self.own.apply(self.input, self.channel_axis)

    @classmethod
    def apart(cls, site: LinearSite, affine: Affine) -> Diagonal:
        """The batch norm of a folded site."""
        alone = object.__new__(cls)
        alone.__dict__.update(site.__dict__)
        alone.own, alone.own_weight, alone.own_bias = affine, affine.scale, affine.merged_bias(None)
        alone.saved, alone.maker, alone.result = [site.batch_norm_input()], None, site.uncut()
        alone.nonnegative = alone.cut = alone.thin = False
        return alone

    def batch_norm_alone(self) -> Diagonal:
        return self

    def batch_norm_input(self) -> Tensor:
        return self.input

    def below_batch_norm(self, rule: Rule, R: Tensor) -> tuple[Tensor | None, ...]:
        return (R,)


# ------------------------------------------------------------------------------------------------ handlers


def linear_node(call: Call, site: LinearSite, activation: Tensor) -> Any:
    """Run a linear site, remembering on its output what a batch norm needs to fold into it."""
    tag = tag_of(activation)
    site.nonnegative = tag is not None and tag.nonnegative
    out = call.node(site, [activation])
    made = tag_of(out)
    if made is not None and not call.inplace:
        made.source, made.source_version = activation, activation._version
    return out


def dynamic_weight(call: Call, activation: Tensor) -> None:
    """Note that the weight of this call depends on the input; it counts as a gate and gets no relevance."""
    if len(call.activations) > 1 or call.activations[0] is not activation:
        call.interceptor.note(f"{call.name} at {call.path!r}: the weight depends on the input; it counts as a gate")


def weighted(call: Call, build: Callable[[Tensor, Tensor | None], LinearSite]) -> Any:
    """A call (input, weight, bias, ...): ``build`` makes its site where the input is the activation."""
    x, w, b = call.arg(0, "input"), call.arg(1, "weight"), call.arg(2, "bias")
    if any_complex(x, w):
        return KINDS["complex layer"](call)
    if not call.is_activation(x):
        return weight_only(call)
    dynamic_weight(call, x)
    out = call.as_is("linear", [x])
    return linear_node(call, build(w, b), x) if out is None else out


@kind("linear")
def linear(call: Call) -> Any:
    return weighted(call, lambda w, b: (DenseToScalar if w.dim() == 1 else Dense)(call, w, b))


@kind("convolution")
def convolution(call: Call) -> Any:
    return weighted(
        call,
        partial(
            Convolution,
            call,
            stride=call.arg(3, "stride", 1),
            padding=call.arg(4, "padding", 0),
            dilation=call.arg(5, "dilation", 1),
            groups=call.arg(6, "groups", 1),
        ),
    )


@kind("transposed convolution")
def transposed_convolution(call: Call) -> Any:
    return weighted(
        call,
        partial(
            TransposedConvolution,
            call,
            stride=call.arg(3, "stride", 1),
            padding=call.arg(4, "padding", 0),
            output_padding=call.arg(5, "output_padding", 0),
            groups=call.arg(6, "groups", 1),
            dilation=call.arg(7, "dilation", 1),
        ),
    )


@kind("general convolution")
def general_convolution(call: Call) -> Any:
    x, w, b, stride, padding, dilation, transposed, output_padding, groups = call.args[:9]
    made = TransposedConvolution if transposed else Convolution
    return linear_node(call, made(call, w, b, stride, padding, dilation, groups, output_padding), x)


def weight_only(call: Call) -> Any:
    """Only the weight depends on the input: linear in the weight, as in a hypernetwork."""
    w = call.activations[0]
    constants = {k: v for k, v in enumerate(call.args) if v is not w}

    def run(a: Tensor, _: Tensor) -> Tensor:
        args = tuple(constants.get(k, a) for k in range(len(call_args)))
        return func(*args, **kwargs)

    func, call_args = call.func, [None] * len(call.args)
    kwargs = {k: (v.detach() if isinstance(v, Tensor) else v) for k, v in call.kwargs.items()}
    return linear_node(call, GenericLinear(call, torch.ones((), dtype=w.dtype, device=w.device), run), w)


@kind("deformable convolution")
def deformable_convolution(call: Call) -> Any:
    """Linear in its input: where it is sampled (offsets) and how much that counts (mask) are gates."""
    x, w = call.args[0], call.args[1]
    if not call.is_activation(x):
        return weight_only(call)
    bias = call.args[4]
    others = [v.detach() if isinstance(v, Tensor) else v for v in call.args]
    others[4] = torch.zeros_like(bias)
    func = call.func

    def run(a: Tensor, v: Tensor) -> Tensor:
        return func(a, v, *(o.to(a.dtype) if isinstance(o, Tensor) else o for o in others[2:]))

    site = GenericLinear(call, w, run, own_axes=(-3, -2, -1))
    site.family, site.channel_axis = "convolution", -3
    site.own_bias = bias.detach()
    return linear_node(call, site, x)


def successor(before: LinearSite) -> LinearSite:
    """A site that will stand for a linear layer and what follows it: it reads what the layer read."""
    site = object.__new__(type(before))
    site.__dict__.update(before.__dict__)
    site.superseded = False  # where another batch norm was folded into it before
    site.native = False
    site.saved, site.result = [], None
    before.result = None  # computed again in the unlikely case that somebody else reads it
    return site


def folded(before: LinearSite, affine: Affine) -> LinearSite:
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
