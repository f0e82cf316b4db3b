"""Contract of a runtime: the Protocol `Runtime`, with the types of its arguments and results.

The formulas are in arithmetic.py, and `tests/test_runtimes.py` checks every runtime against this contract. d is the
number of a model's masked weights, e the number of its exact values.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Targets = npt.NDArray[Any]
"""Class numbers, int64 [n]; for models with loss "mse" the numbers to predict, float32 [n, outputs]."""

NOTHING: Final[F32] = np.zeros(0, np.float32)
"""Stands for a vector of a State that the optimiser does not use, and for the exact values of a model without any."""


@dataclass(frozen=True)
class StepConfig:
    """Settings of one training step; `edge_client.training.step_config` makes them from a job's TrainingConfig.

    rate: learning rate of the scores, > 0.
    optimizer: "adam" (Kingma and Ba, arXiv 1412.6980; beta 0.9 and 0.999, eps 1e-8), or "sgd".
    momentum: of "sgd", 0 .. 1: m = momentum m + g; scores -= rate m.
    times_theta: True multiplies the straight-through gradient by theta, as FedPM's published code does (Isik et al.,
        arXiv 2209.15328).
    kl: adds kl * KL(theta || sigmoid(anchor)) / d to the loss, in nats.
    sparsity: adds sparsity * sum(theta) / d to the loss, in nats (Mestoukirdi et al., arXiv 2309.10834).
    mean: True trains the mean network, w * theta, without drawing a mask.
    exact_rate: learning rate of the exact values, > 0, with the same optimiser.
    """

    rate: float
    optimizer: str = "adam"
    momentum: float = 0.0
    times_theta: bool = False
    kl: float = 0.0
    sparsity: float = 0.0
    mean: bool = False
    exact_rate: float = 1e-3

    @property
    def needs(self) -> frozenset[str]:
        """Return the names of the vectors of a State that a step needs; the others may be empty."""
        first = {"m"} if self.optimizer == "adam" or self.momentum else set()
        second = {"v"} if self.optimizer == "adam" else set()
        return frozenset({"scores"} | first | second | ({"anchor"} if self.kl else set()))

    @property
    def plain(self) -> bool:
        """True if the gradient is that of the loss alone: no regulariser, and no factor theta."""
        return not (self.times_theta or self.kl or self.sparsity)


@dataclass(frozen=True, eq=False)
class Exact:
    """Exact values of a model and their optimiser's moments `m` and `v`, float32 [e] each.

    They are few, so all three always exist; every runtime updates them with `arithmetic.step_exact`.
    """

    values: F32
    m: F32
    v: F32

    @classmethod
    def start(cls, values: F32) -> Exact:
        """Return `values` float32 [e] with moments of zero."""
        return cls(values, np.zeros_like(values), np.zeros_like(values))


NO_EXACT: Final = Exact(NOTHING, NOTHING, NOTHING)


@dataclass(frozen=True, eq=False)
class State:
    """State of the training between two steps. Vectors are float32 [d], or [0] if `StepConfig.needs` lacks them.

    scores: logits of the probabilities.
    m, v: first and second moment of the optimiser.
    t: number of steps made so far.
    anchor: logits of the global probabilities, for the KL regulariser.
    exact: the model's exact values and their moments.
    """

    scores: F32
    m: F32
    v: F32
    t: int
    anchor: F32
    exact: Exact = NO_EXACT

    @classmethod
    def start(cls, scores: F32, rule: StepConfig | None = None, exact: F32 = NOTHING) -> State:
        """Return the state before a first step: `scores` float32 [d], also the anchor, `exact` float32 [e], moments 0.

        It has only the vectors that `rule` needs; with None it has all of them.
        """
        needs = frozenset({"m", "v", "anchor"}) if rule is None else rule.needs
        m, v = (np.zeros_like(scores) if name in needs else NOTHING for name in ("m", "v"))
        return cls(scores, m, v, 0, scores if "anchor" in needs else NOTHING, Exact.start(exact))

    def again(self, scores: F32, rule: StepConfig, exact: F32 = NOTHING) -> State:
        """Return the first state of a next round, with the moments of this one.

        It has new `scores` float32 [d] and `exact` float32 [e]. All moments are zero if this state lacks one that
        `rule` needs.
        """
        lacks = any(self.shape_of(name) != scores.shape for name in rule.needs - {"anchor"})
        if lacks or self.exact.m.shape != exact.shape:
            return State.start(scores, rule, exact)
        anchor = scores if rule.kl else NOTHING
        return State(scores, self.m, self.v, self.t, anchor, Exact(exact, self.exact.m, self.exact.v))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of the vector called `name`, without copying it from a GPU."""
        shape: tuple[int, ...] = getattr(self, name).shape
        return shape


@dataclass(frozen=True, eq=False)
class StepResult:
    """Result of a step: the `state` after it, and of the batch before it the mean `loss` and `correct` predictions.

    The loss is without regularisers, in nats, or the squared error if the model's loss is "mse"; `correct` is 0 then.
    """

    state: State
    loss: float
    correct: int


@dataclass(frozen=True)
class MicroBatchPlan:
    """Plan for a batch: `micro` examples at a time, computed by a `variant` of the runtime's graphs ("": the default).

    The step stays that of the whole batch: one mask, and the sum of the micro-batches' gradients.
    """

    micro: int
    variant: str = ""

    def parts(self, n: int) -> list[slice]:
        """Return the slices of `n` examples: as few micro-batches as possible, whose sizes differ by one at most."""
        count = -(-n // self.micro)
        ends = [n * i // count for i in range(count + 1)]
        return [slice(*cut) for cut in pairwise(ends)]


class DivergedError(Exception):
    """Error: scores or loss are NaN or infinite. The round is lost; the state before the step is still valid."""


class Runtime(Protocol):
    """Engine that trains and runs one model; `open_runtime` makes one."""

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """Return the result of one step on the scores s, with theta = sigmoid(s); `state` itself is not changed.

        x: float32 [n, *input], normalised, 1 <= n <= batch.
        y: see `Targets`.
        noise: float32 [d], uniform in [0, 1). The mask is noise < theta; theta itself if `rule.mean`. All steps of a
            round get the same array with new values, so a runtime may free its buffers when that array is freed.

        The optimiser takes this gradient by the scores:

            theta (1 - theta) (dL/dmask (theta if times_theta else 1) + (kl (s - anchor) + sparsity) / d)

        `step_exact` takes the gradient by the exact values. FedPM: Isik et al., arXiv 2209.15328.

        Raises DivergedError if scores or loss are no longer finite, ValueError for arguments of a wrong shape.
        """

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """Return the output of the last layer, float32 [n, classes], of the network with weights w * mask.

        x: float32 [n, *input], normalised, any n. mask: float32 [d], 0/1 or probabilities. exact: float32 [e], the
        values of the exact tensors. Raises ValueError for arguments of a wrong shape.
        """
