"""Training in a child process, so that it can neither block the client's network traffic nor crash the client.

A runtime may hold Python's lock for seconds, use all memory or crash in native code; the client survives each of these
and reports it. The child gets its work through a pipe, and ends when the pipe is closed. Only the child holds the data;
each child that has loaded it sends the client a summary through the pipe.
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
"""Seconds until a child that does not answer is replaced by a new one; longer than any single training step."""


@dataclass(frozen=True)
class Advanced:
    """Progress of the training: `step` of `steps` begins."""

    step: int
    steps: int


@dataclass(frozen=True)
class Loaded:
    """Report of a child that has loaded its `data`; `fit`, if memory_mb is set: the plan and its estimate in bytes."""

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
    """Report of a child that it waits for work."""


@dataclass(frozen=True)
class _Broken:
    """Report of a child that it cannot train at all; `reason` is for people."""

    reason: str


News: TypeAlias = Trained | Failed | Advanced | Loaded


class Trainer(Protocol):
    """Trainer of one round at a time; it works in the background, and the client polls it for `news`."""

    def begin(self, announce: Announce, theta: Theta) -> None:
        """Start to train the round of `announce` from `theta`; `news` returns Trained or Failed when it has ended."""

    def cancel(self) -> None:
        """Stop the training under way, if there is one; neither Trained nor Failed follows."""

    def news(self) -> News | None:
        """Return the oldest event that was not returned yet, or None. Does not block."""

    def close(self) -> None:
        """End the training and release what it holds."""


class ProcessTrainer:
    """Trainer in a child process, which starts with `load` or the first round, and again after a crash.

    A round is sent to the child only after the child has said that it is ready: if both sides wrote at once and neither
    read, both would block for ever.
    """

    def __init__(self, config: EdgeConfig) -> None:
        """Keep the settings; nothing is started yet."""
        self._config = config
        self._context = multiprocessing.get_context("spawn")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._begun: tuple[int, bytes] | None = None
        self._next: _Begin | None = None
        self._ready = False
        self._asked = 0.0  # when work began to wait for a child that is not ready

    def load(self) -> Loaded:
        """Start the child and wait until it has loaded the data. Raises UserError if it cannot, and says why."""
        if self._pipe is None:
            self._spawn()
        assert self._pipe is not None
        try:
            message = self._pipe.recv()  # Ctrl-C interrupts this wait; `close` then ends the child
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
                        # The child neither ends the cancelled training nor asks for work: a new one replaces it.
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
            elif (message.round, message.theta) == self._begun:  # otherwise: of a cancelled round
                self._begun = None
                news: News = message
                return news
        return None

    def _died(self) -> Failed | None:
        begun, self._begun, self._next = self._begun, None, None
        why = self._end()
        return None if begun is None else Failed(*begun, why)

    def _end(self) -> str:
        """Clean up after a child that has ended, and return how it ended."""
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
    """Hold back SIGINT and SIGTERM while a child starts, so that neither interrupts the start half-way.

    Ctrl-C reaches every process of a terminal. The child starts with SIGINT blocked and never receives it; signals that
    came for this process in the meantime are delivered at the end.
    """
    resource_tracker.ensure_running()  # first, because its start would unblock the signal
    came: list[tuple[int, FrameType | None]] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # Blocking is not enough: the signal may go to a thread of NumPy's, and Python then runs the handler here.
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
    """Run the child: load data and runtime once, then train one round per _Begin, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
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
        kept = list[State]()  # the optimiser's state between rounds; lost with this process or a cancelled round

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
            # Free this round's vectors before the next round begins: memory_mb counts those of one round.
            del outcome, message, theta, frame
