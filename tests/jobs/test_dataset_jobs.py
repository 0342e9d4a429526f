"""Jobs over whole data sets: what is the same job, what is skipped, and what is never deleted."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import LrpExplainer, RelevancePropagator
from saliency_lrp.dataset import EXPLAINED, PENDING, SKIPPED, explain_dataset, on_ray
from saliency_lrp.errors import InputError

zarr = pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")
X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network with a setting that is no weight."""

    def __init__(self, factor=1.0, act=torch.relu, slope=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.leaky = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.LeakyReLU(slope)
        self.factor, self.act, self.calls, self.cache = factor, act, 0, None

    def forward(self, x):
        self.calls += 1
        self.cache = self.conv(x)
        return self.head((self.leaky(self.act(self.cache)) * self.factor).mean((2, 3)))


def go(out, data=X, model=None, **options):
    return explain_dataset(Net() if model is None else model, data, out, batch_size=2, progress=False, **options)


def undo(out, n=4):
    """As if the run had been killed after n items."""
    store = zarr.open_group(str(out), mode="r+")
    status = store["status"][...]
    status[n:] = PENDING
    store["status"][...] = status


def to_tensor(image, scale=1.0):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / scale


class Scaling:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, image):
        return to_tensor(image, self.scale)


def closing_over(scale):
    return lambda image: to_tensor(image, scale)


@pytest.fixture
def folder(tmp_path):
    where, rng = tmp_path / "images", np.random.default_rng(0)
    where.mkdir()
    for k in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(where / f"{k}.bmp")
    return where


# ------------------------------------------------------------------------------------------------ the same job?

OTHER_TENSORS = {
    "all": 1 - X,
    "one item": torch.cat([X[:5], 1 - X[5:6], X[6:]]),
    "another order": X.flip(0),
    "another precision": X.double(),
    "labels": torch.utils.data.TensorDataset(X, torch.arange(8) % 3),
}


@pytest.mark.parametrize("name", OTHER_TENSORS)
def test_other_data_are_another_job(name, tmp_path):
    go(tmp_path / "s.zarr")
    undo(tmp_path / "s.zarr")
    with pytest.raises(InputError, match="data:"):
        go(tmp_path / "s.zarr", OTHER_TENSORS[name])


OTHER_TRANSFORMS = {
    "default": (to_tensor, lambda image: to_tensor(image, 255)),
    "partial": (functools.partial(to_tensor, scale=2), functools.partial(to_tensor, scale=3)),
    "attribute": (Scaling(2), Scaling(3)),
    "closure": (closing_over(2), closing_over(3)),
    "method": (Scaling(2).__call__, Scaling(3).__call__),
    "none": (None, to_tensor),
}


@pytest.mark.parametrize("name", OTHER_TRANSFORMS)
def test_another_transform_is_another_job(name, folder, tmp_path):
    one, other = OTHER_TRANSFORMS[name]
    go(tmp_path / "s.zarr", folder, transform=one)
    undo(tmp_path / "s.zarr")
    with pytest.raises(InputError, match="transform:"):
        go(tmp_path / "s.zarr", folder, transform=other)
    assert go(tmp_path / "s.zarr", folder, transform=one).here == 4


def test_other_images_under_the_same_names(folder, tmp_path):
    go(tmp_path / "s.zarr", folder)
    undo(tmp_path / "s.zarr")
    data = bytearray((folder / "3.bmp").read_bytes())
    data[-1] ^= 1
    (folder / "3.bmp").write_bytes(data)  # as long as before
    with pytest.raises(InputError, match="data:"):
        go(tmp_path / "s.zarr", folder)


OTHER_MODELS = {
    "number": (lambda: Net(factor=-3.0), "settings"),
    "function": (lambda: Net(act=torch.tanh), "settings"),
    "of a layer": (lambda: Net(slope=0.2), "settings.*'leaky'"),
    "layer of another class": (lambda: setattr_of(Net(), "leaky", nn.ELU()), "settings.*'leaky'"),
    "weight": (lambda: setattr_of(Net(), "head", nn.Linear(4, 3)), "weights"),
}


def setattr_of(model, name, value):
    setattr(model, name, value)
    return model


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_settings_of_the_model_are_another_job(name, tmp_path):
    make, said = OTHER_MODELS[name]
    go(tmp_path / "s.zarr")
    undo(tmp_path / "s.zarr")
    with pytest.raises(InputError, match=said):
        go(tmp_path / "s.zarr", model=make())


