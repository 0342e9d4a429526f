"""DeepLIFT's rescale rule on any model: functional, in-place and reused activations included.

The model runs once on the baseline, which notes what goes into every non-linear function, and once on
the input, where each such function is given a *multiplier* m with ``f(x) - f(b) = m · (x - b)`` in place of
its derivative. The multiplier is the mean derivative on the line from b to x: in closed form for functions of
one value, for maxima and for products, by points on the line for whatever else is not affine. Normalisations,
recurrent layers and distances are taken apart into such functions, since near a flat baseline no few points would do.
What a multiplier then leaves open of ``f(x) - f(b)`` (a function with kinks, a mask that is another on the baseline)
goes to the values that moved. Whether the attributions of an item sum to the difference of its score is measured, and
said where they do not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..functions import facts
from ..functions.decompositions import STEPS
from ..functions.python_bodies import opened
from ..functions.recurrent import CellSite, LayersSite
from ..model.as_found import CallMode
from ..sites.call import Call
from ..sites.site import fill, iter_tensors
from .base import Explainer, Question
from .gradient import baseline_like
from .registry import register_explainer

# Below this relative difference (x - b) the derivative is more exact than the quotient.
_SMALL = 1e-6
_POINTS = 16
# How much of the difference of the scores may be missing before it is said.
_COMPLETE = 1e-3

#: Kinds of functions that are linear in each of two operands: on the line between two points the midpoint is exact.
BILINEAR = ("product", "matrix product", "einsum", "added matrix product")
#: Kinds that are linear where one of the operands is a plain number.
BY_NUMBER = (*BILINEAR, "quotient")
#: Kinds whose mean derivative takes a few points on the line.
CURVED = ("quotient", "softmax", "log softmax", "soft maximum", "attention", "gated linear unit", "opened", "steps")

#: Kinds that hand values on as long as what decides where is the same on the baseline.
SWITCHED = ("where", "masked_fill")
#: Kinds with one result of many values that no point on the line tells exactly.
PRODUCTS = ("product of all", "running product", "product of many", "bilinear", "instance norm", "polar")

_Call = Callable[..., Any]
_Rule = Callable[..., list[Tensor]]


def _name(func: _Call) -> tuple[str, bool]:
    """Canonical name of a torch function, and whether it writes into its first argument."""
    name = getattr(func, "__name__", "")
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        inplace = name.startswith("i") and name[1:] in facts.FACTOR_OPERATORS
        name = name[1:] if inplace else name
        reverse = name.startswith("r") and name[1:] in facts.FACTOR_OPERATORS
        if reverse and name in ("rtruediv", "rdiv"):
            return "reciprocal", False  # of a number: no product with it
        name = name[1:] if reverse else name
        return {"truediv": "div"}.get(name, name), inplace
    return name.rstrip("_"), name.endswith("_")


def _out_of_place(func: _Call) -> _Call:
    return lambda first, *args, **kwargs: func(first.clone(), *args, **kwargs)


def facts_of(name: str) -> facts.Facts:
    """The row of a function in the table, also where it is an operator's."""
    return facts.TABLE.get(name) or facts.TABLE.get(f"__{name}__") or facts.TABLE.get(name.lstrip("_")) or facts.NOTHING


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


def _pointwise(run: _Call, name: str, x: list[Tensor], b: list[Tensor], grad: Tensor, y0: Tensor) -> list[Tensor]:
    (x0,), (b0,) = x, b
    difference = x0 - b0
    small = difference.abs() <= _SMALL * torch.maximum(x0.abs(), b0.abs()).clamp_min(_SMALL)
    quotient = (run(x0) - y0) / torch.where(small, torch.ones_like(x0), difference)
    (slope,) = _vjp(run, [(x0 + b0) / 2], grad)
    return [torch.where(small, slope, grad * quotient)]


