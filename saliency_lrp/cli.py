"""The `saliency-lrp` command: explain what a model sees in an image, from a terminal.

Writes one picture per image and a self-contained HTML page, and prints the numbers that belong to them.
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib
import importlib.util
import io
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import nn

from .errors import InputError, unknown_name
from .explainers.registry import DEFAULT_METHODS

if TYPE_CHECKING:
    from .model.answer import Answer
    from .results import SaliencyResults

DEMO_IMAGES = 3
DEMO_OUT = "build/demo"
PAGE = Path(__file__).parent / "data" / "report.html"

EXAMPLES = """\
examples:
  saliency-lrp --demo
      explain three images by a small network that comes with the package; needs no other file
  saliency-lrp dog.jpg --model resnet50
      a torchvision classifier; its weights are downloaded the first time
  saliency-lrp scan.png --module train.py:make_model
      your own network: make_model() in train.py returns it, weights loaded
  saliency-lrp dog.jpg --model vgg16 --method lrp --method gradcam --target 207
      chosen methods, side by side, for class 207 instead of the model's own answer
  saliency-lrp dog.jpg --model vgg16 --method lrp:epsilon_plus --method lrp:epsilon_gamma_box
      rules of relevance propagation, side by side
  saliency-lrp batch photos/ --model resnet50 --out maps.zarr
      all images of a folder, into a Zarr store; see saliency-lrp batch --help
  saliency-lrp --list
      the names of all methods and composites

what you get:
  a folder with a PNG per image and index.html, which holds all of it in one file. Red speaks for the
  class, blue against it. For LRP, 'conserved' is the share of the class score that the map accounts for.
