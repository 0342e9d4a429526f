"""Saliency methods behind one face: ``get(name, model, **options).explain(inp, ind)``."""

from .registry import get, list_methods, register_explainer

__all__ = ["get", "list_methods", "register_explainer"]
