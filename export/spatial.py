"""ONNX operations on images stored as [height, width, batch, channels], with 3x3 convolutions by minimal filtering.

With batch and channels innermost, each transform of Winograd's algorithm (`export.winograd`) is one product of a
constant matrix and the whole tensor, and the convolution is (m + 2)^2 products of [tiles * batch, channels] by
[channels, channels]. Both gradients are products of the same transforms. The graph remembers by name which values are
stored so: elementwise operations take them as they are, all others get them as [batch, channels, height, width].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from export.onnx_ops import Dim, Graph, Name, OnnxOps
from export.winograd import POINTS, TAPS, Axis, Matrix, axis
from seedmask.layers import EPSILON, Conv2d, GroupNorm, MaxPool2d, Shape

_ELEMENTWISE: Final = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Neg", "Exp", "Erf", "Sigmoid", "Tanh", "Relu"),
        *("Min", "Max", "Less", "Greater", "Cast"),
    }
)
# `is_of_few`: an output depends on at most _FEW inputs, and there are at least _MANY output channels.
_FEW: Final = 32
_MANY: Final = 32
# With more channels than this to sum, F(4, 3) on both axes has too large rounding errors.
_SHORT: Final = 64
# A multiplication in a transform takes this many times as long as one in a product of channels by channels.
_SLOWER: Final = 1.5
_TURN: Final = (2, 3, 0, 1)  # from [batch, channels, height, width], and back again


class SpatialGraph(Graph):
    """A graph that knows which values are stored as [height, width, batch, channels], and transposes as needed."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[Name, Shape] = {}
        self._spatial: set[Name] = set()
        self._turned: dict[Name, Name] = {}

    def several(self, op: str, count: int, *inputs: Name, **attributes: Any) -> list[Name]:
        """Add a node as `Graph` does; the results of an elementwise one are stored as its inputs are."""
        if not self._spatial.intersection(inputs):
            return super().several(op, count, *inputs, **attributes)
        if op in _ELEMENTWISE and all(self._goes_along(each) for each in inputs):
            made = super().several(op, count, *(self._along(each) for each in inputs), **attributes)
            self._spatial.update(made)
            return made
        return super().several(op, count, *(self.plain(each) for each in inputs), **attributes)

    def output(self, name: Name, value: Name, dtype: Any, shape: Sequence[Dim]) -> None:
        """Declare an output as `Graph` does, always as [batch, channels, height, width]."""
        super().output(name, self.plain(value), dtype, shape)

    def raw(self, op: str, *inputs: Name, **attributes: Any) -> Name:
        """Add a node that takes its inputs as they are stored."""
        return super().several(op, 1, *inputs, **attributes)[0]

    def lies(self, x: Name) -> Name:
        """Note that `x` is stored as [height, width, batch, channels], and return it."""
        self._spatial.add(x)
        return x

    def is_spatial(self, x: Name) -> bool:
        """True if `x` is stored as [height, width, batch, channels]."""
        return x in self._spatial

    def plain(self, x: Name) -> Name:
        """Return `x` as [batch, channels, height, width]."""
        return self._turn(x) if x in self._spatial else x

    def spatial(self, x: Name) -> Name:
        """Return `x` as [height, width, batch, channels]."""
        return x if x in self._spatial else self.lies(self._turn(x))

    def _turn(self, x: Name) -> Name:
        if x not in self._turned:
            other = self.raw("Transpose", x, perm=_TURN)
            self._turned |= {x: other, other: x}
        return self._turned[x]

    def _goes_along(self, x: Name) -> bool:
        """True if `x` broadcasts against images as they are stored: all but parameters that differ within an image."""
        return x not in self.parameters or self.parameters[x][1:] == (1, 1)

    def _along(self, x: Name) -> Name:
        if x in self.parameters:
            return self.raw("Reshape", x, self.ints(-1))
        return x if self._is_number(x) else self.spatial(x)

    def _is_number(self, x: Name) -> bool:
        return any(each.name == x and not each.dims for each in self.constants.values())


