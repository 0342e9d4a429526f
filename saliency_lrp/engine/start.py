"""Where relevance starts: which number of the output is explained, and with what relevance.

Asked here for all doors, so that a class, a token or a negative index means the same to each of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, unknown_name
from ..model.devices import accumulator
from ..values import holds, is_captured, is_finite

#: Where scores are, where a model names its results.
SCORES = ("out.logits", "out['logits']", "out.out", "out['out']")

#: What is no score although it comes first: the hidden states of a headless language model.
HIDDEN = ("last_hidden_state", "hidden_states")


# ------------------------------------------------------------------------------------------------ the scores


@dataclass(frozen=True)
class Scores:
    """The tensor of an output that classes are read from.

    Attributes
    ----------
    values : Tensor
        (N, classes), or (N, T, tokens) of a language model; anything else can be explained by a callable only.
    where : str
        How a callable target would write it: ``"out"``, ``"out.logits"``.
    """

    values: Tensor
    where: str = "out"

    @property
    def named_hidden(self) -> bool:
        """Whether the model itself calls this hidden states, not scores."""
        return any(self.where.endswith(name) for name in HIDDEN)


def find_scores(output: Any) -> Scores:
    """Scores in whatever a model returns: a tensor, an object with ``logits``, a mapping, a tuple.

    Raises
    ------
    InputError
        If there is no floating-point tensor in it.
    """
    found = list(tensors_in(output, "out"))
    scores = [s for s in found if s.values.is_floating_point() or s.values.is_complex()]
    named = [s for s in scores if s.where in SCORES]
    batched = [s for s in scores if s.values.dim() > 1]
    attached = [s for s in batched or scores if s.values.requires_grad]
    for candidates in (named, attached, batched, scores):
        if candidates:
            return candidates[0]
    raise InputError(
        f"the model's output has no tensor of scores that depends on its input: it is {_shape_of(found, output)}. "
        "Give a callable that computes one from it"
    )


def tensors_in(value: Any, where: str) -> Iterator[Scores]:
    """The tensors of an output, each with the expression that gets it; objects with ``logits`` by that."""
    if isinstance(value, Tensor):
        yield Scores(value, where)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            plain = isinstance(key, str) and key.isidentifier() and getattr(value, key, None) is part
            yield from tensors_in(part, f"{where}.{key}" if plain else f"{where}[{key!r}]")
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        for k, part in enumerate(value):
            yield from tensors_in(part, f"{where}.{names[k]}" if names else f"{where}[{k}]")
    elif isinstance(getattr(value, "logits", None), Tensor):
        yield Scores(value.logits, f"{where}.logits")


def _shape_of(found: Sequence[Scores], output: Any) -> str:
    if not found:
        return type(output).__name__
    return ", ".join(f"{s.where} of {s.values.dtype} {tuple(s.values.shape)}" for s in found[:3])


def check_finite(values: Tensor) -> None:
    """Refuse an output that says nothing."""
    if holds(lambda: not is_finite(values), unknown=False):
        bad = int((~torch.isfinite(values)).sum())
        raise InputError(
            f"the model's output has NaN or infinite values ({bad} of {values.numel()}); there is nothing to explain: "
            "check its weights and the scale of the input"
        )


# ------------------------------------------------------------------------------------------------ the target


@dataclass(frozen=True)
class Choice:
    """What is explained of each item: one number of a row of scores.

    Attributes
    ----------
    scores : Tensor
        (N, C), or (N, T, V).
    position : Tensor or None
        (N,) int64: which of the T rows; None where an item has one row.
    index : Tensor
        (N,) int64: which number of the row.
    """

    scores: Tensor
    position: Tensor | None
    index: Tensor

    @property
    def rows(self) -> Tensor:
        """(N, classes): the scores among which each item's number stands."""
        return self.rows_of(self.scores)

    def rows_of(self, scores: Tensor) -> Tensor:
        """The same of a tensor like the scores, with a graph, say."""
        return rows_at(scores, self.position)

    @property
    def values(self) -> Tensor:
        """(N,): the numbers that are explained."""
        return self.rows.gather(1, self.index[:, None])[:, 0]

    def spread(self, rows: Tensor) -> Tensor:
        """Rows (N, classes) at their places in zeros shaped like the scores."""
        if self.position is None:
            return rows
        out = torch.zeros_like(self.scores, requires_grad=False)
        out[torch.arange(len(out), device=out.device), self.position] = rows
        return out


