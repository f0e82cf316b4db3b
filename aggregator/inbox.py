"""Reassembly of updates: chunks from many devices become whole transfers, within limits that no sender can exceed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from seedmask.chunks import Assembly, begin
from seedmask.errors import ChecksumError, LimitError, ProtocolError
from seedmask.wire import Chunk, expect

PER_DEVICE: Final = 2
PATIENCE_SECONDS: Final = 900.0


@dataclass
class Inbox:
    """Transfers that are not complete yet. `limit`: size in bytes of the largest valid update."""

    limit: int
    _open: dict[tuple[str, bytes], tuple[float, Assembly]] = field(default_factory=dict)

    def put(self, device: str, payload: bytes, now: float) -> tuple[bytes, bytes | ProtocolError] | None:
        """Add one message of `device`, received at `now` in seconds; return a transfer that it completes.

        The result is (transfer id, bytes), or None while chunks are missing. If a transfer can never become valid, it
        has an error in place of the bytes, so that the sender gets a receipt. Raises ProtocolError for a message that
        no receipt can answer.
        """
        chunk = expect(payload, Chunk)
        key = (device, chunk.transfer)
        _, known = self._open.get(key, (now, None))
        if known is not None and (known.first.total, known.first.size) == (chunk.total, chunk.size):
            assembly = known.add(chunk)
        else:
            # A new transfer, or cut into other chunks since the sender changed brokers: earlier chunks are of no use.
            self._open.pop(key, None)
            self._expire(now)
            if sum(name == device for name, _ in self._open) >= PER_DEVICE:
                raise LimitError(f"{PER_DEVICE} transfers are open already; the next waits for one to end")
            try:
                assembly = begin(chunk, self.limit)
            except LimitError as error:
                return chunk.transfer, error
        if not assembly.complete:
            self._open[key] = (now, assembly)
            return None
        self._open.pop(key, None)
        try:
            return chunk.transfer, assembly.blob()
        except ChecksumError as error:
            return chunk.transfer, error

    def _expire(self, now: float) -> None:
        for key in [key for key, (seen, _) in self._open.items() if now - seen > PATIENCE_SECONDS]:
            del self._open[key]
