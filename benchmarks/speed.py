"""Time of one relevance map, as a ratio to one plain input gradient of the same model and batch.

Absolute times mean little on a shared machine, so that methods take turns: a round is one gradient, then one map by
each method, in one process. The ratio within a round counts; the median over the rounds is reported, for CPU time and
for wall time.

    python benchmarks/speed.py                         # ours, zennit, captum, LXT on three models, batch 1 and 8
    python benchmarks/speed.py --models swin_t convnext_tiny --batch 32 --rounds 3 --peers none
    python benchmarks/speed.py --device cuda --batch 1 64
"""

from __future__ import annotations

import argparse
import copy
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

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from tests.helpers.torchvision_cpu import import_torchvision

OURS = ("epsilon", "epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1", "attnlrp", "auto")
ZENNIT = ("zennit epsilon", "zennit epsilon_plus", "zennit epsilon_gamma_box", "zennit epsilon_alpha2_beta1")
PEERS = {"all": (*ZENNIT, "captum", "lxt"), "none": ()}


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


def lxt(model: nn.Module, _: str = "") -> Callable[[Tensor], Tensor]:
    """LXT's efficient ViT; it patches torch's classes for the whole process, so here they are swapped for each call."""
    from torchvision.models import vision_transformer
    from transformers import pytorch_utils

    if not isinstance(model, vision_transformer.VisionTransformer):
        raise NotImplementedError("LXT has no patches for it")
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward"):
        if not hasattr(pytorch_utils, name):
            setattr(pytorch_utils, name, None)  # LXT's BERT imports what transformers 5 dropped; a ViT needs none of it
    from lxt.efficient.models.vit_torch import cp_LRP

    originals = {cls: dict(vars(cls)) for cls in cp_LRP}
    for cls, patch in cp_LRP.items():
        patch(cls)
    patched = {cls: {k: v for k, v in vars(cls).items() if originals[cls].get(k) is not v} for cls in cp_LRP}

    def swap(methods: dict[type, dict]) -> None:
        for cls, changed in patched.items():
            for name in changed:
                setattr(cls, name, methods[cls].get(name))

    swap(originals)
    gradient = plain_gradient(model)

    def run(x: Tensor) -> Tensor:
        swap(patched)
        try:
            return gradient(x) * x
        finally:
            swap(originals)

    return run


def method(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """A method by the name of its column."""
    if name.startswith("zennit "):
        return zennit(model, name.removeprefix("zennit "))
    return {"captum": captum, "lxt": lxt}.get(name, ours)(model, name)


def timed(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """CPU time and wall time of one call."""
    gc.collect()
    if x.is_cuda:
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    R = f(x.clone())
    if x.is_cuda:
        torch.cuda.synchronize()
    del R
    return time.process_time() - cpu, time.perf_counter() - wall


def ratios(model: nn.Module, x: Tensor, names: list[str], rounds: int) -> dict[str, str]:
    """What to show of each method: medians of both ratios, or why there are none."""
    gradient, runs, cells = plain_gradient(model), {}, {}
    for name in names:
        try:
            # a peer that raises may leave the model changed
            runs[name] = method(model if name in OURS else copy.deepcopy(model), name)
            timed(runs[name], x)
        except Exception as error:  # a peer that does not run on this model is a result, too
            runs.pop(name, None)
            cells[name] = f"raises {type(error).__name__}"
    timed(gradient, x)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    seconds = []
    for _ in range(rounds):
        base = timed(gradient, x)
        seconds.append(base[1])
        for name, run in runs.items():
            found[name].append(tuple(mine / its for mine, its in zip(timed(run, x), base, strict=True)))
    for name, pairs in found.items():
        cpu, wall = (statistics.median(column) for column in zip(*pairs, strict=True))
        cells[name] = f"{cpu:.2f} ({wall:.2f})"
    rate = len(x) / statistics.median(seconds)
    return {"gradients per second": f"{rate:.3g}", **{name: cells[name] for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50", "vit_b_16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--methods", nargs="+", default=list(OURS))
    parser.add_argument("--peers", choices=list(PEERS), default="all")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    names = [*args.methods, *PEERS[args.peers]]
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    print(
        f"{datetime.date.today()}, torch {torch.__version__}, {device}, {args.threads} threads; "
        f"median of {args.rounds} rounds, CPU time (wall time)"
    )
    print(
        "| model | batch | gradients per second | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 3) + "|",
        flush=True,
    )
    for name in args.models:
        model = build(name, args.device)
        for batch in args.batch:
            cells = ratios(model, torch.randn(batch, 3, 224, 224, device=args.device), names, args.rounds)
            print(f"| {name} | {batch} | " + " | ".join(cells.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
