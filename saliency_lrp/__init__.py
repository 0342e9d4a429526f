"""Saliency maps for any PyTorch model, by layer-wise relevance propagation and other methods.

Importing this package registers it with TensorWatch; everything heavy but PyTorch is imported on first use.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from .lrp_linear import lrp_linear  # at once: later, the submodule of that name would hide it
from .plugin import load_ipython_extension, register, unload_ipython_extension, unregister

if _TYPE_CHECKING:  # what follows in _PUBLIC, for editors and type checkers
    from . import (
        check,
        composites,
        dataset,
        demo,
        evaluation,
        functions,
        images,
        inverter_util,
        rules,
        stream,
        text,
        timeseries,
    )
    from .compiled import compile
    from .composites import list_composites
    from .explainers.lrp import LrpExplainer
    from .explainers.registry import list_methods
    from .language import TextExplanation, explain_text
    from .propagator import RelevancePropagator
    from .results import ImageSaliencyResult, SaliencyResults, get_image_saliency_plot
    from .rules import list_rules
    from .saliency import compare_saliency, get_image_saliency_results, get_saliency
    from .tuning import tune

__version__ = "0.1.0"

#: public name -> the module that defines it
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
    "TextExplanation": "language",
    "explain_text": "language",
    "tune": "tuning",
    "compile": "compiled",
}
#: modules that are public as such
_MODULES = (
    "check",
    "composites",
    "dataset",
    "demo",
    "evaluation",
    "functions",
    "images",
    "inverter_util",
    "rules",
    "stream",
    "text",
    "timeseries",
)

__all__ = [
    "ImageSaliencyResult",
    "LrpExplainer",
    "RelevancePropagator",
    "SaliencyResults",
    "TextExplanation",
    "check",
    "compare_saliency",
    "compile",
    "composites",
    "dataset",
    "demo",
    "evaluation",
    "explain_text",
    "functions",
    "get_image_saliency_plot",
    "get_image_saliency_results",
    "get_saliency",
    "images",
    "inverter_util",
    "list_composites",
    "list_methods",
    "list_rules",
    "load_ipython_extension",
    "lrp_linear",
    "register",
    "rules",
    "stream",
    "text",
    "timeseries",
    "tune",
    "unload_ipython_extension",
    "unregister",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name in _PUBLIC:
        return getattr(_importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__name__", "__file__", "__path__", "__spec__"])


register()
