"""What the masks of a round say about each weight: integer counts, folded one by one; the order cannot matter.

FedPM's server (Isik et al., arXiv 2209.15328, section 3): Beta(alpha, beta) per weight with alpha = lambda + ones and
beta = lambda + zeros. With lambda = 1 and a reset every round, which is what the authors published, the mode is
ones / K, so theta is exactly the count of ones and never a float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.mask import CLAMP, Mask, Theta


@dataclass(frozen=True, eq=False)
class Posterior:
    """`ones` int32 [d], how many of the `n` masks so far have each bit set."""

    ones: npt.NDArray[np.int32]
    n: int

    @classmethod
    def empty(cls, d: int) -> Posterior:
        """No mask yet."""
        return cls(np.zeros(d, np.int32), 0)

    def fold(self, mask: Mask) -> Posterior:
        """With one more mask, uint8 [d]."""
        return Posterior(self.ones + mask, self.n + 1)

    def theta(self, clamp: int = CLAMP) -> Theta:
        """The mode, clamped away from 0 and 1. Raises ValueError before the first mask."""
        return Theta(self.ones.astype(np.uint16), self.n, clamp)
