"""Random networks in the words that people use, each beside a plain program whose gradient times input is its map.

A network is a list of steps. Each step is written twice: as one of many **spellings** (methods, operators, functions,
in place or not), which make the network's ``forward``; and as a **surrogate**, plain torch code of the same value in
which what relevance treats as a constant is detached (see :class:`Surrogate`). Relevance under LRP-ε (ε → 0) and z⁺ is
then the input times the surrogate's ordinary gradient: nothing of the package is used to find it.

``python -m tests.helpers.random_networks --first 0 --count 10000`` tries that many, and prints those whose map is wrong
without a word; ``--show SEED`` prints a network as source. ``tests/properties/test_random_networks.py`` tries some in
every test run.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lrp import RelevancePropagator, rules
from saliency_lrp.composites import Composite, kind

DTYPE = torch.float64
BATCH = 2
#: Largest number of values of one activation; nets stay small.
LARGEST = 500


# ------------------------------------------------------------------------------------------------ the other evaluator


class Surrogate:
    """What surrogates are written in. Of each function, gradient times input of its result is its relevance.

    * Values that move, sums, and whatever is positively homogeneous: torch's own functions (Euler's identity).
    * ``act(f, x)``: an element-wise function passes relevance as it is: ``x · (f(x) / x)``, the ratio a constant.
    * ``const(x)``: a gate, a statistic, a divisor gets none.
    * ``half(f, x, y)``: each of two multiplied signals gets a half.
    * ``layer(f, x, w, b)``: a linear layer under the rule that is tried.
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def act(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return x * torch.nan_to_num(f(x) / x, nan=0.0).detach()

    def const(self, x: Tensor) -> Tensor:
        return x.detach()

    def half(self, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * f(x, y.detach()) + 0.5 * f(x.detach(), y)

    def layer(self, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, b: Tensor | float = 0.0) -> Tensor:
        z = f(x, w) + b
        if self.rule == "epsilon":
            return z
        b = torch.as_tensor(b, dtype=DTYPE)
        positive = f(x.clamp(min=0), w.clamp(min=0)) + f(x.clamp(max=0), w.clamp(max=0)) + b.clamp(min=0)
        shared = positive * torch.where(positive == 0, 0.0, z / positive).detach()
        return shared + (z - shared).detach()


RULES: dict[str, rules.Rule] = {"epsilon": rules.Epsilon(1e-15), "z_plus": rules.ZPlus(1e-15)}


# ------------------------------------------------------------------------------------------------ programs


@dataclass
class Value:
    """A variable of the program."""

    name: str
    shape: tuple[int, ...]
    memory: int
    #: "plain"; "bounded" after tanh, "statistic" after a norm: what may be a gate of something
    look: str = "plain"
    #: what made it: "layer", "norm", "input", ""
    made: str = ""
    #: whether it lies behind a layer; what is done to the model's input by constants brings it to its range
    deep: bool = False
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        self.rank = len(self.shape)


class Reject(Exception):
    """This step does not fit here."""


class Program:
    """A network in the making: its lines, its constants, and which variables live."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numbers = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.rule = self.random.choices(["epsilon", "z_plus"], [3, 2])[0]
        #: each step as it is spelled, and in the first spelling of its kind
        self.blocks: list[tuple[str, str]] = []
        self.plain: list[str] = []
        self.kinds: list[str] = []
        self.constants: dict[str, Tensor | nn.Module] = {}
        self.inputs: dict[str, Tensor] = {}
        self.values: list[Value] = []
        self.dead: set[str] = set()
        self.ids: dict[str, Tensor] = {}
        self.count = 0
        self.env: dict[str, Any] = {}

    # ------------------------------------------------------------------ what steps ask for

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def choose(self, options: Sequence[Any]) -> Any:
        return self.random.choice(list(options))

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.numbers, dtype=DTYPE)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.numbers, dtype=DTYPE) + 0.3

    def const(self, value: Tensor | nn.Module) -> str:
        """The name of a new buffer or module of the network."""
        name = f"{'m' if isinstance(value, nn.Module) else 'k'}{len(self.constants)}"
        self.constants[name] = value.double().eval() if isinstance(value, nn.Module) else value
        return f"self.{name}"

    def indices(self, size: int, count: int, distinct: bool = False) -> list[int]:
        return (
            self.random.sample(range(size), count) if distinct else [self.random.randrange(size) for _ in range(count)]
        )

    def pick(
        self,
        *ranks: int,
        shape: tuple[int, ...] | None = None,
        plain: bool = True,
        test: Callable[[Value], bool] = lambda v: True,
    ) -> Value:
        """A live variable of one of these ranks, or of this shape; recent ones are likelier."""
        fits = [
            v
            for v in self.values
            if v.name not in self.dead
            and (not ranks or v.rank in ranks)
            and (shape is None or v.shape == shape)
            and v.look in (("plain",) if plain else ("plain", "bounded", "shifted"))
            and test(v)
        ]
        if not fits:
            raise Reject
        return self.random.choice([*fits[-3:], *fits[-1:]])

    def other(self, x: Value) -> Value:
        """Another variable of the same shape (perhaps the same one)."""
        return self.pick(shape=x.shape)

    # ------------------------------------------------------------------ adding a step

    def put(
        self,
        name: str,
        plain: str,
        spelled: Sequence[str] = (),
        inplace: Sequence[str] = (),
        look: str = "plain",
        made: str = "",
        aliases: bool = False,
        writable: bool = True,
        **names: Any,
    ) -> Value:
        """Append a step.

        ``plain`` and ``spelled`` are expressions, or statements that set ``{o}``, of the variables in ``names``;
        ``inplace`` are statements that write into ``{o}``, which is ``x`` or a copy of it. ``aliases``: the result may
        share memory with ``x``.
        """
        ways = [*spelled, *(f"!{s}" for s in inplace)] or [plain]
        way = self.choose(ways)
        out = f"v{self.count}"
        words = {k: v.name if isinstance(v, Value) else v for k, v in names.items()}
        x = names.get("x")
        memory, dead = self.count, set()
        if way.startswith("!"):
            start = out_of(x, self, writable)
            if start == words["x"]:
                dead = {v.name for v in self.values if v.memory == x.memory}
                memory = x.memory
            line = f"{out} = {start}\n{way[1:]}"
        else:
            line = way if "{o}" in way else f"{out} = {way}"
            if aliases and x is not None:
                memory = x.memory
        first = (spelled or [f"{{o}} = {{x}}.clone()\n{inplace[0]}" if inplace else plain])[0]
        first = first if "{o}" in first else f"{out} = {first}"
        plain_line = plain if "{o}" in plain else f"{out} = {plain}"
        line, plain_line, first = (fill_in(text, o=out, **words) for text in (line, plain_line, first))
        self.run_plain(plain_line)
        value = self.env[out]
        if not isinstance(value, Tensor) or value.numel() > LARGEST or value.shape[:1] != (BATCH,):
            raise Reject
        size = float(value.detach().abs().max()) if value.numel() else 0.0
        if not 1e-4 < size < 1e4 or not bool(torch.isfinite(value).all()):
            raise Reject
        self.count += 1
        self.dead |= dead
        self.blocks.append((line, first))
        self.plain += plain_line.split("\n")
        self.kinds.append(f"{name}: {way.strip()}")
        deep = made == "layer" or any(v.deep for v in names.values() if isinstance(v, Value))
        made_value = Value(out, tuple(value.shape), memory, look, made, deep)
        self.values.append(made_value)
        return made_value

    def run_plain(self, line: str) -> None:
        with contextlib.suppress(SyntaxError):
            try:
                exec(compile(line, "<surrogate>", "exec"), self.env)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise Reject from error

    def add_input(self, name: str, value: Tensor) -> Value:
        self.inputs[name] = value
        self.env[name] = value
        v = Value(name, tuple(value.shape), -1 - len(self.inputs), made="input")
        self.values.append(v)
        return v

    # ------------------------------------------------------------------ as source

    @property
    def source(self) -> str:
        """The network's forward, as Python."""
        return self.source_with(())

    def source_with(self, firsts: Iterable[int]) -> str:
        """The forward with some steps in the first spelling of their kind."""
        arguments = ", ".join(["self", *self.inputs, *self.ids])
        blocks = [block[k in firsts] for k, block in enumerate(self.blocks)]
        return f"def forward({arguments}):\n" + "\n".join(f"    {line}" for line in "\n".join(blocks).split("\n"))

    @property
    def plain_source(self) -> str:
        """The surrogate, as Python."""
        arguments = ", ".join(["self", *self.inputs, *self.ids])
        return f"def surrogate({arguments}):\n" + "\n".join(f"    {line}" for line in self.plain)

    def __str__(self) -> str:
        def show(value: Tensor | nn.Module) -> str:
            if isinstance(value, nn.Module):
                return str(value)
            return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"

        constants = "\n".join(f"# self.{name} = {show(value)}" for name, value in self.constants.items())
        inputs = ", ".join(f"{name} {tuple(t.shape)}" for name, t in (*self.inputs.items(), *self.ids.items()))
        return f"# seed {self.seed}, {self.rule}, inputs {inputs}\n{constants}\n{self.source}\n\n{self.plain_source}"


def out_of(x: Value, program: Program, writable: bool) -> str:
    """What an in-place step writes into: the variable itself, or a copy of it in some words."""
    if writable and x.made != "input" and program.chance(0.5):
        return x.name
    return program.choose([f"{x.name}.clone()", f"{x.name} + 0", f"1 * {x.name}", f"torch.clone({x.name})"][:1])


def fill_in(text: str, **words: Any) -> str:
    """Put names in place of ``{name}``; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda m: str(words[m[1]]) if m[1] in words else m[0], text)


class Network(nn.Module):
    """The network of a program."""

    def __init__(self, program: Program, source: str) -> None:
        super().__init__()
        for name, value in program.constants.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            else:
                self.register_buffer(name, value.clone())
        scope: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, **vars_of(program)}
        exec(compile(source, f"<network {program.seed}>", "exec"), scope)
        self.run = scope["forward"]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def vars_of(program: Program) -> dict[str, Any]:
    s = Surrogate(program.rule)
    return {"act": s.act, "const": s.const, "half": s.half, "layer": s.layer}


# ------------------------------------------------------------------------------------------------ the grammar

Step = Callable[[Program], Any]
STEPS: list[tuple[Step, float]] = []


def step(weight: float = 1.0) -> Callable[[Step], Step]:
    def note(f: Step) -> Step:
        STEPS.append((f, weight))
        return f

    return note


# ------------------------------------------------------------------ layers


def linear_spellings(p: Program, n: int, m: int, bias: bool, rank: int) -> tuple[str, list[str], dict[str, str]]:
    """Surrogate and spellings of a dense layer over the last axis."""
    w = p.randn(m, n) / n**0.5
    b = p.randn(m) * 0.3 if bias else None
    module = nn.Linear(n, m, bias=bias, dtype=DTYPE)
    with torch.no_grad():
        module.weight.copy_(w)
        if b is not None:
            module.bias.copy_(b)
    names = {
        "W": p.const(w),
        "B": p.const(b) if b is not None else "None",
        "M": p.const(module),
        "T": p.const(w.T.contiguous()),
    }
    letters = "bti"[3 - rank :] if rank < 4 else "bcti"
    out = letters[:-1] + "o"
    plus = " + {B}" if bias else ""
    ways = [
        "{M}({x})",
        "{M}({x})",
        "F.linear({x}, {W}, {B})",
        "{x} @ {T}" + plus,
        "torch.matmul({x}, {W}.T)" + plus,
        f"torch.einsum('{letters},oi->{out}', {{x}}, {{W}})" + plus,
        "torch.tensordot({x}, {T}, dims=1)" + plus,
        "{x}.matmul({W}.t())" + plus,
    ]
    if rank == 2:
        ways += (
            [
                "torch.addmm({B}, {x}, {T})",
                "torch.addmm({B}, {x}, {W}.T / 2, alpha=2)",
                "({W} @ {x}.T).T" + plus,
                "{x}.mm({T})" + plus,
            ]
            if bias
            else ["({W} @ {x}.T).T", "torch.mm({x}, {T})", "{x}.mm({T})"]
        )
        ways += ["F.bilinear({x}, torch.ones_like({x}[:, :1]), {W}[:, :, None], {B})"]
    if rank == 3:
        ways += [
            "torch.bmm({x}, {T}.expand(len({x}), -1, -1))" + plus,
            "F.conv1d({x}.mT, {W}[:, :, None], {B}).mT",
            "{x}.transpose(1, 2).transpose(-1, -2) @ {T}" + plus,
        ]
        if bias:
            ways += [
                "torch.baddbmm({B}, {x}, {T}.expand(len({x}), -1, -1))",
                "torch.baddbmm({B} * 2, {x}, {T}.expand(len({x}), -1, -1), beta=0.5)",
            ]
    plain = "layer(lambda a, w: a @ w.T, {x}, {W}, {C})"
    names["C"] = names["B"] if bias else "0.0"
    return plain, ways, names


@step(3)
def dense(p: Program) -> None:
    x = p.pick(2, 2, 3, 4, plain=False)
    plain, ways, names = linear_spellings(p, x.shape[-1], p.random.randint(2, 6), p.chance(0.6), x.rank)
    p.put("dense", plain, ways, made="layer", x=x, **names)


def conv_parts(p: Program, x: Value, bias: bool) -> tuple[str, str, dict[str, str], int]:
    """The function of a convolution as a lambda, its keyword arguments, its constants, its outputs."""
    axes = x.rank - 2
    channels = x.shape[1]
    groups = channels if p.chance(0.2) else 1
    out = groups * p.random.randint(1, 2) if groups > 1 else p.random.randint(2, 4)
    size = p.choose([1, 2, 3])
    if min(x.shape[2:]) < size:
        size = 1
    w = p.randn(out, channels // groups, *[size] * axes) / (channels * size**axes / groups) ** 0.5
    b = p.randn(out) * 0.3
    stride = p.choose([1, 1, 2])
    padding = p.choose([0, size // 2])
    args = f"stride={stride}, padding={padding}, groups={groups}"
    module = (nn.Conv1d, nn.Conv2d)[axes - 1](
        channels, out, size, stride, padding, groups=groups, bias=bias, dtype=DTYPE
    )
    with torch.no_grad():
        module.weight.copy_(w)
        if bias:
            module.bias.copy_(b)
    names = {"W": p.const(w), "B": p.const(b) if bias else "None", "M": p.const(module), "V": "-1" + ", 1" * axes}
    names["C"] = fill_in("{B}.view({V})", **names) if bias else "0.0"
    return f"F.conv{axes}d", args, names, out


def conv_ways(f: str, args: str, bias: bool) -> list[str]:
    ways = [
        "{M}({x})",
        "{M}({x})",
        f"{f}({{x}}, {{W}}, {{B}}, {args})",
        f.replace("F.", "torch.") + f"({{x}}, {{W}}, {{B}}, {args})",
    ]
    if bias:
        ways += [
            f"{f}({{x}}, {{W}}, {args}) + {{B}}.view({{V}})",
            f"{{o}} = {f}({{x}}, {{W}}, {args})\n{{o}} += {{B}}.view({{V}})",
        ]
    return ways


@step(3)
def convolution(p: Program) -> None:
    x, bias = p.pick(3, 4, plain=False), p.chance(0.6)
    f, args, names, _ = conv_parts(p, x, bias)
    ways = conv_ways(f, args, bias)
    if x.rank == 4 and "stride=1, padding=0, groups=1" in args:
        size = p.constants[names["W"].removeprefix("self.")].shape[-1]
        h, w = x.shape[2] - size + 1, x.shape[3] - size + 1
        plus = " + {B}.view(1, -1, 1, 1)" if bias else ""
        ways += [
            f"({{W}}.flatten(1) @ F.unfold({{x}}, {size})).view({x.shape[0]}, -1, {h}, {w})" + plus,
            f"torch.einsum('bchwij,ocij->bohw', {{x}}.unfold(2, {size}, 1).unfold(3, {size}, 1), {{W}})" + plus,
        ]
    p.put(
        "convolution", f"layer(lambda a, w: {f}(a, w, {args}), {{x}}, {{W}}, {{C}})", ways, made="layer", x=x, **names
    )


@step(1)
def transposed(p: Program) -> None:
    x = p.pick(3, 4, plain=False)
    axes = x.rank - 2
    w = p.randn(x.shape[1], 2, *[2] * axes) / (2 * x.shape[1]) ** 0.5
    f = f"conv_transpose{axes}d"
    p.put(
        "transposed convolution",
        f"layer(lambda a, w: F.{f}(a, w, stride=2), {{x}}, {{W}})",
        [f"F.{f}({{x}}, {{W}}, stride=2)", f"torch.{f}({{x}}, {{W}}, stride=2)"],
        made="layer",
        x=x,
        W=p.const(w),
    )


# ------------------------------------------------------------------ batch norms


def norm_names(p: Program, channels: int, axes: int) -> dict[str, str]:
    weight, bias, mean, var = p.rand(channels), p.randn(channels) * 0.3, p.randn(channels) * 0.3, p.rand(channels)
    if p.chance(0.2):
        weight = weight * torch.sign(p.randn(channels))
    module = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[axes](channels, eps=0.01, dtype=DTYPE)
    with torch.no_grad():
        for t, v in (
            (module.weight, weight),
            (module.bias, bias),
            (module.running_mean, mean),
            (module.running_var, var),
        ):
            t.copy_(v)
    shape = (channels, *[1] * axes)
    k = weight / (var + 0.01).sqrt()
    own = {
        "g": weight,
        "b": bias,
        "m": mean,
        "v": var,
        "k": k,
        "s": bias - mean * k,
        "d": (var + 0.01).sqrt(),
        "dm": mean - bias / k,
    }
    names = {name: p.const(t.reshape(shape)) for name, t in own.items()}
    names |= {f"{name}1": p.const(own[name]) for name in ("g", "b", "m", "v", "k", "s")}
    return names | {"N": p.const(module), "V": "-1" + ", 1" * axes}


#: A batch norm in eval mode of {x}, channels on axis 1.
NORMS = [
    "{N}({x})",
    "{N}({x})",
    "F.batch_norm({x}, {m1}, {v1}, {g1}, {b1}, False, 0.1, 0.01)",
    "{x} * {k} + {s}",
    "{x} * {k1}.view({V}) + {s1}.view({V})",
    "({x} - {m}) / {d} * {g} + {b}",
    "({x} - {m}) / torch.sqrt({v} + 0.01) * {g} + {b}",
    "({x} - {m}) * torch.rsqrt({v} + 0.01) * {g} + {b}",
    "{g} * (({x} - {m}) / ({v} + 0.01).sqrt()) + {b}",
    "torch.addcmul({s}.expand_as({x}), {x}, {k})",
    "{s} + {k} * {x}",
    "torch.add({s}, {x} * {k})",
    "torch.addcdiv({b} - {m} * {k}, {x} * {g}, {d})",
    "({x} - {dm}) * {k}",
    "({x} - {m}).div({d}).mul({g}).add({b})",
    "{x}.sub({m}).mul({k}) + {b}",
    "{x} * {k}.expand_as({x}) + {s}.expand_as({x})",
    "{b} - ({m} - {x}) * {k}",
    "{x}.mul({k}).sub(-{s})",
    "{o} = {x} * {k}\n{o} += {s}",
    "{o} = {x} - {m}\n{o} *= {k}\n{o} += {b}",
    "{o} = {x} - {m}\n{o} /= {d}\n{o} = {o} * {g} + {b}",
    "{o} = {x}.clone()\n{o}.mul_({k}).add_({s})",
    "{o} = {x}.clone()\n{o}.sub_({m}).div_({d}).mul_({g}).add_({b})",
    "({x}.movedim(1, -1) * {k1} + {s1}).movedim(-1, 1)",
    "(({x}.movedim(1, -1) - {m1}) / ({v1} + 0.01).sqrt() * {g1} + {b1}).movedim(-1, 1)",
    "{o} = {x}.movedim(1, -1) * {k1}\n{o} += {s1}\n{o} = {o}.movedim(-1, 1)",
]

NORMS_IN_PLACE = [
    "{o} *= {k}\n{o} += {s}",
    "{o}.mul_({k}).add_({s})",
    "{o}.sub_({m}).mul_({k}).add_({b})",
    "{o} -= {m}\n{o} /= {d}\n{o} *= {g}\n{o} += {b}",
]

#: Where a convolution has channels, seen from the end.
FOLDED = "layer(lambda a, w: {f}(a, w, {args}), {i}, {W} * {k1}.view(-1, {V}), {C} * {k} + {s})"


@step(4)
def conv_norm(p: Program) -> None:
    """A convolution and the batch norm that is folded into it."""
    x, bias = p.pick(3, 4, plain=False), p.chance(0.3)
    f, args, names, out = conv_parts(p, x, bias)
    pre = p.put(
        "convolution",
        f"layer(lambda a, w: {f}(a, w, {args}), {{x}}, {{W}}, {{C}})",
        conv_ways(f, args, bias),
        made="layer",
        x=x,
        **names,
    )
    own = norm_names(p, out, x.rank - 2)
    words = {k: fill_in(v, **names) for k, v in names.items() if k in "WC"}
    own["V2"] = own["V"].removeprefix("-1, ")
    plain = (
        f"layer(lambda a, w: {f}(a, w, {args}), {{i}}, {{W}} * {{k1}}.view(-1, 1, {own['V2']}), {{C}} * {{k}} + {{s}})"
    )
    read_later = p.chance(0.15)
    p.put("folded norm", plain, NORMS, NORMS_IN_PLACE, made="norm", x=pre, i=x, **words, **own)
    if not read_later:
        p.dead.add(pre.name)


@step(2)
def dense_norm(p: Program) -> None:
    x, bias, m = p.pick(2, plain=False), p.chance(0.3), p.random.randint(2, 5)
    plain, ways, names = linear_spellings(p, x.shape[-1], m, bias, 2)
    pre = p.put("dense", plain, ways, made="layer", x=x, **names)
    own = norm_names(p, m, 0)
    words = {k: v for k, v in names.items() if k in "WC"}
    p.put(
        "folded norm",
        "layer(lambda a, w: a @ w.T, {i}, {W} * {k1}[:, None], {C} * {k} + {s})",
        NORMS,
        NORMS_IN_PLACE,
        made="norm",
        x=pre,
        i=x,
        **words,
        **own,
    )
    p.dead.add(pre.name)


@step(2)
def norm_alone(p: Program) -> None:
    """A batch norm behind what is no layer: a layer of its own."""
    x = p.pick(2, 3, 4, test=lambda v: v.deep and v.made in ("relu", "pool", "norm"))
    names = norm_names(p, x.shape[1], x.rank - 2)
    p.put("norm", "layer(lambda a, w: a * w, {x}, {k}, {s})", NORMS, NORMS_IN_PLACE, made="norm", x=x, **names)


# ------------------------------------------------------------------ activations

RELUS = [
    "F.relu({x})",
    "torch.relu({x})",
    "{x}.relu()",
    "{x}.clamp(min=0)",
    "{x}.clamp_min(0)",
    "torch.clamp({x}, 0)",
    "torch.clip({x}, 0, None)",
    "torch.maximum({x}, torch.zeros_like({x}))",
    "torch.maximum({x}, torch.tensor(0.0))",
    "{x}.max(torch.zeros(()))",
    "torch.where({x} > 0, {x}, 0.0)",
    "torch.where({x} > 0, {x}, torch.zeros_like({x}))",
    "{x} * ({x} > 0)",
    "({x} > 0) * {x}",
    "({x} + {x}.abs()) / 2",
    "{x}.masked_fill({x} < 0, 0)",
    "F.threshold({x}, 0.0, 0.0)",
    "F.leaky_relu({x}, 0.0)",
    "torch.stack([{x}, torch.zeros_like({x})]).amax(0)",
    "{x} * ({x} > 0).to({x}.dtype)",
    "torch.stack([{x}, torch.zeros_like({x})]).max(0)[0]",
    "torch.stack([{x}, torch.zeros_like({x})], -1).max(dim=-1).values",
    "-torch.minimum(-{x}, torch.zeros_like({x}))",
    "{x} - {x}.clamp(max=0)",
    "torch.fmax({x}, torch.tensor(0.0))",
    "{x} * torch.heaviside({x}, torch.zeros((), dtype={x}.dtype))",
    "{x}.where({x} > 0, torch.zeros_like({x}))",
    "torch.nn.ReLU()({x})",
    "F.hardtanh({x}, 0.0, 1e6)",
    "{x}.mul({x}.gt(0))",
    "{x}.clamp(0, float('inf'))",
    "F.prelu({x}, torch.zeros(1, dtype={x}.dtype))",
    "torch.einsum('...,...->...', {x}, ({x} > 0).to({x}.dtype))",
]
RELUS_IN_PLACE = [
    "{o}.relu_()",
    "torch.relu_({o})",
    "F.relu({o}, inplace=True)",
    "{o}.clamp_(min=0)",
    "{o}[{o} < 0] = 0",
    "{o}.masked_fill_({o} < 0, 0)",
    "nn.ReLU(inplace=True)({o})",
    "{o} *= {o} > 0",
    "{o}.mul_(({o} > 0).to({o}.dtype))",
    "F.threshold_({o}, 0.0, 0.0)",
    "{o}.clamp_min_(0)",
    "F.leaky_relu_({o}, 0.0)",
    "{o}[{o} < 0] *= 0",
    "{o}.copy_({o}.relu())",
    "torch.clamp({o}, min=0, out=None)\n{o} = {o}.relu()",
]


@step(5)
def relu(p: Program) -> None:
    p.put("relu", "F.relu({x})", RELUS, RELUS_IN_PLACE, made="relu", x=p.pick())


#: name: (surrogate, spellings, spellings in place)
ACTIVATIONS: dict[str, tuple[str, list[str], list[str]]] = {
    "leaky relu": (
        "F.leaky_relu({x}, 0.2)",
        [
            "F.leaky_relu({x}, 0.2)",
            "nn.LeakyReLU(0.2)({x})",
            "torch.maximum({x}, 0.2 * {x})",
            "torch.where({x} > 0, {x}, 0.2 * {x})",
            "F.relu({x}) - 0.2 * F.relu(-{x})",
            "{x}.clamp(min=0) + 0.2 * {x}.clamp(max=0)",
            "F.prelu({x}, torch.tensor([0.2], dtype={x}.dtype))",
            "0.2 * {x} + 0.8 * {x}.relu()",
            "torch.max({x}, {x} * 0.2)",
            "{x} * torch.where({x} > 0, torch.ones_like({x}), 0.2)",
            "torch.lerp({x}, {x}.relu(), 0.8)",
        ],
        [
            "F.leaky_relu_({o}, 0.2)",
            "F.leaky_relu({o}, 0.2, inplace=True)",
            "{o}[{o} < 0] *= 0.2",
            "{o}.copy_(torch.maximum({o}, {o} * 0.2))",
        ],
    ),
    "abs": (
        "{x}.abs()",
        [
            "{x}.abs()",
            "torch.abs({x})",
            "torch.where({x} < 0, -{x}, {x})",
            "torch.maximum({x}, -{x})",
            "{x} * {x}.sign()",
            "F.relu({x}) + F.relu(-{x})",
            "abs({x})",
            "torch.stack([{x}, -{x}]).amax(0)",
            "{x}.pow(2).sqrt()",
            "{x}.square().sqrt()",
            "torch.absolute({x})",
            "2 * {x}.relu() - {x}",
        ],
        ["{o}.abs_()", "{o}[{o} < 0] *= -1", "{o}[{o} < 0] = -{o}[{o} < 0]", "{o}.mul_({o}.sign())"],
    ),
    "silu": (
        "act(F.silu, {x})",
        [
            "F.silu({x})",
            "{x} * torch.sigmoid({x})",
            "{x}.sigmoid() * {x}",
            "{x} / (1 + torch.exp(-{x}))",
            "nn.SiLU()({x})",
            "{x} * {x}.sigmoid()",
            "torch.mul({x}.sigmoid(), {x})",
            "{x} * (1 / (1 + (-{x}).exp()))",
            "torch.einsum('...,...->...', {x}, {x}.sigmoid())",
        ],
        [
            "F.silu({o}, inplace=True)",
            "nn.SiLU(inplace=True)({o})",
            "{o}.mul_({o}.sigmoid())",
            "{o} *= torch.sigmoid({o})",
        ],
    ),
    "gelu": (
        "act(F.gelu, {x})",
        [
            "F.gelu({x})",
            "0.5 * {x} * (1 + torch.erf({x} / 2 ** 0.5))",
            "{x} * 0.5 * (1.0 + torch.erf({x} * 0.5 ** 0.5))",
            "nn.GELU()({x})",
            "{x} * (torch.erf({x} / 2 ** 0.5) + 1) / 2",
            "{x} * ((1 + torch.special.erf({x} / 2 ** 0.5)) * 0.5)",
        ],
        ["{o}.copy_(F.gelu({o}))", "{o}.mul_(0.5 * (1 + torch.erf({o} / 2 ** 0.5)))"],
    ),
    "tanh gelu": (
        "act(lambda t: F.gelu(t, approximate='tanh'), {x})",
        [
            "F.gelu({x}, approximate='tanh')",
            "0.5 * {x} * (1 + torch.tanh((2 / torch.pi) ** 0.5 * ({x} + 0.044715 * {x} ** 3)))",
            "0.5 * {x} * (1 + torch.tanh((2 / torch.pi) ** 0.5 * ({x} + 0.044715 * torch.pow({x}, 3))))",
        ],
        [],
    ),
    "quick gelu": (
        "act(lambda t: t * torch.sigmoid(1.702 * t), {x})",
        ["{x} * torch.sigmoid(1.702 * {x})", "{x} * (1.702 * {x}).sigmoid()"],
        ["{o}.mul_(torch.sigmoid(1.702 * {o}))"],
    ),
    "hard swish": (
        "act(F.hardswish, {x})",
        [
            "F.hardswish({x})",
            "{x} * F.relu6({x} + 3) / 6",
            "{x} * F.hardsigmoid({x})",
            "{x} * (({x} + 3).clamp(0, 6) / 6)",
            "nn.Hardswish()({x})",
            "{x} * (F.relu6({x} + 3.0) * (1 / 6))",
            "{x} * F.hardtanh({x} / 6 + 0.5, 0.0, 1.0)",
            "{x} * (F.relu({x} + 3) - F.relu({x} - 3)) / 6",
            "{x} * (F.relu({x} / 6 + 0.5) - F.relu({x} / 6 - 0.5))",
            "{x} * (({x} + torch.full_like({x}, 3.0)).clamp(0, 6) / 6)",
            "{x} * torch.clamp(0.5 + {x} / 6, 0, 1)",
            "{x} * torch.clamp({x} / 6 + torch.tensor(0.5, dtype={x}.dtype), 0, 1)",
            "{x} * torch.clamp(torch.add({x} / 6, torch.full({x}.shape, 0.5, dtype={x}.dtype)), 0, 1)",
            "{x} * (1 - F.relu6(3 - {x}) / 6)",
        ],
        ["F.hardswish({o}, inplace=True)", "{o} *= F.relu6({o} + 3) / 6", "{o}.mul_(F.hardsigmoid({o}))"],
    ),
    "softsign": (
        "act(F.softsign, {x})",
        [
            "F.softsign({x})",
            "{x} / (1 + {x}.abs())",
            "{x} / (1 + torch.abs({x}))",
            "torch.div({x}, {x}.abs() + 1)",
            "{x} * (1 / (1 + {x}.abs()))",
            "{x} * ({x}.abs() + 1).reciprocal()",
        ],
        ["{o} /= 1 + {o}.abs()", "{o}.div_({o}.abs() + 1)"],
    ),
    "elu": (
        "act(F.elu, {x})",
        [
            "F.elu({x})",
            "nn.ELU()({x})",
            "torch.where({x} > 0, {x}, torch.expm1({x}))",
            "F.relu({x}) - F.relu(-torch.expm1({x}))",
            "F.relu({x}) + torch.expm1(-F.relu(-{x}))",
            "F.celu({x})",
        ],
        ["F.elu_({o})", "F.elu({o}, inplace=True)"],
    ),
    "softshrink": (
        "act(lambda t: F.softshrink(t, 0.1), {x})",
        ["F.softshrink({x}, 0.1)", "nn.Softshrink(0.1)({x})"],
        [],
    ),
    "hardshrink": (
        "act(lambda t: F.hardshrink(t, 0.1), {x})",
        ["F.hardshrink({x}, 0.1)", "{x} * ({x}.abs() > 0.1)", "torch.where({x}.abs() > 0.1, {x}, 0.0)"],
        ["{o}[{o}.abs() <= 0.1] = 0"],
    ),
    "square": (
        "act(torch.square, {x})",
        [
            "{x} ** 2",
            "{x}.square()",
            "{x} * {x}",
            "{x}.pow(2)",
            "torch.mul({x}, {x})",
            "torch.einsum('...,...->...', {x}, {x})",
            "torch.addcmul(torch.zeros_like({x}), {x}, {x})",
            "{x} * {x}.clone()",
            "{x}.abs() ** 2",
            "torch.pow({x}, 2.0)",
            "torch.float_power({x}, 2)",
        ],
        ["{o}.pow_(2)", "{o}.square_()", "{o} **= 2", "{o} *= {o}", "{o}.mul_({o})"],
    ),
    "tanhshrink": (
        "act(F.tanhshrink, {x})",
        ["F.tanhshrink({x})", "{x} - {x}.tanh()", "{x} - torch.tanh({x})"],
        ["{o} -= {o}.tanh()", "{o}.sub_(torch.tanh({o}))"],
    ),
    "log1p of relu": (
        "act(lambda t: torch.log1p(t.clamp(min=0)), {x})",
        ["torch.log1p({x}.relu())", "{x}.clamp(min=0).log1p()"],
        ["{o}.clamp_(min=0).log1p_()"],
    ),
    "sqrt of abs": (
        "act(lambda t: t.abs().sqrt(), {x})",
        ["{x}.abs().sqrt()", "torch.sqrt(torch.abs({x}))", "{x}.abs() ** 0.5", "{x}.abs().pow(0.5)"],
        ["{o}.abs_().sqrt_()"],
    ),
    "clamp": (
        "act(lambda t: t.clamp(-0.7, 0.9), {x})",
        [
            "{x}.clamp(-0.7, 0.9)",
            "torch.clamp({x}, -0.7, 0.9)",
            "F.hardtanh({x}, -0.7, 0.9)",
            "torch.clip({x}, min=-0.7, max=0.9)",
            "{x}.clamp(min=-0.7).clamp(max=0.9)",
        ],
        ["{o}.clamp_(-0.7, 0.9)", "F.hardtanh_({o}, -0.7, 0.9)"],
    ),
}


@step(5)
def activation(p: Program) -> None:
    name = p.choose(ACTIVATIONS)
    plain, ways, inplace = ACTIVATIONS[name]
    # values that were cut to one are exactly equal, and can cancel exactly
    look = "bounded" if name == "clamp" else "plain"
    p.put(name, plain, ways, inplace, made="relu", look=look, x=p.pick())


@step(1)
def tanh(p: Program) -> None:
    p.put(
        "tanh",
        "act(torch.tanh, {x})",
        ["{x}.tanh()", "torch.tanh({x})", "F.tanh({x})", "nn.Tanh()({x})", "2 * torch.sigmoid(2 * {x}) - 1"][:4],
        ["{o}.tanh_()", "torch.tanh_({o})"],
        look="bounded",
        x=p.pick(),
    )


# ------------------------------------------------------------------ numbers and constants


@step(2)
def scale(p: Program) -> None:
    x = p.pick()
    c = p.choose([-1.5, 0.4, 0.7, 2.0])
    p.put(
        "scale",
        "{x} * {c}",
        [
            "{x} * {c}",
            "{c} * {x}",
            "{x}.mul({c})",
            "torch.mul({x}, {c})",
            "{x} / (1 / {c})",
            "torch.lerp(torch.zeros_like({x}), {x}, {c})",
            "{x} + {x} * ({c} - 1)",
            "torch.add({x}, {x}, alpha={c} - 1)",
            "torch.sub({x}, {x}, alpha=1 - {c})",
            "-(-{x} * {c})",
            "torch.addcmul({x}, {x}, torch.full_like({x}, {c} - 1))",
            "torch.addcmul(torch.zeros_like({x}), {x}, torch.ones_like({x}), value={c})",
            "{x}.true_divide(1 / {c})",
            "torch.rsub({x}, {x}, alpha=1 - {c}).neg() + {x} * 0 + {x} * 0" if False else "{x}.multiply({c})",
            "torch.einsum('...,->...', {x}, torch.tensor({c}, dtype={x}.dtype))",
            "torch.addcdiv(torch.zeros_like({x}), {x}, torch.full_like({x}, 1 / {c}))",
            "torch.complex({x} * {c}, {x}).real",
        ],
        [
            "{o} *= {c}",
            "{o}.mul_({c})",
            "{o}.div_(1 / {c})",
            "{o} /= 1 / {c}",
            "{o}.lerp_(torch.zeros_like({o}), 1 - {c})",
            "{o}.add_({o}, alpha={c} - 1)",
        ],
        made=x.made if x.made != "layer" else "",
        x=x,
        c=c,
    )


@step(1)
def scale_by_tensor(p: Program) -> None:
    x = p.pick(3, 4, test=lambda v: min(v.shape[1:]) > 1)
    k = p.const(p.randn(*x.shape[1:]))
    p.put(
        "tensor times",
        "{x} * {k}",
        [
            "{x} * {k}",
            "{k} * {x}",
            "torch.mul({x}, {k})",
            "{x} * {k}.expand_as({x})",
            "torch.addcmul(torch.zeros_like({x}), {x}, {k}.expand_as({x}))",
            "{x} / {k}.reciprocal()",
            "torch.einsum('b...,...->b...', {x}, {k})",
            "torch.einsum('...,b...->b...', {k}, {x})",
            "torch.where({k} > 0, {x} * {k}, {x} * {k})",
        ],
        ["{o} *= {k}", "{o}.mul_({k})"],
        x=x,
        k=k,
    )


@step(1)
def mask(p: Program) -> None:
    x = p.pick()
    k = p.const(p.randn(*x.shape[1:]) > -0.5)
    p.put(
        "mask",
        "{x} * {k}",
        [
            "{x} * {k}",
            "torch.where({k}, {x}, 0.0)",
            "{x}.masked_fill(~{k}, 0.0)",
            "{x} * {k}.to({x}.dtype)",
            "torch.where({k}, {x}, torch.zeros_like({x}))",
            "{x}.where({k}, torch.zeros_like({x}))",
            "torch.zeros_like({x}).masked_scatter({k}.expand_as({x}), {x}[{k}.expand_as({x})])",
            "{o} = torch.zeros_like({x})\n{o}[:, {k}] = {x}[:, {k}]",
            "{o} = torch.zeros_like({x})\n{o}[{k}.expand_as({x})] = {x}[{k}.expand_as({x})]",
        ],
        ["{o} *= {k}", "{o}.masked_fill_(~{k}, 0)", "{o}[:, ~{k}] = 0", "{o}[~{k}.expand_as({o})] = 0.0"],
        x=x,
        k=k,
    )


@step(1.5)
def shift(p: Program) -> None:
    x = p.pick()
    c = p.choose([-0.6, 0.3, 0.5])
    p.put(
        "shift",
        "{x} + {c}",
        [
            "{x} + {c}",
            "{c} + {x}",
            "{x}.add({c})",
            "torch.add({x}, {c})",
            "{x} - (-{c})",
            "torch.sub({x}, -{c})",
            "{x} + torch.full_like({x}, {c})",
            "torch.lerp({x} * 2, torch.full_like({x}, 2 * {c}), 0.5)",
            "torch.rsub(-{x}, {c})",
            "{x} + torch.tensor({c}, dtype={x}.dtype)",
            "{c} - (-{x})",
            "torch.add(torch.full_like({x}, {c} / 2), {x}, alpha=0.5) + {x} / 2 + {c} / 2",
        ],
        ["{o} += {c}", "{o}.add_({c})", "{o}.sub_(-{c})"],
        x=x,
        c=c,
        look="shifted",
    )


@step(1.5)
def shift_by_tensor(p: Program) -> None:
    x = p.pick(3, 4, test=lambda v: min(v.shape[1:]) > 1)
    k = p.const(p.randn(*x.shape[1:]) * 0.3)
    p.put(
        "tensor plus",
        "{x} + {k}",
        [
            "{x} + {k}",
            "{k} + {x}",
            "{x} - (-{k})",
            "torch.add({k}.expand_as({x}), {x})",
            "torch.add({x}, {k}, alpha=1)",
            "torch.lerp(2 * {x}, 2 * {k}.expand_as({x}), 0.5)",
            "torch.stack([{x}, {k}.expand_as({x})]).sum(0)",
        ],
        ["{o} += {k}", "{o}.add_({k})"],
        x=x,
        k=k,
        made="sum",
    )


# ------------------------------------------------------------------ two signals


@step(4)
def add(p: Program) -> None:
    x = p.pick(plain=False)
    y = p.pick(shape=x.shape, plain=False)
    a = p.choose([1, 1, -1, 0.5])
    ways = [
        "{x} + {a} * {y}",
        "torch.add({x}, {y}, alpha={a})",
        "{x} - (-{a}) * {y}",
        "torch.stack([{x}, {a} * {y}]).sum(0)",
        "sum([{x}, {a} * {y}])",
        "torch.sub({x}, {y}, alpha=-{a})",
        "torch.addcmul({x}, {y}, torch.full_like({y}, {a}))",
        "torch.lerp({x} * 2, {y} * (2 * {a}), 0.5)",
        "torch.rsub({y}, {x}, alpha=1) + {y} * (1 + {a})",
        "torch.stack([{x}, {a} * {y}], -1).mean(-1) * 2",
        "torch.stack([{x}, {y} * {a}], 1).sum(dim=1)",
        "torch.addcdiv({x}, {y}, torch.full_like({y}, 1 / {a}))",
        "torch.cat([{x}[None], {a} * {y}[None]]).sum(0)",
        "{o} = torch.zeros_like({x})\n{o} += {x}\n{o} += {a} * {y}",
        "{o} = torch.empty_like({x})\n{o}.copy_({x})\n{o}.add_({y}, alpha={a})",
        "{o} = torch.zeros_like({x})\n{o}[:] = {x}\n{o}[...] += {a} * {y}",
        "{x}.index_add(1, torch.arange({n}), {y}, alpha={a})",
        (
            "{x}.scatter_add(1, torch.zeros_like({y}, dtype=torch.long) + torch.arange({n}).view(-1, *[1] * "
            "({y}.dim() - 2)), {a} * {y})"
        ),
        "{o} = {x}.clone()\nfor i in range({n}):\n    {o}[:, i] += {a} * {y}[:, i]",
        "torch.where(torch.tensor(True), {x} + {a} * {y}, {x})",
        "{o} = {x} * 1\n{o}[:, [i for i in range({n})]] += {a} * {y}",
        "torch.complex({x}, {y}).real + {a} * torch.complex({x}, {y}).imag",
        "(torch.view_as_complex(torch.stack([{x}, {y}], -1)) * complex(1, -({a}))).real",
    ]
    inplace = [
        "{o} += {a} * {y}",
        "{o}.add_({y}, alpha={a})",
        "{o}.sub_({y}, alpha=-({a}))",
        "{o}[:] += {a} * {y}",
        "{o}.index_add_(1, torch.arange({n}), {y}, alpha={a})",
        "{o}.addcmul_({y}, torch.full_like({y}, {a}))",
        "for i in range({n}):\n    {o}[:, i] += {a} * {y}[:, i]",
        "{o}[:, torch.arange({n})] += {a} * {y}",
        "{o}.index_put_((slice(None), ) and (torch.arange(len({o})),), {a} * {y}, accumulate=True)",
        "for a, b in zip({o}.unbind(1), {y}.unbind(1)):\n    a += {a} * b",
    ]
    look = "bounded" if "bounded" in (x.look, y.look) else "plain"
    if x.look != "plain" or y.look != "plain":
        look = "bounded"
    p.put(
        "add",
        "{x} + {a} * {y}",
        ways,
        inplace if y.memory != x.memory else [],
        look=look,
        made="sum",
        x=x,
        y=y,
        a=a,
        n=x.shape[1],
    )


@step(1.5)
def multiply(p: Program) -> None:
    x = p.pick()
    y = p.other(x)
    if x.name == y.name:
        raise Reject
    p.put(
        "product",
        "half(torch.mul, {x}, {y})",
        [
            "{x} * {y}",
            "{y} * {x}",
            "torch.mul({x}, {y})",
            "{x}.mul({y})",
            "torch.einsum('...,...->...', {x}, {y})",
            "torch.addcmul(torch.zeros_like({x}), {x}, {y})",
            "{o} = {x} + 0\n{o} *= {y}",
            "{x}.multiply({y})",
            "torch.stack([{x}, {y}]).prod(0)",
            "torch.prod(torch.stack([{x}, {y}], -1), -1)",
        ],
        ["{o} *= {y}", "{o}.mul_({y})"] if x.memory != y.memory else [],
        x=x,
        y=y,
    )


@step(1)
def matrix_multiply(p: Program) -> None:
    x = p.pick(3)
    y = p.pick(3, test=lambda v: v.shape[2] == x.shape[2] and v.name != x.name)
    p.put(
        "matmul",
        "half(lambda a, b: a @ b.mT, {x}, {y})",
        [
            "{x} @ {y}.mT",
            "torch.bmm({x}, {y}.transpose(1, 2))",
            "torch.einsum('bid,bjd->bij', {x}, {y})",
            "torch.matmul({x}, {y}.mT)",
            "torch.baddbmm(torch.zeros(1, dtype={x}.dtype), {x}, {y}.mT, beta=0)",
            "torch.baddbmm(torch.zeros(1, dtype={x}.dtype), {x}, {y}.mT, alpha=2) / 2",
            "({x}[:, :, None] * {y}[:, None]).sum(-1)",
            "torch.einsum('bid,bjd->bij', [{x}, {y}])",
            "torch.stack([a @ b.T for a, b in zip({x}, {y})])",
            "{x}.bmm({y}.permute(0, 2, 1))",
        ],
        x=x,
        y=y,
    )


@step(0.7)
def outer(p: Program) -> None:
    x, y = p.pick(2), p.pick(2)
    if x.name == y.name:
        raise Reject
    p.put(
        "outer",
        "half(lambda a, b: a[:, :, None] * b[:, None], {x}, {y})",
        [
            "{x}[:, :, None] * {y}[:, None]",
            "torch.einsum('bi,bj->bij', {x}, {y})",
            "{x}.unsqueeze(2) @ {y}.unsqueeze(1)",
            "torch.bmm({x}[..., None], {y}[:, None, :])",
            "torch.stack([torch.outer(a, b) for a, b in zip({x}, {y})])",
        ],
        x=x,
        y=y,
    )


@step(1)
def with_constant(p: Program) -> None:
    """Products with constants that are no plain layer."""
    x = p.pick(2, 3)
    c = x.shape[-1]
    k, w = p.const(p.randn(c)), p.const(p.randn(c, 3) * 0.6)
    if x.rank == 2:
        p.put(
            "constant outer",
            "{x}[:, :, None] * {k}",
            ["{x}[:, :, None] * {k}", "torch.einsum('bi,j->bij', {x}, {k})"],
            x=x,
            k=k,
        )
    else:
        t = p.const(p.randn(4, x.shape[1]) * 0.6)
        p.put(
            "mix",
            "layer(lambda a, w: w @ a, {x}, {t})",
            [
                "{t} @ {x}",
                "torch.matmul({t}, {x})",
                "torch.einsum('ot,btd->bod', {t}, {x})",
                "({x}.mT @ {t}.T).mT",
                "torch.bmm({t}.expand(len({x}), -1, -1), {x})",
                "F.linear({x}.mT, {t}).mT",
                "torch.tensordot({x}, {t}, dims=([1], [1])).transpose(1, 2)",
                "F.conv1d({x}, {t}[:, :, None])",
            ],
            made="layer",
            x=x,
            t=t,
        )
    del w


# ------------------------------------------------------------------ gates

GATES: dict[str, tuple[str, list[str]]] = {
    "sigmoid": (
        "torch.sigmoid({s})",
        [
            "torch.sigmoid({s})",
            "{s}.sigmoid()",
            "1 / (1 + torch.exp(-{s}))",
            "F.sigmoid({s})",
            "torch.special.expit({s})",
            "(1 + (-{s}).exp()).reciprocal()",
            "0.5 * (1 + torch.tanh({s} / 2))",
            "(torch.tanh({s} * 0.5) + 1) / 2",
            "torch.exp(F.logsigmoid({s}))",
            "{s}.exp() / (1 + {s}.exp())",
            "1 - torch.sigmoid(-{s})",
            "torch.sigmoid_({s}.clone())",
            "torch.softmax(torch.stack([{s}, torch.zeros_like({s})]), 0)[0]",
            "nn.Sigmoid()({s})",
        ],
    ),
    "hard sigmoid": (
        "F.hardsigmoid({s})",
        [
            "F.hardsigmoid({s})",
            "F.relu6({s} + 3) / 6",
            "({s} + 3).clamp(0, 6) / 6",
            "torch.clamp({s} / 6 + 0.5, 0, 1)",
            "F.hardtanh({s} / 6 + 0.5, 0.0, 1.0)",
            "torch.clamp({s} * (1 / 6) + 0.5, min=0, max=1)",
            "(F.relu({s} + 3) - F.relu({s} - 3)) / 6",
            "F.relu({s} / 6 + 0.5) - F.relu({s} / 6 - 0.5)",
            "torch.clamp({s} / 6 + torch.full_like({s}, 0.5), 0, 1)",
            "torch.minimum(torch.maximum({s} + 3, torch.tensor(0.0)), torch.tensor(6.0)) / 6",
            "torch.clamp(torch.full_like({s}, 0.5) + {s} / 6, 0, 1)",
            "F.relu6(3 + {s}).div(6)",
            "F.relu6({s} + 3).mul_(1 / 6)",
            "({s} + 3).clamp_(0, 6).div_(6)",
            "nn.Hardsigmoid()({s})",
            "nn.ReLU6()({s} + 3) / 6",
            "torch.min(torch.max({s} / 6 + 0.5, torch.zeros_like({s})), torch.ones_like({s}))",
            "({s} + 3).clamp(min=0).clamp(max=6) / 6",
            "1 - torch.clamp(0.5 - {s} / 6, 0, 1)",
            "F.hardsigmoid({s}.clone(), inplace=True)",
            "F.threshold({s} + 3, 0.0, 0.0).clamp(max=6) / 6",
            "({s} / 6).add(0.5).clamp(0, 1)",
        ],
    ),
    "softmax": (
        "torch.softmax({s}, 1)",
        [
            "torch.softmax({s}, 1)",
            "F.softmax({s}, dim=1)",
            "{s}.softmax(1)",
            "nn.Softmax(1)({s})",
            "torch.exp({s}) / torch.exp({s}).sum(1, keepdim=True)",
            "F.log_softmax({s}, 1).exp()",
            "F.softmin(-{s}, 1)",
        ],
    ),
    "tanh plus one": ("torch.tanh({s}) + 1", ["torch.tanh({s}) + 1", "1 + {s}.tanh()", "torch.add({s}.tanh(), 1)"]),
    "softplus-free exp": ("torch.exp(-{s}.abs())", ["torch.exp(-{s}.abs())", "(-{s}.abs()).exp()"]),
    "gaussian": ("torch.exp(-{s}.square())", ["torch.exp(-{s} ** 2)", "torch.exp(-({s} * {s}))"]),
}

#: Ways to weigh {x} of rank 4 by a gate {g} of shape (B, C).
WEIGHINGS = [
    "{x} * {g}[:, :, None, None]",
    "{g}[:, :, None, None] * {x}",
    "{x} * {g}.view(*{g}.shape, 1, 1)",
    "{x} * {g}[:, :, None, None].expand_as({x})",
    "{x}.mul({g}.unsqueeze(-1).unsqueeze(-1))",
    "torch.einsum('bchw,bc->bchw', {x}, {g})",
    "{x} * {g}[..., None, None].expand(-1, -1, *{x}.shape[2:])",
    "torch.mul(*torch.broadcast_tensors({x}, {g}[:, :, None, None]))",
    "{x} * {g}[:, :, None, None].repeat(1, 1, *{x}.shape[2:])",
    "torch.lerp(torch.zeros_like({x}), {x}, {g}[:, :, None, None].expand_as({x}))",
    "torch.addcmul(torch.zeros_like({x}), {x}, {g}[:, :, None, None].expand_as({x}))",
    "(torch.diag_embed({g}) @ {x}.flatten(2)).view({x}.shape)",
    "{x} * {g}.reshape(*{g}.shape, 1, 1).tile(1, 1, *{x}.shape[2:])",
    "{o} = {x}.clone()\n{o} *= {g}[:, :, None, None]",
    "{o} = {x} * 1\n{o}.mul_({g}[:, :, None, None])",
    "torch.stack([{x}[:, i] * {g}[:, i, None, None] for i in range({x}.shape[1])], 1)",
    "torch.cat([a * b[..., None, None] for a, b in zip({x}.split(1, 1), {g}.split(1, 1))], 1)",
    "{x} * torch.ones_like({x}) * {g}[:, :, None, None]",
    "({x}.flatten(2) * {g}[..., None]).view_as({x})",
    "({x}.movedim(1, -1) * {g}[:, None, None]).movedim(-1, 1)",
    "torch.einsum('bchw,bcd->bdhw', {x}, torch.diag_embed({g}))",
    "torch.bmm(torch.diag_embed({g}), {x}.flatten(2)).unflatten(2, {x}.shape[2:])",
    "{x} * torch.nn.functional.interpolate({g}[:, :, None, None], {x}.shape[2:])",
    "{x} * {g}[:, :, None, None].broadcast_to({x}.shape)",
    "{x} / (1 / {g}[:, :, None, None])",
    "{o} = torch.zeros_like({x})\n{o}.addcmul_({x}, {g}[:, :, None, None])",
    "torch.stack([a * b[:, None, None] for a, b in zip({x}, {g})])",
    "{x}.mul({g}[:, :, None, None].type_as({x}))",
    "{x} * torch.atleast_3d({g}).unsqueeze(-1)",
    "{x} * {g}.flatten(1)[:, :, None, None].contiguous()",
    "{x} * {g}.repeat_interleave({x}[0, 0].numel(), 1).view({x}.shape)",
]


@step(3)
def gate(p: Program) -> None:
    """Squeeze and excitation, or an attention over channels."""
    x = p.pick(4)
    plain, ways, names = linear_spellings(p, x.shape[1], x.shape[1], True, 2)
    mean = p.put(
        "squeeze",
        "{x}.mean((2, 3))",
        [
            "{x}.mean((2, 3))",
            "F.adaptive_avg_pool2d({x}, 1).flatten(1)",
            "{x}.flatten(2).mean(-1)",
            "F.avg_pool2d({x}, {x}.shape[2:])[:, :, 0, 0]",
        ],
        x=x,
    )
    s = p.put("excite", plain, ways, x=mean, **names)
    if s.name in p.dead:
        raise Reject
    name = p.choose(GATES)
    plain, ways = GATES[name]
    g = p.put(name, f"const({plain})", ways, look="gate", x=s, s=s)
    p.put("weigh", "{x} * {g}[:, :, None, None]", WEIGHINGS, x=x, g=g)


@step(2)
def gate_like(p: Program) -> None:
    """A gate of the same shape as the signal: gated linear units, highways."""
    x = p.pick()
    plain, ways, names = linear_spellings(p, x.shape[-1], x.shape[-1], True, x.rank)
    s = p.put("gate's layer", plain, ways, x=x, **names)
    name = p.choose([k for k in GATES if k != "softmax"])
    plain, ways = GATES[name]
    g = p.put(name, f"const({plain})", ways, look="gate", x=s, s=s)
    if p.chance(0.3):
        y = p.other(x)
        p.put(
            "highway",
            "{x} * {g} + {y} * (1 - {g})",
            [
                "{x} * {g} + {y} * (1 - {g})",
                "{g} * {x} + (1 - {g}) * {y}",
                "torch.lerp({y}, {x}, {g})",
                "{y} * (1 - {g}) + {g} * {x}",
                "{g} * {x} + {y} - {g} * {y}",
                "torch.add({x} * {g}, {y} * (1.0 - {g}))",
                "torch.addcmul({y} * (1 - {g}), {x}, {g})",
                "{y} + {g} * ({x} - {y})",
            ],
            made="sum",
            x=x,
            y=y,
            g=g,
        )
    else:
        p.put(
            "gated",
            "{x} * {g}",
            [
                "{x} * {g}",
                "{g} * {x}",
                "torch.mul({g}, {x})",
                "torch.einsum('...,...->...', {x}, {g})",
                "torch.addcmul(torch.zeros_like({x}), {g}, {x})",
                "{o} = {g}\n{o} *= {x}",
                "{o} = {g}.mul_({x})",
                "{x}.mul({g})",
                "{o} = {x}.clone()\n{o}.mul_({g})",
                "torch.lerp(torch.zeros_like({x}), {x}, {g})",
                "{x} / (1 / {g})",
                "{g}.view_as({x}) * {x}",
                "({x}.flatten(1) * {g}.flatten(1)).view({x}.shape)",
                "{g}.expand_as({x}) * {x}",
                "{x}.roll(1, 1).mul({g}.roll(1, 1)).roll(-1, 1)",
            ],
            ["{o} *= {g}", "{o}.mul_({g})"],
            x=x,
            g=g,
        )
    p.dead.add(g.name)


@step(1)
def glu(p: Program) -> None:
    x = p.pick(2, 3, 4, test=lambda v: v.shape[1] % 2 == 0)
    p.put(
        "glu",
        "{x}.chunk(2, 1)[0] * const(torch.sigmoid({x}.chunk(2, 1)[1]))",
        [
            "F.glu({x}, 1)",
            "{x}.chunk(2, 1)[0] * {x}.chunk(2, 1)[1].sigmoid()",
            "{o}, s = {x}.chunk(2, dim=1)\n{o} = {o} * torch.sigmoid(s)",
            "{o}, s = {x}.tensor_split(2, 1)\n{o} = s.sigmoid() * {o}",
            "nn.GLU(1)({x})",
            "{x}[:, :{h}] * torch.sigmoid({x}[:, {h}:])",
            "{o} = {x}.clone()\n{o}[:, :{h}] *= {o}[:, {h}:].sigmoid()\n{o} = {o}[:, :{h}]",
        ],
        x=x,
        h=x.shape[1] // 2,
    )


# ------------------------------------------------------------------ attention


@step(1.5)
def attention(p: Program) -> None:
    x = p.pick(3)
    d = x.shape[-1]
    q, k, v = (
        p.put(
            n,
            "layer(lambda a, w: a @ w.T, {x}, {w})",
            ["{x} @ {w}.T", "F.linear({x}, {w})"],
            x=x,
            w=p.const(p.randn(d, d) / d**0.5),
        )
        for n in "qkv"
    )
    scores = "half(lambda a, b: a @ b.mT, {q}, {k}) / {r}"
    plain = f"half(lambda a, b: a @ b, torch.softmax({scores}, -1), {{v}})"
    p.put(
        "attention",
        plain,
        [
            "torch.softmax({q} @ {k}.mT / {r}, -1) @ {v}",
            "F.scaled_dot_product_attention({q}, {k}, {v}, scale=1 / {r})",
            "torch.einsum('bij,bjd->bid', torch.softmax(torch.einsum('bid,bjd->bij', {q}, {k}) / {r}, -1), {v})",
            "torch.bmm(F.softmax(torch.bmm({q} / {r}, {k}.transpose(1, 2)), dim=-1), {v})",
            "F.scaled_dot_product_attention({q}[:, None], {k}[:, None], {v}[:, None], scale=1 / {r})[:, 0]",
            (
                "torch.matmul(torch.baddbmm(torch.zeros(1, dtype={q}.dtype), {q}, {k}.mT, beta=0, alpha=1 / "
                "{r}).softmax(-1), {v})"
            ),
            "({k} @ {q}.mT / {r}).softmax(1).mT @ {v}",
            "{o} = {q} @ {k}.mT\n{o} /= {r}\n{o} = {o}.softmax(-1) @ {v}",
            "(({q} * (1 / {r})) @ {k}.transpose(-2, -1)).softmax(dim=-1).matmul({v})",
        ],
        x=x,
        q=q,
        k=k,
        v=v,
        r=2.0,
    )


# ------------------------------------------------------------------ normalisations by statistics

STATISTICS: dict[str, tuple[str, list[str]]] = {
    "rms norm": (
        "{x} * const(torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 0.1))",
        [
            "{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 0.1)",
            "F.rms_norm({x}, {x}.shape[-1:], eps=0.1)",
            "{x} / torch.sqrt({x}.square().mean(-1, keepdim=True) + 0.1)",
            "{x} / ({x} ** 2).mean(-1, keepdim=True).add(0.1).sqrt()",
            "{x} * ({x}.pow(2).sum(-1, keepdim=True) / {x}.shape[-1] + 0.1).rsqrt()",
            "{x} * ({x} * {x}).mean(-1, keepdim=True).add(0.1).pow(-0.5)",
            "{x}.div(({x}.pow(2).mean(dim=-1, keepdim=True) + 0.1) ** 0.5)",
            "nn.RMSNorm({x}.shape[-1:], eps=0.1, dtype=torch.float64)({x})",
            "{o} = {x}.clone()\n{o} /= ({x}.square().mean(-1, keepdim=True) + 0.1).sqrt()",
        ],
    ),
    "layer norm": (
        "({x} - {x}.mean(-1, keepdim=True)) * const(torch.rsqrt({x}.var(-1, unbiased=False, keepdim=True) + 0.1))",
        [
            "F.layer_norm({x}, {x}.shape[-1:], eps=0.1)",
            "({x} - {x}.mean(-1, keepdim=True)) / torch.sqrt({x}.var(-1, unbiased=False, keepdim=True) + 0.1)",
            (
                "({x} - {x}.mean(-1, keepdim=True)) * torch.rsqrt(({x} - {x}.mean(-1, "
                "keepdim=True)).pow(2).mean(-1, keepdim=True) + 0.1)"
            ),
            "nn.LayerNorm({x}.shape[-1:], eps=0.1, dtype=torch.float64)({x})",
            "{o} = {x} - {x}.mean(-1, keepdim=True)\n{o} = {o} / ({o}.square().mean(-1, keepdim=True) + 0.1).sqrt()",
            "{o} = {x} - {x}.mean(-1, keepdim=True)\n{o} /= ({x}.var(-1, correction=0, keepdim=True) + 0.1).sqrt()",
            "v, m = torch.var_mean({x}, -1, unbiased=False, keepdim=True)\n{o} = ({x} - m) / (v + 0.1).sqrt()",
            "{x}.sub({x}.mean(-1, True)).div({x}.var(-1, False, True).add(0.1).sqrt())",
            "F.normalize({x} - {x}.mean(-1, keepdim=True), dim=-1) * {x}.shape[-1] ** 0.5"
            if False
            else "torch.layer_norm({x}, {x}.shape[-1:], eps=0.1)",
            "torch.native_layer_norm({x}, {x}.shape[-1:], None, None, 0.1)[0]",
        ],
    ),
    "unit length": (
        "{x} / const({x}.norm(dim=1, keepdim=True))",
        [
            "F.normalize({x}, dim=1)",
            "{x} / {x}.norm(dim=1, keepdim=True)",
            "{x} / torch.linalg.vector_norm({x}, dim=1, keepdim=True)",
            "{x} * {x}.pow(2).sum(1, keepdim=True).rsqrt()",
            "{x} / {x}.square().sum(1, keepdim=True).sqrt()",
            "{x}.div({x}.norm(2, 1, True))",
            "{x} / torch.norm({x}, dim=1, keepdim=True)",
            "{x} / {x}.norm(dim=1, keepdim=True).clamp(min=1e-12)",
            "{x} / {x}.norm(dim=1, keepdim=True).expand_as({x})",
            "{o} = {x}.clone()\n{o} /= {x}.norm(dim=1, keepdim=True)",
            "{x} * (1 / {x}.norm(dim=1, keepdim=True))",
            "{x} * {x}.norm(dim=1, keepdim=True).reciprocal()",
            "F.normalize({x}, p=2.0, dim=1)",
            "torch.stack([t / t.norm(dim=0, keepdim=True) for t in {x}])",
            "{x} / (torch.einsum('bc...,bc...->b...', {x}, {x}).sqrt().unsqueeze(1))",
        ],
    ),
    "by the mean size": (
        "{x} / const({x}.abs().mean(1, keepdim=True) + 0.2)",
        [
            "{x} / ({x}.abs().mean(1, keepdim=True) + 0.2)",
            "{x}.div(0.2 + {x}.abs().mean(dim=1, keepdim=True))",
            "{x} * ({x}.abs().mean(1, keepdim=True) + 0.2).reciprocal()",
            "{x} / ({x}.abs().sum(1, keepdim=True) / {x}.shape[1] + 0.2)",
            "{x} / ({x}.norm(p=1, dim=1, keepdim=True) / {x}.shape[1] + 0.2)",
        ],
    ),
    "by the largest": (
        "{x} / const({x}.abs().amax(1, keepdim=True) + 0.2)",
        [
            "{x} / ({x}.abs().amax(1, keepdim=True) + 0.2)",
            "{x}.div({x}.abs().max(1, keepdim=True)[0] + 0.2)",
            "{x} / (0.2 + {x}.abs().max(dim=1, keepdim=True).values)",
            "{x} / ({x}.norm(float('inf'), 1, True) + 0.2)",
        ],
    ),
    "centred": (
        "{x} - {x}.mean(1, keepdim=True)",
        [
            "{x} - {x}.mean(1, keepdim=True)",
            "{x}.sub({x}.mean(1, True))",
            "{x} - {x}.sum(1, keepdim=True) / {x}.shape[1]",
            "torch.sub({x}, {x}.mean(1, keepdim=True).expand_as({x}))",
            "{o} = {x}.clone()\n{o} -= {x}.mean(1, keepdim=True)",
        ],
    ),
    "standardised": (
        "({x} - {x}.mean(1, keepdim=True)) / const({x}.std(1, keepdim=True) + 0.1)",
        [
            "({x} - {x}.mean(1, keepdim=True)) / ({x}.std(1, keepdim=True) + 0.1)",
            "({x} - {x}.mean(1, keepdim=True)) / ({x}.var(1, keepdim=True).sqrt() + 0.1)",
            "s, m = torch.std_mean({x}, 1, keepdim=True)\n{o} = ({x} - m) / (s + 0.1)",
            "({x} - {x}.mean(1, True)) * (1 / ({x}.std(1, keepdim=True) + 0.1))",
            "({x} - {x}.mean(1, keepdim=True)).div_({x}.std(1, keepdim=True) + 0.1)",
            "{x} / ({x}.std(1, keepdim=True) + 0.1) - {x}.mean(1, keepdim=True) / ({x}.std(1, keepdim=True) + 0.1)",
        ],
    ),
    "softmax pooling free": ("{x} * 1.0", ["{x} * 1.0"]),
}


@step(3)
def by_statistics(p: Program) -> None:
    name = p.choose(STATISTICS)
    plain, ways = STATISTICS[name]
    x = p.pick(test=lambda v: v.shape[1] > 1 and v.shape[-1] > 1)
    p.put(name, plain, ways, x=x, made="statistics")


@step(1)
def group_norm(p: Program) -> None:
    x = p.pick(3, 4, test=lambda v: v.shape[1] % 2 == 0)
    c = x.shape[1]
    g, b = p.const(p.rand(c)), p.const(p.randn(c) * 0.3)
    v = "-1" + ", 1" * (x.rank - 2)
    grouped = "{x}.reshape(len({x}), {n}, -1)"
    n = p.choose([1, 2])
    normed = "(t - t.mean(-1, keepdim=True)) * const(torch.rsqrt(t.var(-1, unbiased=False, keepdim=True) + 0.1))"
    plain = f"t = {grouped}\n{{o}} = ({normed}).reshape({{x}}.shape) * {{g}}.view({v}) + {{b}}.view({v})"
    p.put(
        "group norm",
        plain,
        [
            "F.group_norm({x}, {n}, {g}, {b}, 0.1)",
            plain.replace("const", ""),
            f"F.group_norm({{x}}, {{n}}, eps=0.1) * {{g}}.view({v}) + {{b}}.view({v})",
            (
                f"F.layer_norm({grouped}, [{{x}}[0].numel() // {{n}}], eps=0.1).view_as({{x}}) * {{g}}.view({v}) "
                f"+ {{b}}.view({v})"
            ),
        ],
        x=x,
        g=g,
        b=b,
        n=n,
        made="statistics",
    )


# ------------------------------------------------------------------ sums and pools

POOLS: dict[str, tuple[str, list[str]]] = {
    "average pool": (
        "F.avg_pool2d({x}, 2)",
        [
            "F.avg_pool2d({x}, 2)",
            "nn.AvgPool2d(2)({x})",
            "F.conv2d({x}, torch.full(({c}, 1, 2, 2), 0.25, dtype={x}.dtype), stride=2, groups={c})"
            if False
            else "F.avg_pool2d({x}, kernel_size=(2, 2), stride=2)",
            (
                "({x}[:, :, :{h}:2, :{w}:2] + {x}[:, :, 1::2, :{w}:2] + {x}[:, :, :{h}:2, 1::2] + {x}[:, :, "
                "1::2, 1::2]) / 4"
            ),
            "{x}.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))",
            (
                "F.unfold({x}, 2, stride=2).view({x}.shape[0], {c}, 4, -1).mean(2).view({x}.shape[0], {c}, "
                "{x}.shape[2] // 2, -1)"
            ),
            "F.interpolate({x}[:, :, :{h}, :{w}], scale_factor=0.5, mode='area')",
        ],
    ),
    "max pool": (
        "F.max_pool2d({x}, 2)",
        [
            "F.max_pool2d({x}, 2)",
            "nn.MaxPool2d(2)({x})",
            "F.max_pool2d({x}, 2, return_indices=True)[0]",
            "F.max_pool2d_with_indices({x}, 2)[0]",
            "{x}.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))",
            (
                "torch.maximum(torch.maximum({x}[:, :, :{h}:2, :{w}:2], {x}[:, :, 1::2, :{w}:2]), "
                "torch.maximum({x}[:, :, :{h}:2, 1::2], {x}[:, :, 1::2, 1::2]))"
            ),
            "{x}.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2).max(-1)[0]",
            "-F.max_pool2d(-{x}, 2)" if False else "F.max_pool2d({x}, (2, 2), 2)",
        ],
    ),
    "global mean": (
        "{x}.mean((2, 3))",
        [
            "{x}.mean((2, 3))",
            "{x}.mean(dim=[2, 3])",
            "F.adaptive_avg_pool2d({x}, 1).flatten(1)",
            "{x}.flatten(2).mean(2)",
            "{x}.sum((-1, -2)) / ({x}.shape[2] * {x}.shape[3])",
            "torch.mean({x}, dim=(2, 3))",
            "F.adaptive_avg_pool2d({x}, 1)[..., 0, 0]",
            "nn.AdaptiveAvgPool2d(1)({x}).squeeze(-1).squeeze(-1)",
            "{x}.mean(3).mean(2)",
            "{x}.nanmean((2, 3))",
            "F.avg_pool2d({x}, {x}.shape[-2:]).view({x}.shape[0], -1)",
        ],
    ),
    "global max": (
        "{x}.amax((2, 3))",
        [
            "{x}.amax((2, 3))",
            "{x}.flatten(2).max(2)[0]",
            "{x}.flatten(2).max(dim=2).values",
            "F.adaptive_max_pool2d({x}, 1).flatten(1)",
            "{x}.amax(3).amax(2)",
            "{x}.max(3)[0].max(2)[0]",
            "{x}.flatten(2).sort(2)[0][:, :, -1]",
            "{x}.flatten(2).topk(1, 2)[0].squeeze(2)",
            "{x}.flatten(2).cummax(2)[0][..., -1]",
            "torch.amax({x}, (2, 3))",
            "torch.gather({x}.flatten(2), 2, {x}.flatten(2).argmax(2, keepdim=True)).squeeze(2)",
            "torch.take_along_dim({x}.flatten(2), {x}.flatten(2).argmax(2, keepdim=True), 2)[..., 0]",
            "torch.nanquantile({x}.flatten(2), 1.0, dim=2)"
            if False
            else "{x}.flatten(2).kthvalue({x}[0, 0].numel(), 2)[0]",
        ],
    ),
    "length": (
        "{x}.norm(dim=1)",
        [
            "{x}.norm(dim=1)",
            "torch.linalg.vector_norm({x}, dim=1)",
            "{x}.pow(2).sum(1).sqrt()",
            "torch.sqrt(torch.sum({x} ** 2, dim=1))",
            "torch.norm({x}, 2, 1)",
            "({x} * {x}).sum(1).sqrt()",
            "{x}.square().sum(1) ** 0.5",
        ],
    ),
    "bilinear": (
        "F.interpolate({x}, size=(4, 4), mode='bilinear')",
        [
            "F.interpolate({x}, size=(4, 4), mode='bilinear')",
            "F.interpolate({x}, (4, 4), mode='bilinear', align_corners=False)",
            "nn.Upsample(size=(4, 4), mode='bilinear')({x})",
            "nn.functional.upsample({x}, size=(4, 4), mode='bilinear')",
        ],
    ),
    "nearest": (
        "F.interpolate({x}, scale_factor=2)",
        [
            "F.interpolate({x}, scale_factor=2)",
            "{x}.repeat_interleave(2, 2).repeat_interleave(2, 3)",
            "nn.Upsample(scale_factor=2)({x})",
            "{x}[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(2, 3).flatten(3, 4)",
            "torch.kron({x}, torch.ones(1, 1, 2, 2, dtype={x}.dtype))"
            if False
            else "{x}.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)",
            "nn.UpsamplingNearest2d(scale_factor=2)({x})",
        ],
    ),
    "l2 pool": ("F.lp_pool2d({x}, 2.0, 2)", ["F.lp_pool2d({x}, 2.0, 2)", "nn.LPPool2d(2.0, 2)({x})"]),
}


@step(2.5)
def pool(p: Program) -> None:
    name = p.choose(POOLS)
    plain, ways = POOLS[name]
    x = p.pick(4, test=lambda v: min(v.shape[2:]) >= 2 and v.shape[2] * v.shape[3] <= 36)
    if name == "l2 pool" and p.rule != "epsilon":
        raise Reject
    p.put(
        name,
        plain,
        ways,
        made="pool" if name != "length" else "statistics",
        look="statistic" if name == "length" else "plain",
        x=x,
        c=x.shape[1],
        h=x.shape[2] // 2 * 2,
        w=x.shape[3] // 2 * 2,
    )


SUMS: dict[str, tuple[str, list[str]]] = {
    "mean of the first": (
        "{x}.mean(1)",
        [
            "{x}.mean(1)",
            "{x}.sum(1) / {x}.shape[1]",
            "torch.mean({x}, dim=1)",
            "sum({x}.unbind(1)) / {x}.shape[1]",
            "{x}.mean(1, keepdim=True).squeeze(1)",
            "torch.einsum('bt...->b...', {x}) / {x}.shape[1]",
            "torch.stack(list({x}.unbind(1))).mean(0)",
            "{x}.cumsum(1)[:, -1] / {x}.shape[1]",
            (
                "torch.zeros_like({x}[:, :1]).index_add(1, torch.zeros({x}.shape[1], dtype=torch.long), "
                "{x}).squeeze(1) / {x}.shape[1]"
            ),
            (
                "torch.zeros_like({x}[:, :1]).scatter_add(1, torch.zeros_like({x}, dtype=torch.long), {x})[:, "
                "0] / {x}.shape[1]"
            ),
            (
                "torch.zeros_like({x}[:, :1]).scatter_reduce(1, torch.zeros_like({x}, dtype=torch.long), {x}, "
                "'mean', include_self=False)[:, 0]"
            ),
            "{x}.nansum(1) / {x}.shape[1]",
        ],
    ),
    "sum of the last": (
        "{x}.sum(-1)",
        [
            "{x}.sum(-1)",
            "torch.sum({x}, -1)",
            "{x}.sum(-1, keepdim=True)[..., 0]",
            "torch.einsum('...i->...', {x})",
            "sum({x}.unbind(-1))",
            "{x}.cumsum(-1)[..., -1]",
        ],
    ),
    "max of the first": (
        "{x}.amax(1)",
        [
            "{x}.amax(1)",
            "{x}.max(1)[0]",
            "{x}.max(dim=1).values",
            "{x}.sort(1, descending=True)[0][:, 0]",
            "{x}.topk(1, 1)[0][:, 0]",
            "{x}.topk(1, dim=1).values.squeeze(1)",
            "torch.gather({x}, 1, {x}.argmax(1, keepdim=True))[:, 0]",
            (
                "torch.full_like({x}[:, :1], -1e9).scatter_reduce(1, torch.zeros_like({x}, dtype=torch.long), "
                "{x}, 'amax')[:, 0]"
            ),
            (
                "torch.zeros_like({x}[:, :1]).scatter_reduce(1, torch.zeros_like({x}, dtype=torch.long), {x}, "
                "'amax', include_self=False)[:, 0]"
            ),
            "torch.cummax({x}, 1)[0][:, -1]",
            "-((-{x}).amin(1))",
        ],
    ),
    "min of the first": (
        "{x}.amin(1)",
        [
            "{x}.amin(1)",
            "{x}.min(1)[0]",
            "-(-{x}).amax(1)",
            "{x}.sort(1).values[:, 0]",
            "{x}.topk(1, 1, largest=False)[0][:, 0]",
            "{x}.kthvalue(1, 1)[0]",
            "torch.aminmax({x}, dim=1)[0]",
        ],
    ),
    "running sum": (
        "{x}.cumsum(1)",
        [
            "{x}.cumsum(1)",
            "torch.cumsum({x}, dim=1)",
            "torch.stack([{x}[:, :i + 1].sum(1) for i in range({x}.shape[1])], 1)",
            "{o} = {x}.clone()\nfor i in range(1, {x}.shape[1]):\n    {o}[:, i] += {o}[:, i - 1]",
            "{x}.clone().cumsum_(1)",
            "torch.zeros_like({x}) + {x}.cumsum(1)",
        ],
    ),
    "difference": (
        "{x}[:, 1:] - {x}[:, :-1]",
        [
            "{x}[:, 1:] - {x}[:, :-1]",
            "torch.diff({x}, dim=1)",
            "{x}.diff(dim=1)",
            "{x}.narrow(1, 1, {x}.shape[1] - 1).sub({x}.narrow(1, 0, {x}.shape[1] - 1))",
            "({x} - {x}.roll(1, 1))[:, 1:]",
        ],
    ),
    "median": (
        "{x}.median(1)[0]",
        [
            "{x}.median(1)[0]",
            "{x}.median(dim=1).values",
            "{x}.sort(1)[0][:, ({x}.shape[1] - 1) // 2]",
            "{x}.kthvalue(({x}.shape[1] + 1) // 2, 1)[0]",
            "torch.nanmedian({x}, 1)[0]",
        ],
    ),
    "trapezoid": (
        "({x}[:, 1:] + {x}[:, :-1]).sum(1) / 2",
        ["torch.trapezoid({x}, dim=1)", "torch.trapz({x}, dim=1)", "({x}[:, 1:] + {x}[:, :-1]).sum(1) / 2"],
    ),
    "sorted": (
        "{x}.sort(1)[0]",
        [
            "{x}.sort(1)[0]",
            "torch.sort({x}, 1).values",
            "{x}.msort()" if False else "{x}.sort(dim=1, stable=True)[0]",
            "torch.gather({x}, 1, {x}.argsort(1))",
            "torch.take_along_dim({x}, {x}.argsort(1), 1)",
            "{x}.topk({x}.shape[1], 1, largest=False)[0]",
        ],
    ),
    "moving": (
        "F.avg_pool1d({x}.flatten(1)[:, None], 2, 1)[:, 0]",
        [
            "F.avg_pool1d({x}.flatten(1)[:, None], 2, 1)[:, 0]",
            "{x}.flatten(1).unfold(1, 2, 1).mean(-1)",
            "({x}.flatten(1)[:, 1:] + {x}.flatten(1)[:, :-1]) / 2",
        ],
    ),
}


@step(2.5)
def sums(p: Program) -> None:
    name = p.choose(SUMS)
    plain, ways = SUMS[name]
    x = p.pick(3, 4, test=lambda v: v.shape[1] > 1 and v.shape[-1] > 1)
    p.put(name, plain, ways, x=x, made="pool")


# ------------------------------------------------------------------ values that move


@step(2.5)
def turn(p: Program) -> None:
    x = p.pick(3, 4, plain=False)
    if x.rank == 3:
        p.put(
            "transpose",
            "{x}.transpose(1, 2)",
            [
                "{x}.transpose(1, 2)",
                "{x}.mT",
                "{x}.permute(0, 2, 1)",
                "torch.einsum('bij->bji', {x})",
                "{x}.swapaxes(1, 2)",
                "torch.movedim({x}, 1, 2)",
                "{x}.transpose(1, 2).contiguous()",
                "torch.stack([t.T for t in {x}])",
                "torch.permute({x}, (0, 2, 1))",
                "{x}.adjoint()",
            ],
            aliases=True,
            look=x.look,
            x=x,
        )
    else:
        p.put(
            "turn",
            "{x}.transpose(2, 3)",
            [
                "{x}.transpose(2, 3)",
                "{x}.mT",
                "{x}.permute(0, 1, 3, 2)",
                "torch.einsum('bchw->bcwh', {x})",
                "{x}.swapdims(-1, -2)",
                "{x}.rot90(1, (2, 3)).flip(2)",
                "{x}.movedim(2, 3).contiguous()",
            ],
            aliases=True,
            look=x.look,
            x=x,
        )


@step(2)
def flatten(p: Program) -> None:
    x = p.pick(3, 4, plain=False)
    p.put(
        "flatten",
        "{x}.flatten(1)",
        [
            "{x}.flatten(1)",
            "torch.flatten({x}, 1)",
            "{x}.reshape(len({x}), -1)",
            "{x}.contiguous().view({x}.size(0), -1)",
            "nn.Flatten()({x})",
            "torch.reshape({x}, ({x}.shape[0], -1))",
            "torch.cat([t.flatten(1) for t in {x}.unbind(1)], 1)",
            "torch.stack([t.ravel() for t in {x}])",
            "torch.hstack([t.flatten(1) for t in {x}.split(1, 1)])",
        ],
        aliases=True,
        look=x.look,
        x=x,
    )


@step(1)
def unflatten(p: Program) -> None:
    x = p.pick(2, test=lambda v: v.shape[1] % 2 == 0 and v.shape[1] >= 4, plain=False)
    h = x.shape[1] // 2
    p.put(
        "unflatten",
        "{x}.view(len({x}), 2, {h})",
        [
            "{x}.reshape(len({x}), 2, {h})",
            "{x}.unflatten(1, (2, {h}))",
            "torch.stack({x}.chunk(2, 1), 1)",
            "torch.unflatten({x}, 1, (2, -1))",
            "torch.stack([{x}[:, :{h}], {x}[:, {h}:]], dim=1)",
            "{x}.unfold(1, {h}, {h})",
        ]
        if False
        else [
            "{x}.reshape(len({x}), 2, {h})",
            "torch.stack({x}.chunk(2, 1), 1)",
            "{x}.unflatten(1, (2, {h}))",
            "{x}.unfold(1, {h}, {h})",
            "torch.stack([{x}[:, :{h}], {x}[:, {h}:]], dim=1)",
        ],
        aliases=True,
        look=x.look,
        x=x,
        h=h,
    )


@step(2)
def indexed(p: Program) -> None:
    """Index functions along axis 1, with places that come twice."""
    x = p.pick(plain=False)
    n = x.shape[1]
    places = p.indices(n, p.random.randint(1, n + 1))
    k = p.const(torch.tensor(places))
    rest = ", 1" * (x.rank - 2)
    p.put(
        "index",
        "{x}[:, {k}]",
        [
            "{x}[:, {k}]",
            "{x}.index_select(1, {k})",
            "torch.index_select({x}, 1, {k})",
            f"{{x}}[:, {places}]",
            f"torch.gather({{x}}, 1, {{k}}.view(1, -1{rest}).expand({{x}}.shape[0], -1, *{{x}}.shape[2:]))",
            f"torch.take_along_dim({{x}}, {{k}}.view(1, -1{rest}), 1)",
            "torch.stack([{x}[:, i] for i in {k}], 1)",
            "torch.cat([{x}[:, i:i + 1] for i in {k}.tolist()], 1)",
            "torch.cat([{x}.narrow(1, int(i), 1) for i in {k}], dim=1)",
            "{x}.movedim(1, 0)[{k}].movedim(0, 1)",
            "{x}.transpose(0, 1)[{k}].transpose(0, 1)",
            (
                "{o} = torch.empty({x}.shape[0], len({k}), *{x}.shape[2:], dtype={x}.dtype)\nfor i, j in "
                "enumerate({k}.tolist()):\n    {o}[:, i] = {x}[:, j]"
            ),
            "torch.index_select({x}, dim=1, index={k})",
            "{x}[torch.arange(len({x}))[:, None], {k}]",
            "torch.stack([t[{k}] for t in {x}])",
            "torch.stack([torch.select({x}, 1, i) for i in {k}.tolist()], 1)",
        ],
        look=x.look,
        x=x,
        k=k,
    )


@step(1.5)
def rolled(p: Program) -> None:
    x = p.pick(plain=False)
    axis = p.random.randint(1, x.rank - 1)
    p.put(
        "roll",
        "{x}.roll(1, {d})",
        [
            "{x}.roll(1, {d})",
            "torch.roll({x}, 1, {d})",
            "torch.roll({x}, shifts=(1,), dims=({d},))",
            "torch.cat([{x}.narrow({d}, {n} - 1, 1), {x}.narrow({d}, 0, {n} - 1)], {d})",
            "{x}.index_select({d}, (torch.arange({n}) - 1) % {n})",
            (
                "{o} = torch.empty_like({x})\n{o}.narrow({d}, 1, {n} - 1).copy_({x}.narrow({d}, 0, {n} - "
                "1))\n{o}.narrow({d}, 0, 1).copy_({x}.narrow({d}, {n} - 1, 1))"
            ),
            "torch.empty_like({x}).index_copy_({d}, (torch.arange({n}) + 1) % {n}, {x})",
            "torch.zeros_like({x}).index_add({d}, (torch.arange({n}) + 1) % {n}, {x})",
        ],
        look=x.look,
        x=x,
        d=axis,
        n=x.shape[axis],
    )


@step(1.5)
def flipped(p: Program) -> None:
    x = p.pick(plain=False)
    axis = p.random.randint(1, x.rank - 1)
    p.put(
        "flip",
        "{x}.flip({d})",
        [
            "{x}.flip({d})",
            "torch.flip({x}, ({d},))",
            "{x}.flip([{d}])",
            "{x}.index_select({d}, torch.arange({n} - 1, -1, -1))",
            "torch.cat({x}.split(1, {d})[::-1], {d})",
            "torch.stack({x}.unbind({d})[::-1], {d})",
            (
                "torch.take_along_dim({x}, torch.arange({n} - 1, -1, -1).view(*[1] * {d}, -1, *[1] * ({x}.dim() "
                "- {d} - 1)), {d})"
            ),
        ],
        look=x.look,
        x=x,
        d=axis,
        n=x.shape[axis],
    )


@step(2)
def sliced(p: Program) -> None:
    x = p.pick(test=lambda v: max(v.shape[1:]) > 1, plain=False)
    axis = p.choose([d for d in range(1, x.rank) if x.shape[d] > 1])
    n = x.shape[axis]
    a = p.random.randrange(n)
    b = p.random.randint(a + 1, n)
    index = ", ".join([":"] * axis)
    p.put(
        "slice",
        "{x}.narrow({d}, {a}, {b} - {a})",
        [
            "{x}.narrow({d}, {a}, {b} - {a})",
            f"{{x}}[{index}, {{a}}:{{b}}]",
            "torch.narrow({x}, {d}, {a}, {b} - {a})",
            "torch.split({x}, [{a}, {b} - {a}, {n} - {b}], {d})[1]",
            "{x}.index_select({d}, torch.arange({a}, {b}))",
            "torch.stack({x}.unbind({d})[{a}:{b}], {d})",
            "torch.cat({x}.chunk({n}, {d})[{a}:{b}], {d})",
            "torch.tensor_split({x}, [{a}, {b}], {d})[1]",
            "F.pad({x}, [0, 0] * ({x}.dim() - 1 - {d}) + [-{a}, {b} - {n}])",
            "torch.take_along_dim({x}, torch.arange({a}, {b}).view(*[1] * {d}, -1, *[1] * ({x}.dim() - {d} - 1)), {d})",
            f"{{x}}[..., {{a}}:{{b}}{', :' * (x.rank - 1 - axis)}]",
        ],
        look=x.look,
        aliases=True,
        x=x,
        d=axis,
        a=a,
        b=b,
        n=n,
    )


@step(2)
def joined(p: Program) -> None:
    x = p.pick(plain=False)
    y = p.pick(shape=x.shape, plain=False)
    look = "plain" if x.look == y.look == "plain" else "bounded"
    p.put(
        "join",
        "torch.cat([{x}, {y}], 1)",
        [
            "torch.cat([{x}, {y}], 1)",
            "torch.concat(({x}, {y}), dim=1)",
            "torch.hstack([{x}, {y}])",
            "torch.stack([{x}, {y}], 1).flatten(1, 2)",
            (
                "{o} = torch.empty({x}.shape[0], 2 * {n}, *{x}.shape[2:], dtype={x}.dtype)\n{o}[:, :{n}] = "
                "{x}\n{o}[:, {n}:] = {y}"
            ),
            (
                "{o} = {x}.new_zeros({x}.shape[0], 2 * {n}, *{x}.shape[2:])\n{o}[:, :{n}].copy_({x})\n{o}[:, "
                "{n}:].add_({y})"
            ),
            "{o} = {x}.repeat(1, 2{rest})\n{o}[:, {n}:] = {y}",
            "torch.cat([*{x}.split(1, 1), *{y}.split(1, 1)], 1)",
            (
                "{o} = torch.zeros({x}.shape[0], 2 * {n}, *{x}.shape[2:], dtype={x}.dtype)\n{o}.narrow(1, 0, "
                "{n}).copy_({x})\n{o}.index_copy_(1, torch.arange({n}, 2 * {n}), {y})"
            ),
            "torch.cat([torch.zeros_like({x}), {y}], 1) + torch.cat([{x}, torch.zeros_like({y})], 1)",
            (
                "{o} = torch.zeros({x}.shape[0], 2 * {n}, *{x}.shape[2:], dtype={x}.dtype)\nfor i in "
                "range({n}):\n    {o}[:, i] = {x}[:, i]\n    {o}[:, {n} + i] = {y}[:, i]"
            ),
            "torch.slice_scatter(torch.cat([{x}, {x}], 1), {y}, 1, {n})",
            "torch.stack([torch.cat([a, b]) for a, b in zip({x}, {y})])",
            "F.pad({x}, [0, 0] * ({x}.dim() - 2) + [0, {n}]) + F.pad({y}, [0, 0] * ({x}.dim() - 2) + [{n}, 0])",
        ],
        look=look,
        made="sum"
        if look == "plain" and x.made in ("relu", "sum", "pool") and y.made in ("relu", "sum", "pool")
        else "",
        x=x,
        y=y,
        n=x.shape[1],
        rest=", 1" * (x.rank - 2),
    )


@step(1)
def padded(p: Program) -> None:
    x = p.pick(3, 4, plain=False)
    p.put(
        "pad",
        "F.pad({x}, (1, 0))",
        [
            "F.pad({x}, (1, 0))",
            "torch.cat([torch.zeros_like({x}[..., :1]), {x}], -1)",
            "{o} = torch.zeros(*{x}.shape[:-1], {x}.shape[-1] + 1, dtype={x}.dtype)\n{o}[..., 1:] = {x}",
            "nn.ConstantPad1d((1, 0), 0.0)({x})",
            "F.pad({x}, (1, 0), mode='constant', value=0.0)",
            "{x}.new_zeros(*{x}.shape[:-1], {x}.shape[-1] + 1).index_copy(-1, torch.arange({x}.shape[-1]) + 1, {x})",
            "torch.slice_scatter(torch.zeros(*{x}.shape[:-1], {x}.shape[-1] + 1, dtype={x}.dtype), {x}, -1, 1)",
            "F.pad({x}, [1, 0], 'constant')",
        ],
        look=x.look,
        x=x,
    )


@step(0.7)
def wrapped(p: Program) -> None:
    x = p.pick(4, test=lambda v: v.shape[3] > 1, plain=False)
    p.put(
        "circular",
        "torch.cat([{x}[..., -1:], {x}], -1)",
        [
            "F.pad({x}, (1, 0, 0, 0), mode='circular')",
            "torch.cat([{x}[..., -1:], {x}], -1)",
            "{x}[..., [-1, *range({x}.shape[-1])]]",
        ],
        look=x.look,
        x=x,
    )


@step(1)
def repeated(p: Program) -> None:
    x = p.pick(2, 3, plain=False)
    p.put(
        "repeat",
        "torch.cat([{x}, {x}], 1)",
        [
            "{x}.repeat(1, 2{r})",
            "torch.cat([{x}, {x}], 1)",
            "torch.cat([{x}] * 2, dim=1)",
            "{x}.tile(1, 2{r})",
            "torch.tile({x}, (1, 2{r}))",
            "{x}[:, None].expand(-1, 2, *[-1] * ({x}.dim() - 1)).flatten(1, 2)",
            "torch.stack([{x}, {x}], 1).flatten(1, 2)",
            "{x}[:, [*range({x}.shape[1])] * 2]",
        ],
        look=x.look,
        x=x,
        r=", 1" * (x.rank - 2),
    )


# ------------------------------------------------------------------ writing


def write_base(p: Program, x: Value) -> tuple[str, str]:
    """What is written into: zeros, a buffer, or a constant's copy; and its value as an expression."""
    k = p.const(p.randn(*x.shape[1:]))
    return p.choose(
        [
            ("torch.zeros_like({x})", "torch.zeros_like({x})"),
            (f"{k}.expand_as({{x}}).clone()", f"{k}.expand_as({{x}})"),
            (f"torch.ones_like({{x}}) * {k}", f"{k}.expand_as({{x}})"),
        ]
    )


@step(3)
def written(p: Program) -> None:
    """Values of y over some of x, the places perhaps named twice (the last one counts where values are equal)."""
    x = p.pick(test=lambda v: v.shape[1] > 1)
    y = p.other(x)
    n = x.shape[1]
    m = p.random.randint(1, n)
    places = p.indices(n, m, distinct=True)
    k = p.const(torch.tensor(places))
    into, value = p.choose([("{x}.clone()", "{x}"), write_base(p, x)])
    plain = f"{{o}} = ({value}).clone()\n{{o}}[:, {{k}}] = {{y}}[:, :{m}]"
    start = f"{{o}} = {into}\n"
    rest = ", 1" * (x.rank - 2)
    full = f"{{k}}.view(1, -1{rest}).expand({{y}}.shape[0], -1, *{{y}}.shape[2:])"
    ways = [
        f"{{o}}[:, {{k}}] = {{y}}[:, :{m}]",
        f"{{o}}[:, {places}] = {{y}}[:, :{m}]",
        f"{{o}}.index_copy_(1, {{k}}, {{y}}[:, :{m}])",
        f"{{o}} = {{o}}.index_copy(1, {{k}}, {{y}}[:, :{m}])",
        f"for i, j in enumerate({places}):\n    {{o}}[:, j] = {{y}}[:, i]",
        f"for i, j in enumerate({places}):\n    {{o}}[:, j].copy_({{y}}[:, i])",
        f"{{o}}.scatter_(1, {full}, {{y}}[:, :{m}])",
        f"{{o}} = torch.scatter({{o}}, 1, {full}, {{y}})",
        f"{{o}}.transpose(0, 1)[{{k}}] = {{y}}[:, :{m}].transpose(0, 1)",
        f"for i, j in enumerate({places}):\n    {{o}} = torch.select_scatter({{o}}, {{y}}[:, i], 1, j)",
        f"for i, j in enumerate({places}):\n    {{o}}.select(1, j).zero_().add_({{y}}[:, i])",
        f"{{o}}[:, {{k}}] *= 0\n{{o}}[:, {{k}}] += {{y}}[:, :{m}]",
        f"{{o}}.movedim(1, 0).index_put_(({{k}},), {{y}}[:, :{m}].movedim(1, 0))",
        f"{{o}}.index_fill_(1, {{k}}, 0).index_add_(1, {{k}}, {{y}}[:, :{m}])",
        f"{{o}}[torch.arange({{o}}.shape[0])[:, None], {{k}}] = {{y}}[:, :{m}]",
        f"t = {{o}}.movedim(1, 0)\nfor i, j in enumerate({places}):\n    t[j] = {{y}}[:, i]",
        f"{{o}}.view({{o}}.shape)[:, {{k}}] = {{y}}[:, :{m}]",
    ]
    p.put(
        "write",
        plain,
        [start + way for way in ways],
        ways if value == "{x}" and x.memory != y.memory else [],
        x=x,
        y=y,
        k=k,
    )


@step(1.5)
def added_twice(p: Program) -> None:
    """Sums into places that come more than once."""
    x = p.pick(test=lambda v: v.shape[1] > 1)
    y = p.other(x)
    n = x.shape[1]
    places = p.indices(n, n)
    k = p.const(torch.tensor(places))
    into, value = p.choose([("{x}.clone()", "{x}"), write_base(p, x)])
    rest = ", 1" * (x.rank - 2)
    full = f"{{k}}.view(1, -1{rest}).expand({{y}}.shape[0], -1, *{{y}}.shape[2:])"
    start = f"{{o}} = {into}\n"
    ways = [
        "{o}.index_add_(1, {k}, {y})",
        f"{{o}}.scatter_add_(1, {full}, {{y}})",
        f"for i, j in enumerate({places}):\n    {{o}}[:, j] += {{y}}[:, i]",
        "{o} = {o}.index_add(1, {k}, {y})",
        f"{{o}}.scatter_reduce_(1, {full}, {{y}}, 'sum')",
        "{o}.transpose(0, 1).index_put_(({k},), {y}.transpose(0, 1), accumulate=True)",
        f"{{o}}.scatter_(1, {full}, {{y}}, reduce='add')",
        f"for i, j in enumerate({places}):\n    {{o}}[:, j].add_({{y}}[:, i])",
        f"{{o}} = torch.scatter_add({{o}}, 1, {full}, {{y}})",
        "{o} += torch.zeros_like({o}).index_add_(1, {k}, {y})",
        "{o} = {o} + torch.einsum('bi...,ij->bj...', {y}, F.one_hot({k}, {o}.shape[1]).to({y}.dtype))"
        if p.rule == "epsilon"
        else "{o}.index_add_(1, {k}, {y}, alpha=1)",
    ]
    p.put(
        "add at",
        f"({value}).index_add(1, {{k}}, {{y}})",
        [start + way for way in ways],
        ways if value == "{x}" and x.memory != y.memory else [],
        made="sum",
        x=x,
        y=y,
        k=k,
    )


@step(1.5)
def written_twice(p: Program) -> None:
    """Places that come twice in an assignment: the last one stays, and has all of the relevance."""
    x = p.pick(test=lambda v: v.shape[1] > 1)
    y = p.other(x)
    n = x.shape[1]
    places = p.indices(n, n)
    k = p.const(torch.tensor(places))
    into, value = p.choose([("{x}.clone()", "{x}"), write_base(p, x)])
    loop = f"for i, j in enumerate({places}):\n    {{o}}[:, j] = {{y}}[:, i]"
    add = p.chance(0.5)
    if add:
        loop = f"t = {{o}}.clone()\nfor i, j in enumerate({places}):\n    {{o}}[:, j] = t[:, j] + {{y}}[:, i]"
        ways = [
            "{o}[:, {k}] += {y}",
            f"{{o}}[:, {places}] += {{y}}",
            "{o}[:, {k}] = {o}[:, {k}] + {y}",
            "{o}[:, {k}] -= -{y}",
        ]
    else:
        ways = [
            "{o}[:, {k}] = {y}",
            f"{{o}}[:, {places}] = {{y}}",
            "{o}.transpose(0, 1)[{k}] = {y}.transpose(0, 1)",
            "{o}.movedim(1, 0).index_put_(({k},), {y}.movedim(1, 0))",
            "{o}[:, {k}] = {y} * 1",
            "{o}[torch.arange(len({o}))[:, None], {k}] = {y}",
            (
                f"{{o}}.scatter_(1, {{k}}.view(1, -1{', 1' * (x.rank - 2)}).expand({{y}}.shape[0], -1, "
                f"*{{y}}.shape[2:]), {{y}})"
            ),
            "{o}.index_copy_(1, {k}, {y})",
        ]
    plain = f"{{o}} = ({value}).clone()\n{loop}"
    p.put(
        "write twice",
        plain,
        [f"{{o}} = {into}\n{way}" for way in (loop, *ways)],
        ways if value == "{x}" and x.memory != y.memory else [],
        x=x,
        y=y,
        k=k,
    )


@step(1.5)
def through_a_view(p: Program) -> None:
    """A function written into a part of an activation."""
    x = p.pick(test=lambda v: v.shape[1] > 1 and v.made != "input")
    n = x.shape[1]
    h = p.random.randint(1, n - 1)
    name = p.choose(["relu", "scale", "zero", "silu", "shift"])
    f, ways = {
        "relu": (
            "F.relu({t})",
            ["{t}.relu_()", "F.relu({t}, inplace=True)", "{t}.clamp_(min=0)", "{t}.copy_({t}.relu())"],
        ),
        "scale": ("0.5 * {t}", ["{t}.mul_(0.5)", "{t}.div_(2)"]),
        "zero": ("0 * {t}", ["{t}.zero_()", "{t}.fill_(0)", "{t}.mul_(0)", "{t}.copy_(torch.zeros_like({t}))"]),
        "silu": (
            "act(F.silu, {t})",
            ["F.silu({t}, inplace=True)", "{t}.mul_({t}.sigmoid())", "{t}.copy_(F.silu({t}))"],
        ),
        "shift": ("{t} + 0.4", ["{t}.add_(0.4)", "{t}.sub_(-0.4)"]),
    }[name]
    way = p.choose(ways)
    before = p.choose(
        [
            f"t = {{o}}[:, :{h}]",
            f"t = {{o}}.narrow(1, 0, {h})",
            f"t = {{o}}.split([{h}, {n - h}], 1)[0]",
            f"t = {{o}}.tensor_split([{h}], 1)[0]",
        ]
    )
    item = p.choose(
        [
            f"{{o}}[:, :{h}] = {f.replace('act(F.silu, {t})', 'F.silu({t})').replace('{t}', f'{{o}}[:, :{h}]')}",
            before + "\n" + way.replace("{t}", "t"),
            before + "\n" + way.replace("{t}", "t"),
        ]
    )
    plain = f"torch.cat([{f.replace('{t}', f'{{x}}[:, :{h}]')}, {{x}}[:, {h}:]], 1)"
    p.put(f"{name} through a view", plain, [], [item], x=x)


@step(1)
def into_views_of_two(p: Program) -> None:
    """Two halves that are worked on in place, one after the other."""
    x = p.pick(test=lambda v: v.shape[1] % 2 == 0)
    h = x.shape[1] // 2
    p.put(
        "halves",
        f"torch.cat([{{x}}[:, :{h}] + F.relu({{x}}[:, {h}:]), F.relu({{x}}[:, {h}:])], 1)",
        [],
        [
            "a, b = {o}.chunk(2, 1)\nb = F.relu(b)\n{o} = torch.cat([a + b, b], 1)",
            f"{{o}}[:, {h}:] = {{o}}[:, {h}:].relu()\n{{o}}[:, :{h}] += {{o}}[:, {h}:]",
            f"{{o}}[:, {h}:].relu_()\n{{o}}[:, :{h}].add_({{o}}[:, {h}:])",
            f"a, b = {{o}}[:, :{h}], {{o}}[:, {h}:]\nb.relu_()\na += b",
            f"b = {{o}}.narrow(1, {h}, {h})\nb.clamp_(min=0)\n{{o}}.narrow(1, 0, {h}).add_(b)",
        ],
        x=x,
        h=h,
    )


# ------------------------------------------------------------------ complex numbers


@step(1.2)
def spectrum(p: Program) -> None:
    """A filter in the frequency domain: a linear map with constants."""
    if p.rule != "epsilon":
        raise Reject
    x = p.pick(2, 3, test=lambda v: v.shape[-1] > 2)
    n = x.shape[-1]
    k = p.const(torch.complex(p.randn(n // 2 + 1), p.randn(n // 2 + 1)))
    kf = p.const(torch.complex(p.randn(n), p.randn(n)))
    which = p.choose(["rfft", "fft", "size"])
    if which == "rfft":
        f = "torch.fft.irfft(torch.fft.rfft({x}) * {k}, n={n})"
        ways = [
            f,
            "torch.fft.irfft({k} * torch.fft.rfft({x}, dim=-1), {n}, dim=-1)",
            "torch.fft.irfft(torch.mul(torch.fft.rfft({x}), {k}), n={n})",
            "torch.fft.irfft(torch.einsum('...k,k->...k', torch.fft.rfft({x}), {k}), n={n})",
            "{o} = torch.fft.rfft({x})\n{o} = torch.fft.irfft({o}.mul_({k}), n={n})",
            "torch.fft.irfft(torch.view_as_complex(torch.view_as_real(torch.fft.rfft({x}))) * {k}, n={n})",
            (
                "t = torch.fft.rfft({x})\n{o} = torch.fft.irfft(torch.complex(t.real * {k}.real - t.imag * "
                "{k}.imag, t.real * {k}.imag + t.imag * {k}.real), n={n})"
            ),
            "t = torch.fft.rfft({x})\ns = torch.zeros_like(t)\ns[..., :] = t * {k}\n{o} = torch.fft.irfft(s, n={n})",
        ]
    elif which == "fft":
        f = "(torch.fft.fft({x}) * {kf}).real"
        ways = [
            f,
            "torch.real(torch.fft.fft({x}) * {kf})",
            "torch.view_as_real({kf} * torch.fft.fft({x}))[..., 0]",
            "(torch.fft.fft({x}.to(torch.complex128)) * {kf}).real",
            "torch.fft.fft({x}).real * {kf}.real - torch.fft.fft({x}).imag * {kf}.imag",
        ]
    else:
        f = "torch.fft.rfft({x}).abs()"
        ways = [
            f,
            "torch.abs(torch.fft.rfft({x}))",
            "torch.view_as_real(torch.fft.rfft({x})).norm(dim=-1)",
            "t = torch.fft.rfft({x})\n{o} = (t.real ** 2 + t.imag ** 2).sqrt()",
            "torch.linalg.vector_norm(torch.view_as_real(torch.fft.rfft({x})), dim=-1)",
            "torch.fft.rfft({x}).abs().square().sqrt()",
        ]
    p.put(which, f, ways, x=x, k=k, kf=kf, n=n, look="statistic" if which == "size" else "plain")


@step(0.8)
def rotated(p: Program) -> None:
    """Rotary positions: pairs of values as complex numbers times constants."""
    x = p.pick(3, test=lambda v: v.shape[-1] % 2 == 0)
    t, d = x.shape[1], x.shape[-1] // 2
    angle = p.randn(t, d)
    c, s, z = p.const(angle.cos()), p.const(angle.sin()), p.const(torch.polar(torch.ones_like(angle), angle))
    plain = (
        "a, b = {x}[..., 0::2], {x}[..., 1::2]\n"
        "{o} = torch.stack([a * {c} - b * {s}, a * {s} + b * {c}], -1).flatten(-2)"
    )
    if p.rule != "epsilon":
        raise Reject
    p.put(
        "rotary",
        plain,
        [
            plain,
            "torch.view_as_real(torch.view_as_complex({x}.unflatten(-1, (-1, 2)).contiguous()) * {z}).flatten(-2)",
            "torch.view_as_real({z} * torch.complex({x}[..., ::2], {x}[..., 1::2])).flatten(2)",
            (
                "{o} = torch.empty_like({x})\n{o}[..., 0::2] = {x}[..., 0::2] * {c} - {x}[..., 1::2] * "
                "{s}\n{o}[..., 1::2] = {x}[..., 0::2] * {s} + {x}[..., 1::2] * {c}"
            ),
            (
                "t = torch.stack([-{x}[..., 1::2], {x}[..., 0::2]], -1).flatten(-2)\n{o} = {x} * "
                "{c}.repeat_interleave(2, -1) + t * {s}.repeat_interleave(2, -1)"
            ),
            "torch.view_as_real(torch.mul({z}, torch.view_as_complex({x}.unflatten(2, (-1, 2)).clone()))).flatten(-2)",
        ],
        x=x,
        c=c,
        s=s,
        z=z,
    )


# ------------------------------------------------------------------------------------------------ whole networks


def add_ids(p: Program) -> None:
    """A second input of ids, looked up in a table."""
    t, d, size = p.random.randint(2, 4), p.random.randint(2, 4), 7
    w = p.randn(size, d)
    module = nn.Embedding(size, d, dtype=DTYPE)
    with torch.no_grad():
        module.weight.copy_(w)
    # no id twice in an item: what is exactly equal can cancel exactly, and 0 / 0 is a convention
    ids = torch.stack([torch.randperm(size, generator=p.numbers)[:t] for _ in range(BATCH)])
    p.ids["ids"] = ids
    W, M = p.const(w), p.const(module)
    p.env["ids"] = ids
    p.env["table"] = leaf = w[ids].clone().requires_grad_()
    p.env["ids_leaf"] = leaf
    p.put(
        "lookup",
        "ids_leaf",
        [
            "{M}(ids)",
            "F.embedding(ids, {W})",
            "{W}[ids]",
            "{M}(ids.long())",
            "{W}.index_select(0, ids.flatten()).view(*ids.shape, -1)",
            "{M}(ids.clone())",
            "{M}(ids + 0)",
            "torch.stack([{M}(i) for i in ids])",
            "{M}(torch.cat([ids[:, :1], ids[:, 1:]], 1))",
            "{M}(ids.flip(1)).flip(1)",
            "torch.stack([{M}(ids[:, i]) for i in range(ids.shape[1])], 1)",
            "torch.embedding({W}, ids)",
            "F.embedding(ids.T, {W}).transpose(0, 1)",
            "{M}(ids.view(-1)).view(*ids.shape, -1)",
        ],
        M=M,
        W=W,
    )


def generate(seed: int) -> Program:
    """The network of a seed."""
    p = Program(seed)
    p.env = {"torch": torch, "F": F, "nn": nn, **vars_of(p), "self": Constants(p)}
    shape = p.choose([(3, 6, 6), (2, 5, 5), (4, 6), (3, 8), (5, 4), (8,), (6,)])
    p.add_input("x", p.randn(BATCH, *shape))
    if p.chance(0.25):
        p.add_input("y", p.randn(BATCH, *(shape if p.chance(0.7) else p.choose([(3, 6, 6), (4, 6), (8,)]))))
    if p.chance(0.15):
        add_ids(p)
    for name, t in p.inputs.items():
        p.env[name] = t.clone().requires_grad_()
    steps, weights = zip(*STEPS, strict=True)
    starts = [dense, dense] if len(shape) == 1 else [convolution, conv_norm, dense]
    attempt(p, p.choose(starts))
    wanted, tries = len(p.values) + p.random.randint(3, 8), 0
    while len(p.values) < wanted and tries < 60:
        tries += 1
        attempt(p, p.random.choices(steps, weights)[0])
    head(p)
    return p


def attempt(p: Program, f: Step) -> None:
    """One more step, if it fits; all of it or nothing."""
    before = len(p.blocks), len(p.plain), len(p.kinds), len(p.values), set(p.dead), dict(p.env)
    try:
        f(p)
    except Reject:
        blocks, plain, kinds, values, p.dead, p.env = before
        del p.blocks[blocks:], p.plain[plain:], p.kinds[kinds:], p.values[values:]


def head(p: Program) -> None:
    """Everything that nobody reads yet joined to three scores."""
    read = " ".join(block for block, _ in p.blocks)
    ends = [
        v
        for v in p.values
        if v.name not in p.dead
        and (not re.search(rf"\b{v.name}\b.*", read.partition(f"{v.name} = ")[2].partition(" ")[2]))
    ]
    ends = ends[-3:] or [next(v for v in reversed(p.values) if v.name not in p.dead)]
    flat = [f"{v.name}.flatten(1)" for v in ends]
    n = sum(int(torch.tensor(v.shape[1:]).prod()) for v in ends)
    w = p.const(p.randn(3, n) / n**0.5)
    b = p.const(p.randn(3) * 0.3)
    joined = flat[0] if len(flat) == 1 else f"torch.cat([{', '.join(flat)}], 1)"
    line = f"out = layer(lambda a, w: a @ w.T, {joined}, {w}, {b})"
    p.plain += [line, "return out"]
    last = f"out = F.linear({joined}, {w}, {b})\nreturn out"
    p.blocks.append((last, last))
    exec(compile(line, "<surrogate>", "exec"), p.env)


class Constants:
    """``self`` of the surrogate."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __getattr__(self, name: str) -> Any:
        return self.program.constants[name]


# ------------------------------------------------------------------------------------------------ judging


@dataclass
class Outcome:
    """What became of a network: "right", "reported" (a warning names a place), "silent", "foreign" or "refused"."""

    seed: int
    verdict: str
    why: str = ""
    error: float = 0.0
    #: whether the map was right and a warning was given all the same
    needless: bool = False


#: How far a map may be from the right one, in parts of its largest value.
TOLERANCE = 1e-6


def right_maps(p: Program) -> tuple[list[Tensor], Tensor]:
    """Input times gradient of the surrogate, for every input; and what the network says."""
    out = p.env["out"]
    leaves = [p.env[name] for name in p.inputs] + ([p.env["ids_leaf"]] if p.ids else [])
    grads = torch.autograd.grad(out[:, 1].sum(), leaves, allow_unused=True, retain_graph=True)
    maps = [(t * g).detach() if g is not None else torch.zeros_like(t) for t, g in zip(leaves, grads, strict=True)]
    if p.ids:
        maps[-1] = maps[-1].sum(-1)
    return maps, out.detach()


def judge(p: Program, forms: Sequence[str] = ("reference", "coefficient"), firsts: Iterable[int] = ()) -> Outcome:
    """Explain a network and hold its map against the surrogate's."""
    want, value = right_maps(p)
    inputs = [*p.inputs.values(), *p.ids.values()]
    composite = Composite([(kind("linear"), RULES[p.rule])])
    outcome = Outcome(p.seed, "right")
    network = Network(p, p.source_with(firsts)).eval()
    with torch.no_grad():
        plain = network(*(t.clone() for t in inputs))
    if not torch.allclose(plain, value, rtol=1e-9, atol=1e-9):
        return Outcome(p.seed, "wrong surrogate", f"values differ by {float((plain - value).abs().max()):.2g}")
    for form in forms:
        network = Network(p, p.source_with(firsts)).eval()
        propagator = RelevancePropagator(network, composite)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                record = propagator.trace if form == "reference" else propagator.bound_trace
                trace = record(*(t.clone() for t in inputs))
                found = trace.relevance(1)
                words = trace.report().warnings if form == "reference" else trace.warnings()
        except Exception as error:
            refused = type(error).__module__.startswith("saliency_lrp")
            last = traceback.extract_tb(error.__traceback__)[-1]
            return Outcome(
                p.seed,
                "refused" if refused else "foreign",
                f"{form}: {type(error).__name__}: {error} at {last.filename}:{last.lineno}",
            )
        if not torch.equal(trace.output, plain):
            return Outcome(p.seed, "silent", f"{form}: another output")
        if isinstance(found, dict):
            found = tuple(found.values())
        found = found if isinstance(found, tuple) else (found,)
        size = max(float(R.abs().max()) for R in want)
        if len(found) != len(want):
            kept = [w for w in want if bool(w.abs().max() > 0)]
            error = (
                float("inf")
                if len(found) != len(kept)
                else max(float((a - b).abs().max()) for a, b in zip(found, kept, strict=True)) / max(size, 1e-12)
            )
        else:
            error = max(float((a - b).abs().max()) for a, b in zip(found, want, strict=True)) / max(size, 1e-12)
        words = [w for w in words if "opposite" not in w]
        if not error <= TOLERANCE:
            if not words:
                return Outcome(p.seed, "silent", f"{form}: off by {error:.2g}", error)
            outcome = Outcome(p.seed, "reported", f"{form}: off by {error:.2g}; {words}", error)
        elif words:
            outcome.needless, outcome.why = True, f"{words}"
    return outcome


def blame(p: Program) -> list[str]:
    """The steps of a network that is not right: each alone in its spelling, or each alone in its first one."""
    every = range(len(p.kinds))
    alone = [k for k in every if judge(p, firsts=[j for j in every if j != k]).verdict != "right"]
    found = alone or [k for k in every if judge(p, firsts=[k]).verdict == "right"]
    return [p.kinds[k] for k in found]


def try_seeds(first: int, count: int, say: Callable[[str], None] = print) -> Counter[str]:
    """Judge the networks of many seeds; prints those that are not right."""
    tally: Counter[str] = Counter()
    for seed in range(first, first + count):
        p = generate(seed)
        outcome = judge(p)
        tally[outcome.verdict] += 1
        tally["needless"] += outcome.needless
        if outcome.verdict != "right" or outcome.needless:
            verdict = outcome.verdict + (", needless" if outcome.needless else "")
            guilty = blame(p) or ["?", *p.kinds]
            say("\t".join([str(seed), verdict, p.rule, outcome.why, " | ".join(guilty).replace("\n", " ; ")]))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--show", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.show is not None:
        p = generate(options.show)
        print(p)
        print(judge(p))
        return
    begun = time.time()
    tally = try_seeds(options.first, options.count)
    print(f"{options.count} networks in {time.time() - begun:.0f} s: {dict(tally)}")
    sys.exit(tally["silent"] + tally["foreign"] > 0)


if __name__ == "__main__":
    main()
