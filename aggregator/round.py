"""The aggregator's half of a round: `step(state, event) -> (state, effects)`, pure.

No clock, no network, no disk; nothing that a device sends or a server rule does can raise here. Every update gets
exactly one kind of receipt, and the effect that stores an update always comes before the effect that sends its receipt,
so that a restart at any point continues the same round with the same counts.  PROTOCOL 8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np

from aggregator.finished import finished
from aggregator.rules.contract import Rule, RuleError, Votes
from aggregator.rules.fedpm import FedPM
from aggregator.rules.registry import conclude
from aggregator.settings import AggregationConfig, RoundsConfig
from seedmask.chunks import transfer_id
from seedmask.codec import by_id, counts, delta, exact, packed, relay
from seedmask.errors import ProtocolError
from seedmask.io.link import Connected, Disconnected, Refused
from seedmask.io.logs import Log
from seedmask.mask import I32, MAX_LEVEL, Mask, Theta
from seedmask.pooling import pool, weight_of
from seedmask.shared import Shared
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Phase, Presence, Receipt, Status, Update, basis

REMIND_SECONDS: Final = 10.0


@dataclass(frozen=True)
class ClockTicked:
    """`now`: seconds on whatever clock the shell uses."""

    now: float


@dataclass(frozen=True)
class PresenceChanged:
    """A device's presence changed."""

    presence: Presence


@dataclass(frozen=True)
class UpdateArrived:
    """A whole update came on the topic of `device`, as transfer `transfer`; `frame` holds its bytes."""

    device: str
    transfer: bytes
    update: Update
    frame: bytes


@dataclass(frozen=True)
class TransferBroken:
    """A whole transfer came that is no update; `error` says what rule it breaks."""

    device: str
    transfer: bytes
    error: ProtocolError


Event: TypeAlias = ClockTicked | PresenceChanged | UpdateArrived | TransferBroken | Connected | Disconnected | Refused


@dataclass(frozen=True)
class RoundOpened:
    """Store that `round` began, for the devices `selected` (empty: all), to close at `quorum`.

    `blob`: its theta as it is published whole, which is what the round before left; `delta`: the same for those who
    hold the one before, empty if it is not published so.
    """

    round: int
    blob: bytes
    selected: tuple[str, ...]
    quorum: int
    delta: bytes
    training: TrainingConfig


@dataclass(frozen=True)
class SelectionExtended:
    """Store that the open `round` asks the devices `selected`, more than it did."""

    round: int
    selected: tuple[str, ...]


@dataclass(frozen=True)
class UpdateAccepted:
    """Store an accepted update of `device`, as the `frame` that came."""

    device: str
    transfer: bytes
    update: Update
    frame: bytes


@dataclass(frozen=True)
class SendReceipt:
    """Send a receipt."""

    device: str
    receipt: Receipt


@dataclass(frozen=True)
class RoundClosed:
    """Store that `round` ended, what came of it, and the `memory` of the rule; save the finished model.

    `theta` came of it, `blob` is the same coded. The finished model is that of `mask` uint8 [d] and the `exact` values
    int32 [e]. `keep`: keep the round's updates too, because they may be passed on in place of theta.
    """

    round: int
    theta: Theta
    blob: bytes
    updates: int
    memory: bytes
    mask: Mask
    exact: I32
    keep: bool = False


@dataclass(frozen=True)
class RuleFailed:
    """Stop the job: the server rule could not conclude the open round, whose updates are stored."""

    error: RuleError


@dataclass(frozen=True)
class PublishRound:
    """Publish the announcement, and first the probabilities if `theta`."""

    theta: bool


@dataclass(frozen=True)
class EndJob:
    """The job is over."""


Effect: TypeAlias = (
    RoundOpened
    | SelectionExtended
    | UpdateAccepted
    | SendReceipt
    | RoundClosed
    | RuleFailed
    | PublishRound
    | Log
    | EndJob
)


