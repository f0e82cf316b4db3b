"""Codec 1, `packed`: one bit per weight, least significant bit first; the baseline of the others.  PROTOCOL 5.1."""

from __future__ import annotations

import numpy as np

from seedmask.codec.plan import Plan, check_scores, sigmoid
from seedmask.errors import CodecError
from seedmask.mask import F32, Mask, Theta, check_mask, sample
from seedmask.shared import Shared

ID = 1
NAME = "packed"


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
    """Draw a mask from `rng` and return it coded; as MaskCodec.draw, `theta` gives only d."""
    check_scores(scores, theta.d)
    return encode(sample(sigmoid(scores), rng), theta)


def encode(mask: Mask, theta: Theta) -> bytes:
    """Return `mask`, uint8 [d] of 0/1, in ceil(d / 8) bytes. Raises ValueError for another array."""
    check_mask(mask, theta.d)
    return np.packbits(mask, bitorder="little").tobytes()


def decode(payload: bytes, theta: Theta, shared: Shared | None = None, max_blocks: int = 0) -> Mask:
    """Return the mask, uint8 [d]. Raises CodecError for a wrong length or a padding bit that is not zero."""
    d = theta.d
    if len(payload) != (d + 7) // 8:
        raise CodecError(f"packed mask of {d} weights has {(d + 7) // 8} bytes, found {len(payload)}")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
    if bits[d:].any():
        raise CodecError("packed mask: padding bits must be zero")
    return bits[:d]
