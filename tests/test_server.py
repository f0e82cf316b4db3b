"""The aggregator's shell, over a broker in memory: wherever it is killed, the job ends with the same counts.

The clients are the deployed ones; only their training is pretended: a mask that depends on device and round.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator import server as shell
from aggregator.config import RunConfig
from aggregator.finished import finished
from aggregator.history import job_result, results
from aggregator.round import ClockTicked
from aggregator.rules import FedPM, Rule, RuleError, Votes, registry, theta_of
from aggregator.server import Server, will
from aggregator.settings import AggregationConfig, RoundsConfig
from aggregator.store import Store
from edge_client.client import Client, Identity, read_journal
from edge_client.outbox import Outbox
from edge_client.session import Ticked, Trained
from seedmask import model, topics, wire
from seedmask.chunks import split, transfer_id
from seedmask.codec import by_id, exact, packed
from seedmask.io.link import Connected, Event, Received, Traffic
from seedmask.mask import Mask, Theta
from seedmask.shared import Shared
from seedmask.spec import ModelSpec, Tensor
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Heartbeat, Phase, Presence, Receipt, Status, Update
from sim.broker import Agenda, MemoryBroker, MemoryLink, Wire

JOB, DEVICES = "fashion", 3
BACK_SECONDS = 4.0
PACKED = TrainingConfig(codec="packed")


class CrashError(BaseException):
    """The power went; nothing may catch it."""


class Fuse:
    """Counts what the aggregator does to the world, and blows before deed number `at`."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.deeds = at, 0

    def burn(self) -> None:
        self.deeds += 1
        if self.deeds - 1 == self.at:
            raise CrashError


class FusedLink(MemoryLink):
    fuse: Fuse
    seen: set[str]

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.fuse.burn()
        self.seen.add(topic)
        super().publish(topic, payload, retain)


class DeviceLink(MemoryLink):
    subscribed: list[str]

    def subscribe(self, topic: str) -> None:
        if hasattr(self, "subscribed"):
            self.subscribed.append(topic)
        super().subscribe(topic)


class FusedStore(Store):
    fuse: Fuse

    def opened(self, *arguments: object) -> None:
        self.fuse.burn()
        super().opened(*arguments)  # type: ignore[arg-type]

    def counted(self, *arguments: object) -> None:
        self.fuse.burn()
        super().counted(*arguments)  # type: ignore[arg-type]

    def closed(self, *arguments: object) -> None:
        self.fuse.burn()
        super().closed(*arguments)  # type: ignore[arg-type]


def pretended(index: int, round_: int, d: int) -> Mask:
    """A mask that depends on device and round alone, and changes little from round to round."""
    flips = np.random.default_rng([index, round_]).random(d) < 0.01
    return np.random.default_rng([index]).integers(0, 2, d).astype(np.uint8) ^ flips.astype(np.uint8)


