"""Shell around a device's session: carries out its effects on a real link, outbox and trainer.

Decisions about a round are made in session.py, none of them here. `run` is the loop of a real device; the simulator
calls `feed`, which takes one event, from its own loop instead.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edge_client.outbox import Outbox
from edge_client.session import (
    Cancel,
    Drop,
    Effect,
    Event,
    Failed,
    LeaveJob,
    Pending,
    PublishPresence,
    Save,
    Send,
    Session,
    Subscribe,
    Ticked,
    Train,
    Trained,
    Unsubscribe,
    start,
    step,
)
from edge_client.trainer import Advanced, Loaded, Trainer
from seedmask import __version__, topics
from seedmask.chunks import split
from seedmask.io.files import append_json
from seedmask.io.link import Link, Will
from seedmask.io.logs import Log
from seedmask.spec import ModelSpec
from seedmask.wire import Presence, encode

log = logging.getLogger("seedmask.client")


@dataclass(frozen=True)
class Identity:
    """Identity of this device, as its presence message states it.

    `samples`: number of training examples; `runtime`: name of the runtime that trains on them; `boot`: see `new_boot`.
    """

    device: str
    job: str
    spec: ModelSpec
    samples: int
    runtime: str
    boot: int

    def presence(self, online: bool) -> bytes:
        """Return the frame of the presence message: this device is `online`, or has left."""
        return encode(
            Presence(self.device, online, self.boot, self.spec.digest, self.samples, self.runtime, __version__)
        )

    def will(self) -> Will:
        """Return MQTT's last will: the broker publishes this message when the device's connection breaks."""
        return Will(topics.presence(self.job, self.device), self.presence(False))


def new_boot() -> int:
    """Return a random number of 64 bits; others notice by it that the program has been restarted."""
    return secrets.randbits(64)


class Client:
    """Running device: its session, with the link, outbox and trainer that the session's effects act on."""

    def __init__(
        self,
        who: Identity,
        link: Link,
        outbox: Outbox,
        trainer: Trainer,
        clock: Callable[[], float],
        journal: Path,
    ) -> None:
        """Resume from the outbox. `clock` returns seconds; one line of JSON per receipt is appended to `journal`."""
        self.who, self.link, self.outbox, self.trainer = who, link, outbox, trainer
        self.clock, self.journal = clock, journal
        self.finished = False
        self.progress = (0, 0)
        self._began = 0.0
        self._trained = 0.0
        kept, odd = outbox.load()
        for line in odd:
            log.warning(line)
        pending = tuple(Pending(item.message.round, item.theta, item.transfer, item.frame) for item in kept)
        if pending:
            log.info("%d update(s) in the outbox are sent again", len(pending))
        finished = outbox.finished()
        self.session = Session(
            who.job,
            who.device,
            who.spec.digest,
            who.spec.d,
            who.spec.seed,
            e=who.spec.e,
            held=who.spec.even(),
            now=clock(),
            pending=pending,
            work=(pending[-1].round, pending[-1].theta) if pending else finished,
            finished_before=finished,
        )
        self._carry_out(start(self.session))

    def feed(self, event: Event) -> None:
        """Handle one event and carry out the effects that follow from it."""
        self.session, effects = step(self.session, event)
        self._carry_out(effects)

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        who = self.who
        match effect:
            case Log(text):
                log.info(text)
            case PublishPresence():
                self.link.publish(topics.presence(who.job, who.device), who.presence(True), retain=True)
            case Subscribe(topic):
                self.link.subscribe(topic)
            case Unsubscribe(topic):
                self.link.unsubscribe(topic)
            case Train(announce, theta):
                self._began, self.progress = self.clock(), (0, 0)
                self.trainer.begin(announce, theta)
            case Cancel():
                self.trainer.cancel()
            case Save(transfer, theta, frame):
                self._trained = self.clock() - self._began
                self.outbox.save(transfer, theta, frame)
            case Send(frame):
                log.info("sending %s bytes", f"{len(frame):,}")
                for chunk in split(frame, self.link.chunk_bytes()):
                    self.link.publish(topics.update(who.job, who.device), encode(chunk))
            case Drop(transfer, theta, receipt):
                self.outbox.drop(transfer, theta, receipt)
                self._note(round=receipt.round, status=receipt.status.name.lower(), reason=receipt.reason)
            case LeaveJob(text):
                self.finished = True
                log.info(text)
                self._note(round=None, status="done", reason=text)

    def _note(self, **fields: object) -> None:
        traffic = self.link.traffic()
        counted = {"sent_bytes": traffic.sent, "received_bytes": traffic.received}
        line = {"boot": f"{self.who.boot:016x}", **fields, "train_seconds": round(self._trained, 3), **counted}
        try:
            append_json(self.journal, line)
        except OSError as error:  # a full disk must not end the training that the line reports
            log.warning("cannot write %s: %s", self.journal, error.strerror)

    def _loaded(self, news: Loaded) -> None:
        """Publish the new number of examples, if a restarted training process has found other data."""
        found, told = news.data.examples, self.who.samples
        if found == told:
            return
        log.warning("the data has changed: it was %s examples, it is %s from now on", f"{told:,}", f"{found:,}")
        if news.data.doubt:
            log.warning("%s", news.data.doubt)
        self.who = replace(self.who, samples=found)
        if self.session.online:
            self._do(PublishPresence())

    def run(self, stay: bool) -> None:
        """Take part until the job is done, or for ever if `stay`. Raises what the network thread raised."""
        ticked = said = self.clock()
        while stay or not self.finished:
            event = self.link.receive(0.02 if self.session.training else 0.2)
            if event is not None:
                self.feed(event)
            news = self.trainer.news()
            while news is not None:
                if isinstance(news, Advanced):
                    self.progress = (news.step, news.steps)
                elif isinstance(news, Loaded):
                    self._loaded(news)
                elif isinstance(news, Trained | Failed):
                    self.feed(news)
                news = self.trainer.news()
            now = self.clock()
            if now - ticked >= 1:
                ticked = now
                self.feed(Ticked(now, self.link.busy()))
            if self.session.training and self.progress[1] and now - said >= 5:
                said = now
                log.info("training: step %d of %d", *self.progress)
            if self.session.online and self.session.announce is None and now - said >= 15:
                said = now
                log.info("no job called %s on this broker yet; has its aggregator started?", self.who.job)

    def leave(self) -> None:
        """Publish that this device leaves, stop training, close the link."""
        self.link.publish(topics.presence(self.who.job, self.who.device), self.who.presence(False), retain=True)
        self.trainer.close()
        self.link.close()


def read_journal(path: Path) -> list[dict[str, object]]:
    """Return the lines of a client's journal, oldest first; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
