"""Networks that hypothesis makes up, against the independent reference on their explicit graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saliency_lrp import rules
from saliency_lrp.composites import Composite, kind
from saliency_lrp.propagator import RelevancePropagator
from tests.helpers.graph_reference import Graph, Node, Reference

EPSILON = 1e-3
# name in the reference, its options, the package's rule
RULES = [
    ("epsilon", {}, rules.Epsilon(EPSILON)),
    ("epsilon", {"bias": "zero"}, rules.Epsilon(EPSILON, bias="zero")),
    ("epsilon", {"bias": "distribute"}, rules.Epsilon(EPSILON, bias="distribute")),
    ("z_plus", {}, rules.ZPlus(EPSILON)),
    ("alpha_beta", {"alpha": 2.0, "beta": 1.0}, rules.AlphaBeta(2, 1, EPSILON)),
    ("gamma", {"gamma": 0.25}, rules.Gamma(0.25, EPSILON)),
    ("generalized_gamma", {"gamma": 0.5}, rules.GeneralizedGamma(0.5, EPSILON)),
    ("w_square", {"bias": "zero"}, rules.WSquare(EPSILON)),
]


class GraphNet(nn.Module):
    """Runs a graph with torch functions as users write them: modules, functionals, operators, methods, in place."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleList(graph.layers)
        self.relu = nn.ReLU()
        self.relu_ = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for k, node in enumerate(self.graph.nodes[1:]):
            xs = [values[j] for j in node.inputs]
            values.append(self.step(node, xs, spelling=k))
        return values[-1]

    def step(self, node: Node, xs: list[Tensor], spelling: int) -> Tensor:
        if node.layer is not None:
            return self.layers[node.layer](*xs)
        way = self.in_place if node.inplace else self.out_of_place
        return way(node, *xs, spelling=spelling)

    def in_place(self, node: Node, x: Tensor, *others: Tensor, spelling: int) -> Tensor:
        if node.op == "relu":
            return [self.relu_, torch.relu_, lambda t: F.relu(t, inplace=True), Tensor.relu_][spelling % 4](x)
        if node.op == "leaky_relu":
            return F.leaky_relu(x, 0.2, inplace=True)
        if node.op in ("silu", "elu"):
            return getattr(F, node.op)(x, inplace=True)
        if node.op == "dropout":
            return F.dropout(x, 0.5, training=self.training, inplace=True)
        if node.op == "add":
            x += others[0]
        elif node.op == "sub":
            x.sub_(others[0])
        elif node.op == "scale":
            x *= node.args[0]
        elif node.op == "divide":
            x.div_(node.args[0])
        elif node.op == "shift":
            x.add_(node.args[0])
        elif node.op == "product":
            x.mul_(others[0])
        elif node.op == "add_into":
            y, start = others[0], node.args[0]
            if spelling % 2:
                x[:, start : start + y.shape[1]] += y
            else:
                x.narrow(1, start, y.shape[1]).add_(y)
        return x

    def out_of_place(self, node: Node, *xs: Tensor, spelling: int) -> Tensor:
        x, args = xs[0], node.args
        odd = spelling % 2
        if node.op == "slice":
            axis, start, stop = args
            return x[(slice(None),) * axis + (slice(start, stop),)] if odd else x.narrow(axis, start, stop - start)
        if node.op == "swap_halves":
            return torch.cat(x.chunk(2, 1)[::-1], 1) if odd else torch.cat(x.tensor_split(2, 1)[::-1], dim=1)
        if node.op == "buffer":
            out = torch.zeros(x.shape[0], args[0] + x.shape[1], *x.shape[2:], dtype=x.dtype)
            if odd:
                out[:, args[0] :] = x
            else:
                out[:, args[0] :].copy_(x)
            return out
        return {
            "flip": lambda: x.flip(args[0]),
            "roll": lambda: x.roll(1, args[0]),
            "turn": lambda: x.mT if odd else x.permute(0, 1, 3, 2),
            "pad": lambda: F.pad(x, (1, 0, 0, 1)),
            "reshape": lambda: x.reshape(x.shape[0], -1).view(x.shape),
            "flatten": lambda: x.flatten(1) if odd else torch.reshape(x, (len(x), -1)),
            "cat": lambda: torch.cat(xs, 1) if odd else torch.concat(xs, dim=1),
            "stack": lambda: torch.stack(xs, 2).flatten(1, 2),
            "dropout": lambda: F.dropout2d(x, 0.5, self.training),
            "add": lambda: xs[0] + xs[1] if odd else torch.add(*xs),
            "sub": lambda: xs[0] - xs[1] if odd else xs[0].sub(xs[1]),
            "avg_pool": lambda: F.avg_pool2d(x, 3, 1, 1),
            "mean": lambda: x.mean((2, 3)) if odd else F.adaptive_avg_pool2d(x, 1).flatten(1),
            "upsample": lambda: F.interpolate(x, scale_factor=2, mode="bilinear"),
            "relu": lambda: self.relu(x) if odd else F.relu(x),
            "leaky_relu": lambda: F.leaky_relu(x, 0.2),
            "gelu": lambda: F.gelu(x),
            "silu": lambda: F.silu(x),
            "elu": lambda: F.elu(x),
            "softsign": lambda: F.softsign(x),
            "scale": lambda: x * args[0] if odd else torch.mul(args[0], x),
            "divide": lambda: x / args[0],
            "shift": lambda: x + args[0] if odd else args[0] + x,
            "gate": lambda: x * torch.sigmoid(xs[1]) if odd else xs[1].sigmoid() * x,
            "product": lambda: xs[0] * xs[1],
            "max_pool": lambda: F.max_pool2d(x, *args) if odd else nn.MaxPool2d(*args)(x),
            "add_into": lambda: self.in_place(node, x.clone(), *xs[1:], spelling=spelling),
        }[node.op]()


