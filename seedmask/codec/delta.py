"""Codec 17, `delta`: theta coded relative to the theta of the round before, which the device holds.  PROTOCOL 5.6.

Theta changes little from round to round. So each weight's new level is coded by rANS under the frequencies of new
levels among weights with the same old level. The payload states one row of frequencies for each old level, so it is
small only while both thetas have few levels.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import ans, exact
from seedmask.errors import CodecError, ThetaMismatchError
from seedmask.mask import ONE, Theta

ID = 17
NAME = "delta"

MAX_CELLS: Final = 4096
_HEAD: Final = struct.Struct("<B16sHH")  # id, digest of the base, max_level, clamp


def possible(theta: Theta, base: Theta) -> bool:
    """True if `encode` accepts the two: equal numbers of weights and of exact values, and few enough levels."""
    few = max(theta.max_level, base.max_level) < 256 and (theta.max_level + 1) * (base.max_level + 1) <= MAX_CELLS
    return (theta.d, theta.e) == (base.d, base.e) and few


def estimate(theta: Theta, base: Theta) -> int:
    """Return the approximate length of `encode`'s result in bytes, from frequencies and cross-entropy, without coding.

    Raises ValueError if `possible` is false.
    """
    _check(theta, base)
    counts = _counts(theta.level, theta.max_level, _contexts(base))
    frequency = _normalised(counts)
    there = counts > 0
    bits = float((counts[there] * np.log2(ans.TOTAL / frequency[there])).sum())
    states = 2 * ans.lanes_of(theta.d)  # the final states: about half of their four bytes each is overhead
    return _HEAD.size + len(exact.put(theta.exact, base.exact)) + 2 * counts.size + states + int(bits / 8)


def encode(theta: Theta, base: Theta) -> bytes:
    """Return `theta` as a payload for devices that hold `base`. Raises ValueError if `possible` is false.

    u8 17 | base digest | u16 max_level | u16 clamp | length and differences of exact values, if any | u16 frequencies,
    a row for each level that occurs in the base | rANS payload.
    """
    _check(theta, base)
    contexts = _contexts(base)
    frequency = _rows(theta.level, theta.max_level, contexts)
    coded = ans.encode(theta.level, contexts, frequency)
    head = _HEAD.pack(ID, base.digest(), theta.max_level, theta.clamp) + exact.put(theta.exact, base.exact)
    return head + frequency.astype("<u2").tobytes() + coded


def decode(payload: bytes, base: Theta) -> Theta:
    """Return the theta in `payload`. Raises ThetaMismatchError if it was coded under another base, or CodecError."""
    if len(payload) < _HEAD.size or payload[0] != ID:
        raise CodecError(f"delta: a header of {_HEAD.size} bytes that begins with {ID} expected")
    _, digest, max_level, clamp = _HEAD.unpack_from(payload)
    if digest != base.digest():
        raise ThetaMismatchError("delta: coded under other probabilities than those held here")
    if (
        not 1 <= max_level < 256
        or base.max_level > 255
        or (max_level + 1) * (base.max_level + 1) > MAX_CELLS
        or not 1 <= clamp < ONE // 2
    ):
        raise CodecError(f"delta: max_level {max_level}, clamp {clamp} out of range")
    values, start = exact.take(payload, _HEAD.size, base.exact)
    contexts = _contexts(base)
    rows, columns = int(contexts.max()) + 1, max_level + 1
    at = start + 2 * rows * columns
    if len(payload) < at:
        raise CodecError(f"delta: {rows} rows of {columns} frequencies expected, found {len(payload)} bytes in all")
    frequency = np.frombuffer(payload, "<u2", rows * columns, start).reshape(rows, columns).astype(np.uint32)
    if np.any(frequency.sum(axis=1) != ans.TOTAL):
        raise CodecError(f"delta: frequencies of a row do not sum to {ans.TOTAL}")
    level = ans.decode(payload[at:], contexts, frequency).astype(np.uint16)
    if not np.array_equal(frequency, _rows(level, max_level, contexts)):
        raise CodecError("delta: the frequencies are not those of the levels")
    return Theta(level, max_level, clamp, values)


def _check(theta: Theta, base: Theta) -> None:
    if not possible(theta, base):
        raise ValueError(
            f"no delta of {theta.max_level + 1} levels on {base.max_level + 1}, {theta.d} weights on {base.d}"
        )


def _contexts(base: Theta) -> npt.NDArray[np.intp]:
    """Return each weight's context, intp [d]: the rank of its level among the levels that occur in the base."""
    there = np.bincount(base.level, minlength=base.max_level + 1) > 0
    contexts: npt.NDArray[np.intp] = (np.cumsum(there) - 1).take(base.level)
    return contexts


def _rows(level: npt.NDArray[Any], max_level: int, contexts: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
    """Return the frequencies of levels 0 .. `max_level` in each context, uint32 [contexts, max_level + 1]."""
    return _normalised(_counts(level, max_level, contexts))


def _normalised(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return np.stack([ans.normalise(row) for row in counts])


def _counts(level: npt.NDArray[Any], max_level: int, contexts: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Return how often each level 0 .. `max_level` occurs in each context, int64 [contexts, max_level + 1]."""
    columns = max_level + 1
    rows = int(contexts.max()) + 1
    cells = contexts * columns
    cells += level
    return np.bincount(cells, minlength=rows * columns).reshape(rows, columns).astype(np.int64, copy=False)
