"""`export.ops.Ops` as torch calls, in the forms that XNNPACK takes.

An image, which `Ops` has as [batch, channels, height, width], is kept as [batch, height, width, channels], where a
convolution is a gather and a product. All other values are as in `Ops`. A tensor without a batch, like a norm's scale
or shift, is transposed when it meets images.
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
    """`export.ops.Ops` as torch calls, for one batch size."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.yes = torch.ones(1)  # a condition known when the program is made
        self._convolutions = Convolutions()
        self._zero: V | None = None  # [1], made from the last weight gradient; see `conv_dx`

    def number(self, value: float) -> V:
        """Return a scalar constant, [1]."""
        return torch.full((1,), value)

    def add(self, a: V, b: V) -> V:
        """Return a + b."""
        return torch.add(*_beside(a, b))

    def sub(self, a: V, b: V) -> V:
        """Return a - b."""
        return torch.sub(*_beside(a, b))

    def mul(self, a: V, b: V) -> V:
        """Return a * b."""
        return torch.mul(*_beside(a, b))

    def div(self, a: V, b: V) -> V:
        """Return a / b."""
        return torch.div(*_beside(a, b))

    def sqrt(self, a: V) -> V:
        """Return the square root of each element."""
        return torch.sqrt(a)

    def sigmoid(self, a: V) -> V:
        """Return 1 / (1 + exp(-a)), elementwise."""
        return torch.sigmoid(a)

    def tanh(self, a: V) -> V:
        """Return the hyperbolic tangent of each element."""
        return torch.tanh(a)

    def exp(self, a: V) -> V:
        """Return e to the power of each element."""
        return torch.exp(a)

    def erf(self, a: V) -> V:
        """Return the error function of each element."""
        return torch.erf(a)

    def minimum(self, a: V, b: V) -> V:
        """Return the smaller of a and b, elementwise."""
        return torch.minimum(a, b)

    def less(self, a: V, b: V) -> V:
        """Return 1.0 where a < b, else 0.0."""
        return positive(b - a)

    def choose(self, condition: V, yes: Callable[[], V], no: Callable[[], V]) -> V:
        """Compute both and multiply one by zero: a program has no branches. `condition` is 1.0 or 0.0, [1]."""
        if condition is self.yes:
            return yes()
        return condition * yes() + (1 - condition) * no()

    def split(self, flat: V, shapes: Sequence[Shape]) -> list[V]:
        """Return views of the flat vector in the given shapes."""
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def join(self, parts: Sequence[V]) -> V:
        """Return all parts, flattened, one after the other."""
        return torch.cat([part.reshape(-1) for part in parts])

    def reshape(self, x: V, shape: Shape) -> V:
        """Return x as [batch, *shape], with elements in the order of `Ops`, channels first."""
        if x.dim() == 4:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        x = x.reshape(self.batch, *shape)
        return torch.permute_copy(x, (0, 2, 3, 1)) if len(shape) == 3 else x

    def rows(self, x: V, width: int) -> V:
        """Return x as [batch * ..., width], with elements in the order of `Ops`, channels first."""
        if x.dim() == 4:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        return x.reshape(-1, width)

    def unrows(self, x: V, shape: Shape) -> V:
        """Return x as [batch, *shape]."""
        return self.reshape(x, shape)

    def mean(self, x: V, axes: Sequence[int]) -> V:
        """Return the mean over `axes`, as a matrix product where they are adjacent and last, or all but the last."""
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
        """Return x expanded to [batch, *shape], as a copy."""
        to = [self.batch] * (len(shape) + 1)
        for axis, side in enumerate(shape):
            to[_place(axis, len(to))] = side
        return torch.expand_copy(x, to)

    def transpose(self, x: V, order: Sequence[int]) -> V:
        """Return x with its dimensions permuted, as a copy."""
        dims = [0] * x.dim()
        for axis, source in enumerate(order):
            dims[_place(axis, x.dim())] = _place(source, x.dim())
        return torch.permute_copy(x, dims)

    def concat(self, parts: Sequence[V], axis: int) -> V:
        """Return the parts concatenated along `axis`."""
        return torch.cat(list(parts), _place(axis, parts[0].dim()))

    def slice(self, x: V, axis: int, start: int, stop: int) -> V:
        """Return elements start .. stop - 1 along `axis`, as a copy."""
        return torch.slice_copy(x, _place(axis, x.dim()), start, stop)

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """Return (W x^T)^T + bias: transposing the batch is cheaper than transposing the weight."""
        y = torch.permute_copy(product(weight, torch.permute_copy(x, (1, 0))), (1, 0))
        return y if bias is None else y + bias

    def linear_dx(self, dy: V, weight: V) -> V:
        """Return dy W."""
        return product(dy, weight)

    def linear_dw(self, dy: V, x: V) -> V:
        """Return dy^T x."""
        return over_rows(dy, x, self.batch)

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d, before: Shape, after: Shape) -> V:
        """Return the output of a convolution (`Convolutions.forward`)."""
        y = self._convolutions.forward(x, weight, layer)
        return y if bias is None else y + bias

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Return a convolution's gradient with respect to x (`Convolutions.dx`), once the last `conv_dw` is done.

        To make it wait, a zero from that gradient is added. Otherwise XNNPACK's partitioner would move weight
        gradients, which only the optimiser needs, to the end of the program, and all layers' patches would stay in
        memory until then, and no longer in the cache.
        """
        weight = weight if self._zero is None else weight + self._zero
        return self._convolutions.dx(dy, weight, layer, before, after)

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Return a convolution's gradient with respect to the weight (`Convolutions.dw`)."""
        dw = self._convolutions.dw(dy, x, layer, kernel)
        self._zero = torch.slice_copy(dw.reshape(-1), 0, 0, 1) * 0.0
        return dw

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """Return dy summed over all but channels, the last dimension of images and rows, the first of sequences."""
        if dy.dim() == 2:
            return total(dy)
        return total_by_image(dy if dy.dim() == 4 else torch.permute_copy(dy, (0, 2, 1)))

    def relu(self, x: V) -> V:
        """Return max(x, 0)."""
        return F.relu(x)

    def relu_dx(self, dy: V, y: V) -> V:
        """Return dy times 1 or 0."""
        return dy * positive(y)

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """Take maxima along rows, then along columns, so that the first of equal elements in reading order wins.

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
        """Return winners times dy, with zeros where `pool` dropped incomplete windows."""
        (down, right), (channels, high, wide) = layer.size, before
        rows, columns = high // down, wide // right
        dx = winners * dy.reshape(self.batch * rows, 1, columns, 1, channels)
        dx = dx.view(self.batch, rows * down, columns * right, channels)
        rest = (high - rows * down, wide - columns * right)
        return F.pad(dx, (0, 0, 0, rest[1], 0, rest[0])) if any(rest) else dx

    def normalise(self, x: V, layer: GroupNorm, shape: Shape) -> tuple[V, V]:
        """Compute mean and variance in two passes."""
        apart = self._by_group(x, layer)
        centred = apart - mean_of_groups(apart, layer.groups)
        deviation = torch.sqrt(mean_of_groups(centred * centred, layer.groups) + EPSILON)
        return (centred / deviation).view(x.shape), deviation

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """Return the gradient of `normalise` with respect to x, by the formula in `Ops`."""
        by, normal = self._by_group(dy, layer), self._by_group(y, layer)
        along = mean_of_groups(by, layer.groups) + normal * mean_of_groups(normal * by, layer.groups)
        return ((by - along) / deviation).view(dy.shape)

    def _by_group(self, x: V, layer: GroupNorm) -> V:
        """Return x as [batch * groups, size of a group]; images with several groups as [batch, places, channels]."""
        if x.dim() == 4 and layer.groups > 1:
            return x.reshape(self.batch, -1, x.shape[3])
        return x.reshape(self.batch * layer.groups, -1)

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Return loss, correct predictions and gradient, as in `Ops`.

        There are few logits, so any kernel will do; log_softmax subtracts the maximum first.
        """
        logp, column = F.log_softmax(logits, 1), weight.view(-1, 1)
        truth = (y.view(-1, 1) == torch.arange(logits.shape[1])).to(torch.float32)
        loss = -(truth * logp * column).sum()
        correct = ((logits.argmax(1) == y) & (weight > 0)).sum()
        return loss, correct, (logp.exp() - truth) * column

    def squared_error(self, outputs: V, y: V, weight: V) -> tuple[V, V, V]:
        """Return loss, correct predictions (0) and gradient, as in `Ops`."""
        share, apart = weight.view(-1, 1) / outputs.shape[1], outputs - y
        return (share * apart * apart).sum(), torch.zeros((), dtype=torch.int64), 2 * share * apart


