"""What happens to model and data when things go wrong: ``python -m tests.jobs.faults [PART ...] [--small]``.

Real signals, real kills, real limits of the operating system. Each part tries something many times and counts what was
harmed; the table says what survived, and the exit status is 1 if anything did not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import logging
import os
import platform
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from saliency_lrp.propagator import RelevancePropagator
from tests.unit.model import test_as_found as found

ROOT = Path(__file__).parents[2]


@dataclass
class Row:
    """What a part tried and what became of it."""

    what: str
    tried: int = 0
    harms: collections.Counter = field(default_factory=collections.Counter)
    remark: str = ""
    seconds: float = 0.0

    @property
    def harmed(self) -> int:
        return sum(self.harms.values())

    def __str__(self) -> str:
        harms = "; ".join(f"{n} × {what}" for what, n in self.harms.items())
        return f"| {self.what} | {self.tried} | {self.harmed} | {harms or self.remark} | {self.seconds:.0f} |"


# ------------------------------------------------------------------------------------------------ models, methods


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.skip = nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Conv1d(1, 4, 1)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = x[:, None]
        return self.head((self.norm(self.conv(x)).relu_() + self.skip(x)).flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x[..., None])[0][:, -1])


class Collecting(nn.Module):
    """Adds activations into a fresh buffer, and keeps one of its own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)
        self.register_buffer("big", torch.zeros(2, 4, 3))
        self.register_buffer("view", self.big[0])

    def forward(self, x):
        y = torch.zeros(len(x), 6, dtype=x.dtype)
        y[:, :3] += self.a(x)
        self.view.copy_(y[:, :3])
        self.last = y
        return y[:, :3] + self.view


