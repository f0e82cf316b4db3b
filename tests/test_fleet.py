"""A fleet on virtual time: the deployed client and aggregator, real training, pretended clock and wire."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires

from aggregator.config import RunConfig
from aggregator.history import Report
from aggregator.presets import PRESETS
from aggregator.settings import AggregationConfig, RoundsConfig
from edge_client.client import Client, Identity, read_journal
from edge_client.data import Dataset
from edge_client.outbox import Outbox
from edge_client.runtimes import open_runtime
from edge_client.session import Ticked
from seedmask.bundle import Bundle
from seedmask.errors import UserError
from seedmask.io.files import append_json
from seedmask.mask import Theta
from seedmask.training import TrainingConfig
from seedmask.wire import Announce
from sim import report
from sim.broker import MemoryLink, Wire
from sim.evaluate import Score, score
from sim.fleet import Faults, Fleet
from sim.partition import split
from sim.pool import Pool, Threads
from sim.processes import ProcessFleet, _Process
from sim.runtimes import Assignment

pytestmark = pytest.mark.sim

DEVICES, ROUNDS = 4, 4

Made = Callable[..., Fleet]
NONE = Faults()
RANS, EXACT = TrainingConfig(epochs=2, codec="rans"), AggregationConfig()


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
    folders = (tmp_path / f"fleet-{number}" for number in count())  # a fleet begins in a new one

    def make(
        seed: int = 1,
        faults: Faults = NONE,
        workers: Pool | Threads = pool,
        work: TrainingConfig = RANS,
        aggregation: AggregationConfig = EXACT,
        **rounds: float,
    ) -> Fleet:
        settings = RoundsConfig(**{"total": ROUNDS, "devices": DEVICES, **rounds})  # type: ignore[arg-type]
        home = next(folders)
        config = RunConfig("sim", tmp_path / "x", home / "state", settings, work, aggregation)
        return Fleet(config, home / "devices", tiny_bundle, parts, workers, "reference", seed, faults)

    return make


def ran(fleet: Fleet, data: Dataset) -> dict[str, object]:
    """The summary of a whole run."""
    spec = fleet.bundle.spec
    runtime = open_runtime("reference", fleet.bundle, 1)
    rows: list[report.RoundRecord] = []

    def closed(record: dict[str, object], theta: Theta, seconds: float) -> None:
        found = score(runtime, spec, data, theta, np.random.default_rng([3, int(str(record["round"]))]))
        loss = record["train_loss"]
        assert isinstance(loss, float)
        number, updates, size = (int(str(record[key])) for key in ("round", "updates", "update_bytes"))
        rows.append(report.RoundRecord(number, seconds, updates, found, loss, size))

    seconds = fleet.run(closed)
    up, down = fleet.traffic()
    facts = report.Facts(
        spec.name, "quadrants", "made up", "iid", DEVICES, spec.d, "in memory", "virtual", fleet.seed, len(data.y)
    )
    last = rows[-1].accuracy if rows else Score(0, 0, 0)
    return report.summary(facts, rows, last, report.TrafficReport(up, down, "simulator"), seconds)


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


@pytest.mark.parametrize("which", ["state", "devices"])
def test_a_fleet_deletes_nothing_and_refuses_a_folder_that_has_something_in_it(
    tiny_bundle: Bundle, parts: list[Dataset], pool: Pool, tmp_path: Path, which: str
) -> None:
    precious = tmp_path / which / "precious"
    precious.parent.mkdir()
    precious.write_text("years of work")
    config = RunConfig("sim", tmp_path / "x", tmp_path / "state", RoundsConfig(devices=DEVICES), RANS, EXACT)
    with pytest.raises(UserError, match=rf"{which} is not empty \(it has precious\); a fleet begins in a new folder"):
        Fleet(config, tmp_path / "devices", tiny_bundle, parts, pool, "reference", 1, NONE)
    assert precious.read_text() == "years of work"


def test_threads_train_to_the_same_bytes_as_processes(
    made: Made, tiny_data: Dataset, tiny_bundle: Bundle, parts: list[Dataset]
) -> None:
    by_processes = ran(made(7), tiny_data)
    with Threads(tiny_bundle, parts, "reference", 1, 3) as threads:
        assert ran(made(7, workers=threads), tiny_data) == by_processes


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_to_its_end(made: Made, tiny_data: Dataset, name: str) -> None:
    preset = PRESETS[name]
    fleet = made(work=preset.training, aggregation=preset.aggregation)
    summary = ran(fleet, tiny_data)
    assert [row["updates"] for row in history(summary)] == [DEVICES] * ROUNDS
    everything_is_answered(fleet)


@pytest.mark.parametrize("faults", [NONE, Faults(crash=0.5)], ids=["quiet", "faults"])
def test_kept_optimisers_and_carried_counts_train_to_the_end(made: Made, tiny_data: Dataset, faults: Faults) -> None:
    work = TrainingConfig(epochs=2, codec="rans", keep_optimizer=True, rate_decay=0.1)
    fleet = made(5, faults, work=work, aggregation=AggregationConfig(downlink=8, carry=0.5))
    assert [row["updates"] for row in history(ran(fleet, tiny_data))] == [DEVICES] * ROUNDS
    everything_is_answered(fleet)


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
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):  # also in the end that nobody wished
        fleet.server.store.records()


def test_a_training_process_that_dies_is_said_and_not_a_traceback(
    made: Made, tiny_data: Dataset, tiny_bundle: Bundle, parts: list[Dataset]
) -> None:
    def doomed() -> None:
        with Pool(tiny_bundle, parts, "reference", 1, 1) as one:
            one._executor.submit(os._exit, 9)  # as the kernel does when memory is short
            ran(made(1, NONE, one), tiny_data)

    with pytest.raises(UserError, match="a training process died"):
        doomed()


ORPHANS = """
import multiprocessing, os, signal, sys, threading
from sim.pool import _die_with_parent

