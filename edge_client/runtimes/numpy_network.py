"""Network of a ModelSpec in NumPy, float64: the output of every layer and its gradient, written out.

The `reference` runtime trains with it. It is slow and easy to read; where PROTOCOL 4 leaves a doubt, it decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
    Pool2d,
    ReLU,
    ReLU6,
    Reshape,
    RMSNorm,
    Sigmoid,
    SiLU,
    Tanh,
)
from seedmask.spec import ModelSpec

F64 = npt.NDArray[np.float64]


def forward(spec: ModelSpec, x: F64, tensors: dict[str, F64]) -> tuple[F64, list[Any]]:
    """Return the last layer's output, float64 [n, classes], and the tape: what each layer saves for `backward`.

    x: float64 [n, *input]. tensors: every tensor of `spec` by name, float64.
    """
    values, tape = [x], []
    for number, layer in enumerate(spec.layers):
        y, saved = _apply(layer, [values[value] for value in layer.takes(number)], tensors)
        values.append(y)
        tape.append(saved)
    return values[-1], tape


def backward(spec: ModelSpec, tensors: dict[str, F64], tape: list[Any], dy: F64) -> dict[str, F64]:
    """Return the gradient of the loss by every tensor, by name.

    tape: from `forward`. dy: gradient of the loss by the last layer's output, float64 [n, classes].
    """
    grads: dict[str, F64] = {}
    by_value: dict[int, F64] = {len(spec.layers): dy}
    for number in range(len(spec.layers) - 1, -1, -1):
        layer = spec.layers[number]
        dxs = _back(layer, by_value.pop(number + 1), tape[number], tensors, grads)
        for value, dx in zip(layer.takes(number), dxs, strict=True):
            by_value[value] = by_value.get(value, 0) + dx
    return grads


def _apply(layer: Layer, xs: Sequence[F64], tensors: dict[str, F64]) -> tuple[F64, Any]:
    """Return the output of one layer, and what `_back` needs of it."""
    x = xs[0]
    match layer:
        case Linear():
            y = x @ tensors[layer.weight].T
            return (y + tensors[layer.bias] if layer.bias else y), x
        case Conv2d():
            padded = _pad(x, layer)
            y = _conv(padded, tensors[layer.weight], layer)
            return (y + tensors[layer.bias][:, None, None] if layer.bias else y), padded
        case ReLU():
            return np.maximum(x, 0), x > 0
        case ReLU6():
            return np.clip(x, 0, 6), (x > 0) & (x < 6)
        case GELU() | SiLU() | Tanh() | Sigmoid():
            return _smooth(layer, x)
        case MaxPool2d():
            windows = _windows(x, layer)
            winners = windows.argmax(axis=-1)  # of equal values the first wins
            return np.take_along_axis(windows, winners[..., None], axis=-1)[..., 0], (x.shape, winners)
        case AvgPool2d():
            return _windows(x, layer).mean(axis=-1), x.shape
        case Mean():
            return x.mean(axis=tuple(axis + 1 for axis in layer.axes)), x.shape
        case Flatten():
            return x.reshape(len(x), math.prod(x.shape[1:])), x.shape
        case Reshape():
            return x.reshape(len(x), *layer.shape), x.shape
        case Permute():
            return x.transpose(0, *(axis + 1 for axis in layer.order)), None
        case GroupNorm():
            y, saved = _normalise(x, x.reshape(len(x), layer.groups, -1))
            return _affine(layer, y, tensors), saved
        case LayerNorm():
            y, saved = _normalise(x, x.reshape(*x.shape[: -layer.dims], -1))
            return _affine(layer, y, tensors), saved
        case RMSNorm():
            runs = x.reshape(*x.shape[: -layer.dims], -1)
            root = np.sqrt((runs * runs).mean(axis=-1, keepdims=True) + EPSILON)
            return _affine(layer, (runs / root).reshape(x.shape), tensors), (runs / root, root)
        case Add():
            return sum(xs[1:], xs[0]), len(xs)
        case Concat():
            return np.concatenate(xs, axis=layer.axis + 1), np.cumsum([x.shape[layer.axis + 1] for x in xs])[:-1]


def _back(layer: Layer, dy: F64, saved: Any, tensors: dict[str, F64], grads: dict[str, F64]) -> list[F64]:
    """Return the gradients by the inputs of a layer, and add those by its tensors to `grads`."""
    match layer:
        case Linear():
            rows = dy.reshape(-1, dy.shape[-1])
            grads[layer.weight] = rows.T @ saved.reshape(-1, saved.shape[-1])
            if layer.bias:
                grads[layer.bias] = rows.sum(axis=0)
            return [dy @ tensors[layer.weight]]
        case Conv2d():
            if layer.bias:
                grads[layer.bias] = dy.sum(axis=(0, 2, 3))
            grads[layer.weight], dx = _conv_back(dy, saved, tensors[layer.weight], layer)
            return [dx]
        case ReLU() | ReLU6() | GELU() | SiLU() | Tanh() | Sigmoid():
            return [dy * saved]  # the slope
        case MaxPool2d():
            shape, winners = saved
            windows = np.zeros((*winners.shape, math.prod(layer.size)))
            np.put_along_axis(windows, winners[..., None], dy[..., None], axis=-1)
            return [_unwindow(windows, layer, shape)]
        case AvgPool2d():
            size = math.prod(layer.size)
            return [_unwindow(np.repeat(dy[..., None] / size, size, axis=-1), layer, saved)]
        case Mean():
            axes = tuple(axis + 1 for axis in layer.axes)
            count = math.prod(saved[axis] for axis in axes)
            return [np.broadcast_to(np.expand_dims(dy, axes) / count, saved)]
        case Flatten() | Reshape():
            return [dy.reshape(saved)]
        case Permute():
            return [dy.transpose(0, *(layer.order.index(axis) + 1 for axis in range(len(layer.order))))]
        case GroupNorm() | LayerNorm() | RMSNorm():
            normal, root = saved
            by = _affine_back(layer, dy, normal.reshape(dy.shape), tensors, grads).reshape(normal.shape)
            along = normal * (normal * by).mean(axis=-1, keepdims=True)
            centre = 0 if isinstance(layer, RMSNorm) else by.mean(axis=-1, keepdims=True)
            return [((by - centre - along) / root).reshape(dy.shape)]
        case Add():
            return [dy] * saved
        case Concat():
            return np.split(dy, saved, axis=layer.axis + 1)


def _smooth(layer: GELU | SiLU | Tanh | Sigmoid, x: F64) -> tuple[F64, F64]:
    """Return the values of an activation function and its slope at x."""
    if isinstance(layer, Tanh):
        y = np.tanh(x)
        return y, 1 - y * y
    if isinstance(layer, GELU) and layer.approximate == "tanh":
        root, cube = math.sqrt(2 / math.pi), 0.044715
        gate = (1 + np.tanh(root * (x + cube * x**3))) / 2
        slope = 2 * gate * (1 - gate) * root * (1 + 3 * cube * x * x)
    elif isinstance(layer, GELU):
        gate = (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))) / 2
        slope = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    else:
        gate = 1 / (1 + np.exp(-x))
        slope = gate * (1 - gate)
    if isinstance(layer, Sigmoid):
        return gate, slope
    return x * gate, gate + x * slope


def _affine(layer: Norm, y: F64, tensors: dict[str, F64]) -> F64:
    """Return normalised values `y` with the layer's scale and shift applied."""
    if layer.scale:
        y = y * _beside(layer, tensors[layer.scale], y)
    return y + _beside(layer, tensors[layer.shift], y) if layer.shift else y


