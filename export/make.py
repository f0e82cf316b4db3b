"""From a ModelSpec to the bundle that devices open: each target's graphs, each graph checked."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Final, Protocol

from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError, UserError
from seedmask.spec import ModelSpec

GROUP: Final = "seedmask.targets"
_OURS: Final = "seedmask"


class Target(Protocol):
    """A module that an entry point of group `seedmask.targets` names (see `export.targets`)."""

    def files(self, spec: ModelSpec, batch: int) -> Mapping[str, bytes]:
        """Return the bundle's members for steps of `batch` examples. Raises MissingPackageError."""


def names() -> list[str]:
    """Return the names of all installed targets, sorted. Imports none of them, nor torch nor onnx."""
    return sorted(entry.name for entry in importlib.metadata.entry_points(group=GROUP))


def make_bundle(
    spec: ModelSpec,
    batch: int,
    runtimes: Sequence[str] = ("onnx",),
    *,
    on_target: Callable[[str], None] | None = None,
) -> Bundle:
    """Return the bundle of `spec` with graphs for each target in `runtimes`, by the names that `names()` lists.

    The training step takes `batch` examples, 1 .. 65536. `on_target` is called with each target's name before its
    graphs are made, which takes minutes for some. The same spec gives the same bytes. Raises ValueError if the batch is
    out of range; UserError for an unknown target, one that does not load, or two that write the same member;
    MissingPackageError where a target's packages are not installed.
    """
    if not 1 <= batch <= 1 << 16:
        raise ValueError(f"batch is 1 .. 65536, found {batch}")
    files: dict[str, bytes] = {}
    for name in dict.fromkeys(runtimes):
        target = _load(name)
        if on_target is not None:
            on_target(name)
        made = target.files(spec, batch)
        if again := sorted(files.keys() & made.keys()):
            raise UserError(f"target {name!r} writes {', '.join(again)}, which another target has written")
        files |= made
    return Bundle(spec, batch, files)


def _load(name: str) -> Target:
    """Return the target called `name`. Raises UserError that names the target and the package that announces it."""
    entries = importlib.metadata.entry_points(group=GROUP)
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise UserError(f"there are no graphs for {name!r}, only for {', '.join(names())}")
    if len(found) > 1:
        raise UserError(f"target {name!r} is announced twice, by {' and by '.join(map(_announced, found))}")
    entry = found[0]
    try:
        target = entry.load()
    except ModuleNotFoundError as error:
        if entry.dist is not None and entry.dist.name == _OURS:
            raise MissingPackageError(f"graphs for {name} need {error.name}: pip install 'seedmask[export]'") from None
        raise MissingPackageError(f"target {name!r} ({_announced(entry)}) needs {error.name}") from None
    # Another package's module can fail in any way; its name and its own message help most.
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"target {name!r} ({_announced(entry)}) does not load: {said}") from None
    if not callable(getattr(target, "files", None)):
        raise UserError(f"target {name!r} ({_announced(entry)}) has no function files(spec, batch)")
    found_target: Target = target
    return found_target


def _announced(entry: EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.value} of {entry.dist.name} {entry.dist.version}"
