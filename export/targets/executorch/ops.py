"""`export.graph.Ops` as torch calls, in the forms that XNNPACK takes.

Three things are not as one would write them for torch. Images are [batch, height, width, channels] between layers and
a convolution is one gather of rows and one product, because XNNPACK's own convolution takes no weights that change from
step to step. Products are batched ones, the form in which it takes two operands that change. And there are no
comparisons, which it lacks: 1[x > 0] is ceil(clamp(x, 0, 1)).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from export.graph import Ops
from seedmask.spec import GROUPNORM_EPSILON, Conv2d, GroupNorm, MaxPool2d, Shape

V = torch.Tensor

# Products over more rows than this are summed in pieces: XNNPACK does not cut its inner loop to fit a cache.
_ROWS: Final = 1024


class TorchOps(Ops[V]):
    """`export.graph.Ops` as torch calls to be traced. Images are [batch, height, width, channels]."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.yes = torch.ones(1)  # a condition known when the program is made
        self._gathered: tuple[V, V] | None = None

    def number(self, value: float) -> V:
        """A scalar constant, [1]."""
        return torch.full((1,), value)

    def add(self, a: V, b: V) -> V:
        """a + b."""
        return a + b

    def sub(self, a: V, b: V) -> V:
        """a - b."""
        return a - b

    def mul(self, a: V, b: V) -> V:
        """a * b."""
        return a * b

    def div(self, a: V, b: V) -> V:
        """a / b."""
        return a / b

    def sqrt(self, a: V) -> V:
        """The square root."""
        return torch.sqrt(a)

    def sigmoid(self, a: V) -> V:
        """The logistic function."""
        return torch.sigmoid(a)

    def less(self, a: V, b: V) -> V:
        """1.0 where a < b, else 0.0."""
        return _positive(b - a)

    def choose(self, condition: V, yes: Callable[[], V], no: Callable[[], V]) -> V:
        """Both, one of them times zero: a program has no branches. `condition` is 1.0 or 0.0, [1]."""
        if condition is self.yes:
            return yes()
        return condition * yes() + (1 - condition) * no()

    def split(self, flat: V, shapes: Sequence[Shape]) -> list[V]:
        """Slices."""
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def join(self, parts: Sequence[V]) -> V:
        """One after the other."""
        return torch.cat([part.reshape(-1) for part in parts])

    def reshape(self, x: V, shape: Shape) -> V:
        """By way of the order that weights are written for, channels first."""
        if x.dim() == 4:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        x = x.reshape(self.batch, *shape)
        return torch.permute_copy(x, (0, 2, 3, 1)) if len(shape) == 3 else x

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """(W x^T)^T: of the two, the batch is cheaper to turn around."""
        y = torch.permute_copy(_product(weight, torch.permute_copy(x, (1, 0))), (1, 0))
        return y if bias is None else y + bias

    def linear_dx(self, dy: V, weight: V) -> V:
        """dy W."""
        return _product(dy, weight)

    def linear_dw(self, dy: V, x: V) -> V:
        """dy^T x."""
        return _product(torch.permute_copy(dy, (1, 0)), x)

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d) -> V:
        """Rows of patches times the kernels."""
        out, _, kh, kw = weight.shape
        after = _sides(x, (kh, kw), layer)
        patches = _patches(x, (kh, kw), layer.stride, layer.padding)
        y = _product(patches, torch.permute_copy(weight, (2, 3, 1, 0)).reshape(-1, out))
        return (y if bias is None else y + bias).view(self.batch, *after, out)

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """With stride 1, a convolution of dy; else the sum of what each patch passes back, found by a gather."""
        out, channels = kernel[:2]
        if layer.stride == (1, 1):
            patches = self._patches_of(dy, layer, kernel)
            dx = _product(patches, torch.permute_copy(weight, (2, 3, 0, 1)).reshape(-1, channels))
        else:
            rows = F.pad(dy.reshape(self.batch, -1, out), (0, 0, 0, 1))  # the last row, zeros, is 'no such patch'
            back = _product(rows.view(-1, out), torch.permute_copy(weight, (0, 2, 3, 1)).reshape(out, -1))
            back = back.view(self.batch, -1, channels)
            slots = [_gather(back, places) for places in _contributors(layer, kernel, before, after)]
            dx = functools.reduce(torch.add, slots)
        return dx.view(self.batch, *before[1:], channels)

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """x^T times dy's patches, which `conv_dx` needs as well; or, if those are fewer, x's patches times dy."""
        out, channels, kh, kw = kernel
        if layer.stride == (1, 1) and channels * 4 > out:
            patches = self._patches_of(dy, layer, kernel)
            dw = self._over_rows(x.reshape(-1, channels), patches)
            return torch.permute_copy(dw.view(channels, kh, kw, out), (3, 0, 1, 2))
        patches = _patches(x, (kh, kw), layer.stride, layer.padding)
        dw = self._over_rows(patches, dy.reshape(-1, out))
        return torch.permute_copy(dw.view(kh, kw, channels, out), (3, 2, 0, 1))

    def _patches_of(self, dy: V, layer: Conv2d, kernel: Shape) -> V:
        """What dy's convolution back to x sees at every place of x, kernel entries in the order of the kernel."""
        if self._gathered is None or self._gathered[0] is not dy:
            pad = tuple(side - 1 - given for side, given in zip(kernel[2:], layer.padding, strict=True))
            self._gathered = (dy, _patches(dy, kernel[2:], (1, 1), pad, backwards=True))
        return self._gathered[1]

    def _over_rows(self, a: V, b: V) -> V:
        """a^T b for [rows, A] and [rows, B], rows a multiple of the batch: [A, B]."""
        rows = len(a)
        pieces = next(
            n for n in range(1, self.batch + 1) if self.batch % n == 0 and (rows // n <= _ROWS or n == self.batch)
        )
        products = torch.bmm(
            torch.permute_copy(a.view(pieces, rows // pieces, -1), (0, 2, 1)), b.view(pieces, rows // pieces, -1)
        )
        return products[0] if pieces == 1 else _sum(products.view(pieces, -1)).view(a.shape[1], b.shape[1])

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """First over each image, then over the batch, so that sums stay short."""
        if dy.dim() == 2:
            return _sum(dy)
        channels = shape[0]
        image = dy.reshape(self.batch, -1, channels)
        return _sum(torch.bmm(torch.ones(self.batch, 1, image.shape[1]), image).view(self.batch, channels))

    def relu(self, x: V) -> V:
        """torch's."""
        return F.relu(x)

    def relu_dx(self, dy: V, y: V) -> V:
        """A product."""
        return dy * _positive(y)

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """Along rows, then along columns: then the first of equals is the one that reading order meets first.

        The winners are 1.0 and 0.0 [batch * rows, size, columns, size, channels].
        """
        (down, right), channels = layer.size, before[0]
        rows, columns = before[1] // down, before[2] // right
        if (rows * down, columns * right) != before[1:]:
            x = x[:, : rows * down, : columns * right]
        x, across = _first_largest(x.reshape(-1, right, channels))
        x, along = _first_largest(x.reshape(self.batch * rows, down, columns * channels))
        winners = across.view(-1, down, columns, right, channels) * along.view(-1, down, columns, 1, channels)
        return x.view(self.batch, rows, columns, channels), winners

    def pool_dx(self, dy: V, winners: V, layer: MaxPool2d, before: Shape) -> V:
        """A product, then zeros where `pool` dropped incomplete windows."""
        (down, right), (channels, high, wide) = layer.size, before
        rows, columns = high // down, wide // right
        dx = winners * dy.reshape(self.batch * rows, 1, columns, 1, channels)
        dx = dx.view(self.batch, rows * down, columns * right, channels)
        rest = (high - rows * down, wide - columns * right)
        return F.pad(dx, (0, 0, 0, rest[1], 0, rest[0])) if any(rest) else dx

    def normalise(self, x: V, layer: GroupNorm, shape: Shape) -> tuple[V, V]:
        """Mean and variance in two passes."""
        apart = self._by_group(x, layer)
        centred = apart - _mean(apart)
        deviation = torch.sqrt(_mean(centred * centred) + GROUPNORM_EPSILON)
        return self._together(centred / deviation, x, layer), deviation

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """As it stands in `Ops`."""
        by, normal = self._by_group(dy, layer), self._by_group(y, layer)
        dx = (by - _mean(by) - normal * _mean(normal * by)) / deviation
        return self._together(dx, dy, layer)

    def _by_group(self, x: V, layer: GroupNorm) -> V:
        """[batch * groups, what a group has]."""
        if x.dim() == 4 and layer.groups > 1:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        return x.reshape(self.batch * layer.groups, -1)

    def _together(self, groups: V, like: V, layer: GroupNorm) -> V:
        """The inverse of `_by_group`, for a value of the shape of `like`."""
        if like.dim() == 4 and layer.groups > 1:
            _, high, wide, channels = like.shape
            return torch.permute_copy(groups.reshape(self.batch, channels, high, wide), (0, 2, 3, 1))
        return groups.reshape(like.shape)

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Few numbers, so whatever kernel there is will do; log_softmax subtracts the maximum first."""
        logp, column = F.log_softmax(logits, 1), weight.view(-1, 1)
        truth = (y.view(-1, 1) == torch.arange(logits.shape[1])).to(torch.float32)
        loss = -(truth * logp * column).sum()
        correct = ((logits.argmax(1) == y) & (weight > 0)).sum()
        return loss, correct, (logp.exp() - truth) * column


def _positive(x: V) -> V:
    """1.0 where x > 0, else 0.0."""
    return torch.ceil(torch.clamp(x, 0.0, 1.0))


def _product(a: V, b: V) -> V:
    """a b for matrices; as a batch of one, the form in which XNNPACK takes two operands that change."""
    return torch.bmm(a.reshape(1, *a.shape), b.reshape(1, *b.shape)).view(a.shape[0], b.shape[1])


def _sum(x: V) -> V:
    """The sum over the rows of a matrix [n, k], [k]."""
    return _product(torch.ones(1, len(x)), x).view(-1)


def _mean(x: V) -> V:
    """The mean of each row of a matrix, [n, 1]."""
    return _product(x, torch.full((x.shape[1], 1), 1 / x.shape[1]))


def _first_largest(x: V) -> tuple[V, V]:
    """The maximum of x [n, size, k] over its middle, [n, 1, k]; 1.0 at the first place that has it, [n, size, k]."""
    parts = torch.split(x, 1, 1)
    largest, later = parts[0], []
    for part in parts[1:]:
        later.append(_positive(part - largest))
        largest = torch.maximum(largest, part)
    if not later:
        return largest, torch.ones_like(x)
    # Of those that were larger than all before them, the last one has it.
    ones, rest = [later[-1]], 1 - later[-1]
    for larger in reversed(later[:-1]):
        ones.append(rest * larger)
        rest = rest - ones[-1]
    return largest, torch.cat([rest, *reversed(ones)], 1)


def _sides(x: V, kernel: Shape, layer: Conv2d) -> tuple[int, ...]:
    """Height and width that a convolution of x gives."""
    return tuple((x.shape[1 + i] + 2 * layer.padding[i] - kernel[i]) // layer.stride[i] + 1 for i in range(2))


def _patches(x: V, kernel: Shape, stride: Shape, padding: Shape, backwards: bool = False) -> V:
    """What every place of a convolution's output sees of x: [batch * places, kh * kw * channels].

    Negative padding crops; `backwards` lists a patch from its last place to its first. One gather of x's rows of
    channels by a constant index: slices and a concatenation measured a third slower.
    """
    _, _, _, channels = x.shape
    (kh, kw), crop = kernel, [max(0, -pad) for pad in padding]
    if any(crop):
        x = x[:, crop[0] : x.shape[1] - crop[0], crop[1] : x.shape[2] - crop[1]]
    vertical, horizontal = (max(0, pad) for pad in padding)
    if vertical or horizontal:
        x = F.pad(x, (0, 0, horizontal, horizontal, vertical, vertical))
    if kh == kw == 1 and stride == (1, 1):
        return x.reshape(-1, channels)
    high, wide = x.shape[1:3]
    seen = np.lib.stride_tricks.sliding_window_view(np.arange(high * wide).reshape(high, wide), (kh, kw))
    seen = seen[:: stride[0], :: stride[1], :: -1 if backwards else 1, :: -1 if backwards else 1]
    return _gather(x.reshape(len(x), -1, channels), seen).view(-1, kh * kw * channels)


def _gather(rows: V, places: npt.NDArray[np.int64]) -> V:
    """Rows of each image, [batch, n, channels] -> [batch, len(places), channels]; places count within an image."""
    batch, n, channels = rows.shape
    image = torch.from_numpy(places.reshape(1, -1).astype(np.int32))
    # Added up at run time: an index for the whole batch would be most of the file.
    index = image + torch.arange(0, batch * n, n, dtype=torch.int32).view(-1, 1)
    return F.embedding(index, rows.reshape(-1, channels))


def _contributors(layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> list[npt.NDArray[np.int64]]:
    """Where each place of x, [places], finds one of the things that patches pass back to it; as many as it needs.

    They count rows of (patch, entry of the kernel); the first row after all of them where there is none.
    """
    (_, _, kh, kw), (_, rows, columns), (_, high, wide) = kernel, after, before
    (up, left), (sv, sh) = layer.padding, layer.stride
    patch = np.arange(rows * columns).reshape(rows, columns) * kh * kw
    none, found = rows * columns * kh * kw, []
    for i in range(kh):
        for j in range(kw):
            at = np.full((high + 2 * up + sv, wide + 2 * left + sh), none)
            at[i : i + rows * sv : sv, j : j + columns * sh : sh][:rows, :columns] = patch + i * kw + j
            found.append(at[up : up + high, left : left + wide].reshape(-1))
    # The real ones first: with stride s only one entry of the kernel in s x s meets a place.
    ordered = np.sort(np.stack(found), 0)
    return list(ordered[: max(1, int((ordered != none).sum(0).max()))])
