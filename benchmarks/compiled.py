"""A map as a graph: eager and compiled maps, as ratios to one eager plain gradient of the same model and batch.

A round is one of each, in one process; medians over the rounds. ``gradient`` is ``torch.autograd.grad`` of the
target's score, ``map`` is ``LrpExplainer``, ``graph`` the captured graph as it is, ``inductor`` the same under
``torch.compile``; ``compiled gradient`` is the gradient captured and compiled alike.

    python benchmarks/compiled.py --models resnet50 vit_b_16 --composites epsilon auto
    python benchmarks/compiled.py --device cuda --batch 1 64
    python benchmarks/compiled.py --equal     # the graph's map is the engine's, on 3 other inputs: float64
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from saliency_lrp import LrpExplainer, compile
from tests.helpers.torchvision_cpu import import_torchvision

EQUAL = (
    "resnet18 vgg11_bn mobilenet_v2 mobilenet_v3_small efficientnet_b0 squeezenet1_0 alexnet shufflenet_v2_x0_5 "
    "mnasnet0_5 regnet_y_400mf regnet_x_400mf convnext_tiny swin_t vit_b_32"
).split()


def build(name: str, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(name, weights=None)
    for head in (m for m in model.modules() if isinstance(m, nn.Linear)):
        if not head.weight.any():  # a vision transformer's head starts at zero
            nn.init.normal_(head.weight, std=0.02)
    return model.eval().to(device, dtype).requires_grad_(False)


def median_ratios(ways: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Time of each way over that of the first, round by round."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        seconds = {}
        for name, way in ways.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name] = clock() - start
        for name, took in seconds.items():
            ratios[name].append(took / seconds[next(iter(ways))])
    return {name: statistics.median(values) for name, values in ratios.items()}


def measure(name: str, batch: int, composite: str, device: str, rounds: int, inductor: bool) -> str:
    model, x = build(name, device), torch.randn(batch, 3, 224, 224, device=device)
    target = torch.zeros(batch, dtype=torch.long, device=device)

    def gradient(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(model(z)[:, 0].sum(), z)[0]

    explainer = LrpExplainer(model, composite)
    started = time.perf_counter()
    graph = compile(model, x, composite=composite, target=target).graph
    captured = time.perf_counter() - started
    ways: dict[str, Callable[[], object]] = {
        "gradient": lambda: gradient(x),
        "map": lambda: explainer.explain(x, 0),
        "graph": lambda: graph(x, target),
    }
    took = 0.0
    with torch.no_grad():
        if inductor:
            started = time.perf_counter()
            fast = torch.compile(graph)
            fast(x, target)
            took = time.perf_counter() - started
            with torch.enable_grad():
                fast_gradient = torch.compile(make_fx(gradient)(x))
            ways |= {"inductor": lambda: fast(x, target), "compiled gradient": lambda: fast_gradient(x)}
        with torch.enable_grad():
            found = median_ratios(ways, device, rounds)
    cells = " | ".join(f"{found.get(way, float('nan')):.2f}" for way in COLUMNS)
    return f"| {name} | {batch} | {composite} | {cells} | {captured:.0f} | {took:.0f} |"


COLUMNS = ("map", "graph", "inductor", "compiled gradient")


def check_equal(names: list[str], composites: list[str]) -> None:
    """Print the largest difference of the graph's map from the engine's, relative to its largest value."""
    for name in names:
        side = 224 if name.startswith("vit") else 96
        model, x = build(name, "cpu", torch.float64), torch.randn(2, 3, side, side, dtype=torch.float64)
        for composite in composites:
            compiled = compile(model, x, composite=composite, target=torch.tensor([0, 1]))
            explainer, worst = LrpExplainer(model, composite), 0.0
            for seed in range(3):
                other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
                want = explainer.explain(other, [seed, 5])
                found = compiled(other, target=torch.tensor([seed, 5]))[1]
                worst = max(worst, float((found - want).abs().max() / want.abs().max()))
            print(f"{name:20s} {composite:14s} {worst:.1e}  {len(compiled.graph.graph.nodes)} nodes", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_b_16"])
    parser.add_argument("--composites", nargs="+", default=["epsilon", "auto"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-inductor", action="store_true")
    parser.add_argument("--equal", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.equal:
        check_equal(EQUAL, ["epsilon", "epsilon_plus", "auto"])
        return
    print(f"| model | batch | composite | {' | '.join(COLUMNS)} | capture, s | compile, s |")
    print("|---|---|---|" + "---|" * (len(COLUMNS) + 2))
    for name in args.models:
        for batch in args.batch:
            for composite in args.composites:
                row = measure(name, batch, composite, args.device, args.rounds, not args.no_inductor)
                print(row, flush=True)


if __name__ == "__main__":
    main()
