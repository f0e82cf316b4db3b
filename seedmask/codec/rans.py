"""Codec 2, `rans`: a mask without loss, coded under the theta that both sides hold.  PROTOCOL 5.2.

Weights are sorted by probability into at most 64 buckets. Within a bucket, bits are treated as independent and equally
probable, so four bits become one rANS symbol whose frequency depends only on the number of ones among them. The payload
states the share of ones in each bucket (12 bits), so the code adapts to what the device has learnt. It takes about one
percent more than the cross-entropy of the mask under theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import ans
from seedmask.codec.buckets import Buckets
from seedmask.codec.plan import Plan, check_scores, sigmoid
from seedmask.errors import CodecError
from seedmask.mask import F32, Mask, Theta, check_mask, sample, table
from seedmask.shared import Shared

ID = 2
NAME = "rans"

_BUCKET_SHIFT: Final = 10  # 2**16 probabilities into 64 buckets
_BUCKETS: Final = 1 << (16 - _BUCKET_SHIFT)
_ONES: Final = np.array([bin(symbol).count("1") for symbol in range(16)])


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
    """Draw a mask from `rng` and return it coded under `theta`; as MaskCodec.draw."""
    check_scores(scores, theta.d)
    return encode(sample(sigmoid(scores), rng), theta)


def encode(mask: Mask, theta: Theta) -> bytes:
    """Return `mask`, uint8 [d] of 0/1, coded under `theta`. Raises ValueError for another array.

    u16 share of ones in each bucket that is not empty | rANS payload.
    """
    check_mask(mask, theta.d)
    parts = [part for part in _buckets(theta).by_bucket(mask) if part.size]
    share = np.array([_share(part) for part in parts])
    contexts = _contexts([part.size for part in parts])
    return share.astype("<u2").tobytes() + ans.encode(symbols_of(parts), contexts, frequencies(share))


def decode(payload: bytes, theta: Theta, shared: Shared | None = None, max_blocks: int = 0) -> Mask:
    """Return the mask, uint8 [d]. Raises CodecError for bytes that `encode` cannot write under `theta`."""
    buckets = _buckets(theta)
    sizes = buckets.sizes
    used = sum(size > 0 for size in sizes)
    if len(payload) < 2 * used:
        raise CodecError(f"rans mask: {used} bucket shares need {2 * used} bytes, found {len(payload)}")
    stated = np.frombuffer(payload, "<u2", used)
    if np.any(stated < 1) or np.any(stated >= ans.TOTAL):
        raise CodecError(f"rans mask: a bucket's share of ones is 1 .. {ans.TOTAL - 1}")
    share = stated.astype(np.int64)
    parts = bits_of(ans.decode(payload[2 * used :], _contexts(sizes), frequencies(share)), sizes)
    if [_share(part) for part in parts if part.size] != share.tolist():
        raise CodecError("rans mask: a bucket's share of ones is not that of its bits")
    return buckets.by_weight(parts)


def _share(bits: Mask) -> int:
    return int(ans.share_of(int(bits.sum()), bits.size))


def _buckets(theta: Theta) -> Buckets:
    bucket = (table(theta.max_level, theta.clamp) >> _BUCKET_SHIFT).astype(np.uint8)
    return Buckets.of(theta.d, _BUCKETS, lambda piece: bucket.take(theta.level[piece]))


def symbols_of(parts: Sequence[Mask]) -> npt.NDArray[np.uint8]:
    """Return the bits of all `parts` as symbols, uint8 [n] of 0 .. 15: four bits each, least significant bit first.

    Each part, uint8 of 0/1, starts a new symbol and is padded with zeros.
    """
    padded = (np.concatenate([part, np.zeros(-part.size % 4, np.uint8)]) for part in parts)
    return np.concatenate([np.packbits(bits.reshape(-1, 4), 1, "little")[:, 0] for bits in padded])


def bits_of(symbols: npt.NDArray[np.uint8], sizes: Sequence[int]) -> list[Mask]:
    """Return the parts, with `sizes` bits each, of which `symbols_of` made `symbols`. Raises CodecError for padding."""
    bits = np.unpackbits(symbols[:, None], axis=1, count=4, bitorder="little").reshape(-1)
    parts, at = [], 0
    for size in sizes:
        end = at + 4 * -(-size // 4)
        if bits[at + size : end].any():
            raise CodecError("mask: padding bits must be zero")
        parts.append(bits[at : at + size])
        at = end
    return parts


def _contexts(sizes: list[int]) -> npt.NDArray[np.intp]:
    """Return the bucket of each symbol, intp [symbols]; buckets that are not empty are numbered from 0."""
    symbols = [-(-size // 4) for size in sizes if size]
    return np.repeat(np.arange(len(symbols)), symbols)


def frequencies(share: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Return the frequency of each four-bit symbol, uint32 [B, 16], for shares of ones [B] in 4096ths.

    Rows sum to 4096; intermediate products stay at or below 2**48.
    """
    p = share.astype(np.uint64)[:, None]
    q = np.uint64(ans.TOTAL) - p
    power = [np.ones_like(p), p, p * p, p * p * p, p * p * p * p]
    rest = [np.ones_like(q), q, q * q, q * q * q, q * q * q * q]
    by_ones = np.concatenate([power[k] * rest[4 - k] >> np.uint64(36) for k in range(5)], axis=1)
    frequency: ans.Ints = np.maximum(by_ones, np.uint64(1))[:, _ONES].astype(np.int64)
    # The likelier of the symbols 0 and 15 takes the rounding error; the share decides, as frequencies may be equal.
    likeliest = np.where(share > ans.TOTAL // 2, 15, 0)
    frequency[np.arange(share.size), likeliest] += ans.TOTAL - frequency.sum(axis=1)
    return frequency.astype(np.uint32)