@dataclass(frozen=True, eq=False)
class JobState:
    """All that the aggregator knows of its job.

    `seed`: the model's. `rule` makes theta of the masks. `training`: what the open round's devices do, `wanted`: what
    those of the next one do if the settings changed meanwhile.
    `round` is the open round, or the last one while waiting or done; `theta` the probabilities it started from, or what
    came of it; `base` those of the round before, which its devices hold; `memory` what the rule left beside theta in
    the last closed round; `recent` the results of the last rounds that the finished model is the mean of. `blob`:
    theta, coded once, when it is made (empty before the first round); `delta`: theta as the open round publishes it for
    those who hold `base`. `votes`: sums over the open round's masks. `parts`: its updates as they came; `made`: those
    that theta follows from by `seedmask.pooling`, for a relay.
    `online`: device to its presence; `silent`: the same for those that let a round run out of time. `accepted`: device
    to transfer id, this round. `counted`: the same for each device's latest accepted update of any round.
    """

    name: str
    model: bytes
    d: int
    seed: int
    rounds: RoundsConfig
    training: TrainingConfig
    aggregation: AggregationConfig
    theta: Theta
    rule: Rule = field(default_factory=FedPM)
    wanted: TrainingConfig | None = None
    phase: Phase = Phase.WAITING
    round: int = 0
    now: float = 0.0
    deadline: float = 0.0
    reminded: float = 0.0
    base: Theta | None = None
    memory: bytes = b""
    recent: tuple[Theta, ...] = ()
    blob: bytes = b""
    delta: bytes = b""
    parts: tuple[relay.Part, ...] = ()
    made: tuple[relay.Part, ...] = ()
    selected: tuple[str, ...] = ()
    quorum: int = 0
    votes: Votes = field(default_factory=lambda: Votes.empty(0))
    online: Mapping[str, Presence] = field(default_factory=dict)
    silent: Mapping[str, Presence] = field(default_factory=dict)
    accepted: Mapping[str, bytes] = field(default_factory=dict)
    counted: Mapping[str, bytes] = field(default_factory=dict)


Step: TypeAlias = tuple[JobState, list[Effect]]


def step(job: JobState, event: Event) -> Step:
    """Return the state and the effects after one event; nothing that a device sends can raise."""
    match event:
        case ClockTicked(now):
            return _ticked(replace(job, now=now))
        case PresenceChanged(presence):
            return _presence_changed(job, presence)
        case UpdateArrived():
            return _arrived(job, event)
        case TransferBroken(device, transfer, error):
            text = f"{error.code}: {error}"
            return job, [
                _receipt(job, device, transfer, job.round, Status.INVALID, text),
                Log(f"{device}: {text}"),
            ]
        case Connected():
            # A broker that restarted has forgotten what it retained.
            return job, [PublishRound(theta=job.phase is Phase.OPEN)]
        case Disconnected(reason):
            return job, [Log(f"offline: {reason}")]
        case Refused(topic, reason):
            return job, [Log(f"the broker refused {topic}: {reason}")]


def resume(
    job: JobState, selected: tuple[str, ...], quorum: int, updates: list[tuple[str, bytes, Update]], delta: bytes = b""
) -> JobState:
    """Return `job`, whose round, theta, blob, base and memory are as stored, with that round open again.

    Counts the stored `updates`, (device, transfer, update) each, again. `delta`: as it was published.
    """
    job = _opened(job, selected, quorum, delta)
    for device, transfer, update in updates:
        job = _counted(job, device, transfer, update, _voted(job, device, update))
    return job


def part_of(device: str, update: Update) -> relay.Part:
    """Return an accepted update as a relay passes it on."""
    return relay.Part(device, update.samples, update.codec, update.payloads)


def waiting_for(job: JobState) -> str:
    """Say in one line what the job waits for."""
    if job.phase is Phase.DONE:
        return f"done after {job.round} rounds"
    if job.phase is Phase.WAITING:
        return f"{len(job.online)} of {job.rounds.devices} devices online, need {job.rounds.devices}" + (
            f" (no answer in time from {', '.join(sorted(job.silent)[:5])})" if job.silent else ""
        )
    missing = sorted(set(job.selected or job.online) - set(job.accepted))
    names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    left = job.deadline - job.now
    time = f"{left:.0f} s left" if left > 0 else f"time is up, at least {job.rounds.minimum} must come"
    return f"round {job.round} of {job.rounds.total}: {len(job.accepted)} of {job.quorum} updates, {time}" + (
        f", waiting for {names}" if missing else ""
    )


