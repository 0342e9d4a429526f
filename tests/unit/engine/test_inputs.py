"""Models of several inputs: maps in the order, shape and names of the arguments, from every method that can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency_lrp
from saliency_lrp import LrpExplainer, RelevancePropagator
from saliency_lrp.errors import InputError
from saliency_lrp.explainers import get
from saliency_lrp.model.unwrapped import unwrapped
from tests.helpers.tiny import EXACT, noise

N = 2


class Views(nn.Module):
    """A picture and a table row, through a bias-free ReLU network with products of neither."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.row = nn.Linear(5, 4, bias=False)
        self.head = nn.Linear(4, 3, bias=False)
        self.double().eval()

    def forward(self, image, row, mask=None, scale: float = 1.0):
        seen = F.relu(self.conv(image)).mean((2, 3)) + F.relu(self.row(row))
        return self.head(F.relu(seen)) * (1 if mask is None else mask[:, None]) * scale


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)).double().eval()

    def forward(self, a, b):
        return (self.body(a) - self.body(b)).abs()


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.emb = nn.Embedding(12, 4)
        self.hidden = nn.Linear(15, 8, bias=False)
        self.out = nn.Linear(8, 2, bias=False)
        self.double().eval()

    def forward(self, cat, num):
        return self.out(F.relu(self.hidden(torch.cat([self.emb(cat).flatten(1), num], 1))))


IMAGE, ROW = noise(N, 3, 8, 8), noise(N, 5, seed=1)
A, B = noise(N, 6), noise(N, 6, seed=1)
CAT, NUM = torch.tensor([[1, 2, 3], [0, 1, 2]]), noise(N, 3, seed=2)


def gradients(model, *inputs, target=1) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    floats = [t for t in leaves if t.requires_grad]
    return list(torch.autograd.grad(model(*leaves)[:, target].sum(), floats))


def times(left, right):
    return [a * b for a, b in zip(left, right, strict=True)]


def close(found, wanted, **tolerance):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


CASES = {"siamese": (Siamese, (A, B)), "picture and row": (Views, (IMAGE, ROW))}


@pytest.mark.parametrize("case", CASES)
def test_gradient_methods_and_lrp(case):
    kind, inputs = CASES[case]
    model = kind()
    g = gradients(model, *inputs)
    wanted = {"vanilla_grad": g, "saliency": [v.abs() for v in g], "grad_x_input": times(g, inputs)}
    for name, maps in wanted.items():
        found = get(name, model).explain(inputs, 1)
        assert isinstance(found, tuple)
        close(found, maps)
    close(LrpExplainer(model, EXACT).explain(inputs, 1), wanted["grad_x_input"])
    close(RelevancePropagator(model, EXACT).trace(*inputs).relevance(1), wanted["grad_x_input"])


@pytest.mark.parametrize("case", CASES)
def test_swapping_inputs_swaps_maps(case):
    kind, inputs = CASES[case]
    names = ("a", "b") if case == "siamese" else ("image", "row")
    model = kind()
    named = dict(zip(names, inputs, strict=True))
    turned = dict(reversed(named.items()))
    for name in ("lrp", "grad_x_input", "guided_backprop", "integrate_grad"):
        first, second = (get(name, model).explain(d, 1) for d in (named, turned))
        by_position = get(name, model).explain(inputs, 1)
        assert list(first) == list(named) and list(second) == list(turned)
        for k, R in zip(names, by_position, strict=True):
            torch.testing.assert_close(first[k], R)
            torch.testing.assert_close(second[k], R)
    if case == "siamese":
        close(LrpExplainer(model, EXACT).explain((B, A), 1), LrpExplainer(model, EXACT).explain((A, B), 1)[::-1])


@pytest.mark.parametrize(("name", "options"), [("integrate_grad", {"steps": 200}), ("deeplift", {})])
@pytest.mark.parametrize("case", CASES)
def test_maps_sum_to_the_difference_to_the_baseline(case, name, options):
    kind, inputs = CASES[case]
    model = kind()
    maps = get(name, model, **options).explain(inputs, 1)
    total = sum(R.flatten(1).sum(1) for R in maps)
    wanted = (model(*inputs) - model(*(torch.zeros_like(t) for t in inputs)))[:, 1].detach()
    torch.testing.assert_close(total, wanted, rtol=2e-2, atol=2e-3)


class Linear2(nn.Module):
    def forward(self, a, b, k=None):
        out = torch.stack([a.sum(1), 2 * a[:, 0] - 3 * b[:, 1]], 1)
        return out if k is None else out * k.to(out.dtype)[:, None]


@pytest.mark.parametrize("name", ["smooth_grad", "shap_gradient"])
def test_random_methods_on_a_linear_model_are_its_gradient(name):
    k = torch.tensor([1, 4])  # differs from item to item, and is held
    options = {"noise": 0.0} if name == "shap_gradient" else {}
    maps = get(name, Linear2(), **options).explain((A, B, k), 1)
    g = [torch.zeros(N, 6, dtype=torch.float64) for _ in range(2)]
    g[0][:, 0], g[1][:, 1] = 2 * k, -3 * k
    if name == "shap_gradient":
        g = times(g, (A, B))
    close(maps, g)


