"""Messages of the protocol, encoded to bytes and decoded.  PROTOCOL 6.

For any bytes, `decode` returns a message or raises the ProtocolError of the rule that was broken, and no other
exception. A frame is "SM", version, kind, body, CRC-32. Integers are little-endian and unsigned; a text is ASCII or
UTF-8, preceded by its length. The CRC finds accidental damage; authentication and secrecy are the task of TLS.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

from seedmask import PROTOCOL_VERSION
from seedmask.errors import (
    ChecksumError,
    FieldError,
    KindError,
    MagicError,
    ProtocolError,
    TrailingBytesError,
    TruncatedError,
    VersionError,
)
from seedmask.training import OPTIONS, TrainingConfig

MAGIC: Final = b"SM"
MAX_FRAME: Final = 1 << 28
_EXACT: Final = 128  # added to the codec's id if exact values follow the masks
CHECK = False
"""True: `encode` decodes every frame that it makes and compares the two messages. For tests; it costs time."""
_OVERHEAD: Final = 8  # magic 2, version 1, kind 1, CRC-32 4
NAME_PATTERN: Final = "[a-z0-9][a-z0-9-]{0,62}"
"""Regular expression that a complete name of a job or a device matches."""


class Phase(IntEnum):
    """State of a job, as announced."""

    WAITING = 0  # for enough devices; `text` says what is missing
    OPEN = 1  # the round accepts updates
    DONE = 2  # the job's last round is closed


class Status(IntEnum):
    """Result of an update, as in its receipt. After any of them the device stops sending the update."""

    ACCEPTED = 1
    DUPLICATE = 2  # this device's update of this round is already counted
    LATE = 3  # the round closed before it arrived
    STALE = 4  # made for another round, or under other probabilities, than the current ones
    INVALID = 5  # it broke a rule; `reason` names it
    NOT_SELECTED = 6  # this device is not selected in this round


@dataclass(frozen=True)
class Announce:
    """State of a job and opening of a round; from the aggregator to all devices, retained.

    `model`: identity of the spec, 32 bytes; `theta`: digest of the round's probabilities, 16 bytes. `transfer`, 16
    bytes, and `chunks`: id and length of the transfer of theta (topic theta/<round>/<chunk>). `base`, `delta`, 16 bytes
    each, and `delta_chunks`: the transfer of a difference for devices that hold the theta of digest `base` (topic
    delta/<round>/<chunk>), all zero if none is offered. `deadline_ms`: milliseconds from now, 0 for none. `selected`:
    names of the devices that are to train, empty for all. `text`: for people.
    """

    KIND: ClassVar[int] = 1
    job: str
    round: int
    rounds: int
    phase: Phase
    model: bytes
    theta: bytes
    transfer: bytes
    chunks: int
    base: bytes
    delta: bytes
    delta_chunks: int
    deadline_ms: int
    training: TrainingConfig
    selected: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Update:
    """Result of one device's round; from the device, named by the topic, to the aggregator.

    `basis`, 16 bytes: job, model and theta it was made for (function `basis`). `samples`: examples trained on. `loss`
    (mean, in millionths of a nat) and `correct` (of `samples`): measured during the last epoch. `codec`: id of the
    codec of `payloads`, the coded masks. `exact`: coded exact values (`seedmask.codec.exact`), empty if the model has
    none.
    """

    KIND: ClassVar[int] = 2
    round: int
    basis: bytes
    samples: int
    loss: int
    correct: int
    codec: int
    payloads: tuple[bytes, ...]
    exact: bytes = b""


@dataclass(frozen=True)
class Receipt:
    """Answer to the update with the transfer id `transfer`, 16 bytes; from the aggregator to one device."""

    KIND: ClassVar[int] = 3
    job: str
    round: int
    transfer: bytes
    status: Status
    reason: str


@dataclass(frozen=True)
class Presence:
    """State of a device; retained, and with `online` False its last will.

    `boot`: 64-bit number that differs between starts of the device; `model`: identity of its spec, 32 bytes; `samples`:
    examples it has; `runtime`: what it trains with; `agent`: program and version.
    """

    KIND: ClassVar[int] = 4
    device: str
    online: bool
    boot: int
    model: bytes
    samples: int
    runtime: str
    agent: str


@dataclass(frozen=True)
class Heartbeat:
    """State of the aggregator; retained, and with `online` False its last will. `boot` as in Presence."""

    KIND: ClassVar[int] = 5
    job: str
    online: bool
    boot: int


@dataclass(frozen=True)
class Chunk:
    """Part of a larger object, which is cut into `count` chunks of `size` bytes; the last one may be shorter.

    `transfer`: first 16 bytes of the SHA-256 of the object; `total`: its length in bytes; `index`: from 0.
    """

    KIND: ClassVar[int] = 6
    transfer: bytes
    total: int
    size: int
    index: int
    count: int
    data: bytes


Message: TypeAlias = Announce | Update | Receipt | Presence | Heartbeat | Chunk
M = TypeVar("M", Announce, Update, Receipt, Presence, Heartbeat, Chunk)


class _Reader:
    """Cursor over the bytes of a message body; reading past the end raises TruncatedError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.data):
            raise TruncatedError(f"{n} bytes expected at {self.at}, {len(self.data) - self.at} left")
        self.at += n
        return self.data[self.at - n : self.at]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def name(self) -> str:
        text = self.text(1)
        if not is_name(text):
            raise FieldError(f"a name is [a-z0-9-], at most 63 long, found {text!r}")
        return text

    def text(self, width: int = 2) -> str:
        raw = self.take(self.uint(width))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FieldError("text is not UTF-8") from None

    def flag(self) -> bool:
        value = self.uint(1)
        if value > 1:
            raise FieldError(f"a flag is 0 or 1, found {value}")
        return value == 1


