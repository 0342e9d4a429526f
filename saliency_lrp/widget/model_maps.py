"""A model's maps for one picture, as the widget asks for them: one forward pass, then backward passes only."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from .. import composites, images, waterfall
from .. import verdict as words
from ..display import volume
from ..errors import InputError, unknown_name
from ..explainers import registry
from ..explainers.base import class_scores, resolve_target
from ..explainers.cam import FeatureMap, read_feature_map
from ..explainers.plan import frameless, options_for
from ..explainers.progress import watching
from ..model.answer import Answer
from ..model.card import read_card
from ..model.unwrapped import unwrapped
from ..propagator import RelevancePropagator, Trace
from ..question import find_device, prepare
from . import marks
from .source import Channels, Checked, Map
from .worker import Progress

LONGEST_SIDE = 448  # of the picture in the browser: more is not seen, and every map is as large
MOST_VOXELS = 400_000  # of a volume: as much as two such pictures
MOST_CHANNELS = 16
THUMBNAIL = 56


class ModelMaps:
    """Maps of one model for one picture; a :class:`saliency_lrp.widget.MapSource`.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was. With another `device` than its own, a copy of it is explained.
    raw_image, input, label, device
        As for :func:`saliency_lrp.get_saliency`; one picture.
    composite : str, Composite or Rule
        The composite that is shown first.
    options : mapping
        Options of methods, ``transform``, ``geometry``, ``class_names``, ``seed``.
    truth : array_like, optional
        Where the object is: a mask of the picture, or a box (left, top, right, bottom).

    Attributes
    ----------
    forwards : int
        Forward passes made for LRP so far: one, and one more each time the weights have changed.
    """

    def __init__(
        self,
        model: nn.Module,
        raw_image: Any,
        input: Tensor | None,
        label: Any,
        device: Any,
        composite: Any,
        options: Mapping[str, Any],
        truth: Any = None,
    ) -> None:
        self.model = self._on(unwrapped(model), device)
        self.card = read_card(self.model)
        self.options = dict(options)
        self._lock = threading.Lock()
        raw, x, geometry, self.notes = prepare(self.model, raw_image, input, self.options)
        self.x = self.card.fitting(_one_picture(x))
        shown = _shown(raw, self.x)
        if shown.ndim == 4:
            self.picture, self.geometry = shown, None
        else:
            self.picture, self.geometry = _shrunk(shown, geometry or images.Geometry.whole(shown.shape[:2]))
        self.frame = self._frame()
        self.truth_mask = self._mask(truth, shown.shape[:2])
        self.truth = "" if self.truth_mask is None else marks.outline(self.truth_mask)
        self._by_name, self.composite, self.composites = _named(composite)
        self.composite_groups = _groups(self.composites)
        self.methods = registry.list_methods()
        self.forwards = 0
        self._trace: Trace | None = None
        self._versions: tuple[int, ...] = ()
        self.question = label if callable(label) else None
        self._settle(label)

    @staticmethod
    def _on(model: nn.Module, device: Any) -> nn.Module:
        card = read_card(model)
        where = find_device(device, card)
        return model if where == card.device else copy.deepcopy(model).to(where)

    def _frame(self) -> list[float]:
        """Top, left, bottom and right of what the model saw, where that is not the whole picture."""
        box = None if self.geometry is None else self.geometry.visible_box()
        return [] if box is None else [round(edge, 2) for edge in box]

    def _mask(self, truth: Any, size: tuple[int, ...]) -> np.ndarray | None:
        if truth is None:
            return None
        if self.geometry is None:
            raise InputError("truth= outlines an object in a picture: it cannot be drawn on the slices of a volume.")
        return marks.shrunk(marks.as_mask(truth, (size[0], size[1])), self.geometry.raw)

    def _settle(self, label: Any) -> None:
        """Run the model once; who speaks for which class, and which layers can be drawn."""
        trace = self.trace()
        self.probabilities, self.classes, self.target = np.zeros(0), [], -1
        if self.question is None:
            scores = class_scores(trace.output)
            names = self.options.get("class_names") or self.card.names
            answer = Answer.of(scores[0], int(resolve_target(scores, label)[0]), names)
            self.target = answer.target
            self.probabilities = answer.shares.numpy()
            if names is not None:
                self.classes = [answer.name(index) for index in range(len(answer.scores))]
        self._layers = self._drawable(trace)
        self.layers = list(self._layers)

    def trace(self) -> Trace:
        """The recorded forward pass; made again only where parameters or buffers have changed since."""
        versions = tuple(
            0 if t.is_inference() else t._version  # inference tensors cannot change
            for t in (*self.model.parameters(), *self.model.buffers())
        )
        with self._lock:
            if self._trace is None or versions != self._versions:
                self.forwards += 1
                self._trace = RelevancePropagator(self.model, self._by_name[self.composite]).trace(self.x)
                self._versions = versions
            return self._trace

    def _drawable(self, trace: Trace) -> dict[str, FeatureMap]:
        """Modules whose output is features on a grid over the picture, in the order they finished."""
        found: dict[str, FeatureMap] = {}
        if self.x.ndim != 4:
            return found
        for path, calls in trace.calls.items():
            outputs = calls[-1].outputs
            if not path or len(outputs) != 1 or trace.is_folded(outputs[0]):
                continue  # a layer with a batch norm folded into it has the batch norm's relevance
            features = read_feature_map(path, self.model, outputs[0].no_relevance(), self.x)
            if features is not None:
                found[path] = features
        return found

    # ---- what the widget asks ------------------------------------------------------------------------------------

    def _asked(self, target: int | None) -> Any:
        return self.question if self.question is not None else target

    def _seed(self) -> Any:
        return frameless(self.options).get("seed", "logit")

    def _placed(self, values: Tensor) -> np.ndarray:
        if self.geometry is None:
            return (
                F.interpolate(values.detach()[None, None].double(), self.picture.shape[:3], mode="area")[0, 0]
                .cpu()
                .numpy()
            )
        return self.geometry.place(values.detach().double().cpu().numpy())

    def lrp(self, target: int | None, composite: str) -> Map:
        """Relevance of the picture under a composite, with its account: one backward pass."""
        trace = self.trace()
        relevance = trace.relevance(self._asked(target), self._seed(), self._by_name[composite], account=True)
        report = trace.report()
        warnings = [*self.notes, *report.warnings]
        if not relevance.any():
            warnings.append("the map is zero everywhere")
        return Map(self._placed(relevance[0].sum(0)), _account(report, self.layers), tuple(warnings))

    def layer(self, name: str, target: int | None, composite: str) -> tuple[Map, Channels]:
        """Relevance at a layer, summed over its channels and enlarged; and its strongest channels."""
        relevance = self.trace().layer_relevance(name, self._asked(target), self._seed(), self._by_name[composite])
        spatial = self._layers[name].spatial(relevance)[0]
        return Map(self._placed(spatial.sum(0))), _channels(spatial)

    def check(self, panel: str, target: int | None, composite: str, watch: Progress) -> Checked:
        """Measure whether a map can be trusted; see :mod:`saliency_lrp.check`."""
        from ..check.door import check

        name = "lrp" if panel == "lrp" else panel
        options = {**options_for(name, self.options.get("layer_path"), self.options)}
        layer_path = options.pop("layer_path", None)
        if panel == "lrp":
            options["composite"] = self._by_name[composite]
        with watching(watch.reached):
            found = check(self.model, None, self.x, self._asked(target), method=name, layer_path=layer_path, **options)
        return _checked(found, self._placed, registry.is_signed(name))

    def concept(self, layer: str, channel: int, target: int | None, composite: str) -> Map:
        """Relevance that reaches the picture through one channel of a layer (Achtibat et al. 2023).

        Relevance is taken at the layer, every other channel is set to 0, and what is left goes on to the picture.
        """
        trace = self.trace()
        mask = trace.calls[layer][-1].outputs[0].no_relevance()
        channels = self._layers[layer].spatial(mask)  # a view
        if not 0 <= channel < channels.shape[1]:
            raise InputError(f"layer {layer!r} has channels 0 to {channels.shape[1] - 1}, not {channel}.")
        channels[:, channel] = 1
        through = trace.relevance(self._asked(target), self._seed(), self._by_name[composite], condition={layer: mask})
        return Map(self._placed(through[0].sum(0)))

    def method(self, name: str, target: int | None, watch: Progress) -> Map:
        """The map of any other method; `watch` hears of its passes and can call it off."""
        options = options_for(name, self.options.get("layer_path"), self.options)
        explainer = registry.get(name, self.model, **options)
        with watching(watch.reached):
            relevance = explainer.explain(self.x, self._asked(target), self.picture)
        warnings = [*self.notes]
        if not relevance.any():
            warnings.append("the map is zero everywhere")
        signed = getattr(explainer, "signed", True)
        return Map(self._placed(relevance[0].sum(0)), warnings=tuple(warnings), signed=signed)


def _checked(found: Any, placed: Callable[[Tensor], np.ndarray], signed: bool) -> Checked:
    return Checked(
        found.verdict,
        found.passed,
        [{"name": finding.name, "text": finding.text, "holds": bool(finding.holds)} for finding in found.findings],
        list(found.left_out),
        [(f.name, placed(f.map[0].sum(0))) for f in found.findings if f.map is not None and f.name != "made again"],
        signed,
    )


def _one_picture(x: Tensor) -> Tensor:
    if x.ndim not in (4, 5) or x.shape[0] != 1:
        raise InputError(
            "the widget shows one picture, an input of shape (1, C, H, W), or the slices of one volume, "
            f"(1, C, D, H, W), not {tuple(x.shape)}. For text see "
            "saliency_lrp.text.show_text, for series saliency_lrp.timeseries.plot_relevance."
        )
    return x


def _shown(raw: Any, x: Tensor) -> np.ndarray:
    """The picture under the maps, (H, W, 3) uint8: the image, or the input itself scaled to be seen."""
    if raw is not None:
        return np.asarray(images.load_image(raw).picture())
    values = x[0].detach().float().cpu()
    if values.ndim == 4:
        return volume.grays(values, MOST_VOXELS)
    values = values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)
    return np.rint(images.normalize(values.permute(1, 2, 0).numpy()) * 255).astype(np.uint8)


def _shrunk(picture: np.ndarray, geometry: images.Geometry) -> tuple[np.ndarray, images.Geometry]:
    """A large picture made small enough to send, and the geometry that goes with it."""
    from PIL import Image

    factor = min(1.0, LONGEST_SIDE / max(picture.shape[:2]))
    if factor == 1.0:
        return picture, geometry
    size = tuple(max(1, round(side * factor)) for side in picture.shape[:2])
    scales = [new / old for new, old in zip(size, picture.shape[:2], strict=True)] * 2
    box = tuple(edge * scale for edge, scale in zip(geometry.box, scales, strict=True))
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX)), images.Geometry(size, box)


def _named(composite: Any) -> tuple[dict[str, composites.Composite], str, list[str]]:
    """Composites by the name they have in the selector; the one to begin with; all names."""
    known = {name: composites.get(name) for name in composites.list_composites()}
    if isinstance(composite, str):
        if composite not in known:
            raise unknown_name("composite", composite, known)
        return known, composite, list(known)
    own = composites.get(composite)
    return {own.name: own, **known}, own.name, list({own.name: own, **known})


def _groups(names: list[str]) -> list[list[Any]]:
    """Composites with a line about each, those to begin with first; one's own before all."""
    known = composites.list_composites()
    own = [[name, "the composite that was given"] for name in names if name not in known]
    groups: list[list[Any]] = [
        [group, [[name, composites.describe(name)] for name in members]]
        for group, members in composites.grouped().items()
    ]
    groups[0][1] = own + groups[0][1]
    return groups


