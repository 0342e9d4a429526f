"""What a trace with a bound composite leaves out to save time and memory must not show in any map.

Every network here exists twice: as people write it, and spelled so that no shortcut applies (``leaky_relu`` of slope 0
for ``relu``, a clone between an activation and the layer that reads it). Both must get the same relevance: the first
with the composite bound, so that a ReLU's output stands for that of the layer before it, the second by a plain trace.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import RelevancePropagator, composites, rules
from saliency_lrp.composites import Composite

F64 = torch.float64
Activation = Callable[[Tensor], Tensor]


def plain_relu(x: Tensor) -> Tensor:
    """A ReLU that is not recognised as one."""
    return F.leaky_relu(x, 0.0)


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def relu_in_place(x: Tensor) -> Tensor:
    return x.relu_()


class Squash(torch.autograd.Function):
    """A function that no mode can see."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 0.5 + 1.0

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


class Net(nn.Module):
    """Two convolutions with a ReLU between them, in the arrangement ``forward``."""

    def __init__(self, arrangement: Callable[[Net, Tensor, Activation], Tensor], act: Activation) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4 * 25, 3)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.uniform_(self.norm.weight, -1.5, 1.5)
        self.arrangement, self.act = arrangement, act
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.arrangement(self, x, self.act)


def chain(net: Net, x: Tensor, act: Activation) -> Tensor:
    return net.head(act(net.two(act(net.one(x)))).flatten(1))


def read_before(net: Net, x: Tensor, act: Activation) -> Tensor:
    z = net.one(x)
    other = z * 2.0
    return net.head((net.two(act(z)) + other).flatten(1))


def read_after(net: Net, x: Tensor, act: Activation) -> Tensor:
    z = net.one(x)
    kept = z if act is not relu_in_place else z.clone()
    y = act(z)
    return net.head((net.two(y) + kept).flatten(1))


def normed(net: Net, x: Tensor, act: Activation) -> Tensor:
    return net.head(act(net.norm(net.two(act(net.norm(net.one(x)))))).flatten(1))


def residual(net: Net, x: Tensor, act: Activation) -> Tensor:
    y = act(net.one(x))
    z = net.two(y)
    z += y
    return net.head(act(z).flatten(1))


def not_zero_at_zero(net: Net, x: Tensor, act: Activation) -> Tensor:
    return net.head(torch.sigmoid(act(net.one(x))).flatten(1))


def soft_maximum(net: Net, x: Tensor, act: Activation) -> Tensor:
    return torch.logsumexp(act(net.one(x)), (2, 3))


def custom(net: Net, x: Tensor, act: Activation) -> Tensor:
    return net.head(Squash.apply(act(net.one(x))).flatten(1))


def ends_in_relu(net: Net, x: Tensor, act: Activation) -> Tensor:
    return act(net.head(act(net.one(x)).flatten(1)))


def ends_in_a_rectified_convolution(net: Net, x: Tensor, act: Activation) -> Tensor:
    """The seed ``one`` starts on outputs that are 0, behind a convolution whose output the ReLU's stands for."""
    return act(net.two(act(net.one(x)))).flatten(1)


def several_results(net: Net, x: Tensor, act: Activation) -> Tensor:
    """A function of several results that nobody classified: its gradient sends relevance to what the ReLU cut."""
    z = F.conv2d(x, net.one.weight, net.one.bias + 1.0, padding=1)
    return torch.linalg.slogdet(act(z))[1]


def written_later(net: Net, x: Tensor, act: Activation) -> Tensor:
    y = act(net.one(x))
    z = net.two(y)
    y += 1.0
    return net.head((z * y).flatten(1))


ARRANGEMENTS = [
    chain,
    read_before,
    read_after,
    normed,
    residual,
    not_zero_at_zero,
    soft_maximum,
    custom,
    ends_in_relu,
    ends_in_a_rectified_convolution,
    several_results,
    written_later,
]

