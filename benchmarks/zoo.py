"""The models that coverage is measured on: seeded random weights, statistics as if they had been trained.

An untrained network hides mistakes: batch norms that do not know their statistics shrink activations until a
stabiliser eats everything, and heads, layer scales, class tokens and position tables that start at zero switch whole
branches off. So `settle` gives all of them values, and `bias_free` makes the copy on which relevance must be conserved.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers.torchvision_cpu import import_torchvision

SEED = 0
#: Images in the batch that batch norms are calibrated on.
CALIBRATION_BATCH = 4


@dataclass
class Subject:
    """A model to measure on, built on demand.

    Attributes
    ----------
    name, group : str
        What it is called in the table, and which table it is in.
    build : callable
        ``() -> nn.Module``, as the library initialises it.
    inputs : callable
        ``(batch) -> (args, kwargs)`` of the model's forward.
    target : callable, optional
        What is explained, where the output is not (items, classes).
    """

    name: str
    group: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]
    target: Callable[[Any], Tensor] | None = None

    def model(self) -> nn.Module:
        """The model in eval mode, settled; the same every time."""
        torch.manual_seed(SEED)
        model = self.build()
        args, kwargs = self.inputs(CALIBRATION_BATCH)
        return settle(model, *args, **kwargs)


# ------------------------------------------------------------------------------------------------ weights


def settle(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Give a fresh model non-zero parameters and batch norm statistics measured on ``model(*args, **kwargs)``."""
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() and float(p.abs().max()) < 1e-3:
                p.normal_(0, 0.1 if p.dim() <= 1 else 0.02)
        for m in norms:
            if m.weight is not None:
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.2)
        momenta = [m.momentum for m in norms]
        for m in norms:
            m.reset_running_stats()
            m.momentum, m.training = None, True  # a plain average over what follows
        if norms:
            model(*args, **kwargs)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum, m.training = momentum, False
            if m.num_batches_tracked == 0:  # not on the path of this input
                m.reset_running_stats()
    return model


#: What is added to activations: biases by any name, tokens, position tables, means.
ADDED = re.compile(
    r"(^|[._])(bias|b1|b2|beta|[qkv]_bias|in_proj_bias|\w*_bias|\w*token\w*|\w*pos_?emb\w*|pos_embedding\w*|"
    r"position_emb\w*|token_type_emb\w*|wpe|absolute_pos\w*|\w*pos_encod\w*|register\w*|latent|"
    r"\w+_pos|query_embed\w*|(\w*_)?mean)([._]|$)"
)


def bias_free(model: nn.Module, inplace: bool = False) -> nn.Module:
    """A copy without anything that adds a constant: relevance has nowhere to go but to the input.

    Biases, means and shifts of batch norms, class and register tokens and position tables are zero. Tables of relative
    positions stay: attention weights are gates, on whatever they depend.
    """
    model = model if inplace else copy.deepcopy(model)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, _BatchNorm) and m.running_mean is not None:
                m.running_mean.zero_()
        for name, p in (*model.named_parameters(), *model.named_buffers()):
            if p.is_floating_point() and ADDED.search(name) and "relative" not in name:
                p.zero_()
    return model


# ------------------------------------------------------------------------------------------------ torchvision


def image(size: int, *more: int) -> Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Standard normal images; more sizes make a video (frames before height and width)."""

    def inputs(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        generator = torch.Generator().manual_seed(SEED)
        return (torch.randn(batch, 3, *more, size, size, generator=generator),), {}

    return inputs


#: Options of torchvision builders, by the start of the name.
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "vit_h_14": {"image_size": 56},
    "vit_l_32": {"image_size": 96},
    "vit_b_32": {"image_size": 96},
    "vit": {"image_size": 64},
}
#: Smallest side of an image that is not 64.
TORCHVISION_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56, "vit_l_32": 96, "vit_b_32": 96}


def torchvision_classifiers() -> Iterator[Subject]:
    """All of torchvision's image classifiers."""
    models = import_torchvision().models
    for name in models.list_models(module=models):
        options = next((o for start, o in TORCHVISION_OPTIONS.items() if name.startswith(start)), {})

        def build(name: str = name, options: dict[str, Any] = options) -> nn.Module:
            return models.get_model(name, weights=None, **options)

        yield Subject(name, "torchvision", build, image(TORCHVISION_SIZES.get(name, 64)))


def torchvision_video() -> Iterator[Subject]:
    """Video classifiers, one of each kind, on short clips."""
    video = import_torchvision().models.video
    shapes = {"r3d_18": (64, 8), "mc3_18": (64, 8), "s3d": (224, 16), "swin3d_t": (64, 8), "mvit_v1_b": (224, 16)}
    for name, (size, frames) in shapes.items():
        yield Subject(name, "video", lambda name=name: getattr(video, name)(weights=None), image(size, frames))


