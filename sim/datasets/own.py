"""Your own examples as a training and a test set: arrays, a Dataset, or an npz archive.

A model is never tested on examples that it was trained on: without a test set, a share of the examples is held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset, TrainTest
from seedmask.errors import UserError

SHARE: Final = 0.2
"""Share of the examples that is held out as a test set if none is given."""

Arrays = tuple[npt.ArrayLike, npt.ArrayLike]
"""Inputs [n, ...] as stored, and classes [n] (integers) or targets [n, outputs] or [n] (floats)."""


def dataset(given: Arrays | Dataset, what: str) -> Dataset:
    """Return `given` as a Dataset: class numbers become int64 [n], other targets float32. `what` names it in errors.

    Raises UserError if `given` is something else, has no numbers, or has not one y for each x.
    """
    if isinstance(given, Dataset):
        x, y = given.x, given.y
    elif isinstance(given, tuple | list) and len(given) == 2:
        x, y = np.asarray(given[0]), np.asarray(given[1])
    else:
        raise UserError(f"`{what}` is a pair (x, y) of arrays, a Dataset or a data set's name, found {_kind(given)}")
    if x.dtype.kind not in "uif" or x.ndim < 2 or y.dtype.kind not in "uif" or y.ndim not in (1, 2):
        found = f"x {x.dtype} {list(x.shape)}, y {y.dtype} {list(y.shape)}"
        raise UserError(f"`{what}` has numbers x [n, ...] and y [n] or [n, outputs], found {found}")
    if len(x) != len(y) or len(x) == 0:
        raise UserError(f"`{what}` has one y for each x, found {len(x)} inputs and {len(y)} of y")
    return Dataset(x, y.astype(np.int64) if y.dtype.kind in "ui" else y.astype(np.float32))


def joined(
    name: str, origin: str, given: Dataset, test: Dataset | None, share: float | None, rng: np.random.Generator
) -> TrainTest:
    """Return training and test set; without a `test` set, a `share` of `given` is held out, drawn by `rng`.

    `share` None: SHARE. The result's `origin` says that examples were held out. Raises UserError if both `test` and
    `share` are given, or if one of the two sets would be empty.
    """
    if test is not None:
        if share is not None:
            raise UserError("`test` and `test_share` exclude each other: there is a test set already")
        return TrainTest(name, origin, given, test)
    share = SHARE if share is None else share
    held = round(share * len(given.y))
    if not 0 < share < 1 or not 0 < held < len(given.y):
        raise UserError(
            f"`test_share` is above 0 and below 1, and leaves something on either side; found {share:g} "
            f"of {len(given.y)} examples"
        )
    order = rng.permutation(len(given.y))
    train, out = np.sort(order[held:]), np.sort(order[:held])
    said = f"{origin}; {held:,} of its {len(order):,} examples held out as a test set"
    return TrainTest(name, said, Dataset(given.x[train], given.y[train]), Dataset(given.x[out], given.y[out]))


def from_npz(path: Path, what: str) -> tuple[Dataset, Dataset | None]:
    """Return the examples (x, y) of an archive, and its test set if it has x_test and y_test. Raises UserError."""
    arrays = _arrays(path)
    absent = [name for name in ("x", "y") if name not in arrays]
    if "x_test" in arrays or "y_test" in arrays:
        absent += [name for name in ("x_test", "y_test") if name not in arrays]
    if absent:
        raise UserError(f"{path} has arrays {', '.join(arrays) or 'none'}; it lacks {', '.join(absent)}")
    test = dataset((arrays["x_test"], arrays["y_test"]), what) if "x_test" in arrays else None
    return dataset((arrays["x"], arrays["y"]), what), test


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    wanted = ("x", "y", "x_test", "y_test")
    try:
        archive: Any = np.load(path, allow_pickle=False)  # a pickle is a program, not data
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive")
        with archive:
            return {name: archive[name] if name in wanted else np.zeros(0) for name in archive.files}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    # zipfile, zlib and numpy raise a dozen kinds of errors for a damaged file; for its owner they all mean the same.
    except Exception as error:
        raise UserError(f"{path} is not an npz archive of numbers: {error}") from None


def _kind(given: object) -> str:
    return f"{type(given).__name__} of {len(given)}" if isinstance(given, tuple | list) else type(given).__name__
