"""Ending of processes: a child ends with its parent, and SIGTERM ends a program as Ctrl-C does."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from types import FrameType


def die_with_parent() -> None:
    """Make this process receive SIGTERM when its parent ends, even if that was killed; for `preexec_fn`.

    Linux only (PR_SET_PDEATHSIG); elsewhere it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def sigterm_interrupts() -> None:
    """Make SIGTERM raise KeyboardInterrupt as Ctrl-C does, so that programs need one way to end and not two."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
