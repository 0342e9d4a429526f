"""The model's card: what every door asks of a model before it explains it, read in one visit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..images import Preprocessing, input_channels, preprocessing_of
from .answer import ClassNames, class_names
from .devices import device_of


@dataclass(frozen=True)
class Card:
    """What is known of a model from its modules and attributes alone.

    Attributes
    ----------
    device : torch.device
        Of its first parameter or buffer; the CPU where it has none.
    dtype : torch.dtype or None
        Of its first floating-point parameter; None where it has none, and takes what it is given.
    channels : int or None
        Channels that its first 2-D convolution takes.
    names : sequence or mapping of str, or None
        Names of classes that it carries.
    preprocessing : Preprocessing
        From a picture to its input.
    """

    device: torch.device
    dtype: torch.dtype | None
    channels: int | None
    names: ClassNames | None
    preprocessing: Preprocessing

    def fitting(self, x: Tensor) -> Tensor:
        """``x`` detached, on the model's device and in its precision."""
        return x.detach().to(self.device, self.dtype if self.dtype is not None else x.dtype)


def read_card(model: nn.Module) -> Card:
    """Ask a model, already taken out of its wrappers, everything at once."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return Card(device_of(model), dtype, input_channels(model), class_names(model), preprocessing_of(model))
