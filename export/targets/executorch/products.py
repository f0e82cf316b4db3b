"""Sums and means as batched matrix products, the only form in which XNNPACK multiplies two values that both change."""

from __future__ import annotations

from typing import Final

import torch

V = torch.Tensor

LANES: Final = 32
"""Numbers of a product's row that AVX-512 computes at a time, used or not; elsewhere 16 or 8."""

# Products over more rows than this are summed in pieces: XNNPACK does not cut its inner loop to fit a cache.
_ROWS: Final = 1024
_TERMS: Final = 128


def positive(x: V) -> V:
    """Return 1.0 where x > 0, else 0.0, without a comparison, which XNNPACK lacks."""
    return torch.ceil(torch.clamp(x, 0.0, 1.0))


def product(a: V, b: V) -> V:
    """Return the matrix product a b."""
    return torch.bmm(a.reshape(1, *a.shape), b.reshape(1, *b.shape)).view(a.shape[0], b.shape[1])


def total(x: V) -> V:
    """Return the sum over the rows of a matrix: [n, k] -> [k]."""
    return product(torch.ones(1, len(x)), x).view(-1)


def total_by_image(x: V) -> V:
    """Return the sum over all but the last dimension: [batch, ..., k] -> [k].

    Images are summed one by one first, to keep sums short, which rounds less.
    """
    image = x.reshape(x.shape[0], -1, x.shape[-1])
    return total(torch.bmm(torch.ones(len(image), 1, image.shape[1]), image).view(len(image), -1))


def mean(x: V) -> V:
    """Return the mean of each row of a matrix, [n, 1].

    A row of more than _TERMS numbers is averaged in parts of at most _TERMS, then the parts: XNNPACK adds one number
    after another, and the error of twenty consecutive norms of 2,048 numbers each was eight times torch's.
    """
    rows, width = x.shape
    if width % LANES == 0 and width > _TERMS:
        return mean(mean_of_places(x.reshape(rows, -1, LANES)))
    part = _part(width)
    means = product(x.reshape(-1, part), torch.full((part, 1), 1 / part))
    return means if part == width else mean(means.view(rows, -1))


def mean_of_groups(x: V, groups: int) -> V:
    """Return the mean of each row of a matrix; for images, each group's mean, repeated for its channels.

    Images [batch, places, channels] -> [batch, 1, channels], so that nothing has to be cut or joined.
    """
    if x.dim() == 2:
        return mean(x)
    batch, _, channels = x.shape
    share = channels // groups
    means = mean_of_places(x).view(batch * groups, share)
    return product(means, torch.full((share, share), 1 / share)).view(batch, 1, channels)


def mean_of_places(x: V) -> V:
    """Return the mean over the middle dimension: [batch, places, k] -> [batch, k], in parts of _TERMS as `mean` does.

    The first part takes so many places side by side that a product's row is full, which halves the time for 16
    channels.
    """
    batch, places, k = x.shape
    if places == 1:
        return x.view(batch, k)
    part = _part(places)
    most = LANES // k if places > LANES else 1
    beside = next(n for n in range(max(1, min(most, part - 1)), 0, -1) if part % n == 0)
    rows = part // beside
    means = torch.bmm(torch.full((batch * places // part, 1, rows), 1 / rows), x.reshape(-1, rows, beside * k))
    return mean_of_places(means.view(batch, -1, k))


def _part(n: int) -> int:
    """Return how many of n numbers to add up at once: the largest divisor of n up to _TERMS, or n if that is 1."""
    part = next(size for size in range(min(n, _TERMS), 0, -1) if n % size == 0)
    return n if part == 1 else part


def over_rows(a: V, b: V, batch: int) -> V:
    """Return a^T b, [A, B], for a [rows, A] and b [rows, B]; rows is a multiple of the batch."""
    rows, (width, height) = len(a), (a.shape[1], b.shape[1])
    pieces = next(n for n in range(1, batch + 1) if batch % n == 0 and (rows // n <= _ROWS or n == batch))
    a = torch.permute_copy(a.view(pieces, rows // pieces, width), (0, 2, 1))
    products = torch.bmm(a, b.view(pieces, rows // pieces, height))
    summed = products if pieces == 1 else total(products.view(pieces, -1))
    return summed.view(width, height)
