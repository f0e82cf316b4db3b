"""Format `npz`: a NumPy archive with arrays `x` [n, ...] and `y`, as numpy.savez writes it.

`y` is integers [n], the classes, or numbers [n, outputs] (or [n] for one output) where the model's loss is "mse".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset
from seedmask.errors import UserError
from seedmask.knobs import needed


@dataclass(frozen=True)
class Settings:
    """Keys of [data] for format `npz`: the archive."""

    path: Path = field(metadata=needed("archive with arrays x [n, ...] and y [n]"))


def load(settings: Settings) -> Dataset:
    """Return arrays `x` and `y` of the archive. Raises UserError."""
    path = settings.path
    found = arrays(path)
    if absent := {"x", "y"} - set(found):
        raise UserError(f"{path} has arrays {', '.join(found)}; it lacks {', '.join(sorted(absent))}")
    x, y = found["x"], found["y"]
    if x.dtype.kind not in "uif" or x.ndim == 0 or y.dtype.kind not in "uif" or y.ndim not in (1, 2):
        shapes = f"x {x.dtype} {list(x.shape)}, y {y.dtype} {list(y.shape)}"
        raise UserError(f"{path}: x must be numbers [n, ...] and y numbers [n] or [n, outputs], found {shapes}")
    return Dataset(x, y)


def arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays `x` and `y` of an archive, if it has them; any other name stands for an empty array.

    Raises UserError if the file cannot be read or is not an archive of numbers.
    """
    try:
        archive: Any = np.load(path, allow_pickle=False)  # a pickle is a program, not data
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive")
        with archive:
            return {name: archive[name] if name in ("x", "y") else np.zeros(0) for name in archive.files}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    # zipfile, zlib and numpy raise a dozen kinds of errors for a damaged file; for its owner they all mean the same.
    except Exception as error:
        raise UserError(f"{path} is not an npz archive of numbers: {error}") from None