class Pretended:
    """A Trainer: its mask comes after so many seconds."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index, self.token, self.begun = world, index, 0, 0

    def begin(self, announce: Announce, theta: Theta) -> None:
        self.token += 1
        self.begun += 1
        token, agenda = self.token, self.world.agenda
        mask = pretended(self.index, announce.round, theta.d)
        samples = 10 + 7 * self.index
        codec = announce.training.codec_id
        payloads = [packed.encode(np.roll(mask, index), theta) for index in range(announce.training.masks)]
        if codec != packed.ID:
            device = self.world.clients[self.index].who.device
            shared = Shared(self.world.spec.seed, announce.round, JOB, device, 0)
            scores = theta.logit() + mask.astype(np.float32) - np.float32(0.4)
            payloads = [by_id(codec).draw(scores, theta, shared, np.random.default_rng(0), announce.training.plan())]
        basis = wire.basis(JOB, announce.model, announce.theta)
        moved = exact.encode(theta.exact + np.int32(3 * self.index + announce.round), theta.exact)
        made = Update(announce.round, basis, samples, 1, 5, codec, tuple(payloads), moved)
        frame = wire.encode(made)
        trained = Trained(announce.round, announce.theta, transfer_id(frame), frame)

        def end() -> None:
            if token == self.token:
                self.world.clients[self.index].feed(trained)

        agenda.at(agenda.now + 1.0 + 0.7 * self.index, end)

    def cancel(self) -> None:
        self.token += 1

    def news(self) -> None:
        return None

    def close(self) -> None:
        return None


class World:
    """A broker, three devices, and an aggregator that can be killed and comes back to its folder."""

    def __init__(self, folder: Path, spec: ModelSpec, fuses: list[Fuse], rounds: int = 2, **tables: Any) -> None:
        self.folder, self.spec, self.fuses = folder, spec, fuses
        said = RoundsConfig(total=rounds, devices=DEVICES)
        tables = {"training": PACKED, **tables}
        self.config = RunConfig(JOB, folder / "x.bundle", folder / "state", said, **tables)
        self.agenda = Agenda()
        self.broker = MemoryBroker(self.agenda)
        self.clients: list[Client] = []
        self.receipts: list[tuple[str, Receipt]] = []
        self.server: Server | None = None
        self.lives = 0
        self.seen: set[str] = set()
        self.subscribed: list[str] = []
        for index in range(DEVICES):
            self._device(index)
        self._switch_on()

    def _device(self, index: int) -> None:
        who = Identity(f"pi-{index}", JOB, self.spec, 10, "pretended", index)
        folder = self.folder / who.device

        def deliver(event: Event) -> None:
            if isinstance(event, Received) and event.topic == topics.receipt(JOB, who.device):
                message = wire.decode(event.payload)
                assert isinstance(message, Receipt)
                self.receipts.append((who.device, message))
            self.clients[index].feed(event)

        link = DeviceLink(self.broker, Wire(latency=0.01), deliver, who.will())
        link.subscribed = self.subscribed
        outbox = Outbox(folder / "outbox", JOB)
        self.clients.append(
            Client(who, link, outbox, Pretended(self, index), lambda: self.agenda.now, folder / "journal.jsonl")
        )

        def tick() -> None:
            self.clients[index].feed(Ticked(self.agenda.now))
            self.agenda.at(self.agenda.now + 1, tick)

        self.agenda.at(1.0, tick)

    def _switch_on(self) -> None:
        self.lives += 1
        fuse = self.fuses.pop(0) if self.fuses else Fuse()
        spec, config = self.spec, self.config
        shell.write_atomic = burnt(fuse)  # type: ignore[assignment]
        self.store = FusedStore(config.state_dir / "job.sqlite", JOB, spec.digest, spec.canonical(), spec.d, spec.e)
        self.link = FusedLink(self.broker, Wire(latency=0.01), self._deliver, will(JOB, self.lives))
        self.store.fuse = self.link.fuse = fuse
        self.link.seen = self.seen
        self.server = Server(config, spec, self.link, self.store, lambda: self.agenda.now, self.lives)
        life = self.lives

        def tick() -> None:
            if self.server is not None and life == self.lives:
                self._alive(lambda server: server.feed(ClockTicked(self.agenda.now)))
                self.agenda.at(self.agenda.now + 0.5, tick)

        self.agenda.at(self.agenda.now + 0.5, tick)

    def _deliver(self, event: Event) -> None:
        self._alive(lambda server: server.receive(event))

    def _alive(self, act: Callable[[Server], None]) -> None:
        if self.server is None:
            return
        try:
            act(self.server)
        except CrashError:
            # As the kernel does: files are closed, locks let go, and the broker speaks the will.
            self.server = None
            self.store.close()
            self.link.vanish()
            self.agenda.at(self.agenda.now + BACK_SECONDS, self._switch_on)

    def run(self) -> World:
        assert self.agenda.run(lambda: all(client.finished for client in self.clients), 2000.0), "a device hangs"
        if self.server is None:
            self.agenda.run(lambda: self.server is not None, 2000.0)
        self.agenda.run(lambda: False, self.agenda.now + 10)  # what is still on its way
        self.store.close()
        return self

    def job_result(self) -> list[tuple[object, object, bytes]]:
        found = results(self.config.state_dir / "job.sqlite", self.spec.d, e=self.spec.e)
        return [(record["updates"], record["samples"], theta.digest()) for record, theta in found]


def burnt(fuse: Fuse) -> Callable[[Path, bytes], None]:
    def write(path: Path, data: bytes) -> None:
        fuse.burn()
        path.write_bytes(data)

    return write


@pytest.fixture
def world(
    tmp_path: Path, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, no_sync: None
) -> Iterator[Callable[..., World]]:
    monkeypatch.setattr(shell, "write_atomic", shell.write_atomic)  # put back in the end
    number = 0

    def make(*fuses: Fuse, rounds: int = 2, spec: ModelSpec = tiny_spec, **tables: Any) -> World:
        nonlocal number
        number += 1
        return World(tmp_path / str(number), spec, list(fuses), rounds, **tables).run()

    yield make
    gc.collect()


Made = Callable[..., World]


def expected(spec: ModelSpec, round_: int) -> bytes:
    masks = [pretended(i, round_, spec.d) for i in range(DEVICES)]
    moved = 3 * round_ + sum(range(1, round_ + 1))  # a device moves them by 3 times its number plus the round's
    values = (spec.begin() + moved).astype(np.int32)
    return Theta(np.sum(masks, axis=0).astype(np.uint16), DEVICES, exact=values).digest()


def sound(world: World, spec: ModelSpec) -> None:
    """Every device counted once in every round, and told so."""
    assert world.job_result() == [(3, 51, expected(spec, 1)), (3, 51, expected(spec, 2))]
    for client in world.clients:
        assert client.outbox.load() == ([], [])
        assert client.session.pending == ()
        answered = [line for line in read_journal(client.journal) if line["round"] is not None]
        assert [line["round"] for line in answered] == [1, 2]
        assert {line["status"] for line in answered} <= {"accepted", "duplicate"}
        assert isinstance(client.trainer, Pretended)
        assert client.trainer.begun == 2  # no round is trained twice
    accepted = [(device, r.round) for device, r in world.receipts if r.status is Status.ACCEPTED]
    assert len(set(accepted)) == len(accepted)
    theta = list(results(world.config.state_dir / "job.sqlite", spec.d, e=spec.e))[-1][1]
    assert np.array_equal(finished_mask(world), theta.threshold())
    assert model.load(world.config.state_dir / "model.smk").exact.tolist() == theta.exact.tolist()
    job = job_result(world.config.state_dir / "job.sqlite")  # what `seedmask finalize` reads
    assert (job.name, job.round, job.spec) == (JOB, 2, spec)
    assert np.array_equal(finished(job.recent)[0], finished_mask(world))
    assert leftovers(world) == []


def finished_mask(world: World) -> Mask:
    return model.decode((world.config.state_dir / "model.smk").read_bytes()).mask


def leftovers(world: World) -> list[str]:
    """Retained probabilities, whoever published them."""
    return [topic for topic in world.broker.retained if "/theta/" in topic or "/delta/" in topic]


def test_a_job_counts_every_device_once_in_every_round(world: Made, tiny_spec: ModelSpec) -> None:
    done = world()
    sound(done, tiny_spec)
    assert [r.status for _, r in done.receipts] == [Status.ACCEPTED] * 6
    assert done.agenda.now < 30


@pytest.fixture
def exact_spec(tiny_spec: ModelSpec) -> ModelSpec:
    """With an exact bias, and a tensor that is frozen."""
    first, second, bias = tiny_spec.tensors
    kinds = (replace(first, kind="frozen"), second, Tensor(bias.name, bias.shape, kind="exact"))
    return replace(tiny_spec, name="exact", tensors=kinds)


@pytest.mark.parametrize("relay", [True, False])
def test_killed_before_any_deed_it_loses_no_exact_value(world: Made, exact_spec: ModelSpec, relay: bool) -> None:
    learning = AggregationConfig(relay=relay)
    fuse = Fuse()
    sound(world(fuse, spec=exact_spec, aggregation=learning), exact_spec)
    for deed in range(0, fuse.deeds, 2):
        done = world(Fuse(deed), spec=exact_spec, aggregation=learning)
        assert done.lives == 2
        sound(done, exact_spec)


def test_killed_before_any_deed_it_continues_the_same_round_with_the_same_counts(
    world: Made, tiny_spec: ModelSpec
) -> None:
    whole = Fuse()
    world(whole)
    assert whole.deeds > 25
    for at in range(whole.deeds):
        done = world(Fuse(at))
        assert done.lives == 2, at
        sound(done, tiny_spec)
        assert done.agenda.now < 120, at  # and waits for no deadline


def test_killed_twice_it_still_has_the_same_counts(world: Made, tiny_spec: ModelSpec) -> None:
    for first, second in ((3, 0), (9, 1), (12, 5), (13, 4), (14, 9), (20, 3), (25, 6)):
        done = world(Fuse(first), Fuse(second))
        assert done.lives == 3, (first, second)
        sound(done, tiny_spec)


TABLES: dict[str, dict[str, Any]] = {
    "levels": {"aggregation": AggregationConfig(downlink=4, weighting="samples", init="uniform")},
    "carry, average": {
        "aggregation": AggregationConfig(downlink=8, carry=0.5, prior=1.5, step=0.7, average_last=3),
        "training": TrainingConfig(codec="packed", masks=2),
    },
    "relay": {"aggregation": AggregationConfig(weighting="samples"), "training": TrainingConfig(codec="hmrc")},
}


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES.keys())
def test_killed_before_any_deed_it_continues_identically_under_every_option(
    world: Made, tables: dict[str, Any]
) -> None:
    whole = Fuse()
    never = world(whole, rounds=3, **tables)
    assert [record[0] for record in never.job_result()] == [3] * 3
    for at in range(whole.deeds):
        done = world(Fuse(at), rounds=3, **tables)
        assert done.lives == 2, at
        assert done.job_result() == never.job_result(), at
        assert np.array_equal(finished_mask(done), finished_mask(never)), at
        assert leftovers(done) == [], at


class Remembering(FedPM):
    """Theta is the mean of the shares of all rounds; their sum is what it remembers."""

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        before = np.frombuffer(memory, "<i8") if memory else 0
        total = before + votes.share()
        return theta_of(total // votes.round, settings, votes.exact(theta)), total.astype("<i8").tobytes()


class Broken(FedPM):
    def conclude(self, *_: object) -> tuple[Theta, bytes]:
        raise ZeroDivisionError("by nothing")


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed beside FedPM: a rule that remembers, and one that fails."""
    known: dict[str, Rule] = {"fedpm": FedPM(), "remembering": Remembering(), "broken": Broken()}
    monkeypatch.setattr(registry, "load", known.__getitem__)


