"""Every claim of the table of facts, on the samples of PyTorch's operator database and on random inputs.

Each torch function that a sample's operator calls is caught with its arguments, and called again with the activations
scaled, turned non-negative or zero: what its row claims must then hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

pytest.importorskip("expecttest")
from torch.testing._internal.common_methods_invocations import op_db

from saliency_lrp.engine.interception import canonical_name
from saliency_lrp.errors import InputError
from saliency_lrp.functions import facts
from saliency_lrp.sites.call import Call

#: How many samples of an operator are tried.
SAMPLES = 4


class Nowhere:
    """Stands for the interceptor of a call that is only looked at."""

    binding = None

    def location(self) -> tuple[str, None]:
        return "", None


class Caught(TorchFunctionMode):
    """Notes the calls of functions that have a row."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = canonical_name(func)
        if name in facts.TABLE and kwargs.get("out") is None:
            first, *others = [t for t in tree_leaves((args, kwargs)) if is_real(t)] or [None]
            if first is not None:
                tensors = [first, *(t for t in others if t.dim())]  # others without axes stand for numbers
                self.calls.append(Call(func, name, args, kwargs, tensors, False, Nowhere()))
        return func(*args, **kwargs)


def is_real(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point() and t.layout is torch.strided and t.numel() > 0


def again(call: Call, change: Callable[[Tensor], Tensor], constants: Callable = Tensor.clone) -> list[Tensor] | None:
    """The results of a call on other activations (and constants); None where it is not defined there."""
    ignored = [call.arg(*place) for place in call.facts.shape_only]

    def swap(v: Any) -> Any:
        if isinstance(v, Tensor) and not any(v is i for i in ignored):
            return (change if call.is_activation(v) else constants)(v.detach())
        return v

    try:
        torch.manual_seed(3)
        with torch.no_grad():
            out = call.func(*tree_map(swap, call.args), **tree_map(swap, call.kwargs))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    found = [t for t in tree_leaves(out) if is_real(t)]
    return found if all(bool(torch.isfinite(t).all()) for t in found) else None


def values(t: Tensor) -> Tensor:
    return t.double() + torch.zeros_like(t, dtype=torch.float64)


def homogeneous(call: Call) -> bool:
    """f(t a) − f(0) = t (f(a) − f(0)); numbers among the arguments stay as they are."""
    found = [again(call, lambda t, k=k: t * k) for k in (0.0, 1.0, 3.0, 0.5)]
    if any(f is None for f in found):
        return True
    for zero, one, three, half in zip(*found, strict=True):
        for k, other in ((3.0, three), (0.5, half)):
            tolerance = max(1e-6, 8 * torch.finfo(one.dtype).eps)
            if not torch.allclose(values(other) - zero, k * (values(one) - zero), rtol=tolerance, atol=tolerance):
                return False
    return True


def zero_to_zero(call: Call) -> bool:
    others = [t for t in tree_leaves((call.args, call.kwargs)) if is_real(t) and not call.is_activation(t)]
    if others and call.facts.kind != "activation":
        return True  # constants without axes, which may be added
    return all(not t.any() for t in again(call, torch.zeros_like) or ())


def never_negative(call: Call) -> bool:
    draws = (lambda t: t, lambda t: -t, lambda t: torch.randn_like(t), lambda t: torch.rand_like(t))
    return all(bool((t >= 0).all()) for draw in draws for t in again(call, draw) or ())


def keeps_sign(call: Call) -> bool:
    draws = (torch.abs, lambda t: torch.rand_like(t) * 3, lambda t: torch.randn_like(t).clamp(min=0))
    return all(bool((t >= -1e-12).all()) for draw in draws for t in again(call, draw, torch.abs) or ())


def elementwise(call: Call) -> bool:
    """Another first value changes no other value of the result."""
    x = call.activations[0]
    one = again(call, lambda t: t.clone())

    def moved(t: Tensor) -> Tensor:
        if t.data_ptr() != x.data_ptr():
            return t.clone()
        return torch.cat([t.reshape(-1)[:1] + 0.25, t.reshape(-1)[1:]]).reshape(t.shape)

    other = again(call, moved)
    if one is None or other is None or x.dim() == 0 or any(t.shape != x.shape for t in one):
        return True
    return all(torch.equal(a.reshape(-1)[1:], b.reshape(-1)[1:]) for a, b in zip(one, other, strict=True))


CLAIMS = {f.__name__: f for f in (homogeneous, zero_to_zero, never_negative, keeps_sign, elementwise)}


def calls_of(op: Any) -> Iterator[Call]:
    spellings = [f for f in (op.get_op(), op.get_method()) if f]
    for f in spellings:
        for k, sample in enumerate(op.sample_inputs("cpu", torch.float64, requires_grad=False)):
            if k == SAMPLES:
                break
            with Caught() as caught, torch.no_grad():
                try:
                    torch.manual_seed(3)
                    f(sample.input, *sample.args, **sample.kwargs)
                except (RuntimeError, ValueError, TypeError):
                    continue
            yield from caught.calls[:6]


OPERATORS = [op for op in op_db if op.supports_autograd and torch.float64 in op.dtypes]


@pytest.mark.parametrize("part", range(8))
@pytest.mark.filterwarnings("ignore")
def test_claims_hold_on_the_operators_of_torch(part):
    broken = set()
    for op in OPERATORS[part::8]:
        for call in calls_of(op):
            for claim, holds in CLAIMS.items():
                if call.says(claim) and not holds(call):
                    broken.add(f"{call.name} is not {claim}")
    assert not broken, sorted(broken)


UNARY = sorted(name for name, row in facts.TABLE.items() if row.kind == "activation" and hasattr(torch.Tensor, name))


@pytest.mark.parametrize("name", UNARY)
def test_claims_of_activations_hold_on_random_inputs(name):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    bounds = [(-1.0, 2.0), (-2.0, -0.5), (0.0, 6.0), (0.5, 2.0), (None, 1.0), (-1.0, None)]
    arguments: dict[str, list[tuple]] = {
        **dict.fromkeys(("clamp", "clip"), bounds),
        "clamp_min": [(-1.0,), (0.0,), (0.5,)],
        "clamp_max": [(-1.0,), (0.0,), (0.5,)],
        **dict.fromkeys(("pow", "float_power", "__pow__"), [(2,), (3,), (-1,), (-2,), (0.5,), (0,)]),
        "prelu": [(torch.tensor([0.3], dtype=torch.float64),)],
    }
    for more in arguments.get(name, [()]):
        call = Call(getattr(torch.Tensor, name), name, (x, *more), {}, [x], False, Nowhere())
        for claim, holds in CLAIMS.items():
            assert not call.says(claim) or holds(call), (name, more, claim)


@pytest.mark.parametrize(
    ("call", "claim"),
    [
        (lambda x: (torch.nn.functional.hardtanh, (x, -3.0, -0.5)), "keeps_sign"),
        (lambda x: (torch.lerp, (x, x, 2.0)), "keeps_sign"),
        (lambda x: (torch.diff, (x,)), "keeps_sign"),
        (lambda x: (torch.addcmul, (x, x, x)), "homogeneous"),
        (lambda x: (torch.Tensor.masked_fill, (x, x > 0, -1.0)), "keeps_sign"),
        (lambda x: (torch.nn.functional.pad, (x, (1, 1), "constant", -1.0)), "keeps_sign"),
        (lambda x: (torch.clamp, (x, 0.5, 1.0)), "zero_to_zero"),
        (lambda x: (torch.trapezoid, (x, x)), "homogeneous"),
    ],
)
def test_claims_that_depend_on_arguments_are_not_made(call, claim):
    x = torch.rand(3, 4, dtype=torch.float64)
    func, args = call(x)
    made = Call(func, canonical_name(func), args, {}, [x], False, Nowhere())
    assert not made.says(claim)


def test_a_second_row_for_a_function_raises():
    with pytest.raises(InputError, match="relu"):
        facts.rows("activation", "relu")
