"""Explainers and data sets by captured graphs: the engine's maps, whatever the batch and the target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp import LrpExplainer
from saliency_lrp.errors import InputError
from tests.unit.test_compiled import NETS, net_and_input


@pytest.mark.parametrize("composite", ["epsilon", "auto"])
def test_an_explainer_by_graphs_gives_the_engines_maps(composite):
    net, x = net_and_input("squeeze")
    eager, compiled = LrpExplainer(net, composite), LrpExplainer(net, composite, compiled=True)
    top = lambda out: out[:, 0] - out[:, 1]  # noqa: E731
    for target in (None, 3, [1, 4], torch.tensor([0, -1]), top):
        got, want = compiled.explain(x, target), eager.explain(x, target)
        assert got.dtype == want.dtype and (got - want).abs().max() <= 1e-6 * want.abs().max()
    torch.testing.assert_close(compiled.output, net(x).detach())
    assert compiled.explain(x[:0]).shape == (0, 3, 12, 12)


def test_smaller_batches_are_padded_and_larger_ones_captured():
    net, x = net_and_input("squeeze")
    x = torch.cat([x, -x, x * 2])
    eager, compiled = LrpExplainer(net, "epsilon_plus"), LrpExplainer(net, "epsilon_plus", compiled=True)
    for n, sizes in ((3, [3]), (1, [3]), (2, [3]), (5, [3, 5]), (4, [3, 5])):
        want = eager.explain(x[:n], list(range(n)))
        assert (compiled.explain(x[:n], list(range(n))) - want).abs().max() <= 1e-6 * want.abs().max()
        assert [c.sizes for c in compiled.prepared._compiled.values()] == [sizes]


def test_where_items_meet_a_batch_is_not_padded():
    class Meet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.b(h - h.mean(0))

    torch.manual_seed(1)
    net, x = Meet().double(), torch.randn(4, 4).double()
    compiled = LrpExplainer(net, "epsilon", compiled=True)
    for n in (4, 2, 3, 2):
        want = LrpExplainer(net, "epsilon").explain(x[:n], 1)
        assert (compiled.explain(x[:n], 1) - want).abs().max() <= 1e-6 * want.abs().max()


def test_changed_weights_are_seen():
    net, x = net_and_input("residual")
    compiled = LrpExplainer(net, "epsilon", compiled=True)
    compiled.explain(x, 1)
    for change in (lambda: net.head.weight.mul_(-2), lambda: net.load_state_dict(NETS["residual"]().state_dict())):
        with torch.no_grad():
            change()
        want = LrpExplainer(net, "epsilon").explain(x, 1)
        assert (compiled.explain(x, 1) - want).abs().max() <= 1e-6 * want.abs().max()


def test_what_a_graph_has_no_place_for_is_refused():
    net, x = net_and_input("squeeze")
    for options in ({"account": True}, {"at": "stem"}, {"constants": (0,)}):
        with pytest.raises(InputError, match=f"has no place for {next(iter(options))}"):
            LrpExplainer(net, compiled=True, **options)
    with pytest.raises(InputError, match="no backend 'tensorrt'|backend.*tensorrt"):
        LrpExplainer(net, compiled="tensorrt").explain(x)
    explainer = LrpExplainer(net, "epsilon", compiled=True)
    for given, target, match in (
        (x * float("nan"), 1, "NaN"),
        (x, 5, "out of range"),
        (x, [1, 2, 3], "3 classes were given for 2 items"),
        ({"x": x}, 1, "inputs by name"),
    ):
        with pytest.raises(InputError, match=match):
            explainer.explain(given, target)


def test_a_data_set_by_graphs_has_the_same_maps(tmp_path):
    zarr = pytest.importorskip("zarr")
    from saliency_lrp.dataset import explain_dataset

    net, _ = net_and_input("squeeze")
    items = [(t, k % 5) for k, t in enumerate(torch.randn(5, 3, 12, 12).double())]
    items[2] = (items[2][0] * float("nan"), 0)
    stores = {}
    for compiled in (False, True):
        out = tmp_path / f"{compiled}.zarr"
        options = {"targets": [None, "label", 3], "batch_size": 2, "composite": "epsilon_plus", "progress": False}
        summary = explain_dataset(net, items, out, compiled=compiled, **options)
        assert summary.explained == 4 and [number for number, _, _ in summary.skipped] == [2]
        stores[compiled] = zarr.open_group(out, mode="r")
        with pytest.raises(InputError, match="another job.*compiled"):
            explain_dataset(net, items, out, compiled=not compiled, **options)
    for name, bound in (("input", 1e-6), ("score", 1e-6), ("conserved", 1e-5), ("target", 0)):
        got, want = (np.nan_to_num(stores[way][name][:]) for way in (True, False))
        assert np.abs(got - want).max() <= bound * np.abs(want).max(), name
    with pytest.raises(InputError, match="leave out layers="):
        explain_dataset(net, items, tmp_path / "other.zarr", layers=["stem"], compiled=True)