def rows_at(scores: Tensor, position: Tensor | None) -> Tensor:
    """(N, classes): the row of each item at its position."""
    if position is None:
        return scores
    return scores[torch.arange(len(scores), device=scores.device), position]


def choose(found: Scores, target: Any, last: Tensor | None = None, noun: str = "target") -> Choice:
    """Which number of each item is meant.

    Parameters
    ----------
    found : Scores
        (N, C) class scores, or (N, T, V): scores of every token at every position.
    target : None, int, sequence of int or integer tensor
        The highest score (the first on ties), one class for all items, or one for each. Negative ones count from the
        end. For (N, T, V) a token at the last position, or a pair (position, token).
    last : Tensor, optional
        (N,) int64: the position of each item's last token, where padding follows. Default: the last of all.
    noun : str
        What the caller calls the target.

    Raises
    ------
    InputError
        For scores of another shape, and for a target that is no index, out of range or of the wrong number.
    """
    scores = found.values.detach()
    if scores.dim() not in (2, 3) or scores.shape[-1] == 0 or found.named_hidden:
        raise InputError(_not_scores(found, noun))
    n, classes = scores.shape[0], scores.shape[-1]
    position = None
    if scores.dim() == 3:
        if scores.shape[1] == 0:
            raise InputError(_not_scores(found, noun))
        length = scores.shape[1]
        position = torch.full((n,), length - 1, device=scores.device) if last is None else last
        if isinstance(target, tuple):
            if len(target) != 2:
                raise InputError(
                    f"{noun} {target!r:.80} of an output of shape {tuple(scores.shape)} should be a token or a pair "
                    f"(position, token), as in {found.where}[:, position, token]"
                )
            position = _position(target[0], position, length, noun)
            target = target[1]
    if target is None:
        return Choice(scores, position, first_argmax(rows_at(scores, position)))
    what = "class" if position is None else "token"
    return Choice(scores, position, _indices(target, n, classes, noun, what).to(scores.device))


def first_argmax(rows: Tensor) -> Tensor:
    """(N,): where each row is highest, the first place on ties (``Tensor.argmax`` promises no order)."""
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    return torch.where(rows == rows.amax(1, keepdim=True), places, rows.shape[1] - 1).amin(1)


def _position(given: Any, last: Tensor, length: int, noun: str) -> Tensor:
    """Positions from the start, or, negative, from each item's last token."""
    wanted = torch.tensor(integers(given, noun), device=last.device)
    if wanted.numel() not in (1, len(last)):
        raise InputError(f"{noun} has {wanted.numel()} positions for {len(last)} items; give one, or one for each")
    position = torch.where(wanted < 0, last + 1 + wanted, wanted).expand(len(last))
    if holds(((position < 0) | (position >= length)).any, unknown=False):
        raise InputError(
            f"{noun}: position {given!r:.80} is out of range: the output has positions 0 to {length - 1}; negative "
            f"ones count from each item's last token, at {last.tolist()!r:.80}"
        )
    return position


def _indices(given: Any, n: int, classes: int, noun: str, what: str) -> Tensor:
    """One index per item."""
    if is_captured() and isinstance(given, Tensor):  # an input of the graph
        check_integers(given, noun)
        return torch.where(given < 0, given + classes, given).reshape(-1).expand(n)
    found = integers(given, noun)
    if len(found) not in (1, n):
        raise InputError(
            f"{len(found)} {noun}s were given for a batch of {n}: give one for all, or one for each of the {n} items"
            + ("; for several maps, give a list to Trace.relevance" if noun == "target" else "")
        )
    for index in found:
        if not -classes <= index < classes:
            plural = "classes" if what == "class" else f"{what}s"
            raise InputError(
                f"{noun} {index} is out of range: the model has {classes} {plural}, 0 to {classes - 1} "
                "(or negative, from the end)"
            )
    return torch.tensor([index % classes for index in found]).expand(n)


