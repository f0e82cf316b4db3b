"""Parameters of mask coding that the sender chooses, and the sigmoid that turns scores into probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.mask import F32


@dataclass(frozen=True)
class Plan:
    """Parameters of the codec `hmrc`; the other codecs have none. Raises ValueError for a value out of range.

    `kappa`: bits of relative entropy per byte sent; `max_blocks`: the job's limit on blocks of a mask, 0: d div 8.
    """

    kappa: float = 5.0
    max_blocks: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.kappa < 1e6 or self.max_blocks < 0:
            raise ValueError(f"kappa is above 0 and max_blocks at least 0, found {self}")


def check_scores(scores: F32, d: int) -> None:
    """Raise ValueError unless `scores` is [d] and finite; codecs call it to find bugs of this program."""
    if scores.shape != (d,) or not np.isfinite(scores).all():
        raise ValueError(f"scores are [{d}] finite numbers, found {list(scores.shape)} of {scores.dtype}")


def sigmoid(scores: F32) -> F32:
    """Return the probabilities, float32 [d], of `scores`; large scores do not overflow."""
    out: npt.NDArray[np.float32] = (1 / (1 + np.exp(-np.clip(scores, -80, 80)))).astype(np.float32, copy=False)
    return out
