"""Layers of a ModelSpec: their parameters, their checks, and the shapes of their outputs.  PROTOCOL 4.

Values are numbered: value 0 is the model's input, value i + 1 the output of layer i. A layer's input is the value
before it, unless its `source` names another; Add and Concat take several. Shapes are those of one example, without the
batch, and axes count its dimensions from 0. Only the tensors of Linear and Conv2d can be masked; the scale and shift of
a normalisation are exact (`spec.Tensor`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from seedmask.errors import SpecError

Shape: TypeAlias = tuple[int, ...]

MAX_ACTIVATION = 1 << 28
MAX_DIMENSIONS = 6
MAX_SOURCES = 1024
EPSILON = 1e-5
"""Constant that every normalisation adds to the variance before taking the root."""


def integers(what: str, values: Any, low: int, high: int, least: int = 0, most: int = 1 << 20) -> None:
    """Raise SpecError unless `values` is a tuple of `least` to `most` integers, each in low .. high."""
    if not isinstance(values, tuple) or not least <= len(values) <= most:
        count = f"{least}" if least == most else f"{least} to {most}"
        raise SpecError(f"{what}: {count} integers expected, found {values!r}")
    for value in values:
        if type(value) is not int or not low <= value <= high:
            raise SpecError(f"{what}: an integer {low} .. {high} expected, found {value!r}")


@dataclass(frozen=True, kw_only=True)
class Unary:
    """Layer with one input: value number `source`, or None for the value before it."""

    op: ClassVar[str]
    source: int | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that the layer uses, in the order of the spec."""
        return ()

    @property
    def exact(self) -> tuple[str, ...]:
        """Names of those tensors that must be exact: they cannot be masked or frozen."""
        return ()

    def takes(self, number: int) -> tuple[int, ...]:
        """Return the numbers of its input values, given that it is layer `number` of the network."""
        return (number if self.source is None else self.source,)

    def check(self, number: int) -> None:
        """Raise SpecError unless layer `number` takes an existing value; the usual `source` must be left out."""
        if self.source is not None:
            integers("source", (self.source,), 0, number)
            if self.source == number:
                raise SpecError(f"source {number} is the value before, which it takes anyway; leave it out")

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the output's shape, given `shapes` of the inputs and `tensors` by name; here the shape of the input.

        Raises SpecError if inputs, tensors and parameters do not fit together.
        """
        return shapes[0]


@dataclass(frozen=True)
class Weighted(Unary):
    """Layer that multiplies by a tensor `weight` and may add a second one, `bias` [out]; both are tensor names."""

    weight: str
    bias: str | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of weight and bias, in this order; without the bias if there is none."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def kernel(self, tensors: Mapping[str, Shape]) -> Shape:
        """Return the weight's shape, [out, ...]. Raises SpecError unless the bias has the shape [out]."""
        weight = tensors[self.weight]
        if self.bias is not None and tensors[self.bias] != weight[:1]:
            raise SpecError(f"{self.bias} is {list(tensors[self.bias])}, expected {list(weight[:1])}")
        return weight


