"""Real processes, a real broker, real kills: what a fleet has to survive."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires
from ports import held_port

from aggregator.broker import answers, dev_broker
from aggregator.history import results
from seedmask.bundle import Bundle, to_bytes
from seedmask.codec import counts, rans
from seedmask.spec import Flatten, Linear, ModelSpec, ReLU, Tensor, scale_bits
from seedmask.wire import Update, decode

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.requires("mosquitto"),
    pytest.mark.timeout(900),
]
HOST = "127.0.0.1"
# For what takes a second or two on an idle machine: a busy one must not fail a test.
PATIENCE_S = 240.0
SEEDMASK = (sys.executable, "-m", "seedmask.cli")


def small_spec(hidden: int = 64) -> ModelSpec:
    first, last = (
        Tensor("1.weight", (hidden, 784), scale_bits(0.05)),
        Tensor("3.weight", (10, hidden), scale_bits(0.17)),
    )
    layers = (Flatten(), Linear("1.weight", None), ReLU(), Linear("3.weight", None))
    return ModelSpec("small", 7, (1, 28, 28), (0, 255), 10, layers, (first, last))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle for the NumPy runtime, which needs no graph."""
    path = tmp_path / "small.bundle"
    path.write_bytes(to_bytes(Bundle(small_spec(), 32, {})))
    return path


