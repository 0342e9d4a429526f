"""Language models: time and peak memory of one map, as ratios to one plain gradient; beside LXT.

Models of random weights, batch 1, the last position's most likely token explained by AttnLRP, relevance of the token
embeddings. Ways: ``gradient`` (what everything is measured against), ``ours`` (composite bound in the forward pass),
``trace`` (rules, targets and layers chosen later), ``lxt`` (its efficient form: gradient x input of a patched model).

    python benchmarks/language_models.py                               # time and memory, S = 128 ... 4096
    python benchmarks/language_models.py --width 512 --lengths 512 2048 --models llama gpt2 bert --attention eager
    python benchmarks/language_models.py --targets 32 --lengths 512    # T maps of one forward, T x S
    python benchmarks/language_models.py --equal                       # maps are LXT's to 1e-6; errors in bfloat16
    python benchmarks/language_models.py --device cuda --lengths 512 2048 8192

LXT 2.1 needs transformers 4.52, so that it has an environment of its own, in which this script can run whole:

    python -m venv lxt && lxt/bin/pip install torch==2.13.0 transformers==4.52.4 lxt==2.1 wrapt matplotlib ipywidgets
    PYTHONPATH=. lxt/bin/python benchmarks/language_models.py --equal
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from tests.helpers.torchvision_cpu import import_torchvision

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

MODELS = ("llama", "qwen2", "qwen3", "gemma3", "gpt2", "bert")
WORDS = 1000


def settings(name: str, width: int, attention: str) -> tuple[str, str, dict[str, Any]]:
    """Configuration class, model class, and the configuration."""
    heads = width // 32
    decoder = {
        "hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": 4, "vocab_size": WORDS,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 8192,
        "attn_implementation": attention,
    }  # fmt: skip
    if name == "llama":
        return "LlamaConfig", "LlamaForCausalLM", decoder
    if name == "qwen2":
        return "Qwen2Config", "Qwen2ForCausalLM", {**decoder, "num_key_value_heads": heads // 2}
    if name == "qwen3":
        return "Qwen3Config", "Qwen3ForCausalLM", {**decoder, "num_key_value_heads": heads // 2, "head_dim": 32}
    if name == "gemma3":
        more = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 4096}
        return "Gemma3TextConfig", "Gemma3ForCausalLM", {**decoder, "num_key_value_heads": heads // 2, **more}
    if name == "gpt2":
        sizes = {"n_embd": width, "n_layer": 4, "n_head": heads, "n_positions": 8192, "vocab_size": WORDS}
        return "GPT2Config", "GPT2LMHeadModel", {**sizes, "attn_implementation": attention}
    sizes = {k: decoder[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
    sizes |= {"intermediate_size": 4 * width, "max_position_embeddings": 8192, "num_labels": 8}
    return "BertConfig", "BertForSequenceClassification", {**sizes, "attn_implementation": attention}


def build(name: str, width: int, attention: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model of random weights, frozen, in eval mode."""
    import transformers

    config, cls, options = settings(name, width, attention)
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**options))
    return model.eval().requires_grad_(False).to(device, dtype)


def embeddings(model: nn.Module, length: int, seed: int = 0) -> Tensor:
    """Embedded random tokens, (1, S, width)."""
    ids = torch.randint(0, WORDS, (1, length), generator=torch.Generator().manual_seed(seed))
    return model.get_input_embeddings()(ids.to(next(model.parameters()).device)).detach()


