"""`export.ops.Ops` as torch calls, in the forms that XNNPACK takes.

What has three dimensions besides the batch's, an image of [channels, height, width], is kept as [batch, height, width,
channels], where a convolution is a gather and a product; everything else lies as in `Ops`. What has no batch and goes
with images, a norm's scale or shift, is turned the same way where the two meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from export.ops import Ops
from export.targets.executorch.convolution import Convolutions
from export.targets.executorch.products import mean, mean_of_groups, over_rows, positive, product, total, total_by_image
from seedmask.layers import EPSILON, Conv2d, GroupNorm, MaxPool2d, Shape

V = torch.Tensor


class TorchOps(Ops[V]):
    """`export.ops.Ops` for one batch size."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.yes = torch.ones(1)  # a condition known when the program is made
        self._convolutions = Convolutions()
        self._zero: V | None = None  # [1], of the gradient of weights that was asked for last

    def number(self, value: float) -> V:
        """A scalar constant, [1]."""
        return torch.full((1,), value)

    def add(self, a: V, b: V) -> V:
        """a + b."""
        return torch.add(*_beside(a, b))

    def sub(self, a: V, b: V) -> V:
        """a - b."""
        return torch.sub(*_beside(a, b))

    def mul(self, a: V, b: V) -> V:
        """a * b."""
        return torch.mul(*_beside(a, b))

    def div(self, a: V, b: V) -> V:
        """a / b."""
        return torch.div(*_beside(a, b))

    def sqrt(self, a: V) -> V:
        """The square root."""
        return torch.sqrt(a)

    def sigmoid(self, a: V) -> V:
        """The logistic function."""
        return torch.sigmoid(a)

    def tanh(self, a: V) -> V:
        """The hyperbolic tangent."""
        return torch.tanh(a)

    def exp(self, a: V) -> V:
        """e to the power of a."""
        return torch.exp(a)

    def erf(self, a: V) -> V:
        """The error function."""
        return torch.erf(a)

    def minimum(self, a: V, b: V) -> V:
        """The smaller one."""
        return torch.minimum(a, b)

    def less(self, a: V, b: V) -> V:
        """1.0 where a < b, else 0.0."""
        return positive(b - a)

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

    def rows(self, x: V, width: int) -> V:
        """By way of the order that weights are written for."""
        if x.dim() == 4:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        return x.reshape(-1, width)

    def unrows(self, x: V, shape: Shape) -> V:
        """The inverse."""
        return self.reshape(x, shape)

    def mean(self, x: V, axes: Sequence[int]) -> V:
        """As a product where the axes lie side by side at an end."""
        rank = x.dim()
        places = sorted(_place(axis, rank) for axis in axes)
        kept = [1 if place in places else side for place, side in enumerate(x.shape)]
        if places == list(range(rank - len(places), rank)):
            return mean(x.reshape(-1, math.prod(x.shape[places[0] :]))).view(kept)
        if places == list(range(1, rank - 1)):
            image = x.reshape(self.batch, -1, x.shape[-1])
            return torch.bmm(torch.full((self.batch, 1, image.shape[1]), 1 / image.shape[1]), image).view(kept)
        return torch.mean(x, places, keepdim=True)

    def spread(self, x: V, shape: Shape) -> V:
        """expand, as a copy."""
        to = [self.batch] * (len(shape) + 1)
        for axis, side in enumerate(shape):
            to[_place(axis, len(to))] = side
        return torch.expand_copy(x, to)

    def transpose(self, x: V, order: Sequence[int]) -> V:
        """permute, as a copy, between the places of dimensions."""
        dims = [0] * x.dim()
        for axis, source in enumerate(order):
            dims[_place(axis, x.dim())] = _place(source, x.dim())
        return torch.permute_copy(x, dims)

    def concat(self, parts: Sequence[V], axis: int) -> V:
        """cat."""
        return torch.cat(list(parts), _place(axis, parts[0].dim()))

    def slice(self, x: V, axis: int, start: int, stop: int) -> V:
        """slice, as a copy."""
        return torch.slice_copy(x, _place(axis, x.dim()), start, stop)

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """(W x^T)^T: of the two, the batch is cheaper to turn around."""
        y = torch.permute_copy(product(weight, torch.permute_copy(x, (1, 0))), (1, 0))
        return y if bias is None else y + bias

    def linear_dx(self, dy: V, weight: V) -> V:
        """dy W."""
        return product(dy, weight)

    def linear_dw(self, dy: V, x: V) -> V:
        """dy^T x."""
        return over_rows(dy, x, self.batch)

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d, before: Shape, after: Shape) -> V:
        """See `Convolutions`."""
        y = self._convolutions.forward(x, weight, layer)
        return y if bias is None else y + bias

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """See `Convolutions`. Not before the last gradient of weights is there, whose zero is added.

        Nobody but the optimiser waits for those, and XNNPACK's partitioner puts what can wait together, at the end:
        all layers' patches would lie in memory until then, and no longer in the cache.
        """
        weight = weight if self._zero is None else weight + self._zero
        return self._convolutions.dx(dy, weight, layer, before, after)

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """See `Convolutions`."""
        dw = self._convolutions.dw(dy, x, layer, kernel)
        self._zero = torch.slice_copy(dw.reshape(-1), 0, 0, 1) * 0.0
        return dw

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """Of images, of rows, or of sequences, whose channels come first."""
        if dy.dim() == 2:
            return total(dy)
        return total_by_image(dy if dy.dim() == 4 else torch.permute_copy(dy, (0, 2, 1)))

    def relu(self, x: V) -> V:
        """torch's."""
        return F.relu(x)

    def relu_dx(self, dy: V, y: V) -> V:
        """A product."""
        return dy * positive(y)

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """Along rows, then along columns: then the first of equals is the one that reading order meets first.

        The winners are 1.0 and 0.0 [batch * rows, size, columns, size, channels].
        """
        (down, right), channels = layer.size, before[0]
        rows, columns = before[1] // down, before[2] // right
        if (rows * down, columns * right) != before[1:]:
            x = torch.slice_copy(torch.slice_copy(x, 1, 0, rows * down), 2, 0, columns * right)
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
        centred = apart - mean_of_groups(apart, layer.groups)
        deviation = torch.sqrt(mean_of_groups(centred * centred, layer.groups) + EPSILON)
        return (centred / deviation).view(x.shape), deviation

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """As it stands in `Ops`."""
        by, normal = self._by_group(dy, layer), self._by_group(y, layer)
        along = mean_of_groups(by, layer.groups) + normal * mean_of_groups(normal * by, layer.groups)
        return ((by - along) / deviation).view(dy.shape)

    def _by_group(self, x: V, layer: GroupNorm) -> V:
        """[batch * groups, what a group has]; of images [batch, places, channels], which stay as they lie."""
        if x.dim() == 4 and layer.groups > 1:
            return x.reshape(self.batch, -1, x.shape[3])
        return x.reshape(self.batch * layer.groups, -1)

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Few numbers, so whatever kernel there is will do; log_softmax subtracts the maximum first."""
        logp, column = F.log_softmax(logits, 1), weight.view(-1, 1)
        truth = (y.view(-1, 1) == torch.arange(logits.shape[1])).to(torch.float32)
        loss = -(truth * logp * column).sum()
        correct = ((logits.argmax(1) == y) & (weight > 0)).sum()
        return loss, correct, (logp.exp() - truth) * column

    def squared_error(self, outputs: V, y: V, weight: V) -> tuple[V, V, V]:
        """As it stands in `Ops`."""
        share, apart = weight.view(-1, 1) / outputs.shape[1], outputs - y
        return (share * apart * apart).sum(), torch.zeros((), dtype=torch.int64), 2 * share * apart


def _first_largest(x: V) -> tuple[V, V]:
    """The maximum of x [n, size, k] over its middle, [n, 1, k]; 1.0 at the first place that has it, [n, size, k]."""
    parts = torch.split(x, 1, 1)
    largest, later = parts[0], []
    for part in parts[1:]:
        later.append(positive(part - largest))
        largest = torch.maximum(largest, part)
    if not later:
        return largest, torch.ones_like(x)
    # Of those that were larger than all before them, the last one has it.
    ones, rest = [later[-1]], 1 - later[-1]
    for larger in reversed(later[:-1]):
        ones.append(rest * larger)
        rest = rest - ones[-1]
    return largest, torch.cat([rest, *reversed(ones)], 1)


def _beside(a: V, b: V) -> tuple[V, V]:
    """Both; where one is images and the other has no batch and its last dimensions, the other as images lie."""
    if a.dim() == 4 > b.dim() and b.numel() > 1:
        return a, torch.permute_copy(b.view((1,) * (3 - b.dim()) + b.shape), (1, 2, 0))
    return _beside(b, a)[::-1] if b.dim() == 4 > a.dim() and a.numel() > 1 else (a, b)


def _place(axis: int, rank: int) -> int:
    """Where dimension `axis` of an example lies in a value of `rank` dimensions, of which one is the batch's."""
    return (3, 1, 2)[axis] if rank == 4 else axis + 1
