"""How many samples fit in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..model.devices import free_bytes, most_samples


@contextmanager
def _activation_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Collect the sizes of the outputs of all leaf modules."""
    sizes: list[int] = []

    def note(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [m.register_forward_hook(note) for m in model.modules() if not list(m.children())]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def samples_per_pass(model: nn.Module, x: Tensor, run: Callable[[Tensor], object], gradient: bool) -> int:
    """How many samples like those of `x` go through the model at once.

    Parameters
    ----------
    model : torch.nn.Module
        What is run.
    x : Tensor
        (N, ...) input; `run` is called once on it, without gradients.
    run : callable
        Runs the model on a tensor like `x`.
    gradient : bool
        Whether all activations are kept for a backward pass, or only the largest few live.

    Returns
    -------
    int
        At least 1.
    """
    with _activation_bytes(model) as sizes, torch.no_grad():
        run(x)
    sizes.append(x.numel() * x.element_size())
    per_sample = (3 * sum(sizes) if gradient else 6 * max(sizes)) / x.shape[0]
    fitting = int(free_bytes(x.device) / max(per_sample, 1))
    return max(1, min(fitting, most_samples(x.device)))
