"""What is known of an activation; rides on the tensor itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..model.written import TAG

if TYPE_CHECKING:
    from .site import Site

#: How much a tensor looks like a gate: 0 a plain activation, 1 bounded (tanh, erf), 2 a gate (sigmoid, softmax, rsqrt).
PLAIN, BOUNDED, GATE = 0, 1, 2
#: As much as the least gate-like of its inputs.
AS_INPUT = -1


class Tag:
    """What the interceptor knows of an activation; rides on the tensor itself."""

    __slots__ = (
        "trace",
        "site",
        "gate",
        "nonnegative",
        "depth",
        "version",
        "readers",
        "place",
        "source",
        "source_version",
        "curve",
        "multiple",
        "channels",
        "may_be_normed",
        "moved",
        "diagonal",
        "final",
        "smooth",
    )

    def __init__(
        self, trace: object, site: Site | None = None, gate: int = PLAIN, nonnegative: bool = False, depth: int = 0
    ) -> None:
        self.trace = trace
        self.site = site
        self.gate = gate
        self.nonnegative = nonnegative
        #: how many linear sites lie between the model's input and it, on the longest way of relevance
        self.depth = depth
        #: the tensor's version when this was known; a later one means that it was written into
        self.version = -1
        #: how many calls have read its values
        self.readers = 0
        #: where relevance of the tensor can be read, once somebody has asked
        self.place: Any = None
        #: the activation a linear site read, and its version then: lets a batch norm fold into that site
        self.source: Tensor | None = None
        self.source_version = -1
        #: what numbers, and vectors of constants, have done to an activation (``by_hand.py``)
        self.curve: Any = None
        self.multiple: Any = None
        self.channels: Any = None
        self.may_be_normed = False
        #: the layer that made the values which were moved since (``layers.py``)
        self.moved: Any = None
        #: whether all but the diagonal of its last two axes is 0
        self.diagonal = False
        #: whether relevance of this activation is carried as such, also where the others' is carried as a coefficient
        self.final = False
        #: in the coefficient form: whether a sum or linear map made it, so that it is hardly ever exactly 0
        self.smooth = False


def tag_of(tensor: Tensor) -> Tag | None:
    """The tensor's tag, or None for a constant."""
    return getattr(tensor, TAG, None)
