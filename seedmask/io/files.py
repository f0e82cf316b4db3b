"""Files that survive a power cut: written beside, synced, then renamed into place."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from seedmask.errors import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash there is the old content or the new, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def check_output(path: Path) -> None:
    """Raise UserError unless `path`, given as -o, can be a file: before anything is computed for it."""
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"-o {path} is not a file in a folder that exists")


def acquire_lock(path: Path, what: str) -> IO[str]:
    """Claim `path` for this process until the file that is returned is closed. UserError: `what` holds it already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"{what} is at work on {path.parent}") from None
    return file


def sync_folder(folder: Path) -> None:
    """Make a rename or a removal in `folder` last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_json(path: Path, value: dict[str, Any]) -> None:
    """Add one line of JSON to a log that people and scripts read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
