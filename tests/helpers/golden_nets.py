"""The networks of the golden data, built from their manifests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.golden import array, manifest


def load(model: nn.Module, family: str, npz: str, params: dict[str, str], dtype: torch.dtype) -> nn.Module:
    """Fill a model's parameters from stored arrays, strictly, and put it in eval mode."""
    state = {name: torch.from_numpy(array(family, npz, key)) for name, key in params.items()}
    missing, unexpected = model.to(dtype).load_state_dict(state, strict=False)  # in this order: weights may be float64
    assert not unexpected and all("num_batches" in name for name in missing), (missing, unexpected)
    return model.eval()


def layer(spec: tuple[str, dict], family: str, case: dict, dtype: torch.dtype) -> nn.Module:
    """One torch.nn layer of a layer case."""
    name, args = spec
    made = getattr(nn, name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})
    params = {k: case["arrays"][k] for k in ("weight", "bias", "running_mean", "running_var") if k in case["arrays"]}
    return load(made, family, case["npz"], params, dtype) if params else made.to(dtype).eval()


def sequential(specs: list[dict]) -> nn.Sequential:
    """A chain as the Pytorch-LRP family describes it."""
    return nn.Sequential(*[
        getattr(nn, s["type"])(**{k: tuple(v) if isinstance(v, list) else v for k, v in s["args"].items()})
        for s in specs
    ])  # fmt: skip


class MnistNet(nn.Module):
    """The functional network of Pytorch-LRP's own example, with the modules it calls in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(F.dropout2d(self.conv2(x), training=self.training), 2))
        x = F.dropout(F.relu(self.fc1(x.view(-1, 320))), training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class Add(nn.Module):
    """An addition with a name, so that relevance can be asked for there."""

    def forward(self, *summands: Tensor) -> Tensor:
        return sum(summands[1:], summands[0])


class Graph(nn.Module):
    """An iNNvestigate net: nodes in order, each with inputs by name. A fused activation is the child ``name_act``."""

    def __init__(self, nodes: list[dict], channels: int) -> None:
        super().__init__()
        self.nodes = nodes
        widths = {"in": channels}
        for node in nodes:
            made, widths[node["name"]] = self._made(node, widths[node["inputs"][0]])
            self.add_module(node["name"], made)
            if node["args"].get("act") == "relu":
                self.add_module(f"{node['name']}_act", nn.ReLU())

    @staticmethod
    def _made(node: dict, width: int) -> tuple[nn.Module, int]:
        a = node["args"]
        how = {"bias": a.get("bias", True)}
        table = {
            "dense": lambda: (nn.LazyLinear(a["out"], **how), a["out"]),
            "conv2d": lambda: (nn.Conv2d(width, a["out"], a["k"], a["stride"], a["padding"], **how), a["out"]),
            "maxpool2d": lambda: (nn.MaxPool2d(a["k"]), width),
            "avgpool2d": lambda: (nn.AvgPool2d(a["k"]), width),
            "global_avgpool2d": lambda: (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), width),
            "batchnorm2d": lambda: (nn.BatchNorm2d(width, eps=a["eps"]), width),
            "flatten": lambda: (nn.Flatten(), width),
            "relu": lambda: (nn.ReLU(), width),
            "add": lambda: (Add(), width),
        }
        return table[node["op"]]()

    def forward(self, x: Tensor) -> Tensor:
        values = {"in": x}
        for node in self.nodes:
            out = getattr(self, node["name"])(*[values[i] for i in node["inputs"]])
            if node["args"].get("act") == "relu":
                out = getattr(self, f"{node['name']}_act")(out)
            values[node["name"]] = out
        return out


def innvestigate_net(name: str, dtype: torch.dtype) -> Graph:
    net = manifest("innvestigate")["nets"][name]
    return load(Graph(net["nodes"], net["input_shape_nchw"][1]), "innvestigate", "cases.npz", net["params"], dtype)


class Cnn(nn.Sequential):
    """cnn of the zennit and captum families."""

    def __init__(self) -> None:
        super().__init__()
        for name, made in {
            "c1": nn.Conv2d(2, 4, 3, padding=1), "r1": nn.ReLU(), "p1": nn.MaxPool2d(2),
            "c2": nn.Conv2d(4, 5, 3), "r2": nn.ReLU(), "p2": nn.AvgPool2d(2), "f": nn.Flatten(),
            "d1": nn.Linear(5, 6), "r3": nn.ReLU(), "d2": nn.Linear(6, 4),
        }.items():  # fmt: skip
            self.add_module(name, made)


class CnnBn(nn.Sequential):
    """cnn_bn of the zennit and captum families."""

    def __init__(self) -> None:
        super().__init__()
        for name, made in {
            "c1": nn.Conv2d(2, 4, 3), "b1": nn.BatchNorm2d(4), "r1": nn.ReLU(),
            "c2": nn.Conv2d(4, 4, 3, padding=1), "b2": nn.BatchNorm2d(4), "r2": nn.ReLU(),
            "p": nn.AvgPool2d(2), "f": nn.Flatten(), "d1": nn.Linear(16, 3),
        }.items():  # fmt: skip
            self.add_module(name, made)


class Res(nn.Module):
    """res of the zennit and captum families."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (nn.Conv2d(i, 4, 3, padding=1) for i in (2, 4, 4))
        self.r1, self.r2, self.r3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.p, self.f, self.d1 = nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.r1(self.c1(x))
        h = self.r3(h + self.c3(self.r2(self.c2(h))))
        return self.d1(self.f(self.p(h)))


class Mlp(nn.Sequential):
    """mlp of the zennit and captum families."""

    def __init__(self) -> None:
        super().__init__()
        for name, made in {
            "d1": nn.Linear(7, 8), "r1": nn.ReLU(), "d2": nn.Linear(8, 6), "r2": nn.ReLU(), "d3": nn.Linear(6, 4)
        }.items():  # fmt: skip
            self.add_module(name, made)


PEER_NETS = {"cnn": Cnn, "cnn_bn": CnnBn, "res": Res, "mlp": Mlp}


def peer_net(family: str, case: dict, dtype: torch.dtype) -> nn.Module:
    return load(PEER_NETS[case["net"]](), family, case["npz"], case["params"], dtype)
