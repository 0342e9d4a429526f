"""What is asked of a method: this model, these images, these classes; and the maps that it answers with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..explainers.base import check_input, class_scores, resolve_target
from ..model.as_found import as_found
from ..model.unwrapped import unwrapped
from .methods import Method, channel_sum, explain_function

BATCH = 32


def asked(model: nn.Module, inputs: Any, targets: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """The model without wrappers, the images and one class for each; errors where they do not fit."""
    model = unwrapped(model)
    check_input(inputs)
    if inputs.dim() != 4:
        raise InputError(f"inputs should be images, (N, C, H, W); their shape is {tuple(inputs.shape)}")
    inputs = inputs.detach()
    with as_found(model), torch.no_grad():
        scores = torch.cat([class_scores(model(part)) for part in inputs.split(BATCH)])
        return model, inputs, resolve_target(scores, targets)


def maps_of(method: Method, model: nn.Module, inputs: Tensor, targets: Tensor, seed: int = 0) -> np.ndarray:
    """(N, 1, H, W) float64 maps of a method, or those given, summed over channels; refused where they do not fit."""
    if isinstance(method, Tensor | np.ndarray):
        maps: Any = method
    else:
        explain = explain_function(method)
        with as_found(model):  # which also gives the generator of random methods back
            torch.manual_seed(seed)
            parts = zip(inputs.split(BATCH), targets.split(BATCH), strict=True)
            maps = torch.cat([torch.as_tensor(explain(model, x, y)).detach() for x, y in parts])
    shape = tuple(maps.shape)
    n, c, *size = inputs.shape
    if shape not in ((n, c, *size), (n, 1, *size)):
        raise InputError(f"maps should have the shape of the inputs, {(n, c, *size)}, or {(n, 1, *size)}; got {shape}")
    maps = channel_sum(maps)
    if not np.isfinite(maps).all():
        raise InputError(f"{int((~np.isfinite(maps)).any(axis=(1, 2, 3)).sum())} maps have NaN or infinite values")
    return maps
