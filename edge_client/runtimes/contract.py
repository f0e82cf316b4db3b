"""What a runtime is given, gives back and must do; data only, the arithmetic stands beside it.

`Runtime` is the contract that `tests/test_runtimes.py` holds every runtime to. d is the number of masked weights of a
ModelSpec, e that of its exact values.
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
"""Class numbers, int64 [n], or where the spec's loss is "mse" numbers to come close to, float32 [n, classes]."""

NOTHING: Final[F32] = np.zeros(0, np.float32)
"""A vector of a State that its rule has no use for."""


@dataclass(frozen=True)
class StepConfig:
    """Say what one step does with the gradient; `edge_client.training.step_config` makes it from a job's work.

    `rate` > 0 of `optimizer`: "adam" (Kingma and Ba, arXiv 1412.6980; beta 0.9 and 0.999, eps 1e-8) or "sgd", then with
    `momentum` 0 .. 1 (m = momentum m + g, scores -= rate m). `times_theta`: the estimator of FedPM's published code
    (Isik et al., arXiv 2209.15328), which multiplies the gradient by theta once more than the identity. The local loss
    gains `kl` * KL(theta || sigmoid(anchor)) / d and `sparsity` * sum(theta) / d (Mestoukirdi et al., arXiv
    2309.10834), both in nats. `mean`: forward and backward run w * theta, no mask is drawn. `exact_rate` > 0: that of
    exact values, by the same optimiser.
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
        """Names of the vectors of a State that this rule uses; any other may be empty."""
        first = {"m"} if self.optimizer == "adam" or self.momentum else set()
        second = {"v"} if self.optimizer == "adam" else set()
        return frozenset({"scores"} | first | second | ({"anchor"} if self.kl else set()))

    @property
    def plain(self) -> bool:
        """True if the gradient is that of the loss alone, by the identity estimator."""
        return not (self.times_theta or self.kl or self.sparsity)


@dataclass(frozen=True, eq=False)
class Exact:
    """Hold a model's exact `values` and their optimiser's moments `m` and `v`, float32 [e] each.

    They are few, so all three are here whatever the rule; `arithmetic.step_exact` moves them for every runtime.
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
    """Carry training from step to step; vectors are float32 [d], or [0] where the rule has no use for them.

    `scores`, logits of the probabilities; the optimiser's first moment `m` and second moment `v`; `t`, the steps behind
    it; `anchor`, the scores of the global probabilities, which the KL term pulls towards. `exact`: the same for the
    model's exact values.
    """

    scores: F32
    m: F32
    v: F32
    t: int
    anchor: F32
    exact: Exact = NO_EXACT

    @classmethod
    def start(cls, scores: F32, rule: StepConfig | None = None, exact: F32 = NOTHING) -> State:
        """Return a state with moments of zero at `scores` float32 [d], anchored there, and at `exact` float32 [e].

        It has only the vectors that `rule` needs; all of them if that is None.
        """
        needs = frozenset({"m", "v", "anchor"}) if rule is None else rule.needs
        m, v = (np.zeros_like(scores) if name in needs else NOTHING for name in ("m", "v"))
        return cls(scores, m, v, 0, scores if "anchor" in needs else NOTHING, Exact.start(exact))

    def again(self, scores: F32, rule: StepConfig, exact: F32 = NOTHING) -> State:
        """Return a new round's state at `scores` float32 [d] and `exact` float32 [e], with the moments of this one.

        Moments start from zero where this state lacks one that `rule` needs.
        """
        lacks = any(self.shape_of(name) != scores.shape for name in rule.needs - {"anchor"})
        if lacks or self.exact.m.shape != exact.shape:
            return State.start(scores, rule, exact)
        anchor = scores if rule.kl else NOTHING
        return State(scores, self.m, self.v, self.t, anchor, Exact(exact, self.exact.m, self.exact.v))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of the vector called `name` without fetching it from where it is."""
        shape: tuple[int, ...] = getattr(self, name).shape
        return shape


@dataclass(frozen=True, eq=False)
class StepResult:
    """Report a step: the `state` after it, mean `loss` and number of `correct` predictions before it.

    The loss is in nats, or squares where the spec's is "mse", without regularisers; "mse" has no correct ones: 0.
    """

    state: State
    loss: float
    correct: int


@dataclass(frozen=True)
class MicroBatchPlan:
    """Plan how a batch is taken: `micro` examples at a time, by a `variant` of the runtime's graphs ("": the usual).

    A step is that of the whole batch either way: one mask, one gradient, which is summed.
    """

    micro: int
    variant: str = ""

    def parts(self, n: int) -> list[slice]:
        """Return where `n` examples are cut: as few parts as there can be, of the same size or one less."""
        count = -(-n // self.micro)
        ends = [n * i // count for i in range(count + 1)]
        return [slice(*cut) for cut in pairwise(ends)]


class DivergedError(Exception):
    """Scores or loss have become NaN or infinite; the round is lost, the state it started from is not."""


class Runtime(Protocol):
    """Train and predict one model; `open_runtime` makes it ready."""

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """Return the state after one step on the scores s, with theta = sigmoid(s).

        x float32 [n, *input] normalised, 1 <= n <= batch; y as `Targets` says; noise float32 [d] uniform in 0 .. 1: the
        mask of this step is noise < theta, or theta itself if `rule.mean`. One array of noise serves all steps of a
        round: what a runtime keeps between steps may live as long as it. The gradient by the scores is

            theta (1 - theta) (dL/dmask (theta if times_theta else 1) + (kl (s - anchor) + sparsity) / d)

        and goes to the optimiser; that by the exact values goes to theirs (`step_exact`). The state that came in is
        left as it was. The method is FedPM's: Isik et al., arXiv 2209.15328.

        Raises DivergedError where scores or loss are no longer finite, ValueError for arguments of another shape.
        """

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """Return the last layer's output, float32 [n, classes], under weights w * mask.

        x float32 [n, *input] normalised, any n; mask float32 [d], 0/1 or probabilities; exact float32 [e], the values
        of the exact tensors. Raises ValueError for arguments of another shape.
        """