def _maximum(run: _Call, name: str, x: list[Tensor], b: list[Tensor], grad: Tensor, y0: Tensor) -> list[Tensor]:
    """What x's maximum gained goes to its place, what b's maximum lost goes to *its* place."""
    y = run(*x)
    higher = torch.maximum(y, y0)
    gained = _vjp(run, x, grad * (higher - y0))
    lost = _vjp(run, b, grad * (y - higher))
    return [_quotient(up + down, t - t0) for up, down, t, t0 in zip(gained, lost, x, b, strict=True)]


def _quotient(amount: Tensor, difference: Tensor) -> Tensor:
    safe = torch.where(difference == 0, torch.ones_like(difference), difference)
    return torch.where(difference == 0, torch.zeros_like(difference), amount / safe)


def _on_the_line(run: _Call, name: str, x: list[Tensor], b: list[Tensor], grad: Tensor, y0: Tensor) -> list[Tensor]:
    total = [torch.zeros_like(t) for t in x]
    for node, weight in zip(*_points(name), strict=True):
        between = [torch.lerp(b0, x0, node.to(x0)) for x0, b0 in zip(x, b, strict=True)]
        for k, g in enumerate(_vjp(run, between, grad)):
            total[k] += g * float(weight)
    return total


def _closed(
    y: Tensor,
    x: list[Tensor],
    b: list[Tensor],
    grad: Tensor,
    y0: Tensor,
    found: list[Tensor],
    carries: tuple[bool, ...],
    elementwise: bool,
) -> list[Tensor]:
    """Multipliers with what they leave open of ``grad · (f(x) − f(b))`` given to the values that moved.

    ``carries`` says which operands hand attributions on: a mask, say, does not.

    Of functions that act element by element, place by place to the operand that moved most; of others to all values of
    an item (of the first axis), in proportion to the squares of how far they moved.
    """
    moved = [x0 - b0 for x0, b0 in zip(x, b, strict=True)]
    active = [k for k, d in enumerate(moved) if carries[k] and bool(d.any())]
    if not active:
        return found
    if elementwise and all(x[k].shape == y.shape for k in active):
        open_ = grad * (y - y0) - sum(found[k] * moved[k] for k in active)
        furthest = torch.stack([moved[k].abs() for k in active]).argmax(0)
        for n, k in enumerate(active):
            found[k] = found[k] + _quotient(torch.where(furthest == n, open_, torch.zeros_like(open_)), moved[k])
        return found
    if y.dim() == 0 or any(x[k].dim() == 0 or x[k].shape[0] != y.shape[0] for k in active):
        return found  # whose values these are cannot be told

    def by_item(t: Tensor) -> Tensor:
        return t.reshape(len(t), -1).sum(1)

    open_ = by_item(grad * (y - y0)) - sum(by_item(found[k] * moved[k]) for k in active)
    squares: Any = sum(by_item(moved[k].square()) for k in active)
    share = _quotient(open_, squares)
    for k in active:
        found[k] = found[k] + moved[k] * share.reshape(-1, *(1,) * (x[k].dim() - 1))
    return found


def _rule(name: str, bound: _Bound) -> _Rule | None:
    """How the multipliers of a call are found; None for one that is affine, or is not known."""
    row, tensors = facts_of(name), len(bound.tensors)
    if not tensors:
        return None
    if row.elementwise:
        return _pointwise if tensors == 1 and not bound.masks else _on_the_line
    if row.maximum or row.winner:
        return _maximum
    if row.several is True and name not in PRODUCTS:
        return None
    if row.kind in BY_NUMBER and tensors < 2:
        return _on_the_line if bound.masks else None  # a mask may be another on the baseline
    is_norm = row.kind == "sum" and row.gate == facts.GATE
    curved = row.kind in (*CURVED, *BILINEAR, *PRODUCTS) or is_norm or name in SWITCHED
    return _on_the_line if curved else None


def by_element(name: str) -> bool:
    """Whether each value of a result is made of the values at its place alone."""
    row = facts_of(name)
    return bool(row.elementwise) or row.kind in ("product", "quotient") or name in SWITCHED


