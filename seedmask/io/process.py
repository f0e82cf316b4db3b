"""How our processes end: children with their parent, and everybody in order when a service manager says so."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from types import FrameType


def die_with_parent() -> None:
    """In a new child (preexec_fn): end when our program does, even if it was killed. Linux only (PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def sigterm_interrupts() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as Ctrl-C does: one way to leave, not two."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