@dataclass
class Filtering:
    """A convolution by minimal filtering, with its operands in the transformed domain.

    x [points, tiles * batch, in], weight [points, out, in], and dy [points, tiles * batch, out], "" until it is known.
    """

    axes: tuple[Axis, Axis]
    x: Name
    weight: Name
    dy: Name = ""


class SpatialOps(OnnxOps):
    """`OnnxOps` on a `SpatialGraph`."""

    GRAPH = SpatialGraph
    g: SpatialGraph

    def __init__(self, graph: Graph, batch: int) -> None:
        super().__init__(graph, batch)
        self._filtered: dict[str, Filtering] = {}  # by the weight's name in the spec
        self._places: dict[str, Name] = {}  # the same; float32 [channels * kh * kw, places * batch]

    def parameter(self, value: Name, given: Shape, shape: Shape) -> Name:
        """Return the tensor reshaped, as `OnnxOps` does, and note that it is a parameter."""
        made = super().parameter(value, given, shape)
        self.g.parameters[made] = shape
        return made

    def split(self, flat: Name, shapes: Sequence[Shape]) -> list[Name]:
        """Cut a flat vector, as `OnnxOps` does, and note that the parts are parameters."""
        parts = super().split(flat, shapes)
        self.g.parameters |= dict(zip(parts, shapes, strict=True))
        return parts

    def conv(self, x: Name, weight: Name, bias: Name | None, layer: Conv2d, before: Shape, after: Shape) -> Name:
        """Compute A^T ((B^T x B) * (G w G^T)) A where `pays` says so, else as `OnnxOps`, or as `_conv_of_few`."""
        kernel = self.g.parameters[weight]
        if is_of_few(layer, kernel):
            return self._conv_of_few(x, weight, bias, layer, before, after)
        if not pays(layer, kernel, before, after):
            return super().conv(x, weight, bias, layer, before, after)
        raw, g = self.g.raw, self.g
        axes = v, h = _axes(layer, kernel, before)
        inner = raw("Gemm", self._taps(axes), raw("Reshape", weight, g.ints(-1, TAPS * TAPS)), transB=1)
        inner = raw("Reshape", inner, g.ints(-1, *kernel[:2]))
        pads = g.ints(v.before, h.before, 0, 0, v.after, h.after, 0, 0)
        wide = h.before + h.side + h.after
        # Two small constants, not their large sum: onnxruntime adds them when it loads the graph.
        places = [v.places[:, None, :, None] * wide, h.places[:, None, :]]
        taken = raw("Add", *(g.const(each, np.int64) for each in places))
        flat = raw("Reshape", raw("Pad", g.spatial(x), pads), g.ints((v.before + v.side + v.after) * wide, -1))
        tiles = raw("Gather", flat, taken, axis=0)  # [points, points, tiles, tiles, batch * channels]
        into = raw("Reshape", self._times(v.into, h.into, tiles), g.ints(v.points * h.points, -1, before[0]))
        self._filtered[layer.weight] = Filtering(axes, into, inner)
        products = raw("MatMul", into, raw("Transpose", inner, perm=[0, 2, 1]))
        y = raw("Reshape", self._times(v.out, h.out, products), g.ints(v.m, h.m, v.tiles, h.tiles, -1))
        y = raw("Transpose", y, perm=[2, 0, 3, 1, 4])
        y = raw("Reshape", y, g.ints(v.tiles * v.m, h.tiles * h.m, -1, after[0]))
        if (v.tiles * v.m, h.tiles * h.m) != after[1:]:
            y = raw("Slice", y, g.ints(0, 0), g.ints(*after[1:]), g.ints(0, 1))
        return g.lies(raw("Add", y, bias) if bias else y)

    def _conv_of_few(
        self, x: Name, weight: Name, bias: Name | None, layer: Conv2d, before: Shape, after: Shape
    ) -> Name:
        """Multiply the weight by a matrix of all input values that each output sees (im2col and one GEMM)."""
        raw, g, (_, _, kh, kw) = self.g.raw, self.g, self.g.parameters[weight]
        (pv, ph), (sv, sh), (dv, dh) = layer.padding, layer.stride, layer.dilation
        turned = g("Transpose", x, perm=[1, 2, 3, 0])  # [channels, height, width, batch]
        padded = g("Pad", turned, g.ints(0, pv, ph, 0, 0, pv, ph, 0)) if pv or ph else turned
        places = []
        for i in range(kh):
            line = g.slice(padded, 1, i * dv, i * dv + (after[1] - 1) * sv + 1, sv)
            for j in range(kw):
                place = g.slice(line, 2, j * dh, j * dh + (after[2] - 1) * sh + 1, sh)
                places.append(raw("Reshape", place, g.ints(before[0], 1, -1)))
        together = raw("Concat", *places, axis=1) if len(places) > 1 else places[0]
        places_by = raw("Reshape", together, g.ints(before[0] * kh * kw, -1))
        self._places[layer.weight] = places_by
        flat = raw("Reshape", weight, g.ints(after[0], -1))
        y = raw("Gemm", places_by, flat, *([bias] if bias else []), transA=1, transB=1)
        return g.lies(raw("Reshape", y, g.ints(*after[1:], -1, after[0])))

    def conv_dx(self, dy: Name, weight: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Apply the steps of `conv` in reverse, with all matrices transposed."""
        if not (filtering := self._filtered.get(layer.weight)):
            return super().conv_dx(dy, weight, layer, kernel, before, after)
        raw, g, (v, h) = self.g.raw, self.g, filtering.axes
        products = raw("MatMul", self._slope(filtering, dy, after), filtering.weight)
        x = raw("Reshape", products, g.ints(v.points, h.points, v.tiles, h.tiles, -1))
        x = raw("Transpose", x, perm=[0, 2, 1, 3, 4])
        x = raw("Reshape", x, g.ints(v.points * v.tiles, h.points * h.tiles, -1))
        x = raw("MatMul", g.const(h.back, np.float32), x)
        x = raw("MatMul", g.const(v.back, np.float32), raw("Reshape", x, g.ints(v.points * v.tiles, -1)))
        return g.lies(raw("Reshape", x, g.ints(*before[1:], -1, before[0])))

    def conv_dw(self, dy: Name, x: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Compute G^T (dY^T X) G, a product of operands that `conv` and `conv_dx` have transformed already."""
        raw, g = self.g.raw, self.g
        if places := self._places.get(layer.weight):
            products = raw("MatMul", places, raw("Reshape", g.spatial(dy), g.ints(-1, kernel[0])))
            return raw("Reshape", raw("Transpose", products, perm=[1, 0]), g.ints(*kernel))
        if not (filtering := self._filtered.get(layer.weight)):
            return super().conv_dw(dy, x, layer, kernel, before, after)
        slope = raw("Transpose", self._slope(filtering, dy, after), perm=[0, 2, 1])
        products = raw("Reshape", raw("MatMul", slope, filtering.x), g.ints(-1, math.prod(kernel[:2])))
        return raw("Reshape", raw("Gemm", products, self._taps(filtering.axes), transA=1), g.ints(*kernel))

    def _slope(self, filtering: Filtering, dy: Name, after: Shape) -> Name:
        """Return dy in the transformed domain, [points, tiles * batch, out]; computed once for both gradients."""
        if not filtering.dy:
            raw, g, (v, h) = self.g.raw, self.g, filtering.axes
            dy, more = g.spatial(dy), (v.tiles * v.m - after[1], h.tiles * h.m - after[2])
            dy = raw("Pad", dy, g.ints(0, 0, 0, 0, *more, 0, 0)) if any(more) else dy
            dy = raw("Reshape", dy, g.ints(v.tiles, v.m, h.tiles, h.m, -1))
            dy = self._times(v.out.T, h.out.T, raw("Transpose", dy, perm=[1, 3, 0, 2, 4]))
            filtering.dy = raw("Reshape", dy, g.ints(v.points * h.points, -1, after[0]))
        return filtering.dy

    def _taps(self, axes: Sequence[Axis]) -> Name:
        return self.g.const(np.kron(axes[0].taps, axes[1].taps), np.float32)

    def _times(self, vertical: Matrix, horizontal: Matrix, x: Name) -> Name:
        """Apply `vertical` to the first and `horizontal` to the second dimension of x, which may come flattened."""
        raw, g = self.g.raw, self.g
        x = raw("MatMul", g.const(vertical, np.float32), raw("Reshape", x, g.ints(vertical.shape[1], -1)))
        x = raw("Reshape", x, g.ints(len(vertical), horizontal.shape[1], -1))
        return raw("MatMul", g.const(horizontal, np.float32), x)

    def bias_grad(self, dy: Name, shape: Shape) -> Name:
        """Emit ReduceSum."""
        if not self.g.is_spatial(dy):
            return super().bias_grad(dy, shape)
        return self.g.raw("ReduceSum", dy, self.g.ints(0, 1, 2), keepdims=0)

    def mean(self, x: Name, axes: Sequence[int]) -> Name:
        """Emit ReduceMean."""
        if not self.g.is_spatial(x) or tuple(axes) != (1, 2):
            return super().mean(x, axes)
        flat = self.g.raw("ReduceMean", x, self.g.ints(0, 1), keepdims=0)
        return self.g("Unsqueeze", flat, self.g.ints(2, 3))

    def pool(self, x: Name, layer: MaxPool2d, before: Shape) -> tuple[Name, Name]:
        """Compare as `OnnxOps` does, whole rows of channels at a time."""
        g, (channels, *sides) = self.g, before
        if not g.is_spatial(x):
            return super().pool(x, layer, before)
        (kh, kw), (high, wide) = layer.size, (s // k for s, k in zip(sides, layer.size, strict=True))
        for axis_, side, kept in ((0, sides[0], high * kh), (1, sides[1], wide * kw)):
            if side != kept:
                x = g.raw("Slice", x, g.ints(0), g.ints(kept), g.ints(axis_))
        firsts: list[Name] = []
        x = self._first_of(g.raw("Reshape", x, g.ints(high * kh, wide, kw, -1)), 2, kw, firsts)
        x = self._first_of(g.raw("Reshape", x, g.ints(high, kh, wide, -1)), 1, kh, firsts)
        y = g.lies(g.raw("Reshape", x, g.ints(high, wide, -1, channels)))
        self._firsts[y] = firsts
        return y, y

    def pool_dx(self, dy: Name, winners: Name, layer: MaxPool2d, before: Shape) -> Name:
        """Undo the comparisons of `pool`, as `OnnxOps` does."""
        g, (channels, *sides) = self.g, before
        if not g.is_spatial(winners):
            return super().pool_dx(dy, winners, layer, before)
        firsts = [*self._firsts[winners]]
        (kh, kw), (high, wide) = layer.size, (s // k for s, k in zip(sides, layer.size, strict=True))
        dx = g.raw("Reshape", g.spatial(dy), g.ints(high, 1, wide, -1))
        dx = self._to_first(dx, 1, kh, firsts)
        dx = self._to_first(g.raw("Reshape", dx, g.ints(high * kh, wide, 1, -1)), 2, kw, firsts)
        dx = g.raw("Reshape", dx, g.ints(high * kh, wide * kw, -1, channels))
        rest = [side % size for side, size in zip(sides, layer.size, strict=True)]
        return g.lies(g.raw("Pad", dx, g.ints(0, 0, 0, 0, *rest, 0, 0)) if any(rest) else dx)

    def normalise(self, x: Name, layer: GroupNorm, shape: Shape) -> tuple[Name, Name]:
        """Normalise as `OnnxOps` does; the deviation is repeated for every channel, [batch * channels]."""
        g = self.g
        if not g.is_spatial(x):
            return super().normalise(x, layer, shape)
        flat = g.raw("Reshape", x, g.ints(math.prod(shape[1:]), -1))
        centred = g.raw("Sub", flat, self._group_mean(flat, layer, shape))
        variance = self._group_mean(g.raw("Mul", centred, centred), layer, shape)
        deviation = g.raw("Sqrt", g.raw("Add", variance, self.number(EPSILON)))
        y = g.raw("Mul", centred, g.raw("Reciprocal", deviation))
        return g.lies(g.raw("Reshape", y, g.ints(*shape[1:], -1, shape[0]))), deviation

    def normalise_dx(self, dy: Name, y: Name, deviation: Name, layer: GroupNorm, shape: Shape) -> Name:
        """Return the gradient of `normalise` with respect to x, by the formula in `Ops`."""
        g = self.g
        if not g.is_spatial(y):
            return super().normalise_dx(dy, y, deviation, layer, shape)
        flat = g.ints(math.prod(shape[1:]), -1)
        dy, y = g.raw("Reshape", g.spatial(dy), flat), g.raw("Reshape", y, flat)
        along = g.raw("Mul", y, self._group_mean(g.raw("Mul", y, dy), layer, shape))
        centred = g.raw("Sub", g.raw("Sub", dy, self._group_mean(dy, layer, shape)), along)
        dx = g.raw("Mul", centred, g.raw("Reciprocal", deviation))
        return g.lies(g.raw("Reshape", dx, g.ints(*shape[1:], -1, shape[0])))

    def _group_mean(self, flat: Name, layer: GroupNorm, shape: Shape) -> Name:
        """Return for every channel the mean of its group, [batch * channels], of values [places, batch * channels].

        One product with a constant matrix both sums over each group and repeats the result for its channels.
        """
        g, groups = self.g, layer.groups
        sums = g.raw("Reshape", g.raw("ReduceSum", flat, g.ints(0), keepdims=0), g.ints(-1, shape[0]))
        within = np.kron(np.eye(groups), np.full([shape[0] // groups] * 2, groups / math.prod(shape)))
        return g.raw("Reshape", g.raw("MatMul", sums, g.const(within, np.float32)), g.ints(-1))


def is_of_few(layer: Conv2d, kernel: Shape) -> bool:
    """True if a convolution, usually the first, is to be lowered to im2col and one GEMM: few inputs, many channels."""
    few = math.prod(kernel[2:]) > 1 and math.prod(kernel[1:]) <= _FEW
    return few and kernel[0] >= _MANY and layer.groups == 1


def pays(layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> bool:
    """True if minimal filtering should be faster than a direct convolution, with all transforms and both gradients.

    Counts multiplications only; a transform's count 1.5 times, as they are slower.
    """
    if max(layer.padding) >= TAPS:
        return False  # windows of padding alone are exactly 0, and products of whole tiles only nearly
    if kernel[2:] != (TAPS, TAPS) or (layer.stride, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1):
        return False
    (v, h), (out, channels) = _axes(layer, kernel, before), kernel[:2]
    tiles, points = v.tiles * h.tiles, v.points * h.points
    # Multiplications per channel: input into the domain, its gradient back (dense), outputs and dy between both.
    into = points * tiles * (v.points + h.points)
    back = v.points * v.tiles * h.back.size + v.back.size * before[2]
    between = 2 * tiles * v.points * h.m * (v.m + h.points)
    transforms = channels * (into + back) + out * between
    products = 3 * tiles * points * channels * out
    return _SLOWER * transforms + products < 3 * math.prod(kernel) * after[1] * after[2]


def _axes(layer: Conv2d, kernel: Shape, before: Shape) -> tuple[Axis, Axis]:
    """Return F(4, 3) or F(2, 3) for each axis, whichever takes fewer products.

    The horizontal axis has F(4, 3) only where few channels are summed: rounding errors grow with their number, and are
    twice as large with F(4, 3) on both axes as with F(2, 3) on one.
    """

    def best(dim: int, sizes: Sequence[int]) -> Axis:
        choices = [axis(before[1 + dim], layer.padding[dim], m) for m in sizes]
        return min(choices, key=lambda each: each.points * each.tiles)

    sizes = sorted(POINTS)
    return best(0, sizes), best(1, sizes if max(kernel[:2]) <= _SHORT else sizes[:1])
