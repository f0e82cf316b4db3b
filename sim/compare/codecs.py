"""Codecs of the dense baselines: each encodes a vector of changes as bytes, and decodes them.

Fp32: four bytes per entry.
Sign: one bit per entry (signSGD: Bernstein et al., arXiv 1802.04434).
ScaledSign: a sign per entry and a scale per tensor (EF-signSGD: Karimireddy et al., arXiv 1901.09847).
Qsgd: entries rounded at random to a few levels of their bucket's norm, entropy coded (Alistarh et al., arXiv
    1610.02132).
TopK: the largest entries; their positions are Golomb-Rice coded gaps (Stich et al., arXiv 1809.07599).
Drive: signs after a random rotation, and a scale that makes the result unbiased (Vargaftik et al., arXiv 2105.08339);
    both sides know the rotation, so it is not sent.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from seedmask.codec import ans
from seedmask.shared import Shared

F32 = npt.NDArray[np.float32]


class Codec(Protocol):
    """Codec of a baseline."""

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """Return `x` float32 [d] as bytes; only the sender knows `rng`, both sides know `shared`."""

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """Return the vector that the receiver decodes, float32 [d]."""


@dataclass(frozen=True)
class Fp32:
    """Codec that sends every entry as float32."""

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See Codec."""
        return x.astype("<f4").tobytes()

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See Codec."""
        return np.frombuffer(payload, "<f4", d).astype(np.float32)


@dataclass(frozen=True)
class Sign:
    """Codec that sends one bit per entry, +1 or -1; a fair coin decides for entries that are exactly 0."""

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See Codec."""
        up = x > 0
        zero = np.flatnonzero(x == 0)
        up[zero] = rng.random(zero.size) < 0.5
        return np.packbits(up, bitorder="little").tobytes()

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See Codec."""
        return _signs(payload, d)


@dataclass(frozen=True)
class ScaledSign:
    """Codec that sends one bit per entry, and mean |x| of each tensor as float32; `sizes` of the tensors sum to d."""

    sizes: tuple[int, ...]

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See Codec."""
        scales = [float(np.abs(part).mean()) for part in _parts(x, self.sizes)]
        return struct.pack(f"<{len(scales)}f", *scales) + np.packbits(x > 0, bitorder="little").tobytes()

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See Codec."""
        scales = np.frombuffer(payload, "<f4", len(self.sizes)).astype(np.float32)
        return _signs(payload[scales.nbytes :], d) * np.repeat(scales, self.sizes)


@dataclass(frozen=True)
class Qsgd:
    """Codec that sends the Euclidean norm of each `bucket` of entries, and one of 2 `levels` + 1 levels per entry.

    An entry is rounded at random to one of the two nearest levels, such that its expectation is the entry itself. The
    levels are coded by rANS with their own frequencies, which are sent as well.
    """

    levels: int = 4
    bucket: int = 512

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See Codec."""
        rows = _rows(x, self.bucket)
        norms = np.sqrt((rows.astype(np.float64) ** 2).sum(1)).astype(np.float32)
        exact = rows * np.float32(self.levels) / np.where(norms > 0, norms, np.float32(1))[:, None]
        level = np.floor(np.abs(exact) + rng.random(rows.shape, np.float32))
        signed = np.copysign(np.minimum(level, self.levels), rows).reshape(-1)[: x.size]
        symbols = (signed + self.levels).astype(np.int64)
        table = ans.normalise(np.bincount(symbols, minlength=2 * self.levels + 1))
        body = ans.encode(symbols, np.zeros(x.size, np.int64), table[None])
        head: bytes = norms.astype("<f4").tobytes() + table.astype("<u2").tobytes()
        return head + body

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See Codec."""
        count, width = -(-d // self.bucket), 2 * self.levels + 1
        norms = np.frombuffer(payload, "<f4", count).astype(np.float32)
        table = np.frombuffer(payload, "<u2", width, norms.nbytes).astype(np.uint32)
        body = payload[norms.nbytes + 2 * width :]
        symbols = ans.decode(body, np.zeros(d, np.int64), table[None]).astype(np.float32) - self.levels
        out: F32 = symbols * np.repeat(norms / np.float32(self.levels), self.bucket)[:d]
        return out


@dataclass(frozen=True)
class TopK:
    """Codec that sends the largest entries, a share `keep` of all: values as float32, positions as Golomb-Rice gaps."""

    keep: float = 0.01

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See Codec."""
        k = min(x.size, max(1, round(self.keep * x.size)))
        return sparse_bytes(x, np.sort(np.argpartition(np.abs(x), x.size - k)[x.size - k :]))

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See Codec."""
        return sparse_vector(payload, d)


@dataclass(frozen=True)
class Drive:
    """Codec that sends one bit per entry of the randomly rotated vector, and one float32 per block.

    The rotation is a randomised Hadamard transform. d is cut into powers of two, largest first, so that no padding is
    needed. With the scale |x|^2 / |Rx|_1 the decoded vector's projection on x is exactly x.
    """

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See Codec."""
        rotated = self._rotate(x, shared)
        scales = []
        for part, turned in zip(_parts(x, _powers(x.size)), _parts(rotated, _powers(x.size)), strict=True):
            length = float(np.abs(turned).sum(dtype=np.float64))
            scales.append(float((part.astype(np.float64) ** 2).sum()) / length if length else 0.0)
        return struct.pack(f"<{len(scales)}f", *scales) + np.packbits(rotated > 0, bitorder="little").tobytes()

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See Codec."""
        sizes = _powers(d)
        scales = np.frombuffer(payload, "<f4", len(sizes)).astype(np.float32)
        y = _signs(payload[scales.nbytes :], d) * np.repeat(scales, sizes)
        back: F32 = np.concatenate([hadamard(part) for part in _parts(y, sizes)])
        return back * self._diagonal(d, shared)

    def _rotate(self, x: F32, shared: Shared) -> F32:
        turned = x * self._diagonal(x.size, shared)
        return np.concatenate([hadamard(part) for part in _parts(turned, _powers(x.size))])

    def _diagonal(self, d: int, shared: Shared) -> F32:
        signs: F32 = np.where(shared.uniforms(d) < 1 << 15, np.float32(-1), np.float32(1))
        return signs


def hadamard(x: F32) -> F32:
    """Return the Walsh-Hadamard transform of `x`, 2**k entries, scaled to keep its length; it is its own inverse."""
    out = x.astype(np.float32)
    half = 1
    while half < out.size:
        pairs = out.reshape(-1, 2, half)
        out = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        half *= 2
    scaled: F32 = out * np.float32(out.size**-0.5)
    return scaled


def sparse_bytes(x: F32, where: npt.NDArray[np.intp]) -> bytes:
    """Return the entries of `x` at the ascending positions `where` as bytes.

    The format: u32 number of entries, u8 Rice parameter k, u32 bytes of the gaps, the gaps, float32 values. A gap (the
    number of entries left out before this one) is its quotient by 2**k as so many ones, a zero, and the lowest k bits,
    lowest first.
    """
    gaps = np.diff(where, prepend=-1) - 1
    mean = float(gaps.mean()) if gaps.size else 0.0
    k = max(0, int(np.log2(max(mean * 0.69, 1))))  # ln 2 times the mean is the best modulus of a geometric law
    quotient = gaps >> k
    width = quotient + 1 + k
    start = np.cumsum(width) - width
    bits = np.ones(int(width.sum()), np.uint8)
    stop = start + quotient
    bits[stop] = 0
    for i in range(k):
        bits[stop + 1 + i] = (gaps >> i) & 1
    packed = np.packbits(bits, bitorder="little").tobytes()
    return struct.pack("<IBI", where.size, k, len(packed)) + packed + x[where].astype("<f4").tobytes()


def sparse_vector(payload: bytes, d: int) -> F32:
    """Return the vector that `sparse_bytes` wrote, float32 [d], with zeros at all other positions."""
    count, k, length = struct.unpack_from("<IBI", payload)
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, length, 9), bitorder="little")
    zeros = np.flatnonzero(bits == 0).tolist()
    stops, at, z = [], 0, 0
    for _ in range(count):  # skip zeros among the k bits of a remainder: they end no quotient
        while zeros[z] < at:
            z += 1
        stops.append(zeros[z])
        at = zeros[z] + 1 + k
    stop = np.array(stops, np.int64)
    begin = np.concatenate([[0], stop[:-1] + 1 + k]) if count else stop
    gaps = (stop - begin) << k
    for i in range(k):
        gaps += bits[stop + 1 + i].astype(np.int64) << i
    out = np.zeros(d, np.float32)
    out[np.cumsum(gaps + 1) - 1] = np.frombuffer(payload, "<f4", count, 9 + length)
    return out


def _rows(x: F32, width: int) -> F32:
    """Return `x` in rows of `width`, filled up with zeros."""
    return np.concatenate([x, np.zeros(-x.size % width, np.float32)]).reshape(-1, width)


def _parts(x: F32, sizes: Sequence[int]) -> list[F32]:
    return np.split(x, np.cumsum(sizes)[:-1])


def _powers(d: int) -> list[int]:
    """Return the powers of two that sum to d, largest first."""
    return [1 << i for i in reversed(range(d.bit_length())) if d >> i & 1]


def _signs(packed: bytes, d: int) -> F32:
    up: npt.NDArray[Any] = np.unpackbits(np.frombuffer(packed, np.uint8), count=d, bitorder="little")
    return up.astype(np.float32) * 2 - 1