def _account(report: Any, layers: Sequence[str]) -> dict[str, Any]:
    """The account as the panel shows it: in a line, in a sentence, as bars that open layers, as rows and as text."""
    rows = [["at the output", f"{report.seed:+.4g}"], ["reached the picture", f"{report.result:+.4g}"]]
    rows += [[f"taken by {name}", f"{value:+.4g}"] for name, value in report.absorbed.items()]
    return {
        "summary": re.split(r"[;:.]\s", report.verdict, maxsplit=1)[0].rstrip("."),
        "verdict": report.verdict,
        "bars": _bars(report, layers),
        "rows": rows,
        "text": report.table(20),
    }


def _bars(report: Any, layers: Sequence[str]) -> list[dict[str, Any]]:
    """Steps from the score to what arrived, each with a layer that can be drawn where it has one."""
    stages = {words.SINKS[loss.sink].format(loss.stage): loss.stage for loss in words.losses(report)}
    return [
        {**step._asdict(), "label": step.label, "layer": _layer_of(stages.get(step.name), layers)}
        for step in waterfall.steps(report)
    ]


def _layer_of(stage: str | None, layers: Sequence[str]) -> str:
    """The stage itself, or the last layer inside it; empty where none can be drawn."""
    if stage is None:
        return ""
    inside = [layer for layer in layers if layer == stage or layer.startswith(f"{stage}.")]
    return stage if stage in inside else inside[-1] if inside else ""


def _channels(spatial: Tensor) -> Channels:
    """The strongest channels of (C, h, w) relevance."""
    sums = spatial.sum((1, 2)).double()
    total = float(sums.abs().sum()) or 1.0
    best = sums.abs().argsort(descending=True, stable=True)[:MOST_CHANNELS].tolist()
    maps = spatial[best][None].float()
    height, width = (min(side, THUMBNAIL) for side in maps.shape[2:])
    small = F.adaptive_avg_pool2d(maps, (height, width))[0].cpu().numpy()
    entries = [
        {"index": index, "relevance": float(sums[index]), "share": abs(float(sums[index])) / total} for index in best
    ]
    return Channels(entries, small)
