"""Frames, chunks and topics: what was sent comes back, and whatever else arrives has a name for what is wrong."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedmask import chunks, errors, topics, wire
from seedmask.errors import ChecksumError, FieldError, KindError, LimitError, ProtocolError
from seedmask.training import OPTIONS, TrainingConfig
from seedmask.wire import Announce, Chunk, Heartbeat, Message, Phase, Presence, Receipt, Status, Update

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

GOLDEN = json.loads((Path(__file__).parent / "vectors" / "v3.json").read_text())["frames"]

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
TEXT = st.text(max_size=50)
B16, B32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)


@st.composite
def some_work(draw: Any) -> TrainingConfig:
    """Any work that can travel: each option at its default or anywhere in its range."""
    said = {}
    for one in OPTIONS.values():
        if draw(st.booleans()):
            said[one.name] = one.value(draw(st.integers(*one.span)))
    low, high = sorted((said.get("kappa", 5.0), said.get("kappa_max", 24.0)))
    return TrainingConfig(**{**said, "kappa": low, "kappa_max": high})


def positive(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return numbers.filter(bool)


@st.composite
def some_chunk(draw: Any) -> Chunk:
    data = draw(st.binary(min_size=1, max_size=300))
    size = draw(st.integers(1, 400))
    return draw(st.sampled_from(chunks.split(data, size)))


@st.composite
def some_announce(draw: Any) -> Announce:
    training, phase = draw(some_work()), draw(st.sampled_from(Phase))
    selected = draw(st.lists(NAMES, max_size=5))
    chunks = draw(st.integers(0, 3))
    delta = (bytes(16), bytes(16), 0) if not chunks else (draw(B16.filter(any)), draw(B16.filter(any)), chunks)
    return Announce(  # type: ignore[call-arg]
        *(draw(NAMES), draw(U32), draw(U32), phase, draw(B32), draw(B16), draw(B16), draw(U16), *delta, draw(U32)),
        *(training, tuple(selected), draw(TEXT)),
    )


KINDS: dict[type[Message], st.SearchStrategy[Any]] = {
    Announce: some_announce(),
    Update: st.builds(
        *(Update, U32, B16, positive(U32), U32, U32, st.integers(0, 127)),
        st.lists(st.binary(max_size=60), min_size=1, max_size=4).map(tuple),
        st.binary(max_size=20),
    ),
    Receipt: st.builds(Receipt, NAMES, U32, B16, st.sampled_from(Status), TEXT),
    Presence: st.builds(Presence, NAMES, st.booleans(), U64, B32, U32, TEXT, TEXT),
    Heartbeat: st.builds(Heartbeat, NAMES, st.booleans(), U64),
    Chunk: some_chunk(),
}
MESSAGES = st.one_of(*KINDS.values())


def sealed(kind: int, body: bytes) -> bytes:
    """A frame with a valid CRC around any body."""
    frame = b"SM" + bytes([3, kind]) + body
    return frame + struct.pack("<I", zlib.crc32(frame))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.lower())
@given(data=st.data())
def test_a_message_comes_back_as_it_was_sent(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(KINDS[kind])
    assert wire.decode(wire.encode(message)) == message


@pytest.mark.parametrize("vector", GOLDEN, ids=[vector["name"] for vector in GOLDEN])
def test_every_proper_prefix_of_every_golden_frame_is_rejected(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    wire.decode(frame)
    for n in range(len(frame)):
        with pytest.raises((errors.TruncatedError, ChecksumError)):
            wire.decode(frame[:n])
    with pytest.raises(ChecksumError):
        wire.decode(frame + b"\0")


@pytest.mark.parametrize("vector", GOLDEN, ids=[vector["name"] for vector in GOLDEN])
def test_every_prefix_of_every_golden_body_is_rejected_even_with_a_valid_crc(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    body = frame[4:-4]
    for n in range(len(body)):
        with pytest.raises((errors.TruncatedError, FieldError)):
            wire.decode(sealed(frame[3], body[:n]))


@given(MESSAGES, st.data())
def test_one_flipped_bit_never_passes(message: Message, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ProtocolError):
        wire.decode(bytes(frame))


def decode_or_name(frame: bytes) -> None:
    """A message, which encodes to the same bytes again, or a ProtocolError; nothing else."""
    try:
        message = wire.decode(frame)
    except ProtocolError:
        return
    assert wire.encode(message) == frame


@given(st.integers(0, 8), st.binary(max_size=200))
@settings(max_examples=500)
def test_random_bodies_with_a_valid_crc_are_messages_or_protocol_errors(kind: int, body: bytes) -> None:
    decode_or_name(sealed(kind, body))


@given(MESSAGES, st.data())
@settings(max_examples=500)
def test_changed_bodies_with_a_valid_crc_are_messages_or_protocol_errors(message: Message, data: st.DataObject) -> None:
    body = bytearray(wire.encode(message)[4:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(U8)
    decode_or_name(sealed(message.KIND, bytes(body)))


@given(st.binary(max_size=100))
def test_random_bytes_are_no_message(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(frame)


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat("Digits", True, 1),
        Heartbeat("", True, 1),
        Heartbeat("a" * 64, True, 1),
        Heartbeat("a\n", True, 1),
        Heartbeat("a", True, 1 << 64),
        Receipt("a", 1 << 32, bytes(16), Status.LATE, ""),
        Receipt("a", 1, bytes(15), Status.LATE, ""),
        Receipt("a", 1, bytes(16), Status.LATE, "x" * 65536),
        Receipt("a", 1, bytes(16), Status.LATE, "\ud800"),
        Presence("a", True, 1, bytes(32), 1, "x" * 256, ""),
        Update(1, bytes(16), 0, 0, 0, 1, (b"",)),
        Update(1, bytes(16), 1, 0, 0, 1, ()),
        Update(1, bytes(16), 1, 0, 0, 1, (b"",) * 256),
        Update(1, bytes(15), 1, 0, 0, 1, (b"",)),
        Update(1, bytes(16), 1, 0, 0, 128, (b"",)),
        Chunk(bytes(16), 10, 4, 2, 3, b"ijk"),
        Chunk(bytes(16), 10, 4, 2, 3, b"i"),
        Chunk(bytes(16), 10, 4, 3, 3, b""),
        Chunk(bytes(16), 10, 0, 0, 1, b""),
        Chunk(bytes(16), 0, 4, 0, 0, b""),
        Chunk(bytes(16), 10, 4, 2, 4, b"ij"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("check", [True, False])
def test_a_message_that_nobody_would_accept_is_a_bug_at_home(
    message: Message, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CHECK", check)
    with pytest.raises(ValueError, match=r"\w"):
        wire.encode(message)


def test_the_check_reads_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A status that there is not is something that only the check finds."""
    wrong = Receipt("a", 1, bytes(16), 9, "")  # type: ignore[arg-type]
    assert wire.CHECK
    with pytest.raises(ValueError, match=r"Receipt that every receiver would refuse: receipt status 9 is unknown"):
        wire.encode(wrong)
    monkeypatch.setattr(wire, "CHECK", False)
    with pytest.raises(KindError, match="receipt status 9 is unknown"):
        wire.decode(wire.encode(wrong))


