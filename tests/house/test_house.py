"""The house is in order: every module is on the map, imports run one way, and what is private stays in its module."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "saliency_lrp"

#: Rooms (modules and packages at the top), those that others stand on first. A room imports from lines above its own.
ORDER = (
    "errors values verdict",
    "demo graphs images likeness lrp_linear photographs registry waterfall",
    "display model",
    "report",
    "as_written rules text timeseries",
    "composites sites",
    "functions",
    "constants",
    "engine",
    "propagator",
    "compiled",
    "prepared",
    "dataset explainers inverter_util language",
    "evaluation question ray_dataset results",
    "check stream tuning",
    "widget",
    "magics saliency",
    "page",
    "cli plugin",
    "__main__",
)
#: Which modules may import TensorWatch.
KNOW_TENSORWATCH = {"saliency_lrp.plugin", "saliency_lrp.stream"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports, at its top or inside a function; not what only type checkers see."""

    by: str
    source: str
    name: str | None
    line: int

    def __str__(self) -> str:
        return f"{self.by}:{self.line}: {self.source}{f' ({self.name})' if self.name else ''}"


class House:
    """The modules of a package, by name, and what each imports."""

    def __init__(self, package: Path) -> None:
        self.name = package.name
        self.files = {self.named(path, package): path for path in sorted(package.rglob("*.py"))}
        self.trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}
        self.public = self.shown_at_the_door()
        self.imports = [found for name in self.files for found in self.imports_of(name)]

    @staticmethod
    def named(path: Path, package: Path) -> str:
        return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")

    def shown_at_the_door(self) -> dict[str, str]:
        """Public name -> module, from the table in the package's own ``__init__.py``."""
        for node in self.trees[self.name].body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "_PUBLIC"
            ):
                return {name: f"{self.name}.{module}" for name, module in ast.literal_eval(node.value).items()}
        return {}

    def imports_of(self, module: str) -> Iterator[Import]:
        for node in walk_what_runs(self.trees[module]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, alias.name, None, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = self.base(module, node)
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    if whole in self.files:
                        yield Import(module, whole, None, node.lineno)
                    elif base == self.name and alias.name in self.public:
                        yield Import(module, self.public[alias.name], alias.name, node.lineno)
                    else:
                        yield Import(module, base, alias.name, node.lineno)

    def base(self, module: str, node: ast.ImportFrom) -> str:
        """The module that a ``from ... import`` names."""
        if node.level == 0:
            return node.module or ""
        parts = module.split(".")
        up = node.level - (self.files[module].name == "__init__.py")
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def inside(self) -> Iterator[Import]:
        """Imports of one module by another; all modules may ask the package itself for its version."""
        for found in self.imports:
            if found.source in self.files and found.source not in (self.name, found.by):
                yield found

    def circles(self) -> list[list[str]]:
        """Modules that import one another, however far around."""
        edges: dict[str, set[str]] = {name: set() for name in self.files}
        for found in self.inside():
            edges[found.by].add(found.source)
        reach = {name: reachable(name, edges) for name in edges}
        rings = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in edges if a in reach[a]}
        return [list(ring) for ring in sorted(rings)]

    def private(self) -> list[str]:
        """Names with an underscore in front that one module takes from another."""
        found = [str(i) for i in self.inside() if i.name is not None and is_private(i.name)]
        for module, tree in self.trees.items():
            others = {
                alias.asname or alias.name
                for node in walk_what_runs(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if f"{self.base(module, node)}.{alias.name}" in self.files
            }
            found += [
                f"{module}:{node.lineno}: {node.value.id}.{node.attr}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in others
                if is_private(node.attr)
            ]
        return found

    def upward(self, order: tuple[str, ...]) -> list[str]:
        """Imports from a room that does not stand above in the order; the package's own module stands last."""
        level = {room: k for k, line in enumerate(order) for room in line.split()}
        level[""] = len(order)
        return [
            str(found)
            for found in self.inside()
            if self.room(found.by) != self.room(found.source)
            and level[self.room(found.source)] >= level[self.room(found.by)]
        ]

    def rooms(self) -> set[str]:
        return {self.room(module) for module in self.files} - {""}

    @staticmethod
    def room(module: str) -> str:
        return (module + "..").split(".")[1]


def walk_what_runs(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from walk_what_runs(node)


def reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    """What can be reached by one step or more."""
    seen: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += edges[name]
    return seen


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.fixture(scope="module", name="house")
def the_house() -> House:
    return House(PACKAGE)


@pytest.fixture(scope="module", name="shown")
def what_the_map_shows() -> set[str]:
    """``name.py`` and ``name/`` of the map in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("## Where things are")[1].split("    benchmarks/")[0]
    return set(re.findall(r"[\w/]+?(?:\.py|/(?=\s))", block.replace("cli/photo_demo", "photo_demo")))


#: Rooms that deal with torch functions, and the one file of theirs that knows them by name.
ENGINE = "composites engine explainers functions propagator rules sites".split()
FACTS = "saliency_lrp.functions.facts"


def names_in(node: ast.AST) -> list[str]:
    """The strings of a literal collection: a set, list or tuple, the keys of a dict, ``"a b c".split()``.

    A dict from names to code is no list of what is known of functions but a registry.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
        text = node.func.value
        return text.value.split() if isinstance(text, ast.Constant) and isinstance(text.value, str) else []
    found: list[ast.expr | None] = []
    if isinstance(node, ast.Set | ast.List | ast.Tuple):
        found = list(node.elts)
    elif isinstance(node, ast.Dict):
        named = [(k, v) for k, v in zip(node.keys, node.values, strict=True) if k is not None]
        code = all(isinstance(v, ast.Name | ast.Attribute | ast.Call) for _, v in named)
        found = [] if code else [k for k, _ in named]
    return [e.value for e in found if isinstance(e, ast.Constant) and isinstance(e.value, str)]


def lists_of_functions(tree: ast.Module, known: set[str]) -> list[int]:
    """Lines of literal collections with three or more names of torch functions; not what decorators register."""
    registered = {
        id(part)
        for node in ast.walk(tree)
        for decorator in getattr(node, "decorator_list", ())
        for part in ast.walk(decorator)
    }
    nodes = (node for node in ast.walk(tree) if id(node) not in registered)
    return [node.lineno for node in nodes if len(known.intersection(names_in(node))) >= 3]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ this house


def test_one_file_knows_torch_functions_by_name(house):
    from saliency_lrp.functions import KINDS, facts

    known = (
        {n for n in (*facts.TABLE, *facts.WAYS) if isinstance(n, str)} - set(KINDS) - {"matmul"}
    )  # kinds of sites have such names, too
    rooms = [name for name in house.files if house.room(name) in ENGINE and name != FACTS]
    found = {name: lines for name in rooms if (lines := lists_of_functions(house.trees[name], known))}
    assert found == {}, "these belong in functions/facts.py"
    assert len(lists_of_functions(house.trees[FACTS], known)) > 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A = {'relu', 'gelu', 'silu'}", 1),
        ("A = frozenset('relu gelu silu'.split())", 1),
        ("def f(x):\n    return x in ('relu', 'gelu', 'silu', 'other')", 1),
        ("A = {'relu': 1, 'gelu': 2, 'silu': 3}", 1),
        ("A = {'relu': f, 'gelu': g, 'silu': h}", 0),
        ("@handles('relu', 'gelu', *('silu', 'relu', 'gelu'))\ndef f(): ...", 0),
        ("A = ('relu', 'gelu', 'other')", 0),
    ],
)
def test_a_list_of_functions_is_found(text, found):
    assert len(lists_of_functions(ast.parse(text), {"relu", "gelu", "silu"})) == found


