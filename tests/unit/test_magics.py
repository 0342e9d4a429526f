"""``%saliency`` and ``%%saliency``."""

from __future__ import annotations

import subprocess
import sys

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from saliency_lrp import magics
from saliency_lrp.errors import UnknownNameError


@pytest.fixture
def shell(monkeypatch):
    shell = InteractiveShell()
    magics.register_magics(shell)
    shell.user_ns.update(model="the model", images=["cat", "dog"])
    asked = []
    monkeypatch.setattr(magics, "compare", lambda *args, **options: asked.append((args, options)) or "widget")
    shell.asked = asked
    return shell


def test_line(shell):
    shown = shell.run_line_magic(
        "saliency", "model images[1] --methods lrp occlusion --label 3 --rule epsilon_plus --layer features.3"
    )
    assert shown == "widget"
    assert shell.asked == [
        (
            ("the model", "dog"),
            {"methods": ["lrp", "occlusion"], "label": 3, "composite": "epsilon_plus", "layer": "features.3"},
        )
    ]


def test_quoted_expressions_and_paths(shell, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"")
    shell.run_line_magic("saliency", 'model "images[0 + 1]"')
    shell.run_line_magic("saliency", f'model "{path}"')
    assert [args[1] for args, _ in shell.asked] == ["dog", str(path)]


def test_cell_has_one_image_a_line(shell, capsys):
    shell.run_cell_magic("saliency", "model -m lrp", "images[0]\n# not this one\n\nimages[1]\n")
    assert shell.asked == [(("the model", name), {"methods": ["lrp"]}) for name in ("cat", "dog")]


def test_a_file_needs_no_quotes(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("five.png", "images"):  # the second is a variable, too, which wins
        (tmp_path / name).write_bytes(b"")
    shell.run_line_magic("saliency", "model five.png")
    shell.run_line_magic("saliency", "model images --composite epsilon")
    shell.run_cell_magic("saliency", "model", "five.png\nimages[0]")
    assert [args[1] for args, _ in shell.asked] == ["five.png", ["cat", "dog"], "five.png", "cat"]
    assert shell.asked[1][1] == {"composite": "epsilon"}


@pytest.mark.parametrize(
    ("line", "match"),
    [("model six.png", "'six.png' is neither a variable"), ("model images", "unknown method 'lrpp'")],
)
def test_what_cannot_be_done_is_said_in_one_line(shell, line, match, monkeypatch):
    def refuse(*_, **__):
        raise UnknownNameError("unknown method 'lrpp'. Did you mean 'lrp'?")

    monkeypatch.setattr(magics, "compare", refuse)
    with pytest.raises(UsageError, match=match):
        shell.run_line_magic("saliency", line)


def test_importing_in_ipython_brings_the_magic():
    code = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import saliency_lrp
print(shell.find_line_magic("saliency") is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["True"], done.stderr


@pytest.mark.parametrize(
    ("line", "cell", "match"),
    [
        ("model", None, "needs a model and an image"),
        ("model image", "images[0]", "one too many"),
        ("model", "# nothing\n", "no image"),
        ("model image --sign up", None, "invalid choice"),
    ],
)
def test_misuse_says_how_to_mend_it(shell, line, cell, match):
    with pytest.raises(UsageError, match=match):
        if cell is None:
            shell.run_line_magic("saliency", line)
        else:
            shell.run_cell_magic("saliency", line, cell)
    assert shell.asked == []


def test_unregistering_leaves_nothing(shell):
    magics.register_magics(shell)
    magics.unregister_magics(shell)
    assert shell.find_line_magic("saliency") is None and shell.find_cell_magic("saliency") is None
    magics.unregister_magics(shell)


def test_the_extension_brings_and_takes_the_magics():
    import saliency_lrp

    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "saliency_lrp")
    assert "saliency" in shell.magics_manager.magics["line"] and "saliency" in shell.magics_manager.magics["cell"]
    shell.run_line_magic("unload_ext", "saliency_lrp")
    assert "saliency" not in shell.magics_manager.magics["cell"]
    saliency_lrp.register()
