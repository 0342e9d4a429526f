"""What is decided for one backward pass: the composite, and whether an account is kept."""

from __future__ import annotations

from torch import Tensor

from ..composites import Composite
from ..errors import InputError
from ..report import Account
from ..rules import Gradient, Rule
from ..sites.site import Site
from .interception import Interceptor


class Binding:
    """What is decided at the time of the backward pass: the composite, and whether an account is kept."""

    def __init__(self, composite: Composite, unknown: str, names: dict[int, str]) -> None:
        self.composite = composite
        self.unknown = unknown
        self.names = names
        #: whether the composite that was chosen before the forward pass has rules for ReLUs
        self.seeks_rectifiers = composite.seeks_rectifiers
        self.account: Account | None = None
        self.parameters: dict[int, list[tuple[Tensor, Tensor]]] | None = None
        self.linear_count = 0
        #: how many maps the backward pass makes at once
        self.map_count = 1
        #: whether sites keep what they need for another backward pass
        self.retain = True
        self.unknown_sites: dict[int, Site] = {}
        self._rules: dict[Site, Rule] = {}

    def intercept(self, site: Site) -> Interceptor:
        """An interceptor for what runs inside a site in the backward pass."""
        return Interceptor(self, self.names, [], within=site)

    def use(self, composite: Composite, account: Account | None, maps: int) -> None:
        """Choose for the next backward pass."""
        self.composite = composite
        self.account = account
        self.map_count = maps
        self.retain = True
        self.unknown_sites = {}
        self._rules = {}

    def release(self) -> None:
        """End of a backward pass: sites point here, so that pointing back at them would keep all alive in a circle."""
        self.unknown_sites, self._rules, self.account, self.parameters = {}, {}, None, None

    def collect(self, parameter: Tensor, share: Tensor) -> None:
        """Relevance that passed through (a view of) a parameter."""
        if self.parameters is not None:
            self.parameters.setdefault(parameter.untyped_storage().data_ptr(), []).append((parameter, share))

    def rule_for(self, site: Site) -> Rule:
        """The rule of a site, asked of the composite once per backward pass."""
        rule = self._rules.get(site)
        if rule is None:
            rule = self._rules[site] = self.composite.rule_for(site)
        return rule

    def report_unknown(self, site: Site) -> None:
        """Relevance reached a function that is not in the table."""
        if isinstance(self.rule_for(site), Gradient):
            return  # a plain gradient needs no rule
        if self.unknown == "error":
            raise InputError(
                f"relevance reached {site.describe()}, which is not in the table of functions. Say how it "
                f"hands relevance back, as in saliency_lrp.functions.register({site.op!r}, 'sum'), or use "
                "unknown='warn'"
            )
        self.unknown_sites[site.index] = site
