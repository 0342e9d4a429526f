"""Rule, the base of all rules, and the table of them."""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..registry import Registry
from .views import Messages, SiteView

BiasMode = Literal["keep", "zero", "distribute"]


RULES: Registry[type[Rule]] = Registry("rule")


def list_rules() -> list[str]:
    """Names of all rules, sorted."""
    return RULES.names()


def get(name: str, **options: Any) -> Rule:
    """Build a rule by its class name, such as ``get("Epsilon", epsilon=1e-9)``."""
    return RULES[name](**options)


class Rule:
    """How a site hands relevance back. Subclass it and give ``kinds`` and ``relevance``; it is then registered.

    Attributes
    ----------
    kinds : frozenset of str
        The kinds of sites that the rule is defined for (see ``saliency_lrp/functions/README.md``).
    """

    kinds: ClassVar[frozenset[str]] = frozenset()
    #: whether the rule is for ReLUs, which a trace then seeks in every spelling
    for_rectifiers: ClassVar[bool] = False
    #: whether the rule also takes relevance of several maps at once, in an axis before those of the output
    batches_maps: bool = False

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        """Register the class; ``abstract`` says that it is a base of rules, not one itself."""
        super().__init_subclass__(**kwargs)
        if not abstract:
            RULES.add(cls.__name__, cls)
        if "keeps_zeros" not in vars(cls):
            cls.keeps_zeros = Rule.keeps_zeros  # type: ignore[method-assign]  # what a base says of itself

    def relevance(self, site: Any, R: Tensor) -> Messages:
        """Relevance of each input of ``site``, given the relevance ``R`` of its output.

        Rules say which view of a site they take (``views.py``): that of the kinds that they are defined for.
        """
        raise NotImplementedError

    def coefficient(self, site: Any, c: Tensor) -> Messages | None:
        """Coefficients of the inputs from that of the output (relevance is activation times coefficient).

        None where the way is through :meth:`relevance`: ``R = c · output``, and then ``R_in / input``.
        """
        return None

    def keeps_zeros(self, site: Any) -> bool:
        """Whether an input that is exactly 0 gets no relevance here, provided that an output of 0 has none.

        Only then has the relevance of the inputs a coefficient. Every rule says this of itself: a subclass that does
        not counts as one that may give relevance to zeros, and is served by the reference form.
        """
        return False

    def applies_to(self, site: Any) -> bool:
        """Whether the rule is defined for this kind of site."""
        return site.kind in self.kinds

    def __repr__(self) -> str:
        names = [n for n in constructor_parameters(type(self)) if n in vars(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{n}={vars(self)[n]!r}' for n in names)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def always(rule: Rule, site: SiteView) -> bool:
    """For ``keeps_zeros`` of rules that share in proportion to what the inputs are."""
    return True


def unless_distributed(rule: Any, site: SiteView) -> bool:
    """For ``keeps_zeros`` of rules that do so as long as what the bias takes is not spread over all inputs."""
    return bool(rule.bias != "distribute")


@functools.cache
def constructor_parameters(cls: type) -> tuple[str, ...]:
    """Names that a class's own or inherited constructor takes; looked up once, because it is slow."""
    return tuple(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]


ANY_KIND = frozenset(
    {
        "linear",
        "sum",
        "activation",
        "scale",
        "product",
        "gate",
        "matmul",
        "softmax",
        "attention",
        "normalization",
        "recurrent",
        "steps",
        "unknown",
    }
)
