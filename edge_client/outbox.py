"""Outbox: a device's updates, kept on disk until the aggregator's receipt comes, so that a power cut loses none.

There is one file per update, JOB.THETA.TRANSFER.update: the frame itself names neither its job nor the digest of the
probabilities that it was trained from. A file is written and synced before the first byte is published; only a receipt
removes it. `finished.json` remembers the last receipt, so that a restarted device does not train a finished round
again.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from seedmask.chunks import transfer_id
from seedmask.errors import ProtocolError, UserError
from seedmask.io.files import sync_folder, write_atomic
from seedmask.wire import Receipt, Update, expect

_DIGEST: Final = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True)
class Kept:
    """Update in the outbox: transfer id, digest of the theta it was trained from, frame, and decoded message."""

    transfer: bytes
    theta: bytes
    frame: bytes
    message: Update


class Outbox:
    """Folder with the updates of one job that have no receipt yet."""

    def __init__(self, folder: Path, job: str) -> None:
        """Open `folder`, making it if needed. Raises UserError."""
        self.folder = folder
        self.job = job
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot keep updates in {folder}: {error.strerror}") from None

    def save(self, transfer: bytes, theta: bytes, frame: bytes) -> None:
        """Write one update, trained from `theta` (its digest). When this returns, the update survives a power cut."""
        write_atomic(self._path(transfer, theta), frame)

    def drop(self, transfer: bytes, theta: bytes, receipt: Receipt) -> None:
        """Delete one update, because its receipt has come, and remember its round and probabilities as finished."""
        finished = {"job": receipt.job, "round": receipt.round, "theta": theta.hex()}
        write_atomic(self.folder / "finished.json", json.dumps(finished).encode())
        self._path(transfer, theta).unlink(missing_ok=True)
        sync_folder(self.folder)

    def load(self) -> tuple[list[Kept], list[str]]:
        """Return the updates of this job, oldest round first, and a line for people per file that is none of them."""
        kept, odd = [], []
        for path in sorted(self.folder.glob("*.update")):
            frame = path.read_bytes()
            try:
                message = expect(frame, Update)
            except ProtocolError as error:
                odd.append(f"{path}: not an update ({error.code}); left alone")
                continue
            job, _, theta = path.stem.rpartition(".")[0].rpartition(".")
            if job != self.job or not _DIGEST.match(theta):
                odd.append(f"{path}: not of job {self.job}; left alone")
            else:
                kept.append(Kept(transfer_id(frame), bytes.fromhex(theta), frame, message))
        return sorted(kept, key=lambda item: item.message.round), odd

    def finished(self) -> tuple[int, bytes] | None:
        """Return (round, digest of theta) of this job's last receipt; None if there was none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            last = json.loads((self.folder / "finished.json").read_bytes())
            if last["job"] == self.job:
                return int(last["round"]), bytes.fromhex(last["theta"])
        return None

    def _path(self, transfer: bytes, theta: bytes) -> Path:
        return self.folder / f"{self.job}.{theta.hex()}.{transfer.hex()}.update"
