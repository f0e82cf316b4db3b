"""A fleet in one process on virtual time: the deployed client and aggregator over a broker in memory.

Everything random comes from one seed and everything timed from one agenda, so a run is a pure function of its
arguments: twice the same arguments give twice the same bytes. Only the clock, the wire and the processes are
pretended; sessions, rounds, outbox, database, codec and training are the ones that are deployed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aggregator.config import RunConfig
from aggregator.history import results
from aggregator.round import ClockTicked, waiting_for
from aggregator.rules import Rule
from aggregator.server import Server, will
from aggregator.store import Store
from edge_client.client import Client, Identity
from edge_client.data import Dataset
from edge_client.outbox import Outbox
from edge_client.runtimes import State
from edge_client.session import Failed, Ticked, Trained
from seedmask.bundle import Bundle
from seedmask.chunks import transfer_id
from seedmask.errors import UserError
from seedmask.io.link import Event
from seedmask.mask import Theta
from seedmask.wire import Announce, Phase
from sim.broker import Agenda, MemoryBroker, MemoryLink, Wire
from sim.device import Profile, name_of, profile_of
from sim.pool import Done, TrainingJob, Trains

RESTART_SECONDS = 20.0
CUT_SECONDS = 15.0

Closed = Callable[[dict[str, object], Theta, float], None]
"""Called as closed(record, theta, seconds) after each round."""


@dataclass(frozen=True)
class Faults:
    """Chances, per device and round: to lose the connection for CUT_SECONDS, to die in training and start again."""

    cut: float = 0.0
    crash: float = 0.0


class Device:
    """One virtual machine: a client that can die and come back with its disk."""

    def __init__(self, fleet: Fleet, index: int, data: Dataset) -> None:
        """Switch it on."""
        self.fleet, self.index, self.data = fleet, index, data
        self.name = name_of(index)
        self.profile: Profile = profile_of(index)
        self.folder = fleet.homes / self.name
        self.rng = np.random.default_rng([fleet.seed, 1, index])
        self.boots = 0
        self.sent = self.received = 0
        self._token = 0
        self._kept: State | None = None  # the optimiser's, in memory
        self._start()

    def _start(self) -> None:
        fleet = self.fleet
        self.boots += 1
        spec = fleet.bundle.spec
        boot = int(self.rng.integers(1 << 62))
        who = Identity(self.name, fleet.config.job, spec, len(self.data.y), fleet.runtime, boot)
        self.link = MemoryLink(fleet.broker, self.profile.wire, self._feed, who.will())
        outbox = Outbox(self.folder / "outbox", fleet.config.job)
        self.client = Client(who, self.link, outbox, self, lambda: fleet.agenda.now, self.folder / "journal.jsonl")
        self._tick(self.boots)

    def _tick(self, boot: int) -> None:
        if boot == self.boots:
            self.client.feed(Ticked(self.fleet.agenda.now, self.link.busy()))
            self.fleet.agenda.at(self.fleet.agenda.now + 1, lambda: self._tick(boot))

    def _feed(self, event: Event) -> None:
        self.client.feed(event)

    # --- the Trainer of this device's client ---

    def begin(self, announce: Announce, theta: Theta) -> None:
        """Train in reality on some core, and be done after the virtual time that this profile takes."""
        self._token += 1
        token, agenda = self._token, self.fleet.agenda
        steps = announce.training.epochs * -(-len(self.data.y) // self.fleet.bundle.batch)
        seconds = steps * theta.d / self.profile.weights_per_second * float(self.rng.uniform(0.9, 1.2))
        fate = float(self.rng.random())
        faults = self.fleet.faults
        if fate < faults.crash:
            agenda.at(agenda.now + seconds / 2, lambda: self._crash(token))
            return
        if fate < faults.crash + faults.cut:
            agenda.at(agenda.now + seconds / 2, lambda: self.link.cut(CUT_SECONDS))
        chance = (self.fleet.seed, 2, self.index, announce.round, self.boots)
        future = self.fleet.pool.begin(TrainingJob(self.index, self.name, announce, theta, chance, self._kept))
        agenda.at(agenda.now + seconds, lambda: self._end(token, announce, future))

    def _end(self, token: int, announce: Announce, future: Future[Done]) -> None:
        if token != self._token:
            return
        done = future.result()
        self._kept = done.kept
        if done.failure:
            self.client.feed(Failed(announce.round, announce.theta, done.failure))
        else:
            self.client.feed(Trained(announce.round, announce.theta, transfer_id(done.frame), done.frame))

    def _crash(self, token: int) -> None:
        if token == self._token:
            self._token += 1
            self._kept = None
            self._settle()
            self.boots += 1  # stops this life's ticking
            self.link.vanish()
            self.fleet.agenda.at(self.fleet.agenda.now + RESTART_SECONDS, self._start)

    def _settle(self) -> None:
        traffic = self.link.traffic()
        self.sent, self.received = self.sent + traffic.sent, self.received + traffic.received

    def cancel(self) -> None:
        """See Trainer."""
        self._token += 1

    def news(self) -> None:
        """See Trainer; results come through the agenda."""

    def close(self) -> None:
        """See Trainer."""

    def total(self) -> tuple[int, int]:
        """Bytes sent and received in all lives."""
        traffic = self.link.traffic()
        return self.sent + traffic.sent, self.received + traffic.received


def _new(folder: Path) -> None:
    """Make `folder`. Raises UserError unless it is new or empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be used: {error.strerror}") from None
    if found:
        more = "" if len(found) == 1 else f" and {len(found) - 1} more"
        raise UserError(f"{folder} is not empty (it has {found[0]}{more}); a fleet begins in a new folder")


