"""Whether a map can be trusted, measured on the one picture: a few dozen passes of the model, a verdict in words.

Four questions, after Samek et al. (2017), Adebayo et al. (2018) and Sixt et al. (2020): does the model miss what the
map calls important; is the map another for another class; is it another once the model's head is drawn anew; does a
second rule show the same. And one of bookkeeping: is it this model's map at all.
"""

from __future__ import annotations

from .door import check
from .findings import Finding
from .outcome import Check

__all__ = ["Check", "Finding", "check"]
