"""A map as a graph: eager and compiled maps, as ratios to one eager plain gradient of the same model and batch.

A round is one of each, in one process; medians over the rounds. ``gradient`` is ``torch.autograd.grad`` of the
target's score, ``map`` is ``LrpExplainer``, ``graph`` the captured graph as it is, ``inductor`` the same by
``backend="inductor"``; ``compiled gradient`` is the gradient captured, folded, laid out and compiled alike.

    python benchmarks/compiled.py --models resnet50 vit_b_16 --composites epsilon auto
    python benchmarks/compiled.py --device cuda --batch 1 64
    python benchmarks/compiled.py --equal     # 20 models: the graph's map is the engine's, on 3 other inputs, float64
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from saliency_lrp import LrpExplainer, compile
from saliency_lrp.graphs.constants import computed_once, fold_constants, with_any_strides, without_parameters
from saliency_lrp.graphs.folding import fold_factors, without_copies
from saliency_lrp.graphs.inductor import BACKENDS
from tests.helpers.torchvision_cpu import import_torchvision

PICTURES = (
    "resnet18 vgg11_bn alexnet squeezenet1_0 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 "
    "regnet_y_400mf efficientnet_b0 densenet121 convnext_tiny swin_t vit_b_32"
).split()
EQUAL = [*PICTURES, "demo", "efficientnet_lite0", "lstm", "gru", "llama", "gpt2"]
TOKENS, WIDTH = 512, 128


class Recurrent(nn.Module):
    """Two layers, both ways, of a recurrent cell; the last step is read."""

    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(12, 16, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class NextToken(nn.Module):
    """A language model from embeddings to the scores of the next token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]


def language_model(name: str, width: int) -> nn.Module:
    import_torchvision()  # before transformers looks for it
    import transformers

    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=width, n_layer=4, n_head=width // 32, vocab_size=1000)
        return NextToken(transformers.GPT2LMHeadModel(config))
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=4, vocab_size=1000,
        num_attention_heads=width // 32, num_key_value_heads=width // 32,
    )  # fmt: skip
    return NextToken(transformers.LlamaForCausalLM(config))


def build(name: str, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    if name in ("llama", "gpt2"):
        model = language_model(name, WIDTH)
    elif name in ("lstm", "gru"):
        model = Recurrent(nn.LSTM if name == "lstm" else nn.GRU)
    elif name == "demo":
        from saliency_lrp.demo import load_demo_model

        model = load_demo_model()
    elif name == "efficientnet_lite0":
        from saliency_lrp.photographs import load_photo_model

        model = load_photo_model()
    else:
        model = import_torchvision().models.get_model(name, weights=None)
    for head in (m for m in model.modules() if isinstance(m, nn.Linear)):
        if not head.weight.any():  # a vision transformer's head starts at zero
            nn.init.normal_(head.weight, std=0.02)
    return model.eval().to(device, dtype).requires_grad_(False)


def an_input(name: str, batch: int, seed: int, dtype: torch.dtype, side: int = 224, tokens: int = TOKENS) -> Tensor:
    others = {"llama": (tokens, WIDTH), "gpt2": (tokens, WIDTH), "lstm": (7, 12), "gru": (7, 12)}
    shape = others.get(name, (3, side, side))
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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


def gradient_graph(gradient: Callable[[Tensor], Tensor], x: Tensor) -> fx.GraphModule:
    """A plain gradient, captured and folded as maps are."""
    graph = make_fx(gradient)(x)
    with torch.no_grad():
        graph = make_fx(torch.func.functionalize(with_any_strides(without_parameters(graph))))(x)
        graph = without_copies(fold_constants(with_any_strides(without_parameters(graph))))
        return computed_once(fold_factors(graph))


def measure(name: str, batch: int, composite: str, device: str, rounds: int, inductor: bool) -> str:
    model, x = build(name, device), an_input(name, batch, 0, torch.float32).to(device)
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
        "graph": without_gradients(graph, x, target),
    }
    took = 0.0
    if inductor:
        started = time.perf_counter()
        fast = BACKENDS["inductor"](graph, (x, target))
        took = time.perf_counter() - started
        plain = BACKENDS["inductor"](gradient_graph(gradient, x), (x,))
        ways |= {"inductor": without_gradients(fast, x, target), "compiled gradient": without_gradients(plain, x)}
    found = median_ratios(ways, device, rounds)
    cells = " | ".join(f"{found.get(way, float('nan')):.2f}" for way in COLUMNS)
    return f"| {name} | {batch} | {composite} | {cells} | {captured:.0f} | {took:.0f} |"


def without_gradients(run: Callable[..., object], *arguments: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: run(*arguments))


COLUMNS = ("map", "graph", "inductor", "compiled gradient")


def check_equal(names: list[str], composites: list[str]) -> None:
    """Print the largest difference of the graph's map from the engine's, relative to its largest value."""
    print("| model | composite | difference | nodes |\n|---|---|---|---|")
    for name in names:
        side, n = (224, 1) if name.startswith("vit") else (64, 2)
        model = build(name, "cpu", torch.float64)
        make = partial(an_input, name, n, dtype=torch.float64, side=side, tokens=9)
        for composite in composites:
            compiled = compile(model, make(seed=99), composite=composite, target=torch.arange(n))
            explainer, worst = LrpExplainer(model, composite), 0.0
            for seed in range(3):
                other, target = make(seed=seed), [seed, 5][:n]
                want = explainer.explain(other, target)
                found = compiled(other, target=torch.tensor(target))[1]
                worst = max(worst, float((found - want).abs().max() / want.abs().max()))
            print(f"| {name} | {composite} | {worst:.0e} | {len(compiled.graph.graph.nodes)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+")
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
        check_equal(args.models or EQUAL, ["epsilon", "epsilon_plus", "auto"])
        return
    print(f"| model | batch | composite | {' | '.join(COLUMNS)} | capture, s | compile, s |")
    print("|---|---|---|" + "---|" * (len(COLUMNS) + 2))
    for name in args.models or ["resnet50", "vit_b_16"]:
        for batch in args.batch:
            for composite in args.composites:
                row = measure(name, batch, composite, args.device, args.rounds, not args.no_inductor)
                print(row, flush=True)


if __name__ == "__main__":
    main()
