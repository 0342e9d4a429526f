"""DeepLIFT's rescale rule on any model: functional, in-place and reused activations included.

The model runs once on the baseline, which notes what goes into every non-linear function, and once on
the input, where each such function is given a *multiplier* m with ``f(x) - f(b) = m · (x - b)`` in place of
its derivative. The multiplier is the mean derivative on the line from b to x: in closed form for functions of
one value, for maxima and for products, by a few points on the line for softmax and attention. Normalisations
are taken apart into such functions, since near a flat baseline no few points would do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..functions import facts
from .base import Explainer, Question
from .gradient import baseline_like
from .registry import register_explainer

# Below this relative difference (x - b) the derivative is more exact than the quotient.
_SMALL = 1e-6
_POINTS = 8

#: Kinds of functions that are linear in each of two operands: on the line between two points the midpoint is exact.
BILINEAR = ("product", "matrix product", "einsum", "added matrix product")
#: Kinds that are linear where one of the operands is a plain number.
BY_NUMBER = (*BILINEAR, "quotient")
#: Kinds whose mean derivative takes a few points on the line.
CURVED = ("quotient", "softmax", "log softmax", "soft maximum", "attention", "gated linear unit", "opened", "steps")

_Call = Callable[..., Any]
_Rule = Callable[..., list[Tensor]]


def _name(func: _Call) -> tuple[str, bool]:
    """Canonical name of a torch function, and whether it writes into its first argument."""
    name = getattr(func, "__name__", "")
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        inplace = name.startswith("i") and name[1:] in ("mul", "div", "truediv", "matmul", "pow")
        name = name[1:] if inplace else name
        reverse = name.startswith("r") and name[1:] in ("mul", "truediv", "matmul", "pow", "div")
        name = name[1:] if reverse else name
        return {"truediv": "div"}.get(name, name), inplace
    return name.rstrip("_"), name.endswith("_")


def _out_of_place(func: _Call) -> _Call:
    return lambda first, *args, **kwargs: func(first.clone(), *args, **kwargs)


def facts_of(name: str) -> facts.Facts:
    """The row of a function in the table, also where it is an operator's."""
    return facts.TABLE.get(name) or facts.TABLE.get(f"__{name}__") or facts.NOTHING


