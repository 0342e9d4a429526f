"""Preprocessing as other libraries spell it, as one function from a PIL image to a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..errors import InputError

Transform = Callable[[Any], Any]


def _of_hugging_face(transform: Any) -> Transform | None:
    """An image processor of transformers, or a processor or pipeline that holds one."""
    processor = getattr(transform, "image_processor", transform)
    if not callable(getattr(processor, "preprocess", None)) or "pixel_values" not in getattr(
        processor, "model_input_names", ()
    ):
        return None
    return lambda picture: processor(picture, return_tensors="pt")["pixel_values"]


def _of_albumentations(transform: Any) -> Transform | None:
    """A transform of albumentations, which takes and gives arrays by name."""
    if not type(transform).__module__.partition(".")[0].startswith("albument"):
        return None

    def run(picture: Any) -> Any:
        found = transform(image=np.asarray(picture))["image"]
        if isinstance(found, np.ndarray):  # without its ToTensorV2 the channels stay last, and bytes stay bytes
            scale = 255.0 if found.dtype == np.uint8 else 1.0
            found = torch.from_numpy(np.ascontiguousarray(found.transpose(2, 0, 1)) / scale).float()
        return found

    return run


#: each makes a function of what it knows, or gives None
ADAPTERS: tuple[Callable[[Any], Transform | None], ...] = (_of_hugging_face, _of_albumentations)


def as_function(transform: Any) -> Transform:
    """What ``transform=`` was given, as a function from a PIL image to C x H x W or 1 x C x H x W.

    Parameters
    ----------
    transform : callable, image processor or pipeline
        torchvision's and timm's transforms are functions already; transformers' image processors, processors and
        pipelines, and albumentations' transforms are made one.

    Raises
    ------
    InputError
        For what is none of these.
    """
    for adapter in ADAPTERS:
        found = adapter(transform)
        if found is not None:
            return found
    if not callable(transform) or isinstance(transform, Mapping):
        raise InputError(
            f"transform= should be a function from a PIL image to a tensor, or an image processor, not "
            f"{type(transform).__name__}: {transform!r:.80}"
        )
    return transform
