"""Codec 1, `packed`: one bit per weight, least significant bit first. The baseline to beat.  PROTOCOL 5.1."""

from __future__ import annotations

import numpy as np

from seedmask.errors import CodecError
from seedmask.mask import Mask, Theta, check_mask

ID = 1
NAME = "packed"


def encode(mask: Mask, theta: Theta) -> bytes:
    """uint8 [d] of 0/1 to ceil(d / 8) bytes."""
    check_mask(mask, theta.d)
    return np.packbits(mask, bitorder="little").tobytes()


def decode(payload: bytes, theta: Theta) -> Mask:
    """The mask, uint8 [d]. Raises CodecError for a wrong length or a padding bit that is not zero."""
    d = theta.d
    if len(payload) != (d + 7) // 8:
        raise CodecError(f"packed mask of {d} weights has {(d + 7) // 8} bytes, found {len(payload)}")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")
    if bits[d:].any():
        raise CodecError("packed mask: padding bits must be zero")
    return bits[:d]
