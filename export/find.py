"""Find the torch module that a name on the command line means: one of the zoo, or package.module:factory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from export.api import name_of
from export.zoo import ZOO
from seedmask.errors import UserError
from seedmask.wire import is_name


@dataclass(frozen=True)
class Found:
    """A `module`, the shape of one `input`, its number of `classes`, and the model's `name`."""

    module: nn.Module
    input: tuple[int, ...]
    classes: int
    name: str


def find(model: str, input: tuple[int, ...] | None, classes: int | None, name: str | None) -> Found:
    """Return the module that `model` names, built.

    Where an argument is None, the zoo's entry gives input and classes, and the factory's name gives the model's. Raises
    UserError if there is no such model, if it cannot be imported or built, or if `input` or `classes` are needed.
    """
    if ":" not in model:
        if model not in ZOO:
            raise UserError(
                f"no model {model!r} in the zoo; there are {', '.join(ZOO)}.\n"
                "A model of your own is package.module:factory"
            )
        entry = ZOO[model]
        return Found(_build(model, entry.factory), input or entry.input, classes or entry.classes, name or model)
    if input is None or classes is None:
        raise UserError("a model of your own needs --input (shape of one example, like 1,28,28) and --classes")
    factory = _import(model)
    name = name or name_of(model.partition(":")[2])
    if not is_name(name):
        raise UserError(f"{name!r} cannot be a model's name; choose one with --name")
    return Found(_build(model, factory), input, classes, name)


def _import(path: str) -> Callable[[], Any]:
    """Return the object that `path`, package.module:factory, names. Raises UserError."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"a model is package.module:factory, found {path!r}")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").removeprefix("./").replace("/", ".").strip(".")
        raise UserError(f"a model is package.module:factory, no file; write {dotted}:{attribute}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        parents = [module_name.rsplit(".", i)[0] for i in range(module_name.count(".") + 1)]
        if error.name in parents:
            raise UserError(f"no module {error.name!r} in {Path.cwd()} or among the installed packages") from None
        raise UserError(f"importing {module_name} needs {error.name}, which is not installed") from None
    # A user's module can fail in any way; its own message helps most.
    except Exception as error:
        raise UserError(f"importing {module_name} failed: {type(error).__name__}: {error}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_") and callable(getattr(found, name))]
            raise UserError(f"{module_name} has no {attribute!r}; it has {', '.join(public) or 'nothing to call'}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{path} is no factory but a {type(found).__name__}; name what makes the model")
    return found  # type: ignore[no-any-return]


def _build(path: str, factory: Callable[[], Any]) -> nn.Module:
    if isinstance(factory, nn.Module):  # a finished module at the top of a file
        return factory
    try:
        model = factory()
    except Exception as error:
        raise UserError(f"{path}() failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{path}() gave a {type(model).__name__}, not a torch.nn.Module")
    return model
