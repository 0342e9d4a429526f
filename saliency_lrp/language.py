"""Which words decided: a language model, its tokenizer and a text in, words with relevance out."""

from __future__ import annotations

import base64
import html
import inspect
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .model.answer import class_name, class_names, probabilities
from .model.devices import device_of
from .model.unwrapped import unwrapped
from .propagator import RelevancePropagator, Trace
from .text import RelevantText, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Side of a cell of the matrix picture, and its largest sides, in inches.
CELL, WIDEST, HIGHEST = 0.32, 14.0, 10.0


def explain_text(
    model: nn.Module, tokenizer: Any, text: str, target: Any = None, composite: Any = "attnlrp"
) -> TextExplanation:
    """Which tokens of a text decided what a language model says of it.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model, a classifier of texts, a masked language model, or any model of token ids.
    tokenizer : callable or tokenizers.Tokenizer
        A Hugging Face tokenizer, a ``tokenizers.Tokenizer``, or a callable from a text to ids or to a mapping with
        ``input_ids``.
    text : str
        What the model reads.
    target : None, int, str, tuple or list, optional
        What is explained. Of a classifier: a class, by number or name; the likeliest by default. Of a language model:
        the next token, by number or as it is written; ``(position, token)`` for another place; the likeliest next token
        by default (at the mask, where the text has one). A list asks for a map of each, by one batched backward pass.
    composite : str, Composite or Rule
        Rules; the default are those of AttnLRP (Achtibat et al. 2024).

    Returns
    -------
    TextExplanation
        ``tokens``, and ``relevance`` of shape (T,), or (targets, T) for a list; shows itself.

    Raises
    ------
    InputError
        For a text that the model cannot read, and for targets that do not exist.
    """
    if not isinstance(text, str) or not text:
        raise InputError(f"text must be a string that is not empty, got {type(text).__name__}: {text!r:.80}")
    model = unwrapped(model)
    encoded = encode(tokenizer, text)
    args, kwargs = _arguments(model, encoded)
    held = [name for name in kwargs if name != "input_ids"]
    trace = RelevancePropagator(model, composite, constants=held).bound_trace(*args, **kwargs)
    words = Vocabulary(model, tokenizer, encoded)
    asked = target if isinstance(target, list) else [target]
    chosen = [words.choose(trace, one) for one in asked]
    relevance = trace.relevance([c.target for c in chosen])[:, 0].detach().cpu()
    several = isinstance(target, list)
    return TextExplanation(
        encoded.tokens,
        relevance if several else relevance[0],
        [c.name for c in chosen],
        [c.probability for c in chosen],
        trace.warnings(),
    )


# ------------------------------------------------------------------------------------------------ text to ids


@dataclass
class Encoded:
    """A text as its tokenizer has it: ids of shape (1, T), the tokens, and what else goes with them."""

    ids: Tensor
    tokens: list[str]
    beside: dict[str, Tensor] = field(default_factory=dict)


def encode(tokenizer: Any, text: str) -> Encoded:
    """Token ids and tokens of a text, from any kind of tokenizer."""
    if not callable(tokenizer) and hasattr(tokenizer, "encode"):  # tokenizers.Tokenizer
        found = tokenizer.encode(text)
        ids = getattr(found, "ids", found)
        return Encoded(_row(ids), list(getattr(found, "tokens", None) or _tokens(tokenizer, ids)))
    if not callable(tokenizer):
        raise InputError(
            f"tokenizer must be a Hugging Face tokenizer, a tokenizers.Tokenizer or a callable that gives ids, got "
            f"{type(tokenizer).__name__}"
        )
    found = tokenizer(text)
    if not isinstance(found, Mapping):
        ids = _row(found)
        return Encoded(ids, _tokens(tokenizer, ids[0].tolist()))
    ids = _row(found["input_ids"])
    beside = {name: _row(value) for name, value in found.items() if name != "input_ids" and _is_row(value)}
    return Encoded(ids, _tokens(tokenizer, ids[0].tolist()), beside)


def _is_row(value: Any) -> bool:
    return isinstance(value, Tensor | Sequence) and len(value) > 0 and not isinstance(value, str)