def inputs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Arguments of the model: no cache, logits of the last position only."""
    if "Bert" in type(model).__name__:
        return {"inputs_embeds": x}
    return {"inputs_embeds": x, "use_cache": False, "logits_to_keep": 1}


def scores(out: Any) -> Tensor:
    """(1, classes) or (1, tokens): of the last position."""
    return out.logits if out.logits.dim() == 2 else out.logits[:, -1]


# ------------------------------------------------------------------------------------------------ ways


def gradient(model: nn.Module) -> Callable[[Tensor, int | None], Tensor]:
    def run(x: Tensor, target: int | None = None) -> Tensor:
        z = x.clone().requires_grad_(True)
        y = scores(model(**inputs(model, z)))
        index = y.argmax(1, keepdim=True) if target is None else torch.full_like(y[:, :1], target, dtype=torch.long)
        return torch.autograd.grad(y.gather(1, index).sum(), z)[0]

    return run


def ours(model: nn.Module, way: str = "bound_trace") -> Callable[[Tensor, int | None], Tensor]:
    from saliency_lrp import RelevancePropagator

    propagator = RelevancePropagator(model, "attnlrp")

    def run(x: Tensor, target: int | None = None) -> Tensor:
        trace = getattr(propagator, way)(**inputs(model, x))
        R = trace.relevance(target=target, retain=False)
        assert trace.bound == (way == "bound_trace"), trace.reason
        return R

    return run


class Patched:
    """LXT's patches of one model's code, on for a while: they are put on its modules' classes and functions."""

    def __init__(self, model: nn.Module) -> None:
        from lxt.efficient import monkey_patch

        self.home = importlib.import_module(type(model).__module__)
        before = self.state()
        monkey_patch(self.home, verbose=False)
        self.patches = [
            (o, k, v, before.get((id(o), k), MISSING)) for o, k, v in self.items() if v is not before.get((id(o), k))
        ]
        self.swap(on=False)

    def items(self) -> list[tuple[Any, str, Any]]:
        classes = [v for v in vars(self.home).values() if isinstance(v, type) and issubclass(v, nn.Module)]
        layers = [v for v in vars(nn).values() if isinstance(v, type)]  # some patch torch's own layer norm
        owners: list[Any] = [self.home, *classes, *layers, nn.functional, torch]
        import transformers.modeling_utils

        owners.append(transformers.modeling_utils)
        kept = ("__module__", "__dict__", "__weakref__", "__doc__", "__builtins__")
        return [(o, k, v) for o in owners for k, v in list(vars(o).items()) if k not in kept]

    def state(self) -> dict[tuple[int, str], Any]:
        return {(id(o), k): v for o, k, v in self.items()}

    def swap(self, on: bool) -> None:
        for owner, name, patched, original in self.patches:
            value = patched if on else original
            if value is MISSING:
                if hasattr(owner, name):
                    delattr(owner, name)
            else:
                setattr(owner, name, value)

    def __enter__(self) -> None:
        self.swap(on=True)

    def __exit__(self, *_: Any) -> None:
        self.swap(on=False)


MISSING = object()
PATCHES: dict[str, Patched] = {}


def patches(model: nn.Module) -> Patched:
    """Those of a model's code, which can be made once only."""
    home = type(model).__module__
    if home not in PATCHES:
        PATCHES[home] = Patched(model)
    return PATCHES[home]


def lxt_model(model: nn.Module) -> nn.Module:
    """The model that LXT explains: the model itself, or one of the class that LXT has in its place (BERT's).

    Where LXT brings classes of its own, a model made before has the attention and activations of the original ones:
    its maps are then no AttnLRP. The same weights go into a model of LXT's class.
    """
    patched = patches(model)
    with patched:
        cls = getattr(patched.home, type(model).__name__)
        if cls is type(model):
            return model
        theirs = cls(model.config).eval().requires_grad_(False)
    weights = next(model.parameters())
    theirs.to(weights.device, weights.dtype).load_state_dict(model.state_dict())
    return theirs


def lxt(model: nn.Module) -> Callable[[Tensor, int | None], Tensor]:
    patched, run_gradient = patches(model), gradient(lxt_model(model))

    def run(x: Tensor, target: int | None = None) -> Tensor:
        with patched:
            return x * run_gradient(x, target)

    return run


WAYS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "gradient": gradient,
    "ours": ours,
    "trace": lambda model: ours(model, "trace"),
    "lxt": lxt,
}


def available(ways: list[str]) -> list[str]:
    """Those of the ways that can run here."""
    try:
        import lxt.efficient  # noqa: F401
    except Exception as error:
        print(f"no LXT here ({type(error).__name__}: {error})", file=sys.stderr)
        return [way for way in ways if way != "lxt"]
    return ways


# ------------------------------------------------------------------------------------------------ measuring


def seconds(run: Callable[[], Any], device: str) -> float:
    """CPU time on a CPU, wall time to the end of all kernels on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def times(model: nn.Module, x: Tensor, ways: list[str], rounds: int) -> dict[str, float]:
    """Median ratio to the gradient of the same round; the gradient itself in seconds."""
    runs = {way: WAYS[way](model) for way in ways}
    device = x.device.type
    for run in runs.values():
        run(x)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in runs.items():
            gc.collect()
            found[way].append(seconds(lambda run=run: run(x), device))
    base = found["gradient"]
    ratios = {w: statistics.median(a / b for a, b in zip(v, base, strict=True)) for w, v in found.items()}
    return ratios | {"gradient": statistics.median(base)}


def several(model: nn.Module, x: Tensor, targets: int, ways: list[str], rounds: int) -> dict[str, float]:
    """T maps of one sequence: one forward and a batched backward pass, or T of LXT's backward passes of one forward."""
    from saliency_lrp import RelevancePropagator

    asked = list(range(targets))
    propagator = RelevancePropagator(model, "attnlrp")

    def all_ours() -> Tensor:
        return propagator.bound_trace(**inputs(model, x)).relevance(target=asked)

    def backward_passes(explained: nn.Module = model) -> Tensor:
        z = x.clone().requires_grad_(True)
        y = scores(explained(**inputs(explained, z)))[0]
        return torch.stack([torch.autograd.grad(y[t], z, retain_graph=t + 1 < targets)[0] for t in asked]) * x

    runs: dict[str, Callable[[], Tensor]] = {"gradient": backward_passes, "ours": all_ours}
    if "lxt" in ways:
        patched, explained = patches(model), lxt_model(model)

        def theirs() -> Tensor:
            with patched:
                return backward_passes(explained)

        runs["lxt"] = theirs
    found: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            found[way].append(seconds(run, x.device.type))
    base = found["gradient"]
    ratios = {w: statistics.median(a / b for a, b in zip(v, base, strict=True)) for w, v in found.items()}
    return ratios | {"gradient": statistics.median(base)}