@pytest.mark.usefixtures("own_rules")
def test_killed_before_any_deed_a_rule_of_ones_own_goes_on_with_what_it_remembers(world: Made) -> None:
    tables = {"aggregation": AggregationConfig(rule="remembering", downlink=100)}
    whole = Fuse()
    never = world(whole, rounds=3, **tables)
    masks = [[pretended(index, round_, never.spec.d) for index in range(DEVICES)] for round_ in (1, 2, 3)]
    level = np.mean(masks, axis=(0, 1)) * 99
    (*_, (_, last)) = results(never.config.state_dir / "job.sqlite", never.spec.d)
    assert np.abs(last.level - level).max() <= 1
    for at in range(whole.deeds):
        assert world(Fuse(at), rounds=3, **tables).job_result() == never.job_result(), at


def test_a_round_is_told_against_the_one_before_where_that_is_smaller_but_never_the_first(world: Made) -> None:
    done = world(rounds=4, **TABLES["levels"])
    deltas = {topic.split("/")[4] for topic in done.seen if "/delta/" in topic}
    assert deltas == {"3", "4"}  # the second goes from drawn probabilities of 256 levels to four
    fetched = sum(topic.count("/theta/") for topic in done.subscribed)
    assert fetched == DEVICES * 2
    assert sum(topic.count("/delta/") for topic in done.subscribed) == DEVICES * 2


