"""Training on onnxruntime-training 1.19.2, the last release of its line: x86-64, Python 3.11 at most.

The bundle's artifacts are ONNX models, and this package's InferenceSession has all the operators they use, so they run
as what they are: functions of their inputs. The training API would keep the optimiser's moments where nobody can read
them, wants files on disk, and imports torch. The training model gives the gradient, NumPy adds a rule's other terms,
the optimiser's model is Adam, and SGD is a line of NumPy.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_client.memory import MB, Footprint
from edge_client.runtimes import (
    F32,
    NOTHING,
    Fit,
    Rule,
    State,
    StepResult,
    Targets,
    check_logits,
    check_step,
    finite,
    pulls,
)
from edge_client.runtimes.onnxruntime import session
from seedmask.bundle import Bundle

NAME: Final = "ort_training"
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

    def __init__(self, bundle: Bundle, threads: int, fit: Fit) -> None:
        self.bundle, self.fit = bundle, fit
        self.w: F32 = bundle.spec.weights()
        self._frozen = {"frozen": bundle.spec.frozen()} if bundle.spec.count("frozen") else {}
        self._training, self._optimizer, self._logits = (session(bundle.file(name), threads) for name in GRAPHS)
        self._gradient: F32 = np.zeros(bundle.spec.d, np.float32)
        self._by_exact: F32 = np.zeros(bundle.spec.e, np.float32)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: Rule) -> StepResult:
        """One step on the scores; see `edge_client.runtimes.Runtime`."""
        check_step(self.bundle, x, y, state, noise, rule)
        scores, n, t, g = _vector(state.scores), len(y), state.t + 1, self._gradient
        unmasked = dict(self._frozen)
        if self.bundle.spec.e:
            unmasked |= {"exact": _vector(state.exact.values), "exact_grad.accumulation.buffer": self._by_exact}
        loss, correct = 0.0, 0
        for part in self.fit.parts(n):
            lost, right = self._training.run(
                ["loss", "correct"],
                {
                    "x": np.ascontiguousarray(x[part], np.float32),
                    "y": np.ascontiguousarray(y[part], np.float32 if self.bundle.spec.loss == "mse" else np.int64),
                    "weight": np.full(part.stop - part.start, 1 / n, np.float32),
                    "w": self.w,
                    "u": _vector(noise),
                    "mean": np.array(rule.mean),
                    "scores": scores,
                    # The gradient's place: it is written into this array, or added to what the first part left there.
                    "scores_grad.accumulation.buffer": g,
                    "lazy_reset_grad": np.array([part.start == 0]),
                    **unmasked,
                },
            )
            loss, correct = loss + float(lost), correct + int(right)
        if not rule.plain:
            theta = 1 / (1 + np.exp(-scores))
            if rule.times_theta:
                g *= theta
            by_score, by_anchor, constant = pulls(rule, self.bundle.spec.d)
            pull = by_score * scores + constant
            if by_anchor:
                pull += by_anchor * _vector(state.anchor)
            g += pull * theta * (1 - theta)

        m, v = state.m, state.v
        if rule.optimizer == "adam":
            # In place, as is the way of this operator; hence the copies.
            scores, m, v = (np.array(vector, np.float32) for vector in (scores, m, v))
            self._optimizer.run(
                None,
                {
                    "learning_rate": np.array([rule.rate], np.float32),
                    "step": np.array([t], np.int64),
                    "params": [scores],
                    "gradients": [g],
                    "first_order_moments": [m],
                    "second_order_moments": [v],
                },
            )
        elif rule.momentum:
            m = np.float32(rule.momentum) * m + g
            scores = scores - np.float32(rule.rate) * m
        else:
            scores = scores - np.float32(rule.rate) * g
        exact = state.exact.stepped(self._by_exact, rule, t)
        return finite(StepResult(State(scores, m, v, t, state.anchor, exact), loss, correct))

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """Class scores [n, classes]; see `edge_client.runtimes.Runtime`."""
        check_logits(self.bundle, x, mask, exact)
        out = np.empty((len(x), self.bundle.spec.classes), np.float32)
        feeds = {"w": self.w, "mask": _vector(mask), **self._frozen}
        if self.bundle.spec.e:
            feeds["exact"] = _vector(exact)
        # A batch at a time, so that memory does not grow with the test set.
        for at in range(0, len(x), self.bundle.batch):
            part = np.ascontiguousarray(x[at : at + self.bundle.batch], np.float32)
            out[at : at + len(part)] = self._logits.run(["logits"], {"x": part, **feeds})[0]
        return out


def open_runtime(bundle: Bundle, threads: int, fit: Fit | None = None) -> OrtTraining:
    """Load the models and make the weights; `threads` 0 is one per core."""
    return OrtTraining(bundle, threads, fit or Fit(bundle.batch))


def _vector(values: F32) -> F32:
    return np.ascontiguousarray(values, np.float32)
