"""The outbox: updates on disk until the aggregator's receipt, so that a power cut loses nothing.

One file per update, named by what its frame leaves out (its job, and the digest of the probabilities it was made
under) and by its transfer id; written and synced before the first byte is published, removed on a
receipt and on nothing else. `finished.json` remembers the last receipt, so that a restart does not train a finished
round again.
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
    """An update in the outbox: its transfer id, the digest of its probabilities, its frame and what that says."""

    transfer: bytes
    theta: bytes
    frame: bytes
    message: Update


class Outbox:
    """A folder of updates without receipts, for one job."""

    def __init__(self, folder: Path, job: str) -> None:
        """Open `folder`, making it if needed. Raises UserError."""
        self.folder = folder
        self.job = job
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot keep updates in {folder}: {error.strerror}") from None

    def save(self, transfer: bytes, theta: bytes, frame: bytes) -> None:
        """Keep one update, made under `theta`; on return it survives a power cut."""
        write_atomic(self._path(transfer, theta), frame)

    def drop(self, transfer: bytes, theta: bytes, receipt: Receipt) -> None:
        """Forget one update, as its receipt allows, and remember its round and probabilities as finished."""
        finished = {"job": receipt.job, "round": receipt.round, "theta": theta.hex()}
        write_atomic(self.folder / "finished.json", json.dumps(finished).encode())
        self._path(transfer, theta).unlink(missing_ok=True)
        sync_folder(self.folder)

    def load(self) -> tuple[list[Kept], list[str]]:
        """Updates of this job, oldest round first, and a line for each file that is not one."""
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
        """(round, theta digest) of this job's last receipt, None if there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            last = json.loads((self.folder / "finished.json").read_bytes())
            if last["job"] == self.job:
                return int(last["round"]), bytes.fromhex(last["theta"])
        return None

    def _path(self, transfer: bytes, theta: bytes) -> Path:
        return self.folder / f"{self.job}.{theta.hex()}.{transfer.hex()}.update"
