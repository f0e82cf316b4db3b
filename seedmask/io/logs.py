"""Log lines for people and for journald: time, who, what; nothing else."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Log:
    """Effect of both halves of a round: tell people `text`."""

    text: str


class _OneLine(logging.Formatter):
    """Whatever peers put into a text stays one line and cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info or text.isprintable():
            return text
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_stderr(who: str, verbose: bool = False) -> None:
    """Send the `seedmask` loggers to standard error, each line with `who` in it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s {who}: %(message)s", "%H:%M:%S"))
    root = logging.getLogger("seedmask")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
