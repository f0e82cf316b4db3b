"""Runtime `reference`: training in NumPy, float64; slow and easy to read. It defines what the other runtimes compute.

It builds the network from the layers in the ModelSpec (`numpy_network`) and needs no graph, so it trains any bundle on
any machine: for tests, for small networks, and for devices without a wheel of onnxruntime. FedPM: Isik et al., arXiv
2209.15328.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_client.runtimes.arithmetic import BETA1, BETA2, EPSILON, step_exact
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import F32, NOTHING, MicroBatchPlan, State, StepConfig, StepResult, Targets
from edge_client.runtimes.footprint import MB, Footprint
from edge_client.runtimes.numpy_network import F64, backward, forward
from seedmask.bundle import Bundle
from seedmask.spec import ModelSpec

NEEDS: Final[tuple[str, ...]] = ()
GRAPHS: Final[tuple[str, ...]] = ()
FOOTPRINT: Final = Footprint(45 * MB, 34, 6)  # many vectors: float64, and no buffer is used again


class Reference:
    """Runtime of one model; arguments and results are float32, everything in between is float64."""

    def __init__(self, bundle: Bundle, fit: MicroBatchPlan) -> None:
        self.bundle, self.fit = bundle, fit
        self.spec = bundle.spec
        self.w = bundle.spec.weights().astype(np.float64)
        self.frozen = bundle.spec.frozen().astype(np.float64)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """See Runtime."""
        check_step(self.bundle, x, y, state, noise, rule)
        s = state.scores.astype(np.float64)
        theta = 1 / (1 + np.exp(-s))
        tensors = self._tensors(self.w * (theta if rule.mean else noise < theta), state.exact.values)
        loss, correct, by_mask, by_exact = 0.0, 0, np.zeros(self.spec.d), np.zeros(self.spec.e)
        for part in self.fit.parts(len(y)):
            logits, tape = forward(self.spec, x[part].astype(np.float64), tensors)
            lost, right, dy = _scored(self.spec, logits, y[part], len(y))
            grads = backward(self.spec, tensors, tape, dy)
            by_mask += self._joined(grads, "masked")
            by_exact += self._joined(grads, "exact")
            loss, correct = loss + lost, correct + right
        by_mask *= self.w
        by_theta = by_mask * theta if rule.times_theta else by_mask  # the straight-through estimator
        if rule.kl:
            by_theta = by_theta + rule.kl * (s - state.anchor) / self.spec.d
        by_theta = by_theta + rule.sparsity / self.spec.d
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
        exact = step_exact(state.exact, by_exact, rule, t)
        after = State(s.astype(np.float32), m.astype(np.float32), v.astype(np.float32), t, state.anchor, exact)
        return finite(StepResult(after, loss, correct))

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """See Runtime."""
        check_logits(self.bundle, x, mask, exact)
        tensors = self._tensors(self.w * mask, exact)
        return forward(self.spec, x.astype(np.float64), tensors)[0].astype(np.float32)

    def _tensors(self, masked: F64, exact: F32) -> dict[str, F64]:
        return self.spec.parts(masked, self.frozen, exact.astype(np.float64))

    def _joined(self, grads: dict[str, F64], kind: str) -> F64:
        parts = [grads[tensor.name].ravel() for tensor in self.spec.tensors if tensor.kind == kind]
        return np.concatenate([np.zeros(0), *parts])


def open_runtime(bundle: Bundle, threads: int, fit: MicroBatchPlan | None = None) -> Reference:
    """Return the runtime; `threads` is ignored, because NumPy chooses for itself."""
    return Reference(bundle, fit or MicroBatchPlan(bundle.batch))


def _scored(spec: ModelSpec, logits: F64, y: Targets, n: int) -> tuple[float, int, F64]:
    """Return some of n examples' part of the mean loss, their number correct, and the gradient by `logits`."""
    if spec.loss == "mse":
        wrong: F64 = logits - y
        size = n * spec.classes
        return float((wrong * wrong).sum()) / size, 0, 2 * wrong / size
    shifted = logits - logits.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    truth = np.eye(spec.classes)[y]
    correct = int((logits.argmax(axis=1) == y).sum())
    return -float((truth * logp).sum()) / n, correct, (np.exp(logp) - truth) / n
