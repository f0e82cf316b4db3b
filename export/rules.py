"""Output and gradient of each layer, once for all targets, in the few operations of `export.ops.Ops`.

A layer that targets compute better as a whole (products, convolutions, pooling, GroupNorm) is an operation of its own.
All other layers are composed here from elementary operations, so that a new target need not write them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final, TypeVar

from export.ops import Ops
from seedmask.layers import (
    EPSILON,
    GELU,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GroupNorm,
    Layer,
    LayerNorm,
    Linear,
    MaxPool2d,
    Mean,
    Norm,
    Permute,
    ReLU,
    ReLU6,
    Reshape,
    RMSNorm,
    Shape,
    Sigmoid,
    SiLU,
    Tanh,
    TrailingNorm,
)

V = TypeVar("V")

# GELU's approximation: Phi(x) = (1 + tanh(_BEND (x + _CUBE x^3))) / 2.
_BEND: Final = math.sqrt(2 / math.pi)
_CUBE: Final = 0.044715


def forward(
    ops: Ops[V], layer: Layer, xs: Sequence[V], before: Sequence[Shape], after: Shape, weights: dict[str, V]
) -> tuple[V, tuple[V, ...]]:
    """Return the output of `layer` and what its gradient will need.

    `xs` are the layer's inputs, of shapes `before`; the output has shape `after`. All shapes are those of one example.
    The second result is a tuple of values, which `backward` takes as `saved`.
    """
    x, shape = xs[0], before[0]
    match layer:
        case Linear():
            rows = x if len(shape) == 1 else ops.rows(x, shape[-1])
            y = ops.linear(rows, weights[layer.weight], weights[layer.bias] if layer.bias else None)
            return (y if len(shape) == 1 else ops.unrows(y, after)), (rows,)
        case Conv2d():
            bias = weights[layer.bias] if layer.bias else None
            return ops.conv(x, weights[layer.weight], bias, layer, shape, after), (x,)
        case ReLU():
            y = ops.relu(x)
            return y, (y,)
        case ReLU6():
            y = ops.minimum(ops.relu(x), ops.number(6.0))
            return y, (y,)
        case GELU():
            gate = _phi(ops, x, layer)
            return ops.mul(x, gate), (x, gate)
        case SiLU():
            gate = ops.sigmoid(x)
            y = ops.mul(x, gate)
            return y, (y, gate)
        case Tanh():
            y = ops.tanh(x)
            return y, (y,)
        case Sigmoid():
            y = ops.sigmoid(x)
            return y, (y,)
        case MaxPool2d():
            y, winners = ops.pool(x, layer, shape)
            return y, (winners,)
        case AvgPool2d():
            for axis, (side, size) in enumerate(zip(shape[1:], layer.size, strict=True), 1):
                x = ops.slice(x, axis, 0, side // size * size) if side % size else x
            return ops.reshape(ops.mean(ops.reshape(x, _windows(layer, after)), (2, 4)), after), ()
        case Mean():
            return ops.reshape(ops.mean(x, layer.axes), after), ()
        case Flatten() | Reshape():
            return ops.reshape(x, after), ()
        case Permute():
            return ops.transpose(x, layer.order), ()
        case GroupNorm():
            y, deviation = ops.normalise(x, layer, shape)
            return _affine(ops, layer, y, weights), (y, deviation)
        case LayerNorm():
            groups, runs = _runs(layer, shape)
            y, deviation = ops.normalise(ops.reshape(x, runs), groups, runs)
            return _affine(ops, layer, ops.reshape(y, shape), weights), (y, deviation)
        case RMSNorm():
            squares = ops.mean(ops.mul(x, x), _trailing(layer, shape))
            deviation = ops.sqrt(ops.add(squares, ops.number(EPSILON)))
            y = ops.div(x, deviation)
            return _affine(ops, layer, y, weights), (y, deviation)
        case Add():
            for other in xs[1:]:
                x = ops.add(x, other)
            return x, ()
        case Concat():
            return ops.concat(xs, layer.axis), ()


def backward(
    ops: Ops[V],
    layer: Layer,
    dy: V,
    saved: tuple[V, ...],
    before: Sequence[Shape],
    after: Shape,
    weights: dict[str, V],
    kernel: Shape,
    wanted: Sequence[bool],
    learnt: Collection[str],
) -> tuple[list[V | None], dict[str, V]]:
    """Return the loss's gradients with respect to the inputs of `layer`, and with respect to its tensors.

    dy is the gradient with respect to the layer's output, of shape `after`; `saved` is the second result of `forward`;
    `kernel` is the shape of the layer's weight, () if it has none. The first result has one gradient per input, None
    where `wanted` is False. The second has the gradients of the tensors named in `learnt`.
    """
    one, shape = ops.number(1.0), before[0]
    grads: dict[str, V] = {}
    dx: V | None = None
    match layer:
        case Linear():
            dy = dy if len(shape) == 1 else ops.rows(dy, after[-1])
            if layer.bias and layer.bias in learnt:
                grads[layer.bias] = ops.bias_grad(dy, after[-1:])
            if layer.weight in learnt:
                grads[layer.weight] = ops.linear_dw(dy, saved[0])
            if wanted[0]:
                dx = ops.linear_dx(dy, weights[layer.weight])
                dx = dx if len(shape) == 1 else ops.unrows(dx, shape)
        case Conv2d():
            if layer.bias and layer.bias in learnt:
                grads[layer.bias] = ops.bias_grad(dy, after)
            if layer.weight in learnt:
                grads[layer.weight] = ops.conv_dw(dy, saved[0], layer, kernel, shape, after)
            if wanted[0]:
                dx = ops.conv_dx(dy, weights[layer.weight], layer, kernel, shape, after)
        case ReLU():
            dx = ops.relu_dx(dy, saved[0])
        case ReLU6():
            dx = ops.relu_dx(ops.mul(dy, ops.less(saved[0], ops.number(6.0))), saved[0])
        case GELU():
            dx = ops.mul(dy, ops.add(saved[1], ops.mul(saved[0], _phi_slope(ops, saved[0], saved[1], layer))))
        case SiLU():
            y, gate = saved
            dx = ops.mul(dy, ops.add(gate, ops.mul(y, ops.sub(one, gate))))
        case Tanh():
            dx = ops.mul(dy, ops.sub(one, ops.mul(saved[0], saved[0])))
        case Sigmoid():
            dx = ops.mul(dy, ops.mul(saved[0], ops.sub(one, saved[0])))
        case MaxPool2d():
            dx = ops.pool_dx(dy, saved[0], layer, shape)
        case AvgPool2d():
            dx = _average_dx(ops, dy, layer, shape, after)
        case Mean():
            kept = tuple(1 if axis in layer.axes else side for axis, side in enumerate(shape))
            share = ops.number(math.prod(kept) / math.prod(shape))
            dx = ops.spread(ops.mul(ops.reshape(dy, kept), share), shape)
        case Flatten() | Reshape():
            dx = ops.reshape(dy, shape)
        case Permute():
            dx = ops.transpose(dy, tuple(layer.order.index(axis) for axis in range(len(shape))))
        case GroupNorm():
            dy = _affine_back(ops, layer, dy, saved[0], shape, weights, grads)
            if wanted[0]:
                dx = ops.normalise_dx(dy, saved[0], saved[1], layer, shape)
        case LayerNorm():
            groups, runs = _runs(layer, shape)
            y = ops.reshape(saved[0], shape) if layer.scale else saved[0]
            dy = _affine_back(ops, layer, dy, y, shape, weights, grads)
            if wanted[0]:
                dx = ops.reshape(ops.normalise_dx(ops.reshape(dy, runs), saved[0], saved[1], groups, runs), shape)
        case RMSNorm():
            y, deviation = saved
            dy = _affine_back(ops, layer, dy, y, shape, weights, grads)
            if wanted[0]:
                along = ops.mul(y, ops.mean(ops.mul(y, dy), _trailing(layer, shape)))
                dx = ops.div(ops.sub(dy, along), deviation)
        case Add():
            return [dy if want else None for want in wanted], grads
        case Concat():
            ends = [sum(s[layer.axis] for s in before[: i + 1]) for i in range(len(before))]
            cuts = [(end - s[layer.axis], end) for s, end in zip(before, ends, strict=True)]
            parts = [ops.slice(dy, layer.axis, *cut) if want else None for cut, want in zip(cuts, wanted, strict=True)]
            return parts, grads
    return [dx], grads


def _affine(ops: Ops[V], layer: Norm, y: V, weights: dict[str, V]) -> V:
    """Return normalised values y times the layer's scale plus its shift, where it has them.

    `export.graph.unpack` gives scale and shift shapes that broadcast against y.
    """
    y = ops.mul(y, weights[layer.scale]) if layer.scale else y
    return ops.add(y, weights[layer.shift]) if layer.shift else y


def _affine_back(
    ops: Ops[V],
    layer: GroupNorm | LayerNorm | RMSNorm,
    dy: V,
    y: V,
    shape: Shape,
    weights: dict[str, V],
    grads: dict[str, V],
) -> V:
    """Return the gradient with respect to the normalised values y, before scale and shift.

    Put the gradients of scale and shift, flat vectors, into `grads`.
    """

    def summed(by: V) -> V:
        if isinstance(layer, GroupNorm):
            return ops.bias_grad(by, shape)
        width = math.prod(shape[axis] for axis in _trailing(layer, shape))
        return ops.bias_grad(ops.rows(by, width), (width,))

    if layer.shift:
        grads[layer.shift] = summed(dy)
    if not layer.scale:
        return dy
    grads[layer.scale] = summed(ops.mul(dy, y))
    return ops.mul(dy, weights[layer.scale])


def _phi(ops: Ops[V], x: V, layer: GELU) -> V:
    """Return the normal distribution's cumulative function at x, by tanh if the layer approximates it."""
    if layer.approximate == "tanh":
        cube = ops.mul(ops.number(_CUBE), ops.mul(x, ops.mul(x, x)))
        bent = ops.tanh(ops.mul(ops.number(_BEND), ops.add(x, cube)))
    else:
        bent = ops.erf(ops.mul(x, ops.number(math.sqrt(0.5))))
    return ops.mul(ops.number(0.5), ops.add(ops.number(1.0), bent))


