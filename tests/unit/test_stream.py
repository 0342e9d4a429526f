"""Saliency while a model trains: TensorWatch streams in one process and in two."""

from __future__ import annotations

import io
import json
import pathlib
import queue
import random
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

tensorwatch = pytest.importorskip("tensorwatch", reason="TensorWatch is not installed")

from saliency_lrp import stream as streams  # noqa: E402
from saliency_lrp.errors import InputError  # noqa: E402
from saliency_lrp.stream import LoopbackWatcher, SaliencyLogger, SaliencyView, open_stream  # noqa: E402

PICTURES = [np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8) for i in range(2)]


def small_model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(6 * 196, 4)
    )


def train(model, steps, log=lambda: None):
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.randint(4, (4,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log()


def logger(model, stream, **options):
    return SaliencyLogger(model, PICTURES, stream, method=options.pop("method", "grad_x_input"), **options)


def shown(view):
    return np.asarray(Image.open(io.BytesIO(view.image.value)).convert("RGB"))


def test_training_is_the_same_with_and_without_logging():
    plain, logged = small_model(), small_model()
    written = []
    stream = tensorwatch.Stream()
    stream.write = lambda value: written.append(value)
    train(plain, 5)
    train(logged, 5, logger(logged, stream, every=2))
    assert len(written) == 3
    assert logged.training
    for name, value in plain.state_dict().items():
        assert torch.equal(value, logged.state_dict()[name]), name


def test_items_are_what_tensorwatch_draws():
    model = small_model()
    items = logger(model, tensorwatch.Stream(), labels=[1, 2], class_names=["a", "b", "c", "d"]).explain(40)
    assert [item.title for item in items][::2] == ["step 40", "step 40"]
    assert items[1].title.startswith("b ") and items[3].title.startswith("c ")
    for item in items:
        assert item.images[0].shape == (3, 16, 16) and item.images[0].dtype == np.float32
        assert item.images[0].min() >= 0 and item.images[0].max() <= 1
    np.testing.assert_allclose(items[0].images[0] * 255, PICTURES[0].transpose(2, 0, 1), atol=1e-3)
    assert np.abs(items[1].images[0] - items[0].images[0]).max() > 0.05


def test_the_view_draws_by_itself_and_looks_back():
    model, stream = small_model(), tensorwatch.Stream()
    view = SaliencyView(stream)
    before = shown(view)
    train(model, 4, logger(model, stream, every=1))
    assert len(view.frames) == 4
    assert shown(view).shape != before.shape
    last = view.image.value
    view.slider.value = 0
    assert view.image.value == view.frames[0] != last
    train(model, 1, logger(model, stream, every=1))
    assert view.image.value == view.frames[0], "the viewer was looking back"
    view.close()
    train(model, 1, logger(model, stream, every=1))
    assert len(view.frames) == 5


def test_a_view_lives_on_without_a_name():
    import gc

    stream = tensorwatch.Stream()
    number = len(streams._views)
    SaliencyView(stream)
    gc.collect()
    assert len(streams._views) == number + 1
    assert len(stream._subscribers) == 1
    for view in list(streams._views):
        view.close()


def test_the_view_has_a_bundle_with_a_picture():
    stream = tensorwatch.Stream()
    view = SaliencyView(stream)
    logger(small_model(), stream)(force=True)
    data, _ = view._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == "SaliencyView(1 steps)"
    view.close()


def test_old_steps_are_forgotten():
    stream = tensorwatch.Stream()
    view = SaliencyView(stream, history=3)
    log = logger(small_model(), stream, every=1)
    for _ in range(5):
        log()
    assert len(view.frames) == 3 and view.slider.max == 2
    view.close()


def test_a_failing_viewer_is_reported_once_and_training_goes_on():
    model, stream = small_model(), tensorwatch.Stream()

    class Broken(tensorwatch.stream.Stream):
        def write(self, val, from_stream=None):
            raise OSError("no screen")

    broken = Broken()
    broken.subscribe(stream)
    log = logger(model, stream, every=1)
    with pytest.warns(RuntimeWarning, match="no screen.*training goes on") as heard:
        train(model, 4, log)
    assert len([w for w in heard if "no screen" in str(w.message)]) == 1
    assert log.calls == 4


def test_file_stream_is_read_by_a_late_viewer(tmp_path):
    path = str(tmp_path / "run.log")
    model = small_model()
    with LoopbackWatcher(filename=path) as watcher:
        train(model, 3, logger(model, watcher.create_stream("saliency"), every=1))
    stream = open_stream(filename=path)
    view = SaliencyView(stream)
    stream.load()
    assert len(view.frames) == 3
    view.close()
    watcher.close()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: logger(small_model(), tensorwatch.Stream(), every=0), "every=0"),
        (lambda: logger(small_model(), tensorwatch.Stream(), labels=[1]), "1 labels were given for 2 images"),
        (lambda: open_stream(), "exactly|either"),
        (lambda: open_stream(filename="a", port=1), "either"),
    ],
)
def test_wrong_arguments_are_refused(call, match):
    with pytest.raises(InputError, match=match):
        call()


