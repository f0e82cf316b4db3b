"""Session of a device: its side of every round, as a pure function `step(state, event) -> (state, effects)`.

Nothing here reads a clock, the network or the disk: time arrives as Ticked, and everything to be done is returned as an
effect, which the shell (client.py) carries out in order. No message of a peer can raise an error. Training is an effect
as well, so that a slow step does not delay answers. Save always comes before Send: a mask is drawn once, and after a
power cut the same bytes are sent again.  PROTOCOL 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from seedmask import topics
from seedmask.chunks import Assembly, begin
from seedmask.codec import CODECS, counts, delta, exact, relay
from seedmask.errors import ProtocolError, ThetaMismatchError
from seedmask.io.link import Connected, Disconnected, Received, Refused
from seedmask.io.logs import Log
from seedmask.mask import Theta
from seedmask.wire import Announce, Chunk, Heartbeat, Phase, Receipt, Status, decode

FETCH_SECONDS: Final = 60.0
FAIL_SECONDS: Final = 30.0
MAX_FAIL_SECONDS: Final = 480.0
RETRY_SECONDS: Final = 15.0
MAX_RETRY_SECONDS: Final = 240.0


@dataclass(frozen=True)
class Ticked:
    """Passing of time. `now`: seconds on the shell's clock; `busy`: True if a published message is still queued."""

    now: float
    busy: bool = False


@dataclass(frozen=True)
class Trained:
    """End of the training of `round` from `theta` (its digest); `frame`: the encoded Update, `transfer`: its id."""

    round: int
    theta: bytes
    transfer: bytes
    frame: bytes


@dataclass(frozen=True)
class Failed:
    """Failure of the training of `round` from `theta` (its digest); `reason` is for people."""

    round: int
    theta: bytes
    reason: str


Event: TypeAlias = Connected | Disconnected | Received | Refused | Ticked | Trained | Failed


@dataclass(frozen=True)
class PublishPresence:
    """Publish this device's presence."""


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to a topic filter."""

    topic: str


@dataclass(frozen=True)
class Unsubscribe:
    """End the subscription to a topic filter."""

    topic: str


@dataclass(frozen=True)
class Train:
    """Train the round of `announce` from `theta`; the shell answers with Trained or Failed."""

    announce: Announce
    theta: Theta


@dataclass(frozen=True)
class Cancel:
    """Stop the training under way; no answer is expected."""


@dataclass(frozen=True)
class Save:
    """Write an update, trained from `theta` (its digest), to the outbox, so that it survives a power cut."""

    transfer: bytes
    theta: bytes
    frame: bytes


@dataclass(frozen=True)
class Send:
    """Publish a saved update in chunks."""

    frame: bytes


@dataclass(frozen=True)
class Drop:
    """Remove an update, trained from `theta`, from the outbox, as `receipt` allows; note that its round is finished."""

    transfer: bytes
    theta: bytes
    receipt: Receipt


@dataclass(frozen=True)
class LeaveJob:
    """Leave the job, because it is done; `text` is for people."""

    text: str


Effect: TypeAlias = PublishPresence | Subscribe | Unsubscribe | Train | Cancel | Save | Send | Drop | Log | LeaveJob


@dataclass(frozen=True)
class Pending:
    """Update without a receipt. `due`: when to send it next (0: at once); `wait`: seconds until the time after that."""

    round: int
    theta: bytes
    transfer: bytes
    frame: bytes
    due: float = 0.0
    wait: float = RETRY_SECONDS


@dataclass(frozen=True)
class Session:
    """State of a device in its job. Times are seconds on the shell's clock.

    model: digest of this device's spec; `seed`, `d` and `e` are its seed, masked weights and exact values.
    announce: the last announcement that came.
    work: (round, digest of theta) that is being fetched or trained, or is finished; no round is trained twice.
    fetching: True until the probabilities are complete. They are asked for again if no chunk comes before `fetch_due`.
    held: the last complete probabilities (at first all are 1/2); the next may come as a difference from them.
    by_delta: True while such a difference is being fetched.
    training: True while Train is under way; after `failures` in a row it is tried again at time `again`.
    busy: True while published messages wait in this machine's queue.
    finished_before: the `work` that had its receipt before this program started.
    aggregator: boot number of the aggregator's last start that was heard of.
    away: True if the aggregator has left; it said so itself, or the broker did in its place.
    """

    job: str
    device: str
    model: bytes
    d: int
    seed: int
    now: float = 0.0
    online: bool = False
    announce: Announce | None = None
    assembly: Assembly | None = None
    work: tuple[int, bytes] | None = None
    fetching: bool = False
    fetch_due: float = 0.0
    held: Theta | None = None
    by_delta: bool = False
    training: bool = False
    failures: int = 0
    again: float | None = None
    busy: bool = False
    finished_before: tuple[int, bytes] | None = None
    pending: tuple[Pending, ...] = ()
    aggregator: int | None = None
    away: bool = False
    finished: bool = False
    e: int = 0


Step: TypeAlias = tuple[Session, list[Effect]]


def start(session: Session) -> list[Effect]:
    """Return the effects of the beginning: subscriptions to announcements, heartbeats and this device's receipts."""
    watch = [
        topics.round_(session.job),
        topics.aggregator(session.job),
        topics.receipt(session.job, session.device),
    ]
    return [Subscribe(topic) for topic in watch]