def test_expect_names_both_kinds() -> None:
    frame = wire.encode(Heartbeat("a", True, 1))
    assert wire.expect(frame, Heartbeat) == Heartbeat("a", True, 1)
    with pytest.raises(KindError, match="Receipt expected here, found Heartbeat"):
        wire.expect(frame, Receipt)


# --- what a device does: a list of options ---


LEAST = Announce(
    *("j", 1, 1, Phase.OPEN, bytes(32), bytes(16), bytes(16), 1, bytes(16), bytes(16), 0, 0, TrainingConfig(), (), "")
)
AT = len(wire.encode(LEAST)) - 4 - 2 - 2 - 1  # of the number of options: behind it two empty lists and the CRC


def told(options: bytes) -> Message:
    """An announcement with these bytes for its work."""
    frame = wire.encode(LEAST)
    return wire.decode(sealed(1, frame[4:AT] + options + bytes(4)))


def option(number: int, value: int) -> bytes:
    return struct.pack("<BI", number, value)


def test_the_default_work_is_one_byte() -> None:
    assert wire.encode(LEAST)[AT:-4] == b"\0" + b"\0\0" + b"\0\0"
    assert told(b"\0") == LEAST


def test_every_field_of_work_is_an_option() -> None:
    assert [one.name for one in OPTIONS.values()] == [f.name for f in fields(TrainingConfig)]
    assert list(OPTIONS) == sorted(set(range(1, 19)) - {10, 15})  # those two were version 2's


