"""A slice of the fault suite; `make faults` runs the whole."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")
if sys.platform != "linux":
    pytest.skip("signals and limits of Linux", allow_module_level=True)

from tests.jobs import faults as suite

#: Kills of jobs and several processes on one store are in test_dataset.py and test_dataset_jobs.py.
IN_ONE_PROCESS = ("interrupts", "growth", "threads", "memory", "disk")


@pytest.mark.parametrize("part", IN_ONE_PROCESS)
def test_nothing_is_harmed(part):
    row = suite.run(part, small=True)
    assert row.tried and not row.harms, row