def _first_largest(x: V) -> tuple[V, V]:
    """Return the maximum of x [n, size, k] over its middle, [n, 1, k], and 1.0 where it occurs first, [n, size, k]."""
    parts = torch.split(x, 1, 1)
    largest, later = parts[0], []
    for part in parts[1:]:
        later.append(positive(part - largest))
        largest = torch.maximum(largest, part)
    if not later:
        return largest, torch.ones_like(x)
    # The maximum is the last element that was larger than all before it.
    ones, rest = [later[-1]], 1 - later[-1]
    for larger in reversed(later[:-1]):
        ones.append(rest * larger)
        rest = rest - ones[-1]
    return largest, torch.cat([rest, *reversed(ones)], 1)


def _beside(a: V, b: V) -> tuple[V, V]:
    """Return a and b so that they broadcast: if one is images and the other has no batch, the other is transposed."""
    if a.dim() == 4 > b.dim() and b.numel() > 1:
        return a, torch.permute_copy(b.view((1,) * (3 - b.dim()) + b.shape), (1, 2, 0))
    return _beside(b, a)[::-1] if b.dim() == 4 > a.dim() and a.numel() > 1 else (a, b)


def _place(axis: int, rank: int) -> int:
    """Return the dimension that `axis` of an example is in a value of `rank` dimensions, with the batch among them."""
    return (3, 1, 2)[axis] if rank == 4 else axis + 1
