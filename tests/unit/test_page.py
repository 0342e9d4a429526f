"""Writing the page that explains by itself; what it does in a browser is in ``tests/notebook/test_page.py``."""

from __future__ import annotations

import shutil

import pytest
import torch

from saliency_lrp.errors import InputError
from saliency_lrp.page import write_page
from saliency_lrp.page.runtime import FILES, copy_runtime


def test_a_runtime_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no npm here to fetch it.*--runtime"):
        copy_runtime(tmp_path)
    with pytest.raises(InputError, match="is no unpacked npm package onnxruntime-web: it has no dist/"):
        copy_runtime(tmp_path, tmp_path)


def test_a_runtime_that_is_unpacked_is_taken(tmp_path):
    for name in FILES:
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text("here")
    (tmp_path / "package" / "package.json").write_text('{"version": "1.2.3"}')
    (tmp_path / "out").mkdir()
    assert copy_runtime(tmp_path / "out", tmp_path) == "1.2.3"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ort.LICENSE.txt", "ort.js", "ort.wasm"]
    assert "MIT" in (tmp_path / "out" / "ort.LICENSE.txt").read_text()


def test_a_model_of_any_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs a model whose input has one size"):
        write_page(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), tmp_path)
