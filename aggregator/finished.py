"""From the thetas of a job's last rounds to its finished model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aggregator.rules.contract import divided
from seedmask.mask import I32, ONE, Mask, Theta


def finished(recent: Sequence[Theta]) -> tuple[Mask, I32]:
    """Return the mean of `recent` thetas thresholded at one half, uint8 [d], and their mean exact values, int32 [e]."""
    total, exact = np.zeros(recent[0].d, np.int64), np.zeros(recent[0].e, np.int64)
    for theta in recent:
        total += theta.q16()
        exact += theta.exact
    return (2 * total >= len(recent) * ONE).astype(np.uint8), divided(exact, len(recent)).astype(np.int32)
