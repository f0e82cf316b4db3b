"""Weights in the order of a small number each, their bucket: what `rans` groups bits of equal odds by.

The order is that of a stable sort. It is kept by pieces that stay in the processor's cache, which makes sorting, and
moving bits there and back, three times faster than one sort of millions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_PIECE: Final = 1 << 16  # weights; so that a place within one fits 16 bits

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Buckets:
    """Who is where.

    `order` uint16 [d]: per piece the places within it, those of its first bucket first; `counts` int64 [pieces, n]:
    weights of each bucket in each piece.
    """

    order: npt.NDArray[np.uint16]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, d: int, n: int, bucket: Callable[[slice], npt.NDArray[np.uint8]]) -> Buckets:
        """Sort `d` weights into `n` buckets; `bucket` gives those of a slice of them, uint8 0 .. n - 1."""
        order, counts = np.empty(d, np.uint16), []
        for at in range(0, d, _PIECE):
            piece = slice(at, at + _PIECE)
            found = bucket(piece)
            order[piece] = np.argsort(found, kind="stable")
            counts.append(np.bincount(found, minlength=n))
        return cls(order, np.array(counts, np.int64))

    @property
    def sizes(self) -> list[int]:
        """Weights of each bucket."""
        return [int(size) for size in self.counts.sum(0)]

    def by_bucket(self, bits: Bits) -> list[Bits]:
        """One bit per weight [d] as one array per bucket, in the weights' order."""
        rows = np.empty_like(bits)
        for at in range(0, bits.size, _PIECE):
            piece = slice(at, at + _PIECE)
            np.take(bits[piece], self.order[piece], out=rows[piece])
        runs = np.split(rows, np.cumsum(self.counts)[:-1])
        buckets = self.counts.shape[1]
        return [np.concatenate(runs[bucket::buckets]) for bucket in range(buckets)]

    def by_weight(self, parts: list[Bits]) -> Bits:
        """The inverse of `by_bucket`."""
        ends = np.cumsum(self.counts, axis=0)[:-1]
        runs: list[list[Any]] = [np.split(part, ends[:, bucket]) for bucket, part in enumerate(parts)]
        rows: Bits = np.concatenate([run for piece in zip(*runs, strict=True) for run in piece])
        out = np.empty_like(rows)
        for at in range(0, out.size, _PIECE):
            piece = slice(at, at + _PIECE)
            out[piece][self.order[piece]] = rows[piece]
        return out
