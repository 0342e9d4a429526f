"""What is uploaded: a source distribution that tests itself, a wheel with all it reads, and pages that render."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import saliency_lrp

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", name="built")
def build(tmp_path_factory) -> Path:
    """Source distribution and wheel, built as an index would get them."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.mark.slow
def test_the_source_distribution_is_the_repository(built):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(tracked):
        pytest.skip("not a checkout")
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    missing = {name for name in tracked if name and (ROOT / name).is_file()} - held - {".gitignore"}
    assert not {name for name in missing if not name.startswith(".pre-commit")}


@pytest.mark.slow
def test_the_wheel_holds_what_the_package_reads(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    package = ROOT / "saliency_lrp"
    wanted = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    missing = {p.relative_to(ROOT).as_posix() for p in wanted} - held
    assert not missing


@pytest.mark.slow
def test_the_index_can_render_it(built):
    files = [str(p) for p in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_names_are_visible_to_type_checkers():
    """What is imported lazily is also imported for who only reads the code."""
    text = (ROOT / "saliency_lrp" / "__init__.py").read_text(encoding="utf-8")
    block = text[text.index("if _TYPE_CHECKING") : text.index("__version__")]
    for name in saliency_lrp.__all__:
        assert hasattr(saliency_lrp, name)
        assert re.search(rf"\b{name}\b", block) or name in vars(saliency_lrp)
    assert set(dir(saliency_lrp)) - set(saliency_lrp.__all__) == {
        "__version__", "__doc__", "__name__", "__file__", "__path__", "__spec__"
    }  # fmt: skip
