"""Choice of a runtime for each device of a simulation (`--runtime`, `--python`), and the check that it can run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge_client import runtimes
from seedmask.errors import UserError

_SECONDS: Final = 120.0  # for another interpreter to answer; importing is slow on a busy machine


@dataclass(frozen=True)
class Assignment:
    """Runtimes of a simulation: the devices take `names` in turn.

    `pythons`: for some of these names, the path of another Python interpreter that runs their devices.
    """

    names: tuple[str, ...]
    pythons: Mapping[str, str]

    @property
    def all(self) -> list[str]:
        """Return every runtime of the simulation, also the one that evaluates, sorted."""
        return sorted({self.here, *self.names})

    @property
    def here(self) -> str:
        """Return the runtime with which this process evaluates: the first one without an interpreter of its own."""
        return next((name for name in self.names if name not in self.pythons), "onnxruntime")

    def of(self, index: int) -> str:
        """Return the runtime of device `index`, counted from 0."""
        return self.names[index % len(self.names)]


def assign(text: str, pythons: Sequence[str], virtual: bool) -> Assignment:
    """Return the assignment that `--runtime NAME,NAME` and every `--python NAME=PATH` ask for.

    Every interpreter is run once, to see that it has the runtime. Raises UserError.
    """
    chosen = tuple(name.strip() for name in text.split(","))
    for name in chosen:
        if name not in runtimes.names():
            raise UserError(f"--runtime is of {', '.join(runtimes.names())}, found {name!r}")
    if virtual and (len(set(chosen)) > 1 or pythons):
        raise UserError("--virtual trains all devices in this process: one --runtime, and no --python")
    paths: dict[str, str] = {}
    for entry in pythons:
        name, equals, path = entry.partition("=")
        if not equals or name not in chosen:
            raise UserError(f"--python is NAME=PATH with NAME of --runtime ({', '.join(chosen)}), found {entry!r}")
        if name in paths:
            raise UserError(f"--python names two interpreters for {name}: {paths[name]} and {path}")
        found = shutil.which(path)
        if found is None:
            raise UserError(f"--python {entry}: {path} is no program")
        paths[name] = os.path.abspath(
            found
        )  # links are kept: Python finds its virtual environment by the path it is called by
    assignment = Assignment(chosen, paths)
    for name in assignment.all:
        if name in paths:
            _ask(name, paths[name])
        else:
            runtimes.require(name)
    return assignment


def _ask(name: str, python: str) -> None:
    """Raise UserError if the environment of `python` lacks this client or something that runtime `name` needs."""
    command = [python, "-m", "seedmask.cli", "client", "runtimes", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--python {name}={python} does not answer: {error}") from None
    try:
        missing = {row["runtime"]: list(row["missing"]) for row in json.loads(done.stdout)}
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise UserError(f"--python {name}={python} has no seedmask client of this version: {said}") from None
    if missing.get(name, True):
        lacks = ", ".join(missing[name]) if name in missing else "such a runtime"
        raise UserError(f"--python {name}={python} lacks {lacks}: {runtimes.registry.how_to_get(name)}")
