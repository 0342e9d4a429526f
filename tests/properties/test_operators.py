"""PyTorch's own operator database: every differentiable operator on its own samples, function, method and in place.

Each call is a model of its own: what it returns, weighted and summed. Three things are asked of it.

* The forward pass is the plain one, bit for bit.
* Where the operator is affine or positively homogeneous, which is told by calling it at 0, 0.5, 1 and 3 times its
  input, LRP-ε (ε → 0) must be gradient × input by Euler's identity; where it is not, it is in the table of functions or
  the report names it.
* Nothing is raised but the package's own errors.

A few samples of each operator are tried; ``SALIENCY_LRP_EXHAUSTIVE=1`` tries all of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

pytest.importorskip("expecttest")
from torch.testing._internal.common_methods_invocations import op_db

from saliency_lrp import RelevancePropagator, rules
from saliency_lrp.errors import InputError
from saliency_lrp.functions import facts

#: How many samples of an operator in each spelling are tried.
SAMPLES = 10**6 if os.environ.get("SALIENCY_LRP_EXHAUSTIVE") else 4
EXACT = rules.Epsilon(1e-14)

OPERATORS = [op for op in op_db if op.supports_autograd and torch.float64 in op.dtypes]

#: What cannot be asked: the values of an uninitialised tensor, and what only a compiler calls.
NOT_ASKED = {"empty_like", "new_empty", "new_empty_strided", "empty_permuted", "empty", "empty_strided"}


class Operator(nn.Module):
    """An operator as a model: all that it returns, weighted, as one score."""

    def __init__(self, f: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        score: Any = 0.0
        for k, t in enumerate(t for t in tree_leaves(self.f(x)) if is_numeric(t)):
            t = torch.view_as_real(t) if t.is_complex() else t
            weights = torch.rand(t.shape, generator=torch.Generator().manual_seed(7 + k), dtype=torch.float64) + 0.5
            score = score + (t * weights.to(t.dtype)).sum()
        return torch.as_tensor(score).reshape(1, 1)


def is_numeric(t: Any) -> bool:
    numeric = isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
    return numeric and t.layout is torch.strided and t.numel() > 0


def spellings(op: Any) -> Iterator[tuple[str, Callable]]:
    yield "function", op.get_op()
    if op.get_method():
        yield "method", op.get_method()
    if op.get_inplace():
        yield "in place", lambda x, *args, **kwargs: op.get_inplace()(x.clone(), *args, **kwargs)


def cases(op: Any) -> Iterator[tuple[str, Callable[[Tensor], Any], Tensor]]:
    """Spelling, function of one tensor, and that tensor, for some samples of an operator."""
    for spelling, f in spellings(op):
        for k, sample in enumerate(op.sample_inputs("cpu", torch.float64, requires_grad=False)):
            if k == SAMPLES:
                break
            x, args, kwargs = sample.input, sample.args, sample.kwargs
            if is_numeric(x) and x.dtype == torch.float64:
                yield spelling, lambda x, f=f, a=args, kw=kwargs: f(x, *a, **kw), x.detach().clone()
            elif isinstance(x, (list, tuple)) and x and all(map(is_numeric, x)) and spelling == "function":
                sizes = [t.shape for t in x]

                def joined(x: Tensor, f=f, a=args, kw=kwargs, sizes=sizes) -> Any:
                    parts = x.split([size.numel() for size in sizes])
                    return f([p.reshape(size) for p, size in zip(parts, sizes, strict=True)], *a, **kw)

                yield spelling, joined, torch.cat([t.detach().reshape(-1) for t in x])


def seeded(net: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return net(x)


def plainly(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Score and gradient × input without the package; None where torch itself has none."""
    leaf = x.clone().requires_grad_()
    try:
        (g,) = torch.autograd.grad(seeded(net, leaf).sum(), leaf, allow_unused=True)
        with torch.no_grad():
            y = seeded(net, x)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return None
    if g is None:
        return None
    g = g.to_dense() if g.layout is not torch.strided else g
    found = y, x * g
    return found if all(bool(torch.isfinite(t).all()) for t in (x, *found)) else None


def is_homogeneous(net: nn.Module, x: Tensor, y: Tensor, gradient_x_input: Tensor) -> bool:
    """Whether f(x) − f(0) grows in proportion to x, and torch's own gradient is that of it."""
    with torch.no_grad():
        try:
            zero, half, three = (seeded(net, k * x).double() for k in (0.0, 0.5, 3.0))
        except (RuntimeError, ValueError, IndexError):
            return False
    change = y.double() - zero
    tolerance = {"rtol": 1e-9, "atol": 1e-12 * float(1 + y.abs().max())}
    return bool(
        torch.isfinite(zero).all()
        and change.abs().max() > 1e-9
        and torch.allclose(three - zero, 3 * change, **tolerance)
        and torch.allclose(half - zero, 0.5 * change, **tolerance)
        and torch.allclose(gradient_x_input.sum(), change, rtol=1e-5, atol=1e-9)
    )


def lowest_precision(op: Any) -> float:
    """How exact relevance can be that travels in an operator's own dtype."""
    return 2e-3 if op.name in ("half", "chalf") else 2e-2 if op.name == "bfloat16" else 1e-6


@pytest.mark.parametrize("op", OPERATORS, ids=[op.formatted_name for op in OPERATORS])
@pytest.mark.filterwarnings("ignore")
def test_an_operator_of_torch(op):
    if op.name in NOT_ASKED:
        pytest.skip("its values are not defined")
    for spelling, f, x in cases(op):
        check(op, spelling, Operator(f), x)


def check(op: Any, spelling: str, net: nn.Module, x: Tensor) -> None:
    expected = plainly(net, x)
    if expected is None:
        return
    y, gradient_x_input = expected
    homogeneous = is_homogeneous(net, x, y, gradient_x_input)
    torch.manual_seed(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = RelevancePropagator(net, EXACT).trace(x)
            R = trace.relevance(seed=trace.output.clone())
            report = trace.report()
    except InputError as error:
        assert any(words in str(error) for words in REFUSALS), (
            f"{op.name} ({spelling}) is refused in other words: {error}"
        )
        return
    # LAPACK rounds by where in memory a matrix lies
    same = torch.allclose(trace.output, y, rtol=1e-12) if op.name.startswith("linalg") else torch.equal(trace.output, y)
    # where gradients are recorded torch takes another kernel for some products
    same = same or torch.equal(trace.output, seeded(net, x.clone().requires_grad_()).detach())
    assert same, f"{op.name} ({spelling}): the forward pass is another"
    if homogeneous and not report.warnings:
        largest = max(float(gradient_x_input.abs().max()), 1e-12)
        error = float((R - gradient_x_input).abs().max())
        assert error <= lowest_precision(op) * largest, f"{op.name} ({spelling}): off by {error} of {largest}"
    if not homogeneous and not report.warnings:
        met = {site.op for site in trace.sites}
        assert met, f"{op.name} ({spelling}) was not seen"
        assert met <= KNOWN, f"{op.name} ({spelling}): {met - KNOWN} are neither in the table nor reported"


#: What a call may be refused for: each names what is the matter.
REFUSALS = ("does not depend on its input", "NaN or infinite", "given no tensor that relevance could be attributed to")
KNOWN = {name for name in facts.TABLE if isinstance(name, str)}