def _affine_back(layer: Norm, dy: F64, normal: F64, tensors: dict[str, F64], grads: dict[str, F64]) -> F64:
    """Return the gradient by the normalised values, and add those by scale and shift to `grads`."""
    for name, by in ((layer.scale, dy * normal), (layer.shift, dy)):
        if name:
            shape = tensors[name].shape
            kept = (0, *range(2, dy.ndim)) if isinstance(layer, GroupNorm) else tuple(range(dy.ndim - len(shape)))
            grads[name] = by.sum(axis=kept)
    return dy * _beside(layer, tensors[layer.scale], dy) if layer.scale else dy


def _beside(layer: Norm, values: F64, x: F64) -> F64:
    """Return a scale or shift in a shape that broadcasts against x [n, ...]; GroupNorm's become [C, 1, 1]."""
    return values.reshape(-1, *(1,) * (x.ndim - 2)) if isinstance(layer, GroupNorm) else values


def _normalise(x: F64, runs: F64) -> tuple[F64, tuple[F64, F64]]:
    root = np.sqrt(runs.var(axis=-1, keepdims=True) + EPSILON)
    normal = (runs - runs.mean(axis=-1, keepdims=True)) / root
    return normal.reshape(x.shape), (normal, root)


def _pad(x: F64, layer: Conv2d) -> F64:
    vertical, horizontal = layer.padding
    return np.pad(x, ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal)))