def announcement(job: JobState, chunks: int, delta_chunks: int = 0) -> Announce:
    """Return what every device is told: the round's probabilities come in `chunks`, or as `delta_chunks` of a delta."""
    left = max(0.0, job.deadline - job.now) if job.phase is Phase.OPEN else 0.0
    return Announce(
        job=job.name,
        round=job.round,
        rounds=job.rounds.total,
        phase=job.phase,
        model=job.model,
        theta=job.theta.digest(),
        transfer=transfer_id(job.blob) if job.phase is Phase.OPEN else bytes(16),
        chunks=chunks,
        base=job.base.digest() if job.base is not None and job.delta else bytes(16),
        delta=transfer_id(job.delta) if job.delta else bytes(16),
        delta_chunks=delta_chunks,
        deadline_ms=round(left * 1000),
        training=job.training,
        selected=job.selected,
        text="" if job.phase is Phase.OPEN else waiting_for(job),
    )


def _ticked(job: JobState) -> Step:
    """Close a round whose quorum or time is reached, ask more devices, or say what the job waits for."""
    if job.phase is Phase.OPEN and len(job.accepted) >= job.quorum:
        return _close(job, "quorum")  # a restart came between the last update and the closing
    if job.phase is Phase.OPEN and job.now >= job.deadline:
        if len(job.accepted) >= job.rounds.minimum:
            return _close(_mark_unresponsive(job), "time is up")
        if others := sorted(set(job.online) - set(job.selected)) if job.selected else []:
            return _extend_selection(job, others)
    if job.phase is not Phase.DONE and job.now - job.reminded >= REMIND_SECONDS:
        return replace(job, reminded=job.now), [Log(waiting_for(job))]
    return job, []


def _mark_unresponsive(job: JobState) -> JobState:
    """Take the devices that did not answer in time off the list, until we next hear from them."""
    silent = {name: seen for name, seen in job.online.items() if name not in job.accepted}
    asked = {name: seen for name, seen in silent.items() if not job.selected or name in job.selected}
    online = {name: seen for name, seen in job.online.items() if name not in asked}
    return replace(job, online=online, silent={**job.silent, **asked})


def _extend_selection(job: JobState, others: list[str]) -> Step:
    """Ask more devices, because too few of those asked have answered to make up the minimum."""
    more = _draw(job, others, job.rounds.minimum - len(job.accepted))
    selected = tuple(sorted({*job.selected, *more}))
    job = replace(job, selected=selected, deadline=job.now + job.rounds.deadline_s)
    return job, [
        SelectionExtended(job.round, selected),
        PublishRound(theta=False),
        Log(f"time is up with {len(job.accepted)} of {job.rounds.minimum} updates: asking {', '.join(more)} as well"),
    ]


def _presence_changed(job: JobState, presence: Presence) -> Step:
    """Note who is online, and open a round if the job was waiting for that device."""
    known = job.online.get(presence.device)
    others = {name: seen for name, seen in job.online.items() if name != presence.device}
    if not presence.online:
        if known is None or known.boot != presence.boot:
            return job, []  # the will of an earlier life
        job = replace(job, online=others)
        return job, [Log(f"{presence.device} left; {waiting_for(job)}")]
    if presence.model != job.model:
        theirs, ours = presence.model.hex()[:12], job.model.hex()[:12]
        return replace(job, online=others), [
            Log(f"{presence.device} has model {theirs}, the job trains {ours}: it is not counted")
        ]
    silent = {name: seen for name, seen in job.silent.items() if name != presence.device}
    job = replace(job, online={**others, presence.device: presence}, silent=silent)
    if known is not None:
        return job, []
    said: list[Effect] = [Log(f"{presence.device} is here: {presence.samples:,} examples, {presence.runtime}")]
    if job.phase is Phase.WAITING:
        job, more = _maybe_open(job)
        return job, said + more
    return job, said


