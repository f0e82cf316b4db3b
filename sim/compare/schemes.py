"""Baselines: what their devices send, what their server computes and sends back; one round at a time, no network.

All of them train like FedAvg (McMahan et al., arXiv 1602.05629), on the same examples, epochs and batches, with a new
optimiser in every round. They differ in how the change of the weights is coded. Devices and server only use numbers
that were encoded and decoded, so that no method profits from information that was not sent. Initial weights follow from
a seed that everybody knows, so nothing is sent down before round 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from edge_client.data import Dataset
from edge_client.runtimes import Runtime, State, StepConfig
from edge_client.training import step_config
from seedmask.codec import counts, packed
from seedmask.mask import F32, Theta
from seedmask.shared import Shared
from seedmask.spec import ModelSpec
from seedmask.training import TrainingConfig
from sim.compare import codecs
from sim.device import name_of

_BROADCAST: Final = "server"  # stands for a device's name when the server codes with shared uniforms


@dataclass(frozen=True)
class Local:
    """Result of local training: `x` float32 [d], the weights or scores; mean `loss` of the last epoch (nats)."""

    x: F32
    loss: float


Train = Callable[[int, int, F32], Local]
"""Function train(round, device, start) that trains device number `device` locally, from `start` float32 [d]."""


@dataclass(frozen=True)
class Sent:
    """Payloads of one round: `down` to every device before it trained (empty: nothing), `up` from each device."""

    down: bytes
    up: tuple[bytes, ...]
    losses: tuple[float, ...]


class Scheme(Protocol):
    """Method of federated learning with its state: the weights, and coding errors that devices and server keep."""

    weights: F32

    def round(self, number: int, train: Train) -> Sent:
        """Play round `number`, counted from 1, and return its payloads; `weights` are then the server's new ones."""


class Dense:
    """Scheme that sends changes of dense weights: a codec up, a codec down, and the server's rule between them."""

    def __init__(
        self,
        weights: F32,
        samples: Sequence[int],
        up: codecs.Codec,
        down: codecs.Codec | None,
        shared: Callable[[int, str], Shared],
        rng: np.random.Generator,
        *,
        feedback: bool = False,
        down_feedback: bool = False,
        vote_rate: float = 0.0,
    ) -> None:
        """Begin at `weights` float32 [d].

        samples: number of examples of each device, its weight in the mean.
        up, down: codecs of the changes; down None sends the weights themselves, as float32.
        shared: returns the uniforms shared in a round with a device; rng: private random numbers of everybody.
        feedback: True if a device adds the coding error of a change to its next change.
        down_feedback: True if the server does so as well.
        vote_rate: > 0: the server steps by this size along the sign of the sum of signs; 0: by the weighted mean.
        """
        self.weights, self.samples = weights, np.asarray(samples, np.float64)
        self.up, self.down, self.shared, self.rng = up, down, shared, rng
        self.vote_rate = vote_rate
        d = weights.size
        self._errors = [np.zeros(d, np.float32) for _ in samples] if feedback else []
        self._down_error = np.zeros(d, np.float32) if down_feedback else None
        self._pending = b""

    def round(self, number: int, train: Train) -> Sent:
        """See Scheme."""
        down = self._pending
        total, payloads, losses = np.zeros(self.weights.size, np.float64), [], []
        share = self.samples / self.samples.sum()
        for device in range(len(self.samples)):
            local = train(number, device, self.weights)
            change = local.x - self.weights
            if self._errors:
                change = change + self._errors[device]
            shared = self.shared(number, name_of(device))
            payload = self.up.encode(change, shared, self.rng)
            received = self.up.decode(payload, change.size, shared)
            if self._errors:
                self._errors[device] = change - received
            total += received if self.vote_rate else share[device] * received
            payloads.append(payload)
            losses.append(local.loss)
        self._pending = self._step(number, total.astype(np.float32))
        return Sent(down, tuple(payloads), tuple(losses))

    def _step(self, number: int, total: F32) -> bytes:
        """Change the weights by what every device will decode, and return the bytes to send."""
        if self.down is None:
            self.weights = self.weights + total
            return codecs.Fp32().encode(self.weights, self.shared(number, _BROADCAST), self.rng)
        if self._down_error is not None:
            total = total + self._down_error
        shared = self.shared(number, _BROADCAST)
        payload = self.down.encode(total, shared, self.rng)
        moved = self.down.decode(payload, total.size, shared)
        if self._down_error is not None:
            self._down_error = total - moved
        self.weights = self.weights + (np.float32(self.vote_rate) * moved if self.vote_rate else moved)
        return payload


