"""The outbox: updates on disk until the aggregator's receipt, so that a power cut loses nothing.

One file per update, named by its transfer id; written and synced before the first byte is published, removed on a
receipt and on nothing else. `finished.json` remembers the last receipt, so that a restart does not train a finished
round again.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from seedmask.chunks import transfer_id
from seedmask.errors import ProtocolError, UserError
from seedmask.io.files import sync_folder, write_atomic
from seedmask.wire import Receipt, Update, decode


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

    def save(self, transfer: bytes, frame: bytes) -> None:
        """Keep one update; on return it survives a power cut."""
        write_atomic(self._path(transfer), frame)

    def drop(self, transfer: bytes, theta: bytes, receipt: Receipt) -> None:
        """Forget one update, as its receipt allows, and remember its round and probabilities as finished."""
        finished = {"job": receipt.job, "round": receipt.round, "theta": theta.hex()}
        write_atomic(self.folder / "finished.json", json.dumps(finished).encode())
        self._path(transfer).unlink(missing_ok=True)
        sync_folder(self.folder)

    def load(self) -> tuple[list[tuple[bytes, bytes, Update]], list[str]]:
        """Updates of this job as (transfer id, frame, message), and a line for each file that is not one."""
        kept, odd = [], []
        for path in sorted(self.folder.glob("*.update")):
            frame = path.read_bytes()
            try:
                message = decode(frame)
            except ProtocolError as error:
                odd.append(f"{path}: not an update ({error.code}); left alone")
                continue
            if not isinstance(message, Update) or message.job != self.job:
                odd.append(f"{path}: not of job {self.job}; left alone")
            else:
                kept.append((transfer_id(frame), frame, message))
        return kept, odd

    def finished(self) -> tuple[int, bytes] | None:
        """(round, theta digest) of this job's last receipt, None if there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            last = json.loads((self.folder / "finished.json").read_bytes())
            if last["job"] == self.job:
                return int(last["round"]), bytes.fromhex(last["theta"])
        return None

    def _path(self, transfer: bytes) -> Path:
        return self.folder / f"{transfer.hex()}.update"
