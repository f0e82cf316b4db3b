"""Minimal filtering: the constant matrices that turn a 3x3 convolution into products over channels alone.

S. Winograd's algorithms as Lavin and Gray use them (Fast Algorithms for Convolutional Neural Networks, arXiv
1509.09308). Along one axis, F(m, 3) takes m + 2 products for m outputs of 3 taps, which directly take 3 m:
y = A^T ((G g) * (B^T d)) for m + 2 inputs d and taps g. Along both axes a tile of m x m takes (m + 2)^2 products, not
9 m^2. The gradients take the same matrices transposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

TAPS: Final = 3
# Polynomials are evaluated at these, and at infinity. Of F(4, 3)'s usual points 0, +-1, +-2 the errors are four times
# as large; these are exact in binary, and symmetric.
POINTS: Final = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2)),
}

Matrix: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """F(m, 3) along one axis of an image: `tiles` of m outputs, computed by m + 2 = `points` products each.

    `into` is B^T, float32 [points, points]; `out` is A^T, [m, points]; `taps` is G, [points, 3]. `places`, int64
    [points, tiles], has the positions that go into each tile, on an axis with `before` and `after` positions of
    padding. `back`, float32 [side, points * tiles], takes the gradient from tiles back to the axis without padding;
    overlapping tiles add up.
    """

    tiles: int
    points: int
    before: int
    after: int
    into: Matrix
    out: Matrix
    taps: Matrix
    places: npt.NDArray[np.int64]
    back: Matrix

    @property
    def m(self) -> int:
        """Return the number of outputs of one tile."""
        return len(self.out)

    @property
    def side(self) -> int:
        """Return the number of positions along the axis, without padding."""
        return len(self.back)


def axis(side: int, padding: int, m: int) -> Axis:
    """Return the matrices of F(m, 3) for `side` positions with `padding` at both ends; m is a key of POINTS."""
    points, tiles = m + TAPS - 1, -(-(side + 2 * padding - (TAPS - 1)) // m)
    out, taps, into = _matrices(m)
    places = m * np.arange(tiles) + np.arange(points)[:, None]
    back = np.zeros((points, tiles, tiles * m + TAPS - 1))
    for k, t in np.ndindex(places.shape):
        back[:, t, places[k, t]] = into[:, k]
    flat = back[:, :, padding : padding + side].reshape(points * tiles, side).T
    into, out, taps, flat = (np.ascontiguousarray(each, np.float32) for each in (into, out, taps, flat))
    end = tiles * m + TAPS - 1 - padding - side
    return Axis(tiles, points, padding, end, into, out, taps, places, flat)


def _matrices(m: int) -> tuple[Any, Any, Any]:
    """Return A^T [m, m + 2], G [m + 2, 3] and B^T [m + 2, m + 2] of F(m, 3), by the method of Toom and Cook.

    The product of two polynomials is determined by its values at enough points; the transpose of that is correlation.
    Rows are scaled by powers of two so that the three matrices are of similar magnitude, which keeps rounding errors
    small.
    """
    points = [float(point) for point in POINTS[m]]

    def powers(count: int) -> npt.NDArray[np.float64]:
        return np.array([[p**k for k in range(count)] for p in points] + [[0.0] * (count - 1) + [1.0]])

    out, taps, into = powers(m).T, powers(TAPS), _interpolation(POINTS[m])
    sizes = np.stack([np.linalg.norm(out, axis=0), np.linalg.norm(taps, axis=1), np.linalg.norm(into, axis=1)])
    scale = np.exp2(np.rint(np.log2(np.prod(sizes, axis=0) ** (1 / 3) / sizes)))
    return out * scale[0], taps / (scale[0] * scale[2])[:, None], into * scale[2][:, None]


def _interpolation(points: tuple[Fraction, ...]) -> npt.NDArray[np.float64]:
    """Return the polynomials that are 1 at one point and 0 at the others, a row of coefficients each.

    The last row is for infinity. Computed in fractions: a floating-point inverse has rounding noise where zeros belong,
    different with every LAPACK, and graphs should have the same bytes wherever they are made.
    """
    rows = []
    for point in (*points, None):
        row = [Fraction(1)]
        for other in points:
            if other != point:
                below = Fraction(1) if point is None else point - other
                row = [(a - other * b) / below for a, b in zip([Fraction(0), *row], [*row, Fraction(0)], strict=True)]
        rows.append([float(x) for x in row] + [0.0] * (len(points) + 1 - len(row)))
    return np.array(rows)
