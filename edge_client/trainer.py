"""Training in a process of its own, so that it can neither starve the network nor take the client down with it.

A runtime may hold Python's lock for seconds, use all memory or crash in native code; the client outlives each of these
and says what happened. The child gets its work through a pipe and ends when the pipe does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, Protocol, TypeAlias

import numpy as np

from edge_client import data as datasets
from edge_client import memory
from edge_client.config import EdgeConfig
from edge_client.runtimes import DivergedError, State, open_runtime
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


News: TypeAlias = Trained | Failed | Advanced


class Trainer(Protocol):
    """Something that trains one round at a time."""

    def begin(self, announce: Announce, theta: Theta) -> None:
        """Start; `news` brings Trained or Failed in the end."""

    def cancel(self) -> None:
        """Give up what was begun, if anything."""

    def news(self) -> News | None:
        """What happened since, None for nothing."""

    def close(self) -> None:
        """End."""


class ProcessTrainer:
    """A Trainer in a child process, which starts with the first round and again after a crash.

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
            elif isinstance(message, Advanced):
                if self._begun is not None:
                    return message
            elif (message.round, message.theta) == self._begun:  # and not of a round that was cancelled
                self._begun = None
                news: News = message
                return news
        return None

    def _died(self) -> Failed | None:
        code = None
        if self._process is not None:
            self._process.join(5)
            code = self._process.exitcode
        begun, self._begun, self._next = self._begun, None, None
        self.close()
        if begun is None:
            return None
        why = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        hint = " (out of memory? set memory_mb)" if code == -signal.SIGKILL else ""
        return Failed(*begun, f"the training process ended with {why}{hint}")

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
            runtime = open_runtime(config.runtime, bundle, config.threads, fitted[0] if fitted else None)
        except (UserError, ProtocolError) as error:
            pipe.send(_Broken(str(error)))
            return
        except Exception:
            pipe.send(_Broken(traceback.format_exc(limit=-2)))
            return
        rng, thrift = np.random.default_rng(), config.thrift
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
                    update_of(announce, config.device, bundle.spec, theta, outcome, len(data.y), rng, thrift)
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
