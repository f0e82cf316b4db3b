"""What a device's two processes hold: the data is in the one that trains, and in no other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ports import held_port
from test_processes import HOST, SEEDMASK, alive, client, edge_toml, run_toml, trainer_of, until

from aggregator.broker import dev_broker
from seedmask.bundle import Bundle, to_bytes
from seedmask.layers import Flatten, Linear, Mean
from seedmask.spec import ModelSpec, Tensor, scale_bits

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.requires("mosquitto", "proc"),
]
MB = 1_000_000


def peak(pid: int) -> float:
    """VmHWM of a process that runs, MB; 0 if it does not."""
    with contextlib.suppress(OSError):
        found = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[0]) * 1024 / MB if found else 0.0
    return 0.0


def wide_bundle(path: Path) -> Path:
    """A model of 512 x 512 bytes that forgets most of them, so that NumPy trains on it at once."""
    layers = (Mean((1,)), Flatten(), Linear("a.weight", None))
    tensors = (Tensor("a.weight", (10, 512), scale_bits(0.1)),)
    path.write_bytes(to_bytes(Bundle(ModelSpec("wide", 7, (1, 512, 512), (0, 255), 10, layers, tensors), 16, {})))
    return path


def test_the_client_keeps_no_data_beside_its_training_process(tmp_path: Path) -> None:
    """A whole job on 200 MB of images; both peaks are read while the processes run, until the client leaves."""
    bundle = wide_bundle(tmp_path / "wide.bundle")
    x = np.random.default_rng(0).integers(0, 256, (763, 1, 512, 512), np.uint8)
    assert x.nbytes >= 200 * MB
    parent = child = 0.0
    with dev_broker(HOST) as broker, open(tmp_path / "log", "wb") as log:
        settings = edge_toml(tmp_path, bundle, broker.port)
        np.savez(tmp_path / "data.npz", x=x, y=np.arange(763) % 10)
        del x
        run = run_toml(tmp_path, bundle, broker.port, devices=1)
        server = [*SEEDMASK, "aggregator", "run", "--config", str(run)]
        aggregator = subprocess.Popen(server, stderr=log)
        device = subprocess.Popen([*SEEDMASK, "client", "run", "--config", str(settings)], stderr=log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            while device.poll() is None:
                parent = max(parent, peak(device.pid))  # a high-water mark: it cannot be missed between two looks
                child = max([child, *map(peak, trainer_of(device.pid))])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    device.wait(0.05)
        assert aggregator.wait(240) == 0, (tmp_path / "log").read_text()
    assert device.returncode == 0, (tmp_path / "log").read_text()
    assert "763 examples" in (tmp_path / "log").read_text()
    print(f"client {parent:.0f} MB, its training process {child:.0f} MB", file=sys.stderr)
    assert child > 200, "the data was somewhere"
    assert parent < 70


@pytest.fixture
def port() -> Iterator[int]:
    """Where nobody answers, for as long as the test lasts."""
    with held_port() as held:
        yield held


def loading(tmp_path: Path, port: int) -> tuple[subprocess.Popen[bytes], int]:
    """A client whose training process waits for data that does not come, and that process."""
    settings = edge_toml(tmp_path, wide_bundle(tmp_path / "wide.bundle"), port)
    (tmp_path / "data.npz").unlink()
    os.mkfifo(tmp_path / "data.npz")
    with open(tmp_path / "log", "wb") as log:
        command = [*SEEDMASK, "client", "run", "--config", str(settings)]
        device = subprocess.Popen(command, stderr=log, start_new_session=True)

    def training() -> list[int]:
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in trainer_of(device.pid)}
        return [pid for pid, line in lines.items() if b"spawn_main" in line]

    until(lambda: training() != [])
    return device, training()[0]


def test_ctrl_c_while_the_data_is_loaded_ends_both_processes_without_a_traceback(tmp_path: Path, port: int) -> None:
    device, child = loading(tmp_path, port)
    os.killpg(device.pid, signal.SIGINT)  # as a terminal sends it: to every process, here while the child still starts
    assert device.wait(240) == 130
    until(lambda: not alive(child))
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_training_process_that_dies_of_the_data_is_told_at_the_start(tmp_path: Path, port: int) -> None:
    device, child = loading(tmp_path, port)
    os.kill(child, signal.SIGKILL)
    assert device.wait(240) == 2
    said = (tmp_path / "log").read_text()
    assert "the training process ended with signal SIGKILL" in said
    assert "while it loaded the data" in said
    assert "Traceback" not in said


def test_check_reports_the_data_and_leaves_no_process(tmp_path: Path, port: int) -> None:
    settings = edge_toml(tmp_path, wide_bundle(tmp_path / "wide.bundle"), port)
    np.savez(tmp_path / "data.npz", x=np.zeros((5, 512, 512), np.uint8), y=np.arange(5))
    done = client(settings, "--check")
    assert done.returncode == 0
    assert "5 examples, runtime reference" in done.stderr
    assert "warning: inputs are 0 .. 0, the model was exported for 0 .. 255" in done.stderr
