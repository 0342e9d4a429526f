"""A slice of the model coverage (`benchmarks/coverage.py` measures all of it): one small model of each family.

Each must run with the default composite, be understood to the last op, give the model's own output bit for bit, leave
the model as it was, and, as a bias-free copy in float64, conserve relevance with CP-LRP.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import zoo  # noqa: E402

from saliency_lrp import rules  # noqa: E402
from saliency_lrp.propagator import RelevancePropagator  # noqa: E402

# loaded by its path: a package named coverage exists too
spec = importlib.util.spec_from_file_location("model_coverage", BENCHMARKS / "coverage.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

zoo.import_torchvision()
pytest.importorskip("timm")

#: What CI looks at: (group, name), small and of different families.
SLICE = [
    *(("torchvision", name) for name in "alexnet resnet18 squeezenet1_1 densenet121 googlenet".split()),
    *(("torchvision", name) for name in "mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5".split()),
    *(("torchvision", name) for name in "regnet_y_400mf efficientnet_b0 swin_t".split()),
    ("segmentation", "lraspp_mobilenet_v3_large"),
    *(("transformers", f"{name} (eager)") for name in ("BERT", "DistilBERT", "GPT-2", "ViT")),
    *(("transformers", f"{name} (sdpa)") for name in ("BERT", "DistilBERT", "GPT-2", "ViT")),
    *(
        ("timm", f"timm {zoo.TIMM_MODELS[module]}")
        for module in "deit mlp_mixer ghostnet edgenext repvit convnext levit efficientvit_msra xcit tiny_vit".split()
    ),
]


def subject(group: str, name: str) -> zoo.Subject:
    if group == "transformers":
        pytest.importorskip("transformers")
    return next(s for s in zoo.GROUPS[group]() if s.name == name)


@pytest.mark.parametrize(("group", "name"), SLICE, ids=[name for _, name in SLICE])
def test_a_model_is_explained(group, name):
    chosen = subject(group, name)
    row: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark.measure(chosen, row, timed=False)
    assert row["finite"] and row["nonzero"]
    assert row["identical"]
    assert row["untouched"]
    assert row["unknown"] == []
    assert abs(row["conserved"]) < 1e-6, row["worst"]
    if row["gradient_x_input"] is not None:
        assert row["gradient_x_input"] < 1e-6


def test_every_timm_module_has_a_model():
    zoo.import_torchvision()
    import timm

    assert set(zoo.TIMM_MODELS) <= set(timm.models.list_modules())
    for module, name in zoo.TIMM_MODELS.items():
        assert name in timm.list_models(module=module)


def test_relu_networks_are_recognized():
    """Gradient x input is asked of ResNets, and not of networks with other activations."""
    row: dict = {}
    benchmark.measure(subject("torchvision", "squeezenet1_1"), row, timed=False)
    assert row["gradient_x_input"] is not None


# ------------------------------------------------------------------------------------------------ ways to run a model


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = x + F.gelu(self.conv2(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def model(images):
    return zoo.settle(Small(), images)


def heat(model: nn.Module, x: Tensor) -> Tensor:
    trace = RelevancePropagator(model, "epsilon_plus", unknown="error").trace(x)
    return trace.relevance(target=1)


def test_channels_last(model, images):
    expected = heat(model, images)
    R = heat(model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(R, expected, rtol=1e-4, atol=1e-6)


def test_wrappers_are_looked_through(model, images):
    expected = heat(model, images)
    assert torch.equal(heat(nn.DataParallel(model), images), expected)
    assert torch.equal(heat(torch.compile(model), images), expected)  # nothing is compiled: the model is unwrapped


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision(model, images, dtype):
    expected = heat(model, images)
    R = heat(model.to(dtype), images.to(dtype))
    assert R.dtype == dtype and torch.isfinite(R).all()
    similarity = F.cosine_similarity(R.float().flatten(), expected.flatten(), 0)
    assert similarity > 0.95


def test_autocast(model, images):
    expected = heat(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(images)
        trace = RelevancePropagator(model, "epsilon_plus", unknown="error").trace(images)
        R = trace.relevance(target=1)
    assert torch.equal(trace.output, own.detach())
    assert R.dtype == torch.float32 and torch.isfinite(R).all()
    assert F.cosine_similarity(R.flatten(), expected.flatten(), 0) > 0.95


def test_einops_layers(images):
    einops = pytest.importorskip("einops")
    from einops.layers.torch import Rearrange, Reduce

    def model(patch: nn.Module, pool: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(patch, nn.Linear(48, 6), nn.ReLU(), pool, nn.Linear(6, 4)).eval()

    class ByHand(nn.Module):
        def forward(self, x):
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 4, 4, w // 4, 4)
            return x.permute(0, 2, 4, 3, 5, 1).reshape(n, h * w // 16, 16 * c)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    patches = Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)
    R = heat(model(patches, Reduce("b n c -> b c", "mean")), images)
    torch.testing.assert_close(R, heat(model(ByHand(), Mean()), images))
    assert einops.rearrange(images, "b c h w -> b (c h w)").shape == (2, 192)


def test_convolution_by_unfolding(images):
    """unfold, a matrix, fold: the map of the convolution that it is."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False)

    class Unfolded(nn.Module):
        def forward(self, x):
            return F.relu((conv.weight.flatten(1) @ F.unfold(x, 3)).unflatten(-1, (6, 6))).sum((2, 3))

    class Plain(nn.Module):
        def forward(self, x):
            return F.relu(conv(x)).sum((2, 3))

    exact = rules.Epsilon(1e-9)
    maps = [RelevancePropagator(m(), exact).trace(images).relevance(target=1) for m in (Unfolded, Plain)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-5)


