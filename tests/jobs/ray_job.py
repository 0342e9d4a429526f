"""The demo job on a local Ray cluster of two workers, in a process of its own: ``ray_job.py OUT [MARKER]``.

With MARKER, a file name, the first worker that explains its second batch kills itself, once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

import ray
import torch

from saliency_lrp import dataset, ray_dataset
from saliency_lrp.dataset import on_ray
from saliency_lrp.demo import load_demo_model
from tests.jobs.dataset_job import OPTIONS, inputs
from tests.jobs.test_ray import MARK, processes

#: exit status where Ray itself does not get up in the time that it allows
NO_CLUSTER = 75


class Dying(dataset.Store):
    """A store whose worker is killed in the middle: after data were written and before the flag."""

    marker = ""
    batches_here = 0

    def write_arrays(self, *args):
        super().write_arrays(*args)
        self.batches_here += 1
        if self.batches_here == 2:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def start(scratch: str, attempts: int = 4) -> None:
    """A local cluster; Ray gives up after 30 s, which busy machines need more than."""
    root = str(Path(__file__).resolve().parents[2])
    for attempt in range(1, attempts + 1):
        try:
            with on_ray.on_loopback():
                ray.init(
                    num_cpus=2,
                    include_dashboard=False,
                    object_store_memory=100 * 2**20,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=scratch,
                    log_to_driver=False,
                    logging_level="error",
                    runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
                )
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if attempt == attempts:
                sys.exit(NO_CLUSTER)


def listening(mark: str) -> set[str]:
    """Addresses on which the cluster's processes accept connections, as the kernel writes them."""
    sockets = set()
    for process in processes(mark):
        for entry in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(entry))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.add(local.partition(":")[0])
    return found


def main(out: str, marker: str | None = None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ray") as scratch:
        start(scratch)
        try:
            if marker:
                make = on_ray.make_job

                def dying(*args):
                    job = make(*args)
                    job.store = Dying(job.store.out)
                    job.store.marker = marker
                    return job

                on_ray.make_job = dying
            options = {key: value for key, value in OPTIONS.items() if key != "progress"}
            summary = ray_dataset.explain_dataset_on_ray(load_demo_model(), inputs(), out, workers=2, **options)
            print(summary)
            print("listens on", *sorted(listening(os.environ[MARK])))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
