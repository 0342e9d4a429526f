"""Token ids, categories and pixels of integer type, followed from the argument to where they become numbers.

An integer has no gradient, and so no relevance of its own: what it looks up has. Beside every integer tensor that comes
from an argument rides its **trail**, a float tensor of the same shape that never holds anything of use: its autograd
graph says which elements of the arguments each element comes from. Whatever moves ids about (slicing, padding,
joining) is done to the trail as well. Where ids become numbers, by an embedding, say, those numbers are where
relevance of the model ends; the trail hands it on to the arguments, in their own shape and order.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functions import facts
from ..sites.site import iter_tensors
from ..sites.tag import tag_of
from ..values import holds, of_the_example

if TYPE_CHECKING:
    from .inputs import Argument
    from .interception import Interceptor

#: Where a tensor's trail is kept.
TRAIL = "_saliency_lrp_trail"

#: Integer types of pictures and volumes; wider ones hold ids, lengths, masks and positions.
PIXELS = frozenset(
    getattr(torch, name) for name in ("uint8", "int8", "int16", "uint16", "uint32") if hasattr(torch, name)
)


class Trail:
    """What is known of one integer tensor.

    Attributes
    ----------
    path : Tensor or None
        Shaped like the integers, with a graph that leads to the arguments; None where they could not be followed.
    sources : frozenset of str
        The arguments they come from.
    counts : bool
        Whether the values are how often something occurs (one-hot vectors and their sums): numbers, not names.
    lost : str
        The call that could not be followed.
    """

    __slots__ = ("token", "path", "sources", "counts", "lost", "version")

    def __init__(
        self, token: object, path: Tensor | None, sources: frozenset[str], counts: bool = False, lost: str = ""
    ) -> None:
        self.token = token
        self.path = path
        self.sources = sources
        self.counts = counts
        self.lost = lost
        self.version = -1


@dataclass
class Ending:
    """Numbers that integers became: relevance ends at ``leaf``, and ``path`` hands it on to the arguments."""

    leaf: Tensor
    path: Tensor
    sources: frozenset[str]


class IdFollower:
    """Follows the integers of one forward pass.

    Parameters
    ----------
    interceptor : Interceptor
        Which sees every call, and hands those on that read integers of a trail.
    """

    def __init__(self, interceptor: Interceptor) -> None:
        self.interceptor: Interceptor = weakref.proxy(interceptor)  # which holds this
        self.token = interceptor.token
        #: whether anything has a trail at all: models without integers pay nothing
        self.active = False
        self.arguments: dict[str, Argument] = {}
        #: for each integer argument, where its relevance is read
        self.roots: dict[str, Tensor] = {}
        self.endings: list[Ending] = []
        #: names of the float arguments, and whether values of one became ids
        self.floats: list[str] = []
        self.from_floats = False
        self.result_dtype = torch.get_default_dtype()
        self._read_by_python: dict[str, str] = {}
        self._taken_as_constants: dict[str, str] = {}
        self._reported: set[str] = set()

    # ------------------------------------------------------------------ start and end

    def start(self, argument: Argument) -> Tensor:
        """A copy of an integer argument, at the head of a trail."""
        ids = argument.value.detach().clone()
        root = torch.zeros_like(ids, dtype=self.dtype, requires_grad=True)  # with the strides of the ids
        self.arguments[argument.name] = argument
        self.roots[argument.name] = root
        self.active = True
        return self.put(ids, root, frozenset({argument.name}))

    @property
    def dtype(self) -> torch.dtype:
        """In which trails add up: sums over features want more than half precision."""
        return torch.promote_types(self.result_dtype, torch.float32)

    def explained(self) -> set[str]:
        """Integer arguments that became numbers somewhere."""
        return {name for ending in self.endings for name in ending.sources if name in self.arguments}

    def hand_on(self, found: list[Tensor | None], targets: list[Tensor]) -> list[Tensor | None]:
        """Relevance at the endings, handed on to tensors at the other end of their trails.

        Parameters
        ----------
        found : list of Tensor or None
            What arrived at each of ``self.endings``, of one map.
        targets : list of Tensor
            Roots of integer arguments, and leaves of float arguments whose columns became ids.
        """
        pairs = [(e.path, R) for e, R in zip(self.endings, found, strict=True) if R is not None]
        if not pairs or not targets:
            return [None] * len(targets)
        return list(
            torch.autograd.grad(
                [path for path, _ in pairs],
                targets,
                [R.to(path.dtype) for path, R in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        )

    def remarks(self) -> list[str]:
        """Notes on integers that got no relevance, or only part of it."""
        notes = [
            f"input {name!r} was read as plain numbers by {where}; what follows from them gets no relevance"
            for name, where in self._read_by_python.items()
        ]
        for name, where in self._taken_as_constants.items():
            dtype = self.arguments[name].value.dtype
            notes.append(
                f"input {name!r} ({dtype}) became numbers by {where} and counts as a constant, as masks and lengths "
                "do; to have it explained, give it as float"
            )
        said = self.explained() | self._reported | self._read_by_python.keys() | self._taken_as_constants.keys()
        for name, argument in self.arguments.items():
            if name not in said and not is_mask(argument.value):
                notes.append(
                    f"input {name!r} ({argument.value.dtype}) gets no relevance: the model neither looked anything up "
                    "by it nor computed with it, as far as was seen"
                )
        return notes

    # ------------------------------------------------------------------ trails of tensors

    def put(
        self, t: Tensor, path: Tensor | None, sources: frozenset[str], counts: bool = False, lost: str = ""
    ) -> Tensor:
        """Give a tensor its trail."""
        trail = Trail(self.token, path, sources, counts, lost)
        trail.version = t._version
        setattr(t, TRAIL, trail)
        return t

    def trail(self, t: Any) -> Trail | None:
        """The trail of a tensor, or of the tensor that it is a view of, if that was written into since."""
        if not isinstance(t, Tensor):
            return None
        known: Trail | None = getattr(t, TRAIL, None)
        if known is not None and known.token is self.token and known.version == t._version:
            return known
        base = t._base
        if base is None:
            return None
        whole: Trail | None = getattr(base, TRAIL, None)
        if whole is None or whole.token is not self.token or whole.version != t._version:
            return None
        if whole.path is None:
            return whole
        path = whole.path.reshape(-1)[places_in(base, t)]
        return Trail(self.token, path, whole.sources, whole.counts)

    def among(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether any argument of a call has a trail."""
        return any(self.trail(t) is not None for t in every_tensor(args, kwargs))

    def trails(self, args: Any) -> list[Trail]:
        """Those of the tensors among some values."""
        return [trail for t in every_tensor(args, {}) if (trail := self.trail(t)) is not None]

    def where(self, name: str) -> str:
        """A call, for a report."""
        path = self.interceptor.location()[0]
        return f"{name} at {path or 'the model itself'!r}"

    # ------------------------------------------------------------------ every call that reads integers of a trail

    def call(self, func: Callable[..., Any], name: str, writes: bool, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run a call without activations, some of whose integers have a trail; its results get theirs."""
        lost = next((t for t in self.trails((*args, *kwargs.values())) if t.path is None), None)
        if lost is not None:
            return self._after_loss(lost, func, name, writes, args, kwargs)
        way = facts.way_of_integers(name)
        if way == "lost" and name.endswith(".get"):
            return plainly(func, args, kwargs)
        return HANDLERS[way](Integers(self, func, name, writes, args, kwargs))

    def beside_activations(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of a call that mixes activations and integers, with the latter as numbers; None if none is."""
        if name not in facts.MIXED:
            return None
        dtype = next(t.dtype for t in every_tensor(args, kwargs) if t.requires_grad)
        changed = False

        def number(t: Any) -> Any:
            nonlocal changed
            known = self.trail(t)
            if known is None or t.is_floating_point() or t.dtype == torch.bool:
                return t
            changed = True
            return self.as_numbers(t, dtype, name)

        args = (*(each(a, number) for a in args),)
        kwargs = {k: each(v, number) for k, v in kwargs.items()}
        return (args, kwargs) if changed else None

    def _after_loss(self, lost: Trail, func: Any, name: str, writes: bool, args: Any, kwargs: Any) -> Any:
        """A call that reads integers whose trail was lost: it matters where something is looked up by them."""
        out = plainly(func, args, kwargs)
        if facts.way_of_integers(name) in ("python", "places"):
            return out
        for t in [args[0]] if writes else every_tensor((out,), {}):
            if t.dtype == torch.bool:
                continue
            if t.is_floating_point() and name in TABLES:
                self.report(name, lost.sources, f"could not be followed through {lost.lost}")
            elif t.is_floating_point() and lost.sources <= self.arguments.keys():
                for source in lost.sources:
                    self._taken_as_constants.setdefault(source, self.where(name))
            else:
                self.put(t, None, lost.sources, lost=lost.lost)
        return out

    def report(self, name: str, sources: frozenset[str], what: str) -> None:
        """A warning that ids get no relevance."""
        self._reported |= sources
        said = " and ".join(repr(s) for s in sorted(sources))
        self.interceptor.unknown_call(name, f"the ids of input {said} {what}", "they get no relevance")

    def as_numbers(self, t: Tensor, dtype: torch.dtype, name: str) -> Tensor:
        """Integers as numbers of a floating-point type: an activation, or a constant where they are a mask."""
        known = self.trail(t)
        with torch.no_grad():
            out = t.to(dtype)
        if known is None or known.path is None or not self._are_numbers(t, known, name):
            return out
        return self.end(out, known.path, known.sources)

    def _are_numbers(self, t: Tensor, known: Trail, name: str) -> bool:
        """Whether integers that become numbers are what is explained, and not a mask, a length or a position."""
        if known.counts:
            return True
        sources = [self.arguments[s] for s in known.sources if s in self.arguments]
        pictures = [a for a in sources if a.value.dtype in PIXELS and (a.first or not is_mask(a.value))]
        made_a_mask = is_mask(t) and not all(is_mask(a.value) for a in sources)
        if len(pictures) == len(sources) and not made_a_mask:
            return True
        for a in sources:
            if not is_mask(a.value) and not is_mask(t):
                self._taken_as_constants.setdefault(a.name, self.where(name))
        return False

    def end(self, out: Tensor, path: Tensor, sources: frozenset[str]) -> Tensor:
        """Numbers that integers became, as an activation at which the relevance of the model ends."""
        for name in sources - self.arguments.keys():
            self.from_floats = True
            self.interceptor.note(
                f"values of {name!r} became ids at {self.interceptor.location()[0] or 'the model itself'!r}: their "
                "relevance is that of what was looked up by them"
            )
        leaf = out.detach().requires_grad_(True)
        self.endings.append(Ending(leaf, path, sources))
        return self.interceptor.enter(leaf)

    def read_by_python(self, t: Any, name: str) -> None:
        """The model took integers out of torch: what it does with them cannot be seen."""
        known = self.trail(t)
        if known is not None and not is_mask(t):
            for source in known.sources:
                self._read_by_python.setdefault(source, self.where(name))

    # ------------------------------------------------------------------ numbers that become integers

    def from_activation(self, args: tuple[Any, ...], out: Any, name: str) -> Any:
        """Values of a float input that were cast to integers: columns of a table that are categories.

        They keep a trail where they were only moved about before; rounded first or computed, they are lost.
        """
        if not isinstance(out, Tensor) or out.requires_grad or out.dtype == torch.bool or not args:
            return out
        source = args[0]
        if not isinstance(source, Tensor) or not source.requires_grad or out.shape != source.shape:
            return out
        self.active = True
        names = frozenset({self.floats[0] if len(self.floats) == 1 else "a float input"})
        if only_moved(source) and not out.is_floating_point():
            tag = tag_of(source)
            if tag is not None and not tag.final:  # what is handed on along the trail is relevance
                self.interceptor.form.refuse("values of a float input become ids")
            return self.put(out, source, names)
        return self.put(out, None, names, lost=self.where(name))


class Integers:
    """One call on integers with a trail."""

    def __init__(
        self, follower: IdFollower, func: Callable[..., Any], name: str, writes: bool, args: Any, kwargs: Any
    ) -> None:
        self.follower = follower
        self.func = func
        self.name = name
        self.writes = writes
        self.args = args
        self.kwargs = kwargs
        self.trails = follower.trails((*args, *kwargs.values()))
        self.sources: frozenset[str] = frozenset().union(*(t.sources for t in self.trails))
        base = args[0]._base if writes and isinstance(args[0], Tensor) else None
        #: of what the call writes a part of, before it does
        self.base_trail = None if base is None else follower.trail(base)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def trail(self, t: Any) -> Trail | None:
        return self.follower.trail(t)

    def path(self, t: Any) -> Tensor | None:
        """The trail itself; None for what has none. (Of a call with a lost trail no handler is asked.)"""
        known = self.follower.trail(t)
        return None if known is None else known.path

    def run(self) -> Any:
        """The call as the model made it."""
        return plainly(self.func, self.args, self.kwargs)

    @property
    def counts(self) -> bool:
        """Whether any of the integers are counts."""
        return any(t.counts for t in self.trails)

    def put(self, out: Tensor, path: Tensor | None, counts: bool = False) -> Tensor:
        """Give a result its trail. One that was written into changes what it is a view of, too."""
        if path is not None and not path.requires_grad:
            return out  # constants only
        base = out._base if self.writes else None
        if base is not None and path is not None:
            known = self.base_trail
            whole = like(path, base.shape) if known is None or known.path is None else known.path
            part = path.expand(out.shape).reshape(-1)
            whole = whole.reshape(-1).index_copy(0, places_in(base, out).reshape(-1), part).reshape(base.shape)
            sources = self.sources if known is None else self.sources | known.sources
            self.follower.put(base, whole, sources, counts)
        return self.follower.put(out, path, self.sources, counts)

    def lose(self, out: Any) -> Any:
        """Results whose integers cannot be followed."""
        for t in every_tensor((self.args[0],) if self.writes else (out,), {}):
            if t.dtype != torch.bool:
                self.follower.put(t, None, self.sources, lost=self.follower.where(self.name))
        return out

    def again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with activations in place of integers: seen as any other."""
        return self.follower.interceptor.__torch_function__(self.func, (), args, kwargs)


# ------------------------------------------------------------------------------------------------ kinds of calls

#: A way in which integers pass a function (``facts.WAYS``) -> what is done to their trail.
HANDLERS: dict[str, Callable[[Integers], Any]] = {}


def follows(way: str) -> Callable[[Callable[[Integers], Any]], Callable[[Integers], Any]]:
    """Decorator: the function serves calls that integers pass in this way."""
    return functools.partial(HANDLERS.setdefault, way)


@follows("moved")
def moved(call: Integers) -> Any:
    """Views, joins, copies: the same is done to the trail."""
    positions = facts.MOVED_ARGUMENTS.get(call.name, (0,)) or tuple(range(len(call.args)))
    positions = tuple(k for k in positions if k < len(call.args))
    names = tuple(n for n in DATA_NAMES if n in call.kwargs)
    if not call.follower.trails((*(call.args[k] for k in positions), *(call.kwargs[n] for n in names))):
        return looked_up(call) if call.name in LOOKUPS else scattered(call)
    target = call.args[0] if call.writes else None
    if target is not None and target.is_floating_point():  # integers are copied into a float tensor
        return call.again(*substitute(call, lambda t: call.follower.as_numbers(t, target.dtype, call.name)))
    before = call.trail(target)
    out = call.run()
    if isinstance(out, Tensor) and out.is_floating_point():  # joined with floats
        return call.again(*substitute(call, lambda t: call.follower.as_numbers(t, out.dtype, call.name)))
    example = call.trails[0].path
    assert example is not None

    def path_of(t: Any) -> Any:
        if not isinstance(t, Tensor) or (t.dtype == torch.bool and call.trail(t) is None):
            return t
        if target is not None and t is target:
            return like(example, t.shape) if before is None or before.path is None else before.path.clone()
        path = call.path(t)
        return t.to(example.dtype) if path is None else path

    args = [each(a, path_of) if k in positions else a for k, a in enumerate(call.args)]
    kwargs = {k: each(v, path_of) if k in names else v for k, v in call.kwargs.items() if k != "dtype"}
    func = SAME_ON_TRAILS.get(call.name, call.func)
    paths = func(*args, **kwargs)
    if target is not None:
        call.put(target, args[0], call.counts)
    elif isinstance(out, Tensor):
        call.put(out, paths, call.counts)
    else:
        for t, path in zip(every_tensor((out,), {}), every_tensor((paths,), {}), strict=True):
            call.put(t, path, call.counts)
    return out


@follows("by element")
def element_by_element(call: Integers) -> Any:
    """Offsets, hashes, casts: each result comes from the integers at its place; from several, from each alike."""
    out = call.run()
    result = call.args[0] if call.writes else out
    if not isinstance(result, Tensor) or result.dtype == torch.bool:
        return out
    if result.is_floating_point() or result.is_complex():
        return call.again(*substitute(call, lambda t: call.follower.as_numbers(t, result.dtype, call.name)))
    call.put(result, shared_path([t.path for t in call.trails if t.path is not None]).expand(result.shape), call.counts)
    return out


@follows("cast")
@follows("same")
def cast(call: Integers) -> Any:
    """To another type: a float one makes numbers of integers. ``detach()`` and ``.data`` give the very integers."""
    out, t = call.run(), call.args[0]
    known = call.trail(t)
    if not isinstance(out, Tensor) or known is None or (out.dtype == torch.bool != t.dtype):
        return out
    if out.dtype != t.dtype and (out.is_floating_point() or out.is_complex()):
        return call.follower.as_numbers(t, out.dtype, call.name)
    return call.put(out, known.path, known.counts)


@follows("looked up")
def looked_up(call: Integers) -> Any:
    """Ids pick rows or values of a constant table."""
    out = call.run()
    path = LOOKUPS[call.name](call, out)
    if path is None or not isinstance(out, Tensor):
        return call.lose(out)
    path = path.expand(out.shape)
    if out.is_floating_point() or out.is_complex():
        return call.follower.end(out, path, call.sources)
    return call.put(out, path) if out.dtype != torch.bool else out


def embedded(call: Integers, out: Tensor) -> Tensor | None:
    path = call.path(call.arg(0, "input"))
    path = call.path(call.arg(1, "weight")) if path is None else path
    return None if path is None else path.unsqueeze(-1)


def selected(call: Integers, out: Tensor) -> Tensor | None:
    """``table.index_select(dim, ids)``."""
    path = call.path(call.arg(2, "index"))
    after = out.dim() - 1 - int(call.arg(1, "dim")) % out.dim()
    return None if path is None else path.reshape(-1, *(1,) * after)


def gathered(call: Integers, out: Tensor) -> Tensor | None:
    """``table.gather(dim, ids)``: one value per id."""
    return call.path(call.arg(2, "index"))


def taken(call: Integers, out: Tensor) -> Tensor | None:
    """``table.take(ids)``, ``take_along_dim(table, ids, dim)``."""
    return call.path(call.arg(1, "indices", call.kwargs.get("index")))


def indexed(call: Integers, out: Tensor) -> Tensor | None:
    """``table[ids]``, with slices, ellipses and other indices beside."""
    table, index = call.args[0], call.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    tensors = [i for i in items if isinstance(i, Tensor)]
    paths = [path for i in tensors if (path := call.path(i)) is not None]
    if not paths or any(i.dtype == torch.bool for i in tensors) or any(isinstance(i, list) for i in items):
        return None
    shape = torch.broadcast_shapes(*(i.shape for i in tensors))
    before = index_position(items, table.dim())
    path = shared_path(paths).expand(shape)
    return path.reshape(*(1,) * before, *shape, *(1,) * (out.dim() - before - len(shape)))


def index_position(items: list[Any], dims: int) -> int:
    """Before which axis of the result the axes of the index tensors stand.

    Where they were, if they stand side by side; else in front of all (as in NumPy, but for plain integers, which
    torch takes first).
    """
    taken_dims = sum(1 for i in items if i is not None and i is not Ellipsis and not isinstance(i, bool))
    flat: list[str] = []
    for item in items:
        if item is Ellipsis:
            flat += ["axis"] * (dims - taken_dims)
        elif isinstance(item, Tensor):
            flat.append("index")
        elif item is None or isinstance(item, slice):
            flat.append("axis")
    places = [k for k, kind in enumerate(flat) if kind == "index"]
    side_by_side = places[-1] - places[0] + 1 == len(places)
    return places[0] if side_by_side else 0


def scattered(call: Integers) -> Any:
    """Constants written where ids say: a bag of words, a multi-hot vector."""
    target, path = call.args[0], scattered_path(call)
    if path is None:
        return unfollowed(call)
    if not target.is_floating_point() and not target.is_complex():
        out = call.run()
        call.put(target if call.writes else out, path, counts=True)
        return out
    if not call.writes:
        return call.follower.end(call.run(), path, call.sources)
    with torch.no_grad():
        result = target.clone()
        call.func(result, *call.args[1:], **call.kwargs)
    numbers = call.follower.end(result, path, call.sources)
    return call.follower.interceptor.__torch_function__(torch.Tensor.copy_, (), (target, numbers))


def scattered_path(call: Integers) -> Tensor | None:
    """The trail of a target written into where ids say; an id's share of a place is one of its count there."""
    target, index = call.args[0], call.arg(2, "index")
    if call.name in ("__setitem__", "index_put"):
        index = call.args[1] if isinstance(call.args[1], tuple | list) else (call.args[1],)
    elif not call.name.startswith("scatter"):
        return None
    found = call.follower.trails((index,) if isinstance(index, Tensor) else tuple(index))
    if not isinstance(target, Tensor) or len(found) != 1 or found[0].path is None:
        return None
    path = found[0].path
    zeros = like(path, target.shape)
    if isinstance(index, Tensor):
        dim = call.arg(1, "dim")
        count = zeros.scatter_add(dim, index, torch.ones_like(path)).gather(dim, index)
        return zeros.scatter_add(dim, index, path / count)
    if not all(isinstance(i, Tensor) and i.dtype != torch.bool for i in index):
        return None
    places = tuple(index)
    path = path.expand(torch.broadcast_shapes(*(i.shape for i in places)))
    count = zeros.index_put(places, torch.ones_like(path), accumulate=True)[places]
    return zeros.index_put(places, path / count, accumulate=True)


@follows("one hot")
def one_hot(call: Integers) -> Any:
    """Ids as one-hot vectors: integers, but counts, no names."""
    out, path = call.run(), call.path(call.arg(0, "input", call.kwargs.get("tensor")))
    return unfollowed(call) if path is None else call.put(out, path.unsqueeze(-1).expand(out.shape), counts=True)


@follows("compared")
def compared(call: Integers) -> Any:
    """``ids == k`` is a mask; against all classes at once, ``ids[:, None] == arange(n)``, it is a one-hot vector."""
    out = call.run()
    sides = [call.arg(0, "input"), call.arg(1, "other")]
    paths = [path for s in sides if (path := call.path(s)) is not None]
    if len(paths) == 1 and isinstance(out, Tensor) and not call.writes and isinstance(sides[0], Tensor | int):
        if out.numel() > paths[0].numel():
            return call.put(out, paths[0].expand(out.shape), counts=True)
    return out


@follows("counted")
def counted(call: Integers) -> Any:
    """``bincount(ids)``: an id's share is one of its count."""
    out, path = call.run(), call.path(call.arg(0, "input"))
    if path is None or call.arg(1, "weights") is not None:
        return unfollowed(call)
    ids = call.arg(0, "input").long()
    return call.put(out, like(path, out.shape).scatter_add(0, ids, path / out[ids]), counts=True)


@follows("reduced")
def reduced(call: Integers) -> Any:
    """Sums of counts, in proportion; or whether there are any."""
    out, t = call.run(), call.arg(0, "input")
    known = call.trail(t)
    if isinstance(out, tuple):
        return ordered(call)
    if known is None or known.path is None or not known.counts or not isinstance(out, Tensor):
        return unfollowed(call)
    kwargs = {k: v for k, v in call.kwargs.items() if k in ("dim", "axis", "keepdim", "keepdims")}
    dims = call.args[1:3]
    values = t.to(known.path.dtype)
    total = torch.sum(values, *dims, **kwargs)
    path = torch.sum(known.path * values, *dims, **kwargs) / torch.where(total == 0, torch.ones_like(total), total)
    if out.is_floating_point():
        return call.follower.end(out, path, call.sources)
    return call.put(out, path, counts=True)


@follows("ordered")
def ordered(call: Integers) -> Any:
    """Sorted, or the largest: the values are at the places that come back beside them."""
    out, known = call.run(), call.trail(call.arg(0, "input"))
    if known is None or known.path is None or not isinstance(out, tuple) or not known.path.dim():
        return unfollowed(call)
    dim = call.kwargs.get("dim", call.args[2 if call.name in ("topk", "kthvalue") else 1 :][:1] or -1)
    dim = dim[0] if isinstance(dim, tuple) else dim
    values, places = out[0], out[1]
    kept = places.dim() == known.path.dim()
    path = known.path.gather(dim, places if kept else places.unsqueeze(dim))
    call.put(values, path if kept else path.squeeze(dim), known.counts)
    return out


@follows("walked")
def walked(call: Integers) -> Any:
    """``for row in ids``."""
    return iter(call.follower.call(torch.Tensor.unbind, "unbind", False, call.args, {}))


@follows("python")
def to_python(call: Integers) -> Any:
    """``tolist()``, ``item()``, ``numpy()``."""
    call.follower.read_by_python(call.args[0], call.name)
    return call.run()


@follows("places")
def places_only(call: Integers) -> Any:
    """Sizes, zeros like them, where they are: nothing that the ids themselves say."""
    return call.run()


@follows("lost")
def unfollowed(call: Integers) -> Any:
    """Anything else: it is reported where something is looked up by what comes out."""
    out = call.run()
    results = list(every_tensor((call.args[0],) if call.writes else (out,), {}))
    if any(t.is_floating_point() for t in results):
        tables = [t for t in every_tensor(call.args, call.kwargs) if t.is_floating_point()]
        if tables or call.writes or len(results) > 1:
            call.follower.report(call.name, call.sources, "cannot be followed through it")
            return out
        if call.trail(call.args[0] if call.args else None) is None:
            return out  # sizes of something made anew
        dtype = results[0].dtype
        return call.again(*substitute(call, lambda t: call.follower.as_numbers(t, dtype, call.name)))
    return call.lose(out)


@follows("bag")
def bag(call: Integers) -> Any:
    """``F.embedding_bag``: ids are embedded one by one; the bag is a call of the same function on what they gave."""
    ids, weight = call.arg(0, "input"), call.arg(1, "weight")
    known = call.trail(ids)
    if known is None or known.path is None or call.func is not F.embedding_bag:
        return unfollowed(call)
    options = (
        {"mode": "mean"}
        | dict(zip(BAG, call.args[2:], strict=False))
        | {k: v for k, v in call.kwargs.items() if k not in ("input", "weight")}
    )
    norm = {k: options.pop(k) for k in ("max_norm", "norm_type", "scale_grad_by_freq") if k in options}
    with torch.no_grad():
        rows = F.embedding(ids.reshape(-1), weight.detach(), **norm)
    vectors = call.follower.end(rows, known.path.reshape(-1, 1).expand(rows.shape), call.sources)
    numbers = torch.arange(ids.numel(), device=ids.device).reshape(ids.shape)
    padding = options.pop("padding_idx", None)
    if padding is not None:
        padded = ids == padding % weight.shape[0]
        if holds(padded.any, unknown=True):
            options["padding_idx"] = int(padded.reshape(-1).nonzero()[0])
            numbers = torch.where(padded, options["padding_idx"], numbers)
    return call.again((numbers, vectors), options)


#: Arguments of ``F.embedding_bag`` after ids and weight.
BAG = (
    *("offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights"),
    *("include_last_offset", "padding_idx"),
)


# ------------------------------------------------------------------------------------------------ small things


def every_tensor(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors among arguments, two levels into lists and tuples."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from iter_tensors(tuple(value), {})


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value, or each of a list or tuple, changed."""
    if isinstance(value, tuple | list):
        return type(value)(change(v) for v in value) if type(value) in (tuple, list) else [change(v) for v in value]
    return change(value)


def substitute(call: Integers, change: Callable[[Tensor], Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with integers of a trail changed."""

    def one(t: Any) -> Any:
        return change(t) if isinstance(t, Tensor) and call.trail(t) is not None else t

    return tuple(each(a, one) for a in call.args), {k: each(v, one) for k, v in call.kwargs.items()}


def plainly(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call on constants; parameters among them are constants, too."""
    with torch.no_grad():
        return func(*args, **kwargs)


def places_in(base: Tensor, view: Tensor) -> Tensor:
    """Where the elements of a view stand in its base: their numbers among the base's, shaped like the view."""
    memory = 1 + sum((n - 1) * step for n, step in zip(base.shape, base.stride(), strict=True))
    numbers = torch.zeros(memory, dtype=torch.long, device=base.device)
    numbers.as_strided(base.shape, base.stride()).copy_(torch.arange(base.numel()).reshape(base.shape))
    return numbers.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())


def shared_path(paths: list[Tensor]) -> Tensor:
    """The trail of what several integers make together: relevance goes to each alike."""
    return sum(paths[1:], paths[0]) / len(paths)


def like(path: Tensor, shape: Any) -> Tensor:
    """Zeros of another shape, of a trail's type and device."""
    return torch.zeros(shape, dtype=path.dtype, device=path.device)


def is_mask(t: Tensor) -> bool:
    """Whether integers say no more than yes or no."""
    if t.dtype == torch.bool:
        return True
    with of_the_example():
        return bool(((t == 0) | (t == 1)).all())


#: Autograd nodes that only move values.
MOVES = frozenset(
    "AccumulateGrad CloneBackward0 ViewBackward0 UnsafeViewBackward0 ReshapeAliasBackward0 AliasBackward0 "
    "SliceBackward0 SelectBackward0 IndexBackward0 IndexSelectBackward0 GatherBackward0 SplitBackward0 "
    "SplitWithSizesBackward0 UnbindBackward0 NarrowBackward0 PermuteBackward0 TransposeBackward0 TBackward0 "
    "ExpandBackward0 SqueezeBackward0 SqueezeBackward1 UnsqueezeBackward0 CatBackward0 StackBackward0 "
    "AsStridedBackward0 RepeatBackward0 FlipBackward0 RollBackward0 MaskedSelectBackward0 ToCopyBackward0 "
    "ToRelevanceBackward".split()  # at an input, in the coefficient form
)


def only_moved(t: Tensor) -> bool:
    """Whether an activation is input values, moved about and nothing else."""
    pending, seen = [t.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().rpartition("::")[2] not in MOVES or len(seen) > 1000:
            return False
        pending.extend(n for n, _ in node.next_functions)
    return True


# ------------------------------------------------------------------------------------------------ the table

#: Names under which such arguments are given.
DATA_NAMES = ("input", "tensors", "sequences", "other", "src", "source", "values", "value")

#: What is done to trails where they may have other strides than the integers.
SAME_ON_TRAILS: dict[str, Callable[..., Any]] = {
    "view": torch.Tensor.reshape,
    "view_as": torch.Tensor.reshape_as,
    "alias": torch.Tensor.view_as,
}

#: Functions that read a table at the places that ids name: what they give of a trail.
LOOKUPS: dict[str, Callable[[Integers, Tensor], Tensor | None]] = {
    "embedding": embedded,
    "index_select": selected,
    "gather": gathered,
    "take": taken,
    "take_along_dim": taken,
    "__getitem__": indexed,
}

#: Every function that looks something up.
TABLES = frozenset({*LOOKUPS, "embedding_bag"})
