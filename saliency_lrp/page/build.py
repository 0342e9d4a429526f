"""Writing the page: the map as an ONNX graph, how pictures become its input, and the browser's side."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ..compiled import Compiled
from ..composites import Composite
from ..display.colors import CLIP_PERCENTILE, OPACITY, SIGNED_COLORS, color_table
from ..errors import InputError
from ..graphs.onnx import to_onnx
from ..images import Preprocessing, input_channels, load_image, preprocessing_of
from ..model.answer import class_name, class_names
from ..model.unwrapped import unwrapped
from ..rules import Rule
from ..widget.page import SCRIPT
from .runtime import copy_runtime

aten = torch.ops.aten
STATIC = Path(__file__).parent / "static"


def write_page(
    model: nn.Module,
    out: str | os.PathLike[str],
    composite: str | Composite | Rule = "auto",
    examples: Sequence[Any] = (),
    runtime: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write a folder that explains pictures in a browser, with nothing behind it but files.

    Serve it by any web server (``python -m http.server --directory site``). Pictures stay in the browser.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier of pictures, with the preprocessing that :func:`saliency_lrp.images.preprocessing_of` finds.
    out : path
        The folder; files of the same names are written over.
    composite : str, Composite or Rule
        Which site gets which rule.
    examples : sequence of images
        Pictures to begin with, in any form that ``load_image`` reads.
    runtime : path, optional
        The unpacked npm package ``onnxruntime-web``; without it npm fetches the version that the page was tested with.
    title : str, optional
        Over the page; the model's class.

    Returns
    -------
    Path
        Of ``index.html``.

    Raises
    ------
    InputError
        For a model whose input has no fixed size, that cannot be captured or written as ONNX, and without runtime.
    """
    model, out = unwrapped(model), Path(out)
    preprocessing, channels = preprocessing_of(model), input_channels(model) or 3
    size = input_size(preprocessing)
    out.mkdir(parents=True, exist_ok=True)
    copy_runtime(out, runtime)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype != torch.float32:
        raise InputError(f"the page computes in float32, the model is of {dtype}: give model.float()")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = torch.zeros(1, channels, *size, device=device)
    # an example of nothing has ties and zeros: the graph is for any values, but a model may refuse such
    x += torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = Compiled(model, (x,), composite, torch.zeros(1, dtype=torch.long), dynamic_batch=False)
    answer_where_negative(compiled.graph)
    to_onnx(compiled.graph, compiled.arguments(), out / "model.onnx", ["input", "target"], ["output", "relevance"])
    names = class_names(model)
    settings = {
        "title": title or type(model).__name__,
        "composite": next(iter(compiled.composites.values())).name,
        "classes": [class_name(names, k) for k in range(compiled.classes or 1)],
        "preprocessing": settings_of(preprocessing, channels, size),
        "colors": color_table(SIGNED_COLORS).reshape(-1).tolist(),
        "percentile": CLIP_PERCENTILE,
        "opacity": OPACITY,
        "bytes": (out / "model.onnx").stat().st_size,
        "examples": write_examples(examples, out),
    }
    (out / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    for path in STATIC.iterdir():
        shutil.copyfile(path, out / path.name)
    shutil.copyfile(SCRIPT, out / "overlay.js")
    return out / "index.html"


def input_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of the model's input, which must be the same for all pictures."""
    size = preprocessing.crop or preprocessing.resize
    if not isinstance(size, tuple):
        raise InputError(
            "the page needs a model whose input has one size. Say it by model.preprocessing = "
            "{'resize': 256, 'crop': 224, 'mean': ..., 'std': ...}, or {'size': (64, 64)}"
        )
    return size


def settings_of(preprocessing: Preprocessing, channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """How a picture becomes the input, for the browser."""

    def each(numbers: tuple[float, ...] | None, none: float) -> list[float]:
        if numbers is None:
            return [none] * channels
        t = torch.tensor(numbers)
        return (t if len(t) == channels else t.mean(0, keepdim=True).expand(channels)).tolist()

    return {
        "resize": preprocessing.resize,
        "fit": preprocessing.fit,
        "size": size,
        "channels": channels,
        "mean": each(preprocessing.mean, 0.0),
        "std": each(preprocessing.std, 1.0),
        "interpolation": preprocessing.interpolation,
    }


def write_examples(examples: Sequence[Any], out: Path) -> list[str]:
    """Pictures beside the page; their file names."""
    names = []
    for k, example in enumerate(examples, start=1):
        names.append(f"example-{k}.png")
        load_image(example).picture().save(out / names[-1])
    return names


def answer_where_negative(graph: fx.GraphModule) -> None:
    """Let a negative class mean the model's own answer, so that one run gives it and its map."""
    *_, target = (node for node in graph.graph.nodes if node.op == "placeholder")
    result = next(node for node in graph.graph.nodes if node.op == "output")
    scores = result.args[0][0]
    users = list(target.users)
    with graph.graph.inserting_after(scores):
        best = graph.graph.call_function(aten.argmax.default, (scores, -1))
    with graph.graph.inserting_after(best):
        open_ = graph.graph.call_function(aten.lt.Scalar, (target, 0))
    with graph.graph.inserting_after(open_):
        chosen = graph.graph.call_function(aten.where.self, (open_, best, target))
    for user in users:
        user.replace_input_with(target, chosen)
    graph.graph.lint()  # what asks for the class comes after the scores
    graph.recompile()