# ---- two processes over TensorWatch's ZMQ transport ------------------------------------------------------------------


def free_offset():
    """A TensorWatch port number whose two TCP ports are free."""
    for _ in range(50):
        offset = random.randint(1000, 20000)
        try:
            for base in (40859, 41459):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return offset
    pytest.skip("no free ports for TensorWatch on this machine")


def listening_on(port):
    """The addresses that listen on a TCP port, from Linux' own table."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if pathlib.Path(table).exists():
            for line in pathlib.Path(table).read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A" and int(local.split(":")[1], 16) == port:
                    found.add(local.split(":")[0])
    return found


class Process:
    """A child process whose JSON lines are read as they come."""

    def __init__(self, *arguments):
        script = pathlib.Path(__file__).parents[1] / "jobs" / "stream_process.py"
        self.child = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            if line.startswith("{"):
                self.lines.put(json.loads(line))

    def until(self, wanted, timeout=120):
        """Every line up to the first that is wanted."""
        seen = []
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                seen.append(self.lines.get(timeout=0.2))
            except queue.Empty:
                continue
            if wanted(seen[-1]):
                return seen
        raise AssertionError(f"not seen in {timeout} s; the last lines were {seen[-3:]}")

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(10)


@pytest.mark.slow
def test_two_processes_and_a_viewer_killed_midway():
    port = free_offset()
    processes = []

    def start(*arguments):
        processes.append(Process(*arguments))
        return processes[-1]

    try:
        trainer = start("train", port)
        viewer = start("view", port)
        alone = trainer.until(lambda line: line.get("step") == 5)
        assert listening_on(40859 + port) == {"0100007F"} and listening_on(41459 + port) == {"0100007F"}
        viewer.until(lambda line: line.get("frames", 0) >= 3)
        watched = trainer.until(lambda line: "step" in line)
        viewer.kill()
        late = start("view", port)
        late.until(lambda line: line.get("frames", 0) >= 3)
        late.kill()
        rest = trainer.until(lambda line: line.get("step", 0) >= 60)  # the last half without a viewer
        trainer.child.stdin.close()
        rest += trainer.until(lambda line: line.get("finished"))
        assert trainer.child.wait(20) == 0
    finally:
        for process in processes:
            process.kill()
    steps = [line for line in [*alone, *watched, *rest] if "step" in line]
    assert [line["step"] for line in steps] == list(range(len(steps))), "training missed a step"
    assert all(line["logged"] for line in steps)
    assert rest[-1]["training"] is True
    times = np.array([line["took"] for line in steps[2:]])
    assert np.median(times[len(times) // 2 :]) < 5 * np.median(times[: len(times) // 2]) + 0.05
