"""One training step of a masked network: forward tape, reverse loop, optimisers. No target's names here.

The step is written once, against `Ops`, the operations a target must offer; V is whatever the target calls a
value: a tensor's name in ONNX, a tensor where the program is traced. Backward is written by hand, because no
inference runtime differentiates, and what a training runtime differentiates by itself is slower or wrong
(decision 0002); layer by layer it stands in `export.rules`. The method is FedPM's: Isik et al., arXiv 2209.15328; the
optimisers are Adam (Kingma and Ba, arXiv 1412.6980) and SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Protocol, TypeVar

from export import rules
from seedmask.layers import Conv2d, GroupNorm, MaxPool2d, ReLU, ReLU6, Shape, Weighted
from seedmask.spec import KINDS, ModelSpec

BETA1: Final = 0.9
BETA2: Final = 0.999

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


@dataclass(frozen=True)
class Step(Generic[V]):
    """Scores and the optimiser's moments after a step, [d] each; `loss` [] and `correct`, int64 [], before it.

    `exact`: the loss's gradient by the exact values [e], None where there are none; their optimiser is the caller's.
    """

    scores: V
    m: V
    v: V | None
    loss: V
    correct: V
    exact: V | None = None


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
    layers, takers = list(spec.layers), spec.takers
    for i in range(len(layers) - 1):
        relu, pool = layers[i], layers[i + 1]
        if isinstance(relu, ReLU | ReLU6) and isinstance(pool, MaxPool2d) and takers[i + 1] == [i + 1]:
            # In their places, so that every other layer's sources stay right.
            layers[i : i + 2] = replace(pool, source=relu.source), replace(relu, source=None)
    return replace(spec, layers=tuple(layers))


def shapes_beside(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor's shape as its layer takes it: as it is, but for what goes with channels, which lead.

    A group norm's scale [c] is multiplied by [batch, c, h, w] as [c, 1, 1].
    """
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    for layer, after in zip(spec.layers, spec.shapes()[1:], strict=True):
        if isinstance(layer, GroupNorm):
            shapes |= {name: (after[0], *(1,) * (len(after) - 1)) for name in layer.tensors}
    return shapes


def unpack(ops: Ops[V], spec: ModelSpec, masked: V, frozen: V | None = None, exact: V | None = None) -> dict[str, V]:
    """Every tensor by name, from the flat vector of its kind; None where the spec has no tensor of it."""
    out, shapes = dict[str, V](), shapes_beside(spec)
    for kind, flat in zip(KINDS, (masked, frozen, exact), strict=True):
        names = [tensor.name for tensor in spec.tensors if tensor.kind == kind]
        if names and flat is not None:
            out |= dict(zip(names, ops.split(flat, [shapes[name] for name in names]), strict=True))
    return out


def forward(ops: Ops[V], spec: ModelSpec, x: V, weights: dict[str, V]) -> tuple[V, list[tuple[V, ...]]]:
    """Logits [batch, classes] under `weights`, and the tape: per layer what its gradient needs."""
    shapes, values, tape = spec.shapes(), [x], list[tuple[V, ...]]()
    for i, layer in enumerate(spec.layers):
        takes = layer.takes(i)
        taken, before = [values[value] for value in takes], [shapes[value] for value in takes]
        y, saved = rules.forward(ops, layer, taken, before, shapes[i + 1], weights)
        values.append(y)
        tape.append(saved)
    return values[-1], tape


