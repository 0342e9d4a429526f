"""get_saliency and its relatives: every form of argument, and clear errors for what cannot be explained."""

from __future__ import annotations

import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saliency_lrp import get_image_saliency_results, get_saliency
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.explainers import get
from tests.helpers.nets import ModuleNet, calibrated, fingerprint, twins
from tests.helpers.torchvision_cpu import import_torchvision

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture
def net():
    return twins(ModuleNet)[0]


def _min_max(values):
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("method", ["lrp", "vanilla_grad", "occlusion", "grad_x_input"])
def test_the_map_is_what_tensorwatch_makes_of_the_explanation(net, method):
    x = torch.rand(1, 3, 20, 30)
    relevance = get(method, net).explain(x, 2)
    expected = _min_max(relevance.abs().sum(1)[0]).numpy()
    found = get_saliency(net, PICTURE, x, 2, method=method)
    assert found.dtype == np.float32 and found.shape == (20, 30)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.min() == 0 and found.max() == 1


def test_it_finds_the_digit():
    model, items = load_demo_model(), demo_images(6, seed=4)
    shares = []
    for item in items:
        found = get_saliency(model, item.image, label=item.label)
        shares.append(found[item.mask].sum() / found.sum())
    assert np.mean(shares) > 2.5 * np.mean([item.mask.mean() for item in items])


@pytest.mark.parametrize("label", [2, torch.tensor(2), torch.tensor([2]), [2], (2,), np.int64(2), np.array([2])])
def test_labels(net, label):
    np.testing.assert_array_equal(get_saliency(net, PICTURE, label=label), get_saliency(net, PICTURE, label=2))


def test_no_label_is_the_highest_score(net):
    x = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255
    best = int(net(x).argmax())
    np.testing.assert_array_equal(get_saliency(net, PICTURE), get_saliency(net, PICTURE, label=best))
    assert not np.array_equal(get_saliency(net, PICTURE), get_saliency(net, PICTURE, label=(best + 1) % 5))


def test_both_positional_orders_of_tensorwatch(net):
    x, label = torch.rand(1, 3, 20, 30), torch.tensor([1])
    expected = get_saliency(net, PICTURE, x, label, method="gradcam", layer_path="relu1")
    released = (net, PICTURE, x, label, "gradcam", ["relu1"])
    newer = (net, PICTURE, x, label, None, "gradcam", ["relu1"])
    for arguments in (released, newer, (net, PICTURE, x, label, "cpu", "gradcam", ["relu1"])):
        np.testing.assert_array_equal(get_saliency(*arguments), expected)
    np.testing.assert_array_equal(get_saliency(net, PICTURE, x, label, "gradcam", layer_path=["relu1"]), expected)
    np.testing.assert_array_equal(
        get_saliency(net, PICTURE, x, label, "gradcam"), get_saliency(net, PICTURE, x, label, method="gradcam")
    )
    methods = ["gradcam", "saliency"]
    for arguments in ((x, label, methods, ["relu1"]), (x, label, None, methods, ["relu1"])):
        found = get_image_saliency_results(net, PICTURE, *arguments)
        assert [r.title for r in found] == methods
        np.testing.assert_array_equal(found[0].saliency, expected)


def test_inputs_in_every_form(net):
    x = torch.rand(1, 3, 20, 30)
    expected = get_saliency(net, None, x, 1)
    np.testing.assert_array_equal(get_saliency(net, PICTURE, x, 1), expected)
    np.testing.assert_array_equal(get_saliency(net, PICTURE, x[0], 1), expected)
    normalized = x * 4 - 2  # negative values: no picture, but what the model takes
    np.testing.assert_array_equal(get_saliency(net, normalized, label=1), get_saliency(net, None, normalized, 1))
    np.testing.assert_array_equal(get_saliency(net, normalized[0], label=1), get_saliency(net, None, normalized, 1))


def test_a_batch_gives_a_map_each(net):
    x = torch.rand(3, 3, 8, 9)
    found = get_saliency(net, None, x, [0, 1, 2], method="vanilla_grad")
    assert found.shape == (3, 8, 9)
    for i in range(3):
        np.testing.assert_allclose(found[i], get_saliency(net, None, x[i : i + 1], i, method="vanilla_grad"), atol=1e-5)
    with pytest.raises(InputError, match="one image at a time"):
        get_image_saliency_results(net, None, x, methods=["vanilla_grad"])


def test_signals_and_tables():
    signal = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    assert get_saliency(signal, None, torch.randn(1, 2, 10), 1).shape == (10,)
    table = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    row = torch.randn(1, 4)
    expected = _min_max(get("grad_x_input", table).explain(row, 1)[0].abs()).numpy()
    np.testing.assert_allclose(get_saliency(table, row, label=1, method="grad_x_input"), expected, atol=1e-6)
    assert get_image_saliency_results(table, row, label=1, methods=["lrp", "vanilla_grad"])._repr_mimebundle_()


