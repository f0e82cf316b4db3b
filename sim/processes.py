"""Fleet of real processes on loopback: broker, aggregator and N clients, started by the commands of a real fleet.

Each device has a folder with its own data and edge.toml, as if it had its own machine. A process that dies is started
again, like by a service manager, and finds its state on disk. All of them end when this process ends, however it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.broker import dev_broker
from aggregator.history import results
from edge_client.client import read_journal
from edge_client.data import Dataset
from seedmask.errors import UserError
from seedmask.io.files import write_atomic
from seedmask.io.process import die_with_parent
from seedmask.mask import Theta
from seedmask.spec import ModelSpec
from sim.device import name_of
from sim.runtimes import Assignment

MAX_RESTARTS = 5
LEFT_SECONDS = 30.0  # for a device that has left: it may hear of the job's end before this process does
HOST = "127.0.0.1"

Closed = Callable[[dict[str, object], Theta, float], None]
Idle = Callable[[str], None]


@dataclass
class _Process:
    """Process of the fleet: `seedmask` with `arguments`. `left`: time (monotonic) at which it ended by itself."""

    name: str
    arguments: list[str]
    log: Path
    python: str = sys.executable
    restarts: int = 0
    running: subprocess.Popen[bytes] | None = None
    left: float | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.running = subprocess.Popen(
                [self.python, "-m", "seedmask.cli", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join(f"    {line}" for line in lines[-4:])


def _toml(name: str, table: Mapping[str, object]) -> str:
    """Return a table of TOML; its numbers, texts and flags are written as in JSON, which TOML reads as well."""
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


@dataclass
class ProcessFleet:
    """Fleet of one job on this machine. `folder` gets all files; `settings`: the tables of run.toml, dataclasses."""

    folder: Path
    bundle: Path
    spec: ModelSpec
    job: str
    parts: list[Dataset]
    settings: Mapping[str, Any]
    runtimes: Assignment
    threads: int
    broker: tuple[str, int] | None
    restarts: int = 0
    broker_name: str = ""
    _all: list[_Process] = field(default_factory=list)

    def run(self, closed: Closed, idle: Idle) -> float:
        """Run until the job is done, and return the seconds that it took.

        `closed` is called with the record, theta and time of each round that has ended, `idle` with what the fleet
        waits for. Raises UserError if a program ends with an error or dies too often.
        """
        with contextlib.ExitStack() as stack:
            if self.broker is None:
                ours = stack.enter_context(dev_broker(HOST, log=self.folder / "broker.log"))
                host, port, self.broker_name = ours.host, ours.port, ours.name
            else:
                host, port = self.broker
                self.broker_name = f"{host}:{port}"
            self._write(host, port)
            stack.enter_context(self._processes())
            began = time.monotonic()
            reported = 0
            database = self.folder / "aggregator" / "job.sqlite"
            while any(process.running is not None for process in self._all):
                self._watch()
                for record, theta in results(database, self.spec.d, reported, self.spec.e):
                    closed(record, theta, time.monotonic() - began)
                    reported = int(str(record["round"]))
                idle((self._said() or ["starting"])[-1])
                time.sleep(0.2)
            return time.monotonic() - began

    def _write(self, host: str, port: int) -> None:
        """Write the settings of every program and the data of every device."""
        address = f'[broker]\nhost = "{host}"\nport = {port}\n'
        bundle = json.dumps(str(self.bundle.resolve()))
        home = self.folder / "aggregator"
        tables = "\n".join(_toml(name, asdict(table)) for name, table in self.settings.items())
        run = f'job = "{self.job}"\nbundle = {bundle}\nstate_dir = "."\n\n{tables}\n{address}'
        write_atomic(home / "run.toml", run.encode())
        self._all.append(
            _Process(
                "aggregator",
                ["aggregator", "run", "--config", str(home / "run.toml")],
                self.folder / "aggregator.log",
            )
        )
        for index, part in enumerate(self.parts):
            name = name_of(index)
            runtime = self.runtimes.of(index)
            home = self.folder / "devices" / name
            home.mkdir(parents=True, exist_ok=True)
            np.savez(home / "data.npz", x=part.x, y=part.y)
            edge = (
                f'device = "{name}"\njob = "{self.job}"\nbundle = {bundle}\nstate_dir = "."\n'
                f'runtime = "{runtime}"\nthreads = {self.threads}\n\n'
                f'[data]\nformat = "npz"\npath = "data.npz"\n\n{address}'
            )
            write_atomic(home / "edge.toml", edge.encode())
            arguments = ["client", "run", "--config", str(home / "edge.toml")]
            python = self.runtimes.pythons.get(runtime, sys.executable)
            self._all.append(_Process(name, arguments, home / "client.log", python))

    @contextlib.contextmanager
    def _processes(self) -> Iterator[None]:
        try:
            for process in self._all:
                process.start()
            self._note_pids()
            yield
        finally:
            alive = [process.running for process in self._all if process.running is not None]
            for child in alive:
                child.terminate()
            for child in alive:
                try:
                    child.wait(10)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _note_pids(self) -> None:
        """Write pids.json, for people and tests that want to kill one of the processes."""
        pids = {process.name: process.running.pid for process in self._all if process.running is not None}
        write_atomic(self.folder / "pids.json", json.dumps(pids, indent=1).encode())

    def _watch(self) -> None:
        """Restart processes that died. Raises UserError if one refused its settings, died too often or left early."""
        for process in self._all:
            status = process.running.poll() if process.running is not None else None
            if status is None:
                continue
            process.running = None
            if status == 0:
                process.left = time.monotonic()
                continue
            process.restarts += 1
            if status == 2 or process.restarts > MAX_RESTARTS:
                raise UserError(f"{process.name} ended with status {status}; its last words:\n{process.last_words()}")
            self.restarts += 1
            process.start()
            self._note_pids()
        aggregator, *devices = self._all
        for device in devices:
            late = device.left is not None and time.monotonic() - device.left > LEFT_SECONDS
            if late and aggregator.running is not None and not self._done():
                raise UserError(f"{device.name} left before the job was done; its last words:\n{device.last_words()}")

    def _said(self) -> list[str]:
        """Return the aggregator's log lines so far, without time stamps."""
        log = self.folder / "aggregator.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return [text for line in lines if (text := line.partition(" aggregator: ")[2])]

    def _done(self) -> bool:
        """True if the aggregator has logged that the job is done, or, after a restart, that it already was."""
        return any(
            line.startswith(f"job {self.job} is done") or line.endswith("are already done") for line in self._said()
        )

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent and received by all devices, which the kernel counts and clients write to journals.

        The count starts at zero with every start of a client (its `boot`). Bytes that a killed client sent and received
        after the last line of its journal are missing.
        """
        up = down = 0
        for index in range(len(self.parts)):
            home = self.folder / "devices" / name_of(index)
            sent: dict[object, int] = {}
            received: dict[object, int] = {}
            for line in read_journal(home / "journal.jsonl"):
                boot = line["boot"]
                sent[boot] = max(sent.get(boot, 0), int(str(line["sent_bytes"])))
                received[boot] = max(received.get(boot, 0), int(str(line["received_bytes"])))
            up, down = up + sum(sent.values()), down + sum(received.values())
        return up, down
