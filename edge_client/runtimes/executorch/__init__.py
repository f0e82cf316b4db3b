"""Runtime `executorch`: training with ExecuTorch, without torch; the bundle has a program, lowered to XNNPACK.

A whole step runs in the program if the optimiser is Adam, there is no regulariser and the batch is not larger than the
program's; most jobs are like that. For everything else the program computes the gradient of the loss by the scores, one
micro-batch at a time, and NumPy adds regularisers and computes the optimiser's step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from edge_client.runtimes.arithmetic import BETA1, BETA2, corrected, descended, regularised, step_exact
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import F32, NOTHING, MicroBatchPlan, State, StepConfig, StepResult, Targets
from edge_client.runtimes.executorch.library import Program, aligned
from edge_client.runtimes.footprint import MB, Footprint
from seedmask.bundle import Bundle
from seedmask.seed import weights_key

NEEDS: Final = ("executorch",)
GRAPHS: Final = ("executorch/model.pte",)
_TARGETS: Final = {"cross-entropy": np.int64, "mse": np.float32}
NOTE: Final = (
    "its dependencies are not needed on a device (pip install --no-deps 'executorch==1.5.*'); "
    "140 lines of C++ are compiled on first use (apt install g++)"
)


class Planned(Footprint):
    """Footprint that reads the memory of activations from the program, in which ExecuTorch has planned it."""

    def bytes_of(self, bundle: Bundle, fit: MicroBatchPlan) -> int:
        """Return the estimated peak, in bytes, of a process that trains `bundle`. Raises BundleError."""
        in_one = 0 if bundle.batch > fit.micro else _SUMMED * 4 * bundle.spec.d
        return super().bytes_of(bundle, fit) - in_one + int(_REPACKED * _plan(bundle.file(*GRAPHS))[1])


@functools.lru_cache(maxsize=1)
def _plan(program: bytes) -> tuple[int, int]:
    """Return the program's micro-batch, and the bytes that it works in: all methods share the room of the largest.

    The result is cached, because opening a program takes long and the memory estimate asks several times.
    """
    opened = Program(program, 0)
    return opened.shape("train_step", 0)[0], max(map(opened.planned, _METHODS))


_METHODS: Final = ("weights", "train_step", "grads", "logits")  # of export.targets.executorch
_REPACKED: Final = 1.5  # factor on the planned bytes, for memory that XNNPACK allocates itself
_SUMMED: Final = 3  # vectors [d] for adding up the gradients of micro-batches
# Vectors: weights, noise, scores and moments before and after, and _SUMMED.
FOOTPRINT: Final = Planned(62 * MB, 12.3, 0, 20, graph=GRAPHS[0], fixed=True)


class ExecuTorch:
    """Runtime of one model: its program, its weights, and buffers for one micro-batch."""

    def __init__(self, bundle: Bundle, threads: int, fit: MicroBatchPlan | None) -> None:
        self.bundle = bundle
        self._program = Program(bundle.file(*GRAPHS), threads)
        shape = self._program.shape("train_step", 0)
        self._micro, d = min(shape[0], fit.micro if fit else shape[0]), bundle.spec.d
        self._x = aligned(int(np.prod(shape)), np.float32).reshape(shape)
        self._y: Targets = np.zeros(self._program.shape("train_step", 1), _TARGETS[bundle.spec.loss])
        self._weight = aligned(shape[0], np.float32)
        self._loss, self._correct = np.zeros((), np.float32), np.zeros((), np.int64)
        self.w: F32 = aligned(d, np.float32)
        frozen = bundle.spec.count("frozen")
        # What a method takes and gives where there are tensors without a mask, and only there.
        self._frozen = [aligned(frozen, np.float32)] if frozen else []
        self._by_exact = [aligned(bundle.spec.e, np.float32)] if bundle.spec.e else []
        self._program.run("weights", [np.array(weights_key(bundle.spec.seed), np.int64)], [self.w, *self._frozen])

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """See Runtime."""
        check_step(self.bundle, x, y, state, noise, rule)
        if rule.optimizer == "adam" and rule.plain and len(y) <= self._micro:
            return self._adam(x, y, state, noise, rule)
        g, by_exact, loss, correct = self._gradient(x, y, state, noise, rule)
        return finite(StepResult(self._moved(state, g, by_exact, rule), loss, correct))

    def _adam(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """Run a whole step, Adam included, in the program."""
        scores, m, v = (aligned(self.bundle.spec.d, np.float32) for _ in range(3))
        rate, epsilon = corrected(rule.rate, state.t + 1)
        self._run(
            "train_step",
            *(x, y, len(y), state, noise, rule),
            [_vector(state.m), _vector(state.v), _one(rate), _one(epsilon)],
            [scores, m, v],
        )
        exact = step_exact(state.exact, np.concatenate([NOTHING, *self._by_exact]), rule, state.t + 1)
        after = State(scores, m, v, state.t + 1, state.anchor, exact)
        return finite(StepResult(after, float(self._loss), int(self._correct)))

    def _gradient(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> tuple[F32, F32, float, int]:
        """Return the gradients by scores [d] and exact values [e], loss, number correct, over all micro-batches."""
        total: F32 = aligned(self.bundle.spec.d, np.float32)
        part = total if len(y) <= self._micro else aligned(self.bundle.spec.d, np.float32)
        by_exact, loss, correct = np.zeros(self.bundle.spec.e, np.float32), 0.0, 0
        for at in range(0, len(y), self._micro):
            here = slice(at, at + self._micro)
            self._run("grads", x[here], y[here], len(y), state, noise, rule, [], [part if at else total])
            if at:
                total += part
            for by_part in self._by_exact:
                by_exact += by_part
            loss, correct = loss + float(self._loss), correct + int(self._correct)
        return total, by_exact, loss, correct

    def _run(
        self,
        method: str,
        x: F32,
        y: Targets,
        n: int,
        state: State,
        noise: F32,
        rule: StepConfig,
        more: Sequence[F32],
        out: Sequence[F32],
    ) -> None:
        """Run a method on a part of a batch of `n`; its loss and number correct go to `self`."""
        given = len(y)
        self._x[:given], self._y[:given], self._weight[:given] = x, y, 1 / n
        # Unused examples weigh zero, but must be zeros as well: NaN times zero is NaN.
        self._x[given:], self._y[given:], self._weight[given:] = 0, 0, 0
        vectors = [_vector(state.scores), self.w, _vector(noise), _one(rule.mean)]
        self._program.run(
            method,
            [self._x, self._y, self._weight, *vectors, *more, *self._unmasked(state.exact.values)],
            [*out, self._loss, self._correct, *self._by_exact],
        )

    def _unmasked(self, exact: F32) -> list[F32]:
        """Return the last inputs of a method: frozen weights and exact values, as far as the spec has any."""
        return [*self._frozen, *([_vector(exact)] if self.bundle.spec.e else [])]

    def _moved(self, state: State, g: F32, by_exact: F32, rule: StepConfig) -> State:
        """Return the state after a step along the gradients of the loss; `g` is overwritten."""
        g = regularised(g, state, rule, self.bundle.spec.d)
        exact = step_exact(state.exact, by_exact, rule, state.t + 1)
        if rule.optimizer != "adam":
            return replace(descended(g, state, rule), exact=exact)
        rate, epsilon = corrected(rule.rate, state.t + 1)
        m = np.float32(BETA1) * state.m + np.float32(1 - BETA1) * g
        v = np.float32(BETA2) * state.v + np.float32(1 - BETA2) * (g * g)
        scores = state.scores - np.float32(rate) * m / (np.sqrt(v) + np.float32(epsilon))
        return State(scores, m, v, state.t + 1, state.anchor, exact)

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """See Runtime."""
        check_logits(self.bundle, x, mask, exact)
        classes, mask = self.bundle.spec.classes, _vector(mask)
        out, part = np.empty((len(x), classes), np.float32), aligned(len(self._x) * classes, np.float32)
        for at in range(0, len(x), self._micro):
            n = min(self._micro, len(x) - at)
            self._x[:n], self._x[n:] = x[at : at + n], 0
            self._program.run("logits", [self._x, self.w, mask, *self._unmasked(exact)], [part])
            out[at : at + n] = part.reshape(-1, classes)[:n]
        return out


def usual(bundle: Bundle) -> MicroBatchPlan:
    """Return the only plan: the micro-batch that the program was exported for. Raises BundleError."""
    return MicroBatchPlan(_plan(bundle.file(*GRAPHS))[0])


def open_runtime(bundle: Bundle, threads: int, fit: MicroBatchPlan | None = None) -> ExecuTorch:
    """Return the runtime, with its program loaded and its weights computed; `threads` 0: ExecuTorch chooses.

    A `fit` of fewer examples than the program was exported for saves no memory, because zeros take their place.
    """
    return ExecuTorch(bundle, threads, fit)


def _one(value: float) -> F32:
    return np.array([value], np.float32)


def _vector(values: F32) -> F32:
    """Return `values` as contiguous float32 at a multiple of 16 bytes: XNNPACK may read up to 16 bytes past the end."""
    values = np.ascontiguousarray(values, np.float32)
    if values.ctypes.data % 16 == 0:
        return values
    out: F32 = aligned(values.size, np.float32)
    out[:] = values
    return out
