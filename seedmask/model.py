"""The finished model: a spec (with its seed) and one coded mask, what a job leaves behind.  PROTOCOL 9.2.

"SMM1" | u32 length, canonical spec | u8 mask codec | u32 length, mask | SHA-256 of all before. The mask is coded under
even probabilities by whichever codec is shorter, since a reader holds no others.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from seedmask.codec import EXACT
from seedmask.errors import BundleError, KindError
from seedmask.mask import Mask, Theta
from seedmask.spec import F32, ModelSpec, from_json

_MAGIC: Final = b"SMM1"


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """`mask` uint8 [d] over the frozen weights of `spec`."""

    spec: ModelSpec
    mask: Mask

    def weights(self) -> F32:
        """The network's weights, float32 [d] of 0 and +-c."""
        return self.spec.weights() * self.mask


def encode(model: FinishedModel) -> bytes:
    """The file's bytes."""
    even = Theta.even(model.spec.d)
    size, number, mask = min((len(b), c.ID, b) for c in EXACT.values() for b in [c.encode(model.mask, even)])
    spec = model.spec.canonical()
    body = b"".join([_MAGIC, struct.pack("<I", len(spec)), spec, struct.pack("<BI", number, size), mask])
    return body + hashlib.sha256(body).digest()


def decode(data: bytes) -> FinishedModel:
    """Read a model file. Raises BundleError, SpecError, KindError or CodecError."""
    if data[:4] != _MAGIC:
        raise BundleError(f"a model file begins with {_MAGIC!r}, found {data[:4]!r}")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise BundleError("the model file is damaged: SHA-256 does not match")
    try:
        (length,) = struct.unpack_from("<I", data, 4)
        spec = from_json(data[8 : 8 + length])
        number, size = struct.unpack_from("<BI", data, 8 + length)
    except struct.error:
        raise BundleError("the model file ends too early") from None
    mask = data[13 + length : -32]
    if len(mask) != size:
        raise BundleError(f"the model file's mask has {len(mask)} bytes, its header says {size}")
    if number not in EXACT:
        raise KindError(f"a finished model's mask is coded by {', '.join(map(str, EXACT))}, found codec {number}")
    return FinishedModel(spec, EXACT[number].decode(mask, Theta.even(spec.d)))