def status(key: str) -> int:
    """A line of this process's status, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measure(name: str, way: str, length: int, args: argparse.Namespace) -> int:
    """Bytes that one map takes above what the loaded model does, in this process."""
    torch.set_num_threads(1)
    model = build(name, args.width, args.attention, args.device)
    x, run = embeddings(model, length), WAYS[way](model)
    run(embeddings(model, 8))
    gc.collect()
    if args.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(x)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    run(x)
    return status("VmHWM") - before


def memory(name: str, way: str, length: int, args: argparse.Namespace) -> float:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--one", name, way, str(length)]
    command += ["--width", str(args.width), "--attention", args.attention, "--device", args.device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


# ------------------------------------------------------------------------------------------------ equality


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def equal(args: argparse.Namespace) -> None:
    """Our maps and LXT's: float32 against each other, bfloat16 of both against float64; the model's own output."""
    from saliency_lrp import RelevancePropagator

    print(
        "| model | float32: ours against LXT | bfloat16 against float64: ours | LXT | output |\n|---|---|---|---|---|"
    )
    for name in args.models:
        model = build(name, args.width, args.attention)
        half, exact = copy.deepcopy(model).bfloat16(), copy.deepcopy(model).double()
        ours_of = {m: ours(m) for m in (model, half, exact)}
        lxt_of = {m: lxt(m) for m in (model, half)}
        against, errors, theirs, same = [], [], [], True
        for seed in range(8):
            x = embeddings(model, 24, seed)
            R = ours_of[model](x, 3)
            against.append(relative(R, lxt_of[model](x, 3)))
            truth = ours_of[exact](x.double(), 3)
            errors.append(relative(ours_of[half](x.bfloat16(), 3), truth))
            theirs.append(relative(lxt_of[half](x.bfloat16(), 3), truth))

            with torch.no_grad():
                plain = scores(model(**inputs(model, x)))
            same &= torch.equal(
                scores(RelevancePropagator(model, "attnlrp").bound_trace(**inputs(model, x)).output), plain
            )
        print(
            f"| {name} | {max(against):.1e} | {statistics.median(errors):.1e} | {statistics.median(theirs):.1e} | "
            f"{'the same bits' if same else 'DIFFERS'} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama", "gpt2", "bert"], choices=MODELS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512, 2048, 4096])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--targets", type=int, default=0, help="T maps of one forward")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--equal", action="store_true", help="whether maps are LXT's")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    import_torchvision()  # transformers asks for it
    if args.one:
        print(measure(args.one[0], args.one[1], int(args.one[2]), args))
        return
    if args.equal:
        args.models = list(MODELS) if args.models == ["llama", "gpt2", "bert"] else args.models
        equal(args)
        return
    ways = available(args.ways)
    ways = ["gradient", *(w for w in ways if w != "gradient")]
    print(f"torch {torch.__version__}, width {args.width}, {args.attention}, {args.device}; gradient in seconds and MB")
    shown = [w for w in ways if w != "trace"] if args.targets else ways
    print("| model | S | " + " | ".join(f"{w}: time | memory" for w in shown) + " |")
    print("|---" * (2 + 2 * len(shown)) + "|")
    for name in args.models:
        model = build(name, args.width, args.attention, args.device)
        for length in args.lengths:
            x = embeddings(model, length)
            took = (
                several(model, x, args.targets, ways, args.rounds)
                if args.targets
                else times(model, x, ways, args.rounds)
            )
            used = {}
            if not args.no_memory and not args.targets:
                used = {way: memory(name, way, length, args) for way in shown}
            base = used.get("gradient", float("nan"))
            cells = [f"{took['gradient']:.3f} s | {base / 1e6:.0f} MB"]
            cells += [f"{took[w]:.2f} | {used.get(w, float('nan')) / base:.2f}" for w in shown[1:]]
            print(f"| {name} | {length} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