def _points(name: str) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]; the midpoint alone is exact for a product."""
    if facts_of(name).kind in BILINEAR:
        return torch.tensor([0.5]), torch.tensor([1.0])
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    return torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)


def _vjp(run: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        output = run(*leaves)
    found = torch.autograd.grad(output, leaves, grad, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]


def _pointwise(run: _Call, name: str, x: list[Tensor], b: list[Tensor], grad: Tensor) -> list[Tensor]:
    (x0,), (b0,) = x, b
    difference = x0 - b0
    small = difference.abs() <= _SMALL * torch.maximum(x0.abs(), b0.abs()).clamp_min(_SMALL)
    quotient = (run(x0) - run(b0)) / torch.where(small, torch.ones_like(x0), difference)
    return [torch.where(small, *_vjp(run, [(x0 + b0) / 2], grad), grad * quotient)]


def _maximum(run: _Call, name: str, x: list[Tensor], b: list[Tensor], grad: Tensor) -> list[Tensor]:
    """What x's maximum gained goes to its place, what b's maximum lost goes to *its* place."""
    y, y0 = run(*x), run(*b)
    higher = torch.maximum(y, y0)
    gained = _vjp(run, x, grad * (higher - y0))[0]
    lost = _vjp(run, b, grad * (y - higher))[0]
    difference = x[0] - b[0]
    safe = torch.where(difference == 0, torch.ones_like(difference), difference)
    return [torch.where(difference == 0, torch.zeros_like(difference), (gained + lost) / safe)]


def _on_the_line(run: _Call, name: str, x: list[Tensor], b: list[Tensor], grad: Tensor) -> list[Tensor]:
    total = [torch.zeros_like(t) for t in x]
    for node, weight in zip(*_points(name), strict=True):
        between = [torch.lerp(b0, x0, node.to(x0)) for x0, b0 in zip(x, b, strict=True)]
        for k, g in enumerate(_vjp(run, between, grad)):
            total[k] += g * float(weight)
    return total


def _rule(name: str, tensors: int) -> _Rule | None:
    """How the multipliers of a function of so many tensors are found; None for one that is linear, or is not known."""
    row = facts_of(name)
    if row.elementwise:
        return _pointwise if tensors == 1 else _on_the_line
    if row.maximum:
        return _maximum
    if row.several is True:
        return None
    is_norm = row.kind == "sum" and row.gate == facts.GATE
    curved = row.kind in CURVED or (row.kind in BILINEAR and tensors > 1) or is_norm
    return _on_the_line if curved and not (row.kind in BY_NUMBER and tensors < 2) else None


def _normalised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(torch.square(centred).mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return _affine(_normalised(x, list(range(-len(normalized_shape), 0)), eps), weight, bias)


def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    groups = _normalised(x.reshape(len(x), num_groups, -1), [-1], eps).reshape(x.shape)
    shape = (-1, *[1] * (x.ndim - 2))
    return _affine(groups, *(None if p is None else p.reshape(shape) for p in (weight, bias)))


def _rms_norm(x, normalized_shape, weight=None, eps=None):
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * torch.rsqrt(torch.square(x).mean(dims, keepdim=True) + eps), weight, None)


def _normalize(x, p=2.0, dim=1, eps=1e-12, out=None):
    if p != 2:
        return torch.nn.functional.normalize(x, p, dim, eps)
    return x * torch.rsqrt(torch.square(x).sum(dim, keepdim=True).clamp_min(eps**2))


# Functions that are taken apart into ones with a rule; same arguments as torch's.
_PARTS: dict[str, _Call] = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "normalize": _normalize,
}


class _Rescaled(torch.autograd.Function):
    """The original call forward, the multiplier backward."""

    @staticmethod
    def forward(ctx: Any, run: _Call, name: str, baseline: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.run, ctx.name, ctx.baseline = run, name, baseline
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs = list(ctx.saved_tensors)
        rule = _rule(ctx.name, len(inputs))
        assert rule is not None
        return None, None, None, *rule(ctx.run, ctx.name, inputs, ctx.baseline, grad)


class _Bound:
    """A call with its floating point tensors taken out, so that it can run on other ones."""

    def __init__(self, func: _Call, args: tuple, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.tensors: list[Tensor] = []
        self.slots = [self._take(value) for value in (*args, *kwargs.values())]

    def _take(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            self.tensors.append(value)
            return len(self.tensors) - 1
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return [self._take(v) for v in value]
        return None

    def _put(self, slot: Any, value: Any, tensors: tuple[Tensor, ...]) -> Any:
        if isinstance(slot, list):
            return [self._put(s, v, tensors) for s, v in zip(slot, value, strict=True)]
        return value if slot is None else tensors[slot]

    def __call__(self, *tensors: Tensor) -> Tensor:
        values = [
            self._put(s, v, tensors) for s, v in zip(self.slots, (*self.args, *self.kwargs.values()), strict=True)
        ]
        n = len(self.args)
        output = self.func(*values[:n], **dict(zip(self.kwargs, values[n:], strict=True)))
        return output[0] if isinstance(output, tuple) else output


class _Interception(TorchFunctionMode):
    """Sees every torch function that a model calls, and hands the non-linear ones to :meth:`nonlinear`."""

    def __torch_function__(self, func: _Call, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, inplace = _name(func)
        if name in _PARTS:
            with self:
                return _PARTS[name](*args, **{{"input": "x"}.get(k, k): v for k, v in kwargs.items()})
        if _rule(name, 2) is None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        written = args[0] if inplace or kwargs.get("inplace") else None
        if written is not None:  # run on a copy and write the result back: what went in has to be noted
            args = (written.clone(), *args[1:])
            kwargs = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
        bound = _Bound(_out_of_place(func) if inplace else func, args, kwargs)
        known = _rule(name, len(bound.tensors)) is not None
        output = bound.func(*args, **kwargs) if not known else self.nonlinear(name, bound, args, kwargs)
        return output if written is None else written.copy_(output)

    def nonlinear(self, name: str, bound: _Bound, args: tuple, kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


class _Recorder(_Interception):
    """Notes what goes into every non-linear function."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[str, list[Tensor]]] = []

    def nonlinear(self, name: str, bound: _Bound, args: tuple, kwargs: dict[str, Any]) -> Any:
        self.notes.append((name, [t.detach().clone() for t in bound.tensors]))
        return bound.func(*args, **kwargs)


class _Rescaler(_Interception):
    """Gives every non-linear function its multiplier, by what the recorder noted."""

    def __init__(self, notes: list[tuple[str, list[Tensor]]]) -> None:
        super().__init__()
        self.notes = iter(notes)

    def nonlinear(self, name: str, bound: _Bound, args: tuple, kwargs: dict[str, Any]) -> Any:
        noted, baseline = next(self.notes, ("nothing", []))
        shapes = [t.shape for t in bound.tensors]
        if noted != name or shapes != [t.shape for t in baseline]:
            raise InputError(
                "deeplift needs a model that takes the same steps on the baseline as on the input, but "
                f"{name} on {[tuple(s) for s in shapes]} met {noted} on {[tuple(t.shape) for t in baseline]}."
            )
        output = _Rescaled.apply(bound, name, baseline, *bound.tensors)
        if kwargs.get("return_indices") or name == "multi_head_attention_forward":
            with torch.no_grad():
                return (output, *bound.func(*args, **kwargs)[1:])
        return output


@register_explainer("deeplift")
class DeepLift(Explainer):
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017): what of ``f(x) - f(b)`` each value brings.

    The attributions of an item sum to the difference of its score to the baseline's.

    Parameters
    ----------
    model : torch.nn.Module
    baseline : float or Tensor
        What the input is compared with, broadcast to it. 0 is the mean image of a normalised input.
    """

    several = "together"

    def __init__(self, model: nn.Module, baseline: float | Tensor = 0.0) -> None:
        super().__init__(model)
        self.baseline = baseline

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        baseline = baseline_like(x, self.baseline)
        question.settle(x)
        recorder = _Recorder()
        with torch.no_grad(), recorder:
            question.forward(baseline)
        leaf = x.detach().clone().requires_grad_()
        with _Rescaler(recorder.notes):
            score = question.score(leaf)
        (multiplier,) = torch.autograd.grad(score.sum(), leaf, allow_unused=True)
        return torch.zeros_like(x) if multiplier is None else multiplier * (x - baseline)