def _maybe_open(job: JobState) -> Step:
    """Open the next round if enough devices are online; otherwise say what is missing."""
    if len(job.online) < job.rounds.devices:
        return job, [PublishRound(theta=False), Log(waiting_for(job))]
    job = replace(job, training=job.wanted or job.training)
    names = sorted(job.online)
    few = 0 < job.rounds.per_round < len(names)
    selected = tuple(sorted(_draw(job, names, job.rounds.per_round))) if few else ()
    quorum = min(job.rounds.quorum or len(selected or names), MAX_LEVEL)
    job = _opened(replace(job, round=job.round + 1), selected, quorum)
    return job, [
        RoundOpened(job.round, job.blob, selected, quorum, job.delta, job.training),
        PublishRound(theta=True),
        Log(waiting_for(job)),
    ]


def _draw(job: JobState, names: list[str], n: int) -> list[str]:
    """Draw `n` of `names` by a hash, so that a restart draws the same."""

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{job.name}/{job.round + 1}/{name}".encode()).digest()

    return sorted(names, key=rank)[:n]


def _opened(job: JobState, selected: tuple[str, ...], quorum: int, published: bytes | None = None) -> JobState:
    """Open the job's round. `published`: the delta that went out with it before a restart, if it did."""
    blob = job.blob or counts.encode(job.theta)
    return replace(
        job,
        phase=Phase.OPEN,
        deadline=job.now + job.rounds.deadline_s,
        reminded=job.now,
        blob=blob,
        delta=_delta(job, len(blob)) if published is None else published,
        selected=selected,
        quorum=quorum,
        votes=Votes.empty(job.d, job.theta.e, job.round),
        parts=(),
        made=(),
        accepted={},
    )


def _delta(job: JobState, whole: int) -> bytes:
    """Return theta as a delta or relay, for devices that hold the one before; b"" unless that is below `whole`.

    The delta is coded only if its estimate is below the size of the masks, which are coded already.
    """
    if job.base is None:
        return b""
    masks, size = relay.size(job.made)
    relayed = bool(masks) and size < whole and masks * job.d <= relay.MAX_WORK
    best = b""
    if delta.possible(job.theta, job.base) and not (relayed and size < delta.estimate(job.theta, job.base)):
        best = delta.encode(job.theta, job.base)
    elif relayed:
        best = relay.encode(job.base, job.round - 1, job.aggregation.pooling, job.made, job.theta.exact)
    return best if len(best) < whole else b""


def _arrived(job: JobState, event: UpdateArrived) -> Step:
    """Take an update, and its device back on the list if it had not answered in time."""
    back: list[Effect] = []
    if event.device in job.silent:  # slow, not gone
        job, back = _presence_changed(job, job.silent[event.device])
    job, effects = _answered(job, event)
    return job, back + effects


def _answered(job: JobState, event: UpdateArrived) -> Step:
    """Count an update or refuse it, always with a receipt, and close the round if it completes the quorum."""
    device, transfer, update = event.device, event.transfer, event.update
    status, reason = _classify(job, device, transfer, update)
    if status is Status.ACCEPTED:
        try:
            votes = _voted(job, device, update)
        except ProtocolError as error:
            status, reason = Status.INVALID, f"{error.code}: {error}"
    reply = _receipt(job, device, transfer, update.round, status, reason)
    if status is not Status.ACCEPTED:
        return job, [
            reply,
            Log(f"{device}, round {update.round}: {status.name.lower().replace('_', '-')}: {reason}"),
        ]
    job = _counted(job, device, transfer, update, votes)
    effects: list[Effect] = [UpdateAccepted(device, transfer, update, event.frame), reply, Log(waiting_for(job))]
    if len(job.accepted) < job.quorum:
        return job, effects
    job, more = _close(job, "quorum")
    return job, effects + more