def backward(ops: Ops[V], spec: ModelSpec, weights: dict[str, V], tape: list[tuple[V, ...]], dy: V) -> dict[str, V]:
    """The loss's gradient by every tensor in `weights` that is trained, given that by the logits."""
    shapes = spec.shapes()
    # What has no weights before it is not worth a gradient.
    trained = [False]
    for i, layer in enumerate(spec.layers):
        own = any(spec.offsets[name][0].kind != "frozen" for name in layer.tensors)
        trained.append(own or any(trained[value] for value in layer.takes(i)))
    by_value, grads = {len(spec.layers): dy}, dict[str, V]()
    for i in range(len(spec.layers) - 1, -1, -1):
        if not trained[i + 1]:
            continue
        layer = spec.layers[i]
        takes = layer.takes(i)
        kernel = spec.offsets[layer.weight][0].shape if isinstance(layer, Weighted) else ()
        before, wanted = [shapes[value] for value in takes], [trained[value] for value in takes]
        learnt = {name for name in layer.tensors if spec.offsets[name][0].kind != "frozen"}
        dxs, found = rules.backward(
            ops, layer, by_value.pop(i + 1), tape[i], before, shapes[i + 1], weights, kernel, wanted, learnt
        )
        grads |= found
        for value, want, dx in zip(takes, wanted, dxs, strict=True):
            if want and dx is not None:
                by_value[value] = ops.add(by_value[value], dx) if value in by_value else dx
    return grads


def gradient_of(
    ops: Ops[V], spec: ModelSpec, *, x: V, y: V, weight: V, weights: dict[str, V]
) -> tuple[V, V, dict[str, V]]:
    """Loss [], correct, int64 [], and the loss's gradient by every tensor of the network that runs `weights`."""
    spec = pool_first(spec)
    logits, tape = forward(ops, spec, x, weights)
    score = ops.squared_error if spec.loss == "mse" else ops.cross_entropy
    loss, correct, dlogits = score(logits, y, weight)
    return loss, correct, backward(ops, spec, weights, tape, dlogits)


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
    frozen: V | None = None,
    exact: V | None = None,
) -> Step[V]:
    """One step on the scores of the mask u < sigmoid(scores).

    `frozen` and `exact` are the flat vectors of these tensors, None where there are none.

    The gradient is slope * (by_mask * (1 + times_theta (theta - 1)) + by_score s + by_anchor anchor + constant), with
    slope = theta (1 - theta): straight through, d loss / d theta := d loss / d mask = d loss / d weight * w.
    """
    one = ops.number(1.0)
    theta = ops.sigmoid(scores)
    masked = ops.choose(knobs.mean, lambda: ops.mul(w, theta), lambda: ops.mul(w, ops.less(u, theta)))
    weights = unpack(ops, spec, masked, frozen, exact)
    loss, correct, grads = gradient_of(ops, spec, x=x, y=y, weight=weight, weights=weights)

    by_mask = ops.mul(ops.join([grads[tensor.name] for tensor in spec.masked]), w)
    by_exact = ops.join([grads[t.name] for t in spec.tensors if t.kind == "exact"]) if spec.e else None
    slope = ops.mul(theta, ops.sub(one, theta))

    def regularised() -> V:
        estimate = ops.mul(by_mask, ops.add(one, ops.mul(knobs.times_theta, ops.sub(theta, one))))
        pull = ops.add(ops.mul(knobs.by_score, scores), ops.add(ops.mul(knobs.by_anchor, knobs.anchor), knobs.constant))
        return ops.mul(slope, ops.add(estimate, pull))

    # A branch, because these terms are a fifth of a small network's step and most jobs have none.
    g = ops.choose(knobs.plain, lambda: ops.mul(by_mask, slope), regularised)
    if isinstance(optimizer, Sgd):
        m = ops.add(ops.mul(optimizer.momentum, optimizer.m), g)
        return Step(ops.sub(scores, ops.mul(knobs.rate, m)), m, None, loss, correct, by_exact)
    m = ops.add(ops.mul(ops.number(BETA1), optimizer.m), ops.mul(ops.number(1 - BETA1), g))
    v = ops.add(ops.mul(ops.number(BETA2), optimizer.v), ops.mul(ops.number(1 - BETA2), ops.mul(g, g)))
    move = ops.div(ops.mul(knobs.rate, m), ops.add(ops.sqrt(v), optimizer.epsilon))
    return Step(ops.sub(scores, move), m, v, loss, correct, by_exact)