def test_rounds_are_told_as_the_masks_that_made_them_where_that_is_shorter(world: Made) -> None:
    done = world(rounds=4, **TABLES["relay"])
    assert sum(topic.count("/theta/") for topic in done.subscribed) == 0  # even odds are what every device holds
    assert sum(topic.count("/delta/") for topic in done.subscribed) == DEVICES * 3
    unseen = world(rounds=4, aggregation=AggregationConfig(relay=False), training=TrainingConfig(codec="hmrc"))
    assert sum(topic.count("/theta/") for topic in unseen.subscribed) >= DEVICES


def test_the_finished_model_is_of_the_mean_of_the_last_rounds(world: Made, tiny_spec: ModelSpec) -> None:
    done = world(rounds=4, aggregation=AggregationConfig(average_last=3))
    thetas = [theta for _, theta in results(done.config.state_dir / "job.sqlite", tiny_spec.d)]
    mean = np.mean([theta.q16() for theta in thetas[1:]], axis=0)
    assert np.array_equal(finished_mask(done), mean >= 32768)
    assert not np.array_equal(finished_mask(done), thetas[-1].threshold())


def test_a_finished_job_that_is_started_again_changes_nothing(world: Made, tiny_spec: ModelSpec) -> None:
    done = world()
    store = Store(done.config.state_dir / "job.sqlite", JOB, tiny_spec.digest, tiny_spec.canonical(), tiny_spec.d)
    link = MemoryLink(done.broker, Wire(), lambda event: None)
    again = Server(done.config, tiny_spec, link, store, lambda: done.agenda.now, 77)
    assert again.finished
    again.run()
    store.close()
    sound(done, tiny_spec)


