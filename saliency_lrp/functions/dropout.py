"""Random functions that stay on in eval mode: a mask times a constant, as it fell in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.site import Site
from .pointwise import ActivationSite
from .products import ScaleSite
from .registry import kind
from .sums import SumSite


class Drawn(torch.autograd.Function):
    """A result that was drawn already, with the factors that its input was multiplied by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, factor: Tensor, inplace: bool) -> Tensor:
        ctx.factor = factor
        if not inplace:
            return out.view_as(out)
        ctx.mark_dirty(x)
        return x.copy_(out)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        return c * ctx.factor, None, None, None


class DropoutSite(ScaleSite):
    """``x · factor`` with 0 where a value was dropped: relevance passes what was kept, unchanged."""

    kind = "scale"


class ShiftedDropoutSite(SumSite):
    """``x · factor + shift``: what alpha dropout writes in place of dropped values acts as a bias."""

    def __init__(self, call: Call, factor: Tensor) -> None:
        super().__init__(call)
        self.factor = factor

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return (c * self.factor,)

    gradient = vjp

    def constant_part(self) -> Tensor:
        return self.output - self.input * self.factor


class RandomSlopes(ActivationSite):
    """A ReLU whose negative slopes are drawn at random: relevance passes, the slopes are those that were drawn."""

    def __init__(self, call: Call, factor: Tensor) -> None:
        super().__init__(call)
        self.factor = factor

    def gradient(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return (c * self.factor,)


@kind("dropout", "random slopes")
def random_factors(call: Call) -> Any:
    """Off, it hands values on; on, the factors that this forward pass drew are kept."""
    if not call.says("random"):
        return call.interceptor.tag_routed(call, call.native())
    (leaf,), out = call.run_on_copies()
    (factor,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    site: Site
    if call.name == "rrelu":
        site = RandomSlopes(call, factor)
    elif call.says("zero_to_zero"):
        site = DropoutSite(call, leaf, factor)
    else:
        site = ShiftedDropoutSite(call, factor)
    result = out.detach()

    def give(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            return Drawn.apply(x, result, factor, call.inplace)
        return x.copy_(result) if call.inplace else result

    return call.of_function(give).node(site, gate=call.gate(), nonnegative=call.nonnegative())
