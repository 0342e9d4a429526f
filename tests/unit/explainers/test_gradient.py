"""Gradient methods on models that forbid gradients, and Grad-CAM on series, images and volumes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp.errors import InputError
from saliency_lrp.explainers import get
from tests.helpers.tiny import Net, noise

# ------------------------------------------------------------------------------------------------ no_grad


def plain(s, x):
    return s.b(s.a(x).relu()) + s.c(x)


def block(around):
    def run(s, x):
        with around():
            h = s.a(x).relu()
        return s.b(h) + s.c(x)

    return run


def switched(s, x):
    torch.set_grad_enabled(False)
    out = plain(s, x)
    torch.set_grad_enabled(True)
    return out


FORBID = {
    "no_grad on forward": torch.no_grad()(plain),
    "inference_mode on forward": torch.inference_mode()(plain),
    "a no_grad block": block(torch.no_grad),
    "an inference_mode block": block(torch.inference_mode),
    "set_grad_enabled(False)": torch.set_grad_enabled(False)(plain),
    "switched off for good": switched,
}
torch.set_grad_enabled(True)  # set_grad_enabled acts at once where it is made
METHODS = ["vanilla_grad", "saliency", "grad_x_input", "integrate_grad", "smooth_grad", "shap_gradient", "deeplift"]


@pytest.mark.parametrize("method", [*METHODS, "guided_backprop", "deconv", "lrp"])
@pytest.mark.parametrize("way", FORBID)
def test_what_forbids_gradients_changes_no_map(way, method):
    parts = {"a": nn.Linear(6, 5), "b": nn.Linear(5, 3), "c": nn.Linear(6, 3)}
    model, same = Net(FORBID[way], **parts), Net(plain, **parts)
    x = noise(2, 6)
    options = {"samples": 3} if method in ("smooth_grad", "shap_gradient") else {}
    want = get(method, same, **options).explain(x, 1)
    got = get(method, model, **options).explain(x, 1)
    assert got.abs().max() > 0
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        torch.testing.assert_close(get(method, model, **options).explain(x, 1), want, rtol=1e-9, atol=1e-12)
        assert not torch.is_grad_enabled()


def test_backward_hooks_do_not_change_gradients():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double(), noise(2, 6)
    want, seen = get("vanilla_grad", model).explain(x, 1), []
    model[2].register_full_backward_hook(lambda m, i, o: seen.append(1) or (0.5 * i[0],))
    torch.testing.assert_close(get("vanilla_grad", model).explain(x, 1), want)
    assert not seen


# ------------------------------------------------------------------------------------------------ Grad-CAM

CONV = {
    1: (nn.Conv1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.AdaptiveAvgPool2d),
    3: (nn.Conv3d, nn.AdaptiveAvgPool3d),
}
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def network(n, stride=1):
    conv, pool = CONV[n]
    torch.manual_seed(0)
    body = nn.Sequential(conv(2, 4, 3, padding=1, stride=stride), nn.ReLU(), conv(4, 6, 3, padding=1), nn.ReLU())
    return nn.Sequential(body, pool(1), nn.Flatten(), nn.Linear(6, 3)).double().eval()


def cam_of(net, x, label):
    """The paper's formula by plain autograd, enlarged."""
    f = net[0](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(net[3](net[2](net[1](f)))[:, label].sum(), f)
    weights = g.flatten(2).mean(2)[(..., *(None,) * (x.ndim - 2))]
    cam = (weights * f).sum(1, keepdim=True).detach()
    cam = torch.where(cam.flatten(1).amax(1).reshape(-1, *(1,) * (x.ndim - 1)) > 0, cam.relu(), cam)
    return F.interpolate(cam, size=x.shape[2:], mode=MODES[x.ndim - 2], align_corners=False)[:, 0]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(3, 2, 32), (3, 2, 12, 12), (3, 2, 6, 6, 6), (2, 2, 8, 12, 6)], ids=str)
def test_gradcam_in_every_dimension(shape, stride):
    net, x = network(len(shape) - 2, stride), noise(*shape)
    got = get("gradcam", net).explain(x, 1)
    assert got.shape == x.shape
    torch.testing.assert_close(got.sum(1), cam_of(net, x, 1), rtol=1e-9, atol=1e-12)
    named = get("gradcam", net, layer_path="0.3").explain(x, 1)
    torch.testing.assert_close(named, got)


def test_gradcam_of_a_series_reads_features_last():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.out = nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.act(self.up(x.transpose(1, 2))).mean(1))

    torch.manual_seed(0)
    net, x = Tagger().double().eval(), noise(2, 2, 16)
    f = net.up(x.transpose(1, 2)).tanh().detach().requires_grad_()
    (g,) = torch.autograd.grad(net.out(f.mean(1))[:, 1].sum(), f)
    cam = (g.mean(1, keepdim=True) * f).sum(2).detach()
    want = torch.where(cam.amax(1, keepdim=True) > 0, cam.relu(), cam)
    torch.testing.assert_close(get("gradcam", net).explain(x, 1).sum(1), want, rtol=1e-9, atol=1e-12)


def test_gradcam_on_a_table_says_what_it_takes():
    with pytest.raises(InputError, match="series .*images .*volumes"):
        get("gradcam", nn.Linear(4, 3).double()).explain(noise(2, 4), 1)


@pytest.mark.parametrize("method", ["lrp_gradcam", "guided_gradcam"])
def test_methods_times_gradcam_on_series(method):
    net, x = network(1), noise(2, 2, 32)
    factor = get({"lrp_gradcam": "lrp", "guided_gradcam": "guided_backprop"}[method], net).explain(x, 1)
    want = factor * cam_of(net, x, 1).abs()[:, None]
    torch.testing.assert_close(get(method, net).explain(x, 1), want, rtol=1e-9, atol=1e-12)