def test_what_a_forward_changes_is_no_setting(tmp_path):
    model = Net()
    go(tmp_path / "s.zarr", model=model)
    undo(tmp_path / "s.zarr")
    assert model.calls and go(tmp_path / "s.zarr", model=model).here == 4


def test_random_items_can_be_resumed(tmp_path):
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, k):
            return X[k] + 0.1 * torch.rand(3, 8, 8)

    go(tmp_path / "s.zarr", Augmented())
    undo(tmp_path / "s.zarr")
    assert go(tmp_path / "s.zarr", Augmented()).here == 4


CALLABLE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tests.jobs.test_dataset_jobs import Net, X
from saliency_lrp.dataset import explain_dataset

def margin(out):
    return out[:, 1] - out[:, {other}]

made = lambda k: lambda out: out[:, k]
print(explain_dataset(Net(), X, sys.argv[2], targets=[margin, made({k}), torch.nn.Identity() and made(1)], batch_size=2,
                      progress=False).here)
"""


def test_callable_targets_are_known_again_by_another_process(tmp_path):
    root = str(Path(__file__).parents[2])

    def run(other=0, k=2):
        (tmp_path / "job.py").write_text(CALLABLE.format(other=other, k=k))
        return subprocess.run(
            [sys.executable, str(tmp_path / "job.py"), root, str(tmp_path / "s.zarr")],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=120,
        )  # fmt: skip

    assert run().stdout == "8\n"
    undo(tmp_path / "s.zarr")
    assert "targets" in run(other=2).stderr and "targets" in run(k=0).stderr  # other source, another closure
    again = run()
    assert again.stdout == "4\n", again.stderr


# ------------------------------------------------------------------------------------------------ skipped items


class Failing(nn.Module):
    """Says something that is no number of the items that are marked by large values."""

    def __init__(self, value=float("nan")):
        super().__init__()
        self.net, self.value = Net(), value

    def forward(self, x):
        out = self.net(x)
        return torch.where((x.amax((1, 2, 3)) > 5)[:, None], out * self.value, out)


def marked(*items):
    x = X.clone()
    x[list(items)] += 10
    return x


@pytest.mark.parametrize("bad", [(5,), (0,), (4, 5), (0, 1, 2, 3), (7,)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_items_without_an_answer_are_skipped_and_listed(bad, value, tmp_path):
    summary = go(tmp_path / "s.zarr", marked(*bad), Failing(value))
    assert summary.complete and summary.explained == 8 - len(bad)
    assert [k for k, _, _ in summary.skipped] == list(bad) and all("NaN" in why for _, _, why in summary.skipped)
    store = zarr.open_group(str(tmp_path / "s.zarr"), mode="r")
    status = np.full(8, EXPLAINED)
    status[list(bad)] = SKIPPED
    assert (store["status"][...] == status).all()
    good = [k for k in range(8) if k not in bad]
    expected = torch.cat([RelevancePropagator(Failing(value)).trace(X[k : k + 1]).relevance() for k in good])
    torch.testing.assert_close(torch.from_numpy(store["input"][...][good, 0]), expected, rtol=1e-4, atol=1e-6)
    assert go(tmp_path / "s.zarr", marked(*bad), Failing(value)).here == 0


def test_callable_targets_that_say_nan(tmp_path):
    summary = go(tmp_path / "s.zarr", marked(3), Net(), targets=lambda out: out[:, 0] / (out.abs().sum(1) < 5))
    assert summary.explained + len(summary.skipped) == 8 and summary.complete


def test_nothing_but_nan_is_said(tmp_path):
    with pytest.raises(InputError, match="none of the 8.*NaN"):
        go(tmp_path / "s.zarr", marked(*range(8)), Failing())


# ------------------------------------------------------------------------------------------------ names, layers


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_names_that_are_no_utf8(folder, tmp_path):
    os.rename(folder / "0.bmp", os.fsencode(folder) + b"/0\xff\xfe.bmp")
    Path(os.fsdecode(os.fsencode(folder) + b"/1\xe9.png")).write_bytes(b"broken")
    summary = go(tmp_path / "s.zarr", folder)
    assert summary.explained == 8 and summary.complete
    ((_, name, reason),) = summary.skipped
    assert name == "1\\xe9.png" and str(summary).encode() and reason.encode()
    store = zarr.open_group(str(tmp_path / "s.zarr"), mode="r")
    assert b"0\xff\xfe.bmp" in {bytes(row).rstrip(b"\0") for row in store["name"][...]}
    undo(tmp_path / "s.zarr")
    assert go(tmp_path / "s.zarr", folder).here == 5


def test_layers_without_the_input(tmp_path):
    go(tmp_path / "s.zarr", layers=["conv"], keep_input=False)
    store = zarr.open_group(str(tmp_path / "s.zarr"), mode="r")
    assert "input" not in store
    expected = RelevancePropagator(Net()).trace(X[:2]).layer_relevance("conv")
    assert torch.equal(torch.from_numpy(store["layers/conv"][:2, 0]), expected)
    share = (
        LrpExplainer(Net()).explain(X[:2]).double().sum((1, 2, 3)) / torch.from_numpy(store["score"][:2, 0]).double()
    )
    np.testing.assert_allclose(store["conserved"][:2, 0], share, rtol=1e-5)
    with pytest.raises(InputError, match="keep_input"):
        go(tmp_path / "s.zarr", layers=["conv"])
    with pytest.raises(InputError, match="keeps nothing"):
        go(tmp_path / "t.zarr", keep_input=False)


# ------------------------------------------------------------------------------------------------ what is not ours

FOREIGN = {
    "an array in a group of ours": lambda out: zarr.open_group(str(out), mode="r+").create_array(
        "mine", shape=3, dtype="i4"
    ),
    "an array among the layers": lambda out: zarr.open_group(str(out), mode="r+").create_array(
        "layers/mine", shape=3, dtype="i4"
    ),
    "a file": lambda out: (out / "notes.txt").write_text("mine"),
    "a folder": lambda out: (out / "photos").mkdir(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_overwriting_deletes_nothing_of_somebody_elses_in_a_store(name, tmp_path):
    out = tmp_path / "s.zarr"
    go(out, layers=["conv"])
    FOREIGN[name](out)
    before = sorted(str(p) for p in out.rglob("*"))
    with pytest.raises(InputError, match="no job put there"):
        go(out, layers=["conv"], overwrite=True)
    assert sorted(str(p) for p in out.rglob("*")) == before


@pytest.mark.parametrize("attributes", [{}, {"job": "mine"}, {"job": {"what": 1}}, {"made": {}, "complete": True}])
def test_groups_of_somebody_else_are_never_touched(attributes, tmp_path):
    out = tmp_path / "mine.zarr"
    zarr.open_group(str(out), mode="w", attributes=attributes).create_array("precious", shape=3, dtype="i4")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="no job of this kind"):
            go(out, overwrite=overwrite)
    assert (out / "precious" / "zarr.json").is_file()


def test_links_are_not_followed_when_overwriting(tmp_path):
    go(tmp_path / "s.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "s.zarr")
    with pytest.raises(InputError, match="is a link"):
        go(tmp_path / "link.zarr", overwrite=True)
    assert go(tmp_path / "link.zarr").here == 0
    assert go(tmp_path / "s.zarr", overwrite=True).here == 8
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".zarr"] == []


# ------------------------------------------------------------------------------------------------ processes

TWICE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.jobs.test_dataset_jobs import go
while time.time() < float(sys.argv[3]):
    pass
print(go(sys.argv[2]).complete)
"""


def test_two_processes_that_begin_at_once(tmp_path):
    import time

    root, when = str(Path(__file__).parents[2]), str(time.time() + 8)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWICE, root, str(tmp_path / "s.zarr"), when],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180) for process in processes]
    assert [out for out, _ in said] == ["True\n", "True\n"], said
    go(tmp_path / "alone.zarr")
    one, other = (zarr.open_group(str(tmp_path / name), mode="r") for name in ("s.zarr", "alone.zarr"))
    assert one["input"][...].tobytes() == other["input"][...].tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.zarr", "s.zarr"]


class FakeRay:
    """Notes how it was started."""

    def __init__(self, running=False):
        self.running, self.given = running, None

    def is_initialized(self):
        return self.running

    def init(self, **given):
        self.given = given


def test_ray_listens_on_loopback_unless_a_cluster_was_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone, named, running = FakeRay(), FakeRay(), FakeRay(running=True)
    on_ray.connect(alone)
    assert alone.given == {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    on_ray.connect(running)
    assert running.given is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    on_ray.connect(named)
    assert named.given == {}