def _phi_slope(ops: Ops[V], x: V, gate: V, layer: GELU) -> V:
    """Return the derivative of `_phi` at x, given its value `gate`."""
    square = ops.mul(x, x)
    if layer.approximate == "tanh":
        inner = ops.add(ops.number(2 * _BEND), ops.mul(ops.number(6 * _BEND * _CUBE), square))
        return ops.mul(ops.mul(gate, ops.sub(ops.number(1.0), gate)), inner)
    return ops.mul(ops.number(1 / math.sqrt(2 * math.pi)), ops.exp(ops.mul(ops.number(-0.5), square)))


def _windows(layer: AvgPool2d, after: Shape) -> Shape:
    """Return the shape of an image cut into windows: dimensions 2 and 4 are the rows and columns inside a window."""
    return (after[0], after[1], layer.size[0], after[2], layer.size[1])


def _average_dx(ops: Ops[V], dy: V, layer: AvgPool2d, shape: Shape, after: Shape) -> V:
    share = ops.mul(dy, ops.number(1 / math.prod(layer.size)))
    windows = _windows(layer, after)
    apart = ops.spread(ops.reshape(share, (after[0], after[1], 1, after[2], 1)), windows)
    sides = (shape[0], after[1] * layer.size[0], after[2] * layer.size[1])
    dx = ops.reshape(apart, sides)
    for axis in (1, 2):  # nothing where incomplete windows were dropped
        if rest := shape[axis] - sides[axis]:
            gap = (*shape[:axis], rest, *sides[axis + 1 :])
            dx = ops.concat([dx, ops.spread(ops.number(0.0), gap)], axis)
    return dx


def _runs(layer: LayerNorm, shape: Shape) -> tuple[GroupNorm, Shape]:
    """Return the GroupNorm that computes a LayerNorm, and the shape it takes.

    A LayerNorm over the last dimensions is a GroupNorm that takes everything before them as channels, one to a group.
    """
    lead = math.prod(shape[: -layer.dims])
    return GroupNorm(lead), (lead, math.prod(shape) // lead)


def _trailing(layer: TrailingNorm, shape: Shape) -> tuple[int, ...]:
    return tuple(range(len(shape) - layer.dims, len(shape)))