def until(true: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait for something that another process does; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def trainer_of(pid: int) -> list[int]:
    """The child processes of a client."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


class Simulation:
    """A `seedmask simulate` under way: three devices, three rounds of a few seconds each."""

    def __init__(self, folder: Path, bundle: Path, *more: str) -> None:
        self.out = folder / "out"
        self.log = open(folder / "simulate.log", "wb")
        self.process = subprocess.Popen(
            [
                *SEEDMASK,
                *("simulate", "--devices", "3", "--rounds", "3", "--examples", "400", "--epochs", "3", "--seed", "5"),
                *("--codec", "rans", "--downlink", "exact", "--weighting", "equal"),  # counts, to count them
                *("--bundle", str(bundle), "--runtime", "reference", "--data", "digits", "--out", str(self.out)),
                *more,
            ],
            stdout=self.log,
            stderr=self.log,
            cwd=folder,
        )

    def pids(self) -> dict[str, int]:
        until((self.out / "pids.json").exists)
        pids: dict[str, int] = json.loads((self.out / "pids.json").read_text())
        return pids

    def rows(self, query: str) -> list[tuple[object, ...]]:
        path = self.out / "aggregator" / "job.sqlite"
        if not path.exists():
            return []
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as db:
                return db.execute(query).fetchall()
        except sqlite3.OperationalError:  # not made yet
            return []

    def counted(self, round_: int) -> int:
        rows = self.rows(f"SELECT COUNT(*) FROM updates WHERE round = {round_}")
        return int(str(rows[0][0])) if rows else 0

    def hold_round_2_open(self) -> int:
        """Freeze one device before its update of round 2, until the other two are counted; its process id."""
        until(lambda: self.counted(1) == 3)
        frozen = self.pids()["device-002"]
        os.kill(frozen, signal.SIGSTOP)
        until(lambda: self.counted(2) == 2)
        return frozen

    def finish(self) -> str:
        """Wait for the end; what it printed. Three rounds, every device counted exactly once in each."""
        status = self.process.wait(PATIENCE_S)
        self.log.close()
        text = Path(self.log.name).read_text()
        assert status == 0, text
        assert "Traceback" not in text
        per_round = self.rows(
            "SELECT round, COUNT(*), COUNT(DISTINCT device) FROM updates GROUP BY round ORDER BY round"
        )
        assert per_round == [(1, 3, 3), (2, 3, 3), (3, 3, 3)]
        return text


@pytest.fixture
def simulation(tmp_path: Path, bundle: Path) -> Iterator[Callable[..., Simulation]]:
    requires("sim")
    started: list[Simulation] = []

    def start(*more: str) -> Simulation:
        started.append(Simulation(tmp_path, bundle, *more))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(PATIENCE_S)


def test_the_aggregator_killed_in_mid_round_continues_it_and_counts_nothing_twice(
    simulation: Callable[..., Simulation],
) -> None:
    run = simulation()
    frozen = run.hold_round_2_open()
    victim = run.pids()["aggregator"]
    os.kill(victim, signal.SIGKILL)
    until(lambda: run.pids()["aggregator"] != victim)
    os.kill(frozen, signal.SIGCONT)
    text = run.finish()
    assert "1 process(es) died and were started again" in text
    log = (run.out / "aggregator.log").read_text()
    assert "resumed: round 2 of 3" in log
    # theta has one level per folded mask, so a mask folded twice would show here.
    levels = [theta.max_level for _, theta in results(run.out / "aggregator" / "job.sqlite", small_spec().d)]
    assert levels == [3, 3, 3]
    summary = json.loads((run.out / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"sampled", "thresholded", "mean"}
    assert (summary["rounds"], summary["devices"], summary["parameters"]) == (3, 3, small_spec().d)
    assert 0 < summary["uplink_bits_per_parameter_per_round"] < 2
    assert summary["uplink_bytes"] > sum(row["update_bytes"] for row in summary["history"])
    assert summary["downlink_bytes"] > 0
    assert summary["seconds"] > 0


def test_a_round_interrupted_by_a_kill_gives_the_counts_of_the_masks_that_were_sent(
    simulation: Callable[..., Simulation],
) -> None:
    run = simulation()
    frozen = run.hold_round_2_open()
    os.kill(run.pids()["aggregator"], signal.SIGKILL)
    # What the disk holds of round 2 at the kill; the third mask comes later, and is the difference.
    rows = run.rows("SELECT frame FROM updates WHERE round = 2")
    assert len(rows) == 2
    before = decode_mask_sum(run, rows)
    os.kill(frozen, signal.SIGCONT)
    run.finish()
    after = dict(enumerate(results(run.out / "aggregator" / "job.sqlite", small_spec().d), 1))[2][1]
    third = after.level.astype(int) - before
    assert set(np.unique(third)) <= {0, 1}


def decode_mask_sum(run: Simulation, rows: list[tuple[object, ...]]) -> np.ndarray:
    """The sum of the masks in stored frames of round 2."""
    began = run.rows("SELECT counts FROM thetas WHERE number = 1")[0][0]
    assert isinstance(began, bytes)
    theta = counts.decode(began, small_spec().d)
    total = np.zeros(small_spec().d, int)
    for (frame,) in rows:
        assert isinstance(frame, bytes)
        update = decode(frame)
        assert isinstance(update, Update)
        assert len(update.payloads) == 1
        total += rans.decode(update.payloads[0], theta)
    return total


def test_every_device_of_a_job_may_train_with_another_runtime(
    simulation: Callable[..., Simulation], bundle: Path
) -> None:
    requires("torch", "onnx", "onnxruntime")
    from export.make import make_bundle

    bundle.write_bytes(to_bytes(make_bundle(small_spec(), 32)))
    # The last one by way of an interpreter that was named, as if it lived in another environment.
    run = simulation("--runtime", "onnxruntime,torch,reference", "--python", f"reference={sys.executable}")
    text = run.finish()
    said = (run.out / "aggregator.log").read_text()
    for index, name in enumerate(("onnxruntime", "torch", "reference")):
        assert f"device-00{index} is here: 400 examples, {name}" in said
    found = json.loads((run.out / "summary.json").read_text())["runtimes"]
    assert {name: value["devices"] for name, value in found.items()} == {
        "onnxruntime": ["device-000"],
        "torch": ["device-001"],
        "reference": ["device-002"],
    }
    for value in found.values():
        assert [(row["round"], row["updates"]) for row in value["history"]] == [(1, 1), (2, 1), (3, 1)]
        assert value["history"][2]["train_accuracy"] > 0.5
        assert value["history"][2]["train_loss"] < value["history"][0]["train_loss"]
    table = text[text.index("training accuracy and loss by runtime") :].splitlines()
    assert table[1].split() == ["round", "onnxruntime", "(1)", "reference", "(1)", "torch", "(1)"]
    assert [line.split()[0] for line in table[2:5]] == ["1", "2", "3"]


def test_a_device_killed_in_training_comes_back_and_finishes_the_round(simulation: Callable[..., Simulation]) -> None:
    run = simulation()
    until(lambda: run.counted(1) == 3)
    log = run.out / "devices" / "device-001" / "client.log"
    until(lambda: "round 2 of 3: fetching" in log.read_text())
    victim = run.pids()["device-001"]
    until(lambda: run.rows("SELECT round FROM rounds WHERE round = 2") != [] and trainer_of(victim) != [])
    children = trainer_of(victim)
    os.kill(victim, signal.SIGKILL)
    until(lambda: not any(alive(child) for child in children))  # it does not train on for nobody
    text = run.finish()
    assert "1 process(es) died and were started again" in text
    assert not alive(victim)


def test_a_broker_that_vanishes_in_mid_round_and_returns_costs_nothing(
    simulation: Callable[..., Simulation], tmp_path: Path
) -> None:
    with held_port() as port:
        with dev_broker(HOST, port):
            run = simulation("--broker", f"{HOST}:{port}")
            frozen = run.hold_round_2_open()
        # The first broker is gone, and with it all sessions and everything retained; this is another one.
        with dev_broker(HOST, port):
            os.kill(frozen, signal.SIGCONT)
            run.finish()
    assert "offline" in (run.out / "aggregator.log").read_text()


def test_ctrl_c_ends_every_process_of_a_simulation(simulation: Callable[..., Simulation]) -> None:
    run = simulation()
    until(lambda: run.counted(1) >= 1)
    pids = list(run.pids().values())
    assert len(pids) == 4
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PATIENCE_S) == 130
    assert not any(alive(pid) for pid in pids)
    assert "Traceback" not in Path(run.log.name).read_text()


@pytest.fixture
def port() -> Iterator[int]:
    """A port where nobody listens but the broker that a test starts there."""
    with held_port() as held:
        yield held


def edge_toml(folder: Path, bundle: Path, port: int, data: str = "data.npz", device: str = "pi") -> Path:
    """Settings of one device with a few random examples."""
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (64, 28, 28), np.uint8), y=rng.integers(0, 10, 64))
    path = folder / "edge.toml"
    path.write_text(
        f'device = "{device}"\njob = "job"\nbundle = "{bundle}"\nstate_dir = "state"\nruntime = "reference"\n'
        f'[data]\nformat = "npz"\npath = "{data}"\n[broker]\nhost = "{HOST}"\nport = {port}\n'
    )
    return path


def client(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*SEEDMASK, "client", "run", "--config", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_without_a_broker_a_device_says_so_keeps_trying_and_leaves_on_ctrl_c(
    tmp_path: Path, bundle: Path, port: int
) -> None:
    settings = edge_toml(tmp_path, bundle, port)
    log = tmp_path / "log"
    with open(log, "wb") as output:
        device = subprocess.Popen([*SEEDMASK, "client", "run", "--config", str(settings)], stderr=output)
        until(lambda: log.read_text().count("Connection refused") >= 2)
        device.send_signal(signal.SIGINT)
        assert device.wait(PATIENCE_S) == 130
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder, bundle: bundle.write_bytes(bundle.read_bytes()[:300]), "not a bundle, or a damaged one"),
        (lambda folder, bundle: bundle.unlink(), "No such file"),
        (lambda folder, bundle: (folder / "data.npz").write_bytes(b"nonsense"), "not an npz archive"),
        (lambda folder, bundle: (folder / "data.npz").unlink(), "No such file"),
        (
            lambda folder, bundle: np.savez(folder / "data.npz", x=np.zeros((4, 5)), y=np.zeros(4, int)),
            "takes [1, 28, 28]",
        ),
        (
            lambda folder, bundle: np.savez(folder / "data.npz", x=np.zeros((4, 784)), y=np.full(4, 11)),
            "labels 11 .. 11",
        ),
        (
            lambda folder, bundle: (folder / "edge.toml").write_text(
                (folder / "edge.toml").read_text().replace('runtime = "reference"', 'runtime = "onnxruntime"')
            ),
            "which runtime onnxruntime opens: seedmask export --runtimes onnx",
        ),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_status_2(
    tmp_path: Path, bundle: Path, spoil: Callable[[Path, Path], object], message: str
) -> None:
    settings = edge_toml(tmp_path, bundle, 1883)
    spoil(tmp_path, bundle)
    done = client(settings, "--check")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_names_the_nearest_one(tmp_path: Path, bundle: Path) -> None:
    settings = edge_toml(tmp_path, bundle, 1883)
    settings.write_text(settings.read_text().replace("runtime =", "runtme ="))
    done = client(settings)
    assert done.returncode == 2
    assert "unknown key 'runtme'; did you mean 'runtime'?" in done.stderr


def run_toml(folder: Path, bundle: Path, port: int, devices: int = 2) -> Path:
    path = folder / "run.toml"
    path.write_text(
        f'job = "job"\nbundle = "{bundle}"\nstate_dir = "server"\n[rounds]\ntotal = 2\ndevices = {devices}\n'
        f'[training]\nepochs = 1\n[broker]\nhost = "{HOST}"\nport = {port}\n'
    )
    return path


def test_killed_with_its_own_broker_the_same_command_starts_the_aggregator_again(
    tmp_path: Path, bundle: Path, port: int
) -> None:
    command = [*SEEDMASK, "aggregator", "run", "--config", str(run_toml(tmp_path, bundle, port)), "--dev-broker"]
    log = tmp_path / "log"
    with open(log, "wb") as output:
        first = subprocess.Popen(command, stderr=output)
        until(lambda: "runs on 127.0.0.1" in log.read_text())
        first.kill()
        first.wait()
        until(lambda: not answers(HOST, port))  # the broker goes with it
        second = subprocess.Popen(command, stderr=output)
        until(lambda: log.read_text().count("runs on 127.0.0.1") == 2)
        second.send_signal(signal.SIGTERM)
        assert second.wait(PATIENCE_S) == 130
    assert not answers(HOST, port)
    assert "Traceback" not in log.read_text()


def test_a_second_client_of_one_device_is_refused(tmp_path: Path, bundle: Path, port: int) -> None:
    settings = edge_toml(tmp_path, bundle, port)
    with open(tmp_path / "log", "wb") as output:
        first = subprocess.Popen([*SEEDMASK, "client", "run", "--config", str(settings)], stderr=output)
        until((tmp_path / "state" / "client.lock").exists)
        second = client(settings)
        first.terminate()
        assert first.wait(PATIENCE_S) == 130
    assert second.returncode == 2
    assert "another client of pi is at work on" in second.stderr


def test_an_aggregator_without_a_broker_says_so_and_leaves_on_ctrl_c(tmp_path: Path, bundle: Path, port: int) -> None:
    log = tmp_path / "log"
    with open(log, "wb") as output:
        settings = run_toml(tmp_path, bundle, port)
        server = subprocess.Popen([*SEEDMASK, "aggregator", "run", "--config", str(settings)], stderr=output)
        until(lambda: "Connection refused" in log.read_text())
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE_S) == 130
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_two_devices_train_over_either_broker(tmp_path: Path, bundle: Path, kind: str) -> None:
    requires(kind)
    started = []
    log = tmp_path / "aggregator.log"
    with dev_broker(HOST, kind=kind) as broker, open(log, "wb") as output:
        port = broker.port
        settings = run_toml(tmp_path, bundle, port)
        started.append(subprocess.Popen([*SEEDMASK, "aggregator", "run", "--config", str(settings)], stderr=output))
        for name in ("one", "two"):
            home = tmp_path / name
            home.mkdir()
            settings = edge_toml(home, bundle, port, device=name)
            started.append(subprocess.Popen([*SEEDMASK, "client", "run", "--config", str(settings)], stderr=output))
            until(lambda: "1 of 2 devices online, need 2" in log.read_text())
        assert [process.wait(PATIENCE_S) for process in started] == [0, 0, 0], log.read_text()
    assert (tmp_path / "server" / "model.smk").read_bytes()[:4] == b"SMK1"
    assert len(json.loads((tmp_path / "server" / "rounds.json").read_text())) == 2
