"""Pooling of a round's masks into the next theta: a weighted count, exact or rounded to levels.  PROTOCOL 5.7.

The aggregator pools masks by this rule, and so does every device that receives theta as the masks it was made of (codec
`relay`). Both must get the same levels, so the rule uses integers only and is part of the protocol.
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
"""Levels above zero of a rounded theta: used where exact counts need more levels than this and than there are masks."""


@dataclass(frozen=True)
class Pooling:
    """Parameters of pooling.

    `max_level`: levels above zero of the result, 0: exact counts; `clamp`: distance of theta from 0 and 1, in units of
    2**-16; `heaviest`: maximum weight of one mask when weighting by samples, 0: equal weights.
    """

    max_level: int
    clamp: int
    heaviest: int


def weight_of(samples: int, heaviest: int) -> int:
    """Return the weight of each mask from a device that trained on `samples` examples; `heaviest` as in Pooling."""
    return min(samples, heaviest) if heaviest else 1


def pool(total: npt.NDArray[np.int64], weight: int, unit: int, masks: int, max_level: int, clamp: int) -> Theta:
    """Return the next theta, without exact values.

    `total` int64 [d]: sum over all masks of weight times mask; `weight`: sum of the weights; `unit`: greatest common
    divisor of the weights; `masks`: number of masks; `max_level` and `clamp` as in Pooling. With `max_level` 0, levels
    are exact counts if these need no more than FINE levels, or no more levels than there are masks. Otherwise each
    share is rounded to the nearest level, halves up.
    """
    if not max_level and (exact := weight // unit) <= min(max(masks, FINE), MAX_LEVEL):
        return Theta((total // unit).astype(np.uint16), exact, clamp)
    max_level = max_level or FINE
    share = ((total << 16) + weight // 2) // weight
    return Theta(((share * max_level + ONE // 2) >> 16).astype(np.uint16), max_level, clamp)
