"""The shell around the aggregator's round: carries out its effects on a real link, store and disk.

Nothing here decides anything about a round. `feed` takes one event; `run` is the loop of a real server, and the
simulator calls `receive` and `feed` from its own loop instead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

from aggregator.config import RunConfig
from aggregator.inbox import Inbox
from aggregator.round import (
    ClockTicked,
    Effect,
    EndJob,
    Event,
    JobState,
    PresenceChanged,
    PublishRound,
    RoundClosed,
    RoundOpened,
    RuleFailed,
    SelectionExtended,
    SendReceipt,
    TransferBroken,
    UpdateAccepted,
    UpdateArrived,
    announcement,
    part_of,
    resume,
    step,
    waiting_for,
)
from aggregator.rules import registry
from aggregator.rules.contract import Rule
from aggregator.store import Store
from seedmask import model, topics, wire
from seedmask.chunks import split
from seedmask.codec import exact
from seedmask.errors import KindError, ProtocolError
from seedmask.io.files import write_atomic
from seedmask.io.link import Connected, Link, Received, Will
from seedmask.io.link import Event as LinkEvent
from seedmask.io.logs import Log
from seedmask.spec import ModelSpec
from seedmask.wire import Chunk, Heartbeat, Phase, Presence, Update

log = logging.getLogger("seedmask.aggregator")


def will(job: str, boot: int) -> Will:
    """Return the message that the broker publishes for us when we vanish."""
    return Will(topics.aggregator(job), wire.encode(Heartbeat(job, False, boot)))


class Server:
    """Run one job over a link, with its state in a store."""

    def __init__(
        self,
        config: RunConfig,
        spec: ModelSpec,
        link: Link,
        store: Store,
        clock: Callable[[], float],
        boot: int,
        rule: Rule | None = None,
    ) -> None:
        """Pick up where the store says the job is. `rule`: an object in place of the one that the settings name.

        Raises UserError where that is not installed, RuleError where it fails to start the job.
        """
        self.rule = registry.load(config.aggregation.rule) if rule is None else rule
        self.config, self.spec, self.link, self.store = config, spec, link, store
        self.clock, self.boot = clock, boot
        # (round, chunks, chunks of the delta) whose probabilities are retained
        self._published: tuple[int, int, int] | None = None
        self.job = self._resumed()
        # Coded worse than four bits a weight, an update is no mask of this model. An open round asks for as many masks
        # as it did when it began, whatever the settings say by now.
        masks = max(config.training.masks, self.job.training.masks)
        largest = masks * (spec.d // 2 + (1 << 16)) + exact.MAX_BYTES * spec.e
        self.inbox = Inbox(min(largest, wire.MAX_FRAME))
        link.subscribe(topics.presence(config.job, "+"))
        link.subscribe(topics.update(config.job, "+"))

    @property
    def finished(self) -> bool:
        """True if the last round is closed."""
        return self.job.phase is Phase.DONE

    def _resumed(self) -> JobState:
        """Return the job as the store has it, a new one if it has none."""
        config, spec = self.config, self.spec
        changes = self.store.ran_with(config.tables)
        for change in changes:
            log.info("settings changed: %s", change)
        aggregation = config.aggregation
        job = JobState(
            name=config.job,
            model=spec.digest,
            d=spec.d,
            seed=spec.seed,
            rounds=config.rounds,
            training=config.training,
            aggregation=aggregation,
            theta=registry.start(self.rule, spec, aggregation),
            rule=self.rule,
            now=self.clock(),
            counted=self.store.last_transfers(),
        )
        known = self.store.resume(aggregation.average_last)
        if known is None:
            return job
        job = replace(job, round=known.round, theta=known.theta, blob=known.blob)
        memory = known.memory if known.rule == aggregation.rule else b""
        if known.memory and not memory:
            log.info("what rule %s remembered is not for rule %s, which begins anew", known.rule, aggregation.rule)
        job = replace(job, base=known.base, memory=memory, recent=known.recent)
        self._published = (known.round, len(self._cut(known.published)), len(self._cut(known.delta)))
        if not known.closed:
            # What its devices were asked for stays what the round is about, whatever the settings say by now.
            job = replace(job, training=known.training, wanted=job.training)
            job = resume(job, known.selected, known.quorum, known.updates, known.delta)
            log.info("resumed: %s", waiting_for(job))
        elif known.round >= config.rounds.total:
            job = replace(job, phase=Phase.DONE)
            log.info("all %d rounds are already done", known.round)
        else:
            # Under other settings the masks of the last round would not add up to its theta, so no relay of them.
            same = not any(change.startswith("[aggregation]") for change in changes)
            parts = [part_of(device, update) for device, _, update in known.updates] if same else []
            job = replace(job, made=tuple(parts))
            log.info("resumed after round %d", known.round)
        return job

    def receive(self, event: LinkEvent) -> None:
        """Take one event of the link."""
        if not isinstance(event, Received):
            if isinstance(event, Connected):
                self._list_rounds()  # a crash may have come between the database and this file
                self.link.publish(
                    topics.aggregator(self.config.job),
                    wire.encode(Heartbeat(self.config.job, True, self.boot)),
                    retain=True,
                )
            self.feed(event)
            return
        device = topics.device_of(event.topic)
        if device is None or not event.payload:
            return
        try:
            understood = self._understand(device, event)
        except ProtocolError as error:
            log.warning("ignored a message on %s: %s: %s", event.topic, error.code, error)
            return
        if understood is not None:
            self.feed(understood)

    def _understand(self, device: str, event: Received) -> Event | None:
        """Return the round's event in a message; None while a transfer is incomplete. Raises ProtocolError."""
        if event.topic == topics.presence(self.config.job, device):
            presence = wire.expect(event.payload, Presence)
            if presence.device != device:
                raise KindError(f"the presence of {device} expected here")
            return PresenceChanged(presence)
        whole = self.inbox.put(device, event.payload, self.clock())
        if whole is None:
            return None
        transfer, frame = whole
        try:
            if isinstance(frame, ProtocolError):
                raise frame
            return UpdateArrived(device, transfer, wire.expect(frame, Update), frame)
        except ProtocolError as error:
            return TransferBroken(device, transfer, error)

    def feed(self, event: Event) -> None:
        """Take one event of the round."""
        self.job, effects = step(self.job, event)
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        """Carry out one effect."""
        match effect:
            case Log(text):
                log.info(text)
            case RoundOpened(round_, blob, selected, quorum, delta, work):
                self.store.opened(round_, blob, selected, quorum, delta, work)
            case SelectionExtended(round_, selected):
                self.store.widened(round_, selected)
            case UpdateAccepted(device, transfer, update, frame):
                self.store.counted(device, transfer, update, frame)
            case SendReceipt(device, receipt):
                self.link.publish(topics.receipt(self.config.job, device), wire.encode(receipt))
            case RoundClosed():
                self._close(effect)
            case RuleFailed(error):
                log.debug("the server rule failed", exc_info=error)
                log.error("round %d stays open, its updates are stored: start again with a mended rule", self.job.round)
                raise error
            case PublishRound(theta):
                self._publicise(theta)
            case EndJob():
                log.info("job %s is done: %s", self.config.job, self.config.state_dir / "model.smk")

    def _close(self, closed: RoundClosed) -> None:
        """Store what came of a round, the finished model first."""
        round_ = closed.round
        finished = model.encode(model.FinishedModel(self.spec, closed.mask, closed.exact))
        record = {"round": round_, **self.store.figures(round_), "model_bytes": len(finished)}
        if record["updates"]:
            log.info(
                "round %d trained with loss %.3f, accuracy %.1f %%, in %s bytes of updates",
                *(round_, record["train_loss"], 100 * record["train_accuracy"], f"{record['update_bytes']:,}"),
            )
        write_atomic(self.config.state_dir / "model.smk", finished)
        self.store.closed(round_, closed.blob, record, closed.memory, closed.keep, self.job.aggregation.rule)
        self._list_rounds()
        self._retire()  # before the next round is stored: a restart knows the latest one only

    def _list_rounds(self) -> None:
        write_atomic(self.config.state_dir / "rounds.json", json.dumps(self.store.records(), indent=1).encode())

    def _publicise(self, theta: bool) -> None:
        """Publish the announcement, and before it the round's probabilities if `theta`."""
        open_ = self.job.phase is Phase.OPEN
        chunks, delta = (self._cut(blob) if open_ else [] for blob in (self.job.blob, self.job.delta))
        published = (self.job.round, len(chunks), len(delta))
        if self._published != published:
            self._retire()  # of a round that is over, perhaps in an earlier life, or cut for another broker
        if theta:
            # Before the announcement, so that whoever hears of the round finds its probabilities.
            for parts, topic in ((chunks, topics.theta), (delta, topics.delta)):
                for chunk in parts:
                    name = topic(self.config.job, self.job.round, chunk.index)
                    self.link.publish(name, wire.encode(chunk), retain=True)
            self._published = published
        announce = announcement(self.job, len(chunks), len(delta))
        self.link.publish(topics.round_(self.config.job), wire.encode(announce), retain=True)

    def _cut(self, blob: bytes) -> list[Chunk]:
        return split(blob, self.link.chunk_bytes()) if blob else []

    def _retire(self) -> None:
        """Remove the retained probabilities of a round that is over from the broker."""
        if self._published is not None:
            round_, chunks, delta = self._published
            for count, topic in ((chunks, topics.theta), (delta, topics.delta)):
                for index in range(count):
                    self.link.publish(topic(self.config.job, round_, index), b"", retain=True)
        self._published = None

    def run(self) -> None:
        """Work until the last round is closed."""
        ticked = self.clock()
        while not self.finished:
            event = self.link.receive(0.2)
            if event is not None:
                self.receive(event)
            if self.clock() - ticked >= 0.5:
                ticked = self.clock()
                self.feed(ClockTicked(ticked))

    def linger(self, seconds: float) -> None:
        """Answer what is still on its way after the last round, until every device has left or `seconds` are over.

        Started again after a crash, we know of no device yet; the broker tells us who waits.
        """
        until, known = self.clock() + seconds, False
        while self.clock() < until:
            known = known or bool(self.job.online)
            if known and not self.job.online:
                return
            event = self.link.receive(0.2)
            if event is not None:
                self.receive(event)

    def leave(self) -> None:
        """Sign off and close everything; what is retained stays, so that devices see where the job stands."""
        self.link.publish(
            topics.aggregator(self.config.job),
            wire.encode(Heartbeat(self.config.job, False, self.boot)),
            retain=True,
        )
        self.link.close()
        self.store.close()
