"""Which methods find what the networks look at: `python benchmarks/quality.py` writes `docs/quality.md`.

Three networks trained on the demo data, on which the true place of the digit is known, explain held-out images: all
methods here, and the same from zennit and captum where they are installed. Networks and scores are cached under
`build/`: an interrupted run goes on where it was; `--fresh` measures anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # runs from a checkout, installed or not

from benchmarks.models import ResidualBlock, SmallResNet, SmallViT  # noqa: E402
from saliency_lrp import composites  # noqa: E402
from saliency_lrp.demo import DemoData, demo_dataset, load_demo_model  # noqa: E402
from saliency_lrp.evaluation import Evaluation, Task, channel_sum, explain_function, morf_lerf  # noqa: E402

IMAGES = 500  # held-out images for localisation
PERTURBED = 100  # of them, for MoRF-LeRF: 30 forward passes per map
COSTLY = 50  # of them, for methods of hundreds of passes per map
SEED = 2024
BATCH = 25
BUILD = ROOT / "build"
NETS = {"cnn": "DemoNet", "resnet": "SmallResNet", "vit": "SmallViT"}

# ------------------------------------------------------------------------------------------------ networks


def load_net(name: str) -> nn.Module:
    """A trained network; trained now, for minutes, where it is not under `build/`."""
    if name == "cnn":
        return load_demo_model()
    weights = BUILD / f"{name}.safetensors"
    if not weights.exists():
        BUILD.mkdir(exist_ok=True)
        script = ROOT / "benchmarks" / "train_demo.py"
        subprocess.run([sys.executable, script, "--model", name, "--out", weights], check=True)
    model = {"resnet": SmallResNet, "vit": SmallViT}[name]()
    model.load_state_dict(load_file(weights))
    return model.eval()


# ------------------------------------------------------------------------------------------------ methods

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]

#: name to (whether costly, function)
METHODS: dict[str, tuple[bool, Explain]] = {}


def ours(name: str, costly: bool = False, label: str | None = None, **options: object) -> None:
    """Enter a method of this package."""
    METHODS[label or name] = (costly, explain_function(name, **options))


def peer(name: str, costly: bool = False) -> Callable[[Explain], Explain]:
    """Decorator: enter a method of another package."""

    def add(explain: Explain) -> Explain:
        METHODS[name] = (costly, explain)
        return explain

    return add


ours("lrp")
for _name in (
    "epsilon", "cp_lrp", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "excitation_backprop",
    "deep_taylor", "e_rule", "b_rule",
):  # fmt: skip
    ours(f"lrp:{_name}")
# normalised images lie in [-2, 2]
METHODS["lrp:epsilon_gamma_box"] = (False, explain_function(composites.get("epsilon_gamma_box", low=-2, high=2)))
for _name in ("vanilla_grad", "saliency", "grad_x_input", "deconv", "guided_backprop", "deeplift"):
    ours(_name)
for _name in ("gradcam", "guided_gradcam", "lrp_gradcam"):
    ours(_name)
for _name in ("integrate_grad", "smooth_grad", "shap_gradient", "smooth_lrp", "ablation", "lime"):
    ours(_name, costly=True)
ours("occlusion", costly=True, window=16, stride=4)  # as captum's below


@peer("random")
def random_map(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Noise: what no method should fall below."""
    return torch.rand(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(0))


