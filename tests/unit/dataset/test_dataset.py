"""Whole data sets: equal to the explainer, resumable after a kill, corrupt items skipped and listed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lrp import LrpExplainer, RelevancePropagator
from saliency_lrp.cli import main
from saliency_lrp.dataset import EXPLAINED, PENDING, SKIPPED, explain_dataset
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.errors import InputError
from tests.jobs.dataset_job import BATCH, ITEMS, OPTIONS, inputs, run

zarr = pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")
ROOT = Path(__file__).resolve().parents[3]
JOB = ROOT / "tests" / "jobs" / "dataset_job.py"


def arrays(out) -> dict[str, np.ndarray]:
    """Everything in a store."""
    store = zarr.open_group(str(out), mode="r")
    names = ["input", "layers/features.4", "target", "score", "conserved", "status", "reason"]
    return {name: store[name][:] for name in names}


def assert_same(one, other) -> None:
    """Bit for bit, NaN included."""
    for name, values in arrays(one).items():
        assert values.tobytes() == arrays(other)[name].tobytes(), name


def start(out, *arguments: str, **environment: str) -> subprocess.Popen:
    """The job in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(JOB), str(out), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "maps.zarr"
    summary = run(out)
    assert summary.complete and summary.explained == summary.here == ITEMS and not summary.skipped
    return out


# ------------------------------------------------------------------------------------------------ the numbers


def test_maps_equal_those_of_the_explainer(uninterrupted):
    model, x, found = load_demo_model(), inputs(), arrays(uninterrupted)
    explainer = LrpExplainer(model)
    for k in range(0, ITEMS, BATCH):
        batch = x[k : k + BATCH]
        for t, target in enumerate((None, 3)):
            stored, trace = torch.from_numpy(found["input"][k : k + BATCH, t]), RelevancePropagator(model).trace(batch)
            assert torch.equal(stored, trace.relevance(target))  # a job that keeps layers carries relevance itself
            R = explainer.explain(batch, target)
            assert (stored - R).abs().max() <= 1e-5 * R.abs().max()
            layer = trace.layer_relevance("features.4", target)
            assert torch.equal(torch.from_numpy(found["layers/features.4"][k : k + BATCH, t]), layer)
    with torch.no_grad():
        scores = model(x)
    assert (found["target"] == np.stack([scores.argmax(1), np.full(ITEMS, 3)], 1)).all()
    np.testing.assert_allclose(found["score"][:, 1], scores[:, 3], rtol=1e-5, atol=1e-5)
    share = found["input"].astype(np.float64).sum((2, 3, 4)) / found["score"]
    np.testing.assert_allclose(found["conserved"], share, rtol=1e-4)


def test_the_store_says_how_it_was_made(uninterrupted):
    attributes = zarr.open_group(str(uninterrupted), mode="r").attrs.asdict()
    assert attributes["complete"] and attributes["explained"] == ITEMS and attributes["skipped"] == []
    job = attributes["job"]
    assert job["model"] == "DemoNet" and job["targets"] == [None, 3] and job["seed"] == "logit"
    assert job["composite"].startswith("Composite 'auto'")
    assert attributes["made"]["torch"] == torch.__version__


# ------------------------------------------------------------------------------------------------ kills and shares


def test_a_killed_run_goes_on_where_it_stopped(uninterrupted, tmp_path):
    out = tmp_path / "maps.zarr"
    process = start(out, "0.2")
    for expected in (0, BATCH, 2 * BATCH):  # two batches done, the third written but not flagged
        assert int(process.stdout.readline()) == expected
    process.kill()
    process.wait()
    status = zarr.open_group(str(out), mode="r")["status"][:]
    done = int((status == EXPLAINED).sum())
    assert done in (2 * BATCH, 3 * BATCH) and (status[done:] == PENDING).all()
    summary = run(out)
    assert summary.complete and summary.here == ITEMS - done
    assert_same(out, uninterrupted)
    assert run(out).here == 0  # nothing left to do


