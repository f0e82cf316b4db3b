"""What a program tells the `seedmask` command about itself.

A sub-command is a `Command` published under the entry point group `seedmask.commands`. The module that defines it must
import on every machine: the packages in `needs` are imported by `run`, not at the top.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Command:
    """One sub-command. `needs`: packages beyond the base install; `extra`: what to pip-install to get them."""

    name: str
    summary: str
    needs: tuple[str, ...]
    extra: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    @property
    def missing(self) -> list[str]:
        """The packages this environment lacks."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def as_options(text: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a message about a function's parameters in terms of a command's options.

    Parameters stand in backquotes: `per_round` becomes --per-round. `names` has the options that are called otherwise.
    """
    return re.sub(r"`(\w+)`", lambda found: "--" + names.get(found[1], found[1]).replace("_", "-"), text)