MODELS: dict[str, Callable[[], nn.Module]] = {
    **found.MODELS,
    "conv": Conv,
    "recurrent": Recurrent,
    "collecting": Collecting,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().double().train()
    if name == "collecting":  # as views of one memory again
        model.big = torch.zeros(2, 4, 3, dtype=torch.double)
        model.view = model.big[0]
    return model


def traced(model: nn.Module) -> Tensor:
    trace = RelevancePropagator(model, "epsilon_plus").trace(found.X)
    return trace.relevance(0, account=True) + trace.relevance(1, composite="epsilon")


WAYS: dict[str, Callable[[nn.Module], Tensor]] = {
    "trace": traced,
    "lrp": lambda model: found.explain(model, "lrp"),
    "grad_x_input": lambda model: found.explain(model, "grad_x_input"),
    "guided_backprop": lambda model: found.explain(model, "guided_backprop"),
    "deeplift": lambda model: found.explain(model, "deeplift"),
}


# ------------------------------------------------------------------------------------------------ interrupts

KILLER = """
import os, signal, sys, time
for line in sys.stdin:
    time.sleep(float(line))
    os.kill(os.getppid(), signal.SIGINT)
    print(flush=True)
"""


class Killer:
    """Another process that sends this one a SIGINT after a given time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", KILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def interrupts(self, task: Callable[[], object], delay: float) -> bool:
        """Whether the signal came while the task was running; what the task itself raises is raised afterwards."""
        assert self.process.stdin and self.process.stdout
        inside, error = False, None
        try:
            self.process.stdin.write(f"{delay}\n")
            self.process.stdin.flush()
            inside = True
            try:
                task()
                inside = False
            except Exception as found:
                error = found
            select.select([self.process.stdout], [], [], 60)
            time.sleep(0.5)  # the signal is on its way
        except KeyboardInterrupt:
            pass
        self.process.stdout.readline()
        if error is not None:
            raise error
        return inside

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def interrupts(wanted: int = 3000) -> Row:
    """SIGINT at random times of explanations."""
    row, rng, killer = Row("SIGINT at random moments of an explanation"), random.Random(0), Killer()
    before_us = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind ignores it
    cases = [(name, way) for name in MODELS for way in WAYS]
    expected, times = {}, {}
    for name, way in cases:
        for model in (build(name), build(name)):
            torch.manual_seed(1)
            start = time.perf_counter()
            expected[name, way] = WAYS[way](model)
        times[name, way] = time.perf_counter() - start
    try:
        while row.tried < wanted:
            name, way = cases[rng.randrange(len(cases))]
            model = build(name)
            torch.manual_seed(1)
            before = found.state(model)
            try:
                if not killer.interrupts(lambda m=model, w=way: WAYS[w](m), rng.uniform(0, times[name, way])):
                    continue
            except Exception as error:
                row.harms[f"became {type(error).__name__} in {name}, {way}"] += 1
                logging.exception("an interrupt became something else")
            row.tried += 1
            after = found.state(model)
            for key in after:
                if after[key] != before[key]:
                    row.harms[f"{key} of {name}, {way}"] += 1
            torch.manual_seed(1)
            try:
                right = torch.allclose(WAYS[way](model), expected[name, way], rtol=1e-9, atol=1e-12)
            except Exception as error:
                row.harms[f"{type(error).__name__} in the next of {name}, {way}"] += 1
                logging.exception("the next explanation failed")
            else:
                row.harms[f"next map of {name}, {way}"] += not right
    finally:
        killer.close()
        signal.signal(signal.SIGINT, before_us)
    row.harms = +row.harms
    row.remark = f"{len(cases)} pairs of model and method: mode, flags, hooks, graphs, random state, next map as before"
    return row


# ------------------------------------------------------------------------------------------------ memory, threads


def growth(n: int = 2000) -> Row:
    """Explanations of varied models with the cycle collector off."""
    row, models = Row("explanations with the cycle collector off"), [build(name) for name in MODELS]
    for model in models * 2:
        traced(model)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        rounds = max(1, n // len(models) // 2)
        sizes = []
        for _half in range(2):
            for _ in range(rounds):
                for model in models:
                    traced(model)
            tensors = sum(type(o) in (Tensor, nn.Parameter) for o in gc.get_objects())
            sizes.append((tensors, resident()))
    finally:
        gc.enable()
        gc.unfreeze()
    row.tried = 2 * rounds * len(models)
    if sizes[1][0] > sizes[0][0]:
        row.harms["tensors left"] = sizes[1][0] - sizes[0][0]
    row.remark = f"{sizes[1][0] - sizes[0][0]:+d} tensors, {sizes[1][1] - sizes[0][1]:+.1f} MB in the second half"
    return row


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def threads(seconds: float = 300, count: int = 8) -> Row:
    """Models that share modules, explained by several threads at once."""
    row = Row(f"explanations by {count} threads, models that share modules")
    shared = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)).double().train()
    models = [nn.Sequential(shared, nn.Linear(8, 3).double()).train() for _ in range(count // 2)]
    ways = [WAYS["lrp"], WAYS["grad_x_input"]]
    expected = {(k, w): ways[w](model) for k, model in enumerate(models) for w in range(2)}
    end, lock = time.monotonic() + seconds, threading.Lock()

    def work(k: int) -> None:
        while time.monotonic() < end:
            key = (k % len(models), k // len(models) % 2)
            try:
                right = torch.allclose(ways[key[1]](models[key[0]]), expected[key], rtol=1e-9, atol=1e-12)
            except Exception as error:
                right = False
                row.harms[type(error).__name__] += 1
            with lock:
                row.tried += 1
                row.harms["wrong map"] += not right

    workers = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    row.harms["left in eval mode"] += not all(m.training for model in models for m in model.modules())
    row.harms["statistics moved"] += int(shared[1].num_batches_tracked) != 0
    row.harms = +row.harms
    row.remark = f"{seconds:.0f} s"
    return row


MEMORY = """
import resource, sys, torch
from torch import nn
from tests.unit.model.test_as_found import state
from saliency_lrp.propagator import RelevancePropagator
model = nn.Sequential(nn.Linear(64, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 3)).train()
small, big = torch.randn(4, 64), torch.randn(40000, 64)
wanted = RelevancePropagator(model).trace(small).relevance(0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for room in map(int, sys.argv[1:]):
    before = state(model)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + room * 2**20, hard))
    try:
        RelevancePropagator(model).trace(big).relevance(0)
        print("fits")
    except (MemoryError, RuntimeError) as error:
        print("refused", type(error).__name__)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert state(model) == before and torch.equal(RelevancePropagator(model).trace(small).relevance(0), wanted)
