"""Every block of Python in README and the guides runs as it stands, each section by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

import saliency_lrp
from tests.helpers.torchvision_cpu import import_torchvision

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/cookbook.md", "docs/choose.md", "docs/trust.md")


def sections(page: str) -> list[Any]:
    """The blocks of a page, those under one heading together: (code, is shell-free)."""
    found = []
    text = (ROOT / page).read_text(encoding="utf-8")
    for part in re.split(r"(?m)^#{1,4} ", text):
        blocks = re.findall(r"```python\n(.*?)```", part, re.S)
        if blocks:
            title = re.sub(r"\W+", "-", part.split("\n")[0]).strip("-").lower()[:60] or "top"
            found.append(pytest.param("\n".join(blocks), id=f"{page}-{title}"))
    return found


@pytest.fixture(name="given")
def what_readers_have(tmp_path, monkeypatch) -> dict[str, Any]:
    """What the pages take for granted: a classifier, a picture, tensors, a folder, a language model."""
    from saliency_lrp.demo import demo_images, load_demo_model
    from saliency_lrp.images import build_input, load_image

    monkeypatch.chdir(tmp_path)
    model, items = load_demo_model(), demo_images(4)
    inputs = torch.cat([build_input(model, load_image(item.image))[0] for item in items])
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, item in enumerate(items):
        item.image.save(folder / f"{k}.png")
    return {
        "saliency_lrp": saliency_lrp,
        "model": model,
        "img": items[0].image,
        "x": inputs[:1],
        "inputs": inputs,
        "targets": torch.tensor([item.label for item in items]),
        "folder": folder,
    }


def language_model() -> dict[str, Any]:
    """A small causal language model and a tokenizer of words, as Hugging Face makes them."""
    import_torchvision()
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = "the film was not good but i liked it [UNK] [PAD]".split()
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=len(words) + 4, n_positions=32)
    ids = torch.tensor([[0, 1, 2, 3, 4]])
    model = transformers.GPT2LMHeadModel(config).eval()
    return {"language_model": model, "tokenizer": tokenizer, "ids": ids, "mask": torch.ones_like(ids)}


@pytest.mark.parametrize("code", [section for page in PAGES for section in sections(page)])
def test_the_block_runs(code, given):
    if re.search(r"\blanguage_model\b", code):
        given.update(language_model())
    from saliency_lrp import composites, functions, list_methods, rules
    from saliency_lrp.explainers.registry import EXPLAINERS

    list_methods()  # fills the table

    tables = (rules.RULES, composites.COMPOSITES, EXPLAINERS)
    before = [set(table) for table in tables]
    handlers = dict(functions.HANDLERS)
    try:
        exec(compile(code, "block", "exec"), {"__name__": "__main__", **given})
    finally:
        plt.close("all")
        for table, names in zip(tables, before, strict=True):
            for name in set(table) - names:
                del table[name]
        for added in set(functions.HANDLERS) - set(handlers):
            del functions.HANDLERS[added]


def test_the_cookbook_is_long():
    entries = re.findall(r"(?m)^### ", (ROOT / "docs/cookbook.md").read_text(encoding="utf-8"))
    assert len(entries) >= 25


def test_the_first_block_of_the_readme_runs_without_anything(tmp_path):
    """A stranger pastes it into an empty file."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S).group(1)
    (tmp_path / "first.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "first.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**_environment(), "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    """No broken link, no page that the menu has lost, no name in the API that is not there."""
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**_environment(), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site" / "api" / "saliency.html").read_text(encoding="utf-8")
    assert "get_image_saliency_results" in api and "Raises" in api
