"""One training step of a masked network: forward tape, reverse loop, optimisers. No target's names here.

The step is written once, against `Ops`, the operations a target must offer; V is whatever the target calls a
value: a tensor's name in ONNX, a tensor where the program is traced. Backward is written by hand, because no
inference runtime differentiates, and what a training runtime differentiates by itself is slower or wrong
(DECISIONS). The method is FedPM's: Isik et al., arXiv 2209.15328; the optimisers are Adam (Kingma and Ba, arXiv
1412.6980) and SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Protocol, TypeVar

from seedmask.spec import Conv2d, GroupNorm, Linear, MaxPool2d, ModelSpec, ReLU, Shape

BETA1: Final = 0.9
BETA2: Final = 0.999

V = TypeVar("V")


class Ops(Protocol[V]):
    """What a target must be able to emit. Values are float32 and activations [batch, ...] unless it says not.

    A `shape` argument is that of one example, without the batch; a `layer` carries stride, padding or size.
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

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """The layer `seedmask.spec.Linear`."""

    def linear_dx(self, dy: V, weight: V) -> V:
        """Its gradient by x."""

    def linear_dw(self, dy: V, x: V) -> V:
        """Its gradient by the weight, [out, in]."""

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d) -> V:
        """The layer `seedmask.spec.Conv2d`."""

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Its gradient by x. Shapes: `before` of x, `after` of dy, `kernel` of W, [out, in, kh, kw]."""

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Its gradient by the weight, [out, in, kh, kw]."""

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """The sum of dy over all but its channels (the first dimension of `shape`), [out]."""

    def relu(self, x: V) -> V:
        """max(x, 0)."""

    def relu_dx(self, dy: V, y: V) -> V:
        """dy where the layer's output y is above zero, else 0."""

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """The layer `seedmask.spec.MaxPool2d`, and which entry of each window won (the first of equals)."""

    def pool_dx(self, dy: V, winners: V, layer: MaxPool2d, before: Shape) -> V:
        """dy at the winners, 0 elsewhere."""

    def normalise(self, x: V, layer: GroupNorm, shape: Shape) -> tuple[V, V]:
        """The layer `seedmask.spec.GroupNorm`, and each group's standard deviation."""

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """Its gradient by x: (dy - mean(dy) - y mean(y dy)) / deviation, means over the group."""

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Loss [] = sum(weight * nats); correct int64 [] where weight > 0; the loss's gradient by the logits.

        y int64 [batch], weight [batch].
        """


@dataclass(frozen=True)
class Step(Generic[V]):
    """Scores and the optimiser's moments after a step, [d] each; `loss` [] and `correct`, int64 [], before it."""

    scores: V
    m: V
    v: V | None
    loss: V
    correct: V


@dataclass(frozen=True)
class Knobs(Generic[V]):
    """What a step leaves to its caller.

    `rate` []; `mean`, boolean []: run w * theta, no mask; `plain`, boolean []: the gradient is that of the loss alone,
    by the identity estimator, and the four `terms` below are not looked at; `anchor` [d], or [1] where its term is 0.
    """

    rate: V
    mean: V
    plain: V
    anchor: V
    times_theta: V
    by_score: V
    by_anchor: V
    constant: V


@dataclass(frozen=True)
class Adam(Generic[V]):
    """Moments [d] and `epsilon` []. Rate and epsilon hold the bias correction of their step, which float32 cannot
    compute well enough: rate = lr sqrt(1 - b2^t) / (1 - b1^t), epsilon = 1e-8 sqrt(1 - b2^t)."""

    m: V
    v: V
    epsilon: V


@dataclass(frozen=True)
class Sgd(Generic[V]):
    """m = momentum m + g and scores -= rate m: `m` [d], or [1] where momentum [] is 0."""

    m: V
    momentum: V


def pool_first(spec: ModelSpec) -> ModelSpec:
    """The same network with every ReLU before a MaxPool2d moved behind it, where there is less to do.

    Exact, gradients included: the maximum of what ReLU leaves is what ReLU leaves of the maximum, the first
    winner stays the first winner, and a window without a positive entry passes no gradient either way.
    """
    layers = list(spec.layers)
    for i in range(len(layers) - 1):
        if isinstance(layers[i], ReLU) and isinstance(layers[i + 1], MaxPool2d):
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    return replace(spec, layers=tuple(layers))


def unpack(ops: Ops[V], spec: ModelSpec, flat: V) -> dict[str, V]:
    """The tensors of a flat vector [d] by name."""
    parts = ops.split(flat, [tensor.shape for tensor in spec.tensors])
    return {tensor.name: part for tensor, part in zip(spec.tensors, parts, strict=True)}


