"""The coefficient form: the relevance of an activation x is x · c, and autograd carries c.

A function that is homogeneous of degree one in its activations hands c on by its own derivative: by Euler's identity
x · Jᵀc sums to f · c, in proportion to contributions, which is LRP-0. Biases and constants absorb exactly their share.
So most calls run as they are: nothing is recorded or kept, and no Python runs in the backward pass. The rule of a site,
asked in the forward pass, says which do not (:data:`TREATMENTS`).

A rule may give relevance to a zero where it reads the model's input: where a composite has such rules, relevance itself
is carried there, before the first function that does more than move and scale values (``Tag.final``). Where such a rule
stands elsewhere, or anything else has no coefficient, :class:`NoCoefficient` is raised, and the explanation is made in
the reference form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..composites import Composite
from ..rules import Rule, activation, any_site, linear, product
from ..rules.arithmetic import GUARD, divide, measured_over, working
from ..sites.call import Call
from ..sites.site import OUTPUT, Site
from ..sites.tag import Tag, tag_of
from .nodes import LateSoftmax, NoCoefficient, Normalized, Ratio, Scaled, ScaledOperand, Stabilized, ToRelevance
from .reference import ReferenceForm, depth_of_result

#: Runs a call in a way of its own; or None, where the site becomes a node that goes through relevance itself.
Treatment = Callable[["CoefficientForm", Call, Site, list[Tensor], Any], Any]

BRIDGED = object()


class CoefficientForm:
    """Most calls run as they are; the rest become nodes that are given coefficients."""

    early = True

    def __init__(self, composite: Composite) -> None:
        self.composite = composite
        self.reference = ReferenceForm()
        self.linear_count = 0
        self._natively: dict[str, bool] = {}
        self._rules: dict[str, Rule | None] = {}
        #: whether relevance itself is carried close to the input: some rule might give it to a zero there
        self.final = not all(has_coefficient(rule) for _, rule in (*composite.rows, *composite.base))

    # ------------------------------------------------------------------ what handlers ask for

    def enter(self, leaf: Tensor) -> tuple[Tensor, bool]:
        """What the model gets for an input, and whether relevance itself is carried there."""
        if self.final or leaf.is_complex() or leaf.layout is not torch.strided:
            return leaf.clone(), True
        return ToRelevance.make(leaf).clone(), False

    def refuse(self, why: str) -> None:
        """Give up: the explanation needs the reference form."""
        raise NoCoefficient(why)

    @contextlib.contextmanager
    def rectifying(self, call: Call) -> Iterator[list[Any]]:
        """Around a ReLU that alone reads what a site made: its result takes the place of the site's.

        No coefficient comes back to what it cuts off, so that the site needs that for nothing; and so an in-place ReLU
        has nothing copied.
        """
        tag = tag_of(call.activations[0])
        before = tag.site if call.name == "relu" and tag is not None and tag.readers == 1 else None
        results: list[Any] = []
        if before is None or not before.rectifiable or before.folded_into_next:
            yield results
            return
        before.result = None
        yield results
        before.result, before.rectified = results[0].detach(), True
        call.interceptor.remember(before.result, before, OUTPUT)

    def before_native(self, call: Call) -> None:
        """Values that are moved together carry the same thing."""
        final = [t for t in call.activations if tag_of(t).final]  # type: ignore[union-attr]
        if final and len(final) < len(call.activations):
            if call.inplace and any(t is call.args[0] for t in final):
                self.refuse("the model writes into its input")
            self.convert(call, final)

    def natively(self, kind: str) -> bool:
        """Whether every site of a kind runs as it is, whatever the site."""
        answer = self._natively.get(kind)
        if answer is None:
            rule: Any = self.composite.rule_of_kind(kind)
            if type(rule) in (linear.Epsilon, linear.ZeroRule, any_site.Norm):
                answer = rule.bias == "keep" and not rule.relative and rule.epsilon <= GUARD
            else:
                answer = type(rule) is any_site.Pass and kind in ("scale", "activation")
            self._natively[kind] = answer
        return answer

    def as_is(self, call: Call, kind: str, tensors: list[Tensor], gate: int, nonnegative: bool) -> Any:
        """As :meth:`Call.as_is`."""
        if not self.natively(kind) or writes_elsewhere(call, tensors):
            return None
        tracer, tags = call.interceptor, [tag_of(t) for t in tensors]
        if any(tag.final for tag in tags):  # type: ignore[union-attr]
            return None
        if call.inplace:
            tracer.before_write(call.args[0])
        if kind == "linear" and not tensors[0].is_contiguous():
            out = call.func(*call.args, **call.kwargs)  # see native()
        else:
            out = call.func(*held(call.args, tensors), **held_by_name(call.kwargs, tensors))
        depth = max(tag.depth for tag in tags) + (kind == "linear")  # type: ignore[union-attr]
        if call.inplace:
            tracer.wrote(call.args[0], depth)
        made = Tag(tracer.token, None, gate, nonnegative, depth)
        made.smooth = kind in SMOOTH
        return tracer.tag(out, made)

    def node(self, call: Call, site: Site, tensors: list[Tensor], gate: int, nonnegative: bool) -> Any:
        """Run the call so that coefficients are handed back as the rule of this site says."""
        tracer = call.interceptor
        site.index = tracer.register(site)
        self.rank(site)
        final = [tag_of(t).final for t in tensors]  # type: ignore[union-attr]
        if len(tensors) == 1 and final[0] and site.is_preprocessing:
            out = self.reference.registered(call, site, tensors, gate, nonnegative)
            tag_of(out).final = True  # type: ignore[union-attr]
            return out
        depth = depth_of_result(site, [tag_of(t) for t in tensors])
        rule = self.rule_of(site)
        treatment = TREATMENTS.get(type(rule), bridged) if rule is not None else late
        if any(final) and treatment is not bridged and treatment is not late:
            if call.inplace and tag_of(call.args[0]) is not None and tag_of(call.args[0]).final:  # type: ignore[union-attr]
                self.refuse("the model writes into its input")
            converted = self.convert(call, [t for t, f in zip(tensors, final, strict=True) if f])
            tensors = [converted.get(id(t), t) for t in tensors]
        out = treatment(self, call, site, tensors, rule)
        if out is BRIDGED:
            return self.bridge(call, site, tensors, rule, gate, nonnegative)
        if not out.requires_grad:
            return out
        if call.inplace:
            tracer.wrote(call.args[0], depth)
        # sites are remembered where somebody asks later: folding, the model's end, stabilisers behind a ReLU
        kept = site if site.kind in ("linear", "softmax") or site.result is not None else None
        tag = Tag(tracer.token, kept, gate, nonnegative, depth)
        tag.smooth = site.kind in SMOOTH
        return tracer.tag(out, tag)

    def rule_of(self, site: Site) -> Rule | None:
        """The rule of a site; asked once for all sites of a kind where they share one."""
        kind = site.kind
        if kind not in self._rules:
            self._rules[kind] = self.composite.rule_of_kind(kind)
        rule = self._rules[kind]
        return rule if rule is not None and rule.applies_to(site) else self.composite.rule_in_forward(site)

    # ------------------------------------------------------------------ ways to carry a call out

    def convert(self, call: Call, final: Sequence[Tensor]) -> dict[int, Tensor]:
        """Give the call, for arguments whose relevance is carried, the same values with a coefficient."""
        tracer, converted = call.interceptor, {}
        for t in final:
            before = tag_of(t)
            made = ToRelevance.make(t)
            tag = Tag(tracer.token, before.site, before.gate, before.nonnegative, before.depth)  # type: ignore[union-attr]
            converted[id(t)] = tracer.tag(made, tag)
        call.replace(converted)
        return converted

    def native(self, call: Call, site: Any, tensors: list[Tensor]) -> Any:
        """The call as it is, with all but these tensors constant."""
        if call.inplace:
            call.interceptor.before_write(call.args[0])
        if site.family == "dense" and not tensors[0].is_contiguous():
            # torch.matmul looks at whether the weight requires grad when it chooses a kernel: the output is the model's
            return call.func(*call.args, **call.kwargs)
        return call.func(*held(call.args, tensors), **held_by_name(call.kwargs, tensors))

    def stabilized(self, call: Call, site: Any, out: Tensor, epsilon: float, relative: bool) -> Tensor:
        """A result that runs as it is, with a stabiliser, which wants its value."""
        if out.is_complex():
            self.refuse(f"complex values with a stabiliser at {site.describe()}")
        site.rectifiable = site.family != "dense" and site.kind in ("linear", "sum") and not relative
        site.result = out.detach()
        call.interceptor.remember(site.result, site, OUTPUT)
        return Stabilized.make(out, site, epsilon, measured_over(site, relative), call.inplace)

    def bridge(
        self, call: Call, site: Site, tensors: list[Tensor], rule: Rule | None, gate: int, nonnegative: bool
    ) -> Any:
        """A node that goes through relevance: c becomes R = y · c, the rule is asked, R_in / x is handed on."""
        final = [tag_of(t).final for t in tensors]  # type: ignore[union-attr]
        if rule is not None and not all(final) and not gives_zeros_nothing(rule, site, self.composite):
            self.refuse(f"{rule!r} at {site.describe()} may give relevance to zeros")
        if any(t.is_complex() for t in tensors):
            self.refuse(f"complex values at {site.describe()}")
        site.rectifiable = isinstance(rule, linear.LinearRule) and not rule.relative and site.family != "dense"
        out = self.reference.registered(
            call, site, tensors, gate, nonnegative, acting=lambda s: Bridge(s, rule, final, self.composite)
        )
        if site.kind in SMOOTH:
            tag_of(out).smooth = True  # type: ignore[union-attr]
        return out

    def rank(self, site: Site) -> None:
        """Count the linear sites as they come; a batch norm that is folded has the rank of its layer."""
        if site.kind == "linear":
            if site.rank < 0:
                site.rank = self.linear_count
                self.linear_count += 1
        elif site.kind == "recurrent":
            self.linear_count += 1


#: Kinds of sites whose results are hardly ever exactly 0.
SMOOTH = frozenset({"linear", "sum", "normalization"})


def held_one(value: Any, tensors: list[Tensor]) -> Any:
    """An argument with every tensor but the given ones taken off autograd."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad and not any(value is t for t in tensors) else value
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value):
        return type(value)(held_one(v, tensors) for v in value)
    return value