class Maker:
    """Draws one graph; knows shapes, which memory is shared, and which values an in-place step has destroyed."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.graph = Graph([Node("input", ())])
        self.shapes = [(draw(st.integers(1, 3)), 6, 6)]
        self.memory = [0]
        self.dead: set[int] = set()
        self.g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    # ------------------------------------------------------------------ what there is

    def pick(self, *shape: int) -> int:
        """A live node of any shape, or of this one; recent ones are likelier."""
        alive = [k for k in range(len(self.shapes)) if k not in self.dead and (not shape or self.shapes[k] == shape)]
        return self.draw(st.sampled_from(alive[-4:] + alive[-1:] * 2))

    def layer(self, make, same) -> int:
        """A layer that fits: one that was used before, or a new one with random numbers in it."""
        fitting = [k for k, m in enumerate(self.graph.layers) if same(m)]
        if fitting and self.draw(st.booleans()):
            return self.draw(st.sampled_from(fitting))
        layer = make().double().eval()
        with torch.no_grad():
            for name, t in (*layer.named_parameters(), *layer.named_buffers()):
                if t.is_floating_point():
                    t.copy_(torch.randn(t.shape, generator=self.g, dtype=t.dtype))
                    if "var" in name:
                        t.abs_().add_(0.5)
        self.graph.layers.append(layer)
        return len(self.graph.layers) - 1

    def add(self, op: str, inputs: tuple[int, ...], shape: tuple[int, ...], shares=False, **more) -> int:
        """Append a node; ``shares`` says whether its result is a view of its first input."""
        inplace = more.get("inplace", False)
        memory = self.memory[inputs[0]] if shares or inplace else len(self.shapes)
        if inplace:
            self.dead |= {k for k, m in enumerate(self.memory) if m == memory}
        self.graph.nodes.append(Node(op, inputs, **more))
        self.shapes.append(shape)
        self.memory.append(memory)
        return len(self.shapes) - 1

    # ------------------------------------------------------------------ steps

    def step(self) -> None:
        steps = [self.conv, self.conv, self.conv_transpose, self.norm, self.activation, self.activation, self.two]
        self.draw(st.sampled_from([*steps, self.two, self.move, self.pool, self.constant, self.add_into]))()

    def conv(self) -> None:
        k = self.pick()
        channels, height, width = self.shapes[k]
        groups = self.draw(st.sampled_from([g for g in (1, 1, channels) if channels % g == 0]))
        out = groups * self.draw(st.integers(1, max(1, 4 // groups)))
        kernel, dilation = self.draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (2, 1)]))
        padding = self.draw(st.sampled_from(["same", dilation * (kernel - 1) // 2, 1]))
        stride = 1 if padding == "same" or min(height, width) < 4 else self.draw(st.sampled_from([1, 1, 2]))
        assume(padding == "same" or min(height, width) + 2 * padding > dilation * (kernel - 1))
        options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, bias=self.draw(st.booleans()))
        index = self.layer(
            lambda: nn.Conv2d(channels, out, kernel, **options),
            lambda m: isinstance(m, nn.Conv2d) and m.in_channels == channels and m.stride == (1, 1),
        )
        self.weights("conv", k, index)

    def conv_transpose(self) -> None:
        k = self.pick()
        channels, height, width = self.shapes[k]
        stride = 2 if height * width <= 16 else 1
        out, bias = self.draw(st.integers(1, 3)), self.draw(st.booleans())
        index = self.layer(
            lambda: nn.ConvTranspose2d(channels, out, 3, stride, 1, stride - 1, bias=bias), lambda m: False
        )
        self.weights("conv_transpose", k, index)

    def weights(self, op: str, k: int, index: int) -> None:
        layer = self.graph.layers[index]
        with torch.no_grad():
            try:
                shape = tuple(layer(torch.zeros(1, *self.shapes[k], dtype=torch.float64)).shape[1:])
            except RuntimeError:  # a reused kernel that is larger than this input
                assume(False)
        assume(shape[1] * shape[2] >= 1)
        made = self.add(op, (k,), shape, layer=index)
        if self.draw(st.booleans()):
            self.batch_norm(made)

    def batch_norm(self, k: int) -> None:
        channels = self.shapes[k][0]
        index = self.layer(
            lambda: nn.BatchNorm2d(channels),
            lambda m: isinstance(m, nn.BatchNorm2d) and m.num_features == channels,
        )
        self.add("batch_norm", (k,), self.shapes[k], layer=index)

    def norm(self) -> None:
        k = self.pick()
        channels, height, width = self.shapes[k]
        choices = [lambda: nn.GroupNorm(1, channels), lambda: nn.LayerNorm([channels, height, width])]
        if channels % 2 == 0:
            choices.append(lambda: nn.GroupNorm(2, channels))
        if height * width > 1:
            choices.append(lambda: nn.InstanceNorm2d(channels, affine=True))
        make = self.draw(st.sampled_from(["batch", *choices]))
        if make != "batch":
            assume(channels * height * width > 1)
            self.add("normalization", (k,), self.shapes[k], layer=self.layer(make, lambda m: False))
        elif not self.source_is_gone(k):
            self.batch_norm(k)

    def source_is_gone(self, k: int) -> bool:
        """Whether node k is a layer whose input was written into since: what it is folded with is another story."""
        node = self.graph.nodes[k]
        return node.op in ("conv", "conv_transpose") and node.inputs[0] in self.dead

    def activation(self) -> None:
        k = self.pick()
        op = self.draw(st.sampled_from(["relu", "relu", "leaky_relu", "gelu", "silu", "elu", "softsign", "dropout"]))
        inplace = op not in ("gelu", "softsign") and self.draw(st.booleans())
        # in eval mode dropout returns the very tensor it is given
        self.add(op, (k,), self.shapes[k], shares=op == "dropout", inplace=inplace)

    def two(self) -> None:
        a = self.pick()
        shape = self.shapes[a]
        b = self.pick(*shape)
        op = self.draw(st.sampled_from(["add", "add", "sub", "cat", "stack", "gate", "product"]))
        if op in ("cat", "stack"):
            if 2 * shape[0] <= 6:
                self.add(op, (a, b), (2 * shape[0], *shape[1:]))
            return
        inplace = op in ("add", "sub", "product") and self.memory[a] != self.memory[b] and self.draw(st.booleans())
        self.add(op, (a, b), shape, inplace=inplace)

    def move(self) -> None:
        k = self.pick()
        channels, height, width = self.shapes[k]
        op = self.draw(st.sampled_from(["slice", "flip", "roll", "turn", "swap_halves", "pad", "reshape", "buffer"]))
        if op == "slice":
            axis = self.draw(st.integers(1, 3))
            size = self.shapes[k][axis - 1]
            start = self.draw(st.integers(0, size - 1))
            stop = self.draw(st.integers(start + 1, size))
            shape = list(self.shapes[k])
            shape[axis - 1] = stop - start
            self.add(op, (k,), tuple(shape), shares=True, args=(axis, start, stop))
        elif op in ("flip", "roll"):
            self.add(op, (k,), self.shapes[k], args=(self.draw(st.integers(1, 3)),))
        elif op == "turn":
            self.add(op, (k,), (channels, width, height), shares=True)
        elif op == "swap_halves" and channels > 1:
            self.add(op, (k,), self.shapes[k])
        elif op == "pad" and max(height, width) < 8:
            self.add(op, (k,), (channels, height + 1, width + 1))
        elif op == "reshape":
            self.add(op, (k,), self.shapes[k], shares=True)
        elif op == "buffer" and channels < 4:
            self.add(op, (k,), (channels + 1, height, width), args=(1,))

    def pool(self) -> None:
        k = self.pick()
        channels, height, width = self.shapes[k]
        op = self.draw(st.sampled_from(["avg_pool", "max_pool", "upsample"]))
        if op == "avg_pool":
            self.add(op, (k,), self.shapes[k])
        elif op == "upsample" and height * width <= 9:
            self.add(op, (k,), (channels, 2 * height, 2 * width))
        elif op == "max_pool" and min(height, width) >= 3:
            kernel, stride, padding = self.draw(st.sampled_from([(3, 1, 1), (2, 2, 0), (3, 2, 0)]))
            size = [(s + 2 * padding - kernel) // stride + 1 for s in (height, width)]
            self.add(op, (k,), (channels, *size), args=(kernel, stride, padding))

    def constant(self) -> None:
        k = self.pick()
        op = self.draw(st.sampled_from(["scale", "divide", "shift"]))
        value = self.draw(st.sampled_from([-1.5, 0.5, 2.0]))
        self.add(op, (k,), self.shapes[k], args=(value,), inplace=self.draw(st.booleans()))

    def add_into(self) -> None:
        """x[:, a:b] += y"""
        y = self.pick()
        channels, *rest = self.shapes[y]
        wider = [
            k
            for k, shape in enumerate(self.shapes)
            if k not in self.dead and shape[1:] == tuple(rest) and shape[0] > channels
        ]
        wider = [k for k in wider if self.memory[k] != self.memory[y]]
        if wider:
            x = self.draw(st.sampled_from(wider))
            start = self.draw(st.integers(0, self.shapes[x][0] - channels))
            self.add("add_into", (x, y), self.shapes[x], args=(start,), inplace=self.draw(st.booleans()))

    def head(self) -> None:
        k = self.pick()
        channels, height, width = self.shapes[k]
        if self.draw(st.booleans()):
            k = self.add("mean", (k,), (channels,))
        else:
            k = self.add("flatten", (k,), (channels * height * width,))
        features = self.shapes[k][0]
        index = self.layer(lambda: nn.Linear(features, 3), lambda m: False)
        self.add("linear", (k,), (3,), layer=index)


@st.composite
def graphs(draw) -> Graph:
    maker = Maker(draw)
    maker.conv()
    for _ in range(draw(st.integers(2, 8))):
        maker.step()
    maker.head()
    return maker.graph


@settings(
    max_examples=320, deadline=None, database=None, derandomize=True, phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
@given(graph=graphs(), rule=st.sampled_from(RULES), seed=st.integers(0, 2**20), target=st.integers(0, 2))
def test_a_random_network_equals_its_reference(graph, rule, seed, target):
    name, options, mine = rule
    x = torch.randn(2, graph_channels(graph), 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    want = Reference(graph, name, EPSILON, **options).run(x, target)
    assume(want.conditioning > 1e-7)

    model = GraphNet(graph).train()
    composite = Composite([(kind("linear"), mine)])  # only there: a rule that distributes does so at sums too
    trace = RelevancePropagator(model, composite, unknown="error").trace(x.clone())
    got = trace.relevance(target)
    with torch.no_grad():
        assert torch.equal(trace.output, model.eval()(x.clone()))
    largest = max(float(r.abs().max()) for r in want.relevance)
    error = float((got - want.relevance[0]).abs().max())
    assert error <= 1e-7 * largest, f"off by {error} of {largest}"


def graph_channels(graph: Graph) -> int:
    """Channels of the input: those of the first convolution, which reads it."""
    return graph.layers[0].in_channels
