"""Saliency maps for any PyTorch model, by layer-wise relevance propagation and other methods.

Importing this package registers it with TensorWatch; everything heavy is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from .lrp_linear import lrp_linear  # at once: later, the submodule of that name would hide it
from .plugin import load_ipython_extension, register, unload_ipython_extension, unregister

__version__ = "0.1.0"

# Public name -> where it is defined; a module path alone is the module itself.
_PUBLIC = {
    "get_saliency": "saliency",
    "get_image_saliency_results": "saliency",
    "get_image_saliency_plot": "results",
    "compare_saliency": "saliency",
    "ImageSaliencyResult": "results",
    "SaliencyResults": "results",
    "list_methods": "explainers.registry",
    "list_rules": "rules",
    "list_composites": "composites",
    "LrpExplainer": "explainers.lrp",
    "RelevancePropagator": "propagator",
}
_MODULES = ("composites", "evaluation", "images", "inverter_util", "rules")

__all__ = [
    *_PUBLIC,
    *_MODULES,
    "load_ipython_extension",
    "lrp_linear",
    "register",
    "unload_ipython_extension",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
