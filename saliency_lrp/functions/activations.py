"""Element-wise activations: relevance passes unchanged (rule ``Pass``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import BOUNDED, GATE, OUTPUT, PLAIN, Call, tag_of
from .registry import handles, kind
from .site import Site, iter_tensors, runs_again_alike

#: Activations whose output is never negative.
NONNEGATIVE = frozenset(
    "relu relu6 sigmoid hardsigmoid softplus exp exp2 square abs softmax sqrt norm threshold_relu".split()
)
#: Outputs that multiply a signal rather than being one.
GATES = frozenset("sigmoid hardsigmoid expit exp exp2 rsqrt reciprocal log_sigmoid".split())
#: Bounded outputs: a gate once a constant is added, or where never negative.
BOUND = frozenset("tanh erf erfc".split())
#: Activations whose gradient can be told from the output alone, so that an in-place call need not copy its input.
FROM_OUTPUT = frozenset("relu relu6".split())


class ActivationSite(Site):
    """``y = f(x)``, one value at a time."""

    kind = "activation"
    takes_several = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.from_output = self.op in FROM_OUTPUT and not self.binding.needs_preactivation
        self.reruns = not self.from_output
        # operands other than the activation might be written into before it is computed again
        alone = sum(1 for _ in iter_tensors(call.args, call.kwargs)) == 1
        self.cheap = self.reruns and alone and runs_again_alike(call.activations[0])
        self.keeps_zero = self.op in KEEPS_ZERO

    @property
    def keeps_inputs(self) -> bool:  # type: ignore[override]
        return not self.from_output

    @property
    def keeps_output(self) -> bool:  # type: ignore[override]
        return not self.cheap

    def computed_output(self) -> Tensor:
        return self.call([self.input])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        # relu-like: the output has the input's shape, and its sign tells all that rules ask of the input
        return (self.output,) if self.from_output else tuple(t for t in self.saved if t is not None)

    def gradient(self, c: Tensor) -> tuple[Tensor | None, ...]:
        if self.from_output:
            y = self.output
            return (c * ((y > 0) if self.op == "relu" else (y > 0) & (y < 6)),)
        with torch.enable_grad():
            x = self.input.detach().requires_grad_(True)
            out = self.call([x])
        return torch.autograd.grad(out, x, c.to(out.dtype))


@kind(
    "activation",
    *"relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid softplus".split(),
    *"softsign tanhshrink softshrink hardshrink threshold tanh sigmoid logsigmoid log_sigmoid expit erf erfc".split(),
    *"clamp clamp_min clamp_max clip abs absolute exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square".split(),
    *"reciprocal sin cos tan asin acos atan sinh cosh asinh acosh atanh arctan neg negative logit erfinv".split(),
    *"pow float_power __pow__ sinc frac".split(),
)
def activation(call: Call) -> Any:
    if len(call.activations) > 1:  # a slope or bound computed from the input: prelu, clamp, x ** y
        return parametrised(call)
    x = call.activations[0]
    if call.args and x is not call.args[0] and not call.is_activation(call.kwargs.get("input")):
        from .unknown import unknown

        return unknown(call)  # constant ** x and the like
    tag = tag_of(x)
    nonnegative = call.name in NONNEGATIVE or (call.name in KEEPS_SIGN and tag is not None and tag.nonnegative)
    site, before = ActivationSite(call), behind_relu(call, tag)
    if before is not None:
        before.result = None  # the ReLU's output will serve; an in-place one need not save what it writes over
    out = call.node(site, gate=gate_level(call, tag), nonnegative=nonnegative)
    if before is not None:
        before.result, before.cut = out.detach(), True
        call.interceptor.remember(before.result, before, OUTPUT)
    return out


def behind_relu(call: Call, tag: Any) -> Site | None:
    """The site whose output goes into this ReLU and nowhere else, if it can do with what the ReLU leaves of it."""
    if call.name != "relu" or tag is None or tag.readers != 1 or tag.site is None:
        return None
    site = tag.site
    return site if site.rectifiable and not site.superseded and not call.binding.needs_preactivation else None


#: Activations that map 0 to 0.
KEEPS_ZERO = frozenset(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish softsign tanhshrink softshrink "
    "hardshrink tanh erf abs absolute expm1 log1p sqrt square sin tan asin atan sinh asinh atanh arctan neg negative "
    "erfinv".split()
)
#: Activations that are homogeneous of degree one: straight on either side of 0.
HOMOGENEOUS = frozenset("relu leaky_relu prelu rrelu abs absolute neg negative".split())
#: Activations that map non-negative values to non-negative values.
KEEPS_SIGN = frozenset(
    "leaky_relu prelu elu selu gelu silu mish hardswish hardtanh tanh erf pow clamp_max log1p tanhshrink".split()
)


def gate_level(call: Call, tag: Any) -> int:
    """How much the result looks like a gate."""
    if call.name in GATES or (call.name == "pow" and _negative_power(call)):
        return GATE
    if call.name in BOUND:
        return GATE if tag is not None and tag.nonnegative else BOUNDED
    if call.name in ("clamp", "clamp_min", "clamp_max", "sqrt", "neg", "negative", "abs", "square", "clip"):
        return tag.gate if tag is not None else PLAIN
    return PLAIN


def _negative_power(call: Call) -> bool:
    power = call.arg(1, "exponent", 1)
    return isinstance(power, int | float) and power < 0


def parametrised(call: Call) -> Any:
    """The first activation is the signal; slopes and bounds computed from the input count as constants."""
    call.interceptor.note(f"{call.name} at {call.path!r}: its parameter depends on the input; it counts as a constant")
    return call.node(ActivationSite(call), [call.activations[0]])


class GLUSite(Site):
    """``a · sigmoid(b)`` of the two halves of one tensor: b is a gate, the signal a takes all."""

    kind = "gate"

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.dim = call.arg(1, "dim", -1)

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        """The relevance of both halves; ``shares`` counts the one tensor that holds them."""
        return (torch.cat([R, torch.zeros_like(R)], self.dim),)


@handles("glu")
def glu(call: Call) -> Any:
    return call.node(GLUSite(call))
