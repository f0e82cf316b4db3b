"""How good the global model is, three ways, on images that no device has seen.

sampled: a fresh mask drawn from theta per batch of 500, as FedPM reports it (noisy); thresholded: the finished model,
theta >= 1/2; mean: the weights w * theta.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_client.data import Dataset
from edge_client.runtimes import F32, Runtime
from seedmask.mask import Theta, sample
from seedmask.spec import ModelSpec

_BATCH = 500


@dataclass(frozen=True)
class Accuracy:
    """Shares of correct predictions, 0 .. 1."""

    sampled: float
    thresholded: float
    mean: float


def accuracy(runtime: Runtime, spec: ModelSpec, test: Dataset, theta: Theta, rng: np.random.Generator) -> Accuracy:
    """Measure `theta` on all of `test`."""
    probability = theta.probability()
    thresholded, exact = theta.threshold().astype(np.float32), theta.values()

    def fraction(mask: F32 | None) -> float:
        correct = 0
        for start in range(0, len(test.y), _BATCH):
            x = spec.normalise(test.x[start : start + _BATCH])
            drawn = sample(probability, rng).astype(np.float32) if mask is None else mask
            correct += int((runtime.logits(x, drawn, exact).argmax(1) == test.y[start : start + _BATCH]).sum())
        return round(correct / len(test.y), 6)

    return Accuracy(fraction(None), fraction(thresholded), fraction(probability))