def test_every_module_is_on_the_map(house, shown):
    missing = {
        path.name
        for path in house.files.values()
        if path.parent == PACKAGE and path.name != "__main__.py" and path.name not in shown
    }
    missing |= {f"{path.parent.name}/" for path in house.files.values() if path.parent.parent == PACKAGE} - shown
    assert not missing, "CONTRIBUTING.md, 'Where things are', leaves out"


def test_the_map_shows_nothing_that_is_gone(house, shown):
    there = {path.name for path in house.files.values()} | {f"{path.parent.name}/" for path in house.files.values()}
    assert not {name for name in shown if name not in there | {"static/", "data/"}}


def test_no_circles(house):
    assert house.circles() == []


def test_private_names_stay_in_their_module(house):
    assert house.private() == []


def test_every_room_has_its_place_in_the_order(house):
    rooms = " ".join(ORDER).split()
    assert sorted(rooms) == sorted(house.rooms())


def test_every_room_has_its_tests_by_name(house):
    """``tests/unit/test_room.py``, or a folder ``tests/unit/room``; the property tests come on top."""
    unit = ROOT / "tests" / "unit"
    files = {path.stem.removeprefix("test_") for path in unit.glob("test_*.py")}
    folders = {path.parent.name for path in unit.glob("*/test_*.py")}
    assert not house.rooms() - files - folders - {"__main__"}, "rooms without tests"
    assert not (files | folders) - house.rooms(), "tests of no room"


