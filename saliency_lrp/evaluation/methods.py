"""Methods as functions of (model, inputs, targets); maps as arrays; the way into Quantus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..composites import Composite
from ..errors import InputError
from ..explainers import registry
from ..model.devices import device_of, named_device
from ..rules import Rule

#: a function of (model, inputs, targets) that returns maps like the inputs
ExplainFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
Method = str | Composite | Rule | ExplainFunction | Tensor | np.ndarray


def channel_sum(maps: Any) -> np.ndarray:
    """(N, C, H, W) maps as (N, 1, H, W) float64."""
    maps = maps.detach().cpu().numpy() if isinstance(maps, Tensor) else np.asarray(maps)
    return maps.astype(np.float64).sum(axis=1, keepdims=True)


def explain_function(method: str | Composite | Rule | ExplainFunction, **options: Any) -> ExplainFunction:
    """A method by name, a composite, a rule, or a function, as a function of (model, inputs, targets)."""
    if isinstance(method, (Composite, Rule)):
        method, options = "lrp", {"composite": method, **options}
    if isinstance(method, str):
        registry.find(method)  # a wrong name is an error now, not a failed method later
        name = method

        def explain(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            return registry.get(name, model, **options).explain(inputs, targets)

        return explain
    if callable(method):
        return method
    raise InputError(
        f"a method is a name, a composite, a rule, a function of (model, inputs, targets), or maps like the inputs; "
        f"got {type(method).__name__}"
    )


def quantus_explain_func(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    method: str | Composite | Rule = "lrp",
    sum_channels: bool = True,
    device: Any = None,
    **options: Any,
) -> np.ndarray:
    """Explain in the way Quantus asks for: pass it as ``explain_func`` to any Quantus metric.

    Parameters
    ----------
    model : torch.nn.Module
        What is explained.
    inputs : ndarray or Tensor, shape (N, C, ...)
        What it is given.
    targets : ndarray, Tensor or int
        Classes.
    method : str, Composite or Rule
        A name of ``list_methods()``, or what LRP should follow.
    sum_channels : bool
        Sum over the channels, (N, 1, ...), as Quantus' own functions do.
    device : optional
        Where to explain; by default where the model is.
    **options
        Of the method, such as ``composite="epsilon_plus"``.

    Examples
    --------
    >>> metric = quantus.RelevanceRankAccuracy(abs=False, normalise=False)          # doctest: +SKIP
    >>> metric(model, x, y, s_batch=masks, explain_func=quantus_explain_func,
    ...        explain_func_kwargs={"method": "lrp:epsilon_plus"})                  # doctest: +SKIP
    """
    where = device_of(model) if device is None else named_device(device)
    x = torch.as_tensor(inputs, dtype=torch.get_default_dtype()).to(where)
    y = torch.as_tensor(targets).to(where)
    maps = explain_function(method, **options)(model, x, y)
    return channel_sum(maps) if sum_channels else maps.detach().cpu().numpy()


def labeled(methods: Method | Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    """Methods with their labels."""
    if isinstance(methods, Mapping):
        return dict(methods)
    if isinstance(methods, str):
        return {methods: methods}
    named = list(methods)  # type: ignore[arg-type]  # what is no list says so itself
    for method in named:
        if not isinstance(method, str):
            raise InputError(
                f"methods without names are strings, got {type(method).__name__}: give a dict, {{'my method': ...}}"
            )
    return {method: method for method in named}
