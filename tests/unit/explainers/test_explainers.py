"""Every saliency method: right numbers, on any model, which is left as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency_lrp.demo import load_demo_model
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.explainers import get, list_methods, register_explainer, registry
from saliency_lrp.explainers.base import Question, resolve_target
from saliency_lrp.explainers.cam import class_activation
from saliency_lrp.explainers.perturbation import default_window, superpixels
from saliency_lrp.model.as_found import as_found
from tests.helpers.nets import FunctionalNet, ModuleNet, ReusedNet, calibrated, fingerprint, twins
from tests.helpers.torchvision_cpu import import_torchvision

TENSORWATCH_NAMES = (
    "gradcam vanilla_grad grad_x_input saliency integrate_grad deconv guided_backprop smooth_grad deeplift "
    "occlusion lrp lime_imagenet"
).split()
EXTRAS = "ablation shap_gradient smooth_lrp lrp_gradcam guided_gradcam".split()
CHEAP = {
    "integrate_grad": {"steps": 4},
    "smooth_grad": {"samples": 4},
    "shap_gradient": {"samples": 4},
    "smooth_lrp": {"samples": 3},
    "lime_imagenet": {"samples": 30, "segments": 8},
    "occlusion": {"window": 16, "stride": 16},
    "ablation": {"window": 16},
}


def _torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(import_torchvision().models, name)(weights=None, num_classes=6)
    return calibrated(model, torch.rand(4, 3, 64, 64))


def _small_vit() -> nn.Module:
    torch.manual_seed(0)
    kind = import_torchvision().models.VisionTransformer
    model = kind(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=6)
    # torchvision starts the head at zero, which makes every gradient zero
    nn.init.normal_(model.heads.head.weight, std=0.5)
    return model


MODELS = {
    "demo": (load_demo_model, 64),
    "functional": (lambda: twins(FunctionalNet)[0], 32),
    "resnet18": (lambda: _torchvision("resnet18"), 64),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), 64),
    "vit": (_small_vit, 32),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    make, side = MODELS[request.param]
    model = make()
    torch.manual_seed(1)
    return model.train(), torch.rand(2, 3, side, side)


@pytest.mark.parametrize("label", [3, None], ids=["label", "argmax"])
@pytest.mark.parametrize("name", [*TENSORWATCH_NAMES, *EXTRAS])
def test_every_method_on_every_model(case, name, label):
    model, x = case
    if name in EXTRAS and label is not None:
        x = x[:1]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, given = fingerprint(model), x.clone()
    result = get(name, model, **CHEAP.get(name, {})).explain(x, label)
    assert fingerprint(model) == before
    assert torch.equal(x, given) and not x.requires_grad and x.grad is None
    assert result.shape == x.shape and result.dtype == x.dtype and not result.requires_grad
    assert torch.isfinite(result).all()
    for item in result:
        assert item.sum(0).std() > 0


# ------------------------------------------------------------------------------------ captum's numbers


@pytest.fixture(scope="module")
def plain():
    (net,) = twins(ModuleNet)
    net.double()
    torch.manual_seed(2)
    return net.eval(), torch.rand(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 3, 1])


def _captum(name, net, x, target):
    import captum.attr as c

    if name == "gradcam":
        layer = c.LayerGradCam(net, net.relu2).attribute(x, target=target)
        large = F.interpolate(layer, size=x.shape[2:], mode="bilinear", align_corners=False)
        return large.expand_as(x) / 3
    if name == "smooth_grad":
        torch.manual_seed(0)
        tunnel = c.NoiseTunnel(c.Saliency(net))
        scale = 0.15 * float(x.max() - x.min())
        return tunnel.attribute(x, nt_samples=10, stdevs=scale, target=target, abs=False)
    calls = {
        "vanilla_grad": lambda: c.Saliency(net).attribute(x, target=target, abs=False),
        "saliency": lambda: c.Saliency(net).attribute(x, target=target),
        "grad_x_input": lambda: c.InputXGradient(net).attribute(x, target=target),
        "integrate_grad": lambda: c.IntegratedGradients(net).attribute(x, target=target, n_steps=20),
        "deconv": lambda: c.Deconvolution(net).attribute(x, target=target),
        "guided_backprop": lambda: c.GuidedBackprop(net).attribute(x, target=target),
        "deeplift": lambda: c.DeepLift(net).attribute(x, target=target),
        "occlusion": lambda: c.Occlusion(net).attribute(
            x, sliding_window_shapes=(3, 5, 5), strides=(3, 2, 2), target=target
        ),
    }
    return calls[name]()


OPTIONS = {
    "gradcam": {"relu": False, "layer_path": "relu2"},
    "integrate_grad": {"steps": 20},
    "occlusion": {"window": 5, "stride": 2},
    "smooth_grad": {"samples": 10},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    "vanilla_grad saliency grad_x_input integrate_grad deconv guided_backprop deeplift occlusion gradcam".split(),
)
def test_same_numbers_as_captum(plain, name):
    net, x, target = plain
    ours = get(name, net, **OPTIONS.get(name, {})).explain(x, target)
    theirs = _captum(name, net, x, target)
    assert theirs.abs().max() > 0
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    if name == "occlusion":  # captum adds up in float32 whatever the input
        theirs, tolerance = theirs.double(), {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(ours, theirs.detach(), **tolerance)


def test_same_noise_as_captum(plain):
    net, x, target = plain
    ours = get("smooth_grad", net, samples=10, random_seed=0).explain(x[:1], target[:1])
    torch.testing.assert_close(ours, _captum("smooth_grad", net, x[:1], target[:1]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [FunctionalNet, ReusedNet])
@pytest.mark.parametrize("name", ["deconv", "guided_backprop", "deeplift", "lrp"])
def test_functional_and_reused_activations_change_nothing(name, kind):
    module_net, other = (net.double() for net in twins(ModuleNet, kind))
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    expected = get(name, module_net).explain(x, 2)
    torch.testing.assert_close(get(name, other).explain(x, 2), expected, rtol=1e-9, atol=1e-12)
    if name in ("deconv", "guided_backprop"):
        torch.testing.assert_close(expected, _captum(name, module_net, x, 2), rtol=1e-9, atol=1e-12)


class _Hard(nn.Module):
    """What DeepLIFT by hooks cannot do: overlapping maxima, products, attention, normalisation, reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(F.gelu(self.conv(x)), 3, 2, 1)
        x = x * x.sigmoid() + F.relu(x)
        tokens = self.norm(x.flatten(2).permute(2, 0, 1))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.amax(0)).softmax(1)