def test_the_models_own_dtype_and_mode(net):
    net.double().train()
    net.first.weight.grad = torch.ones_like(net.first.weight)
    before = fingerprint(net)
    with torch.no_grad():
        results = get_image_saliency_results(net, PICTURE, label=1)
    assert fingerprint(net) == before
    assert all(r.error is None and r.relevance.dtype == torch.float64 for r in results)
    half = twins(ModuleNet)[0].bfloat16()
    assert np.isfinite(get_saliency(half, PICTURE, method="vanilla_grad")).all()


def test_the_device_is_named_and_given_back(net):
    expected = get_saliency(net, PICTURE, label=1)
    np.testing.assert_array_equal(get_saliency(net, PICTURE, label=1, device="cpu"), expected)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            get_saliency(net, PICTURE, device="cuda")


@pytest.mark.cuda
def test_moving_to_cuda_and_back(net):
    expected = get_saliency(net, PICTURE, label=1, method="vanilla_grad")
    before = fingerprint(net)
    found = get_saliency(net, PICTURE, label=1, device="cuda", method="vanilla_grad")
    assert fingerprint(net) == before
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_options_go_to_the_methods_that_know_them(net):
    results = get_image_saliency_results(
        net, PICTURE, label=1, methods=["occlusion", "smooth_grad", "lrp"], window=7, samples=3, seed=5
    )
    x = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)[None] / 255
    assert torch.equal(results[0].relevance, get("occlusion", net, window=7).explain(x, 1))
    assert torch.equal(results[1].relevance, get("smooth_grad", net, samples=3, random_seed=5).explain(x, 1))
    torch.testing.assert_close(results[2].relevance, get("lrp", net).explain(x, 1))
    contrast = get_image_saliency_results(net, PICTURE, label=1, methods=["lrp", "smooth_grad"], seed="contrastive")
    torch.testing.assert_close(contrast[0].relevance, get("lrp", net, seed="contrastive").explain(x, 1))
    assert contrast[1].error is None


def test_class_names(net):
    results = get_image_saliency_results(net, PICTURE, label=1, methods=["saliency"], class_names=list("abcde"))
    assert results[0].class_name == "b" and results[0].runner_up[0] in "acde"
    assert get_image_saliency_results(net, PICTURE, label=1, methods=["saliency"])[0].class_name == "class 1"


def test_callable_label():
    segmenter = nn.Conv2d(3, 4, 1)
    found = get_saliency(segmenter, PICTURE, label=lambda out: out[:, 1, 5, 7], method="vanilla_grad")
    assert found[5, 7] == 1 and found.sum() == 1


def test_a_method_that_fails_does_not_lose_the_others(net):
    import saliency_lrp.explainers.perturbation as perturbation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perturbation.Occlusion, "attribute", lambda *a: 1 / 0)
        results = get_image_saliency_results(net, PICTURE, methods=["lrp", "occlusion", "saliency"])
        with pytest.raises(ZeroDivisionError):
            get_saliency(net, PICTURE, method="occlusion")
    assert isinstance(results[1].error, ZeroDivisionError)
    assert results[0].saliency is not None and results[2].saliency is not None


# ------------------------------------------------------------------------------------ bad input


def _no_map(match, *args, error=InputError, **kwargs):
    with pytest.raises(error, match=match):
        get_saliency(*args, **kwargs)
    with pytest.raises(error, match=match):
        get_image_saliency_results(
            *args, **({"methods": [kwargs.pop("method")]} if "method" in kwargs else {}), **kwargs
        )


@pytest.mark.filterwarnings("ignore")
def test_bad_models(net):
    _no_map("torch.nn.Module, not function", lambda x: x, PICTURE)
    _no_map("TorchScript", torch.jit.trace(net, torch.rand(1, 3, 8, 8)), PICTURE)
    _no_map("TorchScript", torch.jit.script(nn.Linear(2, 2)), PICTURE)
    _no_map("meta", ModuleNet().to("meta"), PICTURE)
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), {nn.Linear})
    _no_map("quantised", quantized, torch.rand(3, 2, 2))


def test_bad_inputs(net):
    x = torch.rand(1, 3, 8, 8)
    _no_map("takes 3 channels, the input has 4", net, None, torch.rand(1, 4, 8, 8))
    _no_map(
        r"1 NaN or infinite",
        net,
        None,
        x.index_fill(3, torch.tensor([0]), 0.5).index_put((torch.tensor([0]),) * 4, torch.tensor(torch.nan)),
    )
    _no_map("192 NaN or infinite", net, None, x / 0)
    _no_map("nothing to explain", net, None)
    _no_map("floating point", net, None, x.long())
    _no_map("torch.Tensor", net, PICTURE, x.numpy())
    _no_map("no image file", net, "nowhere.png")
    _no_map("36 NaN", net, np.full((6, 6), np.nan))


def test_bad_outputs(net):
    with torch.no_grad():
        net.head.bias[0] = torch.nan
    _no_map("output has NaN", net, PICTURE)
    _no_map(r"\(N, C\) but is \(1, 4, 20, 30\).*callable", nn.Conv2d(3, 4, 1), PICTURE)