"""

GLOSSARY = {
    "score": "What the model gave the class, in most networks its logit: what the maps explain.",
    "probability": "Softmax of the scores; the score itself where the network ends in a softmax.",
    "conserved": (
        "LRP hands the score back to the pixels layer by layer. This is the share of it that arrived; the "
        "rest was taken or given by biases and stabilisers. Far below or above 100 %, the map tells only part of "
        "the story. Gradient and occlusion promise no such sum, so they have none."
    ),
    "seconds": "Time for one map, on this machine.",
    "on the object": (
        "The share of the positive relevance that lies inside the square that the digit was pasted into. A "
        "map drawn at random gets about 16 %, since that is the square's share of the image."
    ),
    "colours": "Red pixels speak for the class, blue ones against it; what is transparent hardly matters.",
}


@dataclass(frozen=True)
class Subject:
    """An image to explain; `truth` and `mask` (H, W) are known for demo images only."""

    name: str
    image: Any
    truth: int | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Explained:
    """A subject, what the model says about it, the maps, and their picture."""

    subject: Subject
    results: SaliencyResults
    answer: Answer
    picture: Path


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(
        prog="saliency-lrp",
        description="Show which pixels of an image a PyTorch model's answer came from.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "image", nargs="?", metavar="IMAGE", help="the image to explain, in any format that Pillow reads"
    )
    _add_model(parser, "the demo network (and images, without IMAGE)")
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help=f"a saliency method; repeat it for several (default: {', '.join(DEFAULT_METHODS)})",
    )
    parser.add_argument("--target", type=int, metavar="N", help="the class to explain (default: the answer)")
    parser.add_argument("--composite", metavar="NAME", help="the rules of method lrp (default: auto)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"where to write (default: IMAGE-saliency or {DEMO_OUT})"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the model's)")
    parser.add_argument("--list", action="store_true", help="list all methods and composites, and stop")
    return parser


def _add_model(parser: argparse.ArgumentParser, demo: str) -> None:
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--model", metavar="NAME", help="a torchvision classifier, with its trained weights")
    whose.add_argument(
        "--module", metavar="FILE.py:NAME", help="a model, or a function without arguments that returns one"
    )
    whose.add_argument("--demo", action="store_true", help=demo)


def build_batch_parser() -> argparse.ArgumentParser:
    """The options of `saliency-lrp batch`."""
    parser = _Parser(
        prog="saliency-lrp batch",
        description="Explain all images of a folder by LRP, into a Zarr store. An interrupted run is resumed by the "
        "same command; under torchrun the processes share the work.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, at any depth")
    _add_model(parser, "the demo network")
    parser.add_argument("--out", type=Path, default=Path("maps.zarr"), metavar="STORE", help="default: %(default)s")
    parser.add_argument(
        "--target",
        action="append",
        type=lambda text: None if text == "best" else int(text),
        metavar="N",
        help="a class to explain, or 'best' for the model's answer; repeat it for several (default: best)",
    )
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NAME", help="also keep this module's relevance; repeatable"
    )
    parser.add_argument("--composite", default="auto", metavar="NAME", help="the rules (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at once, and per chunk (default: 16)")
    parser.add_argument("--float16", action="store_true", help="store maps in half precision")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the model's)")
    parser.add_argument("--overwrite", action="store_true", help="start again instead of going on")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def run_batch(options: argparse.Namespace) -> None:
    """Explain a folder and print what became of it."""
    from .dataset import explain_dataset

    summary = explain_dataset(
        find_model(options).eval(),
        options.folder,
        options.out,
        targets=options.target,
        layers=options.layer,
        composite=options.composite,
        batch_size=options.batch_size,
        dtype="float16" if options.float16 else "float32",
        device=find_device(options.device),
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    print(summary)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 after one line about what was wrong."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files; no window system is needed
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    batch = arguments[:1] == ["batch"]
    options = build_batch_parser().parse_args(arguments[1:]) if batch else build_parser().parse_args(arguments)
    try:
        if batch:
            run_batch(options)
        elif options.list:
            print_names()
        else:
            run(options, shlex.join(["saliency-lrp", *arguments]))
    except (InputError, OSError) as error:
        print(f"saliency-lrp: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace, command: str) -> None:
    """Explain what the options ask for, write it, and print the numbers."""
    subjects = find_subjects(options)
    methods = find_methods(options.method or DEFAULT_METHODS, options.composite)
    device = find_device(options.device)
    model = find_model(options).eval()
    out = options.out or Path(DEMO_OUT if options.image is None else f"{Path(options.image).stem}-saliency")
    out.mkdir(parents=True, exist_ok=True)
    explained = []
    for subject in subjects:
        explained.append(explain(model, subject, methods, options.target, device, out))
        print(as_text(explained[-1]), end="\n\n")
    page = out / "index.html"
    page.write_text(as_page(explained, model, command), encoding="utf-8")
    print(glossary_text(explained))
    print("\nwrote", *[item.picture for item in explained], page, sep="\n  ")


# ----------------------------------------------------------------------------------------------
# What the options name
# ----------------------------------------------------------------------------------------------


def find_subjects(options: argparse.Namespace) -> list[Subject]:
    """The image that was named, or the demo images."""
    if options.image is not None:
        from .images import load_image

        return [Subject(Path(options.image).name, load_image(options.image).picture())]
    if not options.demo:
        raise InputError("no image was given: name one, or use --demo for images that come with the package")
    from .demo import demo_images

    images = enumerate(demo_images(DEMO_IMAGES), start=1)
    return [Subject(f"demo image {i}", image, label, mask) for i, (image, label, mask) in images]


def find_methods(methods: Sequence[str], composite: str | None) -> list[str]:
    """Check the methods' names; `lrp` becomes `lrp:<composite>` where a composite is given."""
    from . import list_composites, list_methods
    from .explainers import registry

    if composite is not None:
        if composite not in list_composites():
            raise unknown_name("composite", composite, list_composites())
        if "lrp" not in methods:
            raise InputError(f"--composite {composite} needs method 'lrp', which is not among the methods")
        methods = [f"lrp:{composite}" if method == "lrp" else method for method in methods]
    for method in methods:
        if method not in list_methods():  # a short list of names, unless composites are asked for
            prefixed = method.startswith(registry.LRP_PREFIX)
            raise unknown_name("method", method, list_methods("lrp:*") if prefixed else plain_methods())
    return list(dict.fromkeys(methods))


