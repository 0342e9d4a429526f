"""The saved notebooks: what somebody sees of them without a kernel. (That they run is what nbval tests.)"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many outputs have a PNG or HTML form."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum(bool({"image/png", "text/html"} & set(o.get("data", {}))) for o in outputs)


def pictures_alone(notebook: nbformat.NotebookNode) -> int:
    """How many outputs a web page must show as an image: those with a PNG and no HTML form."""
    data = [set(o.get("data", {})) for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum("image/png" in d and "text/html" not in d for d in data)


def html_outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """The HTML forms of outputs."""
    data = [o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", [])]
    return [d["text/html"] for d in data if "text/html" in d]


def test_all_tutorials_are_there() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07", "08"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_executed_and_without_widget_state(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert "widgets" not in notebook.metadata
    outputs = [o for cell in code for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert pictures(notebook)
    for before, o in zip([{}, *outputs], outputs, strict=False):  # a widget never stands alone: without a kernel ...
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {}):
            assert "image/png" in {**o.data, **before.get("data", {})}  # ... its picture is shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_as_a_web_page_shows_its_pictures(path: Path) -> None:
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, 4)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    body = page[page.index("<body") :]
    fragments = html_outputs(notebook)
    assert pictures_alone(notebook) + len(fragments) > 0
    assert body.count("<img") >= pictures_alone(notebook) + sum(html.count("<img") for html in fragments)
    assert body.count("<table") >= sum(html.count("<table") for html in fragments)
    assert not re.search(r"Loading widget|widget state missing", body)


def test_links_between_notebooks_lead_somewhere() -> None:
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)#:]+)\)", cell.source):
                    assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_each_notebook_ends_by_leading_to_the_next() -> None:
    for path, following in itertools.pairwise(NOTEBOOKS):
        last = nbformat.read(path, 4).cells[-1].source.splitlines()[-1]
        assert last.startswith("Next: ") and f"]({following.name})" in last, f"{path.name} ends with {last!r}"
