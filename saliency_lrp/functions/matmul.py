"""Matrix products, einsums and other bilinear maps: of two activations, or a layer where one factor is a constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rules.arithmetic import divide, working
from ..sites.call import Call, stored
from ..sites.linear import linear_node
from ..sites.site import Site, any_complex, fill, iter_tensors
from ..sites.tag import tag_of
from .any_linear import AnyLinear
from .decompositions import in_steps
from .dense import Dense
from .products import gates_of
from .registry import KINDS, kind
from .sums import CompleteSum


class MatmulSite(Site):
    """A matrix product (or any bilinear map) of two activations; a constant it adds acts as a bias."""

    kind = "matmul"

    def __init__(self, call: Call, gates: frozenset[int] = frozenset()) -> None:
        super().__init__(call)
        self.gates = gates
        self.is_matrix_product = call.says("matrix_product")
        if any(getattr(tag_of(call.activations[k]), "diagonal", False) for k in gates):
            self.kind = "gate"  # type: ignore[misc]  # one value each is weighed, as by a product

    def multiplies(self, shares: Sequence[float]) -> bool:
        return True

    def split(self, R: Tensor, shares: list[float], epsilon: float) -> tuple[Tensor | None, ...]:
        """Each factor's share, divided among the summands of each output in proportion."""
        c = divide(R, self.output, epsilon)
        if self.is_matrix_product and all(a.dim() > 1 for a in self.inputs) and not any(self.complex):
            a, b = map(working, self.inputs)
            return matrix_shares(a, b, c, shares)
        return tuple(
            working(a) * g * share if share and g is not None else None
            for a, g, share in zip(self.inputs, self.gradient(c), shares, strict=True)
        )


def matrix_shares(a: Tensor, b: Tensor, c: Tensor, shares: list[float]) -> tuple[Tensor | None, Tensor | None]:
    """``share · a · (c bᵀ)`` and ``share · b · (aᵀ c)``: what ``c`` = R / (a @ b) gives the factors of a product.

    Batch axes that a factor was broadcast along are summed; None where the share is 0.
    """
    left, right = shares
    R_a = (torch.matmul(c, b.mT) * left).sum_to_size(a.shape).mul_(a) if left else None
    R_b = (torch.matmul(a.mT, c) * right).sum_to_size(b.shape).mul_(b) if right else None
    return R_a, R_b


@kind("matrix product")
def matrix_product(call: Call) -> Any:
    x, y = [*iter_tensors(call.args, call.kwargs)][:2]
    if any_complex(x, y):
        return KINDS["complex matrix product"](call)
    if call.is_activation(x) and call.is_activation(y):
        return call.node(MatmulSite(call, gates_of(x, y)), [x, y])
    if call.says("matrix_product") and call.is_activation(call.arg(0, "input")):
        if y.dim() == 2 and x.dim() > 1:
            return linear_node(call, Dense(call, y.mT, None), x)
    active, constant = (x, y) if call.is_activation(x) else (y, x)
    site = AnyLinear(call, constant, bilinear_map(call, active, constant), constants_axis(call, active, constant))
    site.weight_axis = features_axis(call, active, constant)
    return linear_node(call, site, active)


def features_axis(call: Call, active: Tensor, constant: Tensor) -> int | None:
    """The axis of the constant of a matrix product that runs along the axis of :func:`constants_axis`."""
    if call.name == "tensordot":
        return free_axis(call, constant)
    if len(constants_axis(call, active, constant)) != 1:
        return None
    return -2 if call.args[0] is constant and call.name != "__rmatmul__" else -1


def free_axis(call: Call, constant: Tensor) -> int | None:
    """The one axis of the second operand of a ``tensordot`` that is not summed over."""
    dims = call.arg(2, "dims", 2)
    if call.arg(1, "b") is not constant:
        return None
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        summed = list(range(dims))
    else:
        summed = [d % constant.dim() for d in ([dims[1]] if isinstance(dims[1], int) else dims[1])]
    free = [d for d in range(constant.dim()) if d not in summed]
    return free[0] - constant.dim() if len(free) == 1 else None


