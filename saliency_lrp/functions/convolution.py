"""Convolutions of any kind, and what samples its input where the model says."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sites.batch_norm import along
from ..sites.call import Call
from ..sites.linear import LinearSite, linear_node
from .any_linear import AnyLinear, weight_only, weighted
from .registry import kind


class Convolution(LinearSite):
    """Convolution of 1 to 3 dimensions, any stride, padding, dilation and groups, batched or not."""

    family = "convolution"
    batches_maps = True
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
        self.few_channels = not self.transposed and groups == 1 and weight.shape[1] <= 4

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

    site = AnyLinear(call, w, run, own_axes=(-3, -2, -1))
    site.family, site.channel_axis = "convolution", -3
    site.own_bias = bias.detach()
    return linear_node(call, site, x)
