"""Time of one relevance map, as a ratio to one plain input gradient of the same model and batch.

Absolute times mean little on a shared machine, so every measurement is a pair: the gradient, then the method, in one
process; the ratio of a pair counts, and the median over the pairs is reported, for CPU time and for wall time.

    python benchmarks/speed.py                         # ours, zennit, captum on three models, batch 1
    python benchmarks/speed.py --models vgg16 --batch 1 8 --pairs 11 --markdown docs/performance-speed.md
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
from torchvision_cpu import import_torchvision  # noqa: E402

OURS = ("epsilon", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1", "attnlrp", "auto")
PEERS = ("zennit epsilon", "zennit epsilon_plus", "zennit epsilon_gamma_box", "zennit epsilon_alpha2_beta1", "captum")


def build(name: str, device: str) -> nn.Module:
    """A torchvision classifier with seeded random weights, parameters frozen, batch norms calibrated."""
    models = import_torchvision().models
    torch.manual_seed(0)
    model = models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        with torch.no_grad():
            model.train()(torch.randn(4, 3, 224, 224))
    for p in model.parameters():
        if p.dim() > 1 and not p.any():
            nn.init.normal_(p, 0, 0.02)  # torchvision zero-initialises the head of its ViT
    return model.eval().requires_grad_(False).to(device)


def plain_gradient(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What everything is measured against."""

    def run(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        out = model(x)
        return torch.autograd.grad(out.gather(1, out.argmax(1, keepdim=True)).sum(), x)[0]

    return run


def ours(model: nn.Module, composite: str) -> Callable[[Tensor], Tensor]:
    from saliency_lrp import LrpExplainer

    return LrpExplainer(model, composite=composite).explain


def zennit(model: nn.Module, composite: str) -> Callable[[Tensor], Tensor]:
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, LayerMapComposite
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Activation, AvgPool, Linear

    kind = {"ResNet": ResNetCanonizer, "VGG": VGGCanonizer}.get(type(model).__name__, SequentialMergeBatchNorm)
    canonizers = [kind()]
    rules = [(Activation, Pass()), (AvgPool, Norm()), (Linear, Epsilon())]
    made = {
        "epsilon": lambda: LayerMapComposite(rules, canonizers=canonizers),
        "epsilon_plus": lambda: EpsilonPlus(canonizers=canonizers),
        "epsilon_gamma_box": lambda: EpsilonGammaBox(low=-3.0, high=3.0, canonizers=canonizers),
        "epsilon_alpha2_beta1": lambda: EpsilonAlpha2Beta1(canonizers=canonizers),
    }[composite]()

    def run(x: Tensor) -> Tensor:
        with Gradient(model, composite=made) as attributor:
            return attributor(x, lambda out: torch.zeros_like(out).scatter_(1, out.argmax(1, keepdim=True), 1.0))[1]

    return run


def captum(model: nn.Module, _: str = "") -> Callable[[Tensor], Tensor]:
    from captum.attr import LRP

    def run(x: Tensor) -> Tensor:
        return LRP(model).attribute(x.requires_grad_(True), target=0)

    return run


def method(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """A method by the name of its column."""
    if name.startswith("zennit "):
        return zennit(model, name.removeprefix("zennit "))
    return captum(model) if name == "captum" else ours(model, name)


def ratio(model: nn.Module, x: Tensor, name: str, pairs: int) -> tuple[float, float] | str:
    """Median ratio of CPU time and of wall time; or why there is none."""
    gradient, run = plain_gradient(model), method(model, name)

    def timed(f: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        gc.collect()
        if x.is_cuda:
            torch.cuda.synchronize()
        cpu, wall = time.process_time(), time.perf_counter()
        R = f(x.clone())
        if x.is_cuda:
            torch.cuda.synchronize()
        del R
        return time.process_time() - cpu, time.perf_counter() - wall

    try:
        timed(gradient), timed(run)
    except Exception as error:  # a peer that does not run on this model is a result, too
        return f"raises {type(error).__name__}"
    cpu, wall = [], []
    for _ in range(pairs):
        base, mine = timed(gradient), timed(run)
        cpu.append(mine[0] / base[0])
        wall.append(mine[1] / base[1])
    return statistics.median(cpu), statistics.median(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50", "vit_b_16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--methods", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", help="also write the table to this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    header = (
        f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{args.device}; "
        f"median of {args.pairs} pairs, CPU time (wall time)"
    )
    print(header)
    lines = ["| model | batch | " + " | ".join(args.methods) + " |", "|" + "---|" * (len(args.methods) + 2)]
    print("\n".join(lines), flush=True)
    for name in args.models:
        model = build(name, args.device)
        for batch in args.batch:
            x = torch.randn(batch, 3, 224, 224, device=args.device)
            cells = []
            for m in args.methods:
                r = ratio(model, x, m, args.pairs)
                cells.append(r if isinstance(r, str) else f"{r[0]:.2f} ({r[1]:.2f})")
                print(f"    {name} {batch} {m}: {cells[-1]}", file=sys.stderr, flush=True)
            lines.append(f"| {name} | {batch} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if args.markdown:
        with open(args.markdown, "w") as f:
            f.write(f"{header}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