def first_class_mean(output: dict[str, Tensor]) -> Tensor:
    """Mean score of class 1 over the image, one value per item."""
    return output["out"][:, 1].mean((1, 2))


def torchvision_segmentation() -> Iterator[Subject]:
    """Segmentation networks, explained by the mean score of a class."""
    segmentation = import_torchvision().models.segmentation
    for name in ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large"):

        def build(name: str = name) -> nn.Module:
            return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)

        yield Subject(name, "segmentation", build, image(64), first_class_mean)


# ------------------------------------------------------------------------------------------------ timm

#: The smallest model of every timm module (see ``smallest_of_timm``), by module.
TIMM_MODELS: dict[str, str] = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "mobileone_s1",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_zepto_rms",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_035",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
#: Sides to try, smallest first; some architectures want multiples of something, or one size only.
TIMM_SIZES = (96, 112, 128, 160, 192, 224, 240, 256, 288, 384, 448, 512)


def smallest_of_timm() -> dict[str, str]:
    """By number of parameters, the smallest model of each timm module; those made for timm's own tests do not count."""
    import timm

    found = {}
    for module in sorted(timm.models.list_modules()):
        sizes = []
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                with torch.device("meta"):
                    model = timm.create_model(name)
                sizes.append((sum(p.numel() for p in model.parameters()), name))
        found[module] = min(sizes)[1]
    return found


def timm_at_smallest_size(name: str) -> tuple[nn.Module, int]:
    """The model at the smallest side of the image that it can be built and run for."""
    import timm

    native = timm.models.get_pretrained_cfg(name).input_size[-1]
    for size in (*(s for s in TIMM_SIZES if s < native), native):
        for options in ({"img_size": size}, {}):
            try:
                torch.manual_seed(SEED)
                model = timm.create_model(name, **options).eval()
                with torch.no_grad():
                    model(torch.zeros(1, 3, size, size))
                return model, size
            except Exception:  # a size or an option that this architecture does not take: whatever it raises
                if size == native and not options:
                    raise
    raise AssertionError("unreachable")


class _AtSmallestSize:
    """Builds a timm model once its input size is known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0

    def build(self) -> nn.Module:
        model, self.size = timm_at_smallest_size(self.name)
        return model

    def inputs(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return image(self.size)(batch)


def timm_models() -> Iterator[Subject]:
    """The smallest model of every timm module."""
    import_torchvision()
    for name in TIMM_MODELS.values():
        made = _AtSmallestSize(name)
        yield Subject(f"timm {name}", "timm", made.build, made.inputs)


# ------------------------------------------------------------------------------------------------ Hugging Face


def tokens(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Token ids, from 1 (0 pads)."""
    generator = torch.Generator().manual_seed(SEED)
    return (), {"input_ids": torch.randint(1, 90, (batch, 12), generator=generator)}


def transformers_models() -> Iterator[Subject]:
    """Small BERT, DistilBERT, GPT-2 and ViT classifiers, with both ways that transformers computes attention."""
    import_torchvision()  # transformers looks into it
    import transformers as hf

    small = {"vocab_size": 99, "num_labels": 5, "pad_token_id": 0}
    encoder = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    recipes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "BERT": (hf.BertForSequenceClassification, hf.BertConfig, {**small, **encoder}),
        "DistilBERT": (
            hf.DistilBertForSequenceClassification,
            hf.DistilBertConfig,
            {**small, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
        ),
        "GPT-2": (hf.GPT2ForSequenceClassification, hf.GPT2Config, {**small, "n_embd": 32, "n_layer": 3, "n_head": 4}),
        "ViT": (
            hf.ViTForImageClassification,
            hf.ViTConfig,
            {**encoder, "image_size": 32, "patch_size": 8, "num_labels": 5},
        ),
    }
    for name, (make, config, options) in recipes.items():
        for attention in ("eager", "sdpa"):

            def build(
                make: Any = make, config: Any = config, options: Any = options, attention: str = attention
            ) -> nn.Module:
                settings = config(**options)
                settings._attn_implementation = attention
                return make(settings)

            yield Subject(f"{name} ({attention})", "transformers", build, image(32) if name == "ViT" else tokens)


# ------------------------------------------------------------------------------------------------ all

GROUPS: dict[str, Callable[[], Iterator[Subject]]] = {
    "torchvision": torchvision_classifiers,
    "video": torchvision_video,
    "segmentation": torchvision_segmentation,
    "transformers": transformers_models,
    "timm": timm_models,
}


def subjects(groups: tuple[str, ...] = tuple(GROUPS)) -> Iterator[Subject]:
    """Every subject of these groups."""
    for group in groups:
        yield from GROUPS[group]()
