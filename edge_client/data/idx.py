"""Format `idx`: files as MNIST and Fashion-MNIST have them, plain or gzipped.

Layout by LeCun, Cortes, Burges (the MNIST database page): two zero bytes, a type byte, the number of dimensions, each
dimension as a big-endian 32-bit integer, then the values row-major. Only type 8, unsigned byte, is in use.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset
from seedmask.errors import UserError
from seedmask.knobs import needed


@dataclass(frozen=True)
class Settings:
    """Keys of [data] for format `idx`: one IDX file with the images, one with their labels."""

    images: Path = field(metadata=needed("the images"))
    labels: Path = field(metadata=needed("their classes"))


def load(settings: Settings) -> Dataset:
    """Return the arrays of both files, labels as int64. Raises UserError."""
    labels = read(settings.labels)
    if labels.ndim != 1:
        raise UserError(f"{settings.labels}: labels have one dimension, found {list(labels.shape)}")
    return Dataset(read(settings.images), labels.astype(np.int64))


def read(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array in one IDX file, uint8. Raises UserError."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes (it begins {raw[:4].hex()!r}, expected '000008..')"
        )
    if not 1 <= raw[3] <= 32:
        raise UserError(f"{path}: 1 .. 32 dimensions are possible, found {raw[3]}")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    body = len(raw) - 4 - 4 * raw[3]
    if math.prod(shape) != body:
        raise UserError(f"{path}: a shape of {list(shape)} needs {math.prod(shape)} bytes, found {body}")
    if body == 0:
        raise UserError(f"{path}: a shape of {list(shape)} holds nothing")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
