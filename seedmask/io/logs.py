"""Log lines for people and for journald: time, who, what; nothing else."""

from __future__ import annotations

import logging
import sys


def to_stderr(who: str, verbose: bool = False) -> None:
    """Send the `seedmask` loggers to standard error, each line with `who` in it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}: %(message)s", "%H:%M:%S"))
    root = logging.getLogger("seedmask")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