def zennit(build: Callable[[object, list], object]) -> Explain:
    """A composite of zennit, with its canonizer for batch norms and, written here, one for the residual network."""

    def explain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from zennit import composites as zc
        from zennit.attribution import Gradient
        from zennit.canonizers import AttributeCanonizer, SequentialMergeBatchNorm
        from zennit.layer import Sum

        class NamedModules(AttributeCanonizer):
            """zennit has no rule for a functional `+=` and `mean`: make modules of them, as its own canonizers do."""

            def __init__(self) -> None:
                super().__init__(self.attributes)

            @staticmethod
            def attributes(name: str, module: nn.Module) -> dict | None:
                def block(self: ResidualBlock, x: Tensor) -> Tensor:
                    out = self.bn2(self.conv2(self.canonizer_relu(self.bn1(self.conv1(x)))))
                    return self.relu(self.canonizer_sum(torch.stack([out, self.shortcut(x)], dim=-1)))

                def network(self: SmallResNet, x: Tensor) -> Tensor:
                    return self.head(self.canonizer_pool(self.blocks(self.stem(x))).flatten(1))

                if isinstance(module, ResidualBlock):
                    return {"forward": MethodType(block, module), "canonizer_sum": Sum(), "canonizer_relu": nn.ReLU()}
                if isinstance(module, SmallResNet):
                    return {"forward": MethodType(network, module), "canonizer_pool": nn.AdaptiveAvgPool2d(1)}
                return None

        composite = build(zc, [SequentialMergeBatchNorm(), NamedModules()])
        with Gradient(model=model, composite=composite) as attributor:
            scores = model(x).detach()
            seed = torch.zeros_like(scores).scatter_(1, y[:, None], scores.gather(1, y[:, None]))
            return attributor(x, seed)[1]

    return explain


peer("zennit EpsilonPlus")(zennit(lambda zc, canonizers: zc.EpsilonPlus(canonizers=canonizers)))
peer("zennit EpsilonPlusFlat")(zennit(lambda zc, canonizers: zc.EpsilonPlusFlat(canonizers=canonizers)))
peer("zennit EpsilonGammaBox")(
    zennit(lambda zc, canonizers: zc.EpsilonGammaBox(low=-2.0, high=2.0, canonizers=canonizers))
)


