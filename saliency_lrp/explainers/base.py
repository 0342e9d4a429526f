"""What every explainer has in common: the question asked of the model, and the frame around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..as_written import AsWritten, GradientsAllTheSame
from ..engine.ids import PIXELS
from ..engine.start import Scores, check_finite, choose, find_scores
from ..errors import InputError, ModelCallError
from ..model.as_found import as_found
from ..model.unwrapped import refusal_of_values, unwrapped
from .several import TOKENS, Bundle

Target = int | Tensor | Sequence[int] | Callable[[Any], Tensor] | None


def check_input(inp: object, what: str = "the input") -> None:
    """Refuse an input tensor that cannot be explained (type, dtype, NaN, inf)."""
    if not isinstance(inp, Tensor):
        raise InputError(
            f"{what} must be a torch.Tensor with a batch dimension (a tuple or a dict of them for a model of several), "
            f"not {type(inp).__name__}."
        )
    if (why := refusal_of_values(inp)) is not None:
        raise InputError(f"{what} {why}.")
    if not inp.is_floating_point():
        mend = "Pixels? Call .float() on them, scaled as the model wants" if inp.dtype in PIXELS else TOKENS
        raise InputError(f"{what} must be a floating point tensor, not {inp.dtype}. {mend}.")
    if inp.ndim < 2:
        raise InputError(f"{what} needs a batch dimension, its shape is {tuple(inp.shape)}.")
    if not torch.isfinite(inp).all():
        bad = int((~torch.isfinite(inp)).sum())
        raise InputError(f"{what} has {bad} NaN or infinite values: clean it before explaining it.")


def _are_ids(inp: object) -> bool:
    """Whether an input is a batch of token ids."""
    return isinstance(inp, Tensor) and inp.dtype in (torch.int32, torch.int64) and inp.ndim == 2


def first_conv(model: nn.Module) -> nn.Module | None:
    """The first convolution in registration order, or None."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((module for module in model.modules() if isinstance(module, kinds)), None)


