"""Sums and products in the form in which XNNPACK takes two operands that change from step to step: batched products."""

from __future__ import annotations

from typing import Final

import torch

V = torch.Tensor

LANES: Final = 32
"""Numbers of a product's row that are computed at a time, whether it has them or not, with AVX-512; 16, 8 elsewhere."""

# Products over more rows than this are summed in pieces: XNNPACK does not cut its inner loop to fit a cache.
_ROWS: Final = 1024
_TERMS: Final = 128


def positive(x: V) -> V:
    """1.0 where x > 0, else 0.0, without a comparison, which XNNPACK lacks."""
    return torch.ceil(torch.clamp(x, 0.0, 1.0))


def product(a: V, b: V) -> V:
    """a b for matrices."""
    return torch.bmm(a.reshape(1, *a.shape), b.reshape(1, *b.shape)).view(a.shape[0], b.shape[1])


def total(x: V) -> V:
    """The sum over the rows of a matrix [n, k], [k]."""
    return product(torch.ones(1, len(x)), x).view(-1)


def total_by_image(x: V) -> V:
    """The sum over all but the last dimension of [batch, ..., k], [k]: an image at a time, so that sums stay short."""
    image = x.reshape(x.shape[0], -1, x.shape[-1])
    return total(torch.bmm(torch.ones(len(image), 1, image.shape[1]), image).view(len(image), -1))


def mean(x: V) -> V:
    """The mean of each row of a matrix, [n, 1].

    Of more than _TERMS numbers, that of means of _TERMS or fewer: XNNPACK adds one after another, and twenty norms of
    2,048 numbers each, one upon another, were off eight times as much as torch's.
    """
    rows, width = x.shape
    if width % LANES == 0 and width > _TERMS:
        return mean(mean_of_places(x.reshape(rows, -1, LANES)))
    part = _part(width)
    means = product(x.reshape(-1, part), torch.full((part, 1), 1 / part))
    return means if part == width else mean(means.view(rows, -1))


def mean_of_groups(x: V, groups: int) -> V:
    """`mean` of rows; of images [batch, places, channels] that of each group of channels, [batch, 1, channels].

    Every channel has its group's, so that nothing has to be put together or taken apart.
    """
    if x.dim() == 2:
        return mean(x)
    batch, _, channels = x.shape
    share = channels // groups
    means = mean_of_places(x).view(batch * groups, share)
    return product(means, torch.full((share, share), 1 / share)).view(batch, 1, channels)


def mean_of_places(x: V) -> V:
    """The mean of [batch, places, k] over its middle, [batch, k]: of means of _TERMS numbers at most, as `mean` has it.

    At first with so many places side by side that a product's row is full: half the time for 16 channels.
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
    """How many of n numbers are added up at once: the most that divide them, up to _TERMS; all if nothing does."""
    part = next(size for size in range(min(n, _TERMS), 0, -1) if n % size == 0)
    return n if part == 1 else part


def over_rows(a: V, b: V, batch: int) -> V:
    """a^T b for [rows, A] and [rows, B], rows a multiple of the batch: [A, B]."""
    rows, (width, height) = len(a), (a.shape[1], b.shape[1])
    pieces = next(n for n in range(1, batch + 1) if batch % n == 0 and (rows // n <= _ROWS or n == batch))
    a = torch.permute_copy(a.view(pieces, rows // pieces, width), (0, 2, 1))
    products = torch.bmm(a, b.view(pieces, rows // pieces, height))
    summed = products if pieces == 1 else total(products.view(pieces, -1))
    return summed.view(width, height)
