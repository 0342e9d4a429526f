"""The site of a function of one value at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sites.call import Call
from ..sites.site import Site, iter_tensors, runs_again_alike


class ActivationSite(Site):
    """``y = f(x)``, one value at a time."""

    kind = "activation"
    takes_several = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.from_output = call.says("from_output") and not self.binding.needs_preactivation
        self.rectifies = call.says("rectifier")
        self.reruns = not self.from_output
        # operands other than the activation might be written into before it is computed again
        alone = sum(1 for _ in iter_tensors(call.args, call.kwargs)) == 1
        self.cheap = self.reruns and alone and runs_again_alike(call.activations[0])
        self.keeps_zero = call.says("zero_to_zero")

    @property
    def keeps_inputs(self) -> bool:  # type: ignore[override]
        return not self.from_output

    @property
    def keeps_output(self) -> bool:  # type: ignore[override]
        return not self.cheap

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        # relu-like: the output has the input's shape, and its sign tells all that rules ask of the input
        return (self.output,) if self.from_output else tuple(t for t in self.saved if t is not None)

    def pass_through(self, R: Tensor) -> tuple[Tensor | None, ...]:
        shape = self.inputs[0].shape
        if R.shape[R.dim() - len(shape) :] == shape:
            return (R,)
        return (R.sum_to_size(shape),)  # an exponent or a bound has broadcast the input

    def gradient(self, c: Tensor) -> tuple[Tensor | None, ...]:
        if self.from_output:
            y = self.output
            return (c * ((y > 0) if self.op == "relu" else (y > 0) & (y < 6)),)
        with torch.enable_grad():
            x = self.input.detach().requires_grad_(True)
            out = self.call([x])
        return torch.autograd.grad(out, x, c.to(out.dtype))