def _row(values: Any) -> Tensor:
    """(1, T) int64."""
    row = torch.as_tensor(values, dtype=torch.long)
    row = row[None] if row.dim() == 1 else row
    if row.dim() != 2 or row.shape[0] != 1 or row.shape[1] == 0:
        raise InputError(f"the tokenizer should give the ids of one text, but gave values of shape {tuple(row.shape)}")
    return row


def _tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens by their ids, as the tokenizer writes them; the ids themselves where it does not say."""
    several = getattr(tokenizer, "convert_ids_to_tokens", None)
    if several is not None:
        return [str(token) for token in several(list(ids))]
    one = getattr(tokenizer, "id_to_token", None) or getattr(tokenizer, "decode_token", None)
    return [str(one(i)) if one is not None else str(i) for i in ids]


def _arguments(model: nn.Module, encoded: Encoded) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model is called with: of what the tokenizer gave, that which ``forward`` takes."""
    device = device_of(model)
    names = inspect.signature(model.forward).parameters
    if "input_ids" not in names:
        return (encoded.ids.to(device),), {k: v.to(device) for k, v in encoded.beside.items() if k in names}
    kwargs = {"input_ids": encoded.ids.to(device)}
    kwargs |= {name: value.to(device) for name, value in encoded.beside.items() if name in names}
    start = getattr(getattr(model, "config", None), "decoder_start_token_id", None)
    if "decoder_input_ids" in names and start is not None:
        kwargs["decoder_input_ids"] = torch.tensor([[start]], device=device)
    return (), kwargs


# ------------------------------------------------------------------------------------------------ targets


@dataclass(frozen=True)
class Chosen:
    """One target: as a trace takes it, its name, and the probability that the model gives it (NaN if none)."""

    target: Any
    name: str
    probability: float


