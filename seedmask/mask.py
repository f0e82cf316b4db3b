"""Mask and Theta: the two values that devices and aggregator exchange, and the one table that turns counts into odds.

A mask is uint8 [d] of 0/1, one entry per weight of the flat vector. Theta, the global probability per weight, is
never a float between two parties: it is a level 0 .. max_level per weight (after K masks of equal weight, max_level = K
and the level is the number of ones), and PROTOCOL 3 gives the integer table from level to probability in units of
2**-16. FedPM: Isik et al., arXiv 2209.15328; the clamp away from 0 and 1 sits on the server, as its authors intended. A
model's exact values, where it has any, are part of theta and of its digest: what is trained under the one is trained
under the other.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

ONE: Final = 1 << 16
CLAMP: Final = 655
"""Default distance of theta from 0 and 1, in units of 2**-16 (about 0.01)."""
MAX_LEVEL: Final = 65535
MAX_D: Final = 1 << 28
EXACT_ONE: Final = 1 << 12
"""An exact value of 1: they are integers, in units of 2**-12: a step of Adam at .001 is four of them."""
MAX_EXACT: Final = 1 << 16
EXACT_LIMIT: Final = (1 << 30) - 1
"""The largest magnitude of an exact value, 262144: a difference of two of them fits 32 bits with its sign."""
NO_EXACT: Final[I32] = np.zeros(0, np.int32)


def as_numbers(exact: I32) -> F32:
    """Exact values, int32 [e] in units of 2**-12, as the numbers that they are."""
    numbers: F32 = exact.astype(np.float32) / np.float32(EXACT_ONE)
    return numbers


def table(max_level: int, clamp: int = CLAMP) -> npt.NDArray[np.uint16]:
    """Probability of each level in units of 2**-16, uint16 [max_level + 1]; integer arithmetic only (PROTOCOL 3)."""
    levels = np.arange(max_level + 1, dtype=np.int64)
    span = ONE - 2 * clamp
    return (clamp + (2 * span * levels + max_level) // (2 * max_level)).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class Theta:
    """The global probabilities: `level` uint16 [d] of 0 .. `max_level`, `clamp` in units of 2**-16.

    `exact` int32 [e]: the global values of the exact tensors, units of 2**-12, within EXACT_LIMIT either way.
    """

    level: npt.NDArray[np.uint16]
    max_level: int
    clamp: int = CLAMP
    exact: I32 = field(default_factory=NO_EXACT.copy)

    def __post_init__(self) -> None:
        if not 1 <= self.max_level <= MAX_LEVEL:
            raise ValueError(f"top is 1 .. {MAX_LEVEL}, found {self.max_level}")
        if not 1 <= self.clamp < ONE // 2:
            raise ValueError(f"clamp is 1 .. {ONE // 2 - 1} (units of 2**-16), found {self.clamp}")
        if self.level.dtype != np.uint16 or self.level.ndim != 1 or not 1 <= self.level.size <= MAX_D:
            raise ValueError(f"level is uint16 [d], found {self.level.dtype} {self.level.shape}")
        if int(self.level.max()) > self.max_level:
            raise ValueError(f"a level is 0 .. {self.max_level}, found {int(self.level.max())}")
        if self.exact.dtype != np.int32 or self.exact.ndim != 1 or self.exact.size > MAX_EXACT:
            raise ValueError(f"exact values are int32 [e], found {self.exact.dtype} {self.exact.shape}")
        if self.e and not -EXACT_LIMIT <= int(self.exact.min()) <= int(self.exact.max()) <= EXACT_LIMIT:
            raise ValueError(f"exact values are within {EXACT_LIMIT} either way, found {self.exact.tolist()}")

    @classmethod
    def even(cls, d: int, clamp: int = CLAMP, exact: I32 = NO_EXACT) -> Theta:
        """Where every job starts: probability one half for each of `d` weights."""
        return cls(np.ones(d, np.uint16), 2, clamp, exact)

    @property
    def d(self) -> int:
        """Number of weights."""
        return self.level.size

    @property
    def e(self) -> int:
        """Number of exact values."""
        return self.exact.size

    def values(self) -> F32:
        """The exact values, float32 [e]; where a device starts its round."""
        return as_numbers(self.exact)

    def q16(self) -> npt.NDArray[np.uint16]:
        """Probabilities in units of 2**-16, uint16 [d]."""
        return table(self.max_level, self.clamp)[self.level]

    def probability(self) -> F32:
        """Probabilities, float32 [d]; for use at home, never on the wire."""
        out: F32 = self.q16().astype(np.float32) / np.float32(ONE)
        return out

    def logit(self) -> F32:
        """Mask scores s with sigmoid(s) = theta, float32 [d]; where a device starts its round."""
        return self.logits()[self.level]

    def logits(self) -> F32:
        """The same for every level, float32 [max_level + 1]."""
        p = table(self.max_level, self.clamp).astype(np.float64) / ONE
        scores: F32 = np.log(p / (1 - p)).astype(np.float32)
        return scores

    def threshold(self) -> Mask:
        """The mask of the finished model: 1 where theta is at least one half, uint8 [d]."""
        return (self.q16() >= ONE // 2).astype(np.uint8)

    def digest(self) -> bytes:
        """16 bytes that name exactly these probabilities: SHA-256 of the PROTOCOL 3 layout, first half."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        # An aggregator asks once per update, for levels that never change.
        head = struct.pack("<IHH", self.d, self.max_level, self.clamp)
        body = self.level.astype("<u2").tobytes() + self.exact.astype("<i4").tobytes()
        return hashlib.sha256(head + body).digest()[:16]


def sample(probability: F32, rng: np.random.Generator) -> Mask:
    """Draw m ~ Bernoulli(probability), uint8 [d], from randomness private to this machine."""
    return (rng.random(probability.size, np.float32) < probability).astype(np.uint8)


def check_mask(mask: Mask, d: int) -> None:
    """Raise ValueError unless `mask` is uint8 [d] of 0/1; an encoder's guard against a bug at home."""
    if mask.dtype != np.uint8 or mask.shape != (d,):
        raise ValueError(f"a mask is uint8 [{d}], found {mask.dtype} {list(mask.shape)}")
    if mask.size and int(mask.max()) > 1:
        raise ValueError(f"a mask holds 0 and 1 only, found {int(mask.max())}")
