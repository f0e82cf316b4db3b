"""Contract of a server rule: its arguments and its results; `aggregator.rules` says how to write one."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aggregator.settings import AggregationConfig
from seedmask.errors import UserError
from seedmask.mask import I32, ONE, Mask, Theta
from seedmask.pooling import FINE, MAX_WEIGHT
from seedmask.spec import ModelSpec

I64 = npt.NDArray[np.int64]


class RuleError(UserError):
    """A server rule that raised, or returned something else than its contract says; the text names it."""


@dataclass(frozen=True, eq=False)
class Votes:
    """Sums over the masks of one round, integers that do not depend on the order in which masks arrived.

    `ones` int64 [d]: sum of weight times mask; `weight`: sum of the masks' weights, so `ones / weight` is the share of
    masks that keep each weight of the network. A mask weighs 1, or as many examples as its device has
    (`[aggregation] weighting`). `masks`: how many there are, at least 1 in a round that closes. `unit`: greatest common
    divisor of their weights. `moved` int64 [e]: sum of weight times the change of each exact value, in units of 2**-12;
    `movers`: sum of these weights, one for each device. `round`: number of the round, from 1.
    """

    ones: I64
    weight: int = 0
    masks: int = 0
    unit: int = 0
    moved: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    movers: int = 0
    round: int = 1

    @classmethod
    def empty(cls, d: int, e: int = 0, round_: int = 1) -> Votes:
        """Return the sums of no mask, for a model of `d` masked weights and `e` exact values."""
        return cls(np.zeros(d, np.int64), moved=np.zeros(e, np.int64), round=round_)

    def with_mask(self, mask: Mask, weight: int = 1) -> Votes:
        """Return the sums with one more mask, uint8 [d], that counts `weight` times.

        Raises ValueError for a weight that is not 1 .. MAX_WEIGHT.
        """
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"a weight is 1 .. {MAX_WEIGHT}, found {weight}")
        ones = np.multiply(mask, weight, dtype=np.int64)
        ones += self.ones
        unit = math.gcd(self.unit, weight)
        return replace(self, ones=ones, weight=self.weight + weight, masks=self.masks + 1, unit=unit)

    def with_exact(self, moved: I64, weight: int = 1) -> Votes:
        """Return the sums with one more device's exact values, as their change `moved` int64 [e] in this round."""
        return replace(self, moved=self.moved + weight * moved, movers=self.movers + weight)

    def share(self) -> I64:
        """Return the share of masks that keep each weight, int64 [d] in units of 2**-16, 0 .. 65536, halves up."""
        return divided(self.ones << 16, self.weight)

    def exact(self, theta: Theta) -> I32:
        """Return the exact values of `theta` moved by the devices' mean, int32 [e], to the nearest unit, halves up."""
        return (theta.exact + divided(self.moved, self.movers)).astype(np.int32) if theta.e else theta.exact

    def digest(self) -> bytes:
        """Return 16 bytes that name exactly these sums; for tests and logs."""
        head = f"{self.weight} {self.masks} {self.unit} {self.movers} ".encode()
        body = self.ones.astype("<i8").tobytes() + self.moved.astype("<i8").tobytes()
        return hashlib.sha256(head + body).digest()[:16]


class Rule(Protocol):
    """Contract of a server rule: first theta of a job, and next theta of a round. `aggregator.rules` has an example.

    Both methods are pure: the same arguments give the same result, and nothing is kept on `self` that changes. What
    one round leaves to the next goes through `memory`, which the aggregator stores, so that a restart resumes it.
    `settings` is the table [aggregation].
    """

    def start(self, spec: ModelSpec, settings: AggregationConfig) -> Theta:
        """Return the probabilities of round 1 for a model `spec`, with `spec.d` levels and `spec.e` exact values."""

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        """Return the next theta, and the memory that the round after is given.

        `votes`: sums over the masks that were drawn under `theta`. `memory`: what the round before returned, b"" in
        round 1 and after another rule.
        """


def share_of(theta: Theta) -> I64:
    """Return the shares that levels stand for, before the clamp: int64 [d] in units of 2**-16, halves up."""
    return divided(theta.level.astype(np.int64) << 16, theta.max_level)


def theta_of(share: I64, settings: AggregationConfig, exact: I32) -> Theta:
    """Return the theta of the levels nearest to `share`, half a level up, with `exact` values.

    `share` int64 [d], units of 2**-16, 0 .. 65536. Levels and clamp are those of `settings`; where its downlink is
    "exact", 256 levels. Raises TypeError for shares that are no integers.
    """
    if not np.issubdtype(share.dtype, np.integer):
        raise TypeError(f"shares are integers in units of 2**-16, 0 .. {ONE}; found {share.dtype}")
    max_level = settings.max_level or FINE
    level = ((share * max_level + ONE // 2) >> 16).astype(np.uint16)
    return Theta(level, max_level, settings.clamp_q16, exact)


def divided(values: I64, by: int) -> I64:
    """Return the integers nearest to values / by, halves up; by >= 1."""
    return (values + by // 2) // by