@peer("captum LRP")
def captum_lrp(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Its default rules."""
    from captum.attr import LRP

    return LRP(model).attribute(x, target=y)


@peer("captum InputXGradient")
def captum_input_x_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from captum.attr import InputXGradient

    return InputXGradient(model).attribute(x, target=y)


@peer("captum DeepLift")
def captum_deeplift(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from captum.attr import DeepLift

    return DeepLift(model).attribute(x, target=y)


@peer("captum IntegratedGradients", costly=True)
def captum_integrated_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(x, target=y, n_steps=32, internal_batch_size=BATCH)


@peer("captum Occlusion", costly=True)
def captum_occlusion(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from captum.attr import Occlusion

    with torch.no_grad():
        return Occlusion(model).attribute(x, (3, 16, 16), (3, 4, 4), target=y)


@peer("captum LayerGradCam")
def captum_gradcam(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """At the last feature map of at least 8 x 8, chosen by hand."""
    from captum.attr import LayerGradCam

    layers = {"DemoNet": "features.14", "SmallResNet": "blocks.3", "SmallViT": "patch_embedding"}
    layer = model.get_submodule(layers[type(model).__name__])
    cam = LayerGradCam(model, layer).attribute(x, target=y, relu_attributions=True)
    return F.interpolate(cam, x.shape[2:], mode="bilinear")


# ------------------------------------------------------------------------------------------------ measuring


def explained(model: nn.Module, data: DemoData, explain: Explain, n: int) -> np.ndarray:
    """(n, 1, H, W) maps of the first n images, for their true classes."""
    parts = zip(data.inputs[:n].split(BATCH), data.labels[:n].split(BATCH), strict=True)
    torch.manual_seed(0)
    return np.concatenate([channel_sum(explain(model, x.clone(), y)) for x, y in parts])


def measure(net: str, label: str, data: DemoData, images: int, perturbed: int, fresh: bool) -> str:
    """Score one method on one network into its cache file; returns what to print."""
    costly, explain = METHODS[label]
    n = min(COSTLY, images) if costly else images
    path = BUILD / "quality" / net / f"{label.replace(':', '_').replace(' ', '_')}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not fresh:
        return "cached"
    # every method meets a network that no other method has touched: some leave hooks behind
    model = load_net(net)
    try:
        start = time.process_time()
        maps = explained(model, data, explain, n)
        seconds = (time.process_time() - start) / n
    except Exception as error:  # peers raise anything on models they cannot explain
        np.savez(path, error=np.array(f"{type(error).__name__}: {error}"[:200]))
        return f"failed: {error}"
    bad = int((~np.isfinite(maps)).any(axis=(1, 2, 3)).sum())
    if bad:
        np.savez(path, error=np.array(f"{bad} of {n} maps have NaN or infinite values"))
        return "not finite"
    scores = localization(data, maps)
    m = min(n, perturbed)
    scores["morf_lerf"] = morf_lerf(load_net(net), data.inputs[:m], data.labels[:m], torch.from_numpy(maps[:m]))
    np.savez(path, seconds=seconds, **scores)
    return ", ".join(f"{k} {v.mean():.3f}" for k, v in scores.items())


def localization(data: DemoData, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Relevance mass and pointing game through Quantus."""
    from saliency_lrp.evaluation import METRICS

    n = len(maps)
    task = Task(nn.Identity(), data.inputs[:n], data.labels[:n], data.masks[:n].numpy(), maps, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: METRICS[name].compute(task) for name in ("relevance_mass", "relevance_rank", "pointing_game")}


def collected(net: str) -> Evaluation:
    """All cached scores of a network, best relevance mass first."""
    from saliency_lrp.evaluation import METRICS

    result = Evaluation([METRICS[m] for m in ("relevance_mass", "relevance_rank", "pointing_game", "morf_lerf")])
    for label in METHODS:
        path = BUILD / "quality" / net / f"{label.replace(':', '_').replace(' ', '_')}.npz"
        if not path.exists():
            continue
        cached = dict(np.load(path))
        if "error" in cached:
            result.errors[label] = str(cached["error"])
            continue
        result.seconds[label] = float(cached.pop("seconds"))
        result.scores[label] = cached
    order = sorted(result.scores, key=lambda m: -result.mean(m, "relevance_mass"))
    result.scores = {m: result.scores[m] for m in order}
    return result


# ------------------------------------------------------------------------------------------------ the page


def ahead(result: Evaluation, label: str, metric: str) -> tuple[float, float]:
    """By how much a method is ahead of `lrp` on the images that both explained, and the standard error of that."""
    theirs, own = result.scores[label][metric], result.scores["lrp"][metric]
    n = min(len(theirs), len(own))
    gap = theirs[:n] - own[:n]
    return float(gap.mean()), float(gap.std(ddof=1) / n**0.5)


def table(result: Evaluation) -> str:
    """A Markdown table of one network."""
    heads = [f"{m.title} {m.arrow}" for m in result.metrics]
    heads = ["method", heads[0], "mass less that of `lrp`", *heads[1:], "ms per map", "images"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for label, scores in result.scores.items():
        cells = [result._cell(label, m.name) for m in result.metrics]
        counts = f"{len(scores['relevance_mass'])} / {len(scores['morf_lerf'])}"
        name = f"**{label}**" if label == "lrp" else label
        gap = f"{ahead(result, label, 'relevance_mass')[0]:+.3f}"
        cells = [name, cells[0], gap, *cells[1:], f"{1000 * result.seconds[label]:.1f}", counts]
        lines.append("| " + " | ".join(cells) + " |")
    for label, error in result.errors.items():
        said = error.splitlines()[0][:100].replace("|", "/")
        lines.append(f"| {label} | fails: {said} |" + " |" * (len(heads) - 2))
    return "\n".join(lines)


def standing(result: Evaluation, metric: str) -> str:
    """Where `lrp` stands among the methods on one metric, on the images that each pair explained."""
    gaps = {label: ahead(result, label, metric) for label in result.scores if label != "lrp"}
    better = {label: (gap, error) for label, (gap, error) in gaps.items() if gap > error}
    own = f"{result.mean('lrp', metric):.3f} ± {result.standard_error('lrp', metric):.3f}"
    if not better:
        return f"{own}, first or within one standard error of the best"
    names = ", ".join(f"{k} (by {gap:.3f} ± {error:.3f})" for k, (gap, error) in better.items())
    return f"{own}; more than a standard error ahead: {names}"


def write_tables(page: Path) -> None:
    """Put the tables into the page, between its two marks."""
    parts = []
    for net, title in NETS.items():
        result = collected(net)
        if not result.scores:
            continue
        parts.append(
            f"#### {title}\n\n`lrp` on relevance mass: {standing(result, 'relevance_mass')}.  \n"
            f"`lrp` on MoRF-LeRF: {standing(result, 'morf_lerf')}.\n\n{table(result)}\n"
        )
    begin, end = "<!-- tables: written by benchmarks/quality.py -->", "<!-- end of tables -->"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Quality\n\n{begin}\n{end}\n"
    head, rest = text.split(begin)
    page.write_text(head + begin + "\n\n" + "\n".join(parts) + "\n" + end + rest.split(end)[1], encoding="utf-8")


SHOWN = ("lrp", "lrp:epsilon_plus", "zennit EpsilonGammaBox", "grad_x_input", "integrate_grad", "occlusion", "gradcam")


def figure(path: Path) -> None:
    """One held-out image per network, and the maps of some methods."""
    from matplotlib.figure import Figure

    data = demo_dataset(40, SEED)
    drawing = Figure(figsize=(1.25 * (len(SHOWN) + 1), 4.1), layout="constrained")
    axes = drawing.subplots(len(NETS), len(SHOWN) + 1)
    right = np.logical_and.reduce([load_net(net)(data.inputs).argmax(1) == data.labels for net in NETS])
    data = DemoData(*(part[np.flatnonzero(right)] for part in data))
    for row, (net, title) in enumerate(NETS.items()):
        image = (data.inputs[row].permute(1, 2, 0) * 0.25 + 0.5).clamp(0, 1).numpy()
        axes[row, 0].imshow(image)
        axes[row, 0].set_ylabel(title, fontsize=8)
        for axis, label in zip(axes[row, 1:], SHOWN, strict=True):
            x, y = data.inputs[row : row + 1], data.labels[row : row + 1]
            try:
                shown = channel_sum(METHODS[label][1](load_net(net), x.clone(), y))[0, 0]
                limit = np.quantile(np.abs(shown), 0.995)
                axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
            except Exception:  # the table says why
                axis.text(0.5, 0.5, "fails", ha="center", va="center", transform=axis.transAxes, fontsize=8)
            axis.contour(data.masks[row].numpy(), levels=[0.5], colors="#888888", linewidths=0.6)
            if row == 0:
                axis.set_title(label.replace(" ", "\n").replace(":", ":\n"), fontsize=7)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=90)


def main() -> None:
    """Measure what is not cached, write the page and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--perturbed", type=int, default=PERTURBED)
    parser.add_argument("--fresh", action="store_true", help="measure again what is cached")
    parser.add_argument("--only", choices=("measure", "write"), help="the page is written from what is cached")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        from tests.helpers.torchvision_cpu import import_torchvision

        import_torchvision()  # Quantus and zennit import it
    except ImportError:
        pass
    if options.only != "write":
        data = demo_dataset(options.images, SEED)
        for label in options.methods:
            for net in options.nets:
                said = measure(net, label, data, options.images, options.perturbed, options.fresh)
                print(net, label, said, flush=True)
    if options.only == "measure":
        return
    write_tables(ROOT / "docs" / "quality.md")
    figure(ROOT / "docs" / "images" / "quality-examples.png")


if __name__ == "__main__":
    main()