def test_a_job_that_is_over_leaves_no_probabilities_at_the_broker(world: Made) -> None:
    retained = world().broker.retained
    assert [topic for topic in retained if "/theta/" in topic] == []
    announce = wire.expect(retained[topics.round_(JOB)], Announce)
    assert announce.phase is Phase.DONE


# --- one server and a script of events ---


class Script:
    """A Link that receives what it is given, one event a call, each call so many seconds long."""

    def __init__(self, *events: Event) -> None:
        self.events, self.now, self.closed = list(events), 0.0, False
        self.sent: list[tuple[str, bytes, bool]] = []

    def clock(self) -> float:
        return self.now

    def subscribe(self, topic: str) -> None:
        self.sent.append((topic, b"subscribe", False))

    def unsubscribe(self, topic: str) -> None:
        return None

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.sent.append((topic, payload, retain))

    def receive(self, timeout: float) -> Event | None:
        self.now += timeout
        return self.events.pop(0) if self.events else None

    def chunk_bytes(self) -> int:
        return 200

    def traffic(self) -> Traffic:
        return Traffic(0, 0)

    def close(self) -> None:
        self.closed = True

    def of(self, topic: str) -> list[bytes]:
        return [payload for name, payload, _ in self.sent if name == topic]


def presence(spec: ModelSpec, device: str, online: bool = True) -> Received:
    message = Presence(device, online, 5, spec.digest, 10, "reference", "0")
    return Received(topics.presence(JOB, device), wire.encode(message))


def sending(device: str, update: Update, size: int = 64) -> list[Event]:
    return [Received(topics.update(JOB, device), wire.encode(c)) for c in split(wire.encode(update), size)]


def update_of(spec: ModelSpec) -> Update:
    theta = Theta.even(spec.d)
    payload = packed.encode(np.ones(spec.d, np.uint8), theta)
    return Update(1, wire.basis(JOB, spec.digest, theta.digest()), 10, 1, 5, 1, (payload,))


@pytest.fixture
def scripted(tmp_path: Path, tiny_spec: ModelSpec, no_sync: None) -> Iterator[Callable[..., tuple[Server, Script]]]:
    stores: list[Store] = []

    def make(
        *events: Event,
        rounds: int = 1,
        devices: int = 1,
        training: TrainingConfig = TrainingConfig(),
        **aggregation: Any,
    ) -> tuple[Server, Script]:
        for store in stores:
            store.close()
        said = RoundsConfig(total=rounds, devices=devices)
        config = RunConfig(JOB, tmp_path / "x", tmp_path / "state", said, training, AggregationConfig(**aggregation))
        stores.append(
            Store(tmp_path / "state" / "job.sqlite", JOB, tiny_spec.digest, tiny_spec.canonical(), tiny_spec.d)
        )
        link = Script(*events)
        return Server(config, tiny_spec, link, stores[-1], link.clock, 9), link

    yield make
    for store in stores:
        store.close()


Scripted = Callable[..., tuple[Server, Script]]


def announced(link: Script) -> list[Announce]:
    found = [wire.decode(payload) for payload in link.of(topics.round_(JOB)) if payload != b"subscribe"]
    return [message for message in found if isinstance(message, Announce)]


def received(link: Script, device: str = "pi-1") -> list[Receipt]:
    found = [wire.decode(payload) for payload in link.of(topics.receipt(JOB, device))]
    return [message for message in found if isinstance(message, Receipt)]