def find_device(name: str | None) -> torch.device | None:
    """The device, tried out, so that a missing one is one clear line."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {_one_line(error)}") from error
    return device


def find_model(options: argparse.Namespace) -> nn.Module:
    """The model that the options name."""
    if options.model is not None:
        return torchvision_model(options.model)
    if options.module is not None:
        return module_model(options.module)
    if options.demo:
        from .demo import load_demo_model

        return load_demo_model()
    raise InputError(
        "which model? Name a torchvision classifier (--model resnet50), your own "
        "(--module file.py:make_model), or --demo for the small digit network that comes with the package"
    )


def torchvision_model(name: str) -> nn.Module:
    """A torchvision classifier with its best weights, which carries their preprocessing and class names."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"--model {name} needs torchvision, which cannot be imported here ({_one_line(error)}): "
            "pip install 'saliency-lrp[vision]', in the build that fits your torch"
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision classifier", name, known)
    weights = models.get_model_weights(name).DEFAULT
    try:
        model = models.get_model(name, weights=weights)
    except OSError as error:
        raise InputError(f"the weights of {name} could not be downloaded: {_one_line(error)}") from error
    preset = weights.transforms()
    model.preprocessing = {
        "resize": preset.resize_size[0],
        "crop": preset.crop_size[0],
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
    }
    model.class_names = tuple(weights.meta["categories"])
    return model


def module_model(reference: str) -> nn.Module:
    """The model named by `file.py:name` or `package.module:name`, or returned by the function named."""
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise InputError(f"--module {reference}: expected FILE.py:NAME, such as train.py:make_model")
    found = _attribute(_import(source), name, source)
    if not isinstance(found, nn.Module) and callable(found):
        found = _guarded(found, f"{name}() of {source}")
    if not isinstance(found, nn.Module):
        raise InputError(
            f"--module {reference}: expected a torch.nn.Module or a function that returns one, "
            f"not {type(found).__name__}"
        )
    return found


def _import(source: str) -> ModuleType:
    if not source.endswith(".py"):
        return _guarded(lambda: importlib.import_module(source), f"importing {source}")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"--module: there is no file {source!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # classes defined there can be pickled and inspected
    sys.path.insert(0, str(path.parent.resolve()))  # as `python file.py` would
    try:
        _guarded(lambda: spec.loader.exec_module(module), f"running {source}")
    finally:
        sys.path.pop(0)
    return module


def _attribute(module: ModuleType, name: str, source: str) -> Any:
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"name in {source}", name, public)
    return getattr(module, name)


def _guarded(call: Any, what: str) -> Any:
    """Call the user's own code; what it raises becomes one line that says where."""
    try:
        return call()
    except Exception as error:
        raise InputError(f"{what} raised {type(error).__name__}: {_one_line(error)}") from error


def plain_methods() -> list[str]:
    """All methods but those that are LRP with a named composite."""
    from . import list_methods

    return [name for name in list_methods() if not name.startswith("lrp:")]


def print_names() -> None:
    """Print every method and composite."""
    from . import list_composites

    print("methods (--method):", *plain_methods(), sep="\n  ")
    print("\ncomposites (--composite NAME, or --method lrp:NAME):", *list_composites(), sep="\n  ")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ----------------------------------------------------------------------------------------------
# Explaining
# ----------------------------------------------------------------------------------------------


def explain(
    model: nn.Module,
    subject: Subject,
    methods: list[str],
    target: int | None,
    device: torch.device | None,
    out: Path,
) -> Explained:
    """Make all maps of one image and write their picture."""
    from . import get_image_saliency_plot, get_image_saliency_results
    from .explainers import registry

    # Where relevance went is kept on request only, by the methods that can say it.
    account = {"account": True} if any("account" in registry.option_names(name) for name in methods) else {}
    results = get_image_saliency_results(model, subject.image, label=target, device=device, methods=methods, **account)
    if all(result.error is not None for result in results):
        raise InputError("; ".join(f"{result.method} failed: {result.error}" for result in results))
    figure = get_image_saliency_plot(results, cols=min(len(methods), 3))
    picture = out / f"{subject.name.rpartition('.')[0] or subject.name}.png".replace(" ", "-")
    figure.savefig(picture, dpi=150, bbox_inches="tight")
    return Explained(subject, results, results[0].answer, picture)


def share_inside(relevance: np.ndarray, mask: np.ndarray) -> float:
    """The share of a map's positive relevance, (H, W), that lies inside the mask; NaN if it has none."""
    positive = relevance.clip(min=0)
    return float(positive[mask].sum() / positive.sum()) if positive.any() else float("nan")


