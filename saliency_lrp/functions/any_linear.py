"""Any function that is linear in one activation and in one constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..sites.batch_norm import along
from ..sites.call import Call
from ..sites.linear import LinearSite, linear_node
from ..sites.site import any_complex
from .registry import KINDS


class AnyLinear(LinearSite):
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
        return w * along(scale, self.weight_axis if self.weight_axis < 0 else self.weight_axis - w.dim())

    def forward(self, a: Tensor, w: Tensor) -> Tensor:
        return self.run(a, w)

    def transpose(self, c: Tensor, w: Tensor) -> Tensor:
        with torch.enable_grad():
            a = self.input.detach().requires_grad_(True)
            z = self.forward(a, w)
        return torch.autograd.grad(z, a, c)[0]


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


def dynamic_weight(call: Call, activation: Tensor) -> None:
    """Note that the weight of this call depends on the input; it counts as a gate and gets no relevance."""
    if len(call.activations) > 1 or call.activations[0] is not activation:
        call.interceptor.note(f"{call.name} at {call.path!r}: the weight depends on the input; it counts as a gate")


def weight_only(call: Call) -> Any:
    """Only the weight depends on the input: linear in the weight, as in a hypernetwork."""
    w = call.activations[0]
    constants = {k: v for k, v in enumerate(call.args) if v is not w}

    def run(a: Tensor, _: Tensor) -> Tensor:
        args = tuple(constants.get(k, a) for k in range(len(call_args)))
        return func(*args, **kwargs)

    func, call_args = call.func, [None] * len(call.args)
    kwargs = {k: (v.detach() if isinstance(v, Tensor) else v) for k, v in call.kwargs.items()}
    return linear_node(call, AnyLinear(call, torch.ones((), dtype=w.dtype, device=w.device), run), w)
