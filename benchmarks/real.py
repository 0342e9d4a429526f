"""Which methods find what real networks look at: `python benchmarks/real.py` writes the tables of `docs/quality.md`.

EfficientNet-Lite with ImageNet weights explains photographed things pasted on photographs (`real_world.py` says where
both come from). Rules were chosen on half of the things and on Lite0 and Lite1; what is written are the other half of
the things, and Lite2, on which nothing was chosen. Pictures and scores are cached under `build/real`: an interrupted
run goes on where it was; `--fresh` measures anew. Peers: `pip install -c constraints.txt zennit grad-cam`.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # runs from a checkout, installed or not

from benchmarks import real_world  # noqa: E402
from benchmarks.real_world import Scenes  # noqa: E402
from saliency_lrp import composites  # noqa: E402
from saliency_lrp.evaluation import (  # noqa: E402
    channel_sum,
    explain_function,
    grid_pointing_game,
    morf_lerf,
    positive_share,
)

BUILD = ROOT / "build" / "real"
NETS = {"lite0": "EfficientNet-Lite0", "lite1": "EfficientNet-Lite1", "lite2": "EfficientNet-Lite2"}
MADE = 64  # pictures of one thing, and questions about two
ONE, TWO, GRIDS, RANDOMIZED = 32, 64, 3, 8  # of these what is asked; grids; maps of random weights
COSTLY = 24  # pictures and questions, for methods of many passes per map, or of a second each
REMOVED = (8, 24, 64, 128, 192, 232, 248)  # of 256 regions
BATCH = 8

# ------------------------------------------------------------------------------------------------ networks for peers


class PlainBlock(nn.Module):
    """A block of EfficientNet of modules alone, a ReLU each, as peers want it: they see no functional calls."""

    def __init__(self, block: nn.Module, add: nn.Module) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if hasattr(block, "_expand_conv"):
            parts += [*padded(block._expand_conv), block._bn0, nn.ReLU6()]
        parts += [*padded(block._depthwise_conv), block._bn1, nn.ReLU6(), *padded(block._project_conv), block._bn2]
        self.body = nn.Sequential(*parts)
        given = block._block_args
        self.skips = block.id_skip and given.stride in (1, [1]) and given.input_filters == given.output_filters
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(torch.stack([self.body(x), x], dim=-1)) if self.skips else self.body(x)


class Plus(nn.Module):
    """A sum over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


def padded(layer: nn.Module) -> list[nn.Module]:
    """A convolution with "same" padding, as a padding and a convolution."""
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0, groups=layer.groups, bias=False
    )
    plain.weight = layer.weight
    pads = [layer.static_padding] if isinstance(layer.static_padding, nn.ZeroPad2d) else []
    return [*pads, plain]


def modular(model: nn.Module, add: Callable[[], nn.Module] = Plus) -> nn.Sequential:
    """The same network of modules alone; `features` is what Grad-CAM looks at."""
    model = copy.deepcopy(model)
    blocks = [PlainBlock(block, add()) for block in model._blocks]
    stem = [*padded(model._conv_stem), model._bn0, nn.ReLU6()]
    head = [*padded(model._conv_head), model._bn1, nn.ReLU6()]
    plain = nn.Sequential()
    plain.add_module("features", nn.Sequential(*stem, *blocks, *head))
    plain.add_module("pool", nn.AdaptiveAvgPool2d(1))
    plain.add_module("flatten", nn.Flatten())
    plain.add_module("head", model._fc)
    return plain.eval()


# ------------------------------------------------------------------------------------------------ methods

Explain = Callable[[nn.Module, Tensor, Tensor], Any]

#: name to (whether costly, function)
METHODS: dict[str, tuple[bool, Explain]] = {}
#: those that all networks explain and that play the grid pointing game
MAIN: list[str] = []


def ours(name: str, costly: bool = False, main: bool = False, label: str | None = None, **options: object) -> None:
    """Enter a method of this package."""
    METHODS[label or name] = (costly, explain_function(name, **options))
    MAIN.extend([label or name] if main else [])


def peer(name: str, costly: bool = False, main: bool = False) -> Callable[[Explain], Explain]:
    """Decorator: enter a method of another package."""

    def add(explain: Explain) -> Explain:
        METHODS[name] = (costly, explain)
        MAIN.extend([name] if main else [])
        return explain

    return add


