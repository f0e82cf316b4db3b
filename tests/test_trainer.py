"""Training in a process of its own: whatever happens to it, the client outlives it and says so.

Real processes; what they take is waited for on their pipe, with a bound.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import requires

from edge_client.client import Client, Identity
from edge_client.config import EdgeConfig
from edge_client.data import Dataset, DataSettings, DataSummary
from edge_client.outbox import Outbox
from edge_client.runtimes import State
from edge_client.session import Failed, Trained
from edge_client.trainer import Advanced, Loaded, News, ProcessTrainer, _Begin, _Ready, _serve
from edge_client.training import TrainingResult
from seedmask.bundle import Bundle, to_bytes
from seedmask.chunks import transfer_id
from seedmask.errors import UserError
from seedmask.io.link import Connected
from seedmask.mask import Theta
from seedmask.spec import Linear, ModelSpec, Tensor, scale_bits
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Phase, Presence, Update, basis, decode

SECONDS = 240.0
ENDLESS = TrainingConfig(epochs=60_000)

Made = Callable[..., ProcessTrainer]


def announce(spec: ModelSpec, theta: Theta, round_: int = 1, work: TrainingConfig | None = None) -> Announce:
    return Announce(
        job="fashion",
        round=round_,
        rounds=9,
        phase=Phase.OPEN,
        model=spec.digest,
        theta=theta.digest(),
        transfer=bytes(16),
        chunks=1,
        base=bytes(16),
        delta=bytes(16),
        delta_chunks=0,
        deadline_ms=0,
        training=work or TrainingConfig(epochs=1),
        selected=(),
        text="",
    )


def following(trainer: ProcessTrainer, *kinds: type[News]) -> News:
    """The next news of these kinds."""
    while True:
        news = trainer.news()
        if isinstance(news, kinds):
            return news
        if news is None:
            assert trainer._pipe is not None, "the child is gone and nothing was said"
            assert wait([trainer._pipe], SECONDS), "no news"


def pid(trainer: ProcessTrainer) -> int:
    assert trainer._process is not None
    assert trainer._process.pid is not None
    return trainer._process.pid


@pytest.fixture
def folder(tmp_path: Path, tiny_bundle: Bundle, tiny_data: Dataset) -> Path:
    (tmp_path / "tiny.bundle").write_bytes(to_bytes(tiny_bundle))
    np.savez(tmp_path / "mine.npz", x=tiny_data.x, y=tiny_data.y)
    return tmp_path


@pytest.fixture
def made(folder: Path) -> Iterator[Made]:
    trainers = []
    config = EdgeConfig(
        device="pi-1",
        job="fashion",
        bundle=folder / "tiny.bundle",
        state_dir=folder,
        data=DataSettings("npz", {"path": str(folder / "mine.npz")}),
        runtime="reference",
        threads=1,
    )

    def make(**changes: object) -> ProcessTrainer:
        trainers.append(ProcessTrainer(replace(config, **changes)))  # type: ignore[arg-type]
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.close()


def test_rounds_are_trained_in_one_child_and_their_updates_can_be_read(made: Made, tiny_spec: ModelSpec) -> None:
    trainer, theta = made(), Theta.even(tiny_spec.d)
    assert trainer.news() is None
    child = 0
    for round_ in (1, 2):
        trainer.begin(announce(tiny_spec, theta, round_), theta)
        assert following(trainer, Advanced) == Advanced(0, 12)
        news = following(trainer, Trained, Failed)
        assert isinstance(news, Trained), news
        assert (news.round, news.theta, news.transfer) == (round_, theta.digest(), transfer_id(news.frame))
        update = decode(news.frame)
        assert isinstance(update, Update)
        assert (update.round, update.samples) == (round_, 96)
        assert update.basis == basis("fashion", tiny_spec.digest, theta.digest())
        assert pid(trainer) == (child or pid(trainer))
        child = pid(trainer)


def test_a_child_that_is_killed_is_named_and_the_next_round_is_trained(made: Made, tiny_spec: ModelSpec) -> None:
    trainer, theta = made(), Theta.even(tiny_spec.d)
    trainer.begin(announce(tiny_spec, theta, 1, ENDLESS), theta)
    following(trainer, Advanced)
    child = pid(trainer)
    os.kill(child, signal.SIGKILL)
    news = following(trainer, Trained, Failed)
    assert isinstance(news, Failed)
    assert (news.round, news.theta) == (1, theta.digest())
    assert news.reason.startswith("the training process ended with signal SIGKILL")
    assert trainer.news() is None
    trainer.begin(announce(tiny_spec, theta, 2), theta)
    assert isinstance(following(trainer, Trained, Failed), Trained)
    assert pid(trainer) != child


def test_a_round_that_is_given_up_is_not_heard_of_and_the_next_one_is(made: Made, tiny_spec: ModelSpec) -> None:
    trainer, theta = made(), Theta.even(tiny_spec.d)
    trainer.begin(announce(tiny_spec, theta, 1, ENDLESS), theta)
    following(trainer, Advanced)
    child = pid(trainer)
    trainer.cancel()
    assert trainer.news() is None
    trainer.begin(announce(tiny_spec, theta, 2), theta)
    news = following(trainer, Trained, Failed)
    assert isinstance(news, Trained)
    assert (news.round, pid(trainer)) == (2, child)


def test_a_round_can_be_given_up_while_the_child_still_starts(made: Made, tiny_spec: ModelSpec) -> None:
    trainer, theta = made(), Theta.even(tiny_spec.d)
    trainer.begin(announce(tiny_spec, theta, 1, ENDLESS), theta)
    trainer.cancel()
    trainer.begin(announce(tiny_spec, theta, 2), theta)
    news = following(trainer, Trained, Failed)
    assert isinstance(news, Trained)
    assert news.round == 2


def test_a_large_round_that_is_given_up_at_its_last_step_blocks_nobody(made: Made, folder: Path) -> None:
    """Its mask and the next probabilities are larger than a pipe: neither end may write while the other does."""
    shape = (2000, 1200)
    wide = ModelSpec(
        "wide", 1, (1200,), (0, 1), 2000, (Linear("a.weight", None),), (Tensor("a.weight", shape, scale_bits(0.1)),)
    )
    (folder / "wide.bundle").write_bytes(to_bytes(Bundle(wide, 8, {})))
    np.savez(folder / "wide.npz", x=np.ones((1, 1200), np.uint8), y=np.array([3]))
    trainer = made(bundle=folder / "wide.bundle", data=DataSettings("npz", {"path": str(folder / "wide.npz")}))
    theta = Theta.even(wide.d)
    work = TrainingConfig(epochs=1, codec="packed")
    trainer.begin(announce(wide, theta, 1, work), theta)
    assert following(trainer, Advanced) == Advanced(0, 1)
    assert trainer._pipe is not None
    assert wait([trainer._pipe], SECONDS)  # the child has begun to write its mask
    trainer.cancel()
    trainer.begin(announce(wide, theta, 2, work), theta)
    news = following(trainer, Trained, Failed)
    assert isinstance(news, Trained)
    assert news.round == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": DataSettings("npz", {"path": "/nowhere/mine.npz"})}, "cannot read /nowhere/mine.npz"),
        ({"bundle": Path("/nowhere/tiny.bundle")}, "cannot read the bundle /nowhere/tiny.bundle"),
        ({"runtime": "abacus"}, "no runtime called 'abacus'"),
        ({"memory_mb": 40}, "memory_mb = 40 is too little for tiny on runtime reference: one example at a time takes"),
    ],
)
def test_what_cannot_be_opened_is_told_in_every_round_without_a_traceback(
    made: Made, tiny_spec: ModelSpec, changes: dict[str, object], says: str
) -> None:
    trainer, theta = made(**changes), Theta.even(tiny_spec.d)
    for round_ in (1, 2):
        trainer.begin(announce(tiny_spec, theta, round_), theta)
        news = following(trainer, Trained, Failed)
        assert isinstance(news, Failed)
        assert news.round == round_
        assert says in news.reason
        assert "Traceback" not in news.reason


def test_a_bundle_without_the_runtimes_graphs_is_told_without_a_traceback(made: Made, tiny_spec: ModelSpec) -> None:
    requires("onnxruntime")
    trainer, theta = made(runtime="onnxruntime"), Theta.even(tiny_spec.d)
    trainer.begin(announce(tiny_spec, theta), theta)
    news = following(trainer, Trained, Failed)
    assert isinstance(news, Failed)
    assert "the bundle has no onnx/" in news.reason
    assert "Traceback" not in news.reason


def test_probabilities_of_another_size_fail_the_round_and_not_the_child(made: Made, tiny_spec: ModelSpec) -> None:
    trainer, other = made(), Theta.even(tiny_spec.d + 1)
    trainer.begin(announce(tiny_spec, other), other)
    news = following(trainer, Trained, Failed)
    assert isinstance(news, Failed)
    assert "scores is [324], found [325]" in news.reason
    child, theta = pid(trainer), Theta.even(tiny_spec.d)
    trainer.begin(announce(tiny_spec, theta, 2), theta)
    assert isinstance(following(trainer, Trained, Failed), Trained)
    assert pid(trainer) == child


def test_what_is_known_of_the_data_comes_from_the_child_and_is_never_an_old_number(
    made: Made, folder: Path, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    trainer, theta = made(), Theta.even(tiny_spec.d)
    assert trainer.load().data == DataSummary(96, 96 * (16 + 8))
    np.savez(folder / "mine.npz", x=tiny_data.x[:40], y=tiny_data.y[:40])
    trainer.begin(announce(tiny_spec, theta), theta)
    first = following(trainer, Trained, Failed)
    assert isinstance(first, Trained)
    update = decode(first.frame)
    assert isinstance(update, Update)
    assert update.samples == 96  # the child trains on what it told of
    os.kill(pid(trainer), signal.SIGKILL)
    assert trainer._process is not None
    trainer._process.join(SECONDS)
    trainer.begin(announce(tiny_spec, theta, 2), theta)
    news = following(trainer, Loaded)
    assert isinstance(news, Loaded)
    assert news.data.examples == 40
    second = following(trainer, Trained, Failed)
    assert isinstance(second, Trained)
    update = decode(second.frame)
    assert isinstance(update, Update)
    assert update.samples == 40


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": DataSettings("npz", {"path": "/nowhere/mine.npz"})}, "cannot read /nowhere/mine.npz"),
        ({"memory_mb": 40}, "memory_mb = 40 is too little for tiny"),
    ],
)
def test_data_that_cannot_be_loaded_is_the_users_to_mend(made: Made, changes: dict[str, object], says: str) -> None:
    trainer = made(**changes)
    for _ in range(2):
        with pytest.raises(UserError, match=says):
            trainer.load()
        assert trainer._process is None


class Broker:
    """A link to a broker that only connects, and that somebody leaves when nothing more is to come."""

    def __init__(self) -> None:
        self.events: list[object] = [Connected()]
        self.published: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.published.append((topic, payload))

    def receive(self, timeout: float) -> object:
        if self.events:
            return self.events.pop(0)
        raise KeyboardInterrupt

    def subscribe(self, topic: str) -> None: ...

    def busy(self) -> bool:
        return False


class Restarted:
    """A trainer whose process has started anew and found other data."""

    def __init__(self, *found: int) -> None:
        self._news = [Loaded(DataSummary(n, 24 * n)) for n in found]

    def news(self) -> News | None:
        return self._news.pop(0) if self._news else None


def test_a_client_whose_data_has_changed_says_so_and_announces_the_new_number(
    tmp_path: Path, tiny_spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    broker, trainer = Broker(), Restarted(96, 1040)
    who = Identity("pi-1", "fashion", tiny_spec, 96, "reference", 1)
    told: Any = Client(
        who,
        broker,  # type: ignore[arg-type]
        Outbox(tmp_path / "outbox", "fashion"),
        trainer,  # type: ignore[arg-type]
        lambda: 0.0,
        tmp_path / "journal.jsonl",
    )
    with pytest.raises(KeyboardInterrupt):
        told.run(stay=True)
    presences = [frame for _, payload in broker.published if isinstance(frame := decode(payload), Presence)]
    assert [presence.samples for presence in presences] == [96, 1040]
    assert "the data has changed: it was 96 examples, it is 1,040 from now on" in caplog.text


def test_closing_ends_the_child(made: Made, tiny_spec: ModelSpec) -> None:
    trainer, theta = made(), Theta.even(tiny_spec.d)
    trainer.begin(announce(tiny_spec, theta, 1, ENDLESS), theta)
    following(trainer, Advanced)
    process = trainer._process
    assert process is not None
    trainer.close()
    assert process.exitcode is not None
    trainer.cancel()
    assert trainer.news() is None


@pytest.mark.parametrize("keep", [False, True])
def test_the_optimiser_lives_from_round_to_round_if_the_job_wants_it(
    folder: Path, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """The child's own loop, in this process, with a training that only notes what it was given."""
    given: list[State | None] = []
    states = [State.start(np.full(tiny_spec.d, i, np.float32)) for i in range(4)]

    def noting(*arguments: object, round_: int, kept: list[State]) -> TrainingResult | None:
        given.append(kept.pop() if kept else None)
        if round_ == 2:
            return None  # given up
        return TrainingResult(states[round_].scores, 0.5, 1, states[round_])

    monkeypatch.setattr("edge_client.trainer.train", noting)
    monkeypatch.setattr("edge_client.trainer.signal.signal", lambda *arguments: None)
    monkeypatch.setattr(os, "nice", lambda by: None)
    data = DataSettings("npz", {"path": str(folder / "mine.npz")})
    config = EdgeConfig("pi-1", "fashion", folder / "tiny.bundle", folder, data, "reference", 1)
    ours, theirs = Pipe()
    child = threading.Thread(target=_serve, args=(config, theirs))
    child.start()
    theta, trained = Theta.even(tiny_spec.d), []
    assert ours.recv() == Loaded(DataSummary(96, 96 * (16 + 8)))
    for round_ in (1, 2, 3, 3):
        while not isinstance(message := ours.recv(), _Ready):
            trained.append(message)
        ours.send(_Begin(announce(tiny_spec, theta, round_, TrainingConfig(epochs=1, keep_optimizer=keep)), theta))
    while not isinstance(message := ours.recv(), _Ready):
        trained.append(message)
    ours.close()
    child.join(SECONDS)
    assert not child.is_alive()
    assert [type(message) for message in trained] == [Trained] * 3
    # A round that was given up has used up what it began with.
    assert given == ([None, states[1], None, states[3]] if keep else [None] * 4)