def test_deeplift_sums_to_the_difference_of_scores():
    torch.manual_seed(0)
    net = _Hard().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    result = get("deeplift", net, baseline=0.5).explain(x, [0, 2])
    difference = net(x) - net(torch.full_like(x, 0.5))
    expected = torch.stack([difference[0, 0], difference[1, 2]])
    assert expected.abs().min() > 1e-4
    torch.testing.assert_close(result.sum((1, 2, 3)), expected.detach(), rtol=1e-5, atol=1e-9)


def test_deeplift_refuses_models_that_branch_on_their_input():
    class Branching(ModuleNet):
        def forward(self, x):
            return super().forward(x.relu() if x.sum() > 0 else x)

    with pytest.raises(InputError, match="same steps"):
        get("deeplift", Branching()).explain(torch.rand(1, 3, 8, 8))


# ------------------------------------------------------------------------------------ cost


def test_occlusion_costs_no_more_passes_than_it_needs():
    model = _torchvision("resnet18")
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    get("occlusion", model, window=16, stride=8).explain(torch.rand(1, 3, 96, 96), 1)
    needed = ((96 - 16) // 8 + 1) ** 2
    assert sum(seen) <= 1.1 * needed
    assert len(seen) < needed / 4  # batched


@pytest.mark.parametrize(("sides", "window"), [((224, 224), 16), ((64, 64), 5), ((28, 28), 4), ((3, 9), 3)])
def test_default_window(sides, window):
    assert default_window(sides) == window


# ------------------------------------------------------------------------------------ random numbers


@pytest.mark.parametrize("name", ["smooth_grad", "lime_imagenet", "shap_gradient", "smooth_lrp"])
def test_random_methods_repeat_by_seed_and_do_not_touch_the_generators(name):
    (net,) = twins(ModuleNet)
    x = torch.rand(2, 3, 16, 16)
    options = CHEAP[name]
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = get(name, net, random_seed=1, **options).explain(x, 1)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.rand(5)
    assert torch.equal(get(name, net, seed=1, **options).explain(x, 1), one)
    assert not torch.equal(get(name, net, seed=2, **options).explain(x, 1), one)
    assert torch.allclose(get(name, net, random_seed=1, **options).explain(x[1:], 1), one[1:], atol=1e-6)


def test_superpixels_of_noise_are_many():
    cells = superpixels(torch.rand(1, 3, 48, 48), 30)
    assert cells.shape == (1, 1, 48, 48) and cells.min() == 0
    assert 15 <= len(cells.unique()) == cells.max() + 1


# ------------------------------------------------------------------------------------ Grad-CAM's layer


def _cam(model, x, path=None):
    with as_found(model):
        return class_activation(model, x, Question(model, 1), path)


@pytest.mark.parametrize("path", [None, "layer4", ["layer4"], ["avgpool"], "layer4.1"])
def test_gradcam_finds_the_last_features_of_a_resnet(path):
    from captum.attr import LayerGradCam

    model = _torchvision("resnet18").eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(_cam(model, x, path), LayerGradCam(model, model.layer4).attribute(x, 1))


def test_gradcam_reads_patch_tokens():
    """By hand: the last tokens of a ViT on which the class token depends are those entering the last attention."""
    model = _small_vit().eval()
    x = torch.rand(1, 3, 32, 32)
    kept = []
    handle = model.encoder.layers[-1].ln_1.register_forward_hook(lambda m, a, out: kept.append(out))
    score = model(x)[0, 1]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    patches, weights = kept[0][:, 1:], gradient[:, 1:].mean(1)
    expected = (patches * weights[:, None]).sum(-1).reshape(1, 1, 4, 4)
    torch.testing.assert_close(_cam(model, x), expected)


def test_gradcam_reads_channels_last():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model = Last()
    x = torch.rand(1, 3, 24, 32)
    features = model.norm(model.conv(x).permute(0, 2, 3, 1))
    expected = (features * model.head.weight[1] / 48).sum(-1)[:, None]
    torch.testing.assert_close(_cam(model, x), expected)


def test_gradcam_says_what_is_missing():
    (net,) = twins(ModuleNet)
    with pytest.raises(UnknownNameError, match="'relu1'"):
        get("gradcam", net, layer_path="relu3x1")
    with pytest.raises(InputError, match="no feature map"):
        get("gradcam", nn.Sequential(nn.Flatten(), nn.Linear(48, 2))).explain(torch.rand(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"\(N, C, H, W\)"):
        get("gradcam", nn.Linear(4, 2)).explain(torch.rand(1, 4))


# ------------------------------------------------------------------------------------ the model is left alone


@pytest.mark.parametrize("name", TENSORWATCH_NAMES)
def test_the_model_survives_an_exception(name):
    class Failing(ModuleNet):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            if type(self).calls > 1:
                raise KeyboardInterrupt
            return super().forward(x)

    (net,) = twins(Failing)
    Failing.calls = 1 if name in ("vanilla_grad", "saliency", "grad_x_input", "gradcam", "lrp") else 0
    x = torch.rand(1, 3, 16, 16)
    before = fingerprint(net)
    with pytest.raises(KeyboardInterrupt):
        get(name, net).explain(x, 1)
    assert fingerprint(net) == before


def test_untouched_gives_everything_back():
    (net,) = twins(ModuleNet)
    kept = net.first.register_forward_hook(lambda m, a, o: None)
    net.relu1.eval()
    before = fingerprint(net)
    with pytest.raises(ValueError), as_found(net):
        assert not any(module.training for module in net.modules())
        net.first.register_full_backward_hook(lambda *a: None)
        kept.remove()
        net.head.forward = lambda x: x
        net.head.weight.requires_grad_(False)
        net.head.bias.grad = torch.ones(5)
        torch.rand(3)
        raise ValueError
    assert fingerprint(net) == before
    kept.remove()  # the user's own handle still works
    assert not net.first._forward_hooks


@pytest.mark.parametrize("name", TENSORWATCH_NAMES)
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_works_without_grad_around_the_call(name, around):
    (net,) = twins(FunctionalNet)
    net.requires_grad_(False)
    x = torch.rand(1, 3, 16, 16)
    options = CHEAP.get(name, {}) if name != "occlusion" else {}
    expected = get(name, net, **options).explain(x, 1)
    with around():
        result = get(name, net, **options).explain(x.clone(), 1)
    assert torch.allclose(result, expected, atol=1e-6)
    assert all(not parameter.requires_grad for parameter in net.parameters())


def test_two_threads_on_one_model():
    net = _torchvision("resnet18").train()
    x = torch.rand(1, 3, 64, 64)
    expected = {name: get(name, net).explain(x, 1) for name in ("vanilla_grad", "saliency")}
    before, wrong = fingerprint(net), []

    def work(name):
        for _ in range(8):
            if not torch.equal(get(name, net).explain(x, 1), expected[name]):
                wrong.append(name)  # noqa: PERF401

    threads = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fingerprint(net) == before


def test_input_that_requires_grad_and_odd_memory():
    (net,) = twins(ModuleNet)
    x = torch.rand(2, 3, 16, 16)
    expected = get("grad_x_input", net).explain(x, 1)
    odd = x.to(memory_format=torch.channels_last).requires_grad_()
    result = get("grad_x_input", net).explain(odd, 1)
    assert odd.grad is None and torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap):
    (net,) = twins(ModuleNet)
    x = torch.rand(1, 3, 16, 16)
    expected = get("vanilla_grad", net).explain(x, 1)
    assert torch.equal(get("vanilla_grad", wrap(net)).explain(x, 1), expected)


def test_empty_batch_and_batch_independence():
    (net,) = twins(ModuleNet)
    x = torch.rand(3, 3, 16, 16)
    for name in ("vanilla_grad", "deeplift", "occlusion", "gradcam"):
        assert get(name, net).explain(x[:0]).shape == (0, 3, 16, 16)
        together = get(name, net).explain(x, [0, 1, 2])
        alone = torch.cat([get(name, net).explain(x[i : i + 1], i) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ labels


def test_labels_in_every_form():
    scores = torch.tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]])
    assert resolve_target(scores, None).tolist() == [1, 0]  # the first on ties
    for label in (2, np.int64(2), torch.tensor(2), torch.tensor([2]), [2], (2, 2), np.array([2, 2])):
        assert resolve_target(scores, label).tolist() == [2, 2]
    assert resolve_target(scores, torch.tensor([0, 2])).tolist() == [0, 2]
    assert resolve_target(scores, (-1, -3)).tolist() == [2, 0]  # from the end, as everywhere


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "0 to 2"),
        (-4, "out of range"),
        ([0, 1, 2], "3 labels"),
        (1.0, "class index"),
        (True, "class index"),
        ("cat", "class index"),
        (torch.tensor([0.5, 1.0]), "integer tensor"),
        (torch.eye(3)[:2].long(), "0 or 1 dimensions"),
    ],
)
def test_bad_labels(label, message):
    with pytest.raises(InputError, match=message):
        resolve_target(torch.rand(2, 3), label)


