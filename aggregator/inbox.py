"""Updates on their way in: chunks of many devices become whole transfers, within limits that no sender can stretch."""

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
    """Transfers that are not complete yet. `limit`: bytes of the largest update that can be right."""

    limit: int
    _open: dict[tuple[str, bytes], tuple[float, Assembly]] = field(default_factory=dict)

    def put(self, device: str, payload: bytes, now: float) -> tuple[bytes, bytes | ProtocolError] | None:
        """Add one message of `device`; gives (transfer id, whole) once that is complete.

        In place of the whole, what is wrong with the transfer, if it can never be one: its sender deserves a receipt.
        Raises ProtocolError where there is nothing to answer.
        """
        chunk = expect(payload, Chunk)
        key = (device, chunk.transfer)
        _, known = self._open.get(key, (now, None))
        if known is not None and (known.first.total, known.first.size) == (chunk.total, chunk.size):
            assembly = known.add(chunk)
        else:
            # New, or cut to another size since the sender found another broker: what came before is of no use.
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
