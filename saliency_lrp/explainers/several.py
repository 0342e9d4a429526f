"""Models of several inputs: their values as one tensor, for methods that know one, and maps of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.inputs import Arguments
from ..errors import InputError

TOKENS = (
    "Token ids? saliency_lrp.explain_text(model, tokenizer, text) explains words; "
    "RelevancePropagator(model, 'attnlrp').trace(input_ids=..., attention_mask=...).relevance() gives one number per id"
)


class Bundle:
    """The inputs of one call: those that a method explains, and those that it holds as they are.

    Parameters
    ----------
    model : torch.nn.Module
    inp : Tensor, tuple or mapping of Tensor
        In the order of the model's arguments, or by their names.
    constants : sequence of str or int
        Inputs that are not explained, by name or by position; integers and masks are not, either.
    """

    def __init__(self, model: nn.Module, inp: Any, constants: Sequence[str | int] = ()) -> None:
        args, kwargs = arguments(inp)
        self.arguments = Arguments(model, args, kwargs, constants)
        tensors = self.arguments.tensors
        self.explained = [k for k, a in enumerate(tensors) if a.value.is_floating_point() and not a.constant]
        if not self.explained:
            dtypes = ", ".join(f"{a.name}: {a.value.dtype}" for a in tensors)
            raise InputError(
                f"none of the inputs is a floating point tensor that could be explained ({dtypes}). {TOKENS}."
            )
        self.given = [a.value.detach().clone() for a in tensors]
        sizes = {self.given[k].shape[0] if self.given[k].dim() else None for k in self.explained}
        if len(sizes) != 1 or None in sizes:
            shapes = ", ".join(f"{tensors[k].name}: {tuple(self.given[k].shape)}" for k in self.explained)
            raise InputError(
                f"inputs that are explained need the same number of items along their first axis, but have {shapes}; "
                "name those that have none by constants="
            )
        self.items: int = sizes.pop()  # type: ignore[assignment]

    # ------------------------------------------------------------------ all at once

    def packed(self) -> Tensor:
        """(N, values): what is explained, side by side."""
        return torch.cat([self.given[k].reshape(self.items, -1) for k in self.explained], 1)

    def unpacked(self, values: Tensor) -> dict[int, Tensor]:
        """The inputs in packed values, (M, values), by their number."""
        parts = values.split([self.given[k].numel() // max(self.items, 1) for k in self.explained], 1)
        return {
            k: part.reshape(len(values), *self.given[k].shape[1:]).to(self.given[k].dtype)
            for k, part in zip(self.explained, parts, strict=True)
        }

    def call_packed(self, run: Callable[..., Any], values: Tensor) -> Any:
        """Run the model on packed values: those given, or several variants of all items, one after the other."""
        return self.call(run, self.unpacked(values), len(values))

    # ------------------------------------------------------------------ one at a time

    def call_alone(self, run: Callable[..., Any], which: int, values: Tensor) -> Any:
        """Run the model on other values of one input, the others as they are."""
        return self.call(run, {which: values}, len(values))

    def call(self, run: Callable[..., Any], changed: Mapping[int, Tensor], items: int) -> Any:
        """Run the model with some inputs changed, the others repeated as often as the batch is."""
        tensors = [changed[k] if k in changed else self._repeated(t, items) for k, t in enumerate(self.given)]
        args, kwargs = self.arguments.filled(t.clone() for t in tensors)  # a model may write into its input
        return run(*args, **kwargs)

    def _repeated(self, t: Tensor, items: int) -> Tensor:
        if items == self.items or t.dim() == 0 or t.shape[0] != self.items:
            return t
        return t.repeat(items // self.items, *(1,) * (t.dim() - 1))

    def item(self, number: int) -> Bundle:
        """One item of the batch."""
        one: Bundle = object.__new__(Bundle)
        one.arguments, one.explained, one.items = self.arguments, self.explained, 1
        one.given = [t[number : number + 1] if t.dim() and t.shape[0] == self.items else t for t in self.given]
        return one

    def arranged(self, maps: Mapping[int, Tensor]) -> Any:
        """Maps in the order or under the names of the inputs."""
        return self.arguments.arranged(maps)


def arguments(inp: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model: a tensor, a tuple of them, a mapping of them by name."""
    if isinstance(inp, Mapping):
        args, kwargs = (), {str(name): value for name, value in inp.items()}
    else:
        args, kwargs = tuple(inp) if isinstance(inp, tuple) else (inp,), {}
    if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise InputError(
            f"the input must be a torch tensor, a tuple of them or a dict of them by the model's argument names, not "
            f"{type(inp).__name__}: {inp!r:.80}"
        )
    return args, kwargs
