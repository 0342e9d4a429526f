"""The one kind of table: names are given once, and a wrong one is answered with the nearest."""

from __future__ import annotations

import pytest

from saliency_lrp import composites, rules
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.evaluation import METRICS
from saliency_lrp.explainers import perturbation  # noqa: F401  # fills the table
from saliency_lrp.explainers.registry import EXPLAINERS
from saliency_lrp.registry import Registry


def test_a_name_is_given_once():
    table = Registry("drink")
    assert table.add("tea", 1) == 1
    with pytest.raises(InputError, match="there is a drink 'tea' already, 1"):
        table.add("tea", 2)
    assert table["tea"] == 1
    table.add("tea", table["tea"])
    del table["tea"]
    assert table.add("tea", 2) == 2


def test_a_wrong_name_is_answered_with_the_nearest():
    table = Registry("drink")
    table.register("coffee", "cocoa")(print)
    with pytest.raises(UnknownNameError, match=r"unknown drink 'cofee'. Did you mean 'coffee'\?") as caught:
        table["cofee"]
    assert isinstance(caught.value, KeyError)
    assert table.get("cofee") is None and "cofee" not in table and 3 not in table
    assert table.names("c*a") == ["cocoa"]


def define(table, body):
    namespace = {"__name__": "__main__"}
    exec(body, namespace)
    return table.add("mine", namespace["mine"])


def test_a_notebook_may_run_its_cell_again():
    table = Registry("rule")
    define(table, "def mine(): return 1")
    assert define(table, "def mine(): return 2")() == 2
    assert define(table, "mine = lambda: 3")() == 3
    with pytest.raises(InputError, match="already"):
        table.add("mine", define)


@pytest.mark.parametrize(
    ("table", "name"),
    [(rules.RULES, "Epsilon"), (composites.COMPOSITES, "auto"), (EXPLAINERS, "occlusion"), (METRICS, "stability")],
)
def test_every_table_of_the_package_refuses_doubles(table, name):
    before = table[name]
    with pytest.raises(InputError, match="already"):
        table.add(name, object())
    assert table[name] is before


def test_a_rule_of_that_name_says_how_to_go_on():
    with pytest.raises(InputError, match="there is a rule 'Epsilon' already"):
        type("Epsilon", (rules.Rule,), {})
