"""What to say of a forward pass that raised."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

#: What a model's error is about, by words in it, and how to mend that.
ADVICE = {
    r"shape|size|dimension|channels|expected .*input|mat1 and mat2|broadcast|index .*out of": (
        "Give an input of the shape that the model takes"
    ),
    r"dtype|scalar type|same type|expected .*(Float|Double|Half|Long|Int)|must be of type": (
        "Give an input of the dtype that the model takes"
    ),
    r"same device|on device|cuda|device type": "Put the input on the device of the model",
    r"positional argument|keyword argument": "Call it with the arguments that its forward takes",
}


def what_failed(error: Exception, model: nn.Module, inputs: Any) -> str:
    """What a user needs to know of a forward pass that raised: the input's shape, the module, torch's own words."""
    shapes = ", ".join(str(tuple(t.shape)) for t in tree_leaves(inputs) if isinstance(t, Tensor))
    names = {id(m): name for name, m in model.named_modules()}
    where, step = "", error.__traceback__
    while step is not None:
        module = step.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            what = repr(module) if not list(module.children()) else type(module).__name__
            where = f" at {names[id(module)]!r}, {what}"
        step = step.tb_next
    return (
        f"{type(model).__name__} cannot run on an input of shape {shapes}: it stopped{where} with {str(error)!r}. "
        f"{advice(str(error))}"
    )


def advice(message: str) -> str:
    """How to mend what stopped a forward pass; nothing where its words tell nothing."""
    found = (said for words, said in ADVICE.items() if re.search(words, message, re.IGNORECASE))
    return next(found, "It has to run by itself, outside of an explanation, on this very input")
