"""The API of Pytorch-LRP's and TensorWatch's ``inverter_util``, on top of this package's rules and propagator.

Two ways in, with the original's names:

* :class:`InnvestigateModel` explains a whole model;
* :class:`RelevancePropagator` goes through it layer by layer, driven by the caller.

Numbers are the original's (its e-rule and b-rule, bias left out, batch norms pass relevance); what it cannot do, or
does wrongly, works here: any layer and graph, dilation, overlapping pooling, shared modules, second calls, float64.
Neither the model nor any tensor of the caller is changed.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from . import composites
from .errors import InputError, unknown_name
from .propagator import RelevancePropagator as _Propagator
from .propagator import Trace
from .rules import Rule

_METHODS: dict[str, Callable[[float, float, float], composites.Composite]] = {
    "e-rule": lambda exponent, beta, epsilon: composites.get("e_rule", p=exponent, epsilon=epsilon),
    "b-rule": lambda exponent, beta, epsilon: composites.get("b_rule", beta=beta, epsilon=epsilon),
}


class _LogProbabilities(Rule):
    """The original's LogSoftmax: a sample that starts with log-probabilities goes on with probabilities.

    The original decides by the sum over the whole batch; here each sample (first axis) decides for itself.
    """

    kinds = frozenset({"activation"})

    def relevance(self, site: Any, R: Tensor) -> tuple[Tensor | None, ...]:
        axes = tuple(range(min(1, R.dim() - 1), R.dim()))
        is_log = R.sum(dim=axes, keepdim=True) < 0
        return (torch.where(is_log, torch.where(R == 0, 0, R.exp()), R),)


def _composite(method: str, lrp_exponent: float, beta: float, epsilon: float) -> composites.Composite:
    """The composite of a method, after checking its numbers."""
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise InputError(f"epsilon must be finite and >= 0, got {epsilon!r}.")
    if method == "b-rule":
        if not (beta >= -1 and math.isfinite(beta)):
            raise InputError(f"beta must be in [-1, inf), got {beta!r}.")
        if beta in (-1, 0):
            warnings.warn(
                f"b-rule with beta={beta}: outputs that have only contributions of the other sign lose their "
                "relevance; with any other beta they keep it.",
                UserWarning,
                stacklevel=3,
            )
    log_softmax = composites.Composite([(composites.op("log_softmax"), _LogProbabilities())])
    return _METHODS[method](lrp_exponent, beta, epsilon) | log_softmax


@contextlib.contextmanager
def _leaf_calls(model: nn.Module) -> Iterator[list[tuple[str, int]]]:
    """Path and number of each call of a module without children, in order, for calls made inside."""
    names = {module: name for name, module in model.named_modules() if next(module.children(), None) is None}
    counts: dict[str, int] = {}
    order: list[tuple[str, int]] = []
    thread = threading.get_ident()

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() == thread and module in names:
            name = names[module]
            order.append((name, counts.get(name, 0)))
            counts[name] = counts.get(name, 0) + 1

    handle = register_module_forward_hook(note)
    try:
        yield order
    finally:
        handle.remove()


class RelevancePropagator:
    """Hand relevance back through one layer at a time.

    Register ``get_layer_fwd_hook(layer)`` as forward hook on the layers, run the model once, then call
    ``compute_propagated_relevance(layer, relevance)`` for the layers of ``module_list``, last one first.

    Parameters
    ----------
    lrp_exponent : int
        Exponent p of the e-rule; a non-integer one is an error where values are negative.
    beta : float
        The b-rule's, in [-1, inf).
    method : {"e-rule", "b-rule"}
        How linear layers hand relevance back.
    epsilon : float
        Stabiliser.
    device : torch.device or str, optional
        Where to compute; ``None`` is where the layer is. The layer is never moved: its input and `relevance` are,
        and the result comes back on `device`.

    Attributes
    ----------
    available_methods : list of str
        Names for `method`.
    module_list : list of torch.nn.Module
        The hooked layers, in the order they ran; a layer used twice is in it twice.
    """

    available_methods: Sequence[str] = tuple(_METHODS)

    def __init__(
        self,
        lrp_exponent: float,
        beta: float,
        method: str,
        epsilon: float,
        device: torch.device | str | None = None,
    ) -> None:
        self.composite = _composite(method, lrp_exponent, beta, epsilon)
        self.method = method
        self.p = lrp_exponent
        self.beta = beta
        self.eps = epsilon
        self.device = None if device is None else torch.device(device)
        self.module_list: list[nn.Module] = []
        self._calls: dict[nn.Module, list[tuple[Any, ...]]] = {}
        self._next: dict[nn.Module, int] = {}

    def reset_module_list(self) -> None:
        """Forget the layers that ran and what they read."""
        self.module_list = []
        self._calls.clear()
        self._next.clear()

    def get_layer_fwd_hook(self, layer: nn.Module) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """A forward hook that notes what the layer reads; nothing is stored on the layer itself."""
        if not isinstance(layer, nn.Module):
            raise InputError(f"get_layer_fwd_hook expects a torch.nn.Module, got {type(layer).__name__}.")

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # a copy: an in-place layer has overwritten, or will overwrite, what it read
            kept = tuple(v.detach().clone() if isinstance(v, Tensor) else v for v in inputs)
            self.module_list.append(module)
            self._calls.setdefault(module, []).append(kept)
            self._next[module] = len(self._calls[module]) - 1

        return hook

    def compute_propagated_relevance(self, layer: nn.Module, relevance: Tensor) -> Tensor:
        """Relevance of what the layer read, given the relevance of what it returned.

        A layer that ran several times answers for its last call first, then for the one before, and so on around.

        Parameters
        ----------
        layer : torch.nn.Module
            A layer whose forward hook has run.
        relevance : Tensor
            Shaped like the layer's output; it is not changed.

        Returns
        -------
        Tensor
            Shaped like the layer's (first) input.
        """
        if layer not in self._calls:
            raise InputError(
                f"{type(layer).__name__} has not run: register get_layer_fwd_hook(layer) with "
                "layer.register_forward_hook and run the model first."
            )
        k = self._next[layer]
        self._next[layer] = (k - 1) % len(self._calls[layer])
        inputs = tuple(self._placed(v, layer) for v in self._calls[layer][k])
        trace = _Propagator(layer, self.composite).trace(*inputs)
        result = trace.relevance(seed=self._placed(relevance.detach(), layer))
        first = result[0] if isinstance(result, tuple) else result
        return first if self.device is None else first.to(self.device)

    @staticmethod
    def _placed(value: Any, layer: nn.Module) -> Any:
        parameter = next(layer.parameters(), None)
        return value.to(parameter.device) if parameter is not None and isinstance(value, Tensor) else value


class InnvestigateModel(nn.Module):
    """Explain a whole model with the e-rule or the b-rule.

    Parameters
    ----------
    the_model : torch.nn.Module
        Any model that the propagator knows; it is left exactly as it is.
    lrp_exponent : int, default 1
        Exponent of the e-rule.
    beta : float, default 0.5
        The b-rule's, in [-1, inf).
    epsilon : float, default 1e-6
        Stabiliser.
    method : {"e-rule", "b-rule"}, default "e-rule"
        How linear layers hand relevance back.
    """

    def __init__(
        self,
        the_model: nn.Module,
        lrp_exponent: float = 1,
        beta: float = 0.5,
        epsilon: float = 1e-6,
        method: str = "e-rule",
    ) -> None:
        super().__init__()
        if not isinstance(the_model, nn.Module):
            raise InputError(f"InnvestigateModel expects a torch.nn.Module, got {type(the_model).__name__}.")
        self._composite = _composite(method, lrp_exponent, beta, epsilon)
        self.model = the_model
        self.method = method
        self.prediction: Tensor | None = None
        self._trace: Trace | None = None
        self._layers: list[tuple[str, int]] = []
        self._target: int | None = None

    def forward(self, in_tensor: Tensor) -> Tensor:
        """The model's own forward."""
        return self.model(in_tensor)

    def evaluate(self, in_tensor: Tensor) -> Tensor:
        """Run the model in eval mode (its mode is restored) and keep what an explanation needs.

        Returns
        -------
        Tensor
            The model's output.
        """
        propagator = _Propagator(self.model, self._composite)
        with _leaf_calls(propagator.model) as self._layers:
            self._trace = propagator.trace(in_tensor)
        self.prediction = self._trace.output
        return self.prediction

    def innvestigate(self, in_tensor: Tensor | None = None, rel_for_class: int | None = None) -> tuple[Tensor, Tensor]:
        """Prediction and relevance.

        Parameters
        ----------
        in_tensor : Tensor, optional
            What to explain; ``None`` is what was evaluated last.
        rel_for_class : int, optional
            Class to explain; ``None`` is the winning one of each sample, the first on ties.

        Returns
        -------
        prediction : Tensor
            The model's output.
        relevance : Tensor
            Shaped like the input.
        """
        if in_tensor is not None:
            self.evaluate(in_tensor)
        trace = self._evaluated()
        self._target = rel_for_class
        return trace.output, trace.relevance(target=rel_for_class)

    def get_r_values_per_layer(self) -> list[Tensor]:
        """Relevance on the way of the last explanation.

        Returns
        -------
        list of Tensor
            Entry 0 at the model's output; entry k at the input of the k-th layer counted from the end, in the order
            of execution; so the last one is at the input of the first layer. Layers (modules without children)
            whose input carries no relevance, such as an embedding's token ids, are left out. A layer with several
            inputs has a tuple of them.
        """
        trace = self._evaluated()
        layers = [(name, k) for name, k in reversed(self._layers) if trace.calls[name][k].inputs]
        values: dict[tuple[str, int], Tensor] = {}
        for number in {k for _, k in layers}:  # more than one pass only where a layer ran several times
            names = [name for name, k in layers if k == number]
            found = trace.layer_relevance(names, target=self._target, which="input", call=number)
            values |= {(name, number): R for name, R in found.items()}
        return [trace.layer_relevance("", target=self._target), *(values[layer] for layer in layers)]

    def _evaluated(self) -> Trace:
        if self._trace is None:
            raise InputError("nothing to explain yet: pass in_tensor, or call evaluate(in_tensor) first.")
        return self._trace
