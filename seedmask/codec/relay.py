"""Codec 18, `relay`: the masks of a round as their devices coded them, from which devices compute theta.  PROTOCOL 5.7.

A device that holds the theta of the round before can decode and pool the masks as the aggregator does. With `hmrc` the
masks take a few hundredths of a bit per weight and device: fewer bytes than theta itself in any coding while the fleet
is small, and theta is not rounded. The idea is from BiCompFL (arXiv 2502.00206). The price is that a device decodes the
masks of all others, and can read them; `[aggregation] relay` switches it off for a fleet where this is not acceptable.
Exact values are sent as their new mean, which is as long as those of one device.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from seedmask.codec import by_id, exact, varint
from seedmask.errors import CodecError, LimitError, ThetaMismatchError
from seedmask.mask import I32, ONE, Mask, Theta
from seedmask.pooling import MAX_WEIGHT, Pooling, pool, weight_of
from seedmask.shared import Shared

ID = 18
NAME = "relay"

_HEAD: Final = struct.Struct("<B16sIHHIH")  # id, digest of the base, round, max_level, clamp, heaviest, devices
MAX_WORK: Final = 1 << 30
"""Maximum of masks times weights in a relay, so that decoding it takes some seconds of one core at most."""


@dataclass(frozen=True)
class Part:
    """Masks of one device: its name, `samples` it trained on, `codec` id, and the coded masks `payloads`."""

    device: str
    samples: int
    codec: int
    payloads: tuple[bytes, ...]


def size(parts: Sequence[Part]) -> tuple[int, int]:
    """Return (number of masks, bytes of all coded masks) of a relay of `parts`."""
    return sum(len(part.payloads) for part in parts), sum(len(p) for part in parts for p in part.payloads)


def encode(base: Theta, round_: int, pooling: Pooling, parts: Sequence[Part], values: I32 | None = None) -> bytes:
    """Return the relay of the masks of round `round_`, in ascending order of the devices' names.

    `base`: theta that the masks were coded under; `pooling`: how to pool them; `values` int32 [e]: exact values of the
    resulting theta, None if the model has none.
    """
    head = _HEAD.pack(ID, base.digest(), round_, pooling.max_level, pooling.clamp, pooling.heaviest, len(parts))
    out = [head, exact.put(base.exact if values is None else values, base.exact)]
    for part in sorted(parts, key=lambda part: part.device):
        out.append(bytes([len(part.device)]) + part.device.encode("ascii"))
        out.append(struct.pack("<IBB", part.samples, part.codec, len(part.payloads)))
        for payload in part.payloads:
            out += [varint.put(len(payload)), payload]
    return b"".join(out)


def decode(payload: bytes, base: Theta, seed: int, job: str, max_blocks: int = 0) -> Theta:
    """Decode and pool the masks in `payload`, and return the resulting theta.

    `seed`: of the model; `max_blocks`: the job's limit on blocks of `hmrc`. Raises a ProtocolError for anything but a
    relay under `base`. The caller must compare the result's digest with the announced one.
    """
    round_, pooling, parts, values = _read(payload, base)
    total, weight, unit, masks = np.zeros(base.d, np.int64), 0, 0, 0
    for part in parts:
        each = weight_of(part.samples, pooling.heaviest)
        for index, coded in enumerate(part.payloads):
            mask: Mask = by_id(part.codec).decode(
                coded, base, Shared(seed, round_, job, part.device, index), max_blocks
            )
            total += each * mask.astype(np.int64)
            weight, unit, masks = weight + each, math.gcd(unit, each), masks + 1
    return replace(pool(total, weight, unit, masks, pooling.max_level, pooling.clamp), exact=values)


def _read(payload: bytes, base: Theta) -> tuple[int, Pooling, list[Part], I32]:
    """Return (round, pooling, parts, exact values) without decoding a mask. Raises LimitError for too many masks."""
    if len(payload) < _HEAD.size or payload[0] != ID:
        raise CodecError(f"relay: a header of {_HEAD.size} bytes that begins with {ID} expected")
    _, digest, round_, max_level, clamp, heaviest, n = _HEAD.unpack_from(payload)
    if digest != base.digest():
        raise ThetaMismatchError("relay: masks under other probabilities than those held here")
    if not 1 <= clamp < ONE // 2 or heaviest > MAX_WEIGHT or not n:
        raise CodecError(f"relay: clamp {clamp}, heaviest {heaviest}, {n} devices out of range")
    parts: list[Part] = []
    values, at = exact.take(payload, _HEAD.size, base.exact)
    all_masks = 0
    for _ in range(n):
        name, at = _take(payload, at + 1, payload[at] if at < len(payload) else 1)
        head, at = _take(payload, at, 6)
        samples, codec, masks = struct.unpack("<IBB", head)
        all_masks += masks
        if all_masks * base.d > MAX_WORK:
            raise LimitError(f"relay: more than {MAX_WORK // base.d} masks of {base.d} weights")
        payloads = []
        for _ in range(masks):
            size, at = varint.get(payload, at)
            coded, at = _take(payload, at, size)
            payloads.append(coded)
        if not samples or not masks or not name.isascii() or (parts and name.decode() <= parts[-1].device):
            raise CodecError(f"relay: {name!r} without samples or masks, or out of order")
        parts.append(Part(name.decode("ascii"), samples, codec, tuple(payloads)))
    if at != len(payload):
        raise CodecError(f"relay: {len(payload) - at} bytes after the last mask")
    return round_, Pooling(max_level, clamp, heaviest), parts, values


def _take(payload: bytes, at: int, n: int) -> tuple[bytes, int]:
    if at + n > len(payload):
        raise CodecError(f"relay: {n} bytes expected at {at}, {max(0, len(payload) - at)} left")
    return payload[at : at + n], at + n
