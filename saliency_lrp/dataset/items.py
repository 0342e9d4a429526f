"""Where items come from: by number, the model's input, its own label, its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from . import identity

#: Files that count as images in a folder.
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .ppm .pgm".split())


class Unreadable(Exception):
    """An item that is skipped, and why."""


class Items:
    """Items by number: the model's input, the item's own label where it has one, and its name.

    Parameters
    ----------
    source : path, sequence, Tensor, numpy.ndarray, torch Dataset or DataLoader
        As in :func:`explain_dataset`.
    model : torch.nn.Module
        Whose preprocessing images get.
    transform : callable, optional
        From a PIL image to the model's tensor, in place of that preprocessing.
    """

    def __init__(self, source: Any, model: nn.Module, transform: Callable[[Any], Any] | None = None) -> None:
        self.names: list[str] | None = None
        self.transform = transform
        from ..images import input_channels, preprocessing_of

        self.preprocessing = preprocessing_of(model)
        self.channels = input_channels(model)
        if isinstance(source, (str, os.PathLike)):
            folder = Path(source)
            source = images_in(folder)
            self.names = [path.relative_to(folder).as_posix() for path in source]
        elif isinstance(source, torch.utils.data.DataLoader):
            source = in_order(source)
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise InputError(
                f"the data set must have a length and numbered items, so that a run can be resumed; a "
                f"{type(source).__name__} has not. Give a folder of images, a torch Dataset, a sequence or a tensor"
            )
        self.source = source
        if not len(self):
            raise InputError("the data set is empty")

    def __len__(self) -> int:
        return len(self.source)

    def name(self, k: int) -> str:
        """Path of an image in its folder, or the item's number; bytes that are no UTF-8 stand as ``\\xff``."""
        return str(k) if self.names is None else printable(self.names[k])

    def __getitem__(self, k: int) -> tuple[Tensor, int | None]:
        """Input, without the batch axis, and label.

        Raises
        ------
        Unreadable
            Whatever goes wrong in reading it; corrupt files must not stop a run.
        """
        try:
            found = self.source[k]
            label = None
            if isinstance(found, (tuple, list)) and found:
                label = int(found[1]) if len(found) > 1 and np.ndim(found[1]) == 0 else None
                found = found[0]
            value = self._tensor(found)
        except Exception as error:
            raise Unreadable(printable(f"{type(error).__name__}: {' '.join(str(error).split())}")) from error
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise Unreadable("it has values that are NaN or infinite")
        return value, label

    def _tensor(self, found: Any) -> Tensor:
        if isinstance(found, Tensor):
            return found.detach()
        if isinstance(found, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(found))
        from ..images import as_batch, load_image

        image = load_image(found)
        if self.transform is not None:
            return as_batch(self.transform(image.picture()))[0]
        return self.preprocessing(image, self.channels)[0]

    # ------------------------------------------------------------------ the same data as before?

    def identity(self) -> dict[str, Any]:
        """What tells this data set from another: names, sizes, the content of a sample, how images become tensors."""
        chosen = sorted({round(k) for k in np.linspace(0, len(self) - 1, identity.SAMPLE)})
        names = [] if self.names is None else self.names
        sizes = [str(self.source[k].stat().st_size) for k in range(len(names)) if self.source[k].exists()]
        return {
            "items": len(self),
            "names": identity.digest(*names),
            "sizes": identity.digest(*sizes),
            "data": identity.digest(*map(self._sampled, chosen)) if self._is_large() else identity.of(self.source),
            "transform": None if self.transform is None else identity.named(self.transform),
            "preprocessing": None if self.names is None else identity.plain_repr(self.preprocessing),
        }

    def _is_large(self) -> bool:
        """Whether only a sample is looked at: of all but tensors and arrays that are read in a moment."""
        return not isinstance(self.source, Tensor | np.ndarray) or self.source.nbytes > identity.AT_ONCE

    def _sampled(self, k: int) -> str:
        """The content of an item as it is in the source, where that is the same each time."""
        try:
            if self.names is not None:
                return identity.digest(self.source[k].read_bytes())
            first, again = (identity.of(self.source[k]) for _ in range(2))
        except Exception as error:  # noqa: BLE001  # a user's code, which may fail in any way
            return type(error).__name__
        return first if first == again else "another one each time"


def printable(text: str) -> str:
    """Text that can be printed and stored as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def images_in(folder: Path) -> list[Path]:
    """Image files below a folder, by name."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"folder {str(folder)!r} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def in_order(loader: torch.utils.data.DataLoader) -> Any:
    """The data set of a loader that reads it in order; another order could not be resumed."""
    if not isinstance(loader.sampler, torch.utils.data.SequentialSampler):
        raise InputError(
            f"the loader must read its data set in order, so that a run can be resumed, but its sampler is a "
            f"{type(loader.sampler).__name__}. Use shuffle=False, or give the data set itself"
        )
    return loader.dataset
