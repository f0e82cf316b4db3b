"""Codec 4, `crn`: masks drawn with shared uniforms."""

from __future__ import annotations

import numpy as np

from seedmask.codec import packed
from seedmask.mask import F32, Mask, Theta
from seedmask.shared import Shared

ID = 4
NAME = "crn"


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: object) -> bytes:
    """Stand-in."""
    p = np.rint(65536 / (1 + np.exp(-scores.astype(np.float64))))
    return packed.encode((shared.uniforms(theta.d) < p).astype(np.uint8), theta)


def decode(payload: bytes, theta: Theta, shared: Shared, max_blocks: int = 0) -> Mask:
    """Stand-in."""
    return packed.decode(payload, theta)
