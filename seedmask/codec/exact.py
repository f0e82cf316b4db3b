"""Codec 20, `exact`: how far a model's exact values have come, as numbers of variable length.  PROTOCOL 5.9.

A few hundred values (scales of a normalisation, a last layer's biases) that are trained as they are need no mask, and
integers in units of 2**-12 need no agreement about floats. Devices send the difference to the round's values and so
does a `delta` or `relay`; `counts` sends it from zero.
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
"""How far one update may move a value, 4.0: what bounds the word of one device."""
MAX_BYTES: Final = 5
"""Of one value's difference."""


def encode(after: I32, before: I32) -> bytes:
    """The differences after - before, both int32 [e] within EXACT_LIMIT either way, of each its zigzag as a varint."""
    moved = after.astype(np.int64) - before
    return b"".join(varint.put(2 * n if n >= 0 else -2 * n - 1) for n in moved.tolist())


def decode(payload: bytes, before: I32, reach: int = 2 * EXACT_LIMIT) -> I32:
    """The values that came of `before`, int32 [e]. Raises CodecError.

    For any bytes that `encode` could not have written, or that move a value by more than `reach`.
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
    """As `encode`, its length as a varint in front; nothing where there are no values."""
    coded = encode(after, before)
    return varint.put(len(coded)) + coded if before.size else b""


def take(payload: bytes, at: int, before: I32) -> tuple[I32, int]:
    """(values, place of the byte after them) of what `put` wrote at `at`. Raises CodecError."""
    if not before.size:
        return before, at
    length, at = varint.get(payload, at)
    if at + length > len(payload):
        raise CodecError(f"exact: {length} bytes expected at {at}, {len(payload) - at} left")
    return decode(payload[at : at + length], before), at + length


def quantised(values: F32, before: I32) -> I32:
    """`values` float32 [e] as a device reports them: the nearest integers, no further from `before` than REACH."""
    nearest = np.rint(values.astype(np.float64) * EXACT_ONE)
    low, high = np.maximum(before - REACH, -EXACT_LIMIT), np.minimum(before + REACH, EXACT_LIMIT)
    return np.clip(nearest, low, high).astype(np.int32)