def test_tests_lie_in_their_folders():
    outside = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert not outside, "tests/unit/, properties/, originals/, notebook/, jobs/ or house/"


BRITISH = re.compile(
    r"colour|grey|normalis|stabilis|initialis|optimis|quantis|recognis|summaris|favour|behaviour|centre"
)
#: names that users knew before, and those of other programs
SPELLED_OTHERWISE = {"colour_limit", "colour_table", "normalise"}


@pytest.mark.parametrize("folder", ["saliency_lrp", "tests", "benchmarks"])
def test_identifiers_are_american(folder):
    found = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        with path.open("rb") as file:
            names = {t.string for t in tokenize.tokenize(file.readline) if t.type == tokenize.NAME}
        found |= {
            f"{path.relative_to(ROOT)}: {name}" for name in names - SPELLED_OTHERWISE if BRITISH.search(name.lower())
        }
    assert not found


def test_imports_run_one_way(house):
    assert house.upward(ORDER) == []


def test_two_modules_know_tensorwatch(house):
    assert {i.by for i in house.imports if i.source.split(".")[0] == "tensorwatch"} <= KNOW_TENSORWATCH


# ------------------------------------------------------------------------------------------------ houses in disorder


def build(folder: Path, **modules: str) -> House:
    """A package of these modules; ``a__b`` is module b of package a."""
    root = folder / "tiny_house"
    for name, text in {"__init__": "", **modules}.items():
        path = root.joinpath(*name.split("__") if not name.startswith("__") else [name]).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return House(root)


LATE = "def f():\n    from . import one\n"


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("from .two import f", "from .one import g"),
        ("from . import two", LATE),
        ("import tiny_house.two", "from tiny_house.one import g"),
        ("def f():\n    import tiny_house.two", LATE),
    ],
)
def test_a_circle_is_found(tmp_path, one, two):
    assert build(tmp_path, one=one, two=two).circles() == [["tiny_house.one", "tiny_house.two"]]


def test_a_circle_of_three_is_found_in_packages(tmp_path):
    house = build(tmp_path, a__one="from ..b.two import f", b__two="from ..three import g", three="from .a import one")
    assert house.circles() == [["tiny_house.a.one", "tiny_house.b.two", "tiny_house.three"]]


def test_a_circle_through_a_public_name_is_found(tmp_path):
    house = build(tmp_path, __init__="_PUBLIC = {'f': 'two'}", one="from . import f", two="from .one import g")
    assert house.circles() == [["tiny_house.one", "tiny_house.two"]]


def test_what_type_checkers_alone_see_is_no_circle(tmp_path):
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import g"
    assert build(tmp_path, one="from .two import f", two=checked).circles() == []


@pytest.mark.parametrize(
    "text", ["from .one import _f", "def f():\n    from .one import _f", "from . import one\none._f()"]
)
def test_a_private_name_is_found(tmp_path, text):
    assert len(build(tmp_path, one="", two=text).private()) == 1


def test_dunder_and_own_names_are_not_private_to_others(tmp_path):
    text = "from .one import __doc__\n_own = 1\nself._own = _own"
    assert build(tmp_path, one="", two=text).private() == []


def test_an_import_upward_is_found(tmp_path):
    house = build(tmp_path, a__one="from ..two import f", two="", a__three="from .one import g")
    assert house.upward(("two", "a")) == []
    assert house.upward(("a", "two")) == ["tiny_house.a.one:1: tiny_house.two (f)"]
    assert house.upward(("a two",)) == ["tiny_house.a.one:1: tiny_house.two (f)"]
