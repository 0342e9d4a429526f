"""How each kind of torch function hands relevance back: one file per kind, one table for all (see README.md)."""

from typing import TYPE_CHECKING

from . import (
    activations,
    attention,
    batch_norm,
    complex_numbers,
    convolution,
    decompositions,
    dense,
    dropout,
    embedding,
    experts,
    matmul,
    normalization,
    placing,
    products,
    python_bodies,
    recurrent,
    routing,
    softmax,
    sums,
    unknown,
)
from .registry import HANDLERS, KINDS, handles, register

__all__ = ["HANDLERS", "KINDS", "handles", "register"]

if TYPE_CHECKING:
    from ..rules import views
    from ..sites.linear import LinearSite
    from ..sites.site import Site
    from .rerun import DecomposedSite

    def seen_by_rules(
        any_site: Site,
        linear: LinearSite,
        summed: sums.SumSite,
        product: products.ProductSite | matmul.MatmulSite,
        over: softmax.SoftmaxSite,
        fused: attention.AttentionSite,
        in_steps: DecomposedSite,
    ) -> tuple[
        views.SiteView,
        views.LinearView,
        views.SumView,
        views.ProductView,
        views.SoftmaxView,
        views.AttentionView,
        views.StepsView,
    ]:
        """Every site has what the rules for its kind may ask of it."""
        return any_site, linear, summed, product, over, fused, in_steps
