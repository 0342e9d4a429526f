"""Class activation maps: where the last spatial features speak for the class, in series, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, unknown_name
from .base import Explainer, Question, Target
from .registry import register_explainer
from .several import Bundle

# Class and register tokens stand in front of the patch tokens of vision transformers.
_MOST_EXTRA_TOKENS = 8
# A grid counts as the image's own if its sides are in the image's proportion, up to rounding.
_PROPORTION_TOLERANCE = 0.25
# How a map on a grid of so many sides is enlarged to the input's size.
_ENLARGE = {1: "linear", 2: "bilinear", 3: "trilinear"}
# Modules of series that put features last; others put them first, as convolutions do.
_FEATURES_LAST = (nn.Linear, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.Embedding)

Grid = tuple[int, ...]


@dataclass
class FeatureMap:
    """A tensor that a module returned or took, read as features on a grid over the input."""

    path: str
    module: nn.Module
    tensor: Tensor
    layout: str  # "channels_first", "channels_last" or "tokens"
    grid: Grid

    def spatial(self, tensor: Tensor) -> Tensor:
        """`tensor`, shaped like ours, as (N, C, *grid)."""
        if self.layout == "channels_first":
            return tensor
        if self.layout == "channels_last":
            return tensor.movedim(-1, 1)
        return tensor[:, tensor.shape[1] - math.prod(self.grid) :].movedim(-1, 1).unflatten(-1, self.grid)


def _is_grid(grid: Grid, size: Grid) -> bool:
    """Whether a grid has more than one place on every side, and the proportions of the input."""
    if not all(1 < g <= s or g == s == 1 for g, s in zip(grid, size, strict=True)):
        return False
    (g0, s0), *others = zip(grid, size, strict=True)
    return all(abs(g0 / g * s / s0 - 1) <= _PROPORTION_TOLERANCE or abs(g0 - g * s0 / s) <= 1 for g, s in others)


def _token_grid(length: int, size: Grid) -> Grid | None:
    """The grid of the patch tokens in a sequence of `length`; extra tokens come first."""
    for extra in range(min(_MOST_EXTRA_TOKENS, length - 4) + 1):
        patches = length - extra
        scale = (patches / math.prod(size)) ** (1 / len(size))
        *sides, _ = (round(s * scale) for s in size)
        last, rest = divmod(patches, max(math.prod(sides), 1))
        grid = (*sides, last)
        if not rest and _is_grid(grid, size):
            return grid
    return None


def read_feature_map(
    path: str, module: nn.Module, tensor: object, x: Tensor, features_last: bool = False
) -> FeatureMap | None:
    """Read a tensor as features on a grid over the input `x`; None where it is no such thing.

    In a series nothing but the module that made a tensor tells positions from features: `features_last` does.
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or len(tensor) != len(x):
        return None
    size = tuple(x.shape[2:])
    if tensor.ndim == x.ndim:
        layouts = {"channels_first": tuple(tensor.shape[2:]), "channels_last": tuple(tensor.shape[1:-1])}
        if len(size) == 1:
            layouts.pop("channels_first" if features_last else "channels_last")
        for layout, grid in layouts.items():
            if _is_grid(grid, size):
                return FeatureMap(path, module, tensor, layout, grid)
    if tensor.ndim == 3 and len(size) > 1 and (tokens := _token_grid(tensor.shape[1], size)):
        return FeatureMap(path, module, tensor, "tokens", tokens)
    return None