@pytest.mark.parametrize("label", [5, -6, [1, 2], 1.5, "dog", torch.tensor([0.5])])
def test_bad_labels(net, label):
    _no_map("label", net, PICTURE, label=label)


def test_unknown_names(net):
    for method in ("gradcm", "occlusoin"):
        _no_map("unknown method.*Did you mean", net, PICTURE, method=method, error=UnknownNameError)
    _no_map("Did you mean 'lrp:epsilon_plus'", net, PICTURE, method="lrp:epsilon_pluss", error=UnknownNameError)
    _no_map("Did you mean 'window'", net, PICTURE, method="occlusion", windw=3, error=UnknownNameError)
    _no_map("Did you mean 'transform'", net, PICTURE, transfrom=3, error=UnknownNameError)
    with pytest.raises(InputError, match="no method was given"):
        get_image_saliency_results(net, PICTURE, methods=[])
    with pytest.raises(UnknownNameError, match="Did you mean 'epsilon_plus'"):
        get_saliency(net, PICTURE, composite="epsilon_plis")


def test_no_warnings_on_a_plain_call(net):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_image_saliency_results(net, PICTURE, methods=["lrp", "gradcam", "grad_x_input", "vanilla_grad", "deeplift"])


def test_a_torchvision_model_on_a_real_size_picture():
    model = import_torchvision().models.mobilenet_v3_small(weights=None, num_classes=10)
    calibrated(model, torch.rand(4, 3, 64, 64))
    picture = np.random.default_rng(1).integers(0, 256, (150, 260, 4), dtype=np.uint8)
    found = get_saliency(model, picture)
    assert found.shape == (150, 260) and found.std() > 0
    assert (found[:, :20] == 0).all() and found[:, 130].any()  # cut off by the centre crop
    assert model.training


class Words(nn.Module):
    """Linear in what its table of tokens has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3, bias=False)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).mean(1))


@pytest.mark.parametrize("method", ["lrp", "ablation"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_token_ids_get_a_number_each(method, dtype):
    model, ids = Words(), torch.arange(1, 13).reshape(2, 6).to(dtype)
    amounts = (model.table(ids) @ model.head.weight[1] / 6).abs().detach()  # what each adds to the score of class 1
    if method == "ablation":  # against the token 0
        amounts = ((model.table(ids) - model.table.weight[0]) @ model.head.weight[1] / 6).abs().detach()
    low, high = amounts.amin(1, keepdim=True), amounts.amax(1, keepdim=True)
    expected = ((amounts - low) / (high - low)).numpy()
    for args in ((ids,), (None, ids), (None, (ids,))):
        np.testing.assert_allclose(get_saliency(model, *args, label=1, method=method), expected, atol=1e-5)
    np.testing.assert_allclose(get_saliency(model, ids[:1], label=1, method=method), expected[0], atol=1e-5)


def test_methods_that_cannot_take_token_ids_name_the_call_that_can():
    for method in ("grad_x_input", "integrate_grad", "gradcam"):
        with pytest.raises(InputError, match="explain_text"):
            get_saliency(Words(), torch.arange(6)[None], method=method)


class Interrupted:
    """Counts forward passes, and sends this process a SIGINT in one of them."""

    def __init__(self, at):
        self.at, self.passes = at, 0

    def __call__(self, *_):
        self.passes += 1
        if self.passes == self.at:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_the_maps_that_are_finished():
    model, image = load_demo_model().train(), demo_images(1)[0].image
    alone = get_image_saliency_results(model, image, methods=["lrp"])["lrp"]
    interrupted = Interrupted(at=6)
    handle = model.register_forward_pre_hook(interrupted)
    with pytest.warns(
        UserWarning, match="stopped by Ctrl-C during occlusion: lrp, grad_x_input are done, saliency not"
    ):
        results = get_image_saliency_results(model, image, methods=["lrp", "grad_x_input", "occlusion", "saliency"])
    assert interrupted.passes == interrupted.at  # nothing ran after it
    assert [r.saliency is not None for r in results] == [True, True, False, False]
    np.testing.assert_array_equal(results["lrp"].saliency, alone.saliency)
    assert [str(r.error) for r in results[2:]] == ["stopped by Ctrl-C"] * 2 and results[0].conserved is not None
    assert all(m.training for m in model.modules()) and list(model._forward_pre_hooks) == [handle.id]
    assert "occlusion: no map: stopped by Ctrl-C" in results._repr_html_() and len(results._repr_png_()) > 1000
    handle.remove()


def test_ctrl_c_before_any_map_is_an_interrupt():
    model, image = load_demo_model(), demo_images(1)[0].image
    model.register_forward_pre_hook(Interrupted(at=1))
    with pytest.raises(KeyboardInterrupt):
        get_image_saliency_results(model, image, methods=["lrp", "saliency"])