def test_relu_rules():
    model = Siamese()
    close(get("guided_backprop", model).explain((A, B), 1), guided(model))


def guided(model):
    handles = [
        m.register_full_backward_hook(lambda m, gi, go: (gi[0].clamp(min=0),))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
    ]
    try:
        return gradients(model, A, B)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", ["occlusion", "ablation"])
def test_windows_over_one_picture_with_the_row_held(name):
    model = Views()
    options = {"window": 4, "stride": 4} if name == "occlusion" else {"window": 4}
    R = get(name, model, **options).explain({"image": IMAGE, "row": ROW}, 1, constants=["row"])
    wanted = torch.zeros_like(IMAGE)
    for i in (0, 4):
        for j in (0, 4):
            x = IMAGE.clone()
            x[:, :, i : i + 4, j : j + 4] = 0
            drop = (model(IMAGE, ROW) - model(x, ROW))[:, 1].detach()
            wanted[:, :, i : i + 4, j : j + 4] = drop[:, None, None, None]
    torch.testing.assert_close(R, wanted)


def test_gradcam_of_the_one_picture():
    model = Views()
    R = get("gradcam", model, layer_path="conv").explain((IMAGE, ROW), 1, constants=["row"])
    features = model.conv(IMAGE).detach().requires_grad_()
    out = model.head(F.relu(F.relu(features).mean((2, 3)) + F.relu(model.row(ROW))))
    (g,) = torch.autograd.grad(out[:, 1].sum(), features)
    cam = (g.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True)
    cam = torch.where(cam.amax((1, 2, 3), keepdim=True) <= 0, cam, cam.clamp_min(0))
    large = F.interpolate(cam, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(R.sum(1, keepdim=True), large)
    with pytest.raises(InputError, match="one picture"):
        get("gradcam", Linear2()).explain((IMAGE, IMAGE), 1)


def test_what_knows_one_input_only_says_so():
    with pytest.raises(InputError, match=r"several \(image, row\)"):
        get("smooth_lrp", Views()).explain((IMAGE, ROW), 1)


def test_integers_are_held_by_gradient_methods_and_explained_by_lrp():
    model = Table()
    (g,) = gradients(model, CAT, NUM)
    torch.testing.assert_close(get("grad_x_input", model).explain((CAT, NUM), 1), g * NUM)
    torch.testing.assert_close(get("vanilla_grad", model).explain({"cat": CAT, "num": NUM}, 1), g)
    of_cat, of_num = LrpExplainer(model, EXACT).explain((CAT, NUM), 1)
    torch.testing.assert_close(of_num, g * NUM)
    torch.testing.assert_close(of_cat.sum(1) + of_num.sum(1), model(CAT, NUM)[:, 1].detach())
    both = LrpExplainer(model, EXACT).explain({"num": NUM, "cat": CAT}, 1)
    assert list(both) == ["num", "cat"]
    torch.testing.assert_close(both["cat"], of_cat)


# ------------------------------------------------------------------------------------------------ constants


def test_constants_by_name_and_by_position():
    model = Views()
    mask = torch.tensor([1.0, 0.5], dtype=torch.float64)
    g = gradients(model, IMAGE, ROW, mask)
    wanted = times(g[:2], (IMAGE, ROW))
    for constants in ("mask", ["mask"], [2], 2):
        trace = RelevancePropagator(model, EXACT, constants=constants).trace(IMAGE, ROW, mask)
        close(trace.relevance(1), wanted)
        close(RelevancePropagator(model, EXACT).trace(IMAGE, ROW, mask, constants=constants).relevance(1), wanted)
        close(LrpExplainer(model, EXACT, constants=constants).explain((IMAGE, ROW, mask), 1), wanted)
        close(get("grad_x_input", model).explain((IMAGE, ROW, mask), 1, constants=constants), wanted)
    named = RelevancePropagator(model, EXACT, constants=["row", "mask"]).trace(image=IMAGE, row=ROW, mask=mask)
    torch.testing.assert_close(named.relevance(1), wanted[0])
    with pytest.raises(InputError, match="mean 'mask'"):
        RelevancePropagator(model, constants=["mas"]).trace(IMAGE, ROW, mask)
    RelevancePropagator(model, constants=["mask", "scale"]).trace(IMAGE, ROW, mask=None, scale=2.0).relevance(1)


def test_an_adjacency_matrix_is_held():
    class Graph(nn.Module):
        def forward(self, x, adjacency):
            return (adjacency @ x).relu().sum(1)

    x, adjacency = noise(2, 4, 3), noise(4, 4, seed=3).abs()
    trace = RelevancePropagator(Graph(), EXACT, constants=["adjacency"]).trace(x, adjacency)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(Graph()(leaf, adjacency)[:, 1].sum(), leaf)
    torch.testing.assert_close(trace.relevance(1), g * x)
    torch.testing.assert_close(get("grad_x_input", Graph()).explain((x, adjacency), 1, constants=[1]), g * x)


def test_a_model_with_an_argument_called_constants():
    class Own(nn.Module):
        def forward(self, x, constants):
            return x + constants

    R = RelevancePropagator(Own(), EXACT).trace(A, constants=B).relevance(1)
    close(R, [A * (torch.arange(6) == 1), B * (torch.arange(6) == 1)])


# ------------------------------------------------------------------------------------------------ structures


class Nested(nn.Module):
    def forward(self, batch, *more, **named):
        total = batch["x"] + 2 * batch["y"][0] if isinstance(batch, dict) else sum(batch)
        return total + sum(more) + 3 * sum(named.values())


def picked(t):
    return t * (torch.arange(6) == 1)


def test_names_inside_structures():
    trace = RelevancePropagator(Nested(), EXACT).trace({"x": A, "y": [B]})
    found = trace.relevance(1)
    assert list(found) == ["x", "y[0]"]
    close(list(found.values()), [picked(A), 2 * picked(B)])
    close(RelevancePropagator(Nested(), EXACT).trace([A, B], A).relevance(1), [picked(A), picked(B), picked(A)])
    found = RelevancePropagator(Nested(), EXACT).trace(batch={"x": A, "y": [B]}, z=A).relevance([1, 2])
    assert list(found) == ["x", "y[0]", "z"] and found["z"].shape == (2, *A.shape)
    torch.testing.assert_close(found["z"][0], 3 * picked(A))


def test_the_error_names_the_input():
    bad = ROW.clone()
    bad[0, 0] = torch.nan
    for call in (
        lambda: RelevancePropagator(Views()).trace(IMAGE, bad),
        lambda: get("grad_x_input", Views()).explain((IMAGE, bad), 1),
    ):
        with pytest.raises(InputError, match="'row'.*NaN"):
            call()


# ------------------------------------------------------------------------------------------------ get_saliency


def test_get_saliency_gives_a_map_of_each():
    model, picture = Views(), np.zeros((16, 16, 3), np.uint8)
    for method in ("lrp", "grad_x_input"):
        options = {"composite": EXACT} if method == "lrp" else {}
        maps = saliency_lrp.get_saliency(model, picture, input=(IMAGE[:1], ROW[:1]), label=1, method=method, **options)
        assert [m.shape for m in maps] == [(16, 16), (5,)]
        g = gradients(model, IMAGE[:1], ROW[:1])
        wanted = (g[1] * ROW[:1])[0].abs()
        np.testing.assert_allclose(maps[1], (wanted - wanted.min()) / (wanted.max() - wanted.min()), rtol=1e-5)
    named = saliency_lrp.get_saliency(model, None, input={"row": ROW[:1], "image": IMAGE[:1]}, label=1)
    assert list(named) == ["row", "image"] and named["image"].shape == (8, 8)
    held = saliency_lrp.get_saliency(model, None, input=(IMAGE[:1], ROW[:1]), label=1, constants=["row"])
    assert held.shape == (8, 8)


@pytest.mark.parametrize("call", ["get_image_saliency_results", "compare_saliency"])
def test_errors_for_ids_name_the_right_call(call):
    model = nn.Sequential(nn.Embedding(12, 4), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(InputError) as caught:
        getattr(saliency_lrp, call)(model, None, CAT[:1])
    for words in ("explain_text(model, tokenizer, text)", "RelevancePropagator(model, 'attnlrp').trace(input_ids=..."):
        assert words in str(caught.value)
    assert ".float()" not in str(caught.value)
    for door in (call, "get_saliency"):
        with pytest.raises(InputError, match="explain_text"):
            getattr(saliency_lrp, door)(model, "the film was not good")


def test_a_dict_of_ids_is_explained():
    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.out = nn.Embedding(12, 4), nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask):
            return self.out((self.emb(input_ids) * attention_mask[..., None]).sum(1))

    batch = {"input_ids": CAT[:1], "attention_mask": torch.tensor([[1, 1, 0]])}
    for values in (
        saliency_lrp.get_saliency(Bert(), batch, composite=EXACT),
        saliency_lrp.get_saliency(Bert(), None, input=batch, composite=EXACT),
    ):
        assert values.shape == (3,) and values[2] == 0
    with pytest.raises(InputError, match="explain_text"):
        get("grad_x_input", Bert()).explain(batch, 1)


def test_the_model_is_left_as_it_was():
    model = Views().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = IMAGE.clone()
    for name in ("lrp", "grad_x_input", "integrate_grad", "deeplift"):
        get(name, model).explain((image, ROW), 1)
    assert unwrapped(model).training and torch.equal(image, IMAGE)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
