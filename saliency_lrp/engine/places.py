"""Where in the model: global module hooks that note each call of a module, and where its relevance can be read."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ..model.interrupts import delivering
from ..sites.site import Site
from .interception import TAG, Interceptor


class Place:
    """One tensor inside the model, where its relevance can be read."""

    __slots__ = ("node", "output_nr", "shape", "options", "site")

    def __init__(self, t: Tensor, site: Site | None) -> None:
        #: the autograd node that made it; this does not keep the graph alive, which the model's output does
        self.node: Any = t.grad_fn
        self.output_nr = t.output_nr
        self.shape = t.shape
        self.options: dict[str, Any] = {"dtype": t.dtype, "device": t.device}
        #: the site that made it
        self.site = site

    @property
    def edge(self) -> GradientEdge | None:
        """Where its relevance arrives; None where it cannot, because the output does not depend on it."""
        try:
            self.node.next_functions  # noqa: B018  # a node that went with its tensor raises
        except RuntimeError:
            return None
        return GradientEdge(self.node, self.output_nr)

    def no_relevance(self) -> Tensor:
        """Zeros of its shape."""
        return torch.zeros(self.shape, **self.options)


class ModuleCall:
    """One call of a module: its inputs and outputs."""

    __slots__ = ("inputs", "outputs")

    def __init__(self, inputs: list[Place], outputs: list[Place]) -> None:
        self.inputs = inputs
        self.outputs = outputs


class ModuleHooks:
    """Global module hooks of one trace; they only listen to the thread that traces."""

    def __init__(self, interceptor: Interceptor, calls: dict[str, list[ModuleCall]]) -> None:
        self.interceptor = interceptor
        self.calls = calls
        self.thread = threading.get_ident()
        self.open: list[list[Place]] = []
        self.handles: list[RemovableHandle] = []

    @delivering
    def listen(self) -> None:
        """Have every call of a module told."""
        self.handles.append(register_module_forward_pre_hook(self.enter))
        self.handles.append(register_module_forward_hook(self.leave, always_call=True))

    def enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        with torch._C.DisableTorchFunction():
            stack = self.interceptor.stack
            path = self.interceptor.names.get(id(module))
            if path is None:
                path = f"{stack[-1][0]}.{type(module).__name__}".lstrip(".")
            # made by whoever calls; a trace whose composite is bound is not asked for relevance inside the model
            arguments = [] if self.interceptor.form.early else self.places(args)
            stack.append((path, module))
            self.open.append(arguments)

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() != self.thread or not self.open:
            return
        with torch._C.DisableTorchFunction():
            path, _ = self.interceptor.location()
            if self.interceptor.form.early:
                self.open.pop()
                self.interceptor.stack.pop()
                return
            call = ModuleCall(self.open.pop(), self.places(result))
            self.calls.setdefault(path, []).append(call)
            if isinstance(result, Tensor) and not call.inputs and not call.outputs:
                self.interceptor.constants[path] = result.detach()  # an embedding of positions, say
            self.interceptor.stack.pop()

    def places(self, values: Any) -> list[Place]:
        """Where the relevance of these activations can be read."""
        token = self.interceptor.token
        found = []
        if isinstance(values, Tensor):
            values = (values,)
        elif not isinstance(values, tuple) or not all(isinstance(v, Tensor) for v in values):
            values = tree_leaves(values)
        for t in values:
            if isinstance(t, Tensor) and t.requires_grad:
                tag = getattr(t, TAG, None)
                if tag is None and self.interceptor.adopt(t):  # made by a custom function: a backward hook's, say
                    tag = getattr(t, TAG)
                if tag is not None and tag.trace is token:
                    if tag.version != t._version:  # written into meanwhile, perhaps where no call was seen
                        self.interceptor.rewritten(t)
                        tag = getattr(t, TAG)
                    if tag.place is None:  # most tensors leave one module to enter others
                        tag.place = Place(t, tag.site)
                    found.append(tag.place)
        return found

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