def check_integers(given: Tensor, noun: str) -> None:
    """Refuse a tensor that holds no indices."""
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or given.ndim > 1:
        raise InputError(
            f"{noun} should hold class indices, an integer tensor of 0 or 1 dimensions, not "
            f"{given.dtype} of shape {tuple(given.shape)}"
        )


def integers(given: Any, noun: str) -> list[int]:
    """The integers that somebody gave: one, a sequence, an array, a tensor."""
    if isinstance(given, Tensor):
        check_integers(given, noun)
        return given.reshape(-1).tolist()
    if isinstance(given, str | Mapping):
        raise InputError(_no_index(given, noun))
    several = isinstance(given, Sequence | range) or hasattr(given, "__array__")
    try:
        items = list(given) if several else [given]
    except TypeError:
        items = [given]  # a NumPy scalar
    if any(isinstance(item, bool) for item in items):
        raise InputError(_no_index(given, noun))
    try:
        return [operator.index(item) for item in items]
    except TypeError as error:
        raise InputError(_no_index(given, noun)) from error


def _no_index(given: Any, noun: str) -> str:
    return (
        f"{noun} {given!r:.80} is not a class index: give integer class indices (an int, one int per item, a tensor of "
        "them), None for the highest score, or a callable of the model's output"
    )


def example(found: Scores) -> str:
    """How one number per item would be read from the very output that is there."""
    dims, where = found.values.dim(), found.where
    if dims == 3:
        return f"{where}[:, 0, unit]" if found.named_hidden else f"{where}[:, -1, token]"
    if dims > 3:
        return f"{where}[:, 3].mean({tuple(range(1, dims - 1))})"
    return f"{where}[:, 3]" if dims == 2 else where


def _not_scores(found: Scores, noun: str) -> str:
    """What to do about an output that is no table of scores."""
    shape = tuple(found.values.shape)
    if found.named_hidden:
        said = f"{found.where} is of shape {shape}: hidden states, not class scores (N, C)"
    else:
        inside = "" if found.where == "out" else f" ({found.where})"
        said = f"the model's output should be class scores of shape (N, C) but is {shape}{inside}"
    return (
        f"{said}: say what to explain by a callable {noun} ({noun}=callable) that returns one number per item, for "
        f"example {noun}=lambda out: {example(found)}, or by a seed tensor of the output's shape"
    )


def last_positions(mask: Tensor | None, length: int) -> Tensor | None:
    """(N,): where each item's last token stands, by an attention mask of 1 for tokens and 0 for padding.

    Parameters
    ----------
    mask : Tensor or None
        (N, S) of any dtype; S may be more than ``length`` (tokens before are in a cache).
    length : int
        Positions that the output has.
    """
    if mask is None or mask.dim() != 2 or mask.shape[1] < length:
        return None
    seen = mask[:, -length:] != 0
    places = torch.arange(length, device=mask.device)
    last = torch.where(seen, places, -1).amax(1)
    return torch.where(last < 0, length - 1, last)


# ------------------------------------------------------------------------------------------------ the seed


def logit(rows: Tensor, index: Tensor) -> Tensor:
    """The target's own value."""
    return torch.zeros_like(rows).scatter(1, index, rows.gather(1, index))


def one(rows: Tensor, index: Tensor) -> Tensor:
    """1 at the target."""
    return torch.zeros_like(rows).scatter(1, index, torch.ones_like(rows[:, :1]))


def contrastive(rows: Tensor, index: Tensor) -> Tensor:
    """The target's value, against an equal share of its negative on each other class (Gu et al. 2018)."""
    values = rows.gather(1, index)
    others = -values / (rows.shape[1] - 1)
    return others.expand_as(rows).scatter(1, index, values)