@pytest.mark.usefixtures("own_rules")
def test_a_rule_that_fails_ends_the_server_and_a_mended_one_concludes_the_round(
    scripted: Scripted, tiny_spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "seedmask.aggregator")
    told = [Connected(), presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec))]
    server, link = scripted(*told, rule="broken")
    with pytest.raises(RuleError, match="rule 'broken' failed in conclude, round 1: ZeroDivisionError: by nothing"):
        server.run()
    assert "in conclude\n    raise ZeroDivisionError" in caplog.text  # with -v, where it was
    assert "round 1 stays open, its updates are stored" in caplog.text
    assert [receipt.status for receipt in received(link)] == [Status.ACCEPTED]
    mended, _ = scripted()
    mended.run()
    assert mended.finished
    assert mended.job.theta.q16().min() > 60_000  # what came of the update that was sent before


@pytest.mark.usefixtures("own_rules")
def test_what_one_rule_remembers_is_not_told_to_another(
    scripted: Scripted, tiny_spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "seedmask.aggregator")
    told = [Connected(), presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec))]
    server, _ = scripted(rounds=2, rule="remembering")
    for event in told:
        server.receive(event)
    memory = server.job.memory
    assert len(memory) == 8 * tiny_spec.d
    assert scripted(rounds=2, rule="remembering")[0].job.memory == memory
    assert "begins anew" not in caplog.text
    assert scripted(rounds=2)[0].job.memory == b""
    assert "what rule remembering remembered is not for rule fedpm, which begins anew" in caplog.text


def test_settings_that_change_while_a_round_is_open_are_those_of_the_next_one(
    scripted: Scripted, tiny_spec: ModelSpec
) -> None:
    two = [presence(tiny_spec, "pi-1"), presence(tiny_spec, "pi-2"), *sending("pi-1", update_of(tiny_spec))]
    server, _ = scripted(Connected(), *two, rounds=2, devices=2)
    for event in [Connected(), *two]:
        server.receive(event)
    asked, counted = server.job.training, server.job.votes.digest()
    for changed in (TrainingConfig(codec="rans"), TrainingConfig(max_blocks=1), TrainingConfig(masks=2)):
        again, _ = scripted(rounds=2, devices=2, training=changed)
        assert (again.job.training, again.job.votes.digest()) == (asked, counted)
    for event in [*two[:2], *sending("pi-2", update_of(tiny_spec))]:
        again.receive(event)
    assert (again.job.round, again.job.training) == (2, TrainingConfig(masks=2))


def test_an_open_round_takes_as_many_masks_as_it_asked_for_whatever_the_settings_say_now(
    scripted: Scripted, tiny_spec: ModelSpec
) -> None:
    server, _ = scripted(rounds=2, training=TrainingConfig(masks=3))
    server.receive(presence(tiny_spec, "pi-1"))
    assert server.job.round == 1
    fewer, _ = scripted(rounds=2)
    assert (fewer.job.training.masks, fewer.inbox.limit) == (3, server.inbox.limit)


def test_masks_are_not_passed_on_under_settings_by_which_they_make_another_theta(
    scripted: Scripted, tiny_spec: ModelSpec
) -> None:
    server, _ = scripted(rounds=2)
    here, gone = presence(tiny_spec, "pi-1"), presence(tiny_spec, "pi-1", online=False)
    for event in [here, gone, *sending("pi-1", update_of(tiny_spec))]:
        server.receive(event)
    assert (server.job.round, server.job.phase) == (1, Phase.WAITING)
    assert [part.device for part in scripted(rounds=2)[0].job.made] == ["pi-1"]
    assert scripted(rounds=2, clamp=0.03)[0].job.made == ()


def test_a_restart_says_which_settings_are_others_than_before(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "seedmask.aggregator")
    scripted(rounds=2)
    assert "settings changed" not in caplog.text
    scripted(rounds=3, training=TrainingConfig(kappa=7.5))
    changed = [line for line in caplog.messages if line.startswith("settings changed")]
    assert changed == ["settings changed: [rounds] total: 2 -> 3", "settings changed: [training] kappa: 5 -> 7.5"]


def test_a_server_runs_until_the_last_round_is_closed(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    server, link = scripted(Connected(), presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec)))
    server.run()
    assert [a.phase for a in announced(link)] == [Phase.WAITING, Phase.OPEN, Phase.DONE]
    assert [r.status for r in received(link)] == [Status.ACCEPTED]
    server.leave()
    assert link.closed
    beats = [wire.decode(payload) for payload in link.of(topics.aggregator(JOB))]
    assert beats == [Heartbeat(JOB, True, 9), Heartbeat(JOB, False, 9)]


