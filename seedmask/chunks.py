"""Transfer of large objects in chunks, because brokers limit the size of packets.  PROTOCOL 7.

The transfer id is a digest of the content, so sending again is harmless and a changed byte is always noticed. A chunk
of 60 KiB fits the default limit of every broker that we know.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Final

from seedmask.errors import ChecksumError, FieldError, LimitError
from seedmask.wire import MAX_FRAME, Chunk

CHUNK_BYTES: Final = 60 * 1024
MAX_COUNT: Final = 65535
MAX_OPEN: Final = 4096
"""Maximum number of chunks that a receiver collects for one transfer: 240 MiB at the usual size."""


def transfer_id(blob: bytes) -> bytes:
    """Return the 16 bytes that identify `blob`: the first half of its SHA-256."""
    return hashlib.sha256(blob).digest()[:16]


def split(blob: bytes, size: int = CHUNK_BYTES) -> list[Chunk]:
    """Return `blob` as chunks of `size` bytes. Raises ValueError if it is empty or needs too many chunks."""
    count = -(-len(blob) // size)
    if not 1 <= count <= MAX_COUNT or len(blob) > MAX_FRAME:
        limits = f"1 .. {MAX_COUNT} chunks and {MAX_FRAME} bytes can be sent"
        raise ValueError(f"{len(blob)} bytes in chunks of {size} are {count}; {limits}")
    name = transfer_id(blob)
    return [Chunk(name, len(blob), size, i, count, blob[i * size : (i + 1) * size]) for i in range(count)]


@dataclass(frozen=True)
class Assembly:
    """Transfer of which some chunks have arrived; immutable, `add` returns the next state."""

    first: Chunk
    parts: dict[int, bytes] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> Assembly:
        """Return the transfer with `chunk` added; repeats change nothing. Raises FieldError if it is of another one."""
        if (chunk.transfer, chunk.total, chunk.size) != (self.first.transfer, self.first.total, self.first.size):
            raise FieldError("a chunk of another transfer")
        return self if chunk.index in self.parts else replace(self, parts={**self.parts, chunk.index: chunk.data})

    @property
    def complete(self) -> bool:
        """True if every chunk has arrived."""
        return len(self.parts) == self.first.count

    @property
    def missing(self) -> list[int]:
        """Indices of the chunks that have not arrived yet."""
        return [i for i in range(self.first.count) if i not in self.parts]

    def blob(self) -> bytes:
        """Return the whole object. Raises ChecksumError if it does not match its transfer id."""
        whole = b"".join(self.parts[i] for i in range(self.first.count))
        if transfer_id(whole) != self.first.transfer:
            raise ChecksumError("a transfer's content does not match its id")
        return whole


def begin(chunk: Chunk, limit: int) -> Assembly:
    """Start a transfer with the chunk that arrived first. Raises LimitError above `limit` bytes or MAX_OPEN chunks."""
    if chunk.total > limit:
        raise LimitError(f"a transfer of {chunk.total} bytes; at most {limit} are taken here")
    if chunk.count > MAX_OPEN:
        raise LimitError(f"a transfer in {chunk.count} chunks; at most {MAX_OPEN} are collected here")
    return Assembly(chunk).add(chunk)
