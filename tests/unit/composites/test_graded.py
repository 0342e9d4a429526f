"""Rules that change with depth: which site gets which strength, in chains, branches and folds; what maps come of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lrp import composites, rules
from saliency_lrp.composites import Composite, depth, family, graded
from saliency_lrp.errors import InputError
from saliency_lrp.propagator import RelevancePropagator


def chain(layers: int, width: int = 4) -> nn.Sequential:
    """Convolutions, batch norms and ReLUs, and a dense layer at the end."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for k in range(layers):
        parts += [nn.Conv2d(3 if k == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).double().eval()


def strengths(model: nn.Module, composite: Composite, *inputs: torch.Tensor) -> dict[str, float | None]:
    """γ of each convolution, by module; None where the rule is another."""
    trace = RelevancePropagator(model).trace(*inputs)
    sites = [site for site in trace.sites if site.kind == "linear" and not site.folded_into_next]
    return {site.path: getattr(composite.rule_for(site), "gamma", None) for site in sites}


def image() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------ selectors


def test_depth_counts_linear_sites_from_the_input_and_a_batch_norm_with_its_layer():
    composite = Composite([(depth(0, 2), rules.GeneralizedGamma(2.0)), (depth(3), rules.GeneralizedGamma(0.5))])
    found = strengths(chain(4), composite, image())
    assert list(found.values()) == [2.0, 2.0, None, 0.5, 0.5]  # four convolutions and the dense layer


class Branches(nn.Module):
    """Two ways to the same sum, of one and of three convolutions, the short one last; then one more."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.short = nn.Conv2d(3, 3, 1)
        self.after = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for layer in self.long:
            x = layer(x).relu()
        return self.after(x + self.short(y).relu()).mean((2, 3))


def test_every_branch_begins_at_depth_0_and_the_longest_way_counts():
    composite = Composite([(depth(k, k + 1), rules.GeneralizedGamma(10.0 + k)) for k in range(6)])
    found = strengths(Branches().double(), composite, image(), image())
    assert found == {"long.0": 10.0, "long.1": 11.0, "long.2": 12.0, "short": 10.0, "after": 13.0}


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (2, 2), (3, 1), (-1, None)])
def test_depths_that_cannot_be_are_refused(low, high):
    with pytest.raises(InputError, match="depths"):
        depth(low, high)


def test_depth_prints():
    rows = [((family("convolution"), depth(2, 4)), rules.ZPlus()), (depth(4), rules.ZPlus())]
    assert "family(convolution) & depth(2, 4)" in repr(Composite(rows))
    assert "depth(4, )" in repr(Composite(rows))


# ------------------------------------------------------------------------------------------------ strengths


def test_strengths_change_by_equal_factors_and_stay_behind_the_end():
    composite = Composite(graded(rules.GeneralizedGamma, 1.0, 0.01, over=6, steps=3))
    found = list(strengths(chain(8), composite, image()).values())
    assert found == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01]


def test_they_may_rise_and_there_are_no_more_steps_than_sites():
    rows = graded(rules.GeneralizedGamma, 0.5, 2.0, over=3, steps=8)
    assert [rule.gamma for _, rule in rows] == [0.5, 1.0, 2.0]
    assert list(strengths(chain(3), Composite(rows), image()).values()) == [0.5, 1.0, 2.0, 2.0]


def test_only_the_sites_asked_for_are_graded():
    rows = graded(rules.GeneralizedGamma, 1.0, 0.1, over=2, where=family("dense"))
    assert list(strengths(chain(2), Composite(rows), image()).values()) == [None, None, 0.1]


@pytest.mark.parametrize(
    "change", [{"at_input": 0.0}, {"deep": -1.0}, {"over": 0}, {"steps": 0}], ids=lambda change: next(iter(change))
)
def test_strengths_that_cannot_be_are_refused(change):
    given = {"at_input": 1.0, "deep": 0.1, "over": 4, **change}
    with pytest.raises(InputError, match="strengths > 0"):
        graded(rules.GeneralizedGamma, **given)


# ------------------------------------------------------------------------------------------------ auto


def slow_gamma(model: nn.Sequential, x: torch.Tensor, target: int, gammas: list[float | None]) -> torch.Tensor:
    """γ on each convolution (None: z⁺), ε → 0 on pooling and the dense layer, batch norms folded: by autograd."""
    conv, folded = nn.functional.conv2d, []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
            w, b = folded[-1]
            folded[-1] = (w * scale[:, None, None, None], (b - layer.running_mean) * scale + layer.bias)
        elif isinstance(layer, nn.Conv2d):
            folded.append((layer.weight, layer.bias))
    activations = [x]
    for w, b in folded:
        activations.append(conv(activations[-1], w, b, padding=1).relu())
    R = activations[-1] * model[-1].weight[target][:, None, None] / activations[-1][0, 0].numel()
    for (w, b), gamma, a in reversed(list(zip(folded, gammas, activations, strict=False))):
        own, extra = (0.0, 1.0) if gamma is None else (1.0, gamma)

        def favored(a, w, b, sign, own=own, extra=extra):
            """All contributions once, those of a sign ``extra`` times more."""
            w_same, w_other = (sign * w).clamp(min=0) * sign, -(-sign * w).clamp(min=0) * sign
            of_sign = conv(a.clamp(min=0), w_same, padding=1) + conv(a.clamp(max=0), w_other, padding=1)
            return own * conv(a, w, b, padding=1) + extra * (of_sign + ((sign * b).clamp(min=0) * sign)[:, None, None])

        a = a.detach().requires_grad_(True)
        up, down = (favored(a, w, b, sign) for sign in (1, -1))
        chosen = up if gamma is None else torch.where(conv(a, w, b, padding=1) > 0, up, down)
        (c,) = torch.autograd.grad((chosen * (R / chosen).detach()).sum(), a)
        R = c * a.detach()
    return R


def test_auto_of_a_deep_net_is_that_of_a_slow_computation():
    """γ of each depth written out here; 50 convolutions reach past the end of the grading."""
    model, x = chain(50), image()
    with torch.no_grad():
        for layer in model:  # keep signals alive through 50 layers
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                layer.bias.uniform_(-0.01, 0.01)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.8, 1.2)
                layer.running_mean.uniform_(-0.01, 0.01)
    gammas = [None, *[1.0] * 5, *[0.652] * 6, *[0.425] * 6, *[0.277] * 6, *[0.181] * 6, *[0.118] * 6, *[0.0767] * 6]
    gammas += [0.05] * (50 - len(gammas))
    got = RelevancePropagator(model).trace(x).relevance(1)
    want = slow_gamma(model, x, 1, gammas)
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-9 * float(want.abs().max()))


def test_gamma_of_auto_may_be_one_number_or_two():
    def found(gamma):
        return list(strengths(chain(4), composites.get("auto", gamma=gamma), image()).values())[:4]

    assert found(0.3) == [None, 0.3, 0.3, 0.3]
    assert found((0.5, 0.1)) == [None, 0.5, 0.5, 0.5]  # as deep as that, nothing has changed yet
    deep = list(strengths(chain(60), composites.get("auto", gamma=(0.5, 0.1)), image()).values())
    assert deep[59] == 0.1 and sorted(deep[1:60], reverse=True) == deep[1:60]
