"""Real training for virtual devices, on all cores: each round of each device is a job of its own.

A job's randomness comes from its arguments alone, so neither the number of workers, nor their kind, nor who finishes
first can change a result. `Pool` has processes, which hold every device's data once each and die with us; a process
imports the program that started it, which a notebook or a script of a few lines does not survive, so `Threads` train
in this process: onnxruntime and NumPy let go of Python's lock while they work.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from edge_client.data import Dataset
from edge_client.runtimes import DivergedError, Runtime, State, open_runtime
from edge_client.training import Progress, train, update_of
from seedmask.bundle import Bundle
from seedmask.errors import UserError
from seedmask.mask import Theta
from seedmask.wire import Announce, encode


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """Train `announce.training` from `theta` on the data of device `index`, called `name`; `chance` seeds everything.

    `kept`: the optimiser's state after the device's last round, where the job lets it go on.
    """

    index: int
    name: str
    announce: Announce
    theta: Theta
    chance: tuple[int, ...]
    kept: State | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """`frame`, the encoded update; or the `failure`, for people. `kept`: the optimiser's state, where it goes on."""

    frame: bytes
    failure: str
    kept: State | None = None


@dataclass(frozen=True, eq=False)
class Worker:
    """What a job needs beside itself; `parts`, the examples of every device."""

    runtime: Runtime
    bundle: Bundle
    parts: list[Dataset]


_worker: Worker | None = None


def _open(bundle: Bundle, parts: list[Dataset], runtime: str, threads: int) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = Worker(open_runtime(runtime, bundle, threads), bundle, parts)


def _die_with_parent() -> None:
    """End at once when our parent has, even if it was killed: nobody else would tell us."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: TrainingJob) -> Done:
    assert _worker is not None
    return work(_worker, job)


def work(worker: Worker, job: TrainingJob, progress: Progress = lambda step, steps: True) -> Done:
    """Do a job here and now; `progress` may stop it, then it has failed."""
    spec, data = worker.bundle.spec, worker.parts[job.index]
    rng = np.random.default_rng(job.chance)
    try:
        outcome = train(
            *(worker.runtime, spec, data, job.theta, job.announce.training, worker.bundle.batch, rng),
            progress=progress,
            round_=job.announce.round,
            kept=[job.kept] if job.kept else None,
        )
    except DivergedError as error:
        return Done(b"", str(error))
    if outcome is None:
        return Done(b"", "stopped")
    update = update_of(job.announce, job.name, spec, job.theta, outcome, len(data.y), rng)
    return Done(encode(update), "", outcome.state if job.announce.training.keep_optimizer else None)


class Trains(Protocol):
    """Where a fleet's training is done: a Pool, or whatever else begins jobs."""

    def begin(self, job: TrainingJob) -> Future[Done]:
        """Start a job."""


class Pool:
    """Workers for one simulation; a context, so that they end with it. UserError on leaving it if one of them died."""

    def __init__(self, bundle: Bundle, parts: list[Dataset], runtime: str, threads: int, workers: int) -> None:
        """Start `workers` processes with `threads` threads each."""
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _open, (bundle, parts, runtime, threads)
        )

    def begin(self, job: TrainingJob) -> Future[Done]:
        """Start a job."""
        return self._executor.submit(_work, job)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a training process died, probably for want of memory; with more --threads there are fewer of them"
            ) from None


class Threads:
    """Workers in this process, for one simulation; a context. Leaving it stops trainings at their next step."""

    def __init__(self, bundle: Bundle, parts: list[Dataset], runtime: str, threads: int, workers: int) -> None:
        """Open `workers` runtimes with `threads` threads each, one after the other: packages are loaded once."""
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(workers):
            self._free.put(Worker(open_runtime(runtime, bundle, threads), bundle, parts))
        self._executor = ThreadPoolExecutor(workers, "seedmask-training")
        self._left = threading.Event()

    def begin(self, job: TrainingJob) -> Future[Done]:
        """Start a job."""
        return self._executor.submit(self._work, job)

    def _work(self, job: TrainingJob) -> Done:
        worker = self._free.get()  # there are as many as threads
        try:
            return work(worker, job, lambda step, steps: not self._left.is_set())
        finally:
            self._free.put(worker)

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._executor.shutdown(cancel_futures=True)
