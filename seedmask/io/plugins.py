"""Plug-ins of installed packages, found by entry points: runtimes, data sources and others.

An entry point is a name in a group, with the place of an object: `package.module` or `package.module:object`. Listing
plug-ins reads the metadata of installed packages and imports none of them. `load` imports one plug-in; any failure
there is a PluginError that names it, so a broken package does not affect the others.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Any

from seedmask.errors import UserError


class PluginError(UserError):
    """Plug-in that is installed but cannot be used; the message names it and its package."""


def names(group: str) -> list[str]:
    """Return the names of the plug-ins of entry point `group`, sorted; nothing is imported."""
    return sorted(_entries(group, tuple(sys.path)))


def distribution(group: str, name: str) -> str:
    """Return the name of the package that provides plug-in `name`. Raises KeyError if there is no such plug-in."""
    dist = _entries(group, tuple(sys.path))[name][0].dist
    return dist.name if dist is not None else "an unknown package"


def load(group: str, name: str, has: Sequence[str] = ()) -> Any:
    """Import plug-in `name` of `group` and return it; `has`: attributes that it must have.

    Raises UserError if there is no such name; PluginError if the plug-in cannot be imported or lacks an attribute, or
    if two packages claim the name.
    """
    found = _entries(group, tuple(sys.path))
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{group} has no {name!r}; there are {', '.join(sorted(found)) or 'none'}{hint}")
    entry, *others = found[name]
    if others:
        claims = " and ".join(f"{each.dist.name if each.dist else '?'} ({each.value})" for each in found[name])
        raise PluginError(f"{name} of {group} is claimed by {claims}; uninstall one")
    where = f"{name} of {group} (package {distribution(group, name)}, {entry.value})"
    try:
        plugin = entry.load()
    except Exception as error:  # code of another package may raise anything
        raise PluginError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if lacking := [each for each in has if not hasattr(plugin, each)]:
        raise PluginError(f"{where} lacks {', '.join(lacking)}; it has to have {', '.join(has)}")
    return plugin


@functools.lru_cache(maxsize=64)
def _entries(group: str, path: tuple[str, ...]) -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Return the entry points of a group by name, more than one per name only if packages disagree.

    `path` is sys.path: part of the cache's key, because packages are found along it.
    """
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        same = found.setdefault(entry.name, [])
        if entry.value not in [each.value for each in same]:
            same.append(entry)
    return found
