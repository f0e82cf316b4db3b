"""One training step of a masked network: forward tape, reverse loop, optimisers. No target's names here.

The step is written once, against the operations of `export.ops`, which a target must offer. Backward is written by
hand, because no inference runtime differentiates, and what a training runtime differentiates by itself is slower or
wrong (decision 0002); layer by layer it stands in `export.rules`. The method is FedPM's: Isik et al., arXiv 2209.15328;
the optimisers are Adam (Kingma and Ba, arXiv 1412.6980) and SGD with momentum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from export import rules
from export.ops import Ops
from seedmask.layers import GroupNorm, MaxPool2d, ReLU, ReLU6, Shape, Weighted
from seedmask.spec import KINDS, ModelSpec

BETA1: Final = 0.9
BETA2: Final = 0.999

V = TypeVar("V")


@dataclass(frozen=True)
class Step(Generic[V]):
    """Result of one training step: new scores and optimiser moments, [d] each, and the loss before the step.

    `loss` is [], `correct` int64 []. `exact` is the loss's gradient with respect to the exact values [e], None where
    the model has none; the caller applies its own optimiser to them.
    """

    scores: V
    m: V
    v: V | None
    loss: V
    correct: V
    exact: V | None = None


@dataclass(frozen=True)
class Knobs(Generic[V]):
    """Inputs of a step that its caller sets in every call.

    `rate` [] is the learning rate. `mean`, boolean []: run w * theta instead of a drawn mask. `plain`, boolean []:
    follow the gradient of the loss alone, by the identity estimator, and ignore the four terms `times_theta`,
    `by_score`, `by_anchor` and `constant` (see `train_step`). `anchor` is [d], or [1] where its term is 0.
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
    """Adam's moments [d] and `epsilon` [].

    The rate and epsilon of a step already contain its bias correction, which float32 cannot compute precisely enough:
    rate = lr sqrt(1 - b2^t) / (1 - b1^t), epsilon = 1e-8 sqrt(1 - b2^t).
    """

    m: V
    v: V
    epsilon: V


@dataclass(frozen=True)
class Sgd(Generic[V]):
    """SGD with momentum: m = momentum * m + g, then scores -= rate * m. `m` is [d], or [1] where momentum [] is 0."""

    m: V
    momentum: V


def pool_first(spec: ModelSpec) -> ModelSpec:
    """Return the same network with every ReLU before a MaxPool2d moved behind it, where there are fewer elements.

    Outputs and gradients are exactly the same: ReLU and maximum commute, the first winner of a window stays the first
    winner, and a window without a positive element passes no gradient either way.
    """
    layers, takers = list(spec.layers), spec.takers
    for i in range(len(layers) - 1):
        relu, pool = layers[i], layers[i + 1]
        if isinstance(relu, ReLU | ReLU6) and isinstance(pool, MaxPool2d) and takers[i + 1] == [i + 1]:
            # They swap places, so that the numbers of all other values stay the same.
            layers[i : i + 2] = replace(pool, source=relu.source), replace(relu, source=None)
    return replace(spec, layers=tuple(layers))


def shapes_beside(spec: ModelSpec) -> dict[str, Shape]:
    """Return shapes that broadcast against activations: GroupNorm's scales and shifts [c] become [c, 1, 1]."""
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    for layer, after in zip(spec.layers, spec.shapes()[1:], strict=True):
        if isinstance(layer, GroupNorm):
            shapes |= {name: (after[0], *(1,) * (len(after) - 1)) for name in layer.tensors}
    return shapes


def unpack(ops: Ops[V], spec: ModelSpec, masked: V, frozen: V | None = None, exact: V | None = None) -> dict[str, V]:
    """Return every tensor by name, cut from the flat vector of its kind; None: the spec has no tensor of that kind."""
    out, shapes = dict[str, V](), shapes_beside(spec)
    for kind, flat in zip(KINDS, (masked, frozen, exact), strict=True):
        names = [tensor.name for tensor in spec.tensors if tensor.kind == kind]
        if names and flat is not None:
            out |= dict(zip(names, ops.split(flat, [shapes[name] for name in names]), strict=True))
    return out


def forward(ops: Ops[V], spec: ModelSpec, x: V, weights: dict[str, V]) -> tuple[V, list[tuple[V, ...]]]:
    """Return logits [batch, classes] under `weights`, and the tape: per layer what its gradient needs."""
    shapes, values, tape = spec.shapes(), [x], list[tuple[V, ...]]()
    for i, layer in enumerate(spec.layers):
        takes = layer.takes(i)
        taken, before = [values[value] for value in takes], [shapes[value] for value in takes]
        y, saved = rules.forward(ops, layer, taken, before, shapes[i + 1], weights)
        values.append(y)
        tape.append(saved)
    return values[-1], tape


def backward(ops: Ops[V], spec: ModelSpec, weights: dict[str, V], tape: list[tuple[V, ...]], dy: V) -> dict[str, V]:
    """Return the loss's gradient with respect to every trained tensor in `weights`, given `dy`, that of the logits."""
    shapes = spec.shapes()
    # A value needs a gradient only if a trained tensor comes before it.
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
    """Return the loss [], correct predictions int64 [], and the loss's gradient with respect to every trained tensor.

    The network runs under `weights`, which are named as in the spec.
    """
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
    """Take one step on the scores of the mask u < sigmoid(scores).

    `frozen` and `exact` are the flat vectors of those tensors, None where there are none.

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

    # A branch, because these terms take a fifth of a small network's step, and most jobs use none.
    g = ops.choose(knobs.plain, lambda: ops.mul(by_mask, slope), regularised)
    if isinstance(optimizer, Sgd):
        m = ops.add(ops.mul(optimizer.momentum, optimizer.m), g)
        return Step(ops.sub(scores, ops.mul(knobs.rate, m)), m, None, loss, correct, by_exact)
    m = ops.add(ops.mul(ops.number(BETA1), optimizer.m), ops.mul(ops.number(1 - BETA1), g))
    v = ops.add(ops.mul(ops.number(BETA2), optimizer.v), ops.mul(ops.number(1 - BETA2), ops.mul(g, g)))
    move = ops.div(ops.mul(knobs.rate, m), ops.add(ops.sqrt(v), optimizer.epsilon))
    return Step(ops.sub(scores, move), m, v, loss, correct, by_exact)