@contextmanager
def _watched(model: nn.Module, x: Tensor, only: nn.Module | None) -> Iterator[list[FeatureMap]]:
    """Collect the feature maps of one forward pass, in the order in which they are finished."""
    found: list[FeatureMap] = []
    names = {module: name for name, module in model.named_modules()}
    shapes_with_features_last: set[torch.Size] = set()

    def read(module: nn.Module, tensor: object) -> FeatureMap | None:
        tensor = tensor[0] if isinstance(module, nn.RNNBase) and isinstance(tensor, tuple) else tensor
        if not isinstance(tensor, Tensor):
            return None
        if isinstance(module, _FEATURES_LAST):
            shapes_with_features_last.add(tensor.shape)
        return read_feature_map(names[module], module, tensor, x, tensor.shape in shapes_with_features_last)

    def note(module: nn.Module, args: tuple, output: object) -> None:
        if only is not None and module is not only:
            read(module, output)  # only for what it tells of layouts
            return
        seen = read(module, output)
        if seen is None and only is not None:
            # A pooling layer was named: the features are what goes into it.
            seen = read(module, args[0] if args else None)
        if seen is not None:
            found.append(seen)

    handles = [m.register_forward_hook(note) for m in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _not_attention(maps: list[FeatureMap]) -> list[FeatureMap]:
    """Leave out attention matrices (tokens by tokens) and the layers inside a transformer block."""
    lengths = {m.tensor.shape[1] for m in maps if m.layout == "tokens"}
    if not lengths:
        return maps
    inner = (nn.Linear, nn.Dropout, nn.Conv1d)
    return [
        m
        for m in maps
        if not (m.layout == "channels_first" and len(set(m.grid)) == 1 and m.grid[0] in lengths)
        and not (m.layout == "tokens" and isinstance(m.module, inner))
    ]


def find_layer(model: nn.Module, layer_path: str | Sequence[str]) -> nn.Module:
    """The module at a dotted name or at TensorWatch's list of names.

    Raises
    ------
    UnknownNameError
        With the nearest module name.
    """
    name = layer_path if isinstance(layer_path, str) else ".".join(map(str, layer_path))
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise unknown_name("layer_path", name, [n for n in modules if n])
    return modules[name]


def class_activation(model: nn.Module, x: Tensor, question: Question, layer_path: str | Sequence[str] | None) -> Tensor:
    """Signed Grad-CAM of every item, (N, 1, *grid) on the grid of the layer.

    Without `layer_path` the layer is the last one with a spatial map on which the score depends
    at every place (the last block of a vision transformer passes on nothing but the class token).
    """
    if not 3 <= x.ndim <= 5:
        raise InputError(
            "gradcam works on series (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W), "
            f"not on an input of shape {tuple(x.shape)}."
        )
    only = None if layer_path is None else find_layer(model, layer_path)
    x = x.detach().clone().requires_grad_()
    with _watched(model, x, only) as found:
        score = question.score(x)
    maps = [m for m in _not_attention(found) if m.tensor.requires_grad]
    if not maps:
        where = "no layer of the model has" if only is None else f"the layer {layer_path!r} does not have"
        raise InputError(f"gradcam found no feature map: {where} spatial features larger than 1x1.")
    gradients = torch.autograd.grad(score.sum(), [m.tensor for m in maps], allow_unused=True)
    for m, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        if gradient is None:
            continue
        gradient = m.spatial(gradient)
        if only is not None or gradient.abs().sum((0, 1)).count_nonzero() > 1:
            weights = gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True)
            return (weights * m.spatial(m.tensor.detach())).sum(1, keepdim=True)
    raise InputError("gradcam found no spatial features on which the score depends.")


def only_positive(cam: Tensor) -> Tensor:
    """What speaks for the class; for an item where nothing does, what speaks against it, negative."""
    nothing = cam.amax(tuple(range(1, cam.ndim)), keepdim=True) <= 0
    return torch.where(nothing, cam, cam.clamp_min(0))


def spread(cam: Tensor, x: Tensor) -> Tensor:
    """Enlarge (N, 1, *grid) to the input's size and share it among the channels, whose sum is the map."""
    large = F.interpolate(cam, size=x.shape[2:], mode=_ENLARGE[x.ndim - 2], align_corners=False)
    return (large / x.shape[1]).expand_as(x)


@register_explainer("gradcam")
class GradCam(Explainer):
    """Grad-CAM (Selvaraju et al. 2017): feature maps weighted by their mean gradient, positive part.

    Works on series (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W).

    Parameters
    ----------
    model : torch.nn.Module
    layer_path : str or sequence of str, optional
        The layer, by dotted name (``"layer4.1"``) or TensorWatch's list of names. A pooling layer
        without spatial output stands for its input. Default: found by one forward pass.
    relu : bool
        Keep only what speaks for the class, as the paper does. Where nothing does, the map is what
        speaks against it, with negative sign.
    """

    signed = False

    def __init__(self, model: nn.Module, layer_path: str | Sequence[str] | None = None, relu: bool = True) -> None:
        super().__init__(model)
        if layer_path is not None:
            find_layer(self.model, layer_path)
        self.layer_path = layer_path
        self.relu = relu
        self.signed = not relu

    def attribute_several(self, bundle: Bundle, label: Target) -> dict[int, Tensor]:
        if sum(t.dim() > 2 for t in bundle.given) > 1:
            raise InputError(
                "gradcam explains models of one picture: of several it cannot tell whose features a layer shows. Take "
                "another method (lrp, grad_x_input, ...)."
            )
        return super().attribute_several(bundle, label)

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        cam = class_activation(self.model, x, question, self.layer_path)
        return spread(only_positive(cam) if self.relu else cam, x)
