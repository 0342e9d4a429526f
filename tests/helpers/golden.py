"""Reading the golden numbers in tests/data (README.md there says what they are)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"


@functools.cache
def manifest(family: str, name: str = "manifest.json") -> dict:
    """The parsed manifest of one family."""
    return json.loads((DATA / family / name).read_text())


@functools.cache
def _npz(family: str, name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / family / name, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def array(family: str, npz: str, key: str) -> np.ndarray:
    """One stored array; a copy, so that no test can change what the next one reads."""
    return _npz(family, npz)[key].copy()


def tensor(family: str, npz: str, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """One stored array as a tensor."""
    return torch.from_numpy(array(family, npz, key)).to(dtype)


def roles(family: str, case: dict) -> dict[str, np.ndarray]:
    """All arrays of a case by role."""
    return {role: array(family, case["npz"], key) for role, key in case["arrays"].items()}


def assert_golden(got: object, want: object, rtol: float = 1e-9, name: str = "") -> None:
    """`got` equals `want` to `rtol` of each entry, or of the largest entry where entries cancel."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    scale = np.abs(want).max(initial=0.0)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale, err_msg=name)
