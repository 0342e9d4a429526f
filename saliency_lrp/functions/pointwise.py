"""The site of a function of one value at a time."""

from __future__ import annotations

from torch import Tensor

from ..sites.call import Call
from ..sites.site import Site


class ActivationSite(Site):
    """``y = f(x)``, one value at a time."""

    kind = "activation"
    batches_maps = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.rectifies = call.says("rectifier")
        self.keeps_zero = call.says("zero_to_zero")

    def pass_through(self, R: Tensor) -> tuple[Tensor | None, ...]:
        shape = self.input.shape
        if R.shape[R.dim() - len(shape) :] == shape:
            return (R,)
        return (R.sum_to_size(shape),)  # an exponent or a bound has broadcast the input
