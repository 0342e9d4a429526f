"""The model that the command's options name."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import InputError, unknown_name
from ..photographs import PHOTO_MODEL, load_photo_model


def find_device(name: str | None) -> torch.device | None:
    """The device, tried out, so that a missing one is one clear line."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {one_line(error)}") from error
    return device


def find_model(options: argparse.Namespace) -> nn.Module:
    """The model that the options name."""
    if options.model == PHOTO_MODEL:
        return load_photo_model()
    if options.model is not None:
        return torchvision_model(options.model)
    if options.module is not None:
        return module_model(options.module)
    if options.demo or options.digits:
        from ..demo import load_demo_model

        return load_demo_model()
    raise InputError(
        "which model? Name a torchvision classifier (--model resnet50), your own "
        "(--module file.py:make_model), or --demo for the small digit network that comes with the package"
    )


def torchvision_model(name: str) -> nn.Module:
    """A torchvision classifier with its best weights, which carries their preprocessing and class names."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"--model {name} needs torchvision, which cannot be imported here ({one_line(error)}): "
            "pip install 'saliency-lrp[vision]', in the build that fits your torch"
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision classifier", name, known)
    weights = models.get_model_weights(name).DEFAULT
    try:
        model = models.get_model(name, weights=weights)
    except OSError as error:
        raise InputError(f"the weights of {name} could not be downloaded: {one_line(error)}") from error
    preset = weights.transforms()
    model.preprocessing = {
        "resize": preset.resize_size[0],
        "crop": preset.crop_size[0],
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
    }
    model.class_names = tuple(weights.meta["categories"])
    return model


def module_model(reference: str) -> nn.Module:
    """The model named by `file.py:name` or `package.module:name`, or returned by the function named."""
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise InputError(f"--module {reference}: expected FILE.py:NAME, such as train.py:make_model")
    found = _attribute(_import(source), name, source)
    if not isinstance(found, nn.Module) and callable(found):
        found = _guarded(found, f"{name}() of {source}")
    if not isinstance(found, nn.Module):
        raise InputError(
            f"--module {reference}: expected a torch.nn.Module or a function that returns one, "
            f"not {type(found).__name__}"
        )
    return found


def _import(source: str) -> ModuleType:
    if not source.endswith(".py"):
        return _guarded(lambda: importlib.import_module(source), f"importing {source}")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"--module: there is no file {source!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module, run = importlib.util.module_from_spec(spec), spec.loader.exec_module
    sys.modules.setdefault(path.stem, module)  # classes defined there can be pickled and inspected
    sys.path.insert(0, str(path.parent.resolve()))  # as `python file.py` would
    try:
        _guarded(lambda: run(module), f"running {source}")
    finally:
        sys.path.pop(0)
    return module


def _attribute(module: ModuleType, name: str, source: str) -> Any:
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"name in {source}", name, public)
    return getattr(module, name)


def _guarded(call: Any, what: str) -> Any:
    """Call the user's own code; what it raises becomes one line that says where."""
    try:
        return call()
    except Exception as error:
        raise InputError(f"{what} raised {type(error).__name__}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
