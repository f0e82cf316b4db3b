"""Log lines for people and for journald: time, program, message."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Log:
    """Effect: write `text` to the log. Used by the aggregator's and the device's state machines."""

    text: str


class _OneLine(logging.Formatter):
    """Formatter that escapes control characters: a text from a peer stays one line and cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info or text.isprintable():
            return text
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_stderr(who: str, verbose: bool = False) -> None:
    """Send the log of `seedmask` to standard error; `who` names the program in each, `verbose` adds debug lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s {who}: %(message)s", "%H:%M:%S"))
    root = logging.getLogger("seedmask")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