def _text(value: str, width: int = 2) -> bytes:
    raw = value.encode()
    if len(raw) >= 1 << 8 * width:
        raise ValueError(f"text of {len(raw)} bytes does not fit a {width}-byte length")
    return len(raw).to_bytes(width, "little") + raw


def _name(value: str) -> bytes:
    check_name(value)
    return _text(value, 1)


def _digest(value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise ValueError(f"a digest of {size} bytes expected, found {len(value)}")
    return value


def basis(job: str, model: bytes, theta: bytes) -> bytes:
    """Return the 16 bytes that identify the job, the model and the theta that an update was made for.

    `model`: identity of the spec, 32 bytes; `theta`: its digest, 16 bytes. Raises ValueError for other lengths.
    """
    named = check_name(job).encode() + b"\0" + _digest(model, 32) + _digest(theta, 16)
    return hashlib.sha256(named).digest()[:16]


def is_name(value: str) -> bool:
    """True if `value` is a valid name of a job or a device on the wire."""
    return re.fullmatch(NAME_PATTERN, value) is not None


def check_name(value: str) -> str:
    """Return `value` if it is a valid name of a job or a device on the wire. Raises ValueError if not."""
    if not is_name(value):
        raise ValueError(f"a name is a-z, 0-9 and '-', at most 63 characters, found {value!r}")
    return value


def _put_training(training: TrainingConfig) -> bytes:
    options = [(number, getattr(training, one.name), one) for number, one in OPTIONS.items()]
    given = [(number, value, one) for number, value, one in options if value != one.default]
    return bytes([len(given)]) + b"".join(struct.pack("<BI", number, one.number(value)) for number, value, one in given)


def _get_training(r: _Reader) -> TrainingConfig:
    given: dict[str, Any] = {}
    last = 0
    for _ in range(r.uint(1)):
        number, value = r.uint(1), r.uint(4)
        if number not in OPTIONS:
            raise FieldError(f"training option {number} is unknown; known: {', '.join(map(str, OPTIONS))}")
        option = OPTIONS[number]
        least, most = option.span
        if number <= last:
            raise FieldError(f"options stand in ascending order, found {number} after {last}")
        if not least <= value <= most:
            raise FieldError(f"{option.name} is {least} .. {most}, found {value}")
        if value == option.number(option.default):
            raise FieldError(f"{option.name} is {value}, its default, and must be left out")
        given[option.name], last = option.value(value), number
    try:
        return TrainingConfig(**given)
    except ValueError as error:
        raise FieldError(str(error)) from None


def _is_offer(base: bytes, delta: bytes, chunks: int) -> bool:
    """True if base, delta and its chunks are given together or are all zero."""
    return (any(base), any(delta)) == (chunks > 0, chunks > 0)


def _put_announce(m: Announce) -> bytes:
    if not _is_offer(m.base, m.delta, m.delta_chunks):
        raise ValueError("base, delta and its chunks are given together or are all zero")
    return b"".join(
        [
            _name(m.job),
            struct.pack("<IIB", m.round, m.rounds, m.phase),
            _digest(m.model, 32) + _digest(m.theta, 16) + _digest(m.transfer, 16),
            struct.pack("<H", m.chunks),
            _digest(m.base, 16) + _digest(m.delta, 16),
            struct.pack("<HI", m.delta_chunks, m.deadline_ms),
            _put_training(m.training),
            struct.pack("<H", len(m.selected)),
            *[_name(device) for device in m.selected],
            _text(m.text),
        ]
    )


def _get_announce(r: _Reader) -> Announce:
    job, round_, rounds = r.name(), r.uint(4), r.uint(4)
    phase = r.uint(1)
    if phase not in tuple(Phase):
        raise KindError(f"phase {phase} is unknown; known: {', '.join(f'{p.value} {p.name.lower()}' for p in Phase)}")
    model, theta, transfer, chunks = r.take(32), r.take(16), r.take(16), r.uint(2)
    base, delta, delta_chunks = r.take(16), r.take(16), r.uint(2)
    if not _is_offer(base, delta, delta_chunks):
        raise FieldError("base, delta and its chunks are given together or are all zero")
    deadline, training = r.uint(4), _get_training(r)
    selected = tuple(r.name() for _ in range(r.uint(2)))
    return Announce(
        *(job, round_, rounds, Phase(phase), model, theta, transfer, chunks, base, delta, delta_chunks),
        *(deadline, training, selected, r.text()),
    )


def _put_update(m: Update) -> bytes:
    if not m.samples or not m.payloads or m.codec >= _EXACT:
        found = f"{m.samples} samples, {len(m.payloads)} masks, codec {m.codec}"
        raise ValueError(f"an update has samples, masks and a codec below {_EXACT}, found {found}")
    return b"".join(
        [
            struct.pack("<I", m.round) + _digest(m.basis, 16),
            struct.pack("<III", m.samples, m.loss, m.correct),
            bytes([m.codec | (_EXACT if m.exact else 0), len(m.payloads)]),
            *[struct.pack("<I", len(payload)) + payload for payload in m.payloads],
            struct.pack("<I", len(m.exact)) + m.exact if m.exact else b"",
        ]
    )


def _get_update(r: _Reader) -> Update:
    round_, made_for = r.uint(4), r.take(16)
    samples, loss, correct, codec = r.uint(4), r.uint(4), r.uint(4), r.uint(1)
    if not samples:
        raise FieldError("an update was trained on at least one sample, found 0")
    masks = r.uint(1)
    if not masks:
        raise FieldError("an update has at least one mask")
    payloads = tuple(r.take(r.uint(4)) for _ in range(masks))
    exact = r.take(r.uint(4)) if codec & _EXACT else b""
    if codec & _EXACT and not exact:
        raise FieldError(f"codec {codec} announces exact values, found 0 bytes of them")
    return Update(round_, made_for, samples, loss, correct, codec & ~_EXACT, payloads, exact)


def _put_receipt(m: Receipt) -> bytes:
    return b"".join(
        [_name(m.job), struct.pack("<I", m.round), _digest(m.transfer, 16), bytes([m.status]), _text(m.reason)]
    )


def _get_receipt(r: _Reader) -> Receipt:
    job, round_, transfer, status = r.name(), r.uint(4), r.take(16), r.uint(1)
    if status not in tuple(Status):
        raise KindError(f"receipt status {status} is unknown; known: 1 .. {max(Status)}")
    return Receipt(job, round_, transfer, Status(status), r.text())


def _put_presence(m: Presence) -> bytes:
    return b"".join(
        [
            _name(m.device),
            struct.pack("<BQ", m.online, m.boot) + _digest(m.model, 32),
            struct.pack("<I", m.samples) + _text(m.runtime, 1) + _text(m.agent, 1),
        ]
    )


def _get_presence(r: _Reader) -> Presence:
    return Presence(r.name(), r.flag(), r.uint(8), r.take(32), r.uint(4), r.text(1), r.text(1))


def _put_heartbeat(m: Heartbeat) -> bytes:
    return _name(m.job) + struct.pack("<BQ", m.online, m.boot)


def _get_heartbeat(r: _Reader) -> Heartbeat:
    return Heartbeat(r.name(), r.flag(), r.uint(8))


def _is_part(total: int, size: int, index: int, count: int) -> bool:
    """True if chunk `index` of `count`, `size` bytes each, can be part of `total` bytes."""
    return size >= 1 and 1 <= total <= MAX_FRAME and count == -(-total // size) and index < count


def _put_chunk(m: Chunk) -> bytes:
    if not _is_part(m.total, m.size, m.index, m.count) or len(m.data) != min(m.size, m.total - m.index * m.size):
        shape = f"chunk {m.index} of {m.count}, {m.size} bytes each"
        raise ValueError(f"{shape}, cannot be {len(m.data)} of {m.total} bytes")
    return _digest(m.transfer, 16) + struct.pack("<IIHH", m.total, m.size, m.index, m.count) + m.data


def _get_chunk(r: _Reader) -> Chunk:
    transfer, total, size, index, count = r.take(16), r.uint(4), r.uint(4), r.uint(2), r.uint(2)
    if not _is_part(total, size, index, count):
        raise FieldError(f"chunk {index} of {count}, {size} bytes each, cannot be part of {total} bytes")
    length = min(size, total - index * size)
    return Chunk(transfer, total, size, index, count, r.take(length))


_PUT: dict[type, Callable[..., bytes]] = {
    Announce: _put_announce,
    Update: _put_update,
    Receipt: _put_receipt,
    Presence: _put_presence,
    Heartbeat: _put_heartbeat,
    Chunk: _put_chunk,
}
_GET: dict[int, Callable[[_Reader], Message]] = {
    Announce.KIND: _get_announce,
    Update.KIND: _get_update,
    Receipt.KIND: _get_receipt,
    Presence.KIND: _get_presence,
    Heartbeat.KIND: _get_heartbeat,
    Chunk.KIND: _get_chunk,
}


def encode(message: Message) -> bytes:
    """Return `message` as one frame.

    Raises ValueError if a field cannot be encoded, or fields contradict each other: a bug of this program. If CHECK is
    set, the frame is also decoded and compared with `message`.
    """
    try:
        body = _PUT[type(message)](message)
    except struct.error as error:
        raise ValueError(f"{type(message).__name__}: {error}") from None
    frame = MAGIC + bytes([PROTOCOL_VERSION, message.KIND]) + body
    frame += struct.pack("<I", zlib.crc32(frame))
    if CHECK:
        try:
            read = decode(frame)
        except ProtocolError as error:
            raise ValueError(f"{type(message).__name__} that every receiver would refuse: {error}") from None
        if read != message:
            raise ValueError(f"{message} is decoded as {read}")
    return frame


def decode(frame: bytes) -> Message:
    """Return the message in `frame`. Raises a ProtocolError for invalid bytes, and never another exception."""
    if len(frame) < _OVERHEAD:
        raise TruncatedError(f"a frame has at least {_OVERHEAD} bytes, found {len(frame)}")
    if frame[:2] != MAGIC:
        raise MagicError(f"a frame begins with {MAGIC!r}, found {bytes(frame[:2])!r}")
    if frame[2] != PROTOCOL_VERSION:
        raise VersionError(f"protocol version {frame[2]}; this program speaks {PROTOCOL_VERSION}")
    if frame[3] not in _GET:
        raise KindError(f"message kind {frame[3]} is unknown; known: 1 .. {max(_GET)}")
    if zlib.crc32(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
        raise ChecksumError("CRC-32 does not match")
    reader = _Reader(bytes(frame[4:-4]))
    message = _GET[frame[3]](reader)
    if reader.at != len(reader.data):
        raise TrailingBytesError(f"{len(reader.data) - reader.at} bytes after the message's end")
    return message


def expect(frame: bytes, kind: type[M]) -> M:
    """Return the message of class `kind` in `frame`. Raises KindError for another kind, else as `decode`."""
    message = decode(frame)
    if not isinstance(message, kind):
        raise KindError(f"{kind.__name__} expected here, found {type(message).__name__}")
    return message
