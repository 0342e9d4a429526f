"""What every test shares: fixed seeds, few threads, and markers that say why a test cannot run here."""

from __future__ import annotations

import os
import shutil

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
pytest.register_assert_rewrite("tests.helpers", "tests.jobs")
# tensors in tests are tiny: a second thread costs a hundred times what it gives where cores are busy
torch.set_num_threads(1)

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    torch.manual_seed(0)
    np.random.seed(0)


def find_chromium() -> str | None:
    """Path of a Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run, unless SALIENCY_LRP_REQUIRE names it: then it runs, and fails."""
    required = os.environ.get("SALIENCY_LRP_REQUIRE", "").split(",")
    missing = {
        "cuda": None if torch.cuda.is_available() else "no CUDA device on this machine",
        "browser": None if find_chromium() else "no Chromium on this machine (apt-get install chromium)",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and marker not in required and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


#: Chromium stays on this machine and asks nobody.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module", name="browser")
def start_browser():
    """One Chromium for the tests of a module, with a profile of its own; nothing but loopback is ever reached.

    Not for the whole session: while it runs, its event loop is in the way of the notebooks' tests.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS, headless=True)
        yield chromium
        chromium.close()
