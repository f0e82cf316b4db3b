"""Codec 16, `counts`: theta as integer levels, on its way to the devices.  PROTOCOL 5.4.

Levels of more than eight bits are split. The high part is entropy coded under its own frequencies; the low bits follow
uncoded, because they are close to uniform. Exact values, if the model has any, come last.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import ans, exact
from seedmask.errors import CodecError, LimitError
from seedmask.mask import MAX_D, ONE, Theta

ID = 16
NAME = "counts"

_HEAD: Final = struct.Struct("<IHH")  # d, max_level, clamp


def encode(theta: Theta) -> bytes:
    """Return `theta` as a payload.

    u32 d | u16 max_level | u16 clamp | u16 frequency per symbol | u32 length, rANS payload | low bits | exact values.
    """
    shift = _shift(theta.max_level)
    high = theta.level >> shift
    frequency = _frequencies(high, (theta.max_level >> shift) + 1)
    coded = ans.encode(high, np.zeros(theta.d, np.intp), frequency[None, :])
    low = (theta.level[:, None] >> np.arange(shift, dtype=np.uint16)) & np.uint16(1)
    return b"".join(
        [
            _HEAD.pack(theta.d, theta.max_level, theta.clamp),
            frequency.astype("<u2").tobytes(),
            struct.pack("<I", len(coded)),
            coded,
            np.packbits(low.astype(np.uint8).reshape(-1), bitorder="little").tobytes(),
            exact.encode(theta.exact, np.zeros(theta.e, np.int32)),
        ]
    )


def decode(payload: bytes, d: int, e: int = 0) -> Theta:
    """Return the theta in `payload`, for a model of `d` masked weights and `e` exact values.

    Raises LimitError if it has another number of weights, CodecError for other bytes that `encode` cannot write.
    """
    if len(payload) < _HEAD.size:
        raise CodecError(f"counts: a header of {_HEAD.size} bytes expected, found {len(payload)}")
    size, max_level, clamp = _HEAD.unpack_from(payload)
    if size != d or not 1 <= size <= MAX_D:
        raise LimitError(f"counts for {size} weights, the model has {d}")
    if max_level < 1 or not 1 <= clamp < ONE // 2:
        raise CodecError(f"counts: max_level {max_level}, clamp {clamp} out of range")
    shift = _shift(max_level)
    symbols = (max_level >> shift) + 1
    at = _HEAD.size + 2 * symbols + 4
    if len(payload) < at:
        raise CodecError(f"counts: {symbols} frequencies expected, found {len(payload)} bytes in all")
    frequency = np.frombuffer(payload, "<u2", symbols, _HEAD.size).astype(np.uint32)
    if int(frequency.sum()) != ans.TOTAL:
        raise CodecError(f"counts: frequencies sum to {int(frequency.sum())}, not {ans.TOTAL}")
    (length,) = struct.unpack_from("<I", payload, at - 4)
    end = at + length + (d * shift + 7) // 8
    if len(payload) < end or (len(payload) > end and not e):
        raise CodecError(f"counts: {len(payload)} bytes do not fit a coded part of {length}")
    high = ans.decode(payload[at : at + length], np.zeros(d, np.intp), frequency[None, :])
    if not np.array_equal(frequency, _frequencies(high, symbols)):
        raise CodecError("counts: the frequencies are not those of the levels")
    level: npt.NDArray[np.uint16] = high.astype(np.uint16) << np.uint16(shift)
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, end - at - length, at + length), bitorder="little")
    if bits[d * shift :].any():
        raise CodecError("counts: padding bits must be zero")
    low = bits[: d * shift].reshape(d, shift).astype(np.uint16) << np.arange(shift, dtype=np.uint16)
    level += low.sum(axis=1, dtype=np.uint16)
    if int(level.max()) > max_level:
        raise CodecError(f"counts: a level above the largest, {int(level.max())} > {max_level}")
    return Theta(level, max_level, clamp, exact.decode(payload[end:], np.zeros(e, np.int32)))


def _frequencies(high: npt.NDArray[Any], symbols: int) -> npt.NDArray[np.uint32]:
    """Return the frequencies of the high parts of levels, uint32 [symbols]."""
    return ans.normalise(np.bincount(high, minlength=symbols))


def _shift(max_level: int) -> int:
    """Return how many low bits of a level stay uncoded, so that at most 256 symbols are entropy coded."""
    return max(0, max_level.bit_length() - 8)