def step(session: Session, event: Event) -> Step:
    """Return the state after `event`, and the effects to carry out. Raises nothing, whatever a peer sends."""
    match event:
        case Ticked(now, busy):
            return _ticked(replace(session, now=now, busy=busy))
        case Connected():
            return replace(session, online=True), [PublishPresence()]
        case Disconnected(reason):
            return replace(session, online=False), [Log(f"offline: {reason}")]
        case Refused(topic, reason):
            return session, [Log(f"the broker refused {topic}: {reason}")]
        case Trained():
            return _trained(session, event)
        case Failed(round_, theta, reason):
            if session.work != (round_, theta):
                return session, []
            pause = min(FAIL_SECONDS * 2**session.failures, MAX_FAIL_SECONDS)
            session = replace(session, training=False, failures=session.failures + 1, again=session.now + pause)
            return session, [Log(f"round {round_}: training failed: {reason}; trying again in {pause:.0f} s")]
        case Received(topic, payload):
            try:
                return _received(session, topic, payload)
            except ProtocolError as error:
                return session, [Log(f"ignored a message on {topic}: {error.code}: {error}")]


def _ticked(session: Session) -> Step:
    session, effects = _send_due(session)
    announce = session.announce
    if session.fetching and session.online and announce is not None and session.now >= session.fetch_due:
        if session.by_delta:
            session, more = _whole(session, announce, "the difference does not come")
            effects += more
        else:
            # A new subscription makes the broker send its retained messages once more.
            topic = _source(session, announce)
            effects += [Log("the probabilities do not come; asking again"), Unsubscribe(topic), Subscribe(topic)]
            session = replace(session, fetch_due=session.now + FETCH_SECONDS)
    if session.again is not None and session.now >= session.again and session.announce is not None:
        # One failure must not lose the round: by now memory may be free, or a missing file may be there again.
        session, more = _announced(replace(session, work=None, again=None), session.announce)
        effects += more
    return session, effects


def _received(session: Session, topic: str, payload: bytes) -> Step:
    if not payload:  # a cleared retained message
        return session, []
    match decode(payload):
        case Announce() as announce if announce.job == session.job:
            return _announced(session, announce)
        case Chunk() as chunk if session.fetching and session.announce is not None:
            return _theta_chunk(session, session.announce, chunk)
        case Receipt() as receipt if receipt.job == session.job:
            return _receipt(session, receipt)
        case Heartbeat() as heartbeat if heartbeat.job == session.job:
            return _heartbeat(session, heartbeat)
    return session, []


