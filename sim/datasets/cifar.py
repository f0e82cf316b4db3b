"""CIFAR-10 and CIFAR-100 as their author publishes them: the "binary version" and the "python version".

Alex Krizhevsky, "Learning multiple layers of features from tiny images", 2009. A binary record is the label (CIFAR-100:
coarse, then fine) and 3,072 bytes, red, green, blue, each 32x32 row by row. The python version is a pickle of a dict.
Since a pickle can run any code, it is read by an unpickler that can make numpy arrays of numbers and nothing else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset
from seedmask.errors import UserError

_PIXELS: Final = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Layout of one data set: folders and files of both versions, label bytes of a record, key of the labels."""

    binary: str
    binary_train: tuple[str, ...]
    binary_test: str
    python: str
    python_train: tuple[str, ...]
    python_test: str
    label_bytes: int
    key: bytes
    classes: int


LAYOUTS: Final = {
    "cifar-10": Layout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test_batch.bin",
        "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        1,
        b"labels",
        10,
    ),
    "cifar-100": Layout(
        "cifar-100-binary", ("train.bin",), "test.bin", "cifar-100-python", ("train",), "test", 2, b"fine_labels", 100
    ),
}


def load(name: str, folder: Path) -> tuple[Dataset, Dataset]:
    """Return training and test set of `name`; `folder` holds the files, or the folder that the archive unpacks to.

    Images are uint8 [n, 3, 32, 32], labels int64 [n]. Raises UserError if files are missing or damaged.
    """
    layout = LAYOUTS[name]
    for inner, train, test, read in (
        (layout.binary, layout.binary_train, layout.binary_test, read_binary),
        (layout.python, layout.python_train, layout.python_test, read_python),
    ):
        for place in (folder, folder / inner):
            if all((place / file).is_file() for file in (*train, test)):
                parts = [read(place / file, layout) for file in train]
                whole = Dataset(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))
                return whole, read(place / test, layout)
    raise UserError(
        f"{folder} has neither version of {name}: expected {', '.join((*layout.binary_train, layout.binary_test))}, or "
        f"{', '.join((*layout.python_train, layout.python_test))}, here or in {layout.binary} or {layout.python}"
    )


def read_binary(path: Path, layout: Layout) -> Dataset:
    """Return the examples in one file of the binary version. Raises UserError."""
    raw = np.frombuffer(_bytes(path), np.uint8)
    record = layout.label_bytes + _PIXELS
    if raw.size == 0 or raw.size % record:
        raise UserError(f"{path}: whole records of {record} bytes expected, found {raw.size} bytes")
    rows = raw.reshape(-1, record)
    return _checked(path, rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1], layout)


def read_python(path: Path, layout: Layout) -> Dataset:
    """Return the examples in one file of the python version. Raises UserError, also if its pickle names a function."""
    raw = _bytes(path)
    try:
        found = _Arrays(io.BytesIO(raw), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{path} is not a pickle of the python version ({type(error).__name__}: {error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a dict expected, found {type(found).__name__}")
    values = {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
    data, labels = values.get(b"data"), values.get(layout.key)
    if not isinstance(data, np.ndarray) or not isinstance(labels, (list, np.ndarray)):
        there = ", ".join(sorted(repr(key) for key in values))
        raise UserError(f"{path}: an array b'data' and a list {layout.key!r} expected, found {there}")
    y = np.asarray(labels)
    if data.dtype != np.uint8 or data.ndim != 2 or y.dtype.kind not in "iu" or y.shape != data.shape[:1]:
        raise UserError(
            f"{path}: uint8 [n, {_PIXELS}] and n labels expected, found {data.dtype} {list(data.shape)} and {y.shape}"
        )
    return _checked(path, data, y, layout)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _checked(path: Path, x: npt.NDArray[np.uint8], y: npt.NDArray[Any], layout: Layout) -> Dataset:
    if x.shape[1] != _PIXELS or not len(x):
        raise UserError(f"{path}: images of {_PIXELS} bytes expected, found {list(x.shape)}")
    if int(y.min()) < 0 or int(y.max()) >= layout.classes:
        raise UserError(f"{path}: labels 0 .. {layout.classes - 1} expected, found {int(y.min())} .. {int(y.max())}")
    return Dataset(np.ascontiguousarray(x).reshape(-1, 3, 32, 32), y.astype(np.int64))


def _latin1(text: str, encoding: str) -> bytes:
    # Stands for the call by which Python 3 writes bytes into a pickle for Python 2.
    if encoding != "latin1":
        raise UserError(f"a pickle of arrays encodes bytes as latin1, found {encoding!r}")
    return text.encode("latin1")


_reconstruct: Any = np.zeros(0).__reduce__()[0]  # NumPy 1 and 2 have it in different modules
_ALLOWED: Final[dict[tuple[str, str], Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _Arrays(pickle.Unpickler):
    """Unpickler of dicts, lists, numbers, bytes and numpy arrays, which refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UserError(f"this pickle calls {module}.{name}; only arrays of numbers are read") from None
