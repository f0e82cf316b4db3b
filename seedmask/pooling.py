"""How the masks of a round become the next theta: a weighted count, exact or rounded to levels.  PROTOCOL 5.7.

The aggregator adds masks up so, and so does every device that is told theta as the masks that made it (codec `relay`):
both must come to the same levels, so this is integers only and part of the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seedmask.mask import MAX_LEVEL, ONE, Theta

MAX_WEIGHT: Final = 1 << 22
"""Maximum weight of one mask, so that the sum of all masks fits 63 bits."""
FINE: Final = 255
"""Levels above zero that are enough where exact ones would be more than this, and more than there are masks."""


@dataclass(frozen=True)
class Pooling:
    """How masks are added up.

    `max_level`: levels above zero of the result, 0: exact counts; `clamp`: distance of theta from 0 and 1, in units of
    2**-16; `heaviest`: maximum weight of one mask when weighting by samples, 0: equal weights.
    """

    max_level: int
    clamp: int
    heaviest: int


def weight_of(samples: int, heaviest: int) -> int:
    """Return the weight of each mask of a device that trained on `samples` examples; `heaviest` as in Pooling."""
    return min(samples, heaviest) if heaviest else 1


def pool(total: npt.NDArray[np.int64], weight: int, unit: int, masks: int, max_level: int, clamp: int) -> Theta:
    """Return the next theta, without exact values.

    `total` int64 [d]: sum of weight times mask; `weight`: that of all `masks`; `unit` divides each of their weights;
    `max_level` and `clamp` as in Pooling. With `max_level` 0 the exact share where that has no more levels than masks,
    or than FINE; else the nearest level, halves up.
    """
    if not max_level and (exact := weight // unit) <= min(max(masks, FINE), MAX_LEVEL):
        return Theta((total // unit).astype(np.uint16), exact, clamp)
    max_level = max_level or FINE
    share = ((total << 16) + weight // 2) // weight
    return Theta(((share * max_level + ONE // 2) >> 16).astype(np.uint16), max_level, clamp)