def test_callable_label_explains_any_output():
    segmenter = nn.Conv2d(3, 4, 1)
    x = torch.rand(2, 3, 8, 8)
    result = get("grad_x_input", segmenter).explain(x, lambda out: out[:, 1, 2, 3])
    expected = torch.zeros_like(x)
    expected[:, :, 2, 3] = x[:, :, 2, 3] * segmenter.weight[1, :, 0, 0]
    torch.testing.assert_close(result, expected)
    with pytest.raises(InputError, match="label=callable"):
        get("grad_x_input", segmenter).explain(x, 1)
    with pytest.raises(InputError, match="one number per item"):
        get("grad_x_input", segmenter).explain(x, lambda out: out.sum())


# ------------------------------------------------------------------------------------ the table


def test_the_table_of_methods():
    names = list_methods()
    assert {*TENSORWATCH_NAMES, *EXTRAS, "lrp:epsilon", "lrp:auto"} <= set(names)
    assert names == sorted(names)
    assert all(name.startswith("lrp:") for name in list_methods("lrp:*"))
    with pytest.raises(UnknownNameError, match="Did you mean 'gradcam'"):
        get("grad_cam", ModuleNet())
    with pytest.raises(UnknownNameError, match="Did you mean 'lrp:epsilon'"):
        get("lrp:epsilonn", ModuleNet())
    with pytest.raises(UnknownNameError, match="Did you mean 'stride'"):
        get("occlusion", ModuleNet(), strides=3)


def test_lrp_by_composite_name():
    (net,) = twins(ModuleNet)
    x = torch.rand(1, 3, 16, 16)
    by_name = get("lrp:epsilon_plus", net).explain(x, 1)
    assert torch.equal(by_name, get("lrp", net, composite="epsilon_plus").explain(x, 1))
    assert not torch.equal(by_name, get("lrp:epsilon", net).explain(x, 1))


def test_registering_a_method(monkeypatch):
    monkeypatch.setattr(registry.EXPLAINERS, "_entries", dict(registry.EXPLAINERS))

    @register_explainer("ones")
    class Ones:
        def __init__(self, model, times=1):
            self.times = times

        def explain(self, inp, ind=None, raw_inp=None):
            return torch.ones_like(inp) * self.times

    assert "ones" in list_methods()
    assert get("ones", ModuleNet(), times=2).explain(torch.rand(1, 3)).tolist() == [[2, 2, 2]]
