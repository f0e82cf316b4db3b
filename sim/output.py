"""The folder of a simulation: what may be emptied, and what is written when it is over."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from seedmask.errors import UserError
from sim import report
from sim.history import History

MARKER: Final = ".seedmask-simulation"


def check(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse to empty what is not ours, or what has one of `inputs` inside. Raises UserError."""
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
    """Make `out` new, and mark it as ours; `check` saw that it may be emptied. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).touch()  # first, and it stays: interrupted here, the folder is still ours
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
    except OSError as error:
        raise UserError(f"`out` {out} cannot be used: {error.strerror}") from None


def write(out: Path, history: History) -> None:
    """Write summary.json, rounds.csv, accuracy.png (error.png for an mse) and model.smk into `out`."""
    value = history.summary
    report.write_json(out / "summary.json", value)
    report.write_csv(out / "rounds.csv", value)
    history.plot(out / f"{value['metric']}.png")
    history.model.save(out / "model.smk")