@pytest.mark.parametrize("number", OPTIONS)
def test_each_option_travels_alone_and_only_within_its_range(number: int) -> None:
    one = OPTIONS[number]
    name, (least, most), default = one.name, one.span, one.number(one.default)
    with pytest.raises(FieldError, match=f"{name} is {default}, its default, and must be left out"):
        told(b"\1" + option(number, default))
    for value in {least, most} - {default}:
        said = {name: one.value(value)}
        more = {"kappa": 0.001} if name == "kappa_max" and value == least else {}
        more = {"kappa_max": 1000} if name == "kappa" and value == most else more
        announce = replace(LEAST, training=TrainingConfig(**{**more, **said}))
        assert wire.decode(wire.encode(announce)) == announce
    for value in (least - 1, most + 1):
        if not 0 <= value < 1 << 32:
            continue
        with pytest.raises(FieldError, match=f"{name} is "):
            told(b"\1" + option(number, value))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (b"\1" + option(0, 1), "training option 0 is unknown; known: 1, 2, .*, 18"),
        (b"\1" + option(10, 1), "training option 10 is unknown"),
        (b"\1" + option(15, 1), "training option 15 is unknown"),
        (b"\1" + option(19, 1), "training option 19 is unknown"),
        (b"\1" + option(255, 1), "training option 255 is unknown"),
        (b"\2" + option(2, 1) + option(1, 1), "ascending order, found 1 after 2"),
        (b"\2" + option(1, 1) + option(1, 2), "ascending order, found 1 after 1"),
        (b"\1" + option(12, 30_000), r"kappa \(30\) cannot be above kappa_max \(24\)"),
    ],
)
def test_other_options_are_named_and_refused(options: bytes, says: str) -> None:
    with pytest.raises(FieldError, match=says):
        told(options)


@given(some_work())
def test_work_has_one_form_and_it_is_the_shortest(work: TrainingConfig) -> None:
    announce = replace(LEAST, training=work)
    frame = wire.encode(announce)
    changed = sum(getattr(work, f.name) != getattr(TrainingConfig(), f.name) for f in fields(TrainingConfig))
    assert frame[AT] == changed
    assert len(frame) == len(wire.encode(replace(announce, training=TrainingConfig()))) + 5 * changed
    assert wire.decode(frame) == announce


@pytest.mark.parametrize(
    ("base", "delta", "chunks"),
    [
        (b"x" * 16, bytes(16), 0),
        (bytes(16), b"x" * 16, 0),
        (b"x" * 16, b"x" * 16, 0),
        (b"x" * 16, bytes(16), 1),
        (bytes(16), b"x" * 16, 1),
        (bytes(16), bytes(16), 1),
    ],
)
def test_half_an_offer_of_a_delta_is_no_announcement(base: bytes, delta: bytes, chunks: int) -> None:
    with pytest.raises(ValueError, match="given together"):
        wire.encode(replace(LEAST, base=base, delta=delta, delta_chunks=chunks))


def test_a_device_chooses_its_kappa_within_the_jobs_bounds() -> None:
    work = TrainingConfig(kappa=6.0, kappa_max=12.0, max_blocks=9)
    assert [work.plan(wish).kappa for wish in (None, 1.0, 7.5, 99.0)] == [6.0, 6.0, 7.5, 12.0]
    assert work.plan().max_blocks == 9


def test_the_rate_shrinks_by_the_same_share_each_round() -> None:
    assert [TrainingConfig().rate(round_) for round_ in (1, 2, 50)] == [0.1] * 3
    halved = TrainingConfig(learning_rate=0.2, rate_decay=0.5)
    assert [halved.rate(round_) for round_ in (1, 2, 3)] == [0.2, 0.1, 0.05]


def test_the_basis_names_job_model_and_probabilities() -> None:
    model, theta = bytes(range(32)), bytes(range(16))
    known = wire.basis("j", model, theta)
    assert known == hashlib.sha256(b"j\0" + model + theta).digest()[:16]
    others = wire.basis("k", model, theta), wire.basis("j", model[::-1], theta), wire.basis("j", model, theta[::-1])
    assert len({known, *others}) == 4
    for broken in (("J", model, theta), ("j", model[1:], theta), ("j", model, theta[1:])):
        with pytest.raises(ValueError, match=r"name|digest"):
            wire.basis(*broken)


