"""File operations that survive a power cut: write a temporary file, sync it, rename it into place."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from seedmask.errors import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`; after a crash the file has the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def check_output(path: Path) -> None:
    """Raise UserError unless `path`, the argument of -o, can be written; called before the work that it is for."""
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"-o {path} is not a file in a folder that exists")


def acquire_lock(path: Path, what: str) -> IO[str]:
    """Lock `path` for this process until the returned file is closed.

    Raises UserError if another process has locked it; `what` names the program in the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"{what} is at work on {path.parent}") from None
    return file


def sync_folder(folder: Path) -> None:
    """Sync `folder`, so that a rename or a removal in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_json(path: Path, value: dict[str, Any]) -> None:
    """Append `value` to the file `path` as one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
