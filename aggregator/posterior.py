"""What the masks of a round say about each weight, and the next theta: integers, so that no order can matter.

FedPM's server (Isik et al., arXiv 2209.15328, section 3): Beta(alpha, beta) per weight with alpha = lambda + ones and
beta = lambda + zeros; theta is the mode. With lambda = 1 and a reset every round, which is what the authors published,
that is ones / K, an integer count. Around it: weights by examples, counts that are carried over to the next round, a
server step, and levels for a cheap downlink (rounded here, so that everybody uses the rounded value).

Fixed point: a *share* is a probability before the clamp in units of 2**-16, 0 .. 65536. The probability of a share s
is clamp + s (1 - 2 clamp).
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from aggregator.settings import AggregationConfig
from seedmask.mask import CLAMP, I32, NO_EXACT, ONE, Mask, Theta
from seedmask.pooling import FINE, MAX_WEIGHT, pool
from seedmask.seed import fold, key_of, uniforms16

I64 = npt.NDArray[np.int64]

INIT_MAX_LEVEL: Final = 255
INIT_STREAM: Final = 3
"""The aggregator's own stream, beside WEIGHTS and UNIFORMS of PROTOCOL 2: no two uses share a word."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Masks so far: `total` int64 [d] is the sum of weight times mask.

    `weight`: sum of the `masks`' weights, each a multiple of `unit`. `moved` int64 [e]: the sum of weight times how far
    each device's exact values are from the round's, `movers` that of these weights, one for each device.
    """

    total: I64
    weight: int = 0
    masks: int = 0
    unit: int = 0
    moved: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    movers: int = 0

    @classmethod
    def empty(cls, d: int, e: int = 0) -> Posterior:
        """No mask yet."""
        return cls(np.zeros(d, np.int64), moved=np.zeros(e, np.int64))

    def fold(self, mask: Mask, weight: int = 1) -> Posterior:
        """Add one more mask, uint8 [d], that counts `weight` times, 1 .. MAX_WEIGHT; else ValueError."""
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"a weight is 1 .. {MAX_WEIGHT}, found {weight}")
        total = np.multiply(mask, weight, dtype=np.int64)
        total += self.total
        unit = math.gcd(self.unit, weight)
        return replace(self, total=total, weight=self.weight + weight, masks=self.masks + 1, unit=unit)

    def move(self, moved: I64, weight: int = 1) -> Posterior:
        """With one more device's exact values, `moved` [e] from the round's, each within `exact.REACH`."""
        return replace(self, moved=self.moved + weight * moved, movers=self.movers + weight)

    @property
    def sums(self) -> tuple[I64, int, int, int]:
        """What `pool` begins with."""
        return self.total, self.weight, self.unit, self.masks

    def digest(self) -> bytes:
        """16 bytes that name exactly this state; for tests and logs."""
        head = f"{self.weight} {self.masks} {self.unit} {self.movers} ".encode()
        body = self.total.astype("<i8").tobytes() + self.moved.astype("<i8").tobytes()
        return hashlib.sha256(head + body).digest()[:16]


@dataclass(frozen=True, eq=False)
class Memory:
    """What a round leaves to the next one beside theta.

    `share` int64 [d]: theta before it was rounded to levels. `ones` int64 [d], units of 2**-16, of `masks`, units of
    2**-16: the Beta counts that are carried over.
    """

    share: I64
    ones: I64
    masks: int = 0

    def to_bytes(self) -> bytes:
        """For the store: u64 masks | u8 whether ones follow | u32 share [d] | u64 ones [d]."""
        ones = self.ones.astype("<u8").tobytes() if self.masks else b""
        return struct.pack("<QB", self.masks, self.masks > 0) + self.share.astype("<u4").tobytes() + ones

    @classmethod
    def from_bytes(cls, data: bytes, d: int) -> Memory:
        """The same back. Raises ValueError if it is not of `d` weights."""
        masks, more = struct.unpack_from("<QB", data)
        if len(data) != 9 + (12 if more else 4) * d:
            raise ValueError(f"{len(data)} bytes are no memory of {d} weights")
        share = np.frombuffer(data, "<u4", d, 9).astype(np.int64)
        ones = np.frombuffer(data, "<u8", d, 9 + 4 * d).astype(np.int64) if more else np.zeros(d, np.int64)
        return cls(share, ones, masks)


def start(init: str, seed: int, d: int, clamp: int = CLAMP, exact: I32 = NO_EXACT) -> Theta:
    """What a job begins with: probabilities of one half, or drawn once from the model's seed; `exact` values as given.

    "uniform": each equally likely; "normal": the sigmoid of a standard normal score, as in FedPM's published code.
    """
    if init == "half":
        # One half whatever the clamp, and what every device holds before it hears anything.
        return Theta.even(d, exact=exact)
    u = uniforms16(fold(key_of(seed), INIT_STREAM), d)
    if init == "uniform":
        return Theta((u >> np.uint16(8)).astype(np.uint16), INIT_MAX_LEVEL, clamp, exact)
    # A level is drawn where u lies between the distribution's values half a level below and half a level above it.
    edges = (clamp + (ONE - 2 * clamp) * (np.arange(INIT_MAX_LEVEL) + 0.5) / INIT_MAX_LEVEL) / ONE
    below = [NormalDist().cdf(math.log(p / (1 - p))) * ONE for p in edges.tolist()]
    return Theta(np.searchsorted(below, u, "right").astype(np.uint16), INIT_MAX_LEVEL, clamp, exact)


def conclude(
    posterior: Posterior, aggregation: AggregationConfig, theta: Theta, memory: Memory | None = None
) -> tuple[Theta, Memory | None]:
    """The next theta and what the round after will need, from the masks drawn under `theta` and what is remembered.

    Exact values move by their devices' mean, to the nearest unit, halves up. Raises ValueError before the first mask.
    """
    if not posterior.masks:
        raise ValueError("no mask gives no probabilities")
    after, left = _probabilities(posterior, aggregation, theta, memory)
    if not theta.e:
        return after, left
    exact = theta.exact + _divided(posterior.moved, posterior.movers)
    return replace(after, exact=exact.astype(np.int32)), left


def _probabilities(
    posterior: Posterior, aggregation: AggregationConfig, theta: Theta, memory: Memory | None
) -> tuple[Theta, Memory | None]:
    if not (aggregation.prior_q16 or aggregation.remembers):
        return pool(*posterior.sums, aggregation.max_level, aggregation.clamp_q16), None
    before = memory.share if memory is not None else _share(theta)
    ones, masks = (memory.ones, memory.masks) if memory is not None else (np.zeros(theta.d, np.int64), 0)
    ones = ones + _divided(posterior.total << 16, posterior.weight) * posterior.masks
    masks = masks + posterior.masks * ONE
    of = masks + 2 * aggregation.prior_q16
    spare = max(0, of.bit_length() - 46)  # bits that 63 of them have no room for, after years of carrying over
    mode = _divided((ones + aggregation.prior_q16) >> spare << 16, of >> spare)
    share = np.clip(before + _divided((mode - before) * aggregation.step_milli, 1000), 0, ONE)
    ones, masks = ones * aggregation.carry_milli // 1000, masks * aggregation.carry_milli // 1000
    after = _levels(share, aggregation)
    return after, Memory(share, ones, masks) if aggregation.remembers else None


def finished(recent: tuple[Theta, ...]) -> tuple[Mask, I32]:
    """The finished model: these thetas' mean thresholded at one half, uint8 [d]; their mean exact values, int32 [e]."""
    total, exact = np.zeros(recent[0].d, np.int64), np.zeros(recent[0].e, np.int64)
    for theta in recent:
        total += theta.q16()
        exact += theta.exact
    return (2 * total >= len(recent) * ONE).astype(np.uint8), _divided(exact, len(recent)).astype(np.int32)


def _levels(share: I64, aggregation: AggregationConfig) -> Theta:
    """Round `share` to the nearest level, half a level up."""
    max_level = aggregation.max_level or FINE
    return Theta(((share * max_level + ONE // 2) >> 16).astype(np.uint16), max_level, aggregation.clamp_q16)


def _share(theta: Theta) -> I64:
    return _divided(theta.level.astype(np.int64) << 16, theta.max_level)


def _divided(values: I64, by: int) -> I64:
    """The nearest integer to values / by, halves up; by >= 1."""
    return (values + by // 2) // by