def _normalized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centered = x - x.mean(dims, keepdim=True)
    return centered * torch.rsqrt(torch.square(centered).mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return _affine(_normalized(x, list(range(-len(normalized_shape), 0)), eps), weight, bias)


def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    groups = _normalized(x.reshape(len(x), num_groups, -1), [-1], eps).reshape(x.shape)
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


def _instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if not use_input_stats:
        return torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = (-1, *[1] * (x.ndim - 2))
    normalized = _normalized(x.reshape(*x.shape[:2], -1), [-1], eps).reshape(x.shape)
    return _affine(normalized, *(None if p is None else p.reshape(shape) for p in (weight, bias)))


def _reset_linear(xh, r, weight, b_x, b_h):
    """A GRU's new state: its reset gate multiplies what comes from the old one."""
    h = r.shape[-1]
    linear = torch.nn.functional.linear
    return linear(xh[..., :-h], weight[:, :-h], b_x) + r * linear(xh[..., -h:], weight[:, -h:], b_h)


# Functions that are taken apart into ones with a rule; same arguments as torch's.
_PARTS: dict[str, _Call] = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "rms_norm": _rms_norm,
    "normalize": _normalize,
    "reset_linear": _reset_linear,
}


class _Nowhere:
    """Where a call is made that no trace records."""

    binding = None

    def location(self) -> tuple[str, None]:
        return "", None

    def note(self, text: str) -> None:
        pass


def _taken_apart(func: _Call, name: str, args: tuple, kwargs: dict[str, Any]) -> _Call | None:
    """The call in steps that have rules of their own, ready to run; None where it has none."""
    if name in _PARTS:
        return lambda: _PARTS[name](*args, **{{"input": "x"}.get(k, k): v for k, v in kwargs.items()})
    kind = facts_of(name).kind
    if kind == "opened" and (body := opened(func)) is not None:
        return lambda: body(*args, **kwargs)
    if name in STEPS and kind not in BILINEAR:
        return lambda: STEPS[name](*args, **kwargs)
    if kind not in RECURRENT:
        return None
    given = list(iter_tensors(args, kwargs))
    call = Call(func, name, args, kwargs, given, False, _Nowhere())
    site = (LayersSite if kind == "recurrent layers" else CellSite)(call)
    operands = fill(site.operands, given)
    one_state = kind == "recurrent cell" and name != "lstm_cell"
    return lambda: site.expand(*operands)[0] if one_state else site.expand(*operands)


RECURRENT = ("recurrent layers", "recurrent cell")


class _Rescaled(torch.autograd.Function):
    """The original call forward, the multiplier backward."""

    @staticmethod
    def forward(ctx: Any, run: _Call, name: str, baseline: list[Tensor], y0: Tensor, *inputs: Tensor) -> Tensor:
        ctx.run, ctx.name, ctx.baseline, ctx.y0 = run, name, baseline, y0
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs = list(ctx.saved_tensors)
        rule = _rule(ctx.name, ctx.run)
        assert rule is not None
        found = rule(ctx.run, ctx.name, inputs, ctx.baseline, grad, ctx.y0)
        closed = _closed(
            ctx.run(*inputs), inputs, ctx.baseline, grad, ctx.y0, found, ctx.needs_input_grad[4:], by_element(ctx.name)
        )
        return None, None, None, None, *closed


