"""Composites: which site gets which rule.

A composite is a table of ``(selector, rule)``; a site gets the rule of the first row that selects it *and* whose rule
is defined for its kind, and the row of its kind in the defaults where no row does. Selectors are

* a module class: sites called by such a module (``nn.Conv2d``),
* a string: a glob on the module path (``"layer4.*"``),
* :func:`kind`, :func:`family`, :func:`op`, :func:`claims`: what the site computes,
* :func:`first`, :func:`until`, :func:`depth`: how many linear sites lie between the model's input and this one,
  :func:`last`: the last ones in execution order,
* :func:`rectifier`: ReLUs in any spelling, :func:`at_output`: what computes the model's output,
* any predicate ``site -> bool``; and a tuple of selectors, which selects what all of them do.

``base | override`` puts the rows of ``override`` before those of ``base``.
"""

from . import peers, presets
from .composite import Composite, Row, defaults, defaults_for, graded
from .peers import apart
from .selectors import (
    Selector,
    Where,
    at_output,
    claims,
    depth,
    family,
    first,
    kind,
    last,
    op,
    rectifier,
    selects,
    until,
)
from .table import COMPOSITES, describe, get, grouped, list_composites, register
