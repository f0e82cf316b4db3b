"""Local training of one round: from the global probabilities to new scores, and from these to the masks that are sent.

FedPM's client (Isik et al., arXiv 2209.15328, algorithm 1). Scores start at logit(theta), and every step draws a fresh
mask for the forward pass. At the end masks are drawn from the learnt probabilities and sent in place of the scores.
Random numbers are private to the device, except for the uniforms that a codec shares with the aggregator (PROTOCOL 2).
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
    """Result of one round of local training.

    `scores` float32 [d]: logits of the learnt probabilities. `loss` and `correct`: the last epoch's mean loss (nats, or
    squared error for "mse") and number of correct predictions. `state`: the optimiser's state after the last step, for
    a next round to continue from, or None. `exact` float32 [e]: the learnt exact values.
    """

    scores: F32
    loss: float
    correct: int
    state: State | None = None
    exact: F32 = field(default_factory=NOTHING.copy)


def step_config(training: TrainingConfig, round_: int) -> StepConfig:
    """Return the settings of every step of round `round_`; `mean` is left False, because `train` sets it by epoch."""
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
    """Train for `training.epochs` passes over `data`, and return the result; None if `progress` stopped it.

    `theta`: the global probabilities to start from. `batch`: examples per step. `kept`: a list with the last round's
    `TrainingResult.state`, if the optimiser continues from round to round; the state is taken out of the list, so that
    the caller does not keep a second one in memory. FedPM: Isik et al., arXiv 2209.15328, algorithm 1.

    Raises DivergedError if scores, exact values or the loss are no longer finite.
    """
    n = len(data.y)
    per_epoch = -(-n // batch)
    rule = step_config(training, round_)
    # Only the state refers to the scores, so their memory is free from the first step on.
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
    """Return the update that reports `outcome`: the masks, drawn and coded as `announce` asks, and the exact values.

    `samples`: number of examples trained on. `rng`: the device's private generator. `bits_per_index`: bits of relative
    entropy per block index that this device prefers for codec `hmrc`; the job's bounds apply. PROTOCOL 5 and 6.
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
