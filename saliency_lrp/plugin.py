"""Registering with TensorWatch and IPython: attach when TensorWatch is imported, and take it all back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

TENSORWATCH = "tensorwatch"
TENSORWATCH_SALIENCY = "tensorwatch.saliency.saliency"

#: the methods that TensorWatch's own ``get_image_saliency_results`` shows
TENSORWATCH_METHODS = (
    "lime_imagenet",
    "gradcam",
    "smooth_grad",
    "guided_backprop",
    "deeplift",
    "grad_x_input",
)

_ABSENT = object()
_active = False
_waiting: set[str] = set()
#: what stood in TensorWatch before: (module, attribute) to value, or _ABSENT
_before: dict[tuple[str, str], Any] = {}


def _get_image_saliency_results(
    model: Any,
    raw_image: Any,
    input: Any = None,
    label: Any = None,
    device: Any = None,
    methods: Sequence[str] = TENSORWATCH_METHODS,
    layer_path: Any = None,
    **options: Any,
) -> Any:
    """:func:`saliency_lrp.get_image_saliency_results` with TensorWatch's six methods by default."""
    from . import saliency
    from .question import sort_positions

    device, methods, layer_path = sort_positions(device, methods, layer_path, TENSORWATCH_METHODS)
    return saliency.get_image_saliency_results(model, raw_image, input, label, device, methods, layer_path, **options)


def _get_image_saliency_plot(image_saliency_results: Sequence[Any], cols: int = 2, figsize: Any = None) -> Any:
    """TensorWatch's look, in a pyplot figure: a notebook shows it without being asked."""
    from .display import figure

    return figure.draw_tensorwatch(image_saliency_results, cols, figsize)


def _get_explainer(explainer_name: str, model: Any, layer_path: Any = None) -> Any:
    """TensorWatch's table of explainers, answered from ours."""
    from .explainers import registry

    takes_layer = layer_path is not None and "layer_path" in registry.option_names(explainer_name)
    return registry.get(explainer_name, model, **({"layer_path": layer_path} if takes_layer else {}))


def _attachments(name: str) -> dict[str, Any]:
    """What TensorWatch's module `name` answers with while registered."""
    from . import results, saliency

    if name == TENSORWATCH:
        return {
            "get_saliency": saliency.get_saliency,
            "get_image_saliency_results": saliency.get_image_saliency_results,
            "get_image_saliency_plot": results.get_image_saliency_plot,
            "compare_saliency": saliency.compare_saliency,
        }
    return {
        "get_saliency": saliency.get_saliency,
        "get_image_saliency_results": _get_image_saliency_results,
        "get_image_saliency_plot": _get_image_saliency_plot,
        "ImageSaliencyResult": results.ImageSaliencyResult,
        "_get_explainer": _get_explainer,
    }


def _attach(module: ModuleType) -> None:
    """Put our functions on a TensorWatch module, remembering what was there."""
    name = module.__name__
    _waiting.discard(name)
    if not _active:
        return
    for attribute, value in _attachments(name).items():
        if (name, attribute) not in _before:
            _before[name, attribute] = module.__dict__.get(attribute, _ABSENT)
        setattr(module, attribute, value)


def _running_shell() -> Any:
    """The IPython shell that this runs in; None elsewhere, where IPython is not even imported."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None or not hasattr(ipython, "get_ipython") else ipython.get_ipython()


def register() -> None:
    """Attach to TensorWatch, now or whenever it is imported; in IPython, bring ``%saliency``.

    Calling it again changes nothing.
    """
    import wrapt

    global _active
    if _active:
        return
    _active = True
    if _running_shell() is not None:
        from .magics import register_magics

        register_magics(_running_shell())
    for name in (TENSORWATCH, TENSORWATCH_SALIENCY):
        if name in sys.modules or name not in _waiting:
            _waiting.add(name)
            wrapt.register_post_import_hook(_attach, name)


def unregister() -> None:
    """Give TensorWatch every attribute back as it was before :func:`register`."""
    global _active
    _active = False
    for (name, attribute), value in _before.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        if value is _ABSENT:
            module.__dict__.pop(attribute, None)
        else:
            setattr(module, attribute, value)
    _before.clear()


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext saliency_lrp``: register with TensorWatch, and the magics ``%saliency`` and ``%%saliency``."""
    from .magics import register_magics

    register()
    register_magics(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext saliency_lrp``."""
    from .magics import unregister_magics

    unregister()
    unregister_magics(ipython)
