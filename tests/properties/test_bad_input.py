"""Bad input gets a clear error that says what was given and how to mend it, and never a map."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saliency_lrp
from saliency_lrp import composites, rules
from saliency_lrp.errors import InputError, UnknownNameError
from saliency_lrp.explainers.lrp import LrpExplainer
from saliency_lrp.propagator import RelevancePropagator


def make_net() -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3), head).eval()


IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def engine(model, x, target=None, composite="auto", **options):
    return RelevancePropagator(model, composite).trace(x).relevance(target, **options)


def explainer(model, x, target=None, composite="auto", **options):
    return LrpExplainer(model, composite=composite, **options).explain(x, target)


def get_saliency(model, x, target=None, composite="auto", **options):
    return saliency_lrp.get_saliency(model, None, input=x, label=target, composite=composite, **options)


@pytest.fixture(params=[engine, explainer, get_saliency], ids=lambda f: f.__name__)
def ask(request):
    """The three ways in."""
    return request.param


def refused(call, *words, error=InputError):
    """The call raises, and the message has all of these words."""
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert re.search(word, str(caught.value)), f"{word!r} is not in {caught.value}"
    return caught.value


def test_what_is_asked_here_is_fine_otherwise(ask):
    found = torch.as_tensor(ask(make_net(), IMAGE, 1))
    assert found.shape[-2:] == IMAGE.shape[-2:] and found.abs().sum() > 0 and found.isfinite().all()


# ------------------------------------------------------------------------------------------------ the input


def test_wrong_channel_count(ask):
    error = refused(lambda: ask(make_net(), torch.rand(1, 4, 8, 8)), r"\(1, 4, 8, 8\)", "3 channels")
    assert isinstance(error.__cause__, RuntimeError)


def test_the_failing_module_is_named():
    model = nn.Sequential(nn.Flatten(), nn.ModuleDict({"x": nn.Linear(3, 2)})["x"])
    refused(lambda: engine(model, IMAGE), r"\(1, 3, 8, 8\)", "at '1'", r"Linear\(in_features=3")
    with pytest.raises(RuntimeError):  # whoever guards against torch's own error still does
        engine(model, IMAGE)


def test_wrong_dtype(ask):
    refused(lambda: ask(make_net(), torch.zeros(1, 3, 8, 8, dtype=torch.long)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_input_that_is_not_finite(ask, value):
    x = IMAGE.clone()
    x[0, 1, 2, 3] = value
    refused(lambda: ask(make_net(), x), "1 .*NaN or infinite")


def test_input_that_is_not_finite_where_the_model_hides_it(ask):
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(192, 2))
    x = IMAGE.clone()
    x[0, 0, 0, 0] = -torch.inf  # becomes 0
    refused(lambda: ask(model, x), "NaN or infinite")


def test_masks_may_hold_minus_infinity():
    class Masked(nn.Module):
        def forward(self, x, mask):
            return (x @ x.mT + mask).softmax(-1) @ x

    x, mask = torch.rand(1, 3, 3), torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    maps = RelevancePropagator(Masked()).trace(x, mask).relevance(lambda out: out.sum((1, 2)))
    assert torch.isfinite(maps[0]).all()
    refused(lambda: RelevancePropagator(Masked()).trace(x, -mask), "input 1", "NaN or infinite")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite(ask, value):
    model = make_net()
    model[1][3].bias.data[2] = value
    refused(lambda: ask(model, IMAGE, 1), "output has 1 .*NaN|output.*(NaN|infinite)")


@pytest.mark.parametrize("what", [None, "picture", 3, [[1.0]]])
def test_input_that_is_no_tensor(what):
    refused(lambda: explainer(make_net(), what), "tensor")


def test_no_tensor_at_all():
    model = nn.Module()
    model.forward = lambda n: torch.ones(1, 3) * n
    refused(lambda: engine(model, 2), "does not depend on its input")


def test_integers_that_no_embedding_reads():
    class Ids(nn.Module):
        def forward(self, ids):
            return ids.float()

    refused(lambda: engine(Ids(), torch.tensor([[1, 2]])), "does not depend|no tensor")


# ------------------------------------------------------------------------------------------------ the label


@pytest.mark.parametrize("label", [5, 99, -6, [7], torch.tensor([5])])
def test_label_out_of_range(ask, label):
    refused(lambda: ask(make_net(), IMAGE, label), "out of range", "5 classes")


@pytest.mark.parametrize("label", ["cat", 1.5, torch.tensor([0.5]), [0, 1], torch.tensor([[0, 1]]), True, ["a"], {}])
def test_label_that_is_no_class(ask, label):
    if ask is get_saliency and label is True:
        pytest.skip("a bool is an int there")
    if ask is engine and label == [0, 1]:
        pytest.skip("two maps of one item there")
    refused(lambda: ask(make_net(), IMAGE, label))


def test_one_bad_label_of_a_batch(ask):
    refused(lambda: ask(make_net(), IMAGE.expand(2, -1, -1, -1).clone(), [1, 5]), "out of range")
    if ask is not engine:  # there, two maps of each
        refused(lambda: ask(make_net(), IMAGE.expand(3, -1, -1, -1).clone(), [1, 2]), "3")
    refused(lambda: ask(make_net(), IMAGE.expand(3, -1, -1, -1).clone(), torch.tensor([1, 2])), "3")


def test_output_that_is_no_table_of_classes(ask):
    model = nn.Conv2d(3, 2, 1)
    refused(lambda: ask(model, IMAGE), r"\(1, 2, 8, 8\)", r"\(N, C\)|\(items, classes\)", "callable|lambda")
    assert torch.as_tensor(ask(model, IMAGE, lambda out: out[:, 1].mean((1, 2)))).abs().sum() > 0


def test_callable_target_that_returns_no_tensor():
    refused(lambda: engine(make_net(), IMAGE, lambda out: 3.0), "callable target must return a tensor")
    refused(lambda: engine(make_net(), IMAGE, lambda out: out.detach()), "callable target must return a tensor")


def test_output_that_does_not_depend_on_the_input():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(1, 3)

    class Detached(nn.Module):
        def forward(self, x):
            return x.flatten(1).detach()

    class Labels(nn.Module):
        def forward(self, x):
            return x.flatten(1).argmax(1)

    for model in (Constant(), Detached(), Labels()):
        refused(lambda model=model: engine(model, IMAGE), "depend")
        refused(lambda model=model: explainer(model, IMAGE), "depend")


# ------------------------------------------------------------------------------------------------ names


def test_unknown_composite(ask):
    refused(lambda: ask(make_net(), IMAGE, composite="epsilon_pls"), "epsilon_pls", "mean 'epsilon_plus'")


def test_unknown_method_and_option():
    def call(**options):
        return saliency_lrp.get_saliency(make_net(), None, input=IMAGE, **options)

    refused(lambda: call(method="lrpp"), "method 'lrpp'", "mean 'lrp'", error=UnknownNameError)
    refused(lambda: call(composit="epsilon"), "composit", "mean 'composite'", error=UnknownNameError)


def test_unknown_option_of_a_composite():
    error = UnknownNameError
    refused(lambda: composites.get("epsilon", epsilonn=1e-3), "epsilonn", "mean 'epsilon'", error=error)
    refused(lambda: composites.get("epsilon_gamma_box", lo=-3), "'lo'", "mean 'low'", error=error)
    refused(lambda: composites.get("lrp.epsilon", eps=1), "'eps'", "mean 'epsilon'", error=error)
    refused(lambda: composites.get("lrp.sequential_preset_a", epsilom=1), "mean 'epsilon'", error=error)
    refused(lambda: composites.get(composites.get("epsilon"), epsilon=1.0), "epsilon")
    refused(lambda: composites.get(rules.ZPlus(), epsilon=1.0), "epsilon")


def test_unknown_seed_rule_and_choice():
    refused(lambda: engine(make_net(), IMAGE, seed="logits"), "seed 'logits'", "mean 'logit'", error=UnknownNameError)
    refused(lambda: engine(make_net(), IMAGE, lambda out: out[:, 0], seed="ones"), "mean 'one'", error=UnknownNameError)
    refused(lambda: engine(make_net(), IMAGE, lambda out: out[:, 0], seed="contrastive"), "contrastive", "callable")
    refused(lambda: rules.get("Epsilom"), "mean 'Epsilon'", error=UnknownNameError)
    refused(lambda: rules.Epsilon(bias="keeep"), "mean 'keep'", error=UnknownNameError)
    refused(lambda: RelevancePropagator(make_net(), unknown="wran"), "mean 'warn'", error=UnknownNameError)


@pytest.mark.parametrize("composite", [3, ["epsilon"], object()])
def test_composite_of_another_kind(composite):
    refused(lambda: RelevancePropagator(make_net(), composite), "composite")


def test_rows_that_are_no_rows():
    for row in (rules.ZPlus(), (nn.Conv2d, "ZPlus"), (nn.Conv2d,)):
        refused(lambda row=row: composites.Composite([row]), "selector, rule")


def test_rules_with_impossible_numbers():
    refused(lambda: rules.Epsilon(-1e-6), "epsilon must be >= 0")
    refused(lambda: rules.AlphaBeta(2, 2), "alpha - beta = 1")
    refused(lambda: rules.Beta(-2.0), "beta")


def test_seeds_that_do_not_fit():
    trace = RelevancePropagator(make_net()).trace(IMAGE)
    refused(lambda: trace.relevance(seed=torch.ones(1, 4)), r"\(1, 4\)", r"\(1, 5\)")
    refused(lambda: trace.relevance(seed=torch.full((1, 5), torch.nan)), "NaN")
    refused(lambda: trace.relevance(seed=lambda out: out[:, :2]), r"\(1, 2\)")
    refused(lambda: trace.relevance(seed=lambda out: 1.0), "callable seed must return a tensor")
    single = RelevancePropagator(nn.Linear(3, 1)).trace(torch.rand(1, 3))
    refused(lambda: single.relevance(seed="contrastive"), "two classes")


# ------------------------------------------------------------------------------------------------ the model


@pytest.mark.parametrize("what", [None, "resnet18", 3, torch.relu])
def test_model_that_is_none(what):
    refused(lambda: RelevancePropagator(what), "torch.nn.Module")
    refused(lambda: saliency_lrp.get_saliency(what, None, input=IMAGE), "torch.nn.Module")


def test_model_on_meta(ask):
    refused(lambda: ask(make_net().to("meta"), IMAGE), "meta")


def test_input_on_meta():
    refused(lambda: engine(make_net(), IMAGE.to("meta")), "meta")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(ask):
    refused(lambda: ask(torch.jit.trace(make_net(), IMAGE), IMAGE), "TorchScript")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_models(ask):
    backends = [e for e in torch.backends.quantized.supported_engines if e != "none"]
    if not backends:
        pytest.skip("torch was built without quantisation")
    torch.backends.quantized.engine = backends[-1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    refused(lambda: ask(quantized, IMAGE), "quanti[sz]ed")


def test_unknown_functions_can_be_refused(ask):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.i0(x.flatten(1))

    if ask is engine:
        refused(lambda: RelevancePropagator(Odd(), unknown="error").trace(IMAGE).relevance(0), "i0", "register")
    else:
        refused(lambda: ask(Odd(), IMAGE, 0, unknown="error"), "i0", "register")


# ------------------------------------------------------------------------------------------------ the image


@pytest.mark.parametrize(
    "image",
    ["nowhere.png", np.zeros((2, 2, 2, 2, 2)), np.zeros((4, 4, 7)), np.array(["a"]), 3.5, {"a": 1}],
    ids=str,
)
def test_image_that_cannot_be_read(image):
    refused(lambda: saliency_lrp.get_saliency(make_net(), image))


def test_file_that_is_no_image(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    refused(lambda: saliency_lrp.get_saliency(make_net(), path), "notes.png")


def test_image_with_too_many_channels_for_the_model():
    model = nn.Sequential(nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    refused(lambda: saliency_lrp.get_saliency(model, picture), "5 channels")
