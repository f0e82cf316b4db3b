"""Training in a process of its own, so that it can neither starve the network nor take the client down with it.

A runtime may hold Python's lock for seconds, use all memory or crash in native code; the client outlives each of these
and says what happened. The child gets its work through a pipe and ends when the pipe does. It alone holds the data:
what the client has to know of them comes through the pipe, from each child that has loaded them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from edge_client import data as datasets
from edge_client import memory
from edge_client.config import EdgeConfig
from edge_client.data import DataSummary
from edge_client.runtimes import DivergedError, MicroBatchPlan, State, open_runtime
from edge_client.session import Failed, Trained
from edge_client.training import train, update_of
from seedmask import bundle as bundles
from seedmask.chunks import transfer_id
from seedmask.errors import ProtocolError, UserError
from seedmask.mask import Theta
from seedmask.wire import Announce, encode

STUCK_SECONDS: Final = 120.0
"""How long work waits for a child that does not answer; longer than any one training step."""


@dataclass(frozen=True)
class Advanced:
    """The training has done `step` of `steps`."""

    step: int
    steps: int


@dataclass(frozen=True)
class Loaded:
    """A training process has loaded the `data`; `fit` and its estimate in bytes where there is a ceiling."""

    data: DataSummary
    fit: tuple[MicroBatchPlan, int] | None = None


@dataclass(frozen=True)
class _Begin:
    announce: Announce
    theta: Theta


@dataclass(frozen=True)
class _Stop:
    pass


@dataclass(frozen=True)
class _Ready:
    """The child waits for work."""


@dataclass(frozen=True)
class _Broken:
    """The child cannot train at all."""

    reason: str


News: TypeAlias = Trained | Failed | Advanced | Loaded


class Trainer(Protocol):
    """Train one round at a time."""

    def begin(self, announce: Announce, theta: Theta) -> None:
        """Start; `news` brings Trained or Failed in the end."""

    def cancel(self) -> None:
        """Give up what was begun, if anything."""

    def news(self) -> News | None:
        """Return what happened since, one at a time; None for nothing more."""

    def close(self) -> None:
        """End."""


class ProcessTrainer:
    """Train in a child process, which starts with `load` or the first round, and again after a crash.

    Work waits here until the child says that it is ready: both ends block when both write at once and nobody reads.
    """

    def __init__(self, config: EdgeConfig) -> None:
        """Nothing is started yet."""
        self._config = config
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._begun: tuple[int, bytes] | None = None
        self._next: _Begin | None = None
        self._ready = False
        self._asked = 0.0  # when work began to wait for a child that is not ready

    def load(self) -> Loaded:
        """Start the child and wait until it has loaded the data. Raises UserError: why it cannot."""
        if self._pipe is None:
            self._spawn()
        assert self._pipe is not None
        try:
            message = self._pipe.recv()  # Ctrl-C ends the waiting, `close` the child
        except (EOFError, OSError):
            why = self._end()
            raise UserError(f"{why} while it loaded the data") from None
        if isinstance(message, _Broken):
            self.close()
            raise UserError(message.reason)
        assert isinstance(message, Loaded), message
        return message

    def begin(self, announce: Announce, theta: Theta) -> None:
        """See Trainer."""
        self._begun, self._next = (announce.round, announce.theta), _Begin(announce, theta)
        self._asked = time.monotonic()
        if self._process is None or not self._process.is_alive():
            self._spawn()
        self._hand_over()

    def _spawn(self) -> None:
        self.close()
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(self._config, theirs), daemon=True)
        with _undisturbed():
            self._process.start()
            theirs.close()

    def _hand_over(self) -> None:
        if self._ready and self._next is not None and self._pipe is not None:
            with contextlib.suppress(OSError):  # it died; `news` will notice
                self._pipe.send(self._next)
            self._ready, self._next = False, None

    def cancel(self) -> None:
        """See Trainer."""
        self._begun = self._next = None
        if self._pipe is not None and not self._ready:
            with contextlib.suppress(OSError):
                self._pipe.send(_Stop())

    def news(self) -> News | None:
        """See Trainer."""
        while self._pipe is not None:
            try:
                if not self._pipe.poll():
                    if self._next is not None and time.monotonic() - self._asked > STUCK_SECONDS:
                        # It neither starts nor stops what it was told to stop; a fresh one takes over.
                        self._asked = time.monotonic()
                        self._spawn()
                    return None
                message = self._pipe.recv()
            except (EOFError, OSError):
                return self._died()
            if isinstance(message, _Ready):
                self._ready = True
                self._hand_over()
            elif isinstance(message, _Broken):
                begun, self._begun = self._begun, None
                self.close()
                return None if begun is None else Failed(*begun, message.reason)
            elif isinstance(message, Loaded):
                return message
            elif isinstance(message, Advanced):
                if self._begun is not None:
                    return message
            elif (message.round, message.theta) == self._begun:  # and not of a round that was cancelled
                self._begun = None
                news: News = message
                return news
        return None

    def _died(self) -> Failed | None:
        begun, self._begun, self._next = self._begun, None, None
        why = self._end()
        return None if begun is None else Failed(*begun, why)

    def _end(self) -> str:
        """Clean up after a child that is gone; say how it ended."""
        code = None
        if self._process is not None:
            self._process.join(5)
            code = self._process.exitcode
        self.close()
        why = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        hint = " (out of memory? memory_mb sets a ceiling)" if code == -signal.SIGKILL else ""
        return f"the training process ended with {why}{hint}"

    def close(self) -> None:
        """See Trainer."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.terminate()
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(5)
        self._pipe = self._process = None
        self._ready = False


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Start a child so that Ctrl-C, which reaches every process of a terminal, cuts neither it nor its start in two.

    The child does not get SIGINT at all, since a blocked signal stays so; ours, and SIGTERM, come when it has started.
    """
    resource_tracker.ensure_running()  # first, because its start would unblock the signal
    came: list[tuple[int, FrameType | None]] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # Blocking is not enough for us: NumPy's threads take signals as well, and Python handles them here.
        for which in (signal.SIGINT, signal.SIGTERM):
            before[which] = signal.signal(which, lambda number, frame: came.append((number, frame)))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for which, handler in before.items():
            signal.signal(which, handler)
    for number, frame in came:
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            signal.raise_signal(number)


def _serve(config: EdgeConfig, pipe: Connection) -> None:
    """The child: open everything once, then one round per _Begin, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(OSError):
        os.nice(5)
    with contextlib.suppress(EOFError, OSError):
        if config.memory_mb:
            memory.give_back_at_once()
        try:
            bundle = bundles.load(config.bundle)
            data = datasets.load(config.data, bundle.spec)
            fitted = memory.for_device(config, bundle, data.nbytes)
            pipe.send(Loaded(datasets.summary(data, bundle.spec), fitted))
            runtime = open_runtime(config.runtime, bundle, config.threads, fitted[0] if fitted else None)
        except (UserError, ProtocolError) as error:
            pipe.send(_Broken(str(error)))
            return
        except Exception:
            pipe.send(_Broken(traceback.format_exc(limit=-2)))
            return
        rng, bits_per_index = np.random.default_rng(), config.bits_per_index
        kept = list[State]()  # the optimiser between rounds; lost with this process or a round given up, as may be

        def progress(step: int, steps: int) -> bool:
            pipe.send(Advanced(step, steps))
            return not (pipe.poll() and isinstance(pipe.recv(), _Stop))

        while True:
            pipe.send(_Ready())
            message = pipe.recv()
            while not isinstance(message, _Begin):
                message = pipe.recv()  # a _Stop that came when there was nothing left to stop
            announce, theta, work = message.announce, message.theta, message.announce.training
            if not work.keep_optimizer:
                kept.clear()
            try:
                outcome = train(
                    *(runtime, bundle.spec, data, theta, work, bundle.batch, rng, progress),
                    round_=announce.round,
                    kept=kept,
                )
                if outcome is None:
                    continue
                frame = encode(
                    update_of(announce, config.device, bundle.spec, theta, outcome, len(data.y), rng, bits_per_index)
                )
            except (DivergedError, MemoryError, ProtocolError) as error:
                pipe.send(Failed(announce.round, announce.theta, str(error) or type(error).__name__))
                continue
            except (EOFError, OSError):
                raise
            except Exception:
                pipe.send(Failed(announce.round, announce.theta, traceback.format_exc(limit=-2)))
                continue
            kept = [outcome.state] if work.keep_optimizer and outcome.state else []
            pipe.send(Trained(announce.round, announce.theta, transfer_id(frame), frame))
            # Vectors of this round would lie beside those of the next one, which memory_mb does not reckon with.
            del outcome, message, theta, frame