def forward(ops: Ops[V], spec: ModelSpec, x: V, weights: dict[str, V]) -> tuple[V, list[tuple[V, ...]]]:
    """Logits [batch, classes] under `weights`, and the tape: per layer what its gradient needs."""
    tape: list[tuple[V, ...]] = []
    for layer, before, after in zip(spec.layers, spec.shapes(), spec.shapes()[1:], strict=False):
        if isinstance(layer, Linear):
            tape.append((x,))
            x = ops.linear(x, weights[layer.weight], weights[layer.bias] if layer.bias else None)
        elif isinstance(layer, Conv2d):
            tape.append((x,))
            x = ops.conv(x, weights[layer.weight], weights[layer.bias] if layer.bias else None, layer)
        elif isinstance(layer, ReLU):
            x = ops.relu(x)
            tape.append((x,))
        elif isinstance(layer, MaxPool2d):
            x, winners = ops.pool(x, layer, before)
            tape.append((winners,))
        elif isinstance(layer, GroupNorm):
            x, deviation = ops.normalise(x, layer, before)
            tape.append((x, deviation))
        else:
            tape.append(())
            x = ops.reshape(x, after)
    return x, tape


def backward(ops: Ops[V], spec: ModelSpec, weights: dict[str, V], tape: list[tuple[V, ...]], dy: V) -> dict[str, V]:
    """The loss's gradient by every tensor in `weights`, given that by the logits."""
    shapes = spec.shapes()
    # Nothing below the first layer with weights is worth a gradient.
    first = next(i for i, layer in enumerate(spec.layers) if isinstance(layer, Linear | Conv2d))
    grads: dict[str, V] = {}
    for i in range(len(spec.layers) - 1, first - 1, -1):
        layer, before, after, saved = spec.layers[i], shapes[i], shapes[i + 1], tape[i]
        if isinstance(layer, Linear | Conv2d) and layer.bias:
            grads[layer.bias] = ops.bias_grad(dy, after)
        if isinstance(layer, Linear):
            grads[layer.weight] = ops.linear_dw(dy, *saved)
            if i > first:
                dy = ops.linear_dx(dy, weights[layer.weight])
        elif isinstance(layer, Conv2d):
            kernel = spec.offsets[layer.weight][0].shape
            grads[layer.weight] = ops.conv_dw(dy, saved[0], layer, kernel, before, after)
            if i > first:
                dy = ops.conv_dx(dy, weights[layer.weight], layer, kernel, before, after)
        elif isinstance(layer, ReLU):
            dy = ops.relu_dx(dy, *saved)
        elif isinstance(layer, MaxPool2d):
            dy = ops.pool_dx(dy, saved[0], layer, before)
        elif isinstance(layer, GroupNorm):
            dy = ops.normalise_dx(dy, saved[0], saved[1], layer, before)
        else:
            dy = ops.reshape(dy, before)
    return grads


def train_step(
    ops: Ops[V],
    spec: ModelSpec,
    *,
    x: V,
    y: V,
    weight: V,
    scores: V,
    w: V,
    u: V,
    knobs: Knobs[V],
    optimizer: Adam[V] | Sgd[V],
) -> Step[V]:
    """One step on the scores of the mask u < sigmoid(scores).

    The gradient is slope * (by_mask * (1 + times_theta (theta - 1)) + by_score s + by_anchor anchor + constant), with
    slope = theta (1 - theta): straight through, d loss / d theta := d loss / d mask = d loss / d weight * w.
    """
    spec = pool_first(spec)
    one = ops.number(1.0)
    theta = ops.sigmoid(scores)
    masked = ops.choose(knobs.mean, lambda: ops.mul(w, theta), lambda: ops.mul(w, ops.less(u, theta)))
    weights = unpack(ops, spec, masked)
    logits, tape = forward(ops, spec, x, weights)
    loss, correct, dlogits = ops.cross_entropy(logits, y, weight)
    grads = backward(ops, spec, weights, tape, dlogits)

    by_mask = ops.mul(ops.join([grads[tensor.name] for tensor in spec.tensors]), w)
    slope = ops.mul(theta, ops.sub(one, theta))

    def regularised() -> V:
        estimate = ops.mul(by_mask, ops.add(one, ops.mul(knobs.times_theta, ops.sub(theta, one))))
        pull = ops.add(ops.mul(knobs.by_score, scores), ops.add(ops.mul(knobs.by_anchor, knobs.anchor), knobs.constant))
        return ops.mul(slope, ops.add(estimate, pull))

    # A branch, because these terms are a fifth of a small network's step and most jobs have none.
    g = ops.choose(knobs.plain, lambda: ops.mul(by_mask, slope), regularised)
    if isinstance(optimizer, Sgd):
        m = ops.add(ops.mul(optimizer.momentum, optimizer.m), g)
        return Step(ops.sub(scores, ops.mul(knobs.rate, m)), m, None, loss, correct)
    m = ops.add(ops.mul(ops.number(BETA1), optimizer.m), ops.mul(ops.number(1 - BETA1), g))
    v = ops.add(ops.mul(ops.number(BETA2), optimizer.v), ops.mul(ops.number(1 - BETA2), ops.mul(g, g)))
    move = ops.div(ops.mul(knobs.rate, m), ops.add(ops.sqrt(v), optimizer.epsilon))
    return Step(ops.sub(scores, move), m, v, loss, correct)