ours("lrp", main=True)
ours("lrp", main=True, label="lrp, γ = 1", composite=composites.get("auto", gamma=1.0))
ours("lrp", main=True, label="lrp, γ = 0.1", composite=composites.get("auto", gamma=0.1))
ours("lrp", main=True, label="lrp, seed = softmax", seed="softmax")
ours("lrp:epsilon_plus", main=True)
# normalized images lie in [-1, 1]
ours("lrp", label="lrp:epsilon_gamma_box", composite=composites.get("epsilon_gamma_box", low=-1, high=1))
for _name in ("epsilon", "epsilon_plus_flat", "epsilon_alpha2_beta1", "excitation_backprop", "deep_taylor"):
    ours(f"lrp:{_name}")
for _name in ("gradcam", "guided_backprop", "grad_x_input"):
    ours(_name, main=True)
for _name in ("vanilla_grad", "saliency", "deconv", "deeplift", "guided_gradcam", "lrp_gradcam"):
    ours(_name)
for _name in ("integrate_grad", "smooth_grad", "shap_gradient", "smooth_lrp", "ablation", "lime"):
    ours(_name, costly=True)
ours("occlusion", costly=True, window=32, stride=16)  # as captum's below


@peer("random", main=True)
def random_map(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Noise: what no method should fall below."""
    return torch.rand(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(int(y[0])))


def zennit(build: Callable[[Any, list], Any]) -> Explain:
    """A composite of zennit, with its canonizer for batch norms, on the network of modules."""

    def explain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from zennit import composites as zc
        from zennit.attribution import Gradient
        from zennit.canonizers import SequentialMergeBatchNorm
        from zennit.layer import Sum

        plain = modular(model, Sum)
        composite = build(zc, [SequentialMergeBatchNorm()])
        with Gradient(model=plain, composite=composite) as attributor:
            scores = plain(x).detach()
            seed = torch.zeros_like(scores).scatter_(1, y[:, None], scores.gather(1, y[:, None]))
            return attributor(x, seed)[1]

    return explain


peer("zennit EpsilonPlus", main=True)(zennit(lambda zc, c: zc.EpsilonPlus(canonizers=c)))
peer("zennit EpsilonPlusFlat")(zennit(lambda zc, c: zc.EpsilonPlusFlat(canonizers=c)))
peer("zennit EpsilonGammaBox", costly=True, main=True)(
    zennit(lambda zc, c: zc.EpsilonGammaBox(low=-1.0, high=1.0, canonizers=c))
)
peer("zennit EpsilonAlpha2Beta1")(zennit(lambda zc, c: zc.EpsilonAlpha2Beta1(canonizers=c)))


def captum(name: str, **options: object) -> Explain:
    """An attribution of captum on the network of modules."""

    def explain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import captum.attr

        return getattr(captum.attr, name)(modular(model)).attribute(x.requires_grad_(True), target=y, **options)

    return explain


@peer("captum LRP")
def captum_lrp(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """ε, its default rule, also for the modules that it has no rule for."""
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

    plain = modular(model)
    for module in plain.modules():
        if isinstance(module, nn.ReLU6 | nn.Flatten):
            module.rule = IdentityRule()
        elif isinstance(module, nn.ZeroPad2d | Plus):
            module.rule = EpsilonRule()
    return LRP(plain).attribute(x.requires_grad_(True), target=y)


for _name in ("InputXGradient", "Saliency", "GuidedBackprop", "DeepLift"):
    peer(f"captum {_name}")(captum(_name))
peer("captum IntegratedGradients", costly=True)(captum("IntegratedGradients", n_steps=32, internal_batch_size=BATCH))
peer("captum GradientShap", costly=True)(
    lambda model, x, y: captum("GradientShap", baselines=torch.zeros_like(x), n_samples=16)(model, x, y)
)
peer("captum Occlusion", costly=True)(
    captum("Occlusion", sliding_window_shapes=(3, 32, 32), strides=(3, 16, 16), perturbations_per_eval=BATCH)
)


@peer("captum GuidedGradCam")
def captum_guided_gradcam(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Guided backpropagation times Grad-CAM of the last feature map."""
    from captum.attr import GuidedGradCam

    plain = modular(model)
    return GuidedGradCam(plain, plain.features).attribute(x.requires_grad_(True), target=y)


@peer("captum LayerGradCam")
def captum_gradcam(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the last feature map."""
    from captum.attr import LayerGradCam

    plain = modular(model)
    cam = LayerGradCam(plain, plain.features).attribute(x, target=y, relu_attributions=True)
    return F.interpolate(cam.detach(), x.shape[2:], mode="bilinear")


def grad_cam(name: str) -> Explain:
    """A method of the package grad-cam, of the last feature map."""

    def explain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import pytorch_grad_cam as package
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        plain = modular(model)
        with getattr(package, name)(model=plain, target_layers=[plain.features]) as cam:
            return torch.from_numpy(cam(x, [ClassifierOutputTarget(int(k)) for k in y]))[:, None]

    return explain


for _name in ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "EigenCAM"):
    peer(f"grad-cam {_name}", main=_name in ("GradCAM", "HiResCAM"))(grad_cam(_name))


# ------------------------------------------------------------------------------------------------ pictures


def pictures(net: str, part: str) -> tuple[Scenes, Scenes]:
    """Pictures of one thing and questions about two, of the things to choose on or to report on; made once."""
    path = BUILD / f"{net}-{part}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model, things = real_world.load_net(net), real_world.cut_outs()
        halves = dict(zip(("choose", "report"), real_world.split(real_world.recognized(model, things)), strict=True))
        one = real_world.one_thing(model, things, halves[part], MADE, seed=0)
        two = real_world.two_things(model, things, halves[part], MADE, seed=1)
        torch.save([one.__dict__, two.__dict__], path)
    one, two = (Scenes(**saved) for saved in torch.load(path, weights_only=False))  # our own file
    return one, two


# ------------------------------------------------------------------------------------------------ measuring


def maps_of(model: nn.Module, scenes: Scenes, explain: Explain) -> np.ndarray:
    """(N, H, W) signed maps of a method; every batch meets a network that nothing has touched."""
    torch.manual_seed(0)
    parts = zip(scenes.inputs.split(BATCH), scenes.targets.split(BATCH), strict=True)
    maps = [channel_sum(explain(copy.deepcopy(model), x.clone(), y)) for x, y in parts]
    found = np.concatenate(maps)[:, 0]
    if not np.isfinite(found).all():
        raise ValueError(f"{int((~np.isfinite(found)).any(axis=(1, 2)).sum())} maps have NaN or infinite values")
    return found


def with_random_weights(model: nn.Module) -> nn.Module:
    """The same network with the weights of every layer shuffled: it knows nothing, and keeps its scales."""
    model, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel(), generator=draw)].view_as(p))
    return model


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between maps, (N, H, W) each; 1 where both are zero."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), size, out=np.ones(len(a)), where=size > 0)


def measure(net: str, label: str, part: str = "report", explain: Explain | None = None) -> dict[str, list[float]]:
    """All scores of one method on one network, a number per picture or question."""
    model, (one, two) = real_world.load_net(net), pictures(net, part)
    costly, known = METHODS.get(label, (False, explain))
    explain = explain or known
    assert explain is not None
    one, two = (one[:COSTLY], two[:COSTLY]) if costly else (one[:ONE], two[:TWO])
    start = time.process_time()
    of_two = maps_of(model, two, explain)
    seconds = (time.process_time() - start) / len(two)
    inside, outside = positive_share(of_two, two.masks), positive_share(of_two, two.others)
    both = inside + outside
    of_one = maps_of(model, one, explain)
    best = of_one.reshape(len(one), -1).argmax(1)
    scores = {
        "right object": np.divide(inside, both, out=np.full(len(two), 0.5), where=both > 0),
        "mass": positive_share(of_one, one.masks),
        "pointing": one.masks.reshape(len(one), -1)[np.arange(len(one)), best].astype(float),
        "LeRF-MoRF": morf_lerf(model, one.inputs, one.targets, of_one[:, None], "blur", REMOVED),
        "two classes": cosine(of_two[::2], of_two[1::2]),
        "random weights": cosine(
            maps_of(with_random_weights(model), one[:RANDOMIZED], explain), of_one[:RANDOMIZED]
        ),
        "seconds": np.array([seconds]),
    }  # fmt: skip
    if label in MAIN and not costly and net == "lite0":
        scores["grid"] = grid_pointing_game(
            model, one.inputs, one.targets, lambda m, x, y: explain(copy.deepcopy(m), x.clone(), y), grids=GRIDS
        ).ravel()
    return {name: [round(float(v), 5) for v in values] for name, values in scores.items()}


def saved_at(net: str, label: str) -> Path:
    """The cache file of a method on a network."""
    return BUILD / net / (re.sub(r"[^\w.]+", "_", label) + ".json")


def measure_into_cache(net: str, label: str, fresh: bool) -> str:
    """Measure what is not cached; what to print of it."""
    path = saved_at(net, label)
    if path.exists() and not fresh:
        return "cached"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        scores: dict[str, Any] = measure(net, label)
    except Exception as error:  # peers raise anything on networks that they cannot explain
        scores = {"error": f"{type(error).__name__}: {error}"[:200]}
    path.write_text(json.dumps({"method": label, **scores}), encoding="utf-8")
    return str({k: v if isinstance(v, str) else round(float(np.mean(v)), 3) for k, v in scores.items()})


# ------------------------------------------------------------------------------------------------ the page

COLUMNS = {
    "right object": "right object ↑",
    "mass": "mass ↑",
    "LeRF-MoRF": "LeRF-MoRF ↑",
    "pointing": "pointing ↑",
    "grid": "grid pointing ↑",
    "two classes": "two classes ↓",
    "random weights": "random weights ↓",
}


def collected(net: str) -> dict[str, dict[str, Any]]:
    """Cached scores by method, the best share on the right object first; those that failed last."""
    found = {label: json.loads(p.read_text()) for label in METHODS if (p := saved_at(net, label)).exists()}
    return dict(sorted(found.items(), key=lambda item: -np.mean(item[1].get("right object", -1))))


def standard_error(values: list[float]) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def table(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of one network."""
    columns = {k: title for k, title in COLUMNS.items() if any(k in scores for scores in found.values())}
    lines = ["| " + " | ".join(["method", *columns.values(), "ms per map", "pictures"]) + " |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for label, scores in found.items():
        name = f"**{label}**" if label == "lrp" else label
        if "error" in scores:
            said = scores["error"].splitlines()[0][:100].replace("|", "/")
            lines.append(f"| {name} | fails: {said} |" + " |" * (len(columns) + 1))
            continue
        cells = [f"{np.mean(scores[k]):.3f} ± {standard_error(scores[k]):.3f}" if k in scores else "" for k in columns]
        counts = f"{len(scores['right object'])} / {len(scores['mass'])}"
        lines.append("| " + " | ".join([name, *cells, f"{1000 * scores['seconds'][0]:.0f}", counts]) + " |")
    return "\n".join(lines)


def standing(found: dict[str, dict[str, Any]], metric: str) -> str:
    """Where `lrp` stands, on the pictures that each pair of methods explained."""
    own, better = found["lrp"][metric], []
    for label, scores in found.items():
        n = min(len(own), len(scores.get(metric, ())))
        gap = np.subtract(scores[metric][:n], own[:n]) if n else np.zeros(1)
        if n > 1 and gap.mean() > standard_error(list(gap)):
            better.append(f"{label} (by {gap.mean():.3f} ± {standard_error(list(gap)):.3f})")
    said = f"more than a standard error ahead: {', '.join(better)}" if better else "first, or within one standard error"
    return f"{np.mean(own):.3f} ± {standard_error(own):.3f}; {said}"


BEGIN, END = "<!-- real: written by benchmarks/real.py -->", "<!-- end of real -->"


def write(page: Path, numbers: Path) -> None:
    """Put the tables into the page, between its two marks, and all means beside it as JSON."""
    parts, summary = [], {}
    for net, title in NETS.items():
        found = collected(net)
        if "lrp" not in found:
            continue
        stands = "  \n".join(f"`lrp` on {k}: {standing(found, k)}." for k in ("right object", "mass", "LeRF-MoRF"))
        parts.append(f"#### {title}\n\n{stands}\n\n{table(found)}\n")
        summary[net] = {
            label: scores["error"]
            if "error" in scores
            else {k: [round(float(np.mean(v)), 4), len(v)] for k, v in scores.items() if k != "method"}
            for label, scores in found.items()
        }
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(head + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + rest.split(END)[1], encoding="utf-8")
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", text)  # a pair a line
    numbers.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is not cached, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=None, metavar="METHOD")
    parser.add_argument("--stamps", type=Path, default=real_world.STAMPS, help="where the cut-outs were unpacked")
    parser.add_argument("--fresh", action="store_true", help="measure again what is cached")
    parser.add_argument("--only", choices=("measure", "write"), help="the page is written from what is cached")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    real_world.STAMPS = options.stamps
    try:
        from tests.helpers.torchvision_cpu import import_torchvision

        import_torchvision()  # zennit and grad-cam import it
    except ImportError:
        pass
    if options.only != "write":
        for net in options.nets:
            every = [*MAIN, *(label for label in METHODS if label not in MAIN and net == "lite0")]
            for label in options.methods or every:
                print(net, label, measure_into_cache(net, label, options.fresh), flush=True)
    if options.only != "measure":
        write(ROOT / "docs" / "quality.md", ROOT / "docs" / "quality.json")


if __name__ == "__main__":
    main()
