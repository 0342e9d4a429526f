"""A model on another device for a while."""

from __future__ import annotations

import torch
from torch import nn

from .as_found import Frame


class OnDevice(Frame):
    """Moves the model, and back at the end; nothing moves where it is there, or spread over devices on purpose."""

    def __init__(self, model: nn.Module, device: torch.device | None) -> None:
        super().__init__()
        self.model = model
        self.device = device

    def begin(self) -> None:
        homes = {tensor.device for tensor in (*self.model.parameters(), *self.model.buffers())}
        if self.device is None or len(homes) != 1 or homes == {self.device}:
            return
        (home,) = homes
        self.undoing(lambda: self.model.to(home))
        self.model.to(self.device)


def on_device(model: nn.Module, device: torch.device | None) -> OnDevice:
    """Hold the model on a device for the duration of the context; None leaves it where it is."""
    return OnDevice(model, device)
