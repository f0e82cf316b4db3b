"""Find, describe and open the runtimes that installed packages offer; see the package's docstring for what one is.

Names come from entry points, so listing them imports nothing; a module is imported when somebody asks about its
runtime, and its heavy packages when the runtime is opened.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Final

from edge_client.runtimes.contract import MicroBatchPlan, Runtime
from edge_client.runtimes.footprint import Footprint
from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError, UserError
from seedmask.io import plugins
from seedmask.io.plugins import PluginError

GROUP: Final = "seedmask.runtimes"
_OURS: Final = "seedmask"  # the package whose runtimes have an extra each


def names() -> list[str]:
    """Return the name of every runtime that an installed package offers, whether it can run here or not."""
    return plugins.names(GROUP)


def missing(name: str) -> list[str]:
    """Return what runtime `name` needs and this environment lacks: packages, or else what it looks for in them.

    A runtime whose module cannot be imported lacks what its error says. Raises UserError where there is none called so.
    """
    try:
        module = _module(name)
    except PluginError as error:
        return [str(error)]
    packages = [package for package in module.NEEDS if not _present(package)]
    if packages or not hasattr(module, "absent"):
        return packages
    try:
        found: list[str] = module.absent()
    except Exception as error:  # a package that is here and cannot be imported
        return [f"{name}: {type(error).__name__}: {error}"]
    return found


def _present(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package that it would be a part of
        return False


def versions(name: str) -> dict[str, str]:
    """Return the distributions that runtime `name` runs on here, with their versions; those missing are left out."""
    packages = [package.partition(".")[0] for package in _module(name).NEEDS] or ["numpy"]
    # By its files, because onnxruntime has several distributions; not by packages_distributions(), which in Python 3.10
    # knows only those with a top_level.txt; and not by an __init__.py, which executorch has not.
    return {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions()
        if any(file.parts[0] in packages for file in each.files or ())
    }


def how_to_get(name: str) -> str:
    """Return the command that installs what runtime `name` needs, and what to know before."""
    package = plugins.distribution(GROUP, name)
    try:
        module = _module(name)
    except PluginError:
        return f"pip install --upgrade {package}, or pip uninstall it"
    note = f"; {module.NOTE}" if hasattr(module, "NOTE") else ""
    if package != _OURS:
        return f"pip install {' '.join([package, *module.NEEDS])}{note}"
    extra = f"[{name.replace('_', '-')}]" if module.NEEDS else ""
    return f"pip install 'seedmask{extra}' (in a clone: '.{extra}'){note}"


def graphs(name: str) -> tuple[str, ...]:
    """Return the members of a bundle that runtime `name` opens; none for one that cannot be imported."""
    try:
        found: tuple[str, ...] = _module(name).GRAPHS
    except PluginError:
        return ()
    return found


def lacking(name: str, bundle: Bundle) -> list[str]:
    """Return the graphs of runtime `name` that `bundle` has not."""
    return [graph for graph in graphs(name) if graph not in bundle.files]


def targets(of: Iterable[str]) -> list[str]:
    """Return the export targets whose graphs the runtimes `of` open, for `seedmask export --runtimes`."""
    return sorted({graph.partition("/")[0] for name in of for graph in graphs(name)})


def require(name: str) -> None:
    """Raise UserError unless there is a runtime `name`, MissingPackageError unless it can run here."""
    if name not in names():
        known = ", ".join(names()) or "none, seedmask is not installed as it is now (pip install it again)"
        raise UserError(f"no runtime called {name!r}; there are {known}{_meant(name)}")
    _module(name)  # PluginError where it cannot be imported
    if absent := missing(name):
        raise MissingPackageError(f"runtime {name} needs {', '.join(absent)}: {how_to_get(name)}")


def _meant(name: str) -> str:
    """Return a hint for who gave a package's or a graph's name for a runtime's."""
    if (same := name.replace("-", "_")) in names():
        return f"; this one is written {same}"
    opens = [each for each in names() if name.replace("_", "-") in _targets_with_variants(each)]
    return f"; graphs for {name} are opened by {' and '.join(opens)}" if opens else ""


def _targets_with_variants(name: str) -> set[str]:
    try:
        members = *graphs(name), *getattr(_module(name), "VARIANTS", {}).values()
    except PluginError:
        return set()
    return {member.partition("/")[0] for member in members}


def require_graphs(of: Collection[str], bundle: Bundle) -> None:
    """Raise UserError unless `bundle` has the graphs of all the runtimes `of`."""
    for name in of:
        if absent := lacking(name, bundle):
            raise UserError(
                f"the bundle has no {', '.join(absent)}, which runtime {name} opens: "
                f"seedmask export --runtimes {','.join(targets(of))}"
            )


def variants(name: str, bundle: Bundle) -> dict[str, str]:
    """Return the variants of runtime `name` that `bundle` has graphs for, name to member; the usual, or "", first."""
    found: dict[str, str] = getattr(_module(name), "VARIANTS", {})
    return {variant: graph for variant, graph in found.items() if graph in bundle.files} or {"": ""}


def footprint(name: str) -> Footprint | None:
    """Return the memory that runtime `name` takes; None if it does not take a batch in parts, or cannot be imported."""
    try:
        found: Footprint | None = getattr(_module(name), "FOOTPRINT", None)
    except PluginError:
        return None
    return found


def usual(name: str, bundle: Bundle) -> MicroBatchPlan:
    """Return how runtime `name` takes the batch of `bundle` where nobody says."""
    module = _module(name)
    found: MicroBatchPlan = module.usual(bundle) if hasattr(module, "usual") else MicroBatchPlan(bundle.batch)
    return found


def open_runtime(name: str, bundle: Bundle, threads: int = 0, fit: MicroBatchPlan | None = None) -> Runtime:
    """Make `bundle` ready on runtime `name`; `threads` 0 and no `fit` leave the choice to it.

    Raises UserError where there is no such runtime or it cannot run here, BundleError where `bundle` lacks its graphs,
    ValueError where it cannot take `fit`.
    """
    require(name)
    module = _module(name)
    runtime: Runtime = module.open_runtime(bundle, threads, *([] if fit is None else [_fitting(fit, name, bundle)]))
    return runtime


def _fitting(fit: MicroBatchPlan, name: str, bundle: Bundle) -> MicroBatchPlan:
    """`fit` with its variant named. Raises ValueError where runtime `name` cannot take it."""
    known = variants(name, bundle)
    if not 1 <= fit.micro <= bundle.batch:
        raise ValueError(f"a micro-batch is 1 .. {bundle.batch} examples, found {fit.micro}")
    if footprint(name) is None:
        raise ValueError(f"runtime {name} takes a batch as its graphs do, found a micro-batch of {fit.micro}")
    if fit.variant and fit.variant not in known:
        raise ValueError(f"variant is one of {', '.join(known)}, found {fit.variant!r}")
    return replace(fit, variant=fit.variant or next(iter(known)))


def _module(name: str) -> Any:
    return plugins.load(GROUP, name, ("NEEDS", "GRAPHS", "open_runtime"))
