"""A site: one call of a torch function during the traced forward, and how it hands relevance back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from .call import Call


#: Slot of a site's output among what it keeps.
OUTPUT = -1


class Slot:
    """Stands for the k-th activation in the stored arguments of a call."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Held:
    """A tensor that is kept for the backward pass, and gets a copy of its own before the model writes into it."""

    __slots__ = ("saved",)

    def __init__(self, t: Tensor) -> None:
        self.saved = [t]

    def keep(self, slot: int | str, copy: Tensor) -> None:
        """As :meth:`Site.keep`."""
        self.saved = [copy]

    def value(self, slot: int | str) -> Tensor:
        """As :meth:`Site.value`."""
        return self.saved[0]


def fill(value: Any, tensors: Sequence[Tensor | None]) -> Any:
    """``value`` with every :class:`Slot` replaced by its tensor, and every constant given back."""
    if isinstance(value, Slot):
        return tensors[value.index]
    if isinstance(value, Held):
        return value.saved[0]
    if isinstance(value, tuple | list):
        return type(value)(fill(v, tensors) for v in value)
    return value


def as_reals(t: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, in a last axis of two; others as they are."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def any_complex(*values: Any) -> bool:
    """Whether one of these is a complex tensor or number."""
    return any(v.is_complex() if isinstance(v, Tensor) else isinstance(v, complex) for v in values)


def from_reals(t: Tensor) -> Tensor:
    """Pairs of reals, in a last axis of two, as a complex tensor."""
    return torch.view_as_complex(t.contiguous())


class Site:
    """One call of a torch function that relevance passes through.

    Subclasses, one per kind, say what the *transposed Jacobian* of the call is; a rule does the rest.

    Attributes
    ----------
    kind : str
        The kind of function (see ``README.md`` beside this file).
    op : str
        Canonical name of the torch function, such as ``"conv2d"``.
    path : str
        Dotted path of the module that made the call; ``""`` for the model itself.
    module : torch.nn.Module or None
        That module.
    index : int
        Execution order among all sites of the trace.
    inputs : tuple of Tensor
        The activations that went in, detached, in the order of the relevance returned; complex ones as pairs of reals
        in a last axis of two, as everywhere at a site.
    output : Tensor
        The activation that came out, detached.
    arity : int
        How many inputs receive relevance.
    rank : int
        Execution order among the linear sites (a layer and its folded batch norm count once); -1 on other kinds.
    depth : int
        How many linear sites lie between the model's input and this one, on the longest way of relevance: 0 where a
        linear site reads the input itself, through whatever moves, scales or shifts it; -1 on other kinds.
    """

    kind: ClassVar[str] = "unknown"
    family: str = ""
    #: Whether the function is ``max(x, 0)``, or that with a bound above.
    rectifies: bool = False
    #: Whether the function maps 0 to 0.
    keeps_zero: bool = False
    #: Whether it only scales and shifts by constants, as preprocessing does.
    is_preprocessing: bool = False
    #: In the coefficient form: whether the call ran as it is; what a softmax read, until its result is read.
    native: bool = False
    before: Tensor | None = None
    #: whether relevance that passes it would reach zeros
    gives_zeros: bool = False
    #: What the table of facts says of the function, as far as composites select sites by it.
    claims: frozenset[str] = frozenset()
    #: In the coefficient form: whether what the ReLU behind it makes of the output may be kept in its place, since no
    #: coefficient comes back to what that cuts off; and whether it is.
    rectifiable: bool = False
    rectified: bool = False
    #: Whether relevance of several maps at once, in a leading axis, may be handed to a rule that takes it.
    batches_maps: bool = False

    #: Axes (from the end) over which a relative stabiliser measures outputs: never one that could be the batch.
    own_axes: tuple[int, ...] = ()

    def __init__(self, call: Call) -> None:
        self.op = call.name
        self.path = call.path
        self.module = call.module
        self.index = -1
        self.arity = 1
        self.rank = self.depth = -1
        self.depth_after = 0
        self.folded_into_next = False
        self.binding = call.binding
        self.is_output = False
        self.parent: Site | None = None
        self.nonnegative = False
        self.gates: frozenset[int] = frozenset()
        self.func: Callable[..., Any] = call.func
        #: whether the call writes into its first argument
        self.inplace = call.inplace
        #: which inputs are complex
        self.complex: tuple[bool, ...] = ()
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.saved: list[Tensor | None] = []
        self.result: Tensor | None = None

    # ------------------------------------------------------------------ what rules see

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The activations that went in."""
        return tuple(as_reals(t) for t in self.saved if t is not None)

    @property
    def input(self) -> Tensor:
        """The only activation that went in."""
        return self.inputs[0]

    @property
    def output(self) -> Tensor:
        """The activation that came out."""
        assert self.result is not None, f"{self.describe()} has several outputs, or let go of its own"
        return as_reals(self.result)

    @property
    def account(self) -> bool:
        """Whether the account of relevance is being kept in this backward pass."""
        return self.binding.account is not None

    def absorb(self, **amounts: Tensor) -> None:
        """Note what bias, stabiliser or rule took of the relevance (summed)."""
        if self.binding.account is not None:
            self.binding.account.absorb(self, amounts)

    def place_at(self, depth: int) -> int:
        """Note how deep in the model the site stands; returns how deep its output is."""
        if self.kind == "linear":
            self.depth = depth if self.parent is None else self.parent.depth
        # what follows a recurrent layer is not the first layer, nor is the layer itself
        self.depth_after = depth + (self.kind in ("linear", "recurrent"))
        return self.depth_after

    def multiplies(self, shares: Sequence[float]) -> bool:
        """Whether each factor with a share has output / factor for its derivative."""
        return False

    def vjp(self, c: Tensor) -> tuple[Tensor | None, ...]:
        """Transposed Jacobian of the call, with statistics constant, applied to ``c``."""
        return self.gradient(c)

    def gradient(self, c: Tensor) -> tuple[Tensor | None, ...]:
        """The plain vector-Jacobian product, by running the call again under autograd."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(True) for t in self.inputs]
            out = self.call(leaves)
        if not out.requires_grad:
            return (None,) * len(leaves)  # torch has no derivative of it
        return torch.autograd.grad(out, leaves, c.to(out.dtype), allow_unused=True)

    def call(self, tensors: Sequence[Tensor]) -> Any:
        """The original function on other activations."""
        out = self.original(*self.as_called(tensors))
        return as_reals(out) if isinstance(out, Tensor) else out

    def as_called(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What rules see as pairs of reals, complex again."""
        if not any(self.complex):
            return list(tensors)
        return [from_reals(t) if z else t for t, z in zip(tensors, self.complex, strict=True)]

    def original(self, *tensors: Tensor) -> Any:
        """The original function on other activations, complex where they were; it writes into none of them."""
        values = list(tensors)
        args = fill(self.args, values)
        if self.inplace and args and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])
        return self.func(*args, **{k: fill(v, values) for k, v in self.kwargs.items()})

    def kept(self) -> Iterator[tuple[int | str, Tensor]]:
        """Constants that the site keeps an alias of: where, and the alias."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield name, value

    def value(self, slot: int | str) -> Tensor | None:
        """What is kept in a slot of the inputs, as the output or as an attribute."""
        if isinstance(slot, str):
            return getattr(self, slot)
        return self.result if slot == OUTPUT else self.saved[slot] if slot < len(self.saved) else None

    def keep(self, slot: int | str, copy: Tensor) -> None:
        """Keep a copy in place of an alias of memory that the model is about to write into."""
        if isinstance(slot, str):
            setattr(self, slot, copy)
        elif slot == OUTPUT:
            self.result = copy
        else:
            self.saved[slot] = copy

    # ------------------------------------------------------------------ how relevance passes

    def pass_through(self, R: Tensor) -> tuple[Tensor | None, ...]:
        """The relevance as it is, for one-to-one functions."""
        if self.arity != 1 or self.inputs[0].shape != R.shape[R.dim() - self.inputs[0].dim() :]:
            raise InputError(
                f"the rule Pass needs an output of the input's shape, but {self.describe()} maps "
                f"{[tuple(a.shape) for a in self.inputs]} to {tuple(R.shape)}; use another rule for it"
            )
        return (R,)

    def propagate(self, R: Tensor) -> tuple[Tensor | None, ...]:
        """Relevance of each input by the rule that the composite binds to this site."""
        binding = self.binding
        R_in = binding.rule_for(self).relevance(self, R)
        if binding.account is not None:
            binding.account.add(self, R, R_in)
        return R_in

    def propagate_several(self, R: Any) -> Sequence[Tensor | None]:
        """As :meth:`propagate`, for relevance of several maps (the first axis) of one forward pass."""
        rule = self.binding.rule_for(self)
        if self.batches_maps and rule.batches_maps:
            return rule.relevance(self, R)
        if isinstance(R, tuple):  # one for each output, None where no relevance arrived
            maps: Any = [tuple(None if r is None else r[k] for r in R) for k in range(self.binding.map_count)]
        else:
            maps = R
        found = zip(*(rule.relevance(self, r) for r in maps), strict=True)
        return [None if parts[0] is None else torch.stack(parts) for parts in found]

    def forget(self) -> None:
        """Let go of the activations on the way of the last backward pass, as autograd does of its own."""
        if not self.binding.retain and self.parent is None:
            self.saved, self.result = [], None

    def describe(self) -> str:
        """``"relu at 'layer1.0'"``."""
        return f"{self.op} at {self.path or 'the model itself'!r}"

    def __repr__(self) -> str:
        return f"<{self.index} {self.kind}: {self.describe()}>"


def iter_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors among the arguments, one level into lists and tuples."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):  # a union is slower, and this is asked of every call
            for v in value:
                if isinstance(v, Tensor):
                    yield v
