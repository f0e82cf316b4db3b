"""A fleet on virtual time: the deployed client and aggregator, real training, pretended clock and wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator.config import Rounds, RunConfig, WorkSettings
from edge_client.client import Client, Identity, read_journal
from edge_client.data import Dataset
from edge_client.outbox import Outbox
from edge_client.runtimes import open_runtime
from edge_client.session import Ticked
from seedmask.bundle import Bundle
from seedmask.errors import UserError
from seedmask.mask import Theta
from seedmask.wire import Announce
from sim import report
from sim.broker import MemoryLink, Wire
from sim.evaluate import Accuracy, accuracy
from sim.fleet import Faults, Fleet
from sim.partition import split
from sim.pool import Pool

DEVICES, ROUNDS = 4, 4

Made = Callable[..., Fleet]
NONE = Faults()


@pytest.fixture(scope="module")
def parts(tiny_data: Dataset) -> list[Dataset]:
    chosen = split("iid", tiny_data.y, DEVICES, 0, np.random.default_rng(1))
    return [Dataset(tiny_data.x[pick], tiny_data.y[pick]) for pick in chosen]


@pytest.fixture(scope="module")
def pool(tiny_bundle: Bundle, parts: list[Dataset]) -> Iterator[Pool]:
    with Pool(tiny_bundle, parts, "reference", 1, 2) as pool:
        yield pool


@pytest.fixture
def made(tmp_path: Path, tiny_bundle: Bundle, parts: list[Dataset], pool: Pool, no_sync: None) -> Made:
    def make(seed: int = 1, faults: Faults = NONE, workers: Pool = pool, **rounds: float) -> Fleet:
        settings = Rounds(**{"total": ROUNDS, "devices": DEVICES, **rounds})  # type: ignore[arg-type]
        config = RunConfig("sim", tmp_path / "x", tmp_path / "state", settings, WorkSettings(epochs=2))
        return Fleet(config, tiny_bundle, parts, workers, "reference", seed, faults)

    return make


def ran(fleet: Fleet, data: Dataset) -> dict[str, object]:
    """The summary of a whole run."""
    spec = fleet.bundle.spec
    runtime = open_runtime("reference", fleet.bundle, 1)
    rows: list[report.Row] = []

    def closed(record: dict[str, object], theta: Theta, seconds: float) -> None:
        found = accuracy(runtime, spec, data, theta, np.random.default_rng([3, int(str(record["round"]))]))
        loss = record["train_loss"]
        assert isinstance(loss, float)
        number, updates, size = (int(str(record[key])) for key in ("round", "updates", "update_bytes"))
        rows.append(report.Row(number, seconds, updates, found, loss, size))

    seconds = fleet.run(closed)
    up, down = fleet.traffic()
    facts = report.Facts(
        spec.name, "quadrants", "iid", DEVICES, spec.d, "in memory", "virtual", fleet.seed, len(data.y)
    )
    last = rows[-1].accuracy if rows else Accuracy(0, 0, 0)
    return report.summary(facts, rows, last, report.Traffic(up, down, "simulator"), seconds)


def history(summary: dict[str, object]) -> list[dict[str, object]]:
    rows = summary["history"]
    assert isinstance(rows, list)
    return rows


def everything_is_answered(fleet: Fleet) -> None:
    for device in fleet.devices:
        assert device.client.finished, device.name
        assert device.client.session.pending == ()
        assert device.client.outbox.load() == ([], [])


def test_a_fleet_learns_and_every_round_counts_every_device(made: Made, tiny_data: Dataset) -> None:
    fleet = made()
    summary = ran(fleet, tiny_data)
    assert [(row["round"], row["updates"]) for row in history(summary)] == [(i, DEVICES) for i in range(1, ROUNDS + 1)]
    found = summary["accuracy"]
    assert isinstance(found, dict)
    assert found["mean"] > 0.6
    assert int(str(summary["uplink_bytes"])) > 0
    assert int(str(summary["downlink_bytes"])) > 0
    everything_is_answered(fleet)
    for device in fleet.devices:
        notes = read_journal(device.folder / "journal.jsonl")
        assert [note["status"] for note in notes] == ["accepted"] * ROUNDS + ["done"]


@pytest.mark.parametrize("faults", [NONE, Faults(cut=0.3, crash=0.3)], ids=["quiet", "faults"])
def test_the_same_arguments_give_the_same_bytes(
    made: Made, tiny_data: Dataset, tmp_path: Path, tiny_bundle: Bundle, parts: list[Dataset], faults: Faults
) -> None:
    report.write_json(tmp_path / "one.json", ran(made(7, faults), tiny_data))
    with Pool(tiny_bundle, parts, "reference", 1, 1) as single:  # nor does the number of workers matter
        report.write_json(tmp_path / "two.json", ran(made(7, faults, single), tiny_data))
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    report.write_json(tmp_path / "other.json", ran(made(8, faults), tiny_data))
    assert (tmp_path / "one.json").read_bytes() != (tmp_path / "other.json").read_bytes()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "faults", [Faults(crash=0.5), Faults(cut=1.0), Faults(cut=0.5, crash=0.5)], ids=["crash", "cut", "both"]
)
def test_with_faults_every_round_closes_and_every_update_is_answered(
    made: Made, tiny_data: Dataset, faults: Faults, seed: int
) -> None:
    fleet = made(seed, faults)
    rows = history(ran(fleet, tiny_data))
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert all(row["updates"] == DEVICES for row in rows)  # nobody is hurried: the deadline is far
    everything_is_answered(fleet)
    if faults.crash:
        assert sum(device.boots for device in fleet.devices) > DEVICES


def test_a_short_deadline_closes_rounds_without_those_who_crashed(made: Made, tiny_data: Dataset) -> None:
    fleet = made(3, Faults(crash=0.5), deadline_s=5.0)
    rows = history(ran(fleet, tiny_data))
    assert len(rows) == ROUNDS
    assert min(int(str(row["updates"])) for row in rows) < DEVICES
    everything_is_answered(fleet)


def test_per_round_asks_only_some_and_the_others_do_not_train(made: Made, tiny_data: Dataset) -> None:
    fleet = made(per_round=2)
    assert [row["updates"] for row in history(ran(fleet, tiny_data))] == [2] * ROUNDS
    trained = 0
    for device in fleet.devices:
        trained += sum(note["status"] == "accepted" for note in read_journal(device.folder / "journal.jsonl"))
    assert trained == 2 * ROUNDS


class Idle:
    """A Trainer that must not be asked."""

    def begin(self, announce: Announce, theta: Theta) -> None:
        pytest.fail("a device with another model was made to train")

    def cancel(self) -> None:
        return None

    def news(self) -> None:
        return None

    def close(self) -> None:
        return None


def stranger(fleet: Fleet, folder: Path) -> Client:
    """One more device; its bundle is of another seed, so it has as many weights and another model."""
    spec = replace(fleet.bundle.spec, seed=fleet.bundle.spec.seed + 1)
    who = Identity("stranger", "sim", spec, 10, "reference", 1)
    link = MemoryLink(fleet.broker, Wire(), lambda event: client.feed(event), who.will())
    client = Client(who, link, Outbox(folder / "outbox", "sim"), Idle(), lambda: fleet.agenda.now, folder / "j.jsonl")

    def tick() -> None:
        client.feed(Ticked(fleet.agenda.now))
        if not client.finished:
            fleet.agenda.at(fleet.agenda.now + 1, tick)

    fleet.agenda.at(1.0, tick)
    return client


def test_a_device_with_another_model_is_not_counted_and_stops_nobody(
    made: Made, tiny_data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "seedmask")
    fleet = made()
    other = stranger(fleet, tmp_path / "stranger")
    assert [row["updates"] for row in history(ran(fleet, tiny_data))] == [DEVICES] * ROUNDS
    everything_is_answered(fleet)
    assert "stranger has model" in caplog.text
    assert "not taking part" in caplog.text
    assert other.session.pending == ()


def test_a_job_that_lacks_devices_says_so_in_the_end(made: Made, tiny_data: Dataset, tmp_path: Path) -> None:
    fleet = made(devices=DEVICES + 1)
    stranger(fleet, tmp_path / "stranger")
    with pytest.raises(UserError, match=r"did not finish within .* 4 of 5 devices online, need 5"):
        ran(fleet, tiny_data)
    fleet.server.store.close()
