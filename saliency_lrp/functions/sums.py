"""Sum-like functions: relevance is shared in proportion to contributions (rule ``Norm``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rules.arithmetic import working
from .call import GATE, PLAIN, Call, tag_of
from .registry import handles, kind
from .site import Site


class SumSite(Site):
    """A function that is linear in its activations; constants it adds act as a bias."""

    kind = "sum"

    def constant_part(self) -> Tensor | float:
        """What the constant operands add to the output."""
        with torch.no_grad():
            return working(self.call([torch.zeros_like(a) for a in self.inputs]))

    def spread(self, amount: Tensor) -> tuple[Tensor, ...] | None:
        """Relevance of each output, spread evenly over the inputs it is made of; None where it cannot be told."""
        return None


class AddSite(SumSite):
    """``x + alpha · y`` of two activations, in closed form: no second run for the transposed Jacobian."""

    def __init__(self, call: Call, weights: tuple[float, float]) -> None:
        super().__init__(call)
        self.weights = weights

    #: an addition costs less than keeping its result, which models often go on to write into
    keeps_output = False
    rectifiable = True

    @property
    def output(self) -> Tensor:
        if self.result is not None and (self.rectified or not self.cut):
            return self.result  # a ReLU's output, say, which others keep as well
        return self.computed_output()

    def computed_output(self) -> Tensor:
        (left, right), (x, y) = self.weights, self.inputs
        return torch.add(x if left == 1 else x * left, y, alpha=right)

    @property
    def takes_several(self) -> bool:  # type: ignore[override]
        return self.inputs[0].shape == self.inputs[1].shape

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        same = self.takes_several
        return tuple(
            (c if weight == 1 else c * weight) if same else (c * weight).sum_to_size(a.shape)
            for weight, a in zip(self.weights, self.inputs, strict=True)
        )

    gradient = vjp

    def constant_part(self) -> float:
        return 0.0

    def spread(self, amount: Tensor) -> tuple[Tensor, ...]:
        return tuple((amount / 2).sum_to_size(a.shape) for a in self.inputs)


class ShiftSite(SumSite):
    """``x + constant``: the constant acts as a bias."""

    is_preprocessing = True

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return (c.sum_to_size(self.saved[0].shape),)

    gradient = vjp
    spread = vjp


class CompleteSum(SumSite):
    """Mean, pooling, interpolation: the transposed Jacobian comes from autograd, in a working dtype."""

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else working(g) for g in self.gradient(c))

    def spread(self, amount: Tensor) -> tuple[Tensor, ...] | None:
        if self.op not in AVERAGES:
            return None
        with torch.no_grad():
            fan_in = working(self.call([torch.ones_like(a) for a in self.inputs]))
        share = torch.where(fan_in == 0, torch.zeros_like(amount), amount / fan_in)
        return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(self.inputs, self.vjp(share), strict=True))


#: Sums whose weights are the same, or add up to one, for every output.
AVERAGES = frozenset(
    "sum mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d cumsum "
    "interpolate upsample upsample_nearest upsample_bilinear".split()
)


#: Functions that add two operands: what each counts.
SIGNS = {
    "add": (1.0, 1.0),
    "sub": (1.0, -1.0),
    "subtract": (1.0, -1.0),
    "rsub": (-1.0, 1.0),
    "__rsub__": (-1.0, 1.0),
}


@kind("addition", "add", "__radd__", "sub", "subtract", "rsub", "__rsub__")
def addition(call: Call) -> Any:
    x, y, alpha = call.arg(0, "input"), call.arg(1, "other"), call.kwargs.get("alpha", 1)
    left, right = SIGNS.get(call.name, (1.0, 1.0))
    if call.name == "rsub":
        left *= alpha
    else:
        right *= alpha
    if call.is_activation(x) and call.is_activation(y):
        gate = GATE if _gate(x) == GATE and _gate(y) == GATE and left > 0 and right > 0 else PLAIN
        nonnegative = _nonnegative(x) and _nonnegative(y) and left > 0 and right > 0
        if isinstance(left, float) and isinstance(right, float | int) and not x.is_complex():
            return call.node(AddSite(call, (left, right)), [x, y], gate, nonnegative)
        return call.node(SumSite(call), gate=gate, nonnegative=nonnegative)
    active = call.activations[0]
    # 1 + tanh(x), 1 - sigmoid(x), ...: a bounded value moved by a constant is a gate
    gate = GATE if _gate(active) else PLAIN
    if (left if active is x else right) == 1 and not active.is_complex():
        return call.node(ShiftSite(call), gate=gate)
    return call.node(SumSite(call), gate=gate)


#: Arguments of which not all may depend on the input if the function is to be linear.
FACTORS = {"lerp": [(2, "weight")], "addcmul": [(1, "tensor1"), (2, "tensor2")]}


@kind(
    "sum",
    *"sum mean nansum nanmean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d".split(),
    *"adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear cumsum trace fold col2im".split(),
    *"lerp index_add scatter_add scatter_reduce diff trapezoid norm vector_norm linalg_vector_norm linalg_norm".split(),
    *"frobenius_norm addcmul".split(),
    # real-linear maps through the complex plane: relevance there is the real part of c·z
    *"fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2".split(),
    *"fft_rfftn fft_irfftn fft_fftshift fft_ifftshift complex".split(),
)
def sum_like(call: Call) -> Any:
    factors = FACTORS.get(call.name)
    if factors and all(call.is_activation(call.arg(*factor)) for factor in factors):
        from .steps import in_steps

        return in_steps(call)
    gate = min(_gate(a) for a in call.activations)
    if call.name in ("norm", "vector_norm", "linalg_vector_norm", "linalg_norm", "frobenius_norm"):
        gate = GATE  # a statistic: what it multiplies is the signal
    nonnegative = all(_nonnegative(a) for a in call.activations)
    return call.node(CompleteSum(call), gate=gate, nonnegative=nonnegative)


@handles("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Any:
    """Sampling is a weighted sum of the image; where it is sampled is a constant, as the place of a maximum is."""
    image = call.arg(0, "input")
    if not call.is_activation(image):
        from .unknown import unknown

        return unknown(call)
    return call.node(CompleteSum(call), [image])


def _gate(x: Any) -> int:
    tag = tag_of(x) if isinstance(x, torch.Tensor) else None
    return tag.gate if tag is not None else PLAIN


def _nonnegative(x: Any) -> bool:
    tag = tag_of(x) if isinstance(x, torch.Tensor) else None
    return tag is not None and tag.nonnegative