def work() -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    print(os.getpid(), flush=True)
    threading.Event().wait()

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
"""


def test_a_training_process_ends_when_the_simulation_is_killed(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "orphans.py")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    assert parent.stdout.read() == ""  # the end of the pipe, which the child holds too
    parent.wait()


def test_figures_per_round_are_of_the_devices_that_took_part(made: Made, tiny_data: Dataset) -> None:
    summary = ran(made(per_round=2), tiny_data)
    sent, per_round = int(str(summary["uplink_bytes"])), float(str(summary["uplink_bytes_per_device_per_round"]))
    assert per_round == pytest.approx(sent / (2 * ROUNDS), abs=0.1)
    rows = history(summary)
    payload = sum(int(str(row["update_bytes"])) for row in rows) * 8 / (2 * ROUNDS * 324)
    assert summary["mask_payload_bits_per_parameter_per_round"] == pytest.approx(payload, abs=1e-5)


ROW = report.RoundRecord(20, 12345.6, 100, Score(1.0, 1.0, 1.0), 12.345, 250_000_000)


def test_the_table_fits_80_columns_on_a_terminal() -> None:
    requires("sim")
    from rich.console import Console

    from sim.screen import Screen

    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=30, record=True)
    with Screen(20, 20_000_000, console) as screen:
        screen.waiting("2 of 3 devices online, need 3")
        screen.row(ROW)
    text = console.export_text()
    assert " thresh " in text
    last = [line for line in text.splitlines() if "12345.6 s" in line][-1]
    assert last.split() == ["20", "100", "100.0%", "100.0%", "100.0%", "12.345", "2500.0", "1.000", "12345.6", "s"]
    assert max(len(line) for line in text.splitlines()) <= 80


def test_in_a_pipe_rows_are_lines_and_what_is_waited_for_is_said_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    requires("sim")
    from rich.console import Console

    from sim.screen import Screen

    now = [0.0]
    with Screen(20, 20_000_000, Console(file=io.StringIO()), lambda: now[0]) as screen:
        said_at = (0, "starting"), (1, "no broker"), (9, "no broker"), (10, "another"), (18, "another"), (30, "another")
        for second, text in said_at:
            now[0] = second
            screen.waiting(text)
        screen.row(ROW)
        screen.waiting("for the next round")  # a row has just said that things move
    head, row = (said := capsys.readouterr()).out.splitlines()
    assert head.split() == ["round", "upd", "sampled", "thresh", "mean", "loss", "kB/upd", "bit/par", "time"]
    assert len(head) == len(row) <= 80
    assert said.err.splitlines() == ["waiting: no broker", "waiting: another"]


def test_what_devices_report_is_added_up_per_runtime() -> None:
    said = [
        Report(1, "device-000", 10, 2.0, 1),
        Report(1, "device-001", 20, 1.0, 10),
        Report(1, "device-002", 30, 1.0, 9),
        Report(2, "device-001", 20, 0.5, 15),
    ]
    found = report.by_runtime(said, {"device-000": "b", "device-001": "a", "device-002": "b", "device-003": "c"})
    assert found == {
        "a": {
            "devices": ["device-001"],
            "history": [
                {"round": 1, "updates": 1, "train_accuracy": 0.5, "train_loss": 1.0},
                {"round": 2, "updates": 1, "train_accuracy": 0.75, "train_loss": 0.5},
            ],
        },
        "b": {
            "devices": ["device-000", "device-002"],
            "history": [{"round": 1, "updates": 2, "train_accuracy": 0.25, "train_loss": 1.25}],
        },
        "c": {"devices": ["device-003"], "history": []},
    }
    head, first, second = (line.split() for line in report.runtimes_table(found).splitlines())
    assert head == ["round", "a", "(1)", "b", "(2)", "c", "(1)"]
    assert first == ["1", "50.0%", "1.000", "25.0%", "1.250", "-"]
    assert second == ["2", "75.0%", "0.500", "-", "-"]


@pytest.fixture
def processes(tmp_path: Path, tiny_bundle: Bundle, parts: list[Dataset]) -> ProcessFleet:
    """One device of a fleet of processes that never starts."""
    runtimes = Assignment(("reference",), {})
    return ProcessFleet(tmp_path, tmp_path / "x", tiny_bundle.spec, "sim-1", parts[:1], {}, runtimes, 1, None)


def test_traffic_is_the_most_that_each_life_of_a_device_counted(processes: ProcessFleet) -> None:
    counted = [("a", 10, 100), ("a", 30, 300), ("b", 40, 50), ("c", 5, 6), ("c", 7, 8)]
    for boot, sent, received in counted:
        line = {"boot": boot, "sent_bytes": sent, "received_bytes": received}
        append_json(processes.folder / "devices" / "device-000" / "journal.jsonl", line)
    assert processes.traffic() == (30 + 40 + 7, 300 + 50 + 8)


def test_a_device_that_leaves_a_job_that_is_not_done_ends_the_simulation(
    processes: ProcessFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("sim.processes.time.monotonic", lambda: now[0])
    server, device = (_Process(name, [], processes.folder / f"{name}.log") for name in ("aggregator", "device-000"))
    processes._all[:] = [server, device]
    server.log.write_text("12:00:00 aggregator: 0 of 1 devices online, need 1\n")
    device.log.write_text("12:00:00 client: the job is done\n")
    for process, code in ((server, "import time; time.sleep(60)"), (device, "")):
        process.running = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert device.running is not None
        device.running.wait()
        processes._watch()
        now[0] += 29
        processes._watch()
        now[0] += 2
        with pytest.raises(UserError, match=r"device-000 left before the job was done(.|\n)*client: the job is done"):
            processes._watch()
        server.log.write_text("12:00:00 aggregator: job sim-1 is done: model.smk\n")
        processes._watch()
    finally:
        assert server.running is not None
        server.running.kill()
        server.running.wait()