def _announced(session: Session, announce: Announce) -> Step:
    effects: list[Effect] = []
    ours = announce.model == session.model
    if not ours and (session.announce is None or session.announce.model != announce.model):
        theirs, mine = announce.model.hex()[:12], session.model.hex()[:12]
        effects.append(Log(f"job {session.job} trains model {theirs}, our bundle is model {mine}: not taking part"))
    wanted = (announce.round, announce.theta)
    if session.work is not None and (session.work != wanted or not ours):
        # The work under way is for another round, other probabilities or another model: its result would be useless.
        effects += _stop_fetching(session)
        effects += [Cancel()] if session.training else []
        session = replace(session, fetching=False, training=False, assembly=None, work=None, again=None)
    session = replace(session, announce=announce)
    if not ours:
        return session, effects
    if announce.phase is Phase.DONE:
        return _maybe_finish(session, effects)
    if announce.phase is Phase.WAITING:
        return session, [*effects, Log(f"waiting: {announce.text}")]
    asked = not announce.selected or session.device in announce.selected
    if not asked:
        return session, [*effects, Log(f"round {announce.round}: not selected")]
    if session.work == wanted or any(p.round == announce.round for p in session.pending):
        if session.finished_before == wanted:
            effects.append(Log(f"round {announce.round}: our update of it has its receipt; waiting for the next round"))
        return replace(session, finished_before=None), effects
    if announce.training.codec_id not in CODECS:
        known = ", ".join(codec.NAME for codec in CODECS.values())
        return session, [
            *effects,
            Log(
                f"round {announce.round} asks for masks in codec {announce.training.codec_id}, "
                f"we have {known}: not training"
            ),
        ]
    held = session.held
    if held is not None and held.digest() == announce.theta:
        # Nothing to fetch: probabilities of 1/2 in a first round, or the same round after everybody's restart.
        session = replace(session, work=wanted, training=True)
        return session, [*effects, Log(f"round {announce.round} of {announce.rounds}"), Train(announce, held)]
    by_delta = announce.delta_chunks > 0 and held is not None and held.digest() == announce.base
    session = replace(session, work=wanted, fetching=True, by_delta=by_delta, fetch_due=session.now + FETCH_SECONDS)
    what = "what changed in the probabilities" if by_delta else "probabilities"
    effects += [
        Log(f"round {announce.round} of {announce.rounds}: fetching {what}"),
        Subscribe(_source(session, announce)),
    ]
    return session, effects


def _source(session: Session, announce: Announce) -> str:
    """Return the topic filter of the probabilities, or of the difference, that is being fetched."""
    topic = topics.delta if session.by_delta else topics.theta
    return topic(session.job, announce.round, "+")


def _whole(session: Session, announce: Announce, why: str) -> Step:
    """Stop fetching the difference, and fetch the whole probabilities of the same round."""
    effects: list[Effect] = [
        Log(f"round {announce.round}: {why}; fetching the whole probabilities"),
        Unsubscribe(_source(session, announce)),
    ]
    due = session.now + FETCH_SECONDS
    session = replace(session, by_delta=False, fetching=True, assembly=None, held=None, fetch_due=due)
    return session, [*effects, Subscribe(_source(session, announce))]


def _theta_chunk(session: Session, announce: Announce, chunk: Chunk) -> Step:
    if chunk.transfer != (announce.delta if session.by_delta else announce.transfer):
        return session, []
    try:
        assembly = session.assembly
        if assembly is None or not _fits(chunk, assembly.first):
            # No number of levels needs more than sixteen bits per weight; probabilities are never larger.
            assembly = begin(chunk, 2 * session.d + exact.MAX_BYTES * session.e + (1 << 16))
        assembly = assembly.add(chunk)
    except ProtocolError as error:
        if not session.by_delta:
            raise
        return _whole(session, announce, f"the difference is no good ({error.code}: {error})")
    if not assembly.complete:
        return replace(session, assembly=assembly, fetch_due=session.now + FETCH_SECONDS), []
    try:
        if session.by_delta and session.held is not None:
            theta = _from_held(session, announce, session.held, assembly.blob())
        else:
            theta = counts.decode(assembly.blob(), session.d, session.e)
        if theta.digest() != announce.theta:
            raise ThetaMismatchError("the probabilities that came are not the announced ones")
    except ProtocolError as error:
        if session.by_delta:
            return _whole(session, announce, f"the difference is no good ({error.code}: {error})")
        # Forget the round, so that its next announcement starts it anew.
        effects = _stop_fetching(session)
        session = replace(session, work=None, assembly=None, fetching=False)
        return session, [*effects, Log(f"round {announce.round}: {error.code}: {error}")]
    effects = _stop_fetching(session)
    session = replace(session, assembly=None, fetching=False, training=True, held=theta)
    return session, [*effects, Train(announce, theta)]