class _Bound:
    """A call with its floating point tensors taken out, so that it can run on other ones."""

    def __init__(self, func: _Call, args: tuple, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.tensors: list[Tensor] = []
        #: whether there are other tensors, such as masks
        self.masks = False
        self.slots = [self._take(value) for value in (*args, *kwargs.values())]

    def _take(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            self.tensors.append(value)
            return len(self.tensors) - 1
        self.masks = self.masks or isinstance(value, Tensor)
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


class _Interception(CallMode):
    """Sees every torch function that a model calls, and hands the non-linear ones to :meth:`nonlinear`."""

    def __torch_function__(self, func: _Call, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, inplace = _name(func)
        parts = None if inplace or kwargs.get("out") is not None else _taken_apart(func, name, args, kwargs)
        if parts is not None:
            with self:
                return parts()
        if kwargs.get("out") is not None:
            return func(*args, **kwargs)
        written = args[0] if inplace or kwargs.get("inplace") else None
        if written is not None:  # run on a copy and write the result back: what went in has to be noted
            args = (written.clone(), *args[1:])
            kwargs = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
        bound = _Bound(_out_of_place(func) if inplace else func, args, kwargs)
        known = _rule(name, bound) is not None
        output = bound.func(*args, **kwargs) if not known else self.nonlinear(name, bound, args, kwargs)
        return output if written is None else written.copy_(output)

    def nonlinear(self, name: str, bound: _Bound, args: tuple, kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


class _Recorder(_Interception):
    """Notes what goes into every non-linear function."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[str, list[Tensor], Tensor]] = []

    def nonlinear(self, name: str, bound: _Bound, args: tuple, kwargs: dict[str, Any]) -> Any:
        output = bound.func(*args, **kwargs)
        first = output[0] if isinstance(output, tuple) else output
        self.notes.append((name, [t.detach().clone() for t in bound.tensors], first.detach().clone()))
        return output


class _Rescaler(_Interception):
    """Gives every non-linear function its multiplier, by what the recorder noted."""

    def __init__(self, notes: list[tuple[str, list[Tensor], Tensor]]) -> None:
        super().__init__()
        self.notes = iter(notes)

    def nonlinear(self, name: str, bound: _Bound, args: tuple, kwargs: dict[str, Any]) -> Any:
        noted, baseline, y0 = next(self.notes, ("nothing", [], torch.zeros(())))
        shapes = [t.shape for t in bound.tensors]
        if noted != name or shapes != [t.shape for t in baseline]:
            raise InputError(
                "deeplift needs a model that takes the same steps on the baseline as on the input, but "
                f"{name} on {[tuple(s) for s in shapes]} met {noted} on {[tuple(t.shape) for t in baseline]}."
            )
        with torch.no_grad():
            whole = bound.func(*args, **kwargs)
        first = whole[0] if isinstance(whole, tuple) else whole
        if not first.is_floating_point():
            return whole
        output = _Rescaled.apply(bound, name, baseline, y0, *bound.tensors)
        if not isinstance(whole, tuple):
            return output
        rest = (output, *whole[1:])
        return rest if type(whole) is tuple else type(whole)(rest)


@register_explainer("deeplift")
class DeepLift(Explainer):
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017): what of ``f(x) - f(b)`` each value brings.

    The attributions of an item sum to the difference of its score to the baseline's; where they do not, a warning says
    by how much.

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
            before = question.score(baseline)
        leaf = x.detach().clone().requires_grad_()
        with _Rescaler(recorder.notes):
            score = question.score(leaf)
        (multiplier,) = torch.autograd.grad(score.sum(), leaf, allow_unused=True)
        found = torch.zeros_like(x) if multiplier is None else multiplier * (x - baseline)
        self.check_complete(found, score.detach() - before)
        return found

    def check_complete(self, found: Tensor, difference: Tensor) -> None:
        """Say by how much attributions miss the difference of the scores, if they do."""
        sums = found.flatten(1).sum(1)
        size = torch.maximum(difference.abs(), found.flatten(1).abs().sum(1) * _COMPLETE).clamp_min(1e-30)
        missing = ((difference - sums) / size).abs()
        tolerance = max(_COMPLETE, 1e4 * torch.finfo(found.dtype).eps)
        if float(missing.max()) > tolerance:
            worst = int(missing.argmax())
            warnings.warn(
                f"deeplift: the attributions of item {worst} sum to {float(sums[worst]):.4g}, but its score differs "
                f"from the baseline's by {float(difference[worst]):.4g}: {type(self.model).__name__} has a function "
                "that is not affine and has no multiplier here",
                stacklevel=5,
            )
