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

from aggregator.broker import available, dev_broker, free_port
from seedmask.bundle import Bundle, to_bytes
from seedmask.spec import Flatten, Linear, ModelSpec, ReLU, Tensor, scale_bits

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(available() is None, reason="no MQTT broker here: apt install mosquitto"),
]
HOST = "127.0.0.1"
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


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
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


class Simulation:
    """A `seedmask simulate` under way: three devices, three rounds of a few seconds each."""

    def __init__(self, folder: Path, bundle: Path, *more: str) -> None:
        self.out = folder / "out"
        self.log = open(folder / "simulate.log", "wb")
        self.process = subprocess.Popen(
            [
                *SEEDMASK,
                *("simulate", "--devices", "3", "--rounds", "3", "--images", "400", "--epochs", "3", "--seed", "5"),
                *("--bundle", str(bundle), "--runtime", "reference", "--dataset", "digits", "--out", str(self.out)),
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

    def finish(self) -> str:
        """Wait for the end; what it printed. Three rounds, every device counted exactly once in each."""
        status = self.process.wait(240)
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
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    started: list[Simulation] = []

    def start(*more: str) -> Simulation:
        started.append(Simulation(tmp_path, bundle, *more))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(30)


def test_the_aggregator_killed_in_mid_round_continues_it_and_counts_nothing_twice(
    simulation: Callable[..., Simulation],
) -> None:
    run = simulation()
    until(lambda: run.counted(2) >= 1)
    assert run.counted(2) < 3, "the round was over too soon to be interrupted"
    victim = run.pids()["aggregator"]
    os.kill(victim, signal.SIGKILL)
    until(lambda: run.pids()["aggregator"] != victim)
    text = run.finish()
    assert "1 process(es) died and were started again" in text
    log = (run.out / "aggregator.log").read_text()
    assert "resumed: round 2 of 3" in log
    # theta has one level per counted mask: three devices, three levels above zero, also after the crash.
    summary = json.loads((run.out / "summary.json").read_text())
    assert [row["updates"] for row in summary["history"]] == [3, 3, 3]


def test_a_device_killed_in_training_comes_back_and_finishes_the_round(simulation: Callable[..., Simulation]) -> None:
    run = simulation()
    until(lambda: run.counted(1) == 3)
    log = run.out / "devices" / "device-001" / "client.log"
    until(lambda: "round 2 of 3: fetching" in log.read_text())
    victim = run.pids()["device-001"]
    os.kill(victim, signal.SIGKILL)
    text = run.finish()
    assert "1 process(es) died and were started again" in text
    assert not alive(victim)


def test_a_broker_that_vanishes_in_mid_round_and_returns_costs_nothing(
    simulation: Callable[..., Simulation], tmp_path: Path
) -> None:
    port = free_port(HOST)
    with dev_broker(HOST, port):
        run = simulation("--broker", f"{HOST}:{port}")
        until(lambda: run.counted(2) >= 1)
    # The first broker is gone, and with it all sessions and everything retained; this is another one.
    with dev_broker(HOST, port):
        run.finish()
    assert "offline" in (run.out / "aggregator.log").read_text()


def test_ctrl_c_ends_every_process_of_a_simulation(simulation: Callable[..., Simulation]) -> None:
    run = simulation()
    until(lambda: run.counted(1) >= 1)
    pids = list(run.pids().values())
    assert len(pids) == 4
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(60) == 130
    assert not any(alive(pid) for pid in pids)
    assert "Traceback" not in Path(run.log.name).read_text()


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
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_broker_a_device_says_so_keeps_trying_and_leaves_on_ctrl_c(tmp_path: Path, bundle: Path) -> None:
    settings = edge_toml(tmp_path, bundle, free_port(HOST))
    log = tmp_path / "log"
    with open(log, "wb") as output:
        device = subprocess.Popen([*SEEDMASK, "client", "run", "--config", str(settings)], stderr=output)
        until(lambda: log.read_text().count("Connection refused") >= 2)
        device.send_signal(signal.SIGINT)
        assert device.wait(20) == 130
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


def test_the_aggregator_brings_its_own_broker_and_trains_two_devices(tmp_path: Path, bundle: Path) -> None:
    port = free_port(HOST)
    (tmp_path / "run.toml").write_text(
        f'job = "job"\nbundle = "{bundle}"\nstate_dir = "server"\n[rounds]\ntotal = 2\ndevices = 2\n'
        f'[work]\nepochs = 1\n[broker]\nhost = "{HOST}"\nport = {port}\n'
    )
    started = []
    log = tmp_path / "aggregator.log"
    with open(log, "wb") as output:
        command = [*SEEDMASK, "aggregator", "run", "--config", str(tmp_path / "run.toml"), "--dev-broker"]
        started.append(subprocess.Popen(command, stderr=output))
        until(lambda: "runs on 127.0.0.1" in log.read_text())
        for name in ("one", "two"):
            home = tmp_path / name
            home.mkdir()
            settings = edge_toml(home, bundle, port, device=name)
            started.append(subprocess.Popen([*SEEDMASK, "client", "run", "--config", str(settings)], stderr=output))
            until(lambda: "1 of 2 devices online, need 2" in log.read_text())
        assert [process.wait(120) for process in started] == [0, 0, 0]
    assert (tmp_path / "server" / "model.smm").read_bytes()[:4] == b"SMM1"
    assert len(json.loads((tmp_path / "server" / "rounds.json").read_text())) == 2