def _from_held(session: Session, announce: Announce, held: Theta, blob: bytes) -> Theta:
    """Return theta from the last one, `held`, and a difference or the round's masks. Raises ProtocolError."""
    if blob[:1] == bytes([relay.ID]):
        return relay.decode(blob, held, session.seed, session.job, announce.training.max_blocks)
    return delta.decode(blob, held)


def _fits(chunk: Chunk, first: Chunk) -> bool:
    """True if both chunks belong to one transfer in one chunk size; a restarted aggregator may use another size."""
    return (chunk.transfer, chunk.total, chunk.size) == (first.transfer, first.total, first.size)


def _trained(session: Session, event: Trained) -> Step:
    if session.work != (event.round, event.theta) or not session.training:
        return session, [Log(f"round {event.round} closed while we trained; its mask is dropped")]
    pending = Pending(event.round, event.theta, event.transfer, event.frame)
    session = replace(session, training=False, failures=0, pending=(*session.pending, pending))
    session, effects = _send_due(session)
    return session, [Save(event.transfer, event.theta, event.frame), *effects]


def _send_due(session: Session) -> Step:
    """Send every pending update that is due; each is sent again, ever less often, until its receipt comes."""
    if not session.online:
        return session, []
    effects: list[Effect] = []
    pending = []
    for item in session.pending:
        if item.due <= session.now and session.busy and item.due > 0:
            # The last copy is still in this machine's queue; a second one would only make the queue longer.
            item = replace(item, due=session.now + item.wait)
        elif item.due <= session.now:
            effects.append(Send(item.frame))
            item = replace(item, due=session.now + item.wait, wait=min(2 * item.wait, MAX_RETRY_SECONDS))
        pending.append(item)
    return replace(session, pending=tuple(pending)), effects


def _receipt(session: Session, receipt: Receipt) -> Step:
    matched = [item for item in session.pending if item.transfer == receipt.transfer]
    if not matched:
        return session, []
    session = replace(session, pending=tuple(item for item in session.pending if item not in matched))
    reason = f" ({receipt.reason})" if receipt.reason else ""
    text = f"round {receipt.round}: {receipt.status.name.lower().replace('_', '-')}{reason}"
    effects: list[Effect] = [*(Drop(item.transfer, item.theta, receipt) for item in matched), Log(text)]
    if receipt.status is Status.STALE and session.announce is not None and session.work != _wanted(session):
        session, more = _announced(session, session.announce)
        effects += more
    return _maybe_finish(session, effects)


def _wanted(session: Session) -> tuple[int, bytes] | None:
    return None if session.announce is None else (session.announce.round, session.announce.theta)


def _heartbeat(session: Session, heartbeat: Heartbeat) -> Step:
    if not heartbeat.online:
        if session.aggregator not in (None, heartbeat.boot):
            return session, []  # the will of an earlier life
        return _maybe_finish(replace(session, away=True), [Log("the aggregator is away")])
    session = replace(session, away=False)
    if heartbeat.boot == session.aggregator:
        return session, []
    # A new life of the aggregator may have lost what was on its way to the old one.
    pending = tuple(replace(item, due=0.0, wait=RETRY_SECONDS) for item in session.pending)
    return _send_due(replace(session, aggregator=heartbeat.boot, pending=pending))


def _maybe_finish(session: Session, effects: list[Effect]) -> Step:
    announce = session.announce
    done = announce is not None and announce.phase is Phase.DONE and announce.model == session.model
    # With the job done and the aggregator gone, nobody is left who could answer what is still pending.
    if not done or session.finished or (session.pending and not session.away):
        return session, effects
    left = f"; {len(session.pending)} update(s) without a receipt stay in the outbox" if session.pending else ""
    return replace(session, finished=True), [*effects, LeaveJob(f"job {session.job} is done{left}")]


def _stop_fetching(session: Session) -> list[Effect]:
    if session.fetching and session.announce is not None:
        return [Unsubscribe(_source(session, session.announce))]
    return []