def _tap(padded: F64, i: int, j: int, layer: Conv2d, sides: tuple[int, int]) -> F64:
    """Return the inputs that kernel entry (i, j) is multiplied by, one per output position: a view [n, C, *sides]."""
    (down, right), (rows, columns) = layer.stride, sides
    top, left = i * layer.dilation[0], j * layer.dilation[1]
    return padded[:, :, top : top + (rows - 1) * down + 1 : down, left : left + (columns - 1) * right + 1 : right]


def _group(x: F64, group: int, groups: int, axis: int) -> F64:
    """Return the channels of one of `groups` groups along `axis`: a view."""
    size = x.shape[axis] // groups
    return x[(slice(None),) * axis + (slice(group * size, (group + 1) * size),)]


def _conv(padded: F64, weight: F64, layer: Conv2d) -> F64:
    out, _, kh, kw = weight.shape
    rows = (padded.shape[2] - layer.dilation[0] * (kh - 1) - 1) // layer.stride[0] + 1
    columns = (padded.shape[3] - layer.dilation[1] * (kw - 1) - 1) // layer.stride[1] + 1
    y = np.zeros((len(padded), out, rows, columns))
    for group in range(layer.groups):
        seen, w = _group(padded, group, layer.groups, 1), _group(weight, group, layer.groups, 0)
        into = _group(y, group, layer.groups, 1)
        for i in range(kh):
            for j in range(kw):
                tap = _tap(seen, i, j, layer, (rows, columns))
                into += np.tensordot(tap, w[:, :, i, j], axes=([1], [1])).transpose(0, 3, 1, 2)
    return y


def _conv_back(dy: F64, padded: F64, weight: F64, layer: Conv2d) -> tuple[F64, F64]:
    """Return the gradients by the weight and by x, without its padding."""
    dw, dx, sides = np.empty_like(weight), np.zeros_like(padded), (dy.shape[2], dy.shape[3])
    for group in range(layer.groups):
        by, seen, into = (_group(part, group, layer.groups, 1) for part in (dy, padded, dx))
        w, dw_ = _group(weight, group, layer.groups, 0), _group(dw, group, layer.groups, 0)
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                tap = _tap(seen, i, j, layer, sides)
                dw_[:, :, i, j] = np.tensordot(by, tap, axes=([0, 2, 3], [0, 2, 3]))
                back = np.tensordot(by, w[:, :, i, j], axes=([1], [0]))
                _tap(into, i, j, layer, sides)[...] += back.transpose(0, 3, 1, 2)
    (vertical, horizontal), (_, _, high, wide) = layer.padding, padded.shape
    return dw, dx[:, :, vertical : high - vertical, horizontal : wide - horizontal]


def _windows(x: F64, layer: Pool2d) -> F64:
    """Return x in windows, [n, C, rows, columns, window], row-major inside a window; incomplete windows are dropped."""
    (n, channels, high, wide), (down, right) = x.shape, layer.size
    rows, columns = high // down, wide // right
    whole = x[:, :, : rows * down, : columns * right].reshape(n, channels, rows, down, columns, right)
    windows: F64 = whole.transpose(0, 1, 2, 4, 3, 5).reshape(n, channels, rows, columns, down * right)
    return windows


def _unwindow(windows: F64, layer: Pool2d, shape: tuple[int, ...]) -> F64:
    """Return the inverse of `_windows`, in `shape`, with zeros where incomplete windows were dropped."""
    (n, channels, rows, columns, _), (down, right) = windows.shape, layer.size
    apart = windows.reshape(n, channels, rows, columns, down, right).transpose(0, 1, 2, 4, 3, 5)
    dx: F64 = np.zeros(shape)
    dx[:, :, : rows * down, : columns * right] = apart.reshape(n, channels, rows * down, columns * right)
    return dx