@dataclass(frozen=True)
class Linear(Weighted):
    """Linear layer: y = x W^T + b over the last dimension, with W [out, in] and b [out]."""

    op: ClassVar[str] = "linear"

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return [..., out] for an input [..., in]. Raises SpecError if the weight does not fit."""
        weight, shape = self.kernel(tensors), shapes[0]
        if len(weight) != 2 or weight[1] != shape[-1]:
            raise SpecError(f"weight {list(weight)} does not take an input of {list(shape)}")
        return (*shape[:-1], weight[0])


@dataclass(frozen=True)
class Conv2d(Weighted):
    """Convolution in two dimensions, as cross-correlation: W [out, in / groups, kh, kw], b [out].

    `stride`, `padding` and `dilation` are (vertical, horizontal). `padding` adds zeros on both sides; kernel entries
    are `dilation` positions apart. Channels are divided into `groups` consecutive runs: run g of the output depends
    only on run g of the input.
    """

    op: ClassVar[str] = "conv2d"
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return [out, oh, ow] for an input [in, h, w], oh = (h + 2 padding - dilation (kh - 1) - 1) div stride + 1.

        `ow` likewise. Raises SpecError if a parameter is out of range or the weight does not fit.
        """
        weight, shape = self.kernel(tensors), shapes[0]
        integers("stride", self.stride, 1, 1 << 10, 2, 2)
        integers("padding", self.padding, 0, 1 << 10, 2, 2)
        integers("groups", (self.groups,), 1, 1 << 20)
        integers("dilation", self.dilation, 1, 1 << 10, 2, 2)
        if len(shape) != 3 or len(weight) != 4 or weight[1] * self.groups != shape[0] or weight[0] % self.groups:
            groups = f" in {self.groups} groups" if self.groups > 1 else ""
            raise SpecError(f"weight {list(weight)} does not take an input of {list(shape)}{groups}")
        sides = zip(shape[1:], weight[2:], self.stride, self.padding, self.dilation, strict=True)
        return (weight[0], *((side + 2 * p - d * (k - 1) - 1) // step + 1 for side, k, step, p, d in sides))


@dataclass(frozen=True)
class ReLU(Unary):
    """Rectifier: max(x, 0)."""

    op: ClassVar[str] = "relu"


@dataclass(frozen=True)
class ReLU6(Unary):
    """Rectifier with an upper bound: min(max(x, 0), 6)."""

    op: ClassVar[str] = "relu6"


@dataclass(frozen=True)
class GELU(Unary):
    """Gaussian error linear unit: x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415).

    `approximate`: "none" computes it with erf, "tanh" by the paper's approximation.
    """

    op: ClassVar[str] = "gelu"
    approximate: str = "none"

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the shape of the input. Raises SpecError if `approximate` is unknown."""
        if self.approximate not in ("none", "tanh"):
            raise SpecError(f"approximate is 'none' or 'tanh', found {self.approximate!r}")
        return shapes[0]


@dataclass(frozen=True)
class SiLU(Unary):
    """Sigmoid linear unit: x / (1 + exp(-x))."""

    op: ClassVar[str] = "silu"


@dataclass(frozen=True)
class Tanh(Unary):
    """Hyperbolic tangent."""

    op: ClassVar[str] = "tanh"


@dataclass(frozen=True)
class Sigmoid(Unary):
    """Logistic function: 1 / (1 + exp(-x))."""

    op: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Pool2d(Unary):
    """Pooling over windows of `size` (vertical, horizontal) that do not overlap; incomplete ones are dropped."""

    size: tuple[int, int]

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return [c, h div size, w div size] for an input [c, h, w]. Raises SpecError for an input of other rank."""
        integers("size", self.size, 1, 1 << 10, 2, 2)
        if len(shapes[0]) != 3:
            raise SpecError(f"takes channels x height x width, found {list(shapes[0])}")
        channels, high, wide = shapes[0]
        return (channels, high // self.size[0], wide // self.size[1])


@dataclass(frozen=True)
class MaxPool2d(Pool2d):
    """Maximum of each window."""

    op: ClassVar[str] = "maxpool2d"


@dataclass(frozen=True)
class AvgPool2d(Pool2d):
    """Mean of each window."""

    op: ClassVar[str] = "avgpool2d"


@dataclass(frozen=True)
class Mean(Unary):
    """Mean over `axes`, which are ascending and are removed from the shape; at least one dimension remains."""

    op: ClassVar[str] = "mean"
    axes: tuple[int, ...]

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the shape of the input without `axes`. Raises SpecError for invalid axes."""
        rank = len(shapes[0])
        integers("axes", self.axes, 0, rank - 1, 1, MAX_DIMENSIONS)
        if list(self.axes) != sorted(set(self.axes)) or len(self.axes) == rank:
            raise SpecError(f"axes ascend and leave one of {rank} dimensions at least, found {list(self.axes)}")
        return tuple(side for axis, side in enumerate(shapes[0]) if axis not in self.axes)


@dataclass(frozen=True)
class Flatten(Unary):
    """All dimensions of an example joined into one, in row-major order."""

    op: ClassVar[str] = "flatten"

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return [n], with n the number of values in the input."""
        return (math.prod(shapes[0]),)


@dataclass(frozen=True)
class Reshape(Unary):
    """Same values in another `shape`, in row-major order."""

    op: ClassVar[str] = "reshape"
    shape: Shape

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return `shape`. Raises SpecError unless it has as many values as the input."""
        integers("shape", self.shape, 1, MAX_ACTIVATION, 1, MAX_DIMENSIONS)
        if math.prod(self.shape) != math.prod(shapes[0]):
            raise SpecError(f"{list(shapes[0])} is not as many values as {list(self.shape)}")
        return self.shape


@dataclass(frozen=True)
class Permute(Unary):
    """Permutation of the dimensions: dimension i of the output is dimension order[i] of the input."""

    op: ClassVar[str] = "permute"
    order: tuple[int, ...]

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the permuted shape. Raises SpecError unless `order` is a permutation of the dimensions."""
        rank = len(shapes[0])
        integers("order", self.order, 0, rank - 1, rank, rank)
        if len(set(self.order)) != rank:
            raise SpecError(f"order names each of {rank} dimensions once, found {list(self.order)}")
        return tuple(shapes[0][axis] for axis in self.order)


class Norm(Unary):
    """Normalisation that may multiply its result by an exact tensor `scale` and add another, `shift`; None: without."""

    scale: str | None
    shift: str | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of scale and shift, in this order, without those that are None."""
        return tuple(name for name in (self.scale, self.shift) if name is not None)

    @property
    def exact(self) -> tuple[str, ...]:
        """Names of all its tensors: signs with a mask make no useful scale."""
        return self.tensors

    def fit(self, expected: Shape, tensors: Mapping[str, Shape]) -> None:
        """Raise SpecError unless its tensors have the shape `expected`."""
        for name in self.tensors:
            if tensors[name] != expected:
                raise SpecError(f"{name} is {list(tensors[name])}, expected {list(expected)}")


@dataclass(frozen=True)
class GroupNorm(Norm):
    """Group normalisation: (x - mean) / sqrt(variance + 1e-5) over each group of channels of one example.

    Wu and He, arXiv 1803.08494. The channels, the first dimension, are divided into `groups` consecutive runs. The
    variance is the mean of (x - mean)^2. `scale` and `shift` are [channels].
    """

    op: ClassVar[str] = "groupnorm"
    groups: int
    scale: str | None = None
    shift: str | None = None

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the shape of the input. Raises SpecError if groups or tensors do not fit it."""
        shape = shapes[0]
        integers("groups", (self.groups,), 1, 1 << 20)
        if shape[0] % self.groups or math.prod(shape) == self.groups:
            raise SpecError(f"{list(shape)} does not make {self.groups} equal groups of more than one value")
        self.fit(shape[:1], tensors)
        return shape


@dataclass(frozen=True)
class TrailingNorm(Norm):
    """Normalisation over the last `dims` dimensions, separately for each index of the others.

    `scale` has the shape of these dimensions.
    """

    dims: int
    scale: str | None = None

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the shape of the input. Raises SpecError if `dims` or tensors do not fit it."""
        shape = shapes[0]
        integers("dims", (self.dims,), 1, len(shape))
        if math.prod(shape[-self.dims :]) == 1:
            raise SpecError(f"the last {self.dims} of {list(shape)} hold a single value")
        self.fit(shape[-self.dims :], tensors)
        return shape


@dataclass(frozen=True)
class LayerNorm(TrailingNorm):
    """Layer normalisation: (x - mean) / sqrt(variance + 1e-5) over the last `dims` dimensions.

    Ba et al., arXiv 1607.06450. `scale` and `shift` have the shape of these dimensions.
    """

    op: ClassVar[str] = "layernorm"
    shift: str | None = None


@dataclass(frozen=True)
class RMSNorm(TrailingNorm):
    """Root mean square normalisation: x / sqrt(mean(x^2) + 1e-5) over the last `dims` dimensions.

    Zhang and Sennrich, arXiv 1910.07467. `scale` has the shape of these dimensions; there is no shift.
    """

    op: ClassVar[str] = "rmsnorm"
    shift: ClassVar[None] = None  # type: ignore[misc]  # the only normalisation without one


@dataclass(frozen=True)
class Several:
    """Layer with several inputs: the values numbered `sources`, at least two; one may occur more than once."""

    op: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[tuple[str, ...]] = ()
    sources: tuple[int, ...]

    def takes(self, number: int) -> tuple[int, ...]:
        """Return the numbers of its input values, given that it is layer `number` of the network."""
        return self.sources

    def check(self, number: int) -> None:
        """Raise SpecError unless layer `number` takes at least two values, all of which exist."""
        integers("sources", self.sources, 0, number, 2, MAX_SOURCES)


@dataclass(frozen=True)
class Add(Several):
    """Sum of values of one shape, added from left to right."""

    op: ClassVar[str] = "add"

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the shape of the inputs. Raises SpecError unless they all have the same."""
        for shape in shapes:
            if shape != shapes[0]:
                raise SpecError(f"{list(shapes[0])} and {list(shape)} cannot be added; shapes have to be the same")
        return shapes[0]


@dataclass(frozen=True)
class Concat(Several):
    """Concatenation of values along `axis`; their other dimensions are equal."""

    op: ClassVar[str] = "concat"
    axis: int

    def after(self, shapes: Sequence[Shape], tensors: Mapping[str, Shape]) -> Shape:
        """Return the joined shape: sizes along `axis` are added. Raises SpecError if other dimensions differ."""
        integers("axis", (self.axis,), 0, len(shapes[0]) - 1)
        before, behind = shapes[0][: self.axis], shapes[0][self.axis + 1 :]
        for shape in shapes:
            if len(shape) != len(shapes[0]) or (shape[: self.axis], shape[self.axis + 1 :]) != (before, behind):
                raise SpecError(f"{list(shapes[0])} and {list(shape)} do not fit together along axis {self.axis}")
        return (*before, sum(shape[self.axis] for shape in shapes), *behind)


Layer: TypeAlias = (
    Linear
    | Conv2d
    | ReLU
    | ReLU6
    | GELU
    | SiLU
    | Tanh
    | Sigmoid
    | MaxPool2d
    | AvgPool2d
    | Mean
    | Flatten
    | Reshape
    | Permute
    | GroupNorm
    | LayerNorm
    | RMSNorm
    | Add
    | Concat
)


def shapes_of(layers: Sequence[Layer], shape: Shape, tensors: Mapping[str, Shape]) -> list[Shape]:
    """Return the shape of every value of a network whose input has the given `shape`, len(layers) + 1 in all.

    `tensors`: shapes by name. Raises SpecError, which says which layer does not fit and why.
    """
    shapes = [shape]
    for number, layer in enumerate(layers):
        try:
            layer.check(number)
            after = layer.after([shapes[source] for source in layer.takes(number)], tensors)
            if not 1 <= len(after) <= MAX_DIMENSIONS or min(after) < 1 or math.prod(after) > MAX_ACTIVATION:
                raise SpecError(f"gives a shape of {list(after)}")
        except SpecError as error:
            raise SpecError(f"layer {number} ({layer.op}): {error}") from None
        shapes.append(after)
    return shapes
