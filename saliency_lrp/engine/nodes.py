"""Autograd nodes of the coefficient form: what hands a coefficient on otherwise than its own derivative does.

Each gets c, where the relevance of an activation x is x · c, and gives the coefficient of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import GUARD, Axes, stabilize, working
from ..sites.site import Site, as_reals, from_reals
from .reference import untracked


class NoCoefficient(BaseException):
    """Relevance cannot be written as a coefficient here; the explanation is made again in the reference form.

    Not an ``Exception``, so that a model that catches those does not swallow it.
    """


class Plain(torch.autograd.Function):
    """Base of the nodes: ``make`` is ``apply`` without what that does for ``torch.func``."""

    @classmethod
    def make(cls, *args: Any) -> Any:
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class ToRelevance(Plain):
    """The value as it is; its coefficient becomes relevance: R = x · c."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return untracked(x)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return from_reals(as_reals(x) * as_reals(c)) if x.is_complex() else x * c  # each part has its own


class Scaled(Plain):
    """The value as it is, its coefficient times a number: how a product shares among its factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return untracked(x)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        return c * ctx.share, None


class ScaledOperand(Scaled):
    """The same of a tensor that only a kernel reads: autograd sees the model write into the original."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.detach()


class Ratio(Plain):
    """Relevance passes a one-to-one function as it is: ``c_in = c · f(x) / x``.

    The ratio is computed at once, so that it is all that is kept; or, where relevance is not likely to come back
    (statistics, gates), only when it is needed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Any, run: Callable[[], Tensor], inplace: bool, later: bool) -> Tensor:
        ctx.site = site
        ctx.later = later and not inplace
        if ctx.later:
            y = run()
            ctx.save_for_backward(x, y)
            return y
        if inplace or not site.keeps_zero:
            s = stabilize(working(x), GUARD)
            y = run()
            ctx.ratio = torch.div(working(y), s, out=s).to(y.dtype)
            if inplace:
                ctx.mark_dirty(x)
            return y
        y = run()
        ctx.ratio = (working(y) / working(x)).nan_to_num_(nan=0.0).to(y.dtype)  # 0 / 0: no relevance
        return y

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        if ctx.site.kind == "unknown":
            ctx.site.binding.report_unknown(ctx.site)
        if ctx.site.gives_zeros:
            raise NoCoefficient(f"relevance passes {ctx.site.describe()}, which does not map 0 to 0")
        if ctx.later:
            x, y = ctx.saved_tensors
            return c * (working(y) / stabilize(working(x), GUARD)), None, None, None, None
        return c * ctx.ratio, None, None, None, None


class Stabilized(Plain):
    """A function that runs as it is, whose rule has a stabiliser: ``c · z / s(z)`` goes on into it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, site: Site, epsilon: float, axes: Axes, inplace: bool) -> Tensor:
        ctx.site, ctx.epsilon, ctx.axes = site, epsilon, axes
        if not inplace:
            return untracked(z)
        ctx.mark_dirty(z)  # the model goes on with the very tensor that it wrote into
        return z

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        z = ctx.site.output
        if ctx.site.rectified:
            s = working(z) + ctx.epsilon
        else:
            s = stabilize(working(z), ctx.epsilon, ctx.axes)
        return torch.div(working(z), s, out=s) * c, None, None, None, None


class Normalized(Plain):
    """A normalisation whose statistics are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Any, run: Callable[[], Tensor]) -> Tensor:
        ctx.site = site
        y, ctx.inverse = site.run_with_inverse(x, run)
        return y

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        return ctx.site.vjp_with(c, ctx.inverse), None, None


class LateSoftmax(Plain):
    """A softmax that passes relevance as it is if it turns out to be the model's end, and else is its own derivative.

    Its input is kept until somebody reads its result: then it is not the end.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Any, taylor: bool, run: Callable[[], Tensor]) -> Tensor:
        y = run()
        ctx.site, ctx.taylor = site, taylor
        ctx.save_for_backward(y)
        site.before = x.detach()
        return y

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        (y,), site = ctx.saved_tensors, ctx.site
        if not site.is_output:
            return torch._softmax_backward_data(c, y, site.dim, y.dtype) if ctx.taylor else None, None, None, None
        if site.before is None:
            raise NoCoefficient(f"{site.describe()} is an output of the model and read by it, too")
        return c * (y / stabilize(working(site.before), GUARD)).to(y.dtype), None, None, None
