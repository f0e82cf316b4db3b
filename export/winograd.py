"""Minimal filtering: the constant matrices that turn a 3x3 convolution into products over channels alone.

S. Winograd's algorithms as Lavin and Gray use them (Fast Algorithms for Convolutional Neural Networks, arXiv
1509.09308). Along one axis, F(m, 3) takes m + 2 products for m outputs of 3 taps, which directly take 3 m:
y = A^T ((G g) * (B^T d)) for m + 2 inputs d and taps g. Along both axes a tile of m x m takes (m + 2)^2 instead of 9 m^2.
Here an axis has all its tiles at once, padding included, so that a transform is one product of matrices: B^T and A^T
repeat along the axis. Their transposes give the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

TAPS: Final = 3
# Polynomials are evaluated at these, and at infinity. Of F(4, 3)'s usual points 0, +-1, +-2 the errors are four times
# as large; these are exact in binary, and symmetric.
POINTS: Final = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2)),
}

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """F(m, 3) along one axis of an image: `tiles` of them, `points` = m + 2 products each.

    `into` float32 [points * tiles, side before], `out` float32 [side after, points * tiles], `taps` float32 [points, 3].
    """

    tiles: int
    points: int
    into: Matrix
    out: Matrix
    taps: Matrix


def axis(before: int, padding: int, m: int) -> Axis:
    """The matrices for a side of `before` with `padding` at both ends; m is a key of POINTS."""
    after = before + 2 * padding - (TAPS - 1)
    points, tiles = m + TAPS - 1, -(-after // m)
    out_of, taps, into = _matrices(m)
    whole, back = np.zeros((points, tiles, before)), np.zeros((after, points, tiles))
    for t in range(tiles):
        for k in range(points):
            if 0 <= (at := t * m + k - padding) < before:
                whole[:, t, at] = into[:, k]
        for k in range(min(m, after - t * m)):
            back[t * m + k, :, t] = out_of[k]
    flat = whole.reshape(points * tiles, before), back.reshape(after, points * tiles)
    return Axis(tiles, points, *(np.asarray(each, np.float32) for each in (*flat, taps)))


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
