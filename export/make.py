"""From a ModelSpec to the bundle that devices open: one file per target's graph, every graph checked.

A target is a file in `export/targets/` with `files(spec, batch)`, which gives the bundle's members for its runtimes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from export import targets
from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError, UserError
from seedmask.spec import ModelSpec


def names() -> list[str]:
    """Every target there is a file for."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(targets.__path__))


def make_bundle(spec: ModelSpec, batch: int, runtimes: Sequence[str] = ("onnx",)) -> Bundle:
    """All graphs of `spec` for `runtimes`, which are `names()`; the training step takes `batch` examples.

    The same spec gives the same bytes. Raises UserError for an unknown target, MissingPackageError where its packages
    are not installed.
    """
    if not 1 <= batch <= 1 << 16:
        raise ValueError(f"batch is 1 .. 65536, found {batch}")
    files: dict[str, bytes] = {}
    for name in runtimes:
        if name not in names():
            raise UserError(f"there are no graphs for {name!r}, only for {', '.join(names())}")
        try:
            target = importlib.import_module(f"{targets.__name__}.{name.replace('-', '_')}")
        except ModuleNotFoundError as error:
            raise MissingPackageError(f"graphs for {name} need {error.name}: pip install 'seedmask[export]'") from None
        files |= target.files(spec, batch)
    return Bundle(spec, batch, files)
