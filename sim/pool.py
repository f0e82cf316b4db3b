"""Training of virtual devices, on all cores: each device's round is a training job of its own.

All random numbers of a job follow from its arguments, so that results depend neither on the number and kind of the
workers nor on the order in which they finish. `Pool` has worker processes, each with the data of all devices. A new
process imports the program that started it, which fails in a notebook or a short script; for these `Threads` trains in
this process, since onnxruntime and NumPy release Python's lock while they compute.
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
    """Training of one device in one round: device `index`, called `name`, trains as `announce` asks, from `theta`.

    `chance`: seed of all its random numbers. `kept`: the optimiser's state after the device's last round, if the
    optimiser continues from round to round.
    """

    index: int
    name: str
    announce: Announce
    theta: Theta
    chance: tuple[int, ...]
    kept: State | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """Result of a job: `frame`, the encoded update, or `failure`, for people; and `kept` for the device's next job."""

    frame: bytes
    failure: str
    kept: State | None = None


@dataclass(frozen=True, eq=False)
class Worker:
    """Worker that trains: a runtime, its bundle, and `parts`, the examples of every device."""

    runtime: Runtime
    bundle: Bundle
    parts: list[Dataset]


_worker: Worker | None = None


def _open(bundle: Bundle, parts: list[Dataset], runtime: str, threads: int) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = Worker(open_runtime(runtime, bundle, threads), bundle, parts)


def _die_with_parent() -> None:
    """End this process as soon as its parent has ended, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: TrainingJob) -> Done:
    assert _worker is not None
    return work(_worker, job)


def work(worker: Worker, job: TrainingJob, progress: Progress = lambda step, steps: True) -> Done:
    """Train a job in the calling thread, and return its result; a job that `progress` stops has failed."""
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
    """Place where jobs are trained: a Pool, Threads, or any other object with `begin`."""

    def begin(self, job: TrainingJob) -> Future[Done]:
        """Start a job, and return the future of its result."""


class Pool:
    """Worker processes of one simulation. A context manager: leaving it ends them, and raises UserError if one died."""

    def __init__(self, bundle: Bundle, parts: list[Dataset], runtime: str, threads: int, workers: int) -> None:
        """Start `workers` processes with `threads` threads each."""
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _open, (bundle, parts, runtime, threads)
        )

    def begin(self, job: TrainingJob) -> Future[Done]:
        """Start a job, and return the future of its result."""
        return self._executor.submit(_work, job)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a training process died, probably for lack of memory; a higher --threads starts fewer processes"
            ) from None


class Threads:
    """Worker threads of one simulation. A context manager: leaving it stops all training at the next step."""

    def __init__(self, bundle: Bundle, parts: list[Dataset], runtime: str, threads: int, workers: int) -> None:
        """Open `workers` runtimes with `threads` threads each, one after another, so that packages load only once."""
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(workers):
            self._free.put(Worker(open_runtime(runtime, bundle, threads), bundle, parts))
        self._executor = ThreadPoolExecutor(workers, "seedmask-training")
        self._left = threading.Event()

    def begin(self, job: TrainingJob) -> Future[Done]:
        """Start a job, and return the future of its result."""
        return self._executor.submit(self._work, job)

    def _work(self, job: TrainingJob) -> Done:
        worker = self._free.get()  # never waits: there are as many workers as threads
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
