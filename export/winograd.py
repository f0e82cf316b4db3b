"""Minimal filtering: the constant matrices that turn a 3x3 convolution into products over channels alone.

S. Winograd's algorithms as Lavin and Gray use them (Fast Algorithms for Convolutional Neural Networks, arXiv
1509.09308). Along one axis, F(m, 3) takes m + 2 products for m outputs of 3 taps, which directly take 3 m:
y = A^T ((G g) * (B^T d)) for m + 2 inputs d and taps g. Along both axes a tile of m x m takes (m + 2)^2 products, not
9 m^2. Here an axis has its tiles side by side, padding included, so that a transform is one product of matrices, and
the gradients take the same matrices transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

TAPS: Final = 3
# Polynomials are evaluated at these, and at infinity. Of F(4, 3)'s usual points 0, +-1, +-2 the errors are four times
# as large; these are exact in binary, and symmetric.
POINTS: Final = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2)),
}

_BLOCK: Final = 8  # results; half as many make products of matrices too small, twice as many take twice the time

Matrix: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """F(m, 3) along one axis of an image, in `blocks` of `tiles` of m results, each of m + 2 = `points` products.

    A block takes what lies at `places` int64 [blocks, block + 2], where those beyond an edge are any, times zero, into
    `into` float32 [blocks, points * tiles, block + 2], and gives a block of results, `out` float32 [block, points *
    tiles]. A single block takes all there is: `into` float32 [points * tiles, side]. `back` float32 [side, products] is
    the transpose of what places and `into` do together; `taps` float32 [points, 3].
    """

    blocks: int
    tiles: int
    points: int
    places: npt.NDArray[np.int64]
    into: Matrix
    out: Matrix
    back: Matrix
    taps: Matrix

    @property
    def products(self) -> int:
        """How many values the transformed axis has."""
        return self.blocks * self.points * self.tiles


def axis(before: int, padding: int, m: int) -> Axis:
    """For a side of `before` with `padding` at both ends; m is a key of POINTS."""
    after = before + 2 * padding - (TAPS - 1)
    points, whole = m + TAPS - 1, -(-after // m)
    # As many blocks as there can be, all alike: within one, matrices are dense.
    counts = [n for n in range(1, whole + 1) if whole % n == 0 and after == m * whole and after // n >= _BLOCK]
    blocks = max(counts, default=1)
    tiles = whole // blocks
    block = after // blocks
    out_of, taps, into = _matrices(m)
    spread, out = np.zeros((blocks, points, tiles, block + TAPS - 1)), np.zeros((block, points, tiles))
    back, places = np.zeros((before, blocks, points, tiles)), np.zeros((blocks, block + TAPS - 1), np.int64)
    for b in range(blocks):
        places[b] = np.clip(np.arange(block + TAPS - 1) + b * block - padding, 0, before - 1)
        for t in range(tiles):
            for k in range(points):
                at = t * m + k
                if at < block + TAPS - 1 and 0 <= (place := b * block + at - padding) < before:
                    spread[b, :, t, at] = into[:, k]
                    back[place, b, :, t] = into[:, k]
            for k in range(min(m, block - t * m)):
                out[t * m + k, :, t] = out_of[k]
    lengths = (blocks, points * tiles, -1), (block, -1), (before, -1)
    flat = [each.reshape(length) for each, length in zip((spread, out, back), lengths, strict=True)]
    if blocks == 1:
        flat[0] = flat[2].T
    return Axis(blocks, tiles, points, places, *(np.asarray(each, np.float32) for each in (*flat, taps)))


def _matrices(m: int) -> tuple[npt.NDArray[np.float64], ...]:
    """A^T [m, m + 2], G [m + 2, 3] and B^T [m + 2, m + 2] of F(m, 3), by Toom and Cook.

    Two polynomials' product is known by its values at enough points; transposed, that is correlation. Each point's row
    is scaled by powers of two so that the three matrices share its magnitude, which rounding likes.
    """
    points = [float(point) for point in POINTS[m]]

    def powers(count: int) -> npt.NDArray[np.float64]:
        return np.array([[p**k for k in range(count)] for p in points] + [[0.0] * (count - 1) + [1.0]])

    out_of, taps, into = powers(m).T, powers(TAPS), np.linalg.inv(powers(m + TAPS - 1)).T
    sizes = np.stack([np.linalg.norm(out_of, axis=0), np.linalg.norm(taps, axis=1), np.linalg.norm(into, axis=1)])
    scale = np.exp2(np.rint(np.log2(np.prod(sizes, axis=0) ** (1 / 3) / sizes)))
    return out_of * scale[0], taps / (scale[0] * scale[2])[:, None], into * scale[2][:, None]