def softmax(rows: Tensor, index: Tensor) -> Tensor:
    """Score times the derivative of the target's log-softmax: what decides for the class and against its competitors.

    With p the softmax of the scores z and t the target, R_j = z_j (δ_jt − p_j). It sums to the target's score less
    the mean score under p.
    """
    weights = rows.softmax(1, dtype=accumulator(rows)).to(rows.dtype)
    return rows * (one(rows, index) - weights)


class Seed(NamedTuple):
    """A way to start: relevance (N, classes) of scores (N, classes) by the target's index (N, 1).

    ``of_one`` is the same for numbers that are no classes; None where it sets a class against the others.
    """

    start: Callable[[Tensor, Tensor], Tensor]
    of_one: Callable[[Tensor], Tensor] | None


#: Seeds by name.
SEEDS: dict[str, Seed] = {
    "logit": Seed(logit, lambda values: values),
    "one": Seed(one, torch.ones_like),
    "contrastive": Seed(contrastive, None),
    "softmax": Seed(softmax, None),
}


def sum_of(seed: Any, values: Tensor) -> Tensor | None:
    """Σ of a seed at the output, by the numbers that are explained; None where those alone do not tell."""
    start = SEEDS[seed].of_one if isinstance(seed, str) else None
    return None if start is None else start(values)


def check_seed(seed: Any) -> None:
    """Refuse what is no seed."""
    if not (isinstance(seed, Tensor) or callable(seed) or (isinstance(seed, str) and seed in SEEDS)):
        raise unknown_name("seed", seed, SEEDS)


def seed_of(choice: Choice, seed: str) -> Tensor:
    """The relevance, shaped like the scores, that a named seed starts with."""
    rows = choice.rows
    if SEEDS[seed].of_one is None and rows.shape[1] < 2:
        raise InputError(f"seed={seed!r} needs at least two classes; the output has shape {tuple(choice.scores.shape)}")
    return choice.spread(SEEDS[seed].start(rows, choice.index[:, None]))


def given_seed(seed: Any, out: Tensor) -> Tensor | None:
    """A seed that is a tensor, or a callable that makes one of the output; None for a name."""
    if callable(seed) and not isinstance(seed, Tensor):
        seed = seed(out.detach())
        if not isinstance(seed, Tensor):
            raise InputError(
                f"a callable seed must return a tensor of the output's shape {tuple(out.shape)}, got {seed!r:.80}"
            )
    if not isinstance(seed, Tensor):
        return None
    if seed.shape != out.shape:
        raise InputError(f"seed has shape {tuple(seed.shape)}, but the output has {tuple(out.shape)}")
    if holds(lambda: not is_finite(seed), unknown=False):
        raise InputError("seed has values that are NaN or infinite")
    return seed.detach().to(out)


def whole_seed(values: Tensor, seed: str, why: str) -> Tensor:
    """A named seed on numbers that are no classes."""
    start = SEEDS[seed].of_one
    if start is None:
        raise InputError(f"seed={seed!r} sets a class against the others; {why}")
    return start(values)


def hidden_seed(values: Tensor, index: Any, seed: Any, name: str) -> Tensor:
    """The relevance that starts at some neurons of a module's output, 0 elsewhere.

    Parameters
    ----------
    values : Tensor
        (N, ...), the module's output.
    index : None, int, slice or tuple of those
        Which neurons of each item: ``(channel, y, x)``, ``(token, feature)``, a channel alone; None for all.
    seed : str, Tensor or callable
        How much relevance starts there.
    name : str
        The module's path, for errors.
    """
    given = given_seed(seed, values)
    start = whole_seed(values, seed, "a module's output has none") if given is None else given
    if index is None:
        return start
    picked = (slice(None), *(index if isinstance(index, tuple | list) else (index,)))
    mask = torch.zeros_like(values, dtype=torch.bool)
    try:
        mask[picked] = True
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"index={index!r} is no place in an item of module {name!r}, whose output has shape "
            f"{tuple(values.shape)}: {error}"
        ) from error
    return torch.where(mask, start, torch.zeros_like(start))
