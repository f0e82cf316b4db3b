"""What a sender may choose about the coding of its mask, and how scores become probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.mask import F32


@dataclass(frozen=True)
class Plan:
    """`kappa`: bits of relative entropy per byte that `hmrc` sends; `max_blocks`: the job's bound, 0 for d div 8."""

    kappa: float = 5.0
    max_blocks: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.kappa < 1e6 or self.max_blocks < 0:
            raise ValueError(f"kappa is above 0 and max_blocks at least 0, found {self}")


def check_scores(scores: F32, d: int) -> None:
    """Raise ValueError unless `scores` is [d] and finite; a guard against a bug at home."""
    if scores.shape != (d,) or not np.isfinite(scores).all():
        raise ValueError(f"scores are [{d}] finite numbers, found {list(scores.shape)} of {scores.dtype}")


def sigmoid(scores: F32) -> F32:
    """Probabilities, float32 [d], of scores; large ones do not overflow."""
    out: npt.NDArray[np.float32] = (1 / (1 + np.exp(-np.clip(scores, -80, 80)))).astype(np.float32, copy=False)
    return out
