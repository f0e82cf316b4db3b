"""Finished model, the result of a job: a spec with its seed, one coded mask, and exact values.  PROTOCOL 9.2.

"SMK1" | u32 length, canonical spec | u8 mask codec | u32 length, mask | exact values | SHA-256 of all before. The mask
is coded by `packed`, one bit per weight, or by `tensors`, whichever is shorter. The file holds no weight: the reader
regenerates them from the spec's seed.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from seedmask.codec import exact, packed, tensors
from seedmask.errors import BundleError, KindError, ProtocolError, UserError
from seedmask.mask import I32, NO_EXACT, Mask, Theta, as_numbers
from seedmask.spec import F32, ModelSpec, from_json

MAGIC: Final = b"SMK1"
_FRAME: Final = len(MAGIC) + 4 + 1 + 4 + 32  # bytes of a file that are neither spec nor mask nor exact values


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """Finished model: `spec`, `mask` uint8 [d] of 0/1, and `exact` int32 [e], exact values in units of 2**-12."""

    spec: ModelSpec
    mask: Mask
    exact: I32 = field(default_factory=NO_EXACT.copy)

    def weights(self) -> F32:
        """Return the masked weights, float32 [d] of 0, +c and -c, regenerated from the seed."""
        return self.spec.weights() * self.mask

    def values(self) -> F32:
        """Return the exact values, float32 [e]."""
        return as_numbers(self.exact)

    def parameters(self) -> dict[str, F32]:
        """Return every tensor by name, each float32 in its own shape."""
        return self.spec.parts(self.weights(), self.spec.frozen(), self.values())

    def ternary(self) -> dict[str, tuple[np.ndarray[tuple[int, ...], np.dtype[np.int8]], float]]:
        """Return (signs, c) by tensor name, for masked and frozen tensors; the weights are the product of the two.

        `signs`: int8 in the tensor's shape, -1, 0 or 1; `c`: float.
        """
        kinds = {name: tensor for name, (tensor, _) in self.spec.offsets.items() if tensor.kind != "exact"}
        parts = self.parameters()
        return {name: (np.sign(parts[name]).astype(np.int8), tensor.constant) for name, tensor in kinds.items()}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model file and of its parts, in bytes.

    `file`: all; `spec`, `mask`, `exact`: the parts; `codec`: name of the mask's codec; `entropy_bits`: lower bound on
    the mask, in bits (PROTOCOL 9.2); `d`: number of masked weights.
    """

    file: int
    spec: int
    mask: int
    codec: str
    entropy_bits: float
    d: int
    exact: int = 0

    @property
    def over_entropy(self) -> float:
        """Share by which the coded mask exceeds its entropy bound: 0.01 is one percent; infinite if the bound is 0."""
        return 8 * self.mask / self.entropy_bits - 1 if self.entropy_bits else float("inf")


def entropy_bits(model: FinishedModel) -> float:
    """Return the lower bound of PROTOCOL 9.2 on the coded mask, in bits.

    It is the sum over all masked tensors of n H2(ones / n), with n the tensor's size and H2 the binary entropy.
    """
    total = 0.0
    for tensor in model.spec.masked:
        at = model.spec.offsets[tensor.name][1]
        p = float(model.mask[at : at + tensor.size].mean())
        if 0 < p < 1:
            total -= tensor.size * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(total)


def sizes(model: FinishedModel, data: bytes) -> Sizes:
    """Return the sizes of `data`, the encoded file of `model`, and of its parts."""
    spec = len(model.spec.canonical())
    number, mask = struct.unpack_from("<BI", data, 8 + spec)
    name = {codec.ID: codec.NAME for codec in (packed, tensors)}[number]
    return Sizes(len(data), spec, mask, name, entropy_bits(model), model.spec.d, len(data) - _FRAME - spec - mask)


def encode(model: FinishedModel) -> bytes:
    """Return `model` as the bytes of a model file (PROTOCOL 9.2)."""
    number, mask = _coded(model)
    spec = model.spec.canonical()
    head = [MAGIC, struct.pack("<I", len(spec)), spec]
    body = b"".join([*head, struct.pack("<BI", number, len(mask)), mask, _values(model)])
    return body + hashlib.sha256(body).digest()


def _values(model: FinishedModel) -> bytes:
    return exact.encode(model.exact, np.zeros(model.spec.e, np.int32))


def _sizes(spec: ModelSpec) -> list[int]:
    return [tensor.size for tensor in spec.masked]


def _coded(model: FinishedModel) -> tuple[int, bytes]:
    """Return (codec id, coded mask) with the fewest bytes, the lower id if they are equal."""
    plain = packed.encode(model.mask, Theta.even(model.spec.d))
    coded = tensors.encode(model.mask, _sizes(model.spec))
    return (tensors.ID, coded) if len(coded) < len(plain) else (packed.ID, plain)


def decode(data: bytes) -> FinishedModel:
    """Return the model in the bytes of a model file. Raises BundleError, SpecError, KindError or CodecError."""
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
    rest = data[13 + length : -32]
    payload, behind = rest[:size], rest[size:]
    if len(payload) != size or (behind and not spec.e):
        raise BundleError(f"the model file's mask has {len(rest)} bytes, its header says {size}")
    values = exact.decode(behind, np.zeros(spec.e, np.int32))
    if number == packed.ID:
        return FinishedModel(spec, packed.decode(payload, Theta.even(spec.d)), values)
    if number == tensors.ID:
        return FinishedModel(spec, tensors.decode(payload, _sizes(spec)), values)
    raise KindError(f"a finished model's mask is coded by {packed.ID} or {tensors.ID}, found codec {number}")


def load(path: Path) -> FinishedModel:
    """Read the model file `path`. Raises UserError, which names the file."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror}") from None
    except ProtocolError as error:
        raise UserError(f"{path}: {error}") from None
