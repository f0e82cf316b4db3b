"""Codec 2, `rans`: an exact mask coded under the global probabilities that both sides hold.  PROTOCOL 5.2.

Weights are sorted by probability into at most 64 buckets; inside one bucket the bits are as good as independent, so
four at a time become one rANS symbol whose frequency depends only on how many of the four are set. The sender states
each bucket's share of ones (12 bits), which adapts to what the device learnt. Cost: the cross-entropy of the mask
under theta plus about one percent.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import ans
from seedmask.codec.plan import Plan, check_scores, sigmoid
from seedmask.errors import CodecError
from seedmask.mask import F32, Mask, Theta, check_mask, sample
from seedmask.shared import Shared

ID = 2
NAME = "rans"

_BUCKET_SHIFT: Final = 10  # 2**16 probabilities into 64 buckets
_BUCKETS: Final = 1 << (16 - _BUCKET_SHIFT)
_ONES: Final = np.array([bin(symbol).count("1") for symbol in range(16)])


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
    """Draw a mask from private randomness and code it."""
    check_scores(scores, theta.d)
    return encode(sample(sigmoid(scores), rng), theta)


def encode(mask: Mask, theta: Theta) -> bytes:
    """Code `mask`, uint8 [d] of 0/1, under `theta`: u16 share of ones per occupied bucket, then the rANS payload."""
    check_mask(mask, theta.d)
    order, sizes, place = _layout(theta)
    sorted_bits = mask[order]
    share = _shares(sorted_bits, sizes)
    padded = np.zeros(4 * _contexts(sizes).size, np.uint8)
    padded[place] = sorted_bits
    nibbles = padded.reshape(-1, 4) @ np.array([1, 2, 4, 8], np.uint8)
    head = share.astype("<u2").tobytes()
    return head + ans.encode(nibbles, _contexts(sizes), frequencies(share))


def decode(payload: bytes, theta: Theta, shared: Shared | None = None, max_blocks: int = 0) -> Mask:
    """The mask, uint8 [d]. Raises CodecError for bytes that `encode` could not have written under `theta`."""
    order, sizes, place = _layout(theta)
    used = int(np.count_nonzero(sizes))
    if len(payload) < 2 * used:
        raise CodecError(f"rans mask: {used} bucket shares need {2 * used} bytes, found {len(payload)}")
    stated = np.frombuffer(payload, "<u2", used)
    if np.any(stated < 1) or np.any(stated >= ans.TOTAL):
        raise CodecError(f"rans mask: a bucket's share of ones is 1 .. {ans.TOTAL - 1}")
    share = stated.astype(np.int64)
    nibbles = ans.decode(payload[2 * used :], _contexts(sizes), frequencies(share))
    padded = np.unpackbits(nibbles[:, None], axis=1, count=4, bitorder="little").reshape(-1)
    sorted_bits = padded[place]
    if int(padded.sum()) != int(sorted_bits.sum()):
        raise CodecError("rans mask: padding bits must be zero")
    if not np.array_equal(share, _shares(sorted_bits, sizes)):
        raise CodecError("rans mask: a bucket's share of ones is not that of its bits")
    mask = np.empty(theta.d, np.uint8)
    mask[order] = sorted_bits
    return mask


def _shares(sorted_bits: Mask, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Share of ones of each occupied bucket in 4096ths, rounded half up, kept off 0 and 4096."""
    occupied = sizes > 0
    ones = np.add.reduceat(sorted_bits, (np.cumsum(sizes) - sizes)[occupied], dtype=np.int64)
    size = sizes[occupied]
    share: npt.NDArray[np.int64] = np.clip((2 * ans.TOTAL * ones + size) // (2 * size), 1, ans.TOTAL - 1)
    return share


def _layout(theta: Theta) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(stable order by bucket [d], weights per bucket [64], place of each sorted weight among the padded bits [d])."""
    bucket = (theta.q16() >> _BUCKET_SHIFT).astype(np.uint8)
    sizes = np.bincount(bucket, minlength=_BUCKETS)
    order = np.argsort(bucket, kind="stable")
    padding = np.cumsum(-sizes % 4) - (-sizes % 4)  # zeros that end the buckets before this one
    return order, sizes, np.arange(theta.d) + np.repeat(padding, sizes)


def _contexts(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Occupied bucket, counted from 0, of each four-bit symbol."""
    per_bucket = (sizes[sizes > 0] + 3) // 4
    return np.repeat(np.arange(per_bucket.size), per_bucket)


def frequencies(share: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Frequency of each four-bit symbol per bucket, uint32 [B, 16], rows sum to 4096; products stay below 2**48."""
    p = share.astype(np.uint64)[:, None]
    q = np.uint64(ans.TOTAL) - p
    power = [np.ones_like(p), p, p * p, p * p * p, p * p * p * p]
    rest = [np.ones_like(q), q, q * q, q * q * q, q * q * q * q]
    by_ones = np.concatenate([power[k] * rest[4 - k] >> np.uint64(36) for k in range(5)], axis=1)
    frequency: ans.Ints = np.maximum(by_ones, np.uint64(1))[:, _ONES].astype(np.int64)
    # What rounding lost or took settles on the likeliest symbol, 0 or 15, by the share: its frequency may be tied.
    likeliest = np.where(share > ans.TOTAL // 2, 15, 0)
    frequency[np.arange(share.size), likeliest] += ans.TOTAL - frequency.sum(axis=1)
    return frequency.astype(np.uint32)
