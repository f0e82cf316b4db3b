"""Codec 4, `crn`: an exact mask under common random numbers; what is coded is where it differs.  PROTOCOL 5.6.

Device and aggregator share a uniform u per weight. The device's mask is 1 where u < theta_k, which is an exact sample
of its probabilities; under theta both would have 1 where u < theta. The mask differs only where u falls between the
two, the likelier the nearer u is to theta, so the flips are coded in buckets by that distance (of logits: that is how
far an optimiser moves a score). Gaps between flips are Rice-coded (R. F. Rice, JPL 79-22, 1979): one unary string for
all quotients, then all remainders, then what is denser than Rice codes are good for, as it is.
Three to five times fewer bits than `rans`, five times more than `hmrc`, but exact: nothing about the mask is changed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import varint
from seedmask.codec.buckets import Buckets
from seedmask.codec.plan import Plan, check_scores, sigmoid
from seedmask.errors import CodecError
from seedmask.mask import F32, ONE, Mask, Theta, check_mask, table
from seedmask.shared import Shared

ID = 4
NAME = "crn"

# Bucket b holds the distances, in 1/64 of a logit, below the b-th edge and not below the one before.
EDGES: Final = (3, 6, 10, 13, 19, 26, 32, 38, 45, 54, 64, 77, 90, 102, 115, 128, 147, 166, 192, 224, 288)
_RAW: Final = -1  # in place of a Rice parameter: the bucket's bits as they are

Bits = npt.NDArray[np.uint8]


def _logits() -> npt.NDArray[np.int16]:
    """64 logit((x + 1/2) / 4096), about, for x = 0 .. 4095: integer sums, so that everybody has the same."""
    y = np.arange(2049, 4096, dtype=np.int64)
    upper = (np.cumsum((1 << 34) // (y * (4096 - y))) + (1 << 15)) >> 16
    upper = np.concatenate([[0], upper])
    return np.concatenate([-upper[::-1], upper]).astype(np.int16)


_LOGIT: Final = _logits()
_BUCKET: Final = np.searchsorted(np.array(EDGES), np.arange(2 * int(_LOGIT[-1]) + 1), side="right").astype(np.uint8)


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
    """The mask u < sigmoid(scores) in units of 2**-16; `rng` is not needed, the shared uniforms are its chance."""
    check_scores(scores, theta.d)
    own = np.rint(sigmoid(scores) * np.float32(ONE)).astype(np.int32)
    return encode((shared.uniforms(theta.d) < own).view(np.uint8), theta, shared)


def encode(mask: Mask, theta: Theta, shared: Shared) -> bytes:
    """Code any mask, uint8 [d]; short where it is one of `draw`'s."""
    check_mask(mask, theta.d)
    base, layout = _layout(theta, shared)
    counts, unary, rest, raw = [], [], [], []
    for bits in layout.by_bucket(mask ^ base):
        if not bits.size:
            continue
        n, f = bits.size, int(bits.sum())
        counts.append(varint.put(f))
        k, rare = _parameter(n, f)
        if k == _RAW:
            raw.append(bits)
        elif rare:
            places = np.flatnonzero(bits == (2 * f <= n))
            gaps = np.diff(places, prepend=-1) - 1
            ends = np.cumsum((gaps >> k) + 1) - 1
            string = np.zeros(int(ends[-1]) + 1, np.uint8)
            string[ends] = 1
            unary.append(string)
            rest.append(_low_bits(gaps, k))
    bits = np.concatenate([*unary, *rest, *raw, np.zeros(0, np.uint8)])
    return b"".join(counts) + np.packbits(bits, bitorder="little").tobytes()


def decode(payload: bytes, theta: Theta, shared: Shared, max_blocks: int = 0) -> Mask:
    """The mask, uint8 [d]. Raises CodecError for bytes that `encode` could not have written."""
    base, layout = _layout(theta, shared)
    at, plans = 0, []
    for n in layout.sizes:
        if not n:
            plans.append((0, 0, 0, 0))
            continue
        f, at = varint.get(payload, at)
        if f > n:
            raise CodecError(f"crn: {f} flips among {n} weights")
        plans.append((n, f, *_parameter(n, f)))
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, -1, at), bitorder="little")
    ends = np.flatnonzero(bits)[: sum(rare for _, _, k, rare in plans if k != _RAW)]
    if ends.size < sum(rare for _, _, k, rare in plans if k != _RAW):
        raise CodecError("crn: the string of quotients ends too early")
    quotients = np.diff(ends, prepend=-1) - 1
    tail = int(ends[-1]) + 1 if ends.size else 0
    total = tail + sum(rare * k if k != _RAW else n for n, _, k, rare in plans)
    if bits.size != -(-total // 8) * 8 or bits[total:].any():
        raise CodecError(f"crn: {total} bits expected, found {bits.size}, or padding that is not zero")
    flips, first, raw = [], 0, total - sum(n for n, _, k, _ in plans if k == _RAW)
    for n, f, k, rare in plans:
        if k == _RAW:
            part = bits[raw : raw + n]
            raw += n
            if int(part.sum()) != f:
                raise CodecError(f"crn: {int(part.sum())} flips where {f} are stated")
        else:
            low = bits[tail : tail + rare * k].reshape(rare, k) @ (1 << np.arange(k, dtype=np.int64))
            tail += rare * k
            places = np.cumsum((quotients[first : first + rare] << k) + low + 1) - 1
            first += rare
            if rare and int(places[-1]) >= n:
                raise CodecError(f"crn: a flip at place {int(places[-1])} of {n}")
            part = np.full(n, 2 * f > n, np.uint8)
            part[places] ^= 1
        flips.append(part)
    mask = layout.by_weight(flips)
    mask ^= base
    return mask


def _layout(theta: Theta, shared: Shared) -> tuple[Mask, Buckets]:
    """(the mask without training, uint8 [d]; the weights by bucket)."""
    u, q = shared.uniforms(theta.d), table(theta.top, theta.clamp)
    levels = _LOGIT[q >> 4]
    few = theta.top < 256  # then there is a bucket for each pair of level and uniform: one look-up a weight
    cells: Bits = _BUCKET[np.abs(_LOGIT - levels[:, None])].reshape(-1) if few else _BUCKET
    base = np.empty(theta.d, np.uint8)

    def bucket(piece: slice) -> npt.NDArray[np.uint8]:
        chance, level = u[piece], theta.level[piece]
        base[piece] = chance < q.take(level)
        if few:
            where = np.left_shift(level, 12, dtype=np.int32) + (chance >> 4)
        else:
            where = np.abs(_LOGIT[chance >> 4] - levels[level])
        found: Bits = cells.take(where)
        return found

    return base, Buckets.of(theta.d, len(EDGES) + 1, bucket)


def _parameter(n: int, f: int) -> tuple[int, int]:
    """(Rice parameter or _RAW, how many places are coded) of a bucket with `f` flips among `n`.

    The rarer kind of bit is coded. The parameter is floor(log2(ln 2 / p)) for the density p = rare / (n + rare).
    """
    rare = min(f, n - f)
    if not rare:
        return 0, 0
    if 5 * rare > 2 * n:
        return _RAW, rare
    return max(0, ((n + rare) * 45426 // (ONE * rare)).bit_length() - 1), rare


def _low_bits(values: npt.NDArray[Any], k: int) -> Bits:
    """The `k` low bits of each value, least significant first, uint8 [n * k]."""
    return (values[:, None] >> np.arange(k) & 1).astype(np.uint8).reshape(-1)
