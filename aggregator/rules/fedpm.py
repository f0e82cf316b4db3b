"""FedPM: theta is the mode of a Beta posterior that counts the round's masks.

Isik et al., arXiv 2209.15328, section 3: Beta(alpha, beta) per weight with alpha = lambda + ones and beta = lambda +
zeros. With lambda = 1 and a reset every round, which is what the authors published, its mode is ones / masks, an
integer count. Beyond the paper, by settings: weights by examples, counts that are carried over to the next round, a
server step, and levels for a cheap downlink (rounded here, so that everybody uses the rounded value).

Fixed point: a *share* is a probability before the clamp in units of 2**-16, 0 .. 65536. The probability of a share s
is clamp + s (1 - 2 clamp).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

import numpy as np

from aggregator.rules.contract import I64, Votes, divided, share_of, theta_of
from aggregator.settings import AggregationConfig
from seedmask.mask import CLAMP, I32, NO_EXACT, ONE, Theta
from seedmask.pooling import pool
from seedmask.seed import fold, key_of, uniforms16
from seedmask.spec import ModelSpec

INIT_MAX_LEVEL: Final = 255
INIT_STREAM: Final = 3
"""The aggregator's own stream, beside WEIGHTS and UNIFORMS of PROTOCOL 2: no two uses share a word."""


class FedPM:
    """The built-in rule, "fedpm"; written against the same contract as anybody's."""

    def start(self, spec: ModelSpec, settings: AggregationConfig) -> Theta:
        """Return one half everywhere, or probabilities drawn from the model's seed, as `settings.init` says."""
        return initial(settings.init, spec.seed, spec.d, settings.clamp_q16, spec.begin())

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        """Return the mode of the posterior, and what carry and step need of this round (a Carried, as bytes).

        Exact values move by their devices' mean. Raises ValueError without a mask, or for the memory of another rule.
        """
        if not votes.masks:
            raise ValueError("no mask gives no probabilities")
        exact = votes.exact(theta)
        if not (settings.prior_q16 or settings.remembers):
            sums = votes.ones, votes.weight, votes.unit, votes.masks
            return replace(pool(*sums, settings.max_level, settings.clamp_q16), exact=exact), b""
        before = Carried.from_bytes(memory, theta.d) if memory else Carried(share_of(theta))
        ones = divided(votes.ones << 16, votes.weight) * votes.masks
        if before.ones is not None:
            ones = ones + before.ones
        masks = before.masks + votes.masks * ONE
        of = masks + 2 * settings.prior_q16
        spare = max(0, of.bit_length() - 46)  # bits that 63 of them have no room for, after years of carrying over
        mode = divided((ones + settings.prior_q16) >> spare << 16, of >> spare)
        share = np.clip(before.share + divided((mode - before.share) * settings.step_milli, 1000), 0, ONE)
        after = theta_of(share, settings, exact)
        if not settings.remembers:
            return after, b""
        ones, masks = ones * settings.carry_milli // 1000, masks * settings.carry_milli // 1000
        return after, Carried(share, ones if masks else None, masks).to_bytes()


@dataclass(frozen=True, eq=False)
class Carried:
    """What a round leaves to the next one beside theta.

    `share` int64 [d]: theta before it was rounded to levels. `ones` int64 [d], in units of 2**-16, of `masks`, in the
    same: the Beta counts that are carried over, None where there are none.
    """

    share: I64
    ones: I64 | None = None
    masks: int = 0

    def to_bytes(self) -> bytes:
        """Return u64 masks | u8 1 if ones follow, else 0 | u32 share [d] | u64 ones [d]."""
        ones = b"" if self.ones is None else self.ones.astype("<u8").tobytes()
        return struct.pack("<QB", self.masks, bool(ones)) + self.share.astype("<u4").tobytes() + ones

    @classmethod
    def from_bytes(cls, data: bytes, d: int) -> Carried:
        """Return what `to_bytes` wrote. Raises ValueError if it is not of `d` weights."""
        masks, more = struct.unpack_from("<QB", data) if len(data) >= 9 else (0, 0)
        if len(data) != 9 + (12 if more else 4) * d:
            raise ValueError(f"{len(data)} bytes are no memory of {d} weights")
        ones = np.frombuffer(data, "<u8", d, 9 + 4 * d).astype(np.int64) if more else None
        return cls(np.frombuffer(data, "<u4", d, 9).astype(np.int64), ones, masks)


def initial(init: str, seed: int, d: int, clamp: int = CLAMP, exact: I32 = NO_EXACT) -> Theta:
    """Return the theta of round 1, with `exact` values as given.

    "half": one half everywhere, whatever the clamp, which is what every device holds before it hears anything;
    "uniform": each probability equally likely, drawn from `seed`; "normal": the sigmoid of standard normal scores, as
    in FedPM's published code.
    """
    if init == "half":
        return Theta.even(d, exact=exact)
    u = uniforms16(fold(key_of(seed), INIT_STREAM), d)
    if init == "uniform":
        return Theta((u >> np.uint16(8)).astype(np.uint16), INIT_MAX_LEVEL, clamp, exact)
    # A level is drawn where u lies between the distribution's values half a level below and half a level above it.
    edges = (clamp + (ONE - 2 * clamp) * (np.arange(INIT_MAX_LEVEL) + 0.5) / INIT_MAX_LEVEL) / ONE
    below = [NormalDist().cdf(math.log(p / (1 - p))) * ONE for p in edges.tolist()]
    return Theta(np.searchsorted(below, u, "right").astype(np.uint16), INIT_MAX_LEVEL, clamp, exact)
