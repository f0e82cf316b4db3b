"""Mask and Theta, the two values that devices and aggregator exchange, and the table from levels to probabilities.

A mask is uint8 [d] of 0/1, one entry per masked weight. Theta is the global probability of each mask bit. It never
travels as floats: each weight has an integer level 0 .. max_level (after K masks of equal weight, max_level is K and
the level is the number of ones), and PROTOCOL 3 gives the integer table from level to probability in units of 2**-16.
The method is FedPM (Isik et al., arXiv 2209.15328); the server keeps theta away from 0 and 1 by `clamp`, as its authors
propose. Exact values, if a model has any, are part of theta and of its digest.
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
"""Integer that stands for an exact value of 1.0: the unit is 2**-12, and a step of Adam at 0.001 is four units."""
MAX_EXACT: Final = 1 << 16
EXACT_LIMIT: Final = (1 << 30) - 1
"""Largest magnitude of an exact value, about 262144.0: the difference of two of them fits a signed 32-bit integer."""
NO_EXACT: Final[I32] = np.zeros(0, np.int32)


def as_numbers(exact: I32) -> F32:
    """Return exact values, int32 [e] in units of 2**-12, as float32 [e]."""
    numbers: F32 = exact.astype(np.float32) / np.float32(EXACT_ONE)
    return numbers


def table(max_level: int, clamp: int = CLAMP) -> npt.NDArray[np.uint16]:
    """Return the probability of each level, uint16 [max_level + 1] in units of 2**-16.

    Integer arithmetic only, so that every machine gets the same table (PROTOCOL 3). `clamp`: distance from 0 and 1 in
    the same units.
    """
    levels = np.arange(max_level + 1, dtype=np.int64)
    span = ONE - 2 * clamp
    return (clamp + (2 * span * levels + max_level) // (2 * max_level)).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class Theta:
    """Global probabilities of the mask bits, and the global exact values.

    `level` uint16 [d] of 0 .. `max_level`; `clamp`: distance of probabilities from 0 and 1, in units of 2**-16; `exact`
    int32 [e] in units of 2**-12, -EXACT_LIMIT .. EXACT_LIMIT. Raises ValueError for a wrong dtype, shape or range.
    """

    level: npt.NDArray[np.uint16]
    max_level: int
    clamp: int = CLAMP
    exact: I32 = field(default_factory=NO_EXACT.copy)

    def __post_init__(self) -> None:
        if not 1 <= self.max_level <= MAX_LEVEL:
            raise ValueError(f"max_level is 1 .. {MAX_LEVEL}, found {self.max_level}")
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
        """Return theta of a new job: probability one half for each of `d` weights."""
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
        """Return the exact values, float32 [e], with which a device starts its round."""
        return as_numbers(self.exact)

    def q16(self) -> npt.NDArray[np.uint16]:
        """Return the probabilities, uint16 [d] in units of 2**-16."""
        return table(self.max_level, self.clamp)[self.level]

    def probability(self) -> F32:
        """Return the probabilities, float32 [d]; for local use, never on the wire."""
        out: F32 = self.q16().astype(np.float32) / np.float32(ONE)
        return out

    def logit(self) -> F32:
        """Return the scores s with sigmoid(s) = theta, float32 [d], with which a device starts its round."""
        return self.logits()[self.level]

    def logits(self) -> F32:
        """Return the score of each level, float32 [max_level + 1]."""
        p = table(self.max_level, self.clamp).astype(np.float64) / ONE
        scores: F32 = np.log(p / (1 - p)).astype(np.float32)
        return scores

    def threshold(self) -> Mask:
        """Return the mask of the finished model, uint8 [d]: 1 where theta is at least one half."""
        return (self.q16() >= ONE // 2).astype(np.uint8)

    def digest(self) -> bytes:
        """Return the 16 bytes that identify this theta: the first half of the SHA-256 of its layout (PROTOCOL 3)."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        # The aggregator compares the digest with every update; the levels never change.
        head = struct.pack("<IHH", self.d, self.max_level, self.clamp)
        body = self.level.astype("<u2").tobytes() + self.exact.astype("<i4").tobytes()
        return hashlib.sha256(head + body).digest()[:16]


def sample(probability: F32, rng: np.random.Generator) -> Mask:
    """Draw a mask, uint8 [d], from Bernoulli(`probability`), float32 [d]. `rng` is private to this machine."""
    return (rng.random(probability.size, np.float32) < probability).astype(np.uint8)


def check_mask(mask: Mask, d: int) -> None:
    """Raise ValueError unless `mask` is uint8 [d] of 0/1; encoders call it to find bugs of this program."""
    if mask.dtype != np.uint8 or mask.shape != (d,):
        raise ValueError(f"a mask is uint8 [{d}], found {mask.dtype} {list(mask.shape)}")
    if mask.size and int(mask.max()) > 1:
        raise ValueError(f"a mask holds 0 and 1 only, found {int(mask.max())}")
