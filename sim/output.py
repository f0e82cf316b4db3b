"""Output folder of a simulation: check that it may be emptied, empty it, and write the results."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from seedmask.errors import MissingPackageError, UserError
from sim import report
from sim.history import History

MARKER: Final = ".seedmask-simulation"


def check(out: Path, inputs: Iterable[Path]) -> None:
    """Raise UserError if `out` is neither empty nor of an earlier simulation, or has one of `inputs` inside."""
    inside = out.resolve()
    for path in inputs:
        if path.resolve().is_relative_to(inside):
            raise UserError(f"{path} lies inside `out` {out}, which is emptied; choose another `out`")
    try:
        if any(inside.iterdir()) and not (inside / MARKER).exists():
            raise UserError(f"{out} is not empty and no simulation made it; choose another `out`")
    except FileNotFoundError:
        pass  # it will be made
    except OSError as error:
        raise UserError(f"`out` {out} cannot be used: {error.strerror}") from None


def claim(out: Path) -> None:
    """Make or empty the folder `out`, and mark it as a simulation's; call `check` first. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).touch()  # written first and never removed, so that an interrupted simulation can be repeated
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
    except OSError as error:
        raise UserError(f"`out` {out} cannot be used: {error.strerror}") from None


def write(out: Path, history: History) -> None:
    """Write model.smk, summary.json, rounds.csv and accuracy.png (error.png if the loss is "mse") into `out`.

    Warns that there is no picture if matplotlib is not installed: a run that is over is not lost for want of it.
    """
    value = history.summary
    history.model.save(out / "model.smk")
    report.write_json(out / "summary.json", value)
    report.write_csv(out / "rounds.csv", value)
    try:
        history.plot(out / f"{value['metric']}.png")
    except MissingPackageError as error:
        warnings.warn(f"no picture of the rounds: {error}", UserWarning, stacklevel=3)
