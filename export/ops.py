"""Operations that a target must offer: the contract between a training step (`export.graph`) and its targets.

V is the type of a target's values: the name of a tensor in ONNX, a tensor where torch traces the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from seedmask.layers import Conv2d, GroupNorm, MaxPool2d, Shape

V = TypeVar("V")


class Ops(Protocol[V]):
    """Operations that a target must be able to emit.

    Unless said otherwise, values are float32 and activations are [batch, ...]. A `shape` argument is the shape of one
    example, without the batch, and axes count the dimensions of one example. A `layer` carries stride, padding, groups,
    dilation or window size. `dy` is the gradient of the loss with respect to an operation's output.
    """

    def number(self, value: float) -> V:
        """Return a scalar constant."""

    def add(self, a: V, b: V) -> V:
        """Return a + b, elementwise with broadcasting."""

    def sub(self, a: V, b: V) -> V:
        """Return a - b, elementwise with broadcasting."""

    def mul(self, a: V, b: V) -> V:
        """Return a * b, elementwise with broadcasting."""

    def div(self, a: V, b: V) -> V:
        """Return a / b, elementwise with broadcasting."""

    def sqrt(self, a: V) -> V:
        """Return the square root of each element."""

    def sigmoid(self, a: V) -> V:
        """Return 1 / (1 + exp(-a)), elementwise."""

    def tanh(self, a: V) -> V:
        """Return the hyperbolic tangent of each element."""

    def exp(self, a: V) -> V:
        """Return e to the power of each element."""

    def erf(self, a: V) -> V:
        """Return the error function of each element."""

    def minimum(self, a: V, b: V) -> V:
        """Return the smaller of a and b, elementwise."""

    def less(self, a: V, b: V) -> V:
        """Return 1.0 where a < b, else 0.0."""

    def choose(self, condition: V, yes: Callable[[], V], no: Callable[[], V]) -> V:
        """Return yes() if the boolean `condition` [] holds, else no(); compute only the branch that is chosen."""

    def split(self, flat: V, shapes: Sequence[Shape]) -> list[V]:
        """Return the flat vector [d] cut into tensors of `shapes`, in order."""

    def join(self, parts: Sequence[V]) -> V:
        """Return all parts as one flat vector [d], in order: the inverse of `split`."""

    def reshape(self, x: V, shape: Shape) -> V:
        """Return x with each example reshaped to `shape`, which has the same number of elements."""

    def rows(self, x: V, width: int) -> V:
        """Return x [batch, ..., width] as [batch * ..., width]."""

    def unrows(self, x: V, shape: Shape) -> V:
        """Return x as [batch, *shape]: the inverse of `rows`."""

    def mean(self, x: V, axes: Sequence[int]) -> V:
        """Return the mean over `axes`, each of which is kept as a dimension of 1."""

    def spread(self, x: V, shape: Shape) -> V:
        """Return x, whose dimensions may be 1 or which may be a scalar, repeated to [batch, *shape]."""

    def transpose(self, x: V, order: Sequence[int]) -> V:
        """Return x with its dimensions permuted: dimension i of the result is dimension order[i] of x."""

    def concat(self, parts: Sequence[V], axis: int) -> V:
        """Return the parts concatenated along `axis`."""

    def slice(self, x: V, axis: int, start: int, stop: int) -> V:
        """Return elements start .. stop - 1 of x along `axis`."""

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """Return the output of layer Linear for x [n, in]."""

    def linear_dx(self, dy: V, weight: V) -> V:
        """Return the gradient of layer Linear with respect to its input, [n, in]."""

    def linear_dw(self, dy: V, x: V) -> V:
        """Return the gradient of layer Linear with respect to its weight, [out, in]."""

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d, before: Shape, after: Shape) -> V:
        """Return the output of layer Conv2d. `before` is the shape of x, `after` that of the result."""

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Return the gradient of layer Conv2d with respect to its input.

        `before` is the shape of x, `after` that of dy, `kernel` that of the weight, [out, in / groups, kh, kw].
        """

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Return the gradient of layer Conv2d with respect to its weight, [out, in / groups, kh, kw]."""

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """Return dy summed over everything but its channels (the first dimension of `shape`), [out]."""

    def relu(self, x: V) -> V:
        """Return max(x, 0), elementwise."""

    def relu_dx(self, dy: V, y: V) -> V:
        """Return dy where the layer's output y is above zero, else 0."""

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """Return the output of layer MaxPool2d, and which element of each window won (the first of equal ones)."""

    def pool_dx(self, dy: V, winners: V, layer: MaxPool2d, before: Shape) -> V:
        """Return dy at the winners that `pool` returned, 0 elsewhere."""

    def normalise(self, x: V, layer: GroupNorm, shape: Shape) -> tuple[V, V]:
        """Return the output of layer GroupNorm without scale and shift, and the standard deviation of each group."""

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """Return the gradient of `normalise` with respect to x.

        It is (dy - mean(dy) - y mean(y dy)) / deviation, with means over each group.
        """

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Return the loss, the number of correct predictions, and the loss's gradient with respect to the logits.

        The loss [] is sum(weight * nats). `correct`, int64 [], counts examples whose weight is above 0. y int64
        [batch], weight float32 [batch].
        """

    def squared_error(self, outputs: V, y: V, weight: V) -> tuple[V, V, V]:
        """Return the loss, 0 correct predictions, and the loss's gradient with respect to the outputs.

        The loss [] is sum(weight * mean((outputs - y)^2)), the mean over the outputs of an example; `correct`, int64
        [], is always 0. outputs and y [batch, outputs], weight [batch].
        """