def constants_axis(call: Call, active: Tensor, constant: Tensor) -> tuple[int, ...]:
    """The axis of a matrix product that the constant brings: it holds the features of one position."""
    if call.name == "tensordot":
        return () if free_axis(call, constant) is None else (-1,)
    if not (call.says("matrix_product") or call.name in ("mv", "__rmatmul__")) or constant.dim() < 2:
        return ()
    on_the_left = (call.args[0] is constant) != (call.name == "__rmatmul__")
    return (-2,) if on_the_left and active.dim() > 1 else (-1,)


def bilinear_map(call: Call, active: Tensor, constant: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The call as a function of its activation and its constant."""
    func, pair = call.func, [active, constant]
    args = tuple(stored(v, pair) for v in call.args)
    kwargs = {k: stored(v, pair) for k, v in call.kwargs.items()}

    def run(a: Tensor, w: Tensor) -> Tensor:
        return func(*fill(args, [a, w]), **{k: fill(v, [a, w]) for k, v in kwargs.items()})

    return run


@kind("einsum")
def einsum(call: Call) -> Any:
    equation, operands = call.args[0], call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    active = [k for k, o in enumerate(operands) if call.is_activation(o)]
    if len(operands) == 2 and (axes := axes_of_a_product(equation, operands)) is not None:
        return call.reroute(multiplied, operands, axes)
    if len(active) > 1:
        factors = [operands[k] for k in active]
        gates = gates_of(*factors) if len(factors) == 2 else frozenset()
        return call.node(MatmulSite(call, gates), factors)
    if any_complex(*operands):
        return complex_einsum(call, equation, operands)
    (k,) = active
    others = [o.detach() if isinstance(o, Tensor) else o for o in operands]
    if len(operands) == 1:
        order = as_permutation(equation, operands[0].dim())
        return call.node(CompleteSum(call)) if order is None else call.reroute(operands[0].permute, order)
    # with several constants, the first one plays the weight and the others are part of the map
    first = next(j for j in range(len(operands)) if j != k)

    def run(a: Tensor, w: Tensor) -> Tensor:
        filled = [a if j == k else w if j == first else o.to(a.dtype) for j, o in enumerate(others)]
        return torch.einsum(equation, *filled)

    site = AnyLinear(call, operands[first], run, axes_of_others(equation, k))
    if len(operands) == 2 and len(site.own_axes) == 1:
        site.weight_axis = axis_of_letter(equation, first, site.own_axes[0])
    return linear_node(call, site, operands[k])


#: The axes of an einsum's operands and of its result: letters, and places from the end of what ``...`` stands for.
Axes = list[list[str | int]]


def axes_of_a_product(equation: Any, operands: Sequence[Tensor]) -> Axes | None:
    """The axes of an einsum that sums over nothing: it multiplies element by element; None for any other."""
    if not isinstance(equation, str) or "->" not in equation:
        return None
    terms, result = equation.replace(" ", "").split("->")
    own = [axes_of(term, t.dim()) for term, t in zip(terms.split(","), operands, strict=True)]
    dots = max((sum(isinstance(a, int) for a in axes) for axes in own), default=0)
    target = axes_of(result, len(result.replace("...", "")) + dots)
    repeats = any(len(set(axes)) != len(axes) for axes in (*own, target))
    return None if repeats or any(not set(axes) <= set(target) for axes in own) else [*own, target]


def as_permutation(equation: Any, dim: int) -> list[int] | None:
    """The order of axes that an einsum of one operand gives, where it only moves them: a view, as ``permute`` is."""
    if not isinstance(equation, str) or "->" not in equation:
        return None
    own, target = (axes_of(term, dim) for term in equation.replace(" ", "").split("->"))
    moves = len(set(own)) == len(own) == len(target) and set(own) == set(target)
    return [own.index(axis) for axis in target] if moves else None


def axes_of(term: str, dim: int) -> list[str | int]:
    """The axes that a term of an einsum names."""
    head, dots, tail = term.partition("...")
    return [*head, *(range(len(head) + len(tail) - dim, 0) if dots else ()), *tail]


def multiplied(operands: Sequence[Tensor], axes: Axes) -> Tensor:
    """The product of operands whose axes are put in the order of the result's."""
    *own, target = axes
    x, y = (t if a == target else ordered(t, a, target) for t, a in zip(operands, own, strict=True))
    return x * y


def ordered(t: Tensor, axes: list[str | int], target: list[str | int]) -> Tensor:
    """A tensor with its axes in the order of others', of length 1 where it has none."""
    moved = t.permute([axes.index(k) for k in target if k in axes])
    return moved[tuple(slice(None) if k in axes else None for k in target)]


def axes_of_others(equation: Any, k: int) -> tuple[int, ...]:
    """The axes of an einsum's result, from the end, that its k-th operand does not have: features of one position."""
    if not isinstance(equation, str) or "->" not in equation:
        return ()
    terms, result = equation.replace(" ", "").split("->")
    letters = result.rpartition("...")[2]
    own = terms.split(",")[k]
    return tuple(j - len(letters) for j, letter in enumerate(letters) if letter not in own)


def axis_of_letter(equation: str, k: int, axis: int) -> int | None:
    """The axis of an einsum's k-th operand, from the end, along an axis of its result; None for two of them."""
    terms, result = equation.replace(" ", "").split("->")
    term, letter = terms.split(",")[k].rpartition("...")[2], result[axis]
    return term.index(letter) - len(term) if term.count(letter) == 1 else None


def complex_einsum(call: Call, equation: str, operands: tuple[Tensor, ...]) -> Any:
    """An einsum of one activation: with one constant it is a layer, else in proportion."""
    if len(operands) == 2:
        return KINDS["complex matrix product"](call)
    return call.node(CompleteSum(call), [call.activations[0]])


@kind("added matrix product")
def added_matrix_product(call: Call) -> Any:
    """``beta · shift + alpha · x @ y``: a layer where one factor is a constant and the shift runs along its outputs."""
    shift, x, y = (call.arg(k, name) for k, name in enumerate(("input", *call.facts.factors)))
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    if (call.is_activation(shift) and beta) or any_complex(shift, x, y):
        return in_steps(call)
    if call.is_activation(x) and call.is_activation(y):
        return call.node(MatmulSite(call, gates_of(x, y)), [x, y])
    bias = per_output(shift, beta, y.shape[-1]) if call.name in ("addmm", "baddbmm") else None
    if call.inplace or not call.is_activation(x) or bias is NO_BIAS or call.name not in ("addmm", "baddbmm"):
        return in_steps(call)
    out = call.as_is("linear", [x])
    if out is not None:
        return out
    weight = y if alpha == 1 else y * alpha
    if call.name == "addmm":
        return linear_node(call, Dense(call, weight.mT, bias), x)
    site = AnyLinear(call, weight, torch.bmm, own_axes=(-1,))
    site.weight_axis = -1
    site.own_bias = None if bias is None else bias.detach()
    return linear_node(call, site, x)


#: Stands for a shift that is not one value per output.
NO_BIAS = torch.empty(0)


def per_output(shift: Tensor, beta: float, outputs: int) -> Tensor | None:
    """The shift of a product as a bias: one value per output; None where it is 0, ``NO_BIAS`` where it is no bias."""
    if beta == 0:
        return None
    if shift.numel() != shift.shape[-1:].numel() or shift.numel() not in (1, outputs):
        return NO_BIAS
    bias = shift.reshape(-1).expand(outputs)
    return bias if beta == 1 else bias * beta


@kind("bilinear")
def bilinear(call: Call) -> Any:
    left, right, w, b = (call.arg(k, n) for k, n in enumerate(("input1", "input2", "weight", "bias")))
    if call.is_activation(left) and call.is_activation(right):
        return call.node(MatmulSite(call), [left, right])
    if call.is_activation(left):
        right = right.detach()
        site = AnyLinear(call, w, lambda a, v: F.bilinear(a, right.to(a.dtype), v), own_axes=(-1,))
        site.weight_axis = 0
    else:
        left = left.detach()
        site = AnyLinear(call, w, lambda a, v: F.bilinear(left.to(a.dtype), a, v), own_axes=(-1,))
        site.weight_axis = 0
    site.own_bias = None if b is None else b.detach()
    return linear_node(call, site, call.activations[0])
