"""Small networks for the saliency tests, and a fingerprint of everything an explanation must not change."""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModuleNet(nn.Module):
    """Every activation is a module of its own: what captum's hooks need."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.first(x)))
        return self.head(self.relu2(self.second(x)).mean((2, 3)))


class FunctionalNet(ModuleNet):
    """The same function by functional and in-place activations."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.relu_()
        x = F.avg_pool2d(x, 2)
        x = F.relu(self.second(x), inplace=True)
        return self.head(x.mean((2, 3)))


class ReusedNet(ModuleNet):
    """The same function with one ReLU module used twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.first(x)))
        return self.head(self.relu1(self.second(x)).mean((2, 3)))


class BlockNet(nn.Module):
    """Looks at one block of its input and at nothing else: class 1 is the sum over the block."""

    def __init__(self, rows: slice, columns: slice, preprocessing: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        if preprocessing is not None:
            self.preprocessing = preprocessing

    def forward(self, x: Tensor) -> Tensor:
        block = x[:, :, self.rows, self.columns].sum((1, 2, 3))
        return torch.stack([torch.zeros_like(block), block], 1)


def twins(*kinds: type[ModuleNet], seed: int = 0) -> list[ModuleNet]:
    """Networks of several kinds with the same weights."""
    torch.manual_seed(seed)
    first = kinds[0]()
    nets = [first, *(kind() for kind in kinds[1:])]
    for net in nets[1:]:
        net.load_state_dict(first.state_dict())
    return nets


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms with the statistics of `x`, so that activations neither vanish nor explode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        model.train()(x)
    return model


def _sum(tensor: Tensor | None) -> int | None:
    return None if tensor is None else zlib.crc32(tensor.detach().numpy().tobytes())


HOOKS = [name for name in vars(nn.Module()) if name.endswith(("hooks", "hooks_with_kwargs", "hooks_always_called"))]


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model (and the random numbers) that an explanation must leave alone."""
    found: dict[str, Any] = {"rng": _sum(torch.get_rng_state())}
    for name, module in model.named_modules():
        found[f"{name}.training"] = module.training
        found[f"{name}.attributes"] = sorted(module.__dict__)
        found[f"{name}.forward"] = module.__dict__.get("forward")
        for table in HOOKS:
            found[f"{name}.{table}"] = dict(getattr(module, table))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"{name}.values"] = _sum(tensor)
        found[f"{name}.state"] = (id(tensor), tensor.requires_grad, tensor.device, tensor.dtype, id(tensor.grad))
        found[f"{name}.grad"] = _sum(tensor.grad)
    return found
