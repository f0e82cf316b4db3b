"""The reference runtime: NumPy, float64, slow and obvious. Where another disagrees, this one is right.

It reads the layers of the ModelSpec and needs no graph, so it trains any bundle on any machine; good for
tests, for small nets, and for a device that no wheel of onnxruntime fits. FedPM: Isik et al., arXiv
2209.15328.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.runtimes import (
    BETA1,
    BETA2,
    EPSILON,
    F32,
    I64,
    Rule,
    State,
    StepResult,
    check_logits,
    check_step,
    finite,
)
from seedmask.bundle import Bundle
from seedmask.spec import GROUPNORM_EPSILON, Conv2d, GroupNorm, Linear, MaxPool2d, ModelSpec, ReLU

NAME: Final = "reference"
NEEDS: Final[tuple[str, ...]] = ()
GRAPHS: Final[tuple[str, ...]] = ()

F64 = npt.NDArray[np.float64]


class Reference:
    """One model, float64 inside, float32 at the door."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        self.w = bundle.spec.weights().astype(np.float64)

    def step(self, x: F32, y: I64, state: State, noise: F32, rule: Rule) -> StepResult:
        """One step on the scores; see `edge_client.runtimes.Runtime`."""
        check_step(self.bundle, x, y, state, noise, rule)
        s = state.scores.astype(np.float64)
        theta = 1 / (1 + np.exp(-s))
        tensors = self._tensors(self.w * (theta if rule.mean else noise < theta))
        logits, tape = forward(self.spec, x.astype(np.float64), tensors)

        shifted = logits - logits.max(axis=1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        truth = np.eye(self.spec.classes)[y]
        loss = -float((truth * logp).sum()) / len(y)
        correct = int((logits.argmax(axis=1) == y).sum())

        grads = backward(self.spec, tensors, tape, (np.exp(logp) - truth) / len(y))
        by_mask = np.concatenate([grads[tensor.name].ravel() for tensor in self.spec.tensors]) * self.w
        by_theta = by_mask * theta if rule.times_theta else by_mask  # straight through
        if rule.kl:
            by_theta = by_theta + rule.kl * (s - state.anchor) / self.spec.d
        by_theta = by_theta + (rule.sparsity - rule.entropy * s) / self.spec.d
        g = by_theta * theta * (1 - theta)

        m, v, t = state.m.astype(np.float64), state.v.astype(np.float64), state.t + 1
        if rule.optimizer == "adam":
            m = BETA1 * m + (1 - BETA1) * g
            v = BETA2 * v + (1 - BETA2) * g * g
            s = s - rule.rate * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPSILON)
        elif rule.momentum:
            m = rule.momentum * m + g
            s = s - rule.rate * m
        else:
            s = s - rule.rate * g
        after = State(s.astype(np.float32), m.astype(np.float32), v.astype(np.float32), t, state.anchor)
        return finite(StepResult(after, loss, correct))

    def logits(self, x: F32, mask: F32) -> F32:
        """Class scores [n, classes]; see `edge_client.runtimes.Runtime`."""
        check_logits(self.bundle, x, mask)
        tensors = self._tensors(self.w * mask)
        return forward(self.spec, x.astype(np.float64), tensors)[0].astype(np.float32)

    def _tensors(self, flat: F64) -> dict[str, F64]:
        places = self.spec.offsets.items()
        return {name: flat[at : at + t.size].reshape(t.shape) for name, (t, at) in places}


def open_runtime(bundle: Bundle, threads: int) -> Reference:
    """Ready at once. `threads` is NumPy's own affair."""
    return Reference(bundle)


def forward(spec: ModelSpec, x: F64, tensors: dict[str, F64]) -> tuple[F64, list[Any]]:
    """Logits [n, classes], and per layer what its gradient needs."""
    tape: list[Any] = []
    for layer in spec.layers:
        if isinstance(layer, Linear):
            tape.append(x)
            x = x @ tensors[layer.weight].T
            if layer.bias:
                x = x + tensors[layer.bias]
        elif isinstance(layer, Conv2d):
            padded = _pad(x, layer)
            tape.append(padded)
            x = _conv(padded, tensors[layer.weight], layer)
            if layer.bias:
                x = x + tensors[layer.bias][:, None, None]
        elif isinstance(layer, ReLU):
            tape.append(x > 0)
            x = np.maximum(x, 0)
        elif isinstance(layer, MaxPool2d):
            windows = _windows(x, layer)
            winners = windows.argmax(axis=-1)  # the first of equals
            tape.append((x.shape, winners))
            x = np.take_along_axis(windows, winners[..., None], axis=-1)[..., 0]
        elif isinstance(layer, GroupNorm):
            groups = x.reshape(len(x), layer.groups, -1)
            deviation = np.sqrt(groups.var(axis=2, keepdims=True) + GROUPNORM_EPSILON)
            normal = (groups - groups.mean(axis=2, keepdims=True)) / deviation
            tape.append((normal, deviation))
            x = normal.reshape(x.shape)
        else:
            tape.append(x.shape)
            x = x.reshape(len(x), math.prod(x.shape[1:]))
    return x, tape


