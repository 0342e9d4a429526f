"""How each kind of torch function hands relevance back: one file per kind, one table for all (see README.md)."""

from . import (
    activations,
    attention,
    complex_numbers,
    dropout,
    embedding,
    experts,
    linear,
    normalisation,
    opened,
    placing,
    products,
    recurrent,
    routing,
    softmax,
    steps,
    sums,
    unknown,
)
from .registry import HANDLERS, KINDS, handles, register

__all__ = ["HANDLERS", "KINDS", "handles", "register"]
