"""The operations that a target must offer: the contract between a training step (`export.graph`) and its targets.

V is whatever the target calls a value: a tensor's name in ONNX, a tensor where the program is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from seedmask.layers import Conv2d, GroupNorm, MaxPool2d, Shape

V = TypeVar("V")


class Ops(Protocol[V]):
    """What a target must be able to emit. Values are float32 and activations [batch, ...] unless it says not.

    A `shape` argument is that of one example, without the batch, and axes count its dimensions; a `layer` carries
    stride, padding, groups, dilation or size.
    """

    def number(self, value: float) -> V:
        """A scalar constant."""

    def add(self, a: V, b: V) -> V:
        """a + b, elementwise with broadcasting."""

    def sub(self, a: V, b: V) -> V:
        """a - b."""

    def mul(self, a: V, b: V) -> V:
        """a * b."""

    def div(self, a: V, b: V) -> V:
        """a / b."""

    def sqrt(self, a: V) -> V:
        """The square root."""

    def sigmoid(self, a: V) -> V:
        """1 / (1 + exp(-a))."""

    def tanh(self, a: V) -> V:
        """The hyperbolic tangent."""

    def exp(self, a: V) -> V:
        """e to the power of a."""

    def erf(self, a: V) -> V:
        """The error function."""

    def minimum(self, a: V, b: V) -> V:
        """The smaller one, elementwise."""

    def less(self, a: V, b: V) -> V:
        """1.0 where a < b, else 0.0."""

    def choose(self, condition: V, yes: Callable[[], V], no: Callable[[], V]) -> V:
        """yes() if the boolean [] holds, else no(); only the one that is chosen is computed."""

    def split(self, flat: V, shapes: Sequence[Shape]) -> list[V]:
        """A flat vector [d] as tensors of `shapes`, in order."""

    def join(self, parts: Sequence[V]) -> V:
        """The inverse of `split`."""

    def reshape(self, x: V, shape: Shape) -> V:
        """Each example in another shape of the same size."""

    def rows(self, x: V, width: int) -> V:
        """[batch, ..., width] as [batch * ..., width]."""

    def unrows(self, x: V, shape: Shape) -> V:
        """The inverse of `rows`: [batch, *shape]."""

    def mean(self, x: V, axes: Sequence[int]) -> V:
        """The mean over `axes`, each of which stays as a dimension of 1."""

    def spread(self, x: V, shape: Shape) -> V:
        """x, with dimensions of 1 or a scalar, repeated to [batch, *shape]."""

    def transpose(self, x: V, order: Sequence[int]) -> V:
        """Dimension i of the result is dimension order[i] of x."""

    def concat(self, parts: Sequence[V], axis: int) -> V:
        """One after another along `axis`."""

    def slice(self, x: V, axis: int, start: int, stop: int) -> V:
        """Places start .. stop - 1 along `axis`."""

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """The layer Linear, x [n, in]."""

    def linear_dx(self, dy: V, weight: V) -> V:
        """Its gradient by x."""

    def linear_dw(self, dy: V, x: V) -> V:
        """Its gradient by the weight, [out, in]."""

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d, before: Shape, after: Shape) -> V:
        """The layer Conv2d. Shapes: `before` of x, `after` of the result."""

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Its gradient by x. Shapes: `before` of x, `after` of dy, `kernel` of W, [out, in / groups, kh, kw]."""

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Its gradient by the weight, [out, in / groups, kh, kw]."""

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """The sum of dy over all but its channels (the first dimension of `shape`), [out]."""

    def relu(self, x: V) -> V:
        """max(x, 0)."""

    def relu_dx(self, dy: V, y: V) -> V:
        """dy where the layer's output y is above zero, else 0."""

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """The layer MaxPool2d, and which entry of each window won (the first of equals)."""

    def pool_dx(self, dy: V, winners: V, layer: MaxPool2d, before: Shape) -> V:
        """dy at the winners, 0 elsewhere."""

    def normalise(self, x: V, layer: GroupNorm, shape: Shape) -> tuple[V, V]:
        """The layer GroupNorm, and each group's standard deviation."""

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """Its gradient by x: (dy - mean(dy) - y mean(y dy)) / deviation, means over the group."""

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Loss [] = sum(weight * nats); correct int64 [] where weight > 0; the loss's gradient by the logits.

        y int64 [batch], weight [batch].
        """

    def squared_error(self, outputs: V, y: V, weight: V) -> tuple[V, V, V]:
        """Loss [] = sum(weight * mean((outputs - y)^2)); correct int64 [] = 0; the loss's gradient by the outputs.

        outputs and y [batch, outputs], weight [batch]; the mean is over an example's outputs.
        """