# ----------------------------------------------------------------------------------------------
# Showing
# ----------------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f} %"


def headline(item: Explained) -> str:
    """What the model says about an image, and what the truth is where it is known."""
    answer, truth = item.answer, item.subject.truth
    says = f"the model says {answer.name(answer.best)}"
    if truth is not None:
        says += " (right)" if answer.best == truth else f" (wrong: it is {answer.name(truth)})"
    probability = answer.probability()
    odds = "" if probability is None else f", probability {_percent(probability)}"
    return f"{item.subject.name}: {says}; explained: {answer.name()}, score {answer.score():.2f}{odds}"


def table(item: Explained) -> list[list[str]]:
    """The numbers of every method, the first row being their names."""
    mask = item.subject.mask
    rows = [["method", "seconds", "conserved"] + (["on the object"] if mask is not None else [])]
    for result in item.results:
        seconds = "failed" if result.seconds is None else f"{result.seconds:.3f}"
        rows.append([result.method, seconds, _percent(result.conserved)])
        if mask is not None:
            inside = None if result.signed_map is None else share_inside(result.signed_map, mask)
            rows[-1].append(_percent(inside))
    return rows


def _warnings(item: Explained) -> list[str]:
    """Why a method failed, or why not to trust its map."""
    return [
        f"{result.method}: {' '.join(str(text).split())}"
        for result in item.results
        for text in ([result.error] if result.error is not None else result.warnings)
    ]


def as_text(item: Explained) -> str:
    """Headline, table and warnings for a terminal."""
    rows = table(item)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [headline(item)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "   ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, *(f"  warning: {text}" for text in _warnings(item))])


def _terms(explained: list[Explained]) -> dict[str, str]:
    """The glossary, without the terms that these results do not use."""
    known_place = explained[0].subject.mask is not None
    return {term: text for term, text in GLOSSARY.items() if known_place or term != "on the object"}


def glossary_text(explained: list[Explained]) -> str:
    """What the numbers mean, for a terminal."""
    from textwrap import fill

    terms = _terms(explained)
    width = max(map(len, terms)) + 4
    indent = " " * width
    lines = [fill(f"  {t:{width - 2}}{text}", 100, subsequent_indent=indent) for t, text in terms.items()]
    return "\n".join(["what the numbers mean", *lines])


def as_page(explained: list[Explained], model: nn.Module, command: str) -> str:
    """All results as one HTML page with its pictures inside."""
    subjects = "three images" if len(explained) == DEMO_IMAGES else "an image"
    intro = (
        f"What {type(model).__name__} sees in {subjects}, by {len(explained[0].results)} methods: "
        "red pixels speak for the class, blue ones against it."
    )
    terms = _terms(explained).items()
    glossary = (f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in terms)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title="Where the answer came from",
        intro=html.escape(intro),
        sections="\n".join(_section(item) for item in explained),
        glossary="\n".join(glossary),
        command=html.escape(command),
    )


def _section(item: Explained) -> str:
    says, _, numbers = headline(item).partition("; ")
    alt = f"{item.subject.name} and its maps by {', '.join(result.method for result in item.results)}"
    warnings = "".join(f'<p class="warning">{html.escape(text)}</p>' for text in _warnings(item))
    return (
        f'<section><h2>{html.escape(says)}</h2><p class="subject">{_thumbnail(item.subject)}'
        f"<span>{html.escape(numbers)}</span></p>"
        f'<div class="maps"><img alt="{html.escape(alt)}" src="{_inlined(item.picture.read_bytes())}"></div>'
        f"{_html_table(table(item))}{warnings}</section>"
    )


def _thumbnail(subject: Subject, side: int = 96) -> str:
    """The image itself in its own colours, small."""
    picture = subject.image.convert("RGB")
    picture.thumbnail((2 * side, 2 * side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    scale = side / max(picture.size)
    width, height = (round(scale * length) for length in picture.size)
    alt = html.escape(subject.name)
    return f'<img alt="{alt}" width="{width}" height="{height}" src="{_inlined(buffer.getvalue())}">'


def _inlined(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _html_table(rows: list[list[str]]) -> str:
    head, *body = rows

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = [line(head, "th"), *(line(row, "td") for row in body)]
    return f'<div class="table"><table>{"".join(lines)}</table></div>'