def test_probabilities_are_published_before_their_announcement(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    server, link = scripted()
    for event in (Connected(), presence(tiny_spec, "pi-1")):
        server.receive(event)
    (told,) = [a for a in announced(link) if a.phase is Phase.OPEN]
    names = [topic for topic, _, _ in link.sent]
    chunks = [i for i, topic in enumerate(names) if "/theta/1/" in topic]
    assert len(chunks) == told.chunks >= 1
    assert max(chunks) < len(names) - 1 - names[::-1].index(topics.round_(JOB))
    assert all(retain for topic, _, retain in link.sent if "/theta/" in topic)


def test_a_reconnection_publishes_everything_again(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    server, link = scripted()
    for event in (Connected(), presence(tiny_spec, "pi-1")):
        server.receive(event)
    before = len(link.sent)
    server.receive(Connected())
    again = {topic for topic, _, _ in link.sent[before:]}
    assert {topics.aggregator(JOB), topics.round_(JOB), topics.theta(JOB, 1, 0)} <= again


def test_garbage_on_every_topic_is_survived(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    server, link = scripted()
    garbage = (b"", b"garbage", wire.encode(Heartbeat(JOB, True, 1)), presence(tiny_spec, "pi-2").payload)
    for topic in (topics.presence(JOB, "pi-1"), topics.update(JOB, "pi-1"), "seedmask/3/fashion/d/Pi 1/update", "x"):
        for payload in garbage:
            server.receive(Received(topic, payload))
    assert server.job.online == {}
    assert received(link) == []


def test_a_whole_transfer_that_is_no_update_gets_a_receipt(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    server, link = scripted()
    for blob in (b"not a frame at all", presence(tiny_spec, "pi-1").payload, wire.encode(update_of(tiny_spec))[:-1]):
        for chunk in split(blob, 50):
            server.receive(Received(topics.update(JOB, "pi-1"), wire.encode(chunk)))
        assert received(link)[-1].status is Status.INVALID
        assert received(link)[-1].transfer == transfer_id(blob)
    assert len(received(link)) == 3


def test_an_update_is_its_senders_whatever_it_holds(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    """The name in the topic is the sender's: a copy of another's update counts for who sent it, if it was asked."""
    server, link = scripted(rounds=2, devices=1)
    for event in (presence(tiny_spec, "pi-1"), *sending("pi-2", update_of(tiny_spec))):
        server.receive(event)
    assert [r.status for r in received(link, "pi-2")] == [Status.ACCEPTED]
    assert received(link, "pi-1") == []
    assert set(server.job.counted) == {"pi-2"}


def test_after_the_last_round_it_stays_until_the_devices_have_gone(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    server, link = scripted(presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec)))
    server.run()
    link.events += [*sending("pi-1", update_of(tiny_spec)), presence(tiny_spec, "pi-1", online=False)]
    began = link.now
    server.linger(20)
    assert [r.status for r in received(link)] == [Status.ACCEPTED, Status.DUPLICATE]
    assert link.events == []
    assert link.now - began < 20


def test_killed_after_the_last_round_it_comes_back_to_answer_who_still_waits(
    scripted: Scripted, tiny_spec: ModelSpec
) -> None:
    """Else a device whose receipt or last announcement was lost with the first life would wait for ever."""
    first, _ = scripted(presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec)))
    first.run()
    waiting = [Connected(), presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec))]
    server, link = scripted(*waiting, presence(tiny_spec, "pi-1", online=False))
    server.run()
    server.linger(20)
    assert [a.phase for a in announced(link)] == [Phase.DONE]
    assert [r.status for r in received(link)] == [Status.DUPLICATE]
    assert link.now < 20


def test_when_nobody_waits_it_leaves_in_time(scripted: Scripted, tiny_spec: ModelSpec) -> None:
    first, _ = scripted(presence(tiny_spec, "pi-1"), *sending("pi-1", update_of(tiny_spec)))
    first.run()
    server, link = scripted(Connected())
    server.linger(20)
    assert 20 <= link.now < 21
