"""Import torchvision on a CPU-only PyTorch.

torchvision's published wheel is a CUDA build: its import expects two operators that only its compiled library
defines. Declaring their schemas is enough for everything in torchvision that is plain PyTorch (models,
transforms, weights). Tests and benchmarks use this; the package itself never declares foreign operators.
"""

from __future__ import annotations

from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_library: torch.library.Library | None = None  # the declarations live as long as this object does


def import_torchvision() -> ModuleType:
    """Return the ``torchvision`` module, declaring its missing operators first where they are missing."""
    global _library
    try:
        import torchvision
    except RuntimeError:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                _library.define(name + _SCHEMA)
        import torchvision
    return torchvision