RULES = {
    "epsilon": rules.Epsilon(0.1),
    "relative": rules.Epsilon(0.1, relative=True),
    "relative sums": Composite([(composites.kind("sum"), rules.Norm(0.1, relative=True))]),
    "distribute": rules.Epsilon(0.1, bias="distribute"),
    "z_plus": rules.ZPlus(0.01),
    "gamma": rules.GeneralizedGamma(0.5, 0.01),
    "alpha_beta": rules.AlphaBeta(2, 1, 0.01),
    "flat": rules.Flat(),
    "power": rules.Power(1, 0.1),
    "mixed": Composite([(composites.first(), rules.Epsilon(0.1)), (composites.kind("linear"), rules.WSquare())]),
}


@pytest.mark.filterwarnings("ignore:.*custom autograd.Function.*")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("act", [relu, relu_in_place])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_relu_serves_as_denominator_only_where_it_may(arrangement, act, rule):
    net, reference = (Net(arrangement, a).to(F64) for a in (act, plain_relu))
    x = torch.randn(2, 2, 5, 5, dtype=F64)
    bound = RelevancePropagator(net, RULES[rule])
    exact = RelevancePropagator(reference, "epsilon").trace(x.clone())
    traces = [bound.bound_trace(x.clone()), RelevancePropagator(net, "epsilon").trace(x.clone())]
    for seed in ("logit", "one", "contrastive"):
        want = exact.relevance(1, seed, RULES[rule])
        for trace in traces:
            assert torch.equal(trace.output, net(x.clone()))
            got = trace.relevance(1, seed, None if trace is traces[0] else RULES[rule])
            if trace is traces[0]:  # a coefficient is divided by the input, with a guard of 1e-12
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9 * float(want.abs().max()))
            else:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        assert want.abs().max() > 0 or seed != "one"  # the others may start from nothing


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "gamma", "alpha_beta"])
@pytest.mark.parametrize(("act", "taken"), [(relu, True), (relu_in_place, True), (plain_relu, False)])
def test_the_shortcut_is_taken(act, taken, rule):
    """Else the tests above show nothing."""
    trace = RelevancePropagator(Net(chain, act), RULES[rule]).bound_trace(torch.randn(1, 2, 5, 5))
    assert trace.bound
    assert [site.rectified for site in trace.sites if site.op == "conv2d"] == [taken, taken]


