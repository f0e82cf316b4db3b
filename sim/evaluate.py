"""Evaluation of the global model on examples that no device has seen, in three ways.

sampled: the sampled network, with a new mask for every 500 examples, as FedPM reports it (arXiv 2209.15328); noisy.
thresholded: the finished model, which keeps the weights with theta >= 1/2.
mean: the mean network, with weights w * theta.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset
from edge_client.runtimes import F32, Runtime
from seedmask.mask import Theta, sample
from seedmask.spec import ModelSpec

_BATCH = 500
METRICS: Final = {"cross-entropy": "accuracy", "mse": "error"}
"""Measure for each loss: accuracy, the share of correct predictions, 0 .. 1, or error, the mean squared error."""


@dataclass(frozen=True)
class Score:
    """Score of the sampled, thresholded and mean network; accuracy or error, as METRICS says for the model's loss."""

    sampled: float
    thresholded: float
    mean: float


def score(runtime: Runtime, spec: ModelSpec, test: Dataset, theta: Theta, rng: np.random.Generator) -> Score:
    """Measure `theta` on all of `test`: accuracy 0 .. 1, or the mean squared error if the loss of `spec` is "mse"."""
    probability = theta.probability()
    thresholded, exact = theta.threshold().astype(np.float32), theta.values()
    total: Callable[[F32, npt.NDArray[Any]], float] = _squares if spec.loss == "mse" else _correct
    count = test.y.size

    def figure(mask: F32 | None) -> float:
        found = 0.0
        for start in range(0, len(test.y), _BATCH):
            x = spec.normalise(test.x[start : start + _BATCH])
            drawn = sample(probability, rng).astype(np.float32) if mask is None else mask
            found += total(runtime.logits(x, drawn, exact), test.y[start : start + _BATCH])
        return round(found / count, 6)

    return Score(figure(None), figure(thresholded), figure(probability))


def _correct(logits: F32, y: npt.NDArray[Any]) -> float:
    return float((logits.argmax(1) == y).sum())


def _squares(outputs: F32, y: npt.NDArray[Any]) -> float:
    return float(((outputs.astype(np.float64) - y) ** 2).sum())