def _classify(job: JobState, device: str, transfer: bytes, update: Update) -> tuple[Status, str]:
    """Return the receipt's status of an update and why, before its masks are decoded."""
    if update.correct > update.samples:
        return Status.INVALID, f"{update.correct} correct of {update.samples} samples"
    if job.counted.get(device) == transfer:
        return Status.DUPLICATE, "already counted"
    if update.round > job.round:
        return Status.STALE, f"round {update.round} has not been"
    if update.round < job.round or job.phase is not Phase.OPEN:
        return Status.LATE, f"round {update.round} is closed"
    if device in job.accepted:
        return Status.DUPLICATE, "another update of this device is counted in this round"
    if update.basis != basis(job.name, job.model, job.theta.digest()):
        return Status.STALE, "made for another job or model, or under other probabilities than this round's"
    if job.selected and device not in job.selected:
        return Status.NOT_SELECTED, "not asked in this round"
    if update.codec not in (job.training.codec_id, packed.ID):
        return Status.INVALID, f"codec {update.codec}, the job asks for {job.training.codec_id}"
    if len(update.payloads) != job.training.masks:
        return Status.INVALID, f"{len(update.payloads)} mask(s), the job asks for {job.training.masks}"
    return Status.ACCEPTED, ""


def _voted(job: JobState, device: str, update: Update) -> Votes:
    """Return the round's sums with the masks and exact values of one more update. Raises ProtocolError."""
    codec, aggregation, votes = by_id(update.codec), job.aggregation, job.votes
    weight = weight_of(update.samples, aggregation.heaviest)
    for index, payload in enumerate(update.payloads):
        shared = Shared(job.seed, job.round, job.name, device, index)
        votes = votes.with_mask(codec.decode(payload, job.theta, shared, job.training.max_blocks), weight)
    before = job.theta.exact
    return votes.with_exact(exact.decode(update.exact, before, exact.REACH).astype(np.int64) - before, weight)


def _counted(job: JobState, device: str, transfer: bytes, update: Update, votes: Votes) -> JobState:
    """Count an update, whose masks and exact values are in `votes`."""
    return replace(
        job,
        votes=votes,
        parts=(*job.parts, part_of(device, update)) if job.aggregation.relay else (),
        accepted={**job.accepted, device: transfer},
        counted={**job.counted, device: transfer},
    )


def _close(job: JobState, why: str) -> Step:
    """Close the round and open the next one; `why` is for the log."""
    try:
        theta, memory = conclude(job.rule, job.votes, job.theta, job.memory, job.aggregation)
    except RuleError as error:
        return job, [RuleFailed(error)]
    blob = counts.encode(theta)
    made = job.parts if _pools(job, theta) else ()
    recent = (*job.recent, theta)[-job.aggregation.average_last :]
    last = job.round >= job.rounds.total
    effects: list[Effect] = [
        RoundClosed(job.round, theta, blob, len(job.accepted), memory, *finished(recent), bool(made) and not last),
        Log(f"round {job.round} closed ({why}) with {job.votes.masks} masks"),
    ]
    job = replace(job, phase=Phase.DONE if last else Phase.WAITING, base=job.theta, theta=theta)
    job = replace(job, memory=memory, recent=recent, blob=blob, delta=b"", made=made, selected=())
    if last:
        return job, [*effects, PublishRound(theta=False), EndJob()]
    job, more = _maybe_open(job)
    return job, effects + more


def _pools(job: JobState, theta: Theta) -> bool:
    """True if devices that add the round's masks up come to `theta`, so that it may be told by its masks.

    No rule is asked: a relay that led elsewhere would cost every device a second fetch.
    """
    if not job.parts:
        return False
    votes, pooling = job.votes, job.aggregation.pooling
    pooled = pool(votes.ones, votes.weight, votes.unit, votes.masks, pooling.max_level, pooling.clamp)
    same = (pooled.max_level, pooled.clamp) == (theta.max_level, theta.clamp)
    return same and np.array_equal(pooled.level, theta.level)


def _receipt(job: JobState, device: str, transfer: bytes, round_: int, status: Status, reason: str) -> SendReceipt:
    return SendReceipt(device, Receipt(job.name, round_, transfer, status, reason))
