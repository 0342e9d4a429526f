"""What is different from device to device: the one place to change for a new one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..errors import InputError

#: samples of one pass beyond which nothing gets faster: larger batches only cost a CPU cache misses
MOST_SAMPLES = {"cpu": 16, "cuda": 256}
OTHERWISE = 64
#: bytes that one pass on a CPU may take at most
CPU_BUDGET = 1 << 30
#: devices without float64
SINGLE_PRECISION = ("mps",)
#: devices with random states of their own
OWN_RANDOM_STATES = ("cuda", "xpu", "mps")


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def named_device(name: str | torch.device) -> torch.device:
    """The device of a name.

    Raises
    ------
    InputError
        If this machine has none of that kind.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(name)!r} was asked for but no CUDA device is available: leave device=None.")
    return device


def knows_cheaply(t: Tensor) -> bool:
    """Whether the values of a tensor can be looked at for free: a GPU would have to be waited for."""
    return t.device.type == "cpu"


def accumulator(t: Tensor) -> torch.dtype:
    """The dtype that long sums of a tensor are taken in: float64 where its device has that."""
    return torch.float32 if t.device.type in SINGLE_PRECISION else torch.float64


def free_bytes(device: torch.device) -> int:
    """Bytes that one pass may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return CPU_BUDGET
    return min(free // 4, CPU_BUDGET)


def most_samples(device: torch.device) -> int:
    """Samples that are worth one pass."""
    return MOST_SAMPLES.get(device.type, OTHERWISE)


def random_states(devices: set[torch.device]) -> Iterator[Callable[[], None]]:
    """For the CPU and each of these devices: what sets its random numbers back to where they are now."""
    yield functools.partial(torch.set_rng_state, torch.get_rng_state())
    for device in devices:
        if device.type in OWN_RANDOM_STATES:
            backend = getattr(torch, device.type)
            where = () if device.type == "mps" else (device,)
            yield functools.partial(backend.set_rng_state, backend.get_rng_state(*where), *where)
