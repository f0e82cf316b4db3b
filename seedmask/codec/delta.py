"""Codec 17, `delta`: the global probabilities where the ones before are known."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from seedmask.errors import CodecError, ThetaMismatchError
from seedmask.mask import Theta

ID = 17
NAME = "delta"
MAX_TOP = 255


def encode(theta: Theta, base: Theta) -> bytes:
    """Stand-in."""
    head = struct.pack("<IHH", theta.d, theta.top, theta.clamp) + base.digest()
    return head + zlib.compress(((theta.level - base.level) & 255).astype(np.uint8).tobytes(), 9)


def decode(payload: bytes, base: Theta) -> Theta:
    """Stand-in."""
    if len(payload) < 24:
        raise CodecError("delta: a header of 24 bytes expected")
    d, top, clamp = struct.unpack_from("<IHH", payload)
    if payload[8:24] != base.digest() or d != base.d:
        raise ThetaMismatchError("delta of other probabilities")
    try:
        moved = np.frombuffer(zlib.decompress(payload[24:]), np.uint8)
        return Theta(((base.level + moved) & 255).astype(np.uint16), top, clamp)
    except (zlib.error, ValueError):
        raise CodecError("delta: damaged") from None