class Fleet:
    """Run a job on virtual time."""

    def __init__(
        self,
        config: RunConfig,
        homes: Path,
        bundle: Bundle,
        parts: list[Dataset],
        pool: Trains,
        runtime: str,
        seed: int,
        faults: Faults,
        rule: Rule | None = None,
    ) -> None:
        """Switch on an aggregator in config.state_dir and, in `homes`, a device per part of the data.

        Both folders are made here. `rule` takes the place of the server rule that `config` names. Raises UserError
        where a folder has something in it: nothing is deleted.
        """
        self.config, self.bundle, self.pool, self.runtime = config, bundle, pool, runtime
        self.seed, self.faults = seed, faults
        self.homes = homes
        for folder in (config.state_dir, homes):
            _new(folder)
        self.agenda = Agenda()
        self.broker = MemoryBroker(self.agenda)
        spec = bundle.spec
        self.database = config.state_dir / "job.sqlite"
        store = Store(self.database, config.job, spec.digest, spec.canonical(), spec.d, spec.e)
        # The server's link needs somebody to deliver to, and the server needs its link.
        link = MemoryLink(self.broker, Wire(), self._to_server, will(config.job, seed))
        self.server = Server(config, spec, link, store, lambda: self.agenda.now, seed, rule)
        self.devices = [Device(self, index, part) for index, part in enumerate(parts)]
        self._reported = 0

    def _to_server(self, event: Event) -> None:
        self.server.receive(event)

    def run(self, closed: Closed) -> float:
        """Work until the job is done; the virtual seconds it took. Raises UserError if it gets stuck."""
        try:
            return self._work(closed)
        finally:
            self.server.store.close()

    def _work(self, closed: Closed) -> float:
        rounds = self.config.rounds
        self._tick(closed)
        limit = rounds.total * (rounds.deadline_s + 60) + 3600
        done = self.agenda.run(lambda: self.server.finished and self._reported == rounds.total, limit)
        if not done:
            raise UserError(f"the job did not finish within {limit:.0f} virtual seconds: {self.waiting()}")
        ended = self.agenda.now
        # Let the last receipts arrive.
        self.agenda.run(lambda: all(device.client.finished for device in self.devices), self.agenda.now + 600)
        return ended

    def waiting(self) -> str:
        """What the aggregator waits for."""
        return waiting_for(self.server.job)

    def _tick(self, closed: Closed) -> None:
        self.server.feed(ClockTicked(self.agenda.now))
        ended = self.server.job.round - (self.server.job.phase is Phase.OPEN)
        if ended > self._reported:
            for record, theta in results(self.database, self.bundle.spec.d, self._reported, self.bundle.spec.e):
                closed(record, theta, self.agenda.now)
                self._reported = int(str(record["round"]))
        if not self.server.finished:
            self.agenda.at(self.agenda.now + 0.5, lambda: self._tick(closed))

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received by all devices."""
        totals = [device.total() for device in self.devices]
        return sum(up for up, _ in totals), sum(down for _, down in totals)