def test_two_processes_share_the_batches(uninterrupted, tmp_path):
    out = tmp_path / "maps.zarr"
    processes = [start(out, "0", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    printed = [{int(line) for line in process.communicate(timeout=120)[0].split()} for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed == [{0, 8, 16}, {4, 12, 20}]
    assert run(out).complete
    assert_same(out, uninterrupted)


def test_rank_must_fit_the_world(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="RANK=2"):
        run(tmp_path / "maps.zarr")


# ------------------------------------------------------------------------------------------------ images


@pytest.fixture
def folder(tmp_path):
    """Six images at two depths, one of them corrupt."""
    where = tmp_path / "images"
    (where / "more").mkdir(parents=True)
    for k, image in enumerate(demo_images(6)):
        image.image.save(where / ("more" if k > 3 else ".") / f"{k}.png")
    broken = where / "1.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (where / "notes.txt").write_text("not an image")
    return where


def test_corrupt_images_are_skipped_and_listed(folder, tmp_path):
    out, model = tmp_path / "maps.zarr", load_demo_model()
    summary = explain_dataset(model, folder, out, batch_size=4, progress=False)
    assert summary.complete and summary.explained == 5
    ((k, name, reason),) = summary.skipped
    assert (k, name) == (1, "1.png") and "cannot be read" in reason
    assert "1.png" in str(summary)
    store = zarr.open_group(str(out), mode="r")
    assert store.attrs["skipped"] == [{"item": 1, "name": "1.png", "reason": reason}]
    assert list(store["status"][:]) == [EXPLAINED, SKIPPED, *[EXPLAINED] * 4]
    assert np.isnan(store["input"][1]).all() and np.isfinite(store["input"][[0, 2, 3, 4, 5]]).all()
    names = [bytes(row).rstrip(b"\0").decode() for row in store["name"][:]]
    assert names == ["0.png", "1.png", "2.png", "3.png", "more/4.png", "more/5.png"]


def test_a_folder_gives_what_its_tensors_give(folder, tmp_path):
    from saliency_lrp.images import build_input, load_image

    model, out = load_demo_model(), tmp_path / "maps.zarr"
    explain_dataset(model, folder, out, batch_size=2, progress=False)
    pair = torch.cat([build_input(model, load_image(folder / f"{k}.png"))[0] for k in (2, 3)])
    stored = zarr.open_group(str(out), mode="r")["input"][2:4, 0]
    assert torch.equal(torch.from_numpy(stored), LrpExplainer(model).explain(pair))


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "maps.zarr"
    arguments = ["batch", str(folder), "--demo", "--out", str(out), "--target", "3", "--target", "best", "--quiet"]
    assert main([*arguments, "--layer", "features.4", "--float16"]) == 0
    printed = capsys.readouterr().out
    assert "5 of 6" in printed and "1.png" in printed
    store = zarr.open_group(str(out), mode="r")
    assert store["input"].shape == (6, 2, 3, 64, 64) and store["input"].dtype == np.float16
    assert store["layers/features.4"].shape[:2] == (6, 2)
    assert main(["batch", str(tmp_path / "nowhere"), "--demo"]) == 2
    assert "there is no folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ other sources


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def test_labels_of_the_items_can_be_the_targets(tmp_path):
    x, labels = torch.randn(5, 6), torch.tensor([2, 0, 1, 1, 0])
    data = torch.utils.data.TensorDataset(x, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    explain_dataset(classifier(), loader, tmp_path / "m.zarr", targets="label", progress=False)
    store = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")
    assert (store["target"][:, 0] == labels.numpy()).all() and store["input"].chunks[0] == 3
    with pytest.raises(InputError, match="pairs"):
        explain_dataset(classifier(), x, tmp_path / "n.zarr", targets="label", progress=False)


def test_callables_and_other_seeds(tmp_path):
    x, model = torch.randn(4, 6), classifier()
    targets = [lambda out: out[:, 1] - out[:, 0]]
    explain_dataset(model, x, tmp_path / "m.zarr", targets=targets, composite="epsilon", progress=False)
    store = zarr.open_group(str(tmp_path / "m.zarr"), mode="r")
    with torch.no_grad():
        out = model(x)
    np.testing.assert_allclose(store["score"][:, 0], (out[:, 1] - out[:, 0]).numpy(), rtol=1e-6)
    assert (store["target"][:] == -1).all()


def test_float16_refuses_what_it_cannot_hold(tmp_path):
    x, model = 1e4 * torch.randn(4, 6), classifier()
    with pytest.raises(InputError, match="float16"):
        explain_dataset(model, 1e3 * x, tmp_path / "m.zarr", dtype="float16", progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": 2}, "targets"),
        ({"composite": "epsilon"}, "composite"),
        ({"batch_size": 3}, "batch_size"),
        ({"seed": "one"}, "seed"),
    ],
)
def test_a_store_of_another_job_is_refused(tmp_path, change, message):
    x = torch.randn(4, 6)
    options = {"batch_size": 2, "progress": False}
    explain_dataset(classifier(), x, tmp_path / "m.zarr", **options)
    with pytest.raises(InputError, match=message):
        explain_dataset(classifier(), x, tmp_path / "m.zarr", **{**options, **change})
    assert explain_dataset(classifier(), x, tmp_path / "m.zarr", overwrite=True, **{**options, **change}).here == 4


def test_other_weights_are_another_job(tmp_path):
    x, model = torch.randn(4, 6), classifier()
    explain_dataset(model, x, tmp_path / "m.zarr", progress=False)
    nn.init.ones_(model[0].weight)
    with pytest.raises(InputError, match="weights"):
        explain_dataset(model, x, tmp_path / "m.zarr", progress=False)


def test_no_folder_that_is_not_a_store_is_touched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"a")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="no Zarr store"):
            explain_dataset(classifier(), torch.randn(4, 6), tmp_path / "photos", overwrite=overwrite, progress=False)
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (torch.randn(4, 6), {"dtype": "int8"}, "dtype"),
        (torch.randn(4, 6), {"batch_size": 0}, "batch_size"),
        (torch.randn(4, 6), {"targets": []}, "empty"),
        (torch.randn(4, 6), {"targets": 1.5}, "targets"),
        (torch.randn(4, 6), {"targets": 7}, "out of range"),
        (torch.randn(0, 6), {}, "empty"),
        (iter([torch.randn(6)]), {}, "length"),
        (torch.full((4, 6), float("nan")), {}, "none of the 4"),
        ([torch.randn(6), torch.randn(7)], {}, "shape"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, data, options, message):
    with pytest.raises(InputError, match=message):
        explain_dataset(classifier(), data, tmp_path / "m.zarr", progress=False, **options)


def test_a_loader_in_random_order_is_refused(tmp_path):
    loader = torch.utils.data.DataLoader(torch.randn(4, 6), shuffle=True)
    with pytest.raises(InputError, match="shuffle=False"):
        explain_dataset(classifier(), loader, tmp_path / "m.zarr", progress=False)


def test_options_are_those_of_the_job():
    assert OPTIONS["batch_size"] == BATCH and ITEMS % BATCH  # the last batch is a short one