class Sparse:
    """Downlink codec of top-k: sends all entries that are not zero, in the format of `codecs.TopK`."""

    def encode(self, x: F32, shared: Shared, rng: np.random.Generator) -> bytes:
        """See codecs.Codec."""
        return codecs.sparse_bytes(x, np.flatnonzero(x))

    def decode(self, payload: bytes, d: int, shared: Shared) -> F32:
        """See codecs.Codec."""
        return codecs.sparse_vector(payload, d)


class FedMask:
    """Scheme with deterministic masks, after FedMask (Li et al., SenSys 2021): weights with a score above 0 are kept.

    Random weights and straight-through gradient are those of `edge_client.training`, but no mask is drawn at random:
    the forward pass and the update use the thresholded scores, one bit per weight, and the server publishes their mean
    as counts. Initial scores are random: at theta = 1/2 all weights would be dropped.
    """

    def __init__(self, spec: ModelSpec, devices: int, rng: np.random.Generator) -> None:
        """Draw initial scores from `rng`, which all parties know."""
        self.devices, self.d = devices, spec.d
        self.theta = Theta(rng.integers(0, 256, spec.d).astype(np.uint16), 255)
        self.weights = self.theta.logit()
        self._pending = b""

    def round(self, number: int, train: Train) -> Sent:
        """See Scheme. Here `weights` are scores."""
        down, ones, payloads, losses = self._pending, np.zeros(self.d, np.uint16), [], []
        for device in range(self.devices):
            local = train(number, device, self.weights)
            payload = packed.encode((local.x > 0).astype(np.uint8), self.theta)
            ones += packed.decode(payload, self.theta)
            payloads.append(payload)
            losses.append(local.loss)
        self.theta = Theta(ones, self.devices)
        self.weights = self.theta.logit()
        self._pending = counts.encode(self.theta)
        return Sent(down, tuple(payloads), tuple(losses))


def train_thresholded(
    runtime: Runtime,
    spec: ModelSpec,
    data: Dataset,
    start: F32,
    work: TrainingConfig,
    batch: int,
    rng: np.random.Generator,
) -> Local:
    """Return the result of local training as in `edge_client.training.train`, but with the mask score > 0."""
    rule: StepConfig = replace(step_config(work, 1), mean=False)
    state = State.start(start, rule)
    half = np.full(spec.d, 0.5, np.float32)  # the runtime's "noise < theta" then means theta > 1/2
    losses = 0.0
    for _ in range(work.epochs):
        order, losses = rng.permutation(len(data.y)), 0.0
        for at in range(0, len(order), batch):
            pick = order[at : at + batch]
            result = runtime.step(spec.normalise(data.x[pick]), data.y[pick], state, half, rule)
            state, losses = result.state, losses + result.loss * len(pick)
    return Local(state.scores, losses / len(data.y))


DENSE: Final = ("fedavg", "signsgd", "ef-signsgd", "qsgd", "topk", "drive")
KINDS: Final = ("masks", *DENSE, "fedmask")
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "fedavg": ("optimizer", "rate"),
    "signsgd": ("optimizer", "rate", "server_rate"),
    "ef-signsgd": ("optimizer", "rate"),
    "qsgd": ("optimizer", "rate", "levels", "bucket"),
    "topk": ("optimizer", "rate", "keep"),
    "drive": ("optimizer", "rate"),
    "fedmask": ("rate",),
}
"""Settings that a grid may give to each kind except `masks`."""


def dense(
    kind: str,
    settings: dict[str, Any],
    spec: ModelSpec,
    weights: F32,
    samples: Sequence[int],
    shared: Callable[[int, str], Shared],
    rng: np.random.Generator,
) -> Dense:
    """Return the baseline `kind`, one of DENSE, with its settings from a grid. Raises ValueError for another kind."""
    sizes = tuple(tensor.size for tensor in spec.tensors)
    if kind == "fedavg":
        return Dense(weights, samples, codecs.Fp32(), None, shared, rng)
    if kind == "signsgd":
        rate = float(settings.get("server_rate", 0.001))
        return Dense(weights, samples, codecs.Sign(), codecs.Sign(), shared, rng, vote_rate=rate)
    if kind == "ef-signsgd":
        # Downlink as in Zheng, Huang and Kwok, arXiv 1905.10936: the server sends signs too, and keeps its own error.
        sign = codecs.ScaledSign(sizes)
        return Dense(weights, samples, sign, sign, shared, rng, feedback=True, down_feedback=True)
    if kind == "qsgd":
        up = codecs.Qsgd(int(settings.get("levels", 4)), int(settings.get("bucket", 512)))
        return Dense(weights, samples, up, None, shared, rng)
    if kind == "topk":
        top = codecs.TopK(float(settings.get("keep", 0.01)))
        return Dense(weights, samples, top, Sparse(), shared, rng, feedback=True)
    if kind == "drive":
        return Dense(weights, samples, codecs.Drive(), None, shared, rng)
    raise ValueError(f"a baseline is one of {', '.join(DENSE)}, found {kind!r}")
