"""The front door: a model and a picture become a widget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..display.looks import LOOKS
from ..explainers.registry import DEFAULT_METHODS
from ..question import sort_positions
from .widget import SaliencyWidget


def compare_saliency(
    model: Any,
    raw_image: Any,
    input: Any = None,
    label: Any = None,
    device: Any = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    composite: Any = "auto",
    layer: str = "",
    channel: int = -1,
    top_k: int = 5,
    wait: float | None = 2.0,
    truth: Any = None,
    **options: Any,
) -> SaliencyWidget:
    """Explore saliency methods over one picture in a notebook.

    The model is run once for LRP; other composites, classes, layers and channels are backward passes of that run. Other
    methods are computed in a worker thread and appear as they finish: until then (``widget.wait()``) do not train the
    model, which they hold in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. It is left as it was.
    raw_image : PIL image, numpy.ndarray, path, Tensor or None
        The picture, as for ``get_saliency``.
    input : Tensor, optional
        What the model takes, (1, C, H, W); default: made from the image by the model's own preprocessing.
        A volume, (1, C, D, H, W), is shown slice by slice.
    label : int, Tensor, callable or None
        Class to begin with; default: the highest score. A callable of the model's output for models without classes.
    device : torch.device or str, optional
        Where to work; with another device than the model's own a copy of the model is explained.
    methods : sequence of str
        Names from ``list_methods()``.
    composite : str, Composite or Rule
        Composite to begin with.
    layer : str
        A layer to show beside the methods, as in ``model.named_modules()``.
    channel : int
        A channel of that layer, whose concept map is shown too.
    top_k : int
        Classes listed with their probabilities.
    wait : float or None
        Seconds that showing the widget waits for maps of other methods than LRP, whose map it waits for anyway;
        None waits for all of them. Maps that come later are put into the picture that a saved notebook keeps.
    truth : array_like, optional
        Where the object is, outlined in every panel: a mask of the picture's size, or a box (left, top, right, bottom).
    **options
        ``opacity``, ``cmap``, ``sign`` (both, positive, negative), ``percentile``, ``backdrop`` (color, gray, none);
        ``transform``, ``geometry``, ``class_names``; and the methods' own options, each for the methods that know it.

    Returns
    -------
    SaliencyWidget

    Raises
    ------
    InputError
        For what cannot be explained, and for names that do not exist.
    """
    from ..explainers.plan import plan_methods
    from .model_maps import ModelMaps

    look = {name: options.pop(name) for name in LOOKS if name in options}
    device, methods, layer_path = sort_positions(device, methods, options.pop("layer_path", None), DEFAULT_METHODS)
    methods = [methods] if isinstance(methods, str) else list(methods)
    plan_methods([*methods, "lrp"], layer_path, options)  # an option that none of them knows is an error
    source = ModelMaps(model, raw_image, input, label, device, composite, {**options, "layer_path": layer_path}, truth)
    code = ["model", "image", *(["input=input"] if input is not None else [])]
    code += ["truth=truth"] if truth is not None else []
    code += [f"{name}={_as_code(name, value)}" for name, value in options.items()]
    return SaliencyWidget(
        source,
        selected=methods,
        composite=source.composite,
        target=source.target,
        layer=layer,
        channel=channel,
        top_k=top_k,
        code=code,
        patience=wait,
        own_composite="" if isinstance(composite, str) else source.composite,
        **look,
    )


def _as_code(name: str, value: Any) -> str:
    """A value as code if it is plain; else the name of the variable that presumably holds it."""
    return repr(value) if isinstance(value, (str, int, float, bool, tuple, type(None))) else name
