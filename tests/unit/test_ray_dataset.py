"""The older name of data-set jobs on a cluster."""

from __future__ import annotations

import pytest
import torch

from saliency_lrp.errors import InputError

pytest.importorskip("zarr", minversion="3", reason="whole data sets need saliency-lrp[scale]")
pytest.importorskip("ray.data", reason="a cluster needs saliency-lrp[scale]")


def test_at_least_one_worker(tmp_path):
    from saliency_lrp.dataset import on_ray
    from saliency_lrp.ray_dataset import explain_dataset_on_ray

    assert explain_dataset_on_ray is on_ray.explain_dataset_on_ray
    with pytest.raises(InputError, match="workers=0"):
        explain_dataset_on_ray(torch.nn.Linear(3, 2), torch.randn(4, 3), tmp_path / "m.zarr", workers=0)
