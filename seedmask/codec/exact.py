"""Codec 20, `exact`: exact values as differences from known ones, in numbers of variable length.  PROTOCOL 5.9.

Exact values are a few hundred parameters without a mask, such as the scales of a normalisation. They travel as integers
in units of 2**-12, so that nobody has to agree on the rounding of floats. An update, a `delta` and a `relay` hold the
differences from the round's values; `counts` holds the differences from zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from seedmask.codec import varint
from seedmask.errors import CodecError
from seedmask.mask import EXACT_LIMIT, EXACT_ONE, F32, I32

ID: Final = 20
NAME: Final = "exact"

REACH: Final = 1 << 14
"""Largest change of a value by one update, 4.0 in units of 2**-12; it limits the influence of one device."""
MAX_BYTES: Final = 5
"""Maximum length of one coded difference, in bytes."""


def encode(after: I32, before: I32) -> bytes:
    """Return the differences `after` - `before`, each mapped to an unsigned number (zigzag) and written as a varint.

    Both are int32 [e] within -EXACT_LIMIT .. EXACT_LIMIT.
    """
    moved = after.astype(np.int64) - before
    return b"".join(varint.put(2 * n if n >= 0 else -2 * n - 1) for n in moved.tolist())


def decode(payload: bytes, before: I32, reach: int = 2 * EXACT_LIMIT) -> I32:
    """Return the values, int32 [e], that `payload` makes of `before`.

    Raises CodecError for bytes that `encode` cannot write, or that change a value by more than `reach`.
    """
    if len(payload) < before.size:
        raise CodecError(f"exact: {before.size} values expected, found {len(payload)} bytes")
    moved, at = np.zeros(before.size, np.int64), 0
    for i in range(before.size):
        number, at = varint.get(payload, at)
        moved[i] = -(number + 1 >> 1) if number & 1 else number >> 1
    if at != len(payload):
        raise CodecError(f"exact: {before.size} values expected, found {len(payload) - at} bytes after them")
    after = before + moved
    if before.size and (int(np.abs(moved).max()) > reach or int(np.abs(after).max()) > EXACT_LIMIT):
        raise CodecError(f"exact: a value moves {reach} at most, to {EXACT_LIMIT} at most, either way")
    return after.astype(np.int32)


def put(after: I32, before: I32) -> bytes:
    """Return the result of `encode` with its length as a varint in front; empty if there are no values."""
    coded = encode(after, before)
    return varint.put(len(coded)) + coded if before.size else b""


def take(payload: bytes, at: int, before: I32) -> tuple[I32, int]:
    """Return (values, index of the byte after them) of what `put` wrote at index `at`. Raises CodecError."""
    if not before.size:
        return before, at
    length, at = varint.get(payload, at)
    if at + length > len(payload):
        raise CodecError(f"exact: {length} bytes expected at {at}, {len(payload) - at} left")
    return decode(payload[at : at + length], before), at + length


def quantised(values: F32, before: I32) -> I32:
    """Return `values`, float32 [e], as a device sends them: int32 [e], rounded, at most REACH from `before`."""
    nearest = np.rint(values.astype(np.float64) * EXACT_ONE)
    low, high = np.maximum(before - REACH, -EXACT_LIMIT), np.minimum(before + REACH, EXACT_LIMIT)
    return np.clip(nearest, low, high).astype(np.int32)
