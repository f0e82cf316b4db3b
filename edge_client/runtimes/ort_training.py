"""Training on onnxruntime-training 1.19.2, the last release of its line: x86-64, Python 3.11 at most.

The bundle's artifacts are ONNX models, and this package's InferenceSession has all the operators they use, so they run
as what they are: functions of their inputs. The training API would keep the optimiser's moments where nobody can read
them, wants files on disk, and imports torch. The training model gives the gradient, NumPy adds a rule's other terms,
the optimiser's model is Adam, and SGD is a line of NumPy.
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

# Not imported, but the sign that the onnxruntime here is the one that trains: both packages install that name.
NEEDS: Final = ("onnxruntime.training",)
NOTE: Final = "x86-64 Linux, Python 3.10 or 3.11, in an environment of its own: it takes the place of onnxruntime"
_TRAINING: Final = "ort-training/training_model.onnx"
_OPTIMIZER: Final = "ort-training/optimizer_model.onnx"
_LOGITS: Final = "ort-training/logits.onnx"
GRAPHS: Final = (_TRAINING, _OPTIMIZER, _LOGITS)
# Where torch is installed as well, the package imports it: 230 MB more.
FOOTPRINT: Final = Footprint(84 * MB, 16, 2, spare=2)


class OrtTraining:
    """One model on three sessions."""

    def __init__(self, bundle: Bundle, threads: int, fit: MicroBatchPlan) -> None:
        self.bundle, self.fit = bundle, fit
        self.w: F32 = bundle.spec.weights()
        self._frozen = {"frozen": bundle.spec.frozen()} if bundle.spec.count("frozen") else {}
        self._training, self._optimizer, self._logits = (session(bundle.file(name), threads) for name in GRAPHS)
        self._gradient: F32 = np.zeros(bundle.spec.d, np.float32)
        self._by_exact: F32 = np.zeros(bundle.spec.e, np.float32)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """One step on the scores; see `Runtime`."""
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
                    # The gradient's place: it is written into this array, or added to what the first part left there.
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
        # In place, as is the way of this operator; hence the copies.
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
        """Class scores [n, classes]; see `Runtime`."""
        check_logits(self.bundle, x, mask, exact)
        feeds = {"w": self.w, "mask": vector(mask), **self._frozen}
        if self.bundle.spec.e:
            feeds["exact"] = vector(exact)
        return predicted(self._logits, self.bundle, x, feeds)


def open_runtime(bundle: Bundle, threads: int, fit: MicroBatchPlan | None = None) -> OrtTraining:
    """Load the models and make the weights; `threads` 0 is one per core."""
    return OrtTraining(bundle, threads, fit or MicroBatchPlan(bundle.batch))
