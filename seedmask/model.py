"""The finished model: a spec (with its seed) and one coded mask, what a job leaves behind.  PROTOCOL 9.2.

"SMK1" | u32 length, canonical spec | u8 mask codec | u32 length, mask | SHA-256 of all before. The mask is coded by
`packed`, one bit a weight, or by `tensors`, whichever is shorter. The weights are made again from the spec's seed.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from seedmask.codec import packed, tensors
from seedmask.errors import BundleError, KindError, ProtocolError, UserError
from seedmask.mask import Mask, Theta
from seedmask.spec import F32, ModelSpec, from_json

MAGIC: Final = b"SMK1"


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """`mask` uint8 [d] over the frozen weights of `spec`."""

    spec: ModelSpec
    mask: Mask

    def weights(self) -> F32:
        """The network's weights, float32 [d] of 0 and +-c."""
        return self.spec.weights() * self.mask

    def ternary(self) -> dict[str, tuple[np.ndarray[tuple[int, ...], np.dtype[np.int8]], float]]:
        """Each tensor by name as (int8 of -1, 0 and 1 in its shape, c): weights are the product of the two."""
        signs = np.sign(self.weights()).astype(np.int8)
        places = self.spec.offsets.items()
        return {name: (signs[at : at + t.size].reshape(t.shape), t.constant) for name, (t, at) in places}


@dataclass(frozen=True)
class Sizes:
    """Of one model's file: bytes in all, of the spec and of the coded mask; `entropy_bits` is the mask's bound."""

    file: int
    spec: int
    mask: int
    codec: str
    entropy_bits: float
    d: int

    @property
    def over_entropy(self) -> float:
        """By what share the coded mask exceeds its bound; infinite where there was nothing to tell."""
        return 8 * self.mask / self.entropy_bits - 1 if self.entropy_bits else float("inf")


def entropy_bits(model: FinishedModel) -> float:
    """The bound of PROTOCOL 9.2: over all tensors, n H2(ones / n) bits, H2 the binary entropy."""
    total = 0.0
    for tensor, at in model.spec.offsets.values():
        p = float(model.mask[at : at + tensor.size].mean())
        if 0 < p < 1:
            total -= tensor.size * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(total)


def sizes(model: FinishedModel, data: bytes) -> Sizes:
    """Of `data`, the file of `model`, in numbers."""
    spec = len(model.spec.canonical())
    number, mask = struct.unpack_from("<BI", data, 8 + spec)
    name = {codec.ID: codec.NAME for codec in (packed, tensors)}[number]
    return Sizes(len(data), spec, mask, name, entropy_bits(model), model.spec.d)


def encode(model: FinishedModel) -> bytes:
    """The file's bytes."""
    number, mask = _coded(model)
    spec = model.spec.canonical()
    body = b"".join([MAGIC, struct.pack("<I", len(spec)), spec, struct.pack("<BI", number, len(mask)), mask])
    return body + hashlib.sha256(body).digest()


def _coded(model: FinishedModel) -> tuple[int, bytes]:
    """(codec, mask) with the fewest bytes; the lower id if equal."""
    plain = packed.encode(model.mask, Theta.even(model.spec.d))
    coded = tensors.encode(model.mask, [tensor.size for tensor in model.spec.tensors])
    return (tensors.ID, coded) if len(coded) < len(plain) else (packed.ID, plain)


def decode(data: bytes) -> FinishedModel:
    """Read a model file. Raises BundleError, SpecError, KindError or CodecError."""
    if data[:4] != MAGIC:
        raise BundleError(f"a model file begins with {MAGIC!r}, found {data[:4]!r}")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise BundleError("the model file is damaged: SHA-256 does not match")
    try:
        (length,) = struct.unpack_from("<I", data, 4)
        spec = from_json(data[8 : 8 + length])
        number, size = struct.unpack_from("<BI", data, 8 + length)
    except struct.error:
        raise BundleError("the model file ends too early") from None
    payload = data[13 + length : -32]
    if len(payload) != size:
        raise BundleError(f"the model file's mask has {len(payload)} bytes, its header says {size}")
    if number == packed.ID:
        return FinishedModel(spec, packed.decode(payload, Theta.even(spec.d)))
    if number == tensors.ID:
        return FinishedModel(spec, tensors.decode(payload, [tensor.size for tensor in spec.tensors]))
    raise KindError(f"a finished model's mask is coded by {packed.ID} or {tensors.ID}, found codec {number}")


def load(path: Path) -> FinishedModel:
    """Open a model file. Raises UserError that names it."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror}") from None
    except ProtocolError as error:
        raise UserError(f"{path}: {error}") from None