def call_model(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The model's output, also where it was made under inference_mode."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        # Autograd cannot save tensors made under inference_mode: run on normal copies.
        state = {k: v.clone() for k, v in (*model.named_parameters(), *model.named_buffers())}
        return torch.func.functional_call(model, state, args, kwargs)
    return model(*args, **kwargs)


def run_model(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the model; say which shape it could not take if it raises."""
    try:
        if not torch.is_grad_enabled():
            return call_model(model, *args, **kwargs)
        with AsWritten(), GradientsAllTheSame():
            return call_model(model, *args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, (InputError, torch.OutOfMemoryError)):
            raise
        conv = first_conv(model)
        hint = ""
        shapes = [tuple(t.shape) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if conv is not None and len(shapes) == 1 and len(shapes[0]) > 1 and shapes[0][1] != conv.in_channels:
            hint = f" Its first convolution takes {conv.in_channels} channels, the input has {shapes[0][1]}."
        kind = ModelCallError if isinstance(error, RuntimeError) else InputError
        raise kind(
            f"{type(model).__name__} could not run on an input of shape {', '.join(map(str, shapes))}.{hint} "
            f"It said: {error}"
        ) from error


def class_scores(output: Any) -> Tensor:
    """The (N, C) score tensor in a model's output; of a language model's (N, T, C), that of the last position."""
    found = find_scores(output)
    return choose(found, None, noun="label").rows_of(found.values)


def check_output(scores: Tensor) -> None:
    """Refuse NaN and inf in what the model said."""
    check_finite(scores)


def resolve_target(scores: Tensor, label: Target) -> Tensor:
    """Turn any kind of label into one class index per item of the batch.

    Parameters
    ----------
    scores : Tensor
        (N, C) class scores.
    label : int, Tensor, sequence of int or None
        None picks the highest score, the first one on ties; negative ones count from the end.

    Returns
    -------
    Tensor
        (N,) int64 on the device of `scores`.

    Raises
    ------
    InputError
        If a label is no index, out of range, or there are not 1 or N of them.
    """
    return choose(Scores(scores), label, noun="label").index


class Question:
    """Which number of the model's output is to be explained.

    Parameters
    ----------
    model : torch.nn.Module
        The model, already unwrapped.
    label : int, Tensor, sequence of int, callable or None
        A class per item, or a function of the output that returns one number per item.
    run : callable, optional
        Runs the model on what is explained, for models of several inputs.
    item : callable, optional
        Gives such a ``run`` for one item of the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        label: Target = None,
        run: Callable[[Tensor], Any] | None = None,
        item: Callable[[int], Callable[[Tensor], Any]] | None = None,
    ) -> None:
        self.model = model
        self.label = label
        self.run = run
        self._item = item
        self.target: Tensor | None = None
        self.scores: Tensor | None = None  # what the first pass gave

    def forward(self, x: Tensor) -> Tensor:
        """What captum calls: (N, C) class scores, or (N,) for a callable label."""
        # a model may write into its input
        output = run_model(self.model, x.clone()) if self.run is None else self.run(x)
        if not callable(self.label):
            return class_scores(output)
        scores = self.label(output)
        if not isinstance(scores, Tensor) or scores.shape != (x.shape[0],):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(
                f"label=callable should return one number per item, a tensor of shape ({x.shape[0]},), not {shape}."
            )
        return scores

    def of_item(self, number: int) -> Question:
        """The same question of one item of the batch; its target is this one's."""
        return self if self._item is None else Question(self.model, self.label, self._item(number))

    def score(self, x: Tensor) -> Tensor:
        """The explained number of every item, (N,); the first call settles the target."""
        scores = self.forward(x)
        if self.target is None:
            check_output(scores)
            self.scores = scores.detach()
        if callable(self.label):
            self.target = torch.zeros(x.shape[0], dtype=torch.long)
            return scores
        if self.target is None:
            self.target = resolve_target(scores, self.label)
        return scores.gather(1, self.target[:, None])[:, 0]

    def settle(self, x: Tensor) -> Tensor | None:
        """Settle the target by one forward pass; returns it as captum wants it."""
        with torch.no_grad():
            self.score(x)
        return None if callable(self.label) else self.target


class Explainer:
    """Base of the methods: checks, the frame that protects the model, and the final look.

    A method implements :meth:`attribute`. Its options are the keyword parameters of its
    ``__init__`` after `model`.
    """

    #: whether results depend on random numbers, so that ``random_seed`` matters
    random = False
    #: how several inputs are explained: ``"together"``, ``"apart"`` (each with the others held), or not at all
    several: str | None = None
    #: whether (N, T) token ids can be explained: the map then has one float an id
    takes_ids = False
    #: whether maps have a sign, for and against: it decides how they are drawn
    signed = True

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrapped(model)

    def attribute(self, x: Tensor, question: Question) -> Tensor:
        """Attribution of the asked score to `x`, like `x`. The model is protected here."""
        raise NotImplementedError

    def attribute_several(self, bundle: Bundle, label: Target) -> dict[int, Tensor]:
        """Attribution of the asked score to each of several inputs, by its number."""
        run = partial(run_model, self.model)
        if self.several == "together":
            question = Question(
                self.model, label, partial(bundle.call_packed, run), lambda i: partial(bundle.item(i).call_packed, run)
            )
            return bundle.unpacked(self.attribute(bundle.packed(), question))
        if self.several is None and len(bundle.explained) > 1:
            names = ", ".join(bundle.arguments.tensors[k].name for k in bundle.explained)
            raise InputError(
                f"{type(self).__name__} explains models of one input, and this one has several ({names}): take another "
                "method (lrp, grad_x_input, integrate_grad, ...)."
            )

        def alone(k: int) -> Question:
            def of_item(number: int) -> Callable[[Tensor], Any]:
                return partial(bundle.item(number).call_alone, run, k)

            return Question(self.model, label, partial(bundle.call_alone, run, k), of_item)

        return {k: self.attribute(bundle.given[k], alone(k)) for k in bundle.explained}

    def explain(self, inp: Any, ind: Target = None, raw_inp: object = None, constants: Sequence[str | int] = ()) -> Any:
        """Explain the model's output for a batch.

        Parameters
        ----------
        inp : Tensor, tuple or dict of Tensor
            (N, ...) floating point input, on the model's device; several inputs as a tuple, in the order of the model's
            arguments, or as a dict by their names. Integers and masks among those are held as they are.
        ind : int, Tensor, sequence of int, callable or None
            What to explain: a class for all, one per item, a function of the output that returns
            one number per item, or the highest score of each item.
        raw_inp : object
            Not used; TensorWatch passes the image here.
        constants : sequence of str or int
            Of several inputs, those that are not explained, by name or by position.

        Returns
        -------
        Tensor, tuple or dict of Tensor
            Signed (where the method is), same shape, dtype and device as `inp`. Of several inputs, those that are
            explained: in their order, or by their names; a tensor where that is one.

        Raises
        ------
        InputError
            For input, label, or output that cannot be explained, and for maps that are not finite.
        """
        if isinstance(inp, tuple | Mapping):
            return self._explain_several(Bundle(self.model, inp, constants), ind)
        if not (self.takes_ids and _are_ids(inp)):
            check_input(inp)
        if inp.shape[0] == 0:
            return torch.zeros_like(inp)
        with as_found(self.model):
            x = inp.detach().clone()
            result = self.attribute(x, Question(self.model, ind))
        return self._checked(result, inp)

    def _explain_several(self, bundle: Bundle, label: Target) -> Any:
        for k in bundle.explained:
            check_input(bundle.given[k], f"the input {bundle.arguments.tensors[k].name!r}")
        if bundle.items == 0:
            return bundle.arranged({k: torch.zeros_like(bundle.given[k]) for k in bundle.explained})
        with as_found(self.model):
            maps = self.attribute_several(bundle, label)
        return bundle.arranged({k: self._checked(R, bundle.given[k]) for k, R in maps.items()})

    def _checked(self, result: Tensor, inp: Tensor) -> Tensor:
        result = result.detach().to(inp) if inp.is_floating_point() else result.detach().to(inp.device)
        if not torch.isfinite(result).all():
            raise InputError(f"{type(self).__name__} produced NaN or infinite values for this model and input.")
        return result