def test_an_update_costs_its_masks_and_little_else() -> None:
    """At a hundredth of a bit per weight a header is not free."""
    assert len(wire.encode(Update(1, bytes(16), 1, 0, 0, 3, (b"x" * 300,)))) == 300 + 8 + 38


# --- chunks ---


def assemble(parts: list[Chunk], limit: int = 1 << 20) -> chunks.Assembly:
    assembly = chunks.begin(parts[0], limit)
    for part in parts[1:]:
        assembly = assembly.add(part)
    return assembly


@given(st.binary(min_size=1, max_size=300), st.integers(1, 320), st.data())
def test_chunks_come_in_any_order_and_more_than_once(blob: bytes, size: int, data: st.DataObject) -> None:
    parts = chunks.split(blob, size)
    repeats = data.draw(st.lists(st.sampled_from(parts), max_size=5))
    assembly = assemble(data.draw(st.permutations(parts + repeats)))
    assert assembly.complete
    assert assembly.missing == []
    assert assembly.blob() == blob


def test_a_repeat_changes_nothing() -> None:
    parts = chunks.split(bytes(10), 4)
    assembly = chunks.begin(parts[1], 10)
    assert assembly.add(parts[1]) is assembly
    assert assembly.add(replace(parts[1], data=b"fake")).parts == assembly.parts


def test_what_is_missing_is_said() -> None:
    parts = chunks.split(bytes(range(10)), 4)
    assembly = assemble([parts[1]])
    assert (assembly.complete, assembly.missing) == (False, [0, 2])


def test_content_that_is_not_what_its_id_names_is_a_checksum_error() -> None:
    parts = chunks.split(bytes(range(10)), 4)
    assembly = assemble([parts[0], replace(parts[1], data=b"fake"), parts[2]])
    with pytest.raises(ChecksumError):
        assembly.blob()


@pytest.mark.parametrize(
    "stranger",
    [chunks.split(bytes(11), 4)[1], chunks.split(bytes(range(10)), 5)[1], chunks.split(bytes(10), 4)[1]],
    ids=["another total", "another size", "another transfer"],
)
def test_a_chunk_of_something_else_is_a_field_error(stranger: Chunk) -> None:
    with pytest.raises(FieldError):
        assemble(chunks.split(bytes(range(10)), 4)).add(stranger)


def test_a_transfer_above_the_limit_is_refused_at_its_first_chunk() -> None:
    part = chunks.split(bytes(100), 10)[7]
    assert chunks.begin(part, 100).missing == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    with pytest.raises(LimitError):
        chunks.begin(part, 99)


@pytest.mark.parametrize(("length", "size"), [(0, 10), (65536, 1)])
def test_what_cannot_be_split_is_a_bug_at_home(length: int, size: int) -> None:
    with pytest.raises(ValueError, match="can be sent"):
        chunks.split(bytes(length), size)


# --- topics ---


def test_topics_are_those_of_protocol_8() -> None:
    assert topics.round_("j") == "seedmask/3/j/round"
    assert topics.aggregator("j") == "seedmask/3/j/aggregator"
    assert topics.theta("j", 3, 0) == "seedmask/3/j/theta/3/0"
    assert topics.delta("j", 3, 0) == "seedmask/3/j/delta/3/0"
    assert topics.theta("j", 3, "+") == "seedmask/3/j/theta/3/+"
    assert topics.presence("j", "a") == "seedmask/3/j/d/a/presence"
    assert topics.update("j", "+") == "seedmask/3/j/d/+/update"
    assert topics.receipt("j", "a") == "seedmask/3/j/d/a/receipt"


@given(NAMES, NAMES)
def test_the_device_is_read_back_from_its_topics(job: str, device: str) -> None:
    for topic in (topics.presence, topics.update, topics.receipt):
        assert topics.device_of(topic(job, device)) == device


@pytest.mark.parametrize("device", ["+", "#", "", "A", "a b", "a\n", "a" * 64, "\u00e9"])
def test_a_device_in_a_topic_that_cannot_be_a_name_is_nobody(device: str) -> None:
    assert topics.device_of(f"seedmask/3/j/d/{device}/update") is None


TOPICS: list[Callable[[str], str]] = [topics.round_, topics.aggregator]


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("job", ["", "a/b", "+", "#", "A", "\u00e9"])
def test_no_name_can_reach_into_another_topic(topic: Callable[[str], str], job: str) -> None:
    with pytest.raises(ValueError, match="name"):
        topic(job)
