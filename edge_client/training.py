"""One round of local training: from the global probabilities to new scores, and from these to the masks that are sent.

FedPM's client (Isik et al., arXiv 2209.15328, algorithm 1): scores start at logit(theta), every step draws a fresh mask
for the forward pass, and at the end masks are drawn from what was learnt, and they are all that leaves the device.
Randomness here is private to the device, but for the uniforms that the codecs share with the aggregator (PROTOCOL 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from edge_client.data import Dataset
from edge_client.runtimes import F32, NOTHING, DivergedError, Runtime, State, StepConfig
from seedmask.codec import by_id, exact
from seedmask.mask import Theta
from seedmask.shared import Shared
from seedmask.spec import ModelSpec
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Update, basis

Progress = Callable[[int, int], bool]
"""Called as progress(step, steps) before each step; False stops the training."""


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What training gives.

    `scores` float32 [d], the logits of the probabilities that were learnt; the last epoch's mean `loss` (nats) and
    `correct` predictions; `state`, to go on from where the optimiser stood (None: nothing to go on from); `exact`
    float32 [e], the exact values that were learnt.
    """

    scores: F32
    loss: float
    correct: int
    state: State | None = None
    exact: F32 = field(default_factory=NOTHING.copy)


def step_config(training: TrainingConfig, round_: int) -> StepConfig:
    """Return what a job asks of every step in round `round_`; the mean network's epochs are `train`'s affair."""
    return StepConfig(
        rate=training.rate(round_),
        optimizer=training.optimizer,
        momentum=training.momentum,
        times_theta=training.straight_through == "theta",
        kl=training.kl,
        sparsity=training.sparsity,
        exact_rate=training.rate_of_exact(round_),
    )


def train(
    runtime: Runtime,
    spec: ModelSpec,
    data: Dataset,
    theta: Theta,
    training: TrainingConfig,
    batch: int,
    rng: np.random.Generator,
    progress: Progress = lambda step, steps: True,
    *,
    round_: int = 1,
    kept: list[State] | None = None,
) -> TrainingResult | None:
    """Train `training.epochs` passes over `data`. None if `progress` stopped it; DivergedError for NaN.

    `kept` has the last round's Outcome.state where the optimiser goes on from round to round. It is taken out of the
    list, so that nobody holds two states of it.
    """
    n = len(data.y)
    per_epoch = -(-n // batch)
    rule = step_config(training, round_)
    # Scores are held by the state alone: a vector less from the first step on.
    if kept:
        state = kept.pop().again(theta.logit(), rule, theta.values())
    else:
        state = State.start(theta.logit(), rule, theta.values())
    noise = np.zeros(spec.d, np.float32)
    losses, correct = 0.0, 0
    for epoch in range(training.epochs):
        rule = replace(rule, mean=epoch < training.mean_epochs)
        order = rng.permutation(n)
        losses, correct = 0.0, 0
        for number in range(per_epoch):
            if not progress(epoch * per_epoch + number, training.epochs * per_epoch):
                return None
            pick = order[number * batch : (number + 1) * batch]
            if not rule.mean:
                rng.random(dtype=np.float32, out=noise)
            result = runtime.step(spec.normalise(data.x[pick]), data.y[pick], state, noise, rule)
            state = result.state
            losses += result.loss * len(pick)
            correct += result.correct
    scores, values = state.scores, state.exact.values
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise DivergedError("mask scores or exact values are no longer finite; is the learning rate too high?")
    return TrainingResult(scores, losses / n, correct, state, values)


def update_of(
    announce: Announce,
    device: str,
    spec: ModelSpec,
    theta: Theta,
    outcome: TrainingResult,
    samples: int,
    rng: np.random.Generator,
    bits_per_index: float | None = None,
) -> Update:
    """The message that reports `outcome`: `training.masks` masks, each drawn and coded as the announcement asks.

    And how far the exact values have come.

    `rng` is private; `bits_per_index` is the device's own wish for bits of KL per block index, within the job's bounds.
    """
    training = announce.training
    plan = training.plan(bits_per_index)
    payloads = []
    for index in range(training.masks):
        shared = Shared(spec.seed, announce.round, announce.job, device, index)
        payloads.append(by_id(training.codec_id).draw(outcome.scores, theta, shared, rng, plan))
    return Update(
        round=announce.round,
        basis=basis(announce.job, announce.model, announce.theta),
        samples=samples,
        loss=min(int(outcome.loss * 1e6 + 0.5), (1 << 32) - 1),
        correct=outcome.correct,
        codec=training.codec_id,
        payloads=tuple(payloads),
        exact=exact.encode(exact.quantised(outcome.exact, theta.exact), theta.exact),
    )