class TwoResults(nn.Module):
    """Gives what its ReLU reads, too."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(2, 4, 3, dtype=F64), act

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.conv(x)
        y = self.act(z)
        return z.flatten(1), y.flatten(1)


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "gamma", "alpha_beta"])
def test_what_a_relu_reads_may_be_what_is_explained(rule):
    x = torch.randn(1, 2, 4, 4, dtype=F64)
    bound = RelevancePropagator(TwoResults(relu), RULES[rule]).bound_trace(x)
    exact = RelevancePropagator(TwoResults(plain_relu), RULES[rule]).trace(x)
    below = int(exact.output[0].argmin())
    got, want = (trace.relevance(below) for trace in (bound, exact))
    assert exact.output[0].min() < 0 < want.abs().max()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_callable_condition_may_send_relevance_to_a_zero():
    x = torch.randn(2, 2, 5, 5, dtype=F64)
    got, want = (
        RelevancePropagator(Net(chain, act).to(F64), rules.Epsilon(0.1))
        .trace(x)
        .relevance(1, condition={"one": lambda R: R + 1})
        for act in (relu, plain_relu)
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_rule_of_ones_own_gets_the_output_itself():
    class Shares(rules.Epsilon):
        def relevance(self, site, R):
            assert (site.output < 0).any()
            return super().relevance(site, R)

    trace = RelevancePropagator(Net(chain, relu), Shares(0.1)).trace(torch.randn(2, 2, 5, 5))
    assert torch.isfinite(trace.relevance(1)).all()


# ------------------------------------------------------------------------------------------------ folded batch norms


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("mixed", "relative sums", "flat")])
@pytest.mark.parametrize("size", [3, 9])
def test_a_batch_norm_scales_the_weight_or_its_outputs(size, rule, signs):
    """At size 3 a layer has fewer outputs than weights, at size 9 more."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, dtype=F64), nn.BatchNorm2d(6, dtype=F64)
    nn.init.uniform_(norm.weight, 0.5 if signs == "positive" else -1.5, 1.5)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    merged = nn.Conv2d(4, 6, 3, dtype=F64)
    merged.weight.data = (conv.weight * gain[:, None, None, None]).detach()
    merged.bias.data = ((conv.bias - norm.running_mean) * gain + norm.bias).detach()
    x = torch.rand(1, 4, size, size, dtype=F64)
    got, want = (RelevancePropagator(net.eval(), RULES[rule]).trace(x) for net in (nn.Sequential(conv, norm), merged))
    seed = torch.randn_like(got.output)
    torch.testing.assert_close(got.relevance(seed=seed), want.relevance(seed=seed), rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------ negative shares


@pytest.mark.parametrize("least", [0.0, -1e-9, -1e-3, -1.0])
def test_the_negative_share_is_not_a_difference_of_what_is_nearly_equal(least):
    """αβ divides by the sum of the negative contributions, however small it is beside the positive ones."""
    layer = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(3, 6) + 0.5)
        layer.weight[:, 0] *= least
    x = torch.rand(4, 6) + 0.5
    R = torch.randn(4, 3)
    got = RelevancePropagator(layer, rules.AlphaBeta(2, 1, 1e-12)).trace(x).relevance(seed=R)
    a, w, R = x.double(), layer.weight.detach().double(), R.double()
    up, down = a @ w.clamp(min=0).T, a @ w.clamp(max=0).T
    c_down = torch.where(down == 0, 0.0, R / (down - 1e-12))
    want = 2 * a * ((R / up) @ w.clamp(min=0)) - a * (c_down @ w.clamp(max=0))
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_no_differences_of_half_precision_outputs():
    """One input in 16 counts negatively: the difference would have 15 times the output's rounding error of 0.2 %."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 1, bias=False), torch.rand(64, 16) + 0.5
    with torch.no_grad():
        layer.weight.uniform_(0.9, 1.1)[:, 0] *= -1
        x[:, 0] = 1.5  # enough for the difference to be taken, were it not for the precision
    layer, x = layer.bfloat16(), x.bfloat16()
    rule, R = rules.AlphaBeta(2, 1), torch.ones(64, 1).bfloat16()
    got = RelevancePropagator(layer, rule).trace(x).relevance(seed=R).float()
    exact = RelevancePropagator(layer.float(), rule).trace(x.float()).relevance(seed=R.float())
    torch.testing.assert_close(got, exact, rtol=0.004, atol=1e-3)  # the result itself is rounded to bfloat16


# ------------------------------------------------------------------------------------------------ read and written


class Blocks(nn.Module):
    """Normalisations and activations before linear layers; ``between`` stands between them."""

    def __init__(self, between: Activation) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.norm, self.q, self.k = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(6, 8)
        self.mix, self.conv, self.head = nn.Linear(8, 8), nn.Conv1d(8, 4, 1), nn.Linear(4 * 5, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.norm(x))
        y = self.q(y) + self.k(y)  # two readers
        y = F.silu(y, inplace=True)
        y = self.mix(self.between(y))
        z = F.gelu(y)
        first = self.conv(self.between(z).transpose(1, 2))
        z += 1.0  # written into after it was read
        y = first + self.conv(z.transpose(1, 2))
        return self.head(torch.tanh(y).flatten(1))


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "auto", "deep_taylor", rules.Flat()])
def test_what_many_read_and_write_into_is_the_same(composite):
    x = torch.randn(2, 5, 6, dtype=F64)
    shortened, kept = (Blocks(b).to(F64).eval() for b in (lambda t: t, torch.clone))
    traces = [RelevancePropagator(shortened, composite).bound_trace(x), RelevancePropagator(kept, composite).trace(x)]
    assert torch.equal(traces[0].output, shortened(x))
    for target in (0, 2):
        got, want = (t.relevance(target) for t in traces)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    got, want = (torch.stack(t.relevances([0, 1, 2])) for t in traces)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_autocast_is_that_of_the_forward_pass():
    """In the backward pass no autocast is on: a normalisation would read other dtypes than it did."""
    x = torch.randn(2, 5, 6)
    traces = []
    for between in (lambda t: t, torch.clone):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            traces.append(RelevancePropagator(Blocks(between).eval(), "epsilon").trace(x))
    assert torch.equal(traces[0].relevance(1), traces[1].relevance(1))
