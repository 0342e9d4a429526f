"""How each kind of torch function hands relevance back: one file per kind, one table for all (see README.md)."""

from . import (
    activations,
    attention,
    batch_norm,
    complex_numbers,
    convolution,
    dense,
    dropout,
    embedding,
    experts,
    matmul,
    normalization,
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
