"""Description of a sub-command of the `seedmask` command.

A package publishes a `Command` under the entry point group `seedmask.commands`. The module that defines it must be
importable on every machine: `run` imports the packages in `needs`, not the top of the module.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """Sub-command of `seedmask`.

    `summary`: one line of help; `needs`: import names of packages beyond the base install; `extra`: extra of the
    distribution that installs them; `add_arguments` adds options to a parser; `run` takes the parsed options and
    returns the exit status.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    extra: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    @property
    def missing(self) -> list[str]:
        """Packages among `needs` that are not installed."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]
