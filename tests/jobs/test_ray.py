"""Whole data sets on a local Ray cluster of two workers, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import dataset_job

pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")
pytest.importorskip("ray.data", reason="a cluster needs saliency-lrp[scale]")
JOB = Path(__file__).with_name("ray_job.py")
#: what the job says where Ray does not start
NO_CLUSTER = 75
#: set for the cluster's processes alone, so that they can be found
MARK = "SALIENCY_LRP_TEST_CLUSTER"
#: 127.0.0.1 as /proc/net writes it, alone and in an address of version 6
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")


def processes(mark: str) -> Iterator[int]:
    """Processes that inherited a mark; Ray's change their names and process groups."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:
            continue  # ended in between, or somebody else's


def gone(mark: str, within: float) -> bool:
    """Whether all of them end by themselves."""
    patience = time.monotonic() + within
    while list(processes(mark)):
        if time.monotonic() > patience:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the cluster's processes by /proc")
def test_a_killed_worker_changes_nothing(tmp_path):
    from tests.unit.dataset.test_dataset import assert_same

    out, marker = tmp_path / "ray.zarr", tmp_path / "killed"
    environment = {
        **os.environ,
        MARK: str(tmp_path),
        "PYTHONPATH": str(JOB.parents[2]),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        done = subprocess.run(
            [sys.executable, str(JOB), str(out), str(marker)],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode == NO_CLUSTER:
            pytest.skip("Ray did not start within its own limit of 30 s, four times: this machine is too busy for it")
        assert done.returncode == 0, done.stderr[-3000:]
        assert gone(str(tmp_path), within=60)
    finally:
        for process in processes(str(tmp_path)):
            os.kill(process, signal.SIGKILL)
    assert marker.exists(), "no worker was killed"
    (addresses,) = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("listens on")]
    assert addresses and set(addresses) <= set(LOOPBACK)
    assert f"{dataset_job.ITEMS} of {dataset_job.ITEMS} explained" in done.stdout
    dataset_job.run(tmp_path / "alone.zarr")
    assert_same(out, tmp_path / "alone.zarr")
