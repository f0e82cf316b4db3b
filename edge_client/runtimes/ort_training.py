"""Runtime `ort_training`: training with onnxruntime-training 1.19.2, its last release; x86-64, Python 3.11 at most.

The training artifacts in the bundle are ONNX models, and this package's InferenceSession has all their operators, so
they are run as plain functions. The package's training API is not used: it hides the optimiser's moments, wants files
on disk, and imports torch. The training model computes the gradient of the loss, and the optimiser's model is Adam;
NumPy adds regularisers and computes SGD.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edge_client.runtimes.arithmetic import descended, regularised, step_exact
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import F32, NOTHING, MicroBatchPlan, State, StepConfig, StepResult, Targets
from edge_client.runtimes.footprint import MB, Footprint
from edge_client.runtimes.onnxruntime import predicted, session, vector
from seedmask.bundle import Bundle

# Never imported. It tells the two packages that install the name `onnxruntime` apart: only this one has it.
NEEDS: Final = ("onnxruntime.training",)
NOTE: Final = "x86-64 Linux, Python 3.10 or 3.11, in an environment of its own: it replaces onnxruntime"
_TRAINING: Final = "ort-training/training_model.onnx"
_OPTIMIZER: Final = "ort-training/optimizer_model.onnx"
_LOGITS: Final = "ort-training/logits.onnx"
GRAPHS: Final = (_TRAINING, _OPTIMIZER, _LOGITS)
# Without torch: the package imports it if it is installed, which takes another 230 MB.
FOOTPRINT: Final = Footprint(84 * MB, 16, 2, spare=2)


class OrtTraining:
    """Runtime of one model with three sessions: gradient, optimiser, evaluation."""

    def __init__(self, bundle: Bundle, threads: int, fit: MicroBatchPlan) -> None:
        self.bundle, self.fit = bundle, fit
        self.w: F32 = bundle.spec.weights()
        self._frozen = {"frozen": bundle.spec.frozen()} if bundle.spec.count("frozen") else {}
        self._training, self._optimizer, self._logits = (session(bundle.file(name), threads) for name in GRAPHS)
        self._gradient: F32 = np.zeros(bundle.spec.d, np.float32)
        self._by_exact: F32 = np.zeros(bundle.spec.e, np.float32)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """See Runtime."""
        check_step(self.bundle, x, y, state, noise, rule)
        n, g = len(y), self._gradient
        feeds = {"w": self.w, "u": vector(noise), "mean": np.array(rule.mean), "scores": vector(state.scores)}
        feeds |= self._frozen
        if self.bundle.spec.e:
            feeds |= {"exact": vector(state.exact.values), "exact_grad.accumulation.buffer": self._by_exact}
        loss, correct = 0.0, 0
        for part in self.fit.parts(n):
            lost, right = self._training.run(
                ["loss", "correct"],
                {
                    "x": np.ascontiguousarray(x[part], np.float32),
                    "y": np.ascontiguousarray(y[part], np.float32 if self.bundle.spec.loss == "mse" else np.int64),
                    "weight": np.full(part.stop - part.start, 1 / n, np.float32),
                    # The graph writes the gradient into this array, or adds it to that of the parts before.
                    "scores_grad.accumulation.buffer": g,
                    "lazy_reset_grad": np.array([part.start == 0]),
                    **feeds,
                },
            )
            loss, correct = loss + float(lost), correct + int(right)
        g = regularised(g, state, rule, self.bundle.spec.d)
        after = self._adam(g, state, rule) if rule.optimizer == "adam" else descended(g, state, rule)
        exact = step_exact(state.exact, self._by_exact, rule, after.t)
        return finite(StepResult(replace(after, exact=exact), loss, correct))

    def _adam(self, g: F32, state: State, rule: StepConfig) -> State:
        # This operator changes its arguments in place, hence the copies.
        scores, m, v = (np.array(each, np.float32) for each in (state.scores, state.m, state.v))
        self._optimizer.run(
            None,
            {
                "learning_rate": np.array([rule.rate], np.float32),
                "step": np.array([state.t + 1], np.int64),
                "params": [scores],
                "gradients": [g],
                "first_order_moments": [m],
                "second_order_moments": [v],
            },
        )
        return State(scores, m, v, state.t + 1, state.anchor, state.exact)

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """See Runtime."""
        check_logits(self.bundle, x, mask, exact)
        feeds = {"w": self.w, "mask": vector(mask), **self._frozen}
        if self.bundle.spec.e:
            feeds["exact"] = vector(exact)
        return predicted(self._logits, self.bundle, x, feeds)


def open_runtime(bundle: Bundle, threads: int, fit: MicroBatchPlan | None = None) -> OrtTraining:
    """Return the runtime, with its models loaded and its weights made from the seed; `threads` 0: one per core."""
    return OrtTraining(bundle, threads, fit or MicroBatchPlan(bundle.batch))
