"""One round of local training: from the global probabilities to one sampled mask.

FedPM's client (Isik et al., arXiv 2209.15328, algorithm 1): scores start at logit(theta), every step draws a fresh mask
for the forward pass, and at the end one mask is drawn and that is all that leaves the device. Randomness here is
private to the device; nobody else ever needs to repeat it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_client.data import Dataset
from edge_client.runtimes import DivergedError, Runtime, State
from seedmask.codec import by_id
from seedmask.mask import Mask, Theta, sample
from seedmask.spec import ModelSpec
from seedmask.wire import Announce, Update, Work

Progress = Callable[[int, int], bool]
"""Called as progress(step, steps) before each step; False stops the training."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What training gives: the `mask`, and the last epoch's mean `loss` (nats) and `correct` predictions."""

    mask: Mask
    loss: float
    correct: int


def train(
    runtime: Runtime,
    spec: ModelSpec,
    data: Dataset,
    theta: Theta,
    work: Work,
    batch: int,
    rng: np.random.Generator,
    progress: Progress = lambda step, steps: True,
) -> Outcome | None:
    """Train `work.epochs` passes over `data`, draw a mask. None if `progress` stopped it; DivergedError for NaN."""
    n = len(data.y)
    per_epoch = -(-n // batch)
    state = State.start(theta.logit())
    losses, correct = 0.0, 0
    for epoch in range(work.epochs):
        order = rng.permutation(n)
        losses, correct = 0.0, 0
        for number in range(per_epoch):
            if not progress(epoch * per_epoch + number, work.epochs * per_epoch):
                return None
            pick = order[number * batch : (number + 1) * batch]
            noise = rng.random(spec.d, np.float32)
            result = runtime.step(spec.normalise(data.x[pick]), data.y[pick], state, noise, work.learning_rate / 1e6)
            state = result.state
            losses += result.loss * len(pick)
            correct += result.correct
    if not np.isfinite(state.scores).all():
        raise DivergedError("mask scores are no longer finite numbers; is the learning rate too high?")
    with np.errstate(over="ignore"):  # a score far below zero is a probability of zero
        probability = (1 / (1 + np.exp(-state.scores))).astype(np.float32, copy=False)
    return Outcome(sample(probability, rng), losses / n, correct)


def update_of(announce: Announce, device: str, theta: Theta, outcome: Outcome, samples: int) -> Update:
    """The message that reports `outcome`, its mask coded as the announcement asks."""
    return Update(
        job=announce.job,
        device=device,
        round=announce.round,
        model=announce.model,
        theta=announce.theta,
        samples=samples,
        loss=min(int(outcome.loss * 1e6 + 0.5), (1 << 32) - 1),
        correct=outcome.correct,
        codec=announce.work.codec,
        payload=by_id(announce.work.codec).encode(outcome.mask, theta),
    )