def backward(spec: ModelSpec, tensors: dict[str, F64], tape: list[Any], dy: F64) -> dict[str, F64]:
    """The loss's gradient by every tensor, given that by the logits."""
    grads: dict[str, F64] = {}
    for layer, saved in zip(reversed(spec.layers), reversed(tape), strict=True):
        if isinstance(layer, Linear):
            grads[layer.weight] = dy.T @ saved
            if layer.bias:
                grads[layer.bias] = dy.sum(axis=0)
            dy = dy @ tensors[layer.weight]
        elif isinstance(layer, Conv2d):
            if layer.bias:
                grads[layer.bias] = dy.sum(axis=(0, 2, 3))
            grads[layer.weight], dy = _conv_back(dy, saved, tensors[layer.weight], layer)
        elif isinstance(layer, ReLU):
            dy = dy * saved
        elif isinstance(layer, MaxPool2d):
            shape, winners = saved
            dy = _unpool(dy, winners, layer, shape)
        elif isinstance(layer, GroupNorm):
            normal, deviation = saved
            by = dy.reshape(normal.shape)
            along = normal * (normal * by).mean(axis=2, keepdims=True)
            dy = ((by - by.mean(axis=2, keepdims=True) - along) / deviation).reshape(dy.shape)
        else:
            dy = dy.reshape(saved)
    return grads


def _pad(x: F64, layer: Conv2d) -> F64:
    vertical, horizontal = layer.padding
    return np.pad(x, ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal)))


def _tap(padded: F64, i: int, j: int, layer: Conv2d, sides: tuple[int, int]) -> F64:
    """What kernel entry (i, j) sees at every output position: a view [n, C, *sides]."""
    (down, right), (rows, columns) = layer.stride, sides
    return padded[:, :, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]


def _conv(padded: F64, weight: F64, layer: Conv2d) -> F64:
    out, _, kh, kw = weight.shape
    rows = (padded.shape[2] - kh) // layer.stride[0] + 1
    columns = (padded.shape[3] - kw) // layer.stride[1] + 1
    y = np.zeros((len(padded), out, rows, columns))
    for i in range(kh):
        for j in range(kw):
            tap = _tap(padded, i, j, layer, (rows, columns))
            y += np.tensordot(tap, weight[:, :, i, j], axes=([1], [1])).transpose(0, 3, 1, 2)
    return y


def _conv_back(dy: F64, padded: F64, weight: F64, layer: Conv2d) -> tuple[F64, F64]:
    """Gradients by the weight and by x."""
    dw, dx, sides = np.empty_like(weight), np.zeros_like(padded), (dy.shape[2], dy.shape[3])
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            tap = _tap(padded, i, j, layer, sides)
            dw[:, :, i, j] = np.tensordot(dy, tap, axes=([0, 2, 3], [0, 2, 3]))
            back = np.tensordot(dy, weight[:, :, i, j], axes=([1], [0]))
            _tap(dx, i, j, layer, sides)[...] += back.transpose(0, 3, 1, 2)
    (vertical, horizontal), (_, _, high, wide) = layer.padding, padded.shape
    return dw, dx[:, :, vertical : high - vertical, horizontal : wide - horizontal]


def _windows(x: F64, layer: MaxPool2d) -> F64:
    """[n, C, rows, columns, window], row-major inside the window; incomplete windows dropped."""
    (n, channels, high, wide), (down, right) = x.shape, layer.size
    rows, columns = high // down, wide // right
    whole = x[:, :, : rows * down, : columns * right].reshape(n, channels, rows, down, columns, right)
    windows: F64 = whole.transpose(0, 1, 2, 4, 3, 5).reshape(n, channels, rows, columns, down * right)
    return windows


def _unpool(dy: F64, winners: npt.NDArray[np.int64], layer: MaxPool2d, shape: tuple[int, ...]) -> F64:
    (n, channels, rows, columns), (down, right) = dy.shape, layer.size
    windows = np.zeros((n, channels, rows, columns, down * right))
    np.put_along_axis(windows, winners[..., None], dy[..., None], axis=-1)
    apart = windows.reshape(n, channels, rows, columns, down, right).transpose(0, 1, 2, 4, 3, 5)
    dx: F64 = np.zeros(shape)
    dx[:, :, : rows * down, : columns * right] = apart.reshape(n, channels, rows * down, columns * right)
    return dx
