"""Which form an explanation of a trace is made in: that of coefficients where it can be, else the reference form."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .backward import NOT_FINITE, ON_ZERO
from .nodes import NoCoefficient

#: What autograd says of a tensor that it kept and that was written into, or given back to the model without its graph.
WRITTEN_OVER = ("modified by an inplace operation", "detached in-place", "returns multiple views")


def in_either_form(explain: Callable[..., Any]) -> Callable[..., Any]:
    """Explanations that a bound trace makes as it is, where it has coefficients; else it is recorded once more."""

    signature = inspect.signature(explain)

    @functools.wraps(explain)
    def run(trace: Any, *args: Any, **options: Any) -> Any:
        if trace.bound:
            asked = signature.bind(trace, *args, **options).arguments
            target = asked.get("target", asked.get("targets"))
            trace.asked_last = target[0] if isinstance(target, list) and target else target, asked.get("seed", "logit")
            if not any(asked.get(name) for name in ("composite", "account", "condition", "at")):
                try:
                    return explain(trace, *args, **options)
                except NoCoefficient as reason:
                    why = str(reason)
                except RuntimeError as error:
                    if not any(refusal in str(error) for refusal in WRITTEN_OVER):
                        raise
                    why = str(error)
                if why not in (ON_ZERO, NOT_FINITE):
                    trace.when_unbound(why)
            else:
                why = "more was asked for than maps by the composite that was bound"
            trace.unbind(why)
        return explain(trace, *args, **options)

    return run


def in_reference_form(explain: Callable[..., Any]) -> Callable[..., Any]:
    """Explanations that need the reference form."""

    @functools.wraps(explain)
    def run(trace: Any, *args: Any, **options: Any) -> Any:
        trace.unbind(f"{explain.__name__} was asked for")
        return explain(trace, *args, **options)

    return run
