"""Registry of the runtimes that installed packages offer: list, describe and open them.

Names come from entry points, so listing them imports nothing. A runtime's module is imported when it is described; its
heavy packages are imported when it is opened. `edge_client.runtimes` documents what such a module has.
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
_OURS: Final = "seedmask"  # in this package every runtime has an extra of its name


def names() -> list[str]:
    """Return the names of all runtimes that installed packages offer, whether or not they can run here."""
    return plugins.names(GROUP)


def missing(name: str) -> list[str]:
    """Return what runtime `name` needs and this environment lacks: packages, or parts of them; [] if it is ready.

    If the runtime's module cannot be imported, the list has its error. Raises UserError if there is no such runtime.
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
    except Exception as error:  # a package that is installed, but cannot be imported
        return [f"{name}: {type(error).__name__}: {error}"]
    return found


def _present(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing as well
        return False


def versions(name: str) -> dict[str, str]:
    """Return name and version of each installed distribution that runtime `name` uses."""
    packages = [package.partition(".")[0] for package in _module(name).NEEDS] or ["numpy"]
    # Distributions are found by the files they install, because several of them provide onnxruntime. In Python 3.10
    # packages_distributions() only knows those with a top_level.txt; executorch has no __init__.py to look for.
    return {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions()
        if any(file.parts[0] in packages for file in each.files or ())
    }


def how_to_get(name: str) -> str:
    """Return the command that installs what runtime `name` needs, followed by its NOTE, if it has one."""
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
    """Return the members of a bundle that runtime `name` opens; () if its module cannot be imported."""
    try:
        found: tuple[str, ...] = _module(name).GRAPHS
    except PluginError:
        return ()
    return found


def lacking(name: str, bundle: Bundle) -> list[str]:
    """Return the graphs that runtime `name` opens and `bundle` lacks."""
    return [graph for graph in graphs(name) if graph not in bundle.files]


def targets(of: Iterable[str]) -> list[str]:
    """Return the names to give to `seedmask export --runtimes`, so that the runtimes `of` find their graphs."""
    return sorted({graph.partition("/")[0] for name in of for graph in graphs(name)})


def require(name: str) -> None:
    """Raise UserError if there is no runtime `name`, MissingPackageError if it lacks a package here."""
    if name not in names():
        known = ", ".join(names()) or "none, seedmask is not installed as it is now (pip install it again)"
        raise UserError(f"no runtime called {name!r}; there are {known}{_meant(name)}")
    _module(name)  # raises PluginError if it cannot be imported
    if absent := missing(name):
        raise MissingPackageError(f"runtime {name} needs {', '.join(absent)}: {how_to_get(name)}")


def _meant(name: str) -> str:
    """Return a hint if `name` is the name of a runtime's package or of an export target, otherwise ""."""
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
    """Raise UserError if `bundle` lacks a graph that one of the runtimes `of` opens."""
    for name in of:
        if absent := lacking(name, bundle):
            raise UserError(
                f"the bundle has no {', '.join(absent)}, which runtime {name} opens: "
                f"seedmask export --runtimes {','.join(targets(of))}"
            )


def variants(name: str, bundle: Bundle) -> dict[str, str]:
    """Return the variants of runtime `name` that `bundle` has graphs for, the default first, as {variant: member}.

    A runtime without variants has one, "".
    """
    found: dict[str, str] = getattr(_module(name), "VARIANTS", {})
    return {variant: graph for variant, graph in found.items() if graph in bundle.files} or {"": ""}


def footprint(name: str) -> Footprint | None:
    """Return the constants of the memory estimate; None if runtime `name` has none or cannot be imported."""
    try:
        found: Footprint | None = getattr(_module(name), "FOOTPRINT", None)
    except PluginError:
        return None
    return found


def usual(name: str, bundle: Bundle) -> MicroBatchPlan:
    """Return the plan that runtime `name` uses for `bundle` by default. Raises BundleError."""
    module = _module(name)
    found: MicroBatchPlan = module.usual(bundle) if hasattr(module, "usual") else MicroBatchPlan(bundle.batch)
    return found


def open_runtime(name: str, bundle: Bundle, threads: int = 0, fit: MicroBatchPlan | None = None) -> Runtime:
    """Return a runtime that is ready to train `bundle`. With `threads` 0 and `fit` None it chooses for itself.

    Raises UserError if there is no such runtime or it cannot run here, BundleError if `bundle` lacks its graphs,
    ValueError if it cannot follow the plan `fit`.
    """
    require(name)
    module = _module(name)
    runtime: Runtime = module.open_runtime(bundle, threads, *([] if fit is None else [_fitting(fit, name, bundle)]))
    return runtime


def _fitting(fit: MicroBatchPlan, name: str, bundle: Bundle) -> MicroBatchPlan:
    """Return `fit` with the name of its variant filled in. Raises ValueError if runtime `name` cannot follow it."""
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