class Vocabulary:
    """Names of what a model can say: its classes, or the tokens of its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any, encoded: Encoded) -> None:
        self.tokenizer = tokenizer
        self.encoded = encoded
        self.classes = class_names(model)

    def choose(self, trace: Trace, target: Any) -> Chosen:
        """A target by number, name or place; None for the likeliest."""
        if callable(target):
            raise InputError(
                "explain_text explains classes and tokens; for a function of the output use "
                "RelevancePropagator(model, composite).trace(input_ids=...).relevance(target)"
            )
        of_tokens = trace.scores().values.dim() == 3
        place, what = target if isinstance(target, tuple) and len(target) == 2 else (None, target)
        if isinstance(what, str):
            what = self.token(what) if of_tokens else self.label(what)
        if place is None and of_tokens:
            place = self.mask()
        choice = trace.choose(what if place is None else (place, what))
        index = int(choice.index[0])
        shares = probabilities(choice.rows[0])
        name = readable(_tokens(self.tokenizer, [index])[0])[0] if of_tokens else class_name(self.classes, index)
        if isinstance(target, tuple) and choice.position is not None:
            name = f"{name} (after {readable(self.encoded.tokens[int(choice.position[0])])[0]})"
        resolved = index if choice.position is None else (int(choice.position[0]), index)
        return Chosen(resolved, name, float("nan") if shares is None else float(shares[index]))

    def mask(self) -> int | None:
        """Where a masked language model has a word to fill in."""
        mask = getattr(self.tokenizer, "mask_token_id", None)
        places = [] if mask is None else (self.encoded.ids[0] == mask).nonzero()[:, 0].tolist()
        return places[0] if len(places) == 1 else None

    def token(self, text: str) -> int:
        """The id of one token, as it is written or as the tokenizer marks it."""
        exact = getattr(self.tokenizer, "convert_tokens_to_ids", None) or getattr(self.tokenizer, "token_to_id", None)
        if exact is not None:
            found = exact(text)
            if found is not None and found != getattr(self.tokenizer, "unk_token_id", None):
                return int(found)
        encode_plain: Callable[..., Any] | None = getattr(self.tokenizer, "encode", None)
        if encode_plain is None:
            raise InputError(f"target {text!r}: this tokenizer has no names of tokens; give the token's number")
        ids = encode_plain(text, add_special_tokens=False)
        ids = list(getattr(ids, "ids", ids))
        if len(ids) != 1:
            raise InputError(
                f"target {text!r} is {len(ids)} tokens ({', '.join(_tokens(self.tokenizer, ids))}), and a map is of "
                "one: give one of them, by its text or number"
            )
        return int(ids[0])

    def label(self, name: str) -> int:
        """The number of a class by its name."""
        named = self.classes or {}
        numbers = list(named) if isinstance(named, Mapping) else range(len(named))
        known = {str(named[k]): int(k) for k in numbers}
        if name not in known:
            raise InputError(
                f"target {name!r} is none of the model's classes: {', '.join(known) or 'they have no names'}"
            )
        return known[name]


# ------------------------------------------------------------------------------------------------ the result


class TextExplanation:
    """Tokens with their relevance for one target, or for several; shows itself in a notebook.

    Attributes
    ----------
    tokens : list of str
        As the tokenizer writes them, special ones included.
    relevance : Tensor, shape (T,) or (targets, T)
        Signed, on the CPU.
    targets : list of str
        What was explained: names of classes or tokens.
    probabilities : list of float
        What the model gives them; NaN for a model with one output.
    warnings : list of str
        Why the map should not be trusted as it is, if anything.
    """

    def __init__(
        self,
        tokens: list[str],
        relevance: Tensor,
        targets: list[str],
        probabilities: list[float],
        warnings: Sequence[str] = (),
    ) -> None:
        self.tokens = tokens
        self.relevance = relevance
        self.targets = targets
        self.probabilities = probabilities
        self.warnings = list(warnings)

    @property
    def rows(self) -> Tensor:
        """(targets, T), also for one."""
        return self.relevance if self.relevance.dim() == 2 else self.relevance[None]

    def titles(self) -> list[str]:
        """A line for each target."""
        shares = ("" if math.isnan(p) else f" ({p:.1%})" for p in self.probabilities)
        return [name + share for name, share in zip(self.targets, shares, strict=True)]

    def texts(self) -> list[RelevantText]:
        """The text, colored for each target."""
        return [RelevantText(self.tokens, R.double(), title) for R, title in zip(self.rows, self.titles(), strict=True)]

    def plot(self) -> Figure:
        """The matrix of relevance, a row a target and a column a token; each row has its own scale."""
        import numpy as np
        from matplotlib.figure import Figure

        values = self.rows.double().numpy()
        largest = np.abs(values).max(1, keepdims=True)
        rows, columns = values.shape
        width, height = min(WIDEST, 1.8 + CELL * columns), min(HIGHEST, 1.2 + CELL * rows)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
        drawn = axes.imshow(scaled, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        every = max(1, round(columns * 0.16 / (width - 1.8)))  # labels that do not run into each other
        words = [readable(token)[0] for token in self.tokens]
        axes.set_xticks(range(0, columns, every), words[::every], rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(rows), self.targets, fontsize=8, parse_math=False)
        axes.set_xlabel("token read")
        axes.set_ylabel("explained")
        figure.colorbar(drawn, ax=axes, label="relevance / largest of the row", shrink=0.9)
        return figure

    def png(self) -> bytes:
        """:meth:`plot` as a picture."""
        stream = io.BytesIO()
        self.plot().savefig(stream, format="png", dpi=96, facecolor="white")
        return stream.getvalue()

    def _repr_html_(self) -> str:
        warned = "".join(f"<p><b>Warning:</b> {html.escape(w)}</p>" for w in self.warnings)
        if self.relevance.dim() == 1:
            return self.texts()[0]._repr_html_() + warned
        picture = base64.b64encode(self.png()).decode()
        alt = html.escape(f"Relevance of {len(self.tokens)} tokens for {len(self.targets)} targets")
        folded = "".join(text._repr_html_() for text in self.texts())
        return (
            f"<img alt='{alt}' style='max-width:100%;background:#fff' src='data:image/png;base64,{picture}'>"
            f"<details><summary>The text for each target</summary>{folded}</details>{warned}"
        )

    def _repr_png_(self) -> bytes | None:
        return self.png() if self.relevance.dim() == 2 else None

    def __repr__(self) -> str:
        """The strongest words of each target: what is left where there is no HTML."""
        lines = "\n".join(f"  {text!r}" for text in self.texts()[:10])
        more = f"\n  ... {len(self.targets) - 10} more targets" if len(self.targets) > 10 else ""
        return f"TextExplanation({len(self.tokens)} tokens, {len(self.targets)} targets)\n{lines}{more}"