def held(args: tuple[Any, ...], tensors: list[Tensor]) -> tuple[Any, ...]:
    """As :func:`held_one`, for positional arguments."""
    return tuple([held_one(v, tensors) for v in args])


def held_by_name(kwargs: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """As :func:`held_one`, for keyword arguments."""
    return {name: held_one(v, tensors) for name, v in kwargs.items()} if kwargs else kwargs


# ------------------------------------------------------------------------------------------------ the bridge


class Bridge:
    """A site in the coefficient form whose rule speaks of relevance."""

    def __init__(self, site: Site, rule: Rule | None, final: list[bool], composite: Composite) -> None:
        self.site = site
        self.binding = site.binding
        self.rule = rule
        self.final = final
        self.composite = composite
        #: outputs of a site that has several; what the model writes over is replaced by a copy (``remember``)
        self.saved: list[Tensor | None] = []
        self.kind, self.index = site.kind, site.index

    @property
    def result(self) -> Tensor | None:
        """The output, where it is kept."""
        return self.site.result

    @result.setter
    def result(self, value: Tensor | None) -> None:
        self.site.result = value

    @property
    def complex(self) -> tuple[bool, ...]:
        """Which inputs are complex."""
        return self.site.complex

    def value(self, slot: int | str) -> Tensor | None:
        """As :meth:`Site.value`, of the outputs."""
        return self.saved[slot] if self.saved else None  # type: ignore[index]

    def keep(self, slot: int | str, copy: Tensor) -> None:
        """As :meth:`Site.keep`, of the outputs."""
        self.saved[slot] = copy  # type: ignore[index]

    def keep_outputs(self, outputs: tuple[Any, ...], tracer: Any) -> None:
        """Keep the results of a call that has several."""
        self.saved = [t.detach() if isinstance(t, Tensor) else None for t in outputs]
        for k, t in enumerate(self.saved):
            if t is not None:
                tracer.remember(t, self, k)

    def bound(self) -> Rule:
        """The rule; asked now, at the end, where it depends on what came later."""
        if self.rule is None:
            rule = self.composite.rule_for(self.site)
            if not all(self.final) and not gives_zeros_nothing(rule, self.site, self.composite):
                raise NoCoefficient(f"{rule!r} at {self.site.describe()} may give relevance to zeros")
            return rule
        return self.rule

    def propagate(self, c: Any) -> tuple[Tensor | None, ...]:
        """Coefficients of the inputs (relevance, where that is carried) from those of the output."""
        rule = self.bound()
        if not any(self.final) and not isinstance(c, tuple):
            found = rule.coefficient(self.site, c)
            if found is not None:
                return found
        R = self.relevance_of(c)
        return self.handed(rule.relevance(self.site, R))

    def propagate_several(self, c: Any) -> Sequence[Tensor | None]:
        """As :meth:`propagate`, for several maps (the first axis)."""
        rule = self.bound()
        if self.site.batches_maps and rule.batches_maps:
            return self.propagate(c)
        if isinstance(c, tuple):
            maps: Any = [tuple(None if r is None else r[k] for r in c) for k in range(self.binding.map_count)]
        else:
            maps = c
        found = zip(*(self.propagate(one) for one in maps), strict=True)
        return [None if parts[0] is None else torch.stack(parts) for parts in found]

    def relevance_of(self, c: Any) -> Any:
        """R = y · c."""
        if isinstance(c, tuple):
            saved: Sequence[Any] = self.saved
            return tuple(None if k is None else k * working(y) for k, y in zip(c, saved, strict=True))
        return c * working(self.site.output)

    def handed(self, R: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """R itself, or R / x."""
        return tuple(
            r if r is None or final else divide(r, x, GUARD)
            for r, x, final in zip(R, self.site.inputs, self.final, strict=True)
        )

    def forget(self) -> None:
        """End of a backward pass."""
        self.site.forget()
        if not self.binding.retain:
            self.saved = []


def gives_zeros_nothing(rule: Rule, site: Site, composite: Composite) -> bool:
    """Whether a rule gives no relevance to an input that is exactly 0, so that it has a coefficient."""
    if isinstance(rule, product.Unrolled):
        steps = (Step(site, "linear", "dense"), Step(site, "sum", ""))
        return all(gives_zeros_nothing(composite.rule_for(s), s, composite) for s in steps)  # type: ignore[arg-type]
    return rule.keeps_zeros(site)


class Step:
    """What a composite is asked about before a step of a fused call exists."""

    def __init__(self, outer: Site, kind: str, family: str) -> None:
        self.kind, self.family, self.op = kind, family, "linear" if family else "cell_sum"
        self.path, self.module, self.binding = outer.path, outer.module, outer.binding
        self.rank, self.depth = outer.rank, outer.depth
        self.index, self.is_output, self.arity = outer.index, False, 2
        self.gates: frozenset[int] = frozenset()
        self.claims: frozenset[str] = frozenset()
        self.batch_norm, self.keeps_zero = None, True

    def __getattr__(self, name: str) -> Any:
        return getattr(Site, name)  # what any site says of itself

    def describe(self) -> str:
        return f"a step of {self.path!r}"


# ------------------------------------------------------------------------------------------------ rules


def bridged(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """Through relevance."""
    return BRIDGED


def late(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """The rule depends on what comes later."""
    if site.kind == "softmax" and not tag_of(tensors[0]).final:  # type: ignore[union-attr]
        site.is_output = True
        at_the_end = form.composite.rule_for(site)
        site.is_output = False
        otherwise = form.composite.rule_for(site)
        if type(at_the_end) is any_site.Pass and type(otherwise) in (product.SoftmaxTaylor, any_site.Stop):
            taylor = type(otherwise) is product.SoftmaxTaylor
            return LateSoftmax.make(tensors[0], site, taylor, lambda: call.func(*call.args, **call.kwargs))
    return BRIDGED


def writes_elsewhere(call: Call, tensors: list[Tensor]) -> bool:
    """Whether an in-place call writes into an activation that gets no relevance."""
    return call.inplace and call.args[0].requires_grad and not any(call.args[0] is t for t in tensors)


def proportional(form: CoefficientForm, call: Call, site: Any, tensors: list[Tensor], rule: Any) -> Any:
    """ε and Norm: the derivative itself, with statistics constant; a real stabiliser wants the output."""
    stabilized = rule.relative or rule.epsilon > GUARD
    if rule.bias == "distribute" or (rule.bias == "zero" and site.has_bias) or writes_elsewhere(call, tensors):
        return BRIDGED
    if site.kind == "linear":
        if stabilized or not site.runs_natively(tag_of(call.args[0])):
            return BRIDGED
        site.native = True
        return form.native(call, site, [call.arg(0, "input")] if site.batch_norm is not None else tensors)
    if site.kind == "normalization":
        out = Normalized.make(tensors[0], site, lambda: call.func(*call.args, **call.kwargs))
    else:
        out = form.native(call, site, tensors)
    if site.kind == "unknown" and (not isinstance(out, Tensor) or out.layout is not torch.strided):
        form.refuse(f"{site.describe()} has several results")
    if site.kind == "unknown" and out.requires_grad:
        out.register_hook(lambda c: site.binding.report_unknown(site))
    if not stabilized:
        return out
    return form.stabilized(call, site, out, rule.epsilon, rule.relative)


def passing(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """Pass: f(x) / x times the coefficient, which for homogeneous functions is their derivative."""
    if writes_elsewhere(call, tensors):
        return BRIDGED
    if site.kind == "scale" or (site.kind == "activation" and call.says("homogeneous") and call.says("zero_to_zero")):
        return form.native(call, site, tensors)
    x = tensors[0]
    if len(tensors) != 1 or x.is_complex():
        return BRIDGED
    # what a sum or a linear map made is hardly ever exactly 0
    site.gives_zeros = not site.keeps_zero and not tag_of(x).smooth  # type: ignore[union-attr]
    if call.inplace:
        call.interceptor.before_write(call.args[0])
    out = Ratio.make(x, site, lambda: call.func(*call.args, **call.kwargs), call.inplace, call.says("statistic"))
    if out.shape != x.shape:
        site.saved = [x.detach()]
        site.pass_through(out)  # says what is wrong
    return out


def uniform(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """Equal shares."""
    return shared(form, call, site, tensors, [1.0 / len(tensors)] * len(tensors), rule)


def signal_takes_all(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """Gates are constants."""
    signals = [k not in site.gates for k in range(len(tensors))]
    if not any(signals):
        signals = [True] * len(tensors)
    share = 1.0 / sum(signals)
    return shared(form, call, site, tensors, [share if s else 0.0 for s in signals], rule)


def shared(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], shares: list[float], rule: Any) -> Any:
    """A product whose factors get these shares: the derivative times the share, a factor without one a constant."""
    getting = [t for t, s in zip(tensors, shares, strict=True) if s]
    share = next(s for s in shares if s)
    if not site.multiplies(shares) or writes_elsewhere(call, getting) or (call.inplace and share != 1):
        return BRIDGED
    if any(t is g for t, s in zip(tensors, shares, strict=True) if not s for g in getting):
        return BRIDGED
    out = form.native(call, site, getting)
    if share != 1:
        out = Scaled.make(out, share)
    if site.kind == "matmul" and rule.epsilon > GUARD:
        out = form.stabilized(call, site, out, rule.epsilon, False)
    return out


def excitation(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """The derivative of relevance: at a ReLU the same as to pass."""
    return form.native(call, site, tensors) if site.op == "relu" else BRIDGED


def softmax_taylor(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """AttnLRP's proposition 3.1 is the softmax's own vector-Jacobian product."""
    return form.native(call, site, tensors)


def stop(form: CoefficientForm, call: Call, site: Site, tensors: list[Tensor], rule: Any) -> Any:
    """A constant."""
    return call.constant()


def attention(form: CoefficientForm, call: Call, site: Any, tensors: list[Tensor], rule: Any) -> Any:
    """The fused kernel's own derivative, with the rule's shares for query, key and value: never a matrix S × S."""
    if rule.epsilon > GUARD:
        return BRIDGED
    # what query and key get is taken of the output's coefficient: two passes over activations in place of three
    common = rule.shares[0] or rule.shares[2]
    operands = []
    for k, (name, share) in enumerate(zip(("query", "key", "value"), rule.shares, strict=True)):
        t = call.arg(k, name)
        if t.requires_grad:
            gets = share and any(t is a for a in tensors)
            t = t.detach() if not gets else t if share == common else ScaledOperand.make(t, share / common)
        operands.append(t)
    rest = {k: v for k, v in call.kwargs.items() if k not in ("query", "key", "value")}
    out = call.func(*operands, *held(call.args[3:], []), **held_by_name(rest, []))
    if common != 1:
        # not by a node: the kernel keeps its output, and autograd must see the model write into that
        out.register_hook(lambda c: c * common)
    return out


def has_coefficient(rule: Rule) -> bool:
    """Whether a rule has a coefficient whatever the site, as far as its kind of function has one."""
    return type(rule) in (*TREATMENTS, product.Unrolled) and getattr(rule, "bias", "keep") == "keep"


#: Rules with a way of their own to hand a coefficient on; subclasses count as rules of their own.
TREATMENTS: dict[type[Rule], Treatment] = {
    **dict.fromkeys((linear.Epsilon, linear.ZeroRule, any_site.Norm, any_site.Taylor), proportional),
    any_site.Pass: passing,
    any_site.Stop: stop,
    product.Uniform: uniform,
    product.SignalTakesAll: signal_takes_all,
    product.SoftmaxTaylor: softmax_taylor,
    activation.ExcitationBackprop: excitation,
    product.AttentionAttnLRP: attention,
    product.AttentionCPLRP: attention,
}