def test_deformable_convolution():
    """torchvision's operator: with offsets of 0 and a mask of 1 it is the plain convolution, rules included."""
    torchvision = zoo.import_torchvision()
    try:
        torchvision.ops.deform_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 18, 1, 1), torch.zeros(1, 1, 3, 3))
        library = None
    except (RuntimeError, AttributeError):  # torchvision's compiled operators are not here: a stand-in of the same name
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(
            "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, "
            "int stride_w, int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, "
            "bool use_mask) -> Tensor"
        )
        library.impl(
            "deform_conv2d",
            lambda x, w, offset, mask, bias, sh, sw, ph, pw, dh, dw, groups, offset_groups, use_mask: (
                F.conv2d(x, w, None, (sh, sw), (ph, pw), (dh, dw), groups) * (1 + offset.mean()) + bias[:, None, None]
            ),
            "CompositeImplicitAutograd",
        )

    torch.manual_seed(0)
    conv, offsets = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(3, 18, 3).double()
    nn.init.zeros_(offsets.weight)
    nn.init.zeros_(offsets.bias)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    class Deformed(nn.Module):
        def forward(self, x):
            out = torch.ops.torchvision.deform_conv2d(
                x, conv.weight, offsets(x), x.new_ones(2, 9, 6, 6), conv.bias, 1, 1, 0, 0, 1, 1, 1, 1, True
            )
            return F.relu(out).sum((2, 3))

    class Plain(nn.Module):
        def forward(self, x):
            return F.relu(conv(x)).sum((2, 3))

    for rule in (rules.Epsilon(1e-9), rules.ZPlus()):
        deformed, plain = (RelevancePropagator(m(), rule, unknown="error").trace(x) for m in (Deformed, Plain))
        torch.testing.assert_close(deformed.relevance(target=1), plain.relevance(target=1), rtol=1e-6, atol=1e-9)
    del library


def test_fourier_mixing_is_understood(images):
    """A global filter (GFNet): through the frequencies and back, nothing unknown, nothing lost."""
    torch.manual_seed(0)
    gain = torch.view_as_complex(torch.randn(3, 8, 5, 2, dtype=torch.float64))
    head = nn.Linear(192, 4, bias=False).double()

    class Filtered(nn.Module):
        def forward(self, x):
            spectrum = torch.fft.rfft2(x, norm="ortho")
            return head(torch.fft.irfft2(spectrum * gain, s=(8, 8), norm="ortho").flatten(1))

    trace = RelevancePropagator(Filtered(), rules.Epsilon(1e-12), unknown="error").trace(images.double())
    R = trace.relevance()
    torch.testing.assert_close(R.sum(), trace.output.amax(1).sum(), rtol=1e-6, atol=1e-6)