print("whole")
"""


def memory(limits: tuple[int, ...] = (16, 64, 350, 500, 700, 900, 1100, 1300)) -> Row:
    """Explanations that run out of memory at several places."""
    row = Row("out of memory at several places", tried=len(limits))
    done = python(MEMORY, *map(str, limits))
    said = done.stdout.split("\n")
    if "whole" not in said:
        row.harms[done.stderr[-300:]] = 1
    row.remark = f"{sum(line.startswith('refused') for line in said)} were refused memory; model and next map as before"
    return row


# ------------------------------------------------------------------------------------------------ jobs


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A Python process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=surroundings(**environment)
    )


def surroundings(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(out: Path, delay: float = 0.05, **environment: str) -> subprocess.Popen:
    """The job of ``tests/jobs/dataset_job.py`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "jobs" / "dataset_job.py"), str(out), str(delay)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings(**environment),
    )  # fmt: skip


@contextlib.contextmanager
def uninterrupted() -> Iterator[tuple[Path, Callable[[Path, Row], None]]]:
    """A folder, and a function that compares a store in it with that of a job that nothing happened to."""
    from tests.jobs import dataset_job
    from tests.unit.dataset.test_dataset import arrays

    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.zarr"
        dataset_job.run(str(whole))
        wanted = {name: values.tobytes() for name, values in arrays(whole).items()}

        def compare(out: Path, row: Row) -> None:
            summary = dataset_job.run(str(out))
            if not summary.complete or summary.explained != dataset_job.ITEMS:
                row.harms["items lost or doubled"] += 1
            if {name: values.tobytes() for name, values in arrays(out).items()} != wanted:
                row.harms["other maps"] += 1

        yield Path(scratch), compare


def kills(n: int = 30) -> Row:
    """A job that is killed at random times, and begun again until it is whole."""
    row, rng = Row("SIGKILL of a job over a data set, and the same command again"), random.Random(0)
    with uninterrupted() as (scratch, compare):
        stores = 0
        while row.tried < n:
            out = scratch / f"{stores}.zarr"
            stores += 1
            for _ in range(min(5, n - row.tried)):
                process = start(out)
                assert process.stdout
                for _ in range(rng.randrange(3)):
                    process.stdout.readline()
                time.sleep(rng.uniform(0, 0.1))
                row.tried += process.poll() is None
                process.kill()
                process.communicate()
                if out.exists() and complete(out):
                    break
            compare(out, row)
    row.remark = f"{stores} stores, all arrays equal to those of a job left alone"
    return row


def complete(out: Path) -> bool:
    import zarr

    return bool((zarr.open_group(str(out), mode="r")["status"][...] != 0).all())


DISK = """
import resource, sys
from tests.jobs import dataset_job
import torch
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
dataset_job.run(sys.argv[1])
"""


def disk(limits: tuple[int, ...] = (100, 2000, 30_000, 100_000, 150_000)) -> Row:
    """A disk that takes no more, at several sizes of files."""
    row = Row("a disk that takes no more", tried=len(limits))
    with uninterrupted() as (scratch, compare):
        failed = 0
        for limit in limits:
            out = scratch / f"{limit}.zarr"
            done = python(DISK, str(out), str(limit))
            failed += done.returncode != 0
            if done.returncode != 0 and "File too large" not in done.stderr:
                row.harms[done.stderr[-80:]] += 1
            compare(out, row)
        row.harms["half-made folders left"] += any(p.suffix == ".making" for p in scratch.iterdir())
        row.harms = +row.harms
    row.remark = f"{failed} failed saying so; the same command with room again made the same store"
    return row


def shared(n: int = 5) -> Row:
    """Two processes begun at once on one store, one of them killed."""
    row, rng = Row("two processes on one store, one of them killed"), random.Random(0)
    with uninterrupted() as (scratch, compare):
        for k in range(n):
            out = scratch / f"{k}.zarr"
            processes = [start(out, 0.02) for _ in range(2)]
            assert processes[0].stdout
            processes[0].stdout.readline()
            time.sleep(rng.uniform(0, 0.2))
            processes[0].kill()
            errors = [process.communicate()[1] for process in processes]
            if processes[1].returncode != 0:
                row.harms[f"the other failed: {errors[1][-80:]}"] += 1
            compare(out, row)
            row.tried += 1
    row.remark = "the other one finished; all arrays equal"
    return row


# ------------------------------------------------------------------------------------------------ running it

#: Each part, and its size where little time is.
PARTS: dict[str, tuple[Callable[..., Row], dict[str, object]]] = {
    "interrupts": (interrupts, {"wanted": 60}),
    "growth": (growth, {"n": 120}),
    "threads": (threads, {"seconds": 2}),
    "memory": (memory, {"limits": (16, 700)}),
    "kills": (kills, {"n": 2}),
    "disk": (disk, {"limits": (2000,)}),
    "shared": (shared, {"n": 1}),
}


def run(name: str, small: bool = False, **sizes: object) -> Row:
    """One part, timed."""
    part, smaller = PARTS[name]
    started = time.monotonic()
    row = part(**(smaller if small else sizes))
    row.seconds = time.monotonic() - started
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--small", action="store_true", help="a slice of each")
    parser.add_argument("--seconds", type=float, default=300, help="how long the threads work (default: %(default)s)")
    parser.add_argument("--signals", type=int, default=3000, help="how many interrupts (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, Python {platform.python_version()}, {machine}\n")
    print("| what | tried | harmed | | seconds |\n|---|---|---|---|---|")
    harmed = 0
    for name in options.parts or PARTS:
        sizes = {"threads": {"seconds": options.seconds}, "interrupts": {"wanted": options.signals}}
        row = run(name, options.small, **sizes.get(name, {}))
        print(row, flush=True)
        harmed += row.harmed
    return int(harmed > 0)


if __name__ == "__main__":
    sys.exit(main())
