"""Chunks of many devices on their way to becoming updates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.inbox import PATIENCE_SECONDS, PER_DEVICE, Inbox
from seedmask.chunks import split, transfer_id
from seedmask.errors import ChecksumError, FieldError, KindError, LimitError, ProtocolError
from seedmask.wire import Chunk, Heartbeat, encode

BLOB = bytes(range(250)) * 4


def frames(blob: bytes = BLOB, size: int = 300) -> list[bytes]:
    return [encode(chunk) for chunk in split(blob, size)]


def put_all(inbox: Inbox, device: str, payloads: list[bytes]) -> list[tuple[bytes, bytes | ProtocolError]]:
    return [done for payload in payloads if (done := inbox.put(device, payload, 0.0)) is not None]


def test_a_transfer_is_handed_over_with_its_last_chunk_in_any_order() -> None:
    for order in (frames(), frames()[::-1]):
        inbox = Inbox(5000)
        assert put_all(inbox, "pi-1", order[:-1]) == []
        assert inbox.put("pi-1", order[-1], 0.0) == (transfer_id(BLOB), BLOB)


def test_a_transfer_that_is_sent_again_is_handed_over_again() -> None:
    inbox = Inbox(5000)
    assert len(put_all(inbox, "pi-1", frames() * 2)) == 2


def test_two_senders_of_the_same_transfer_do_not_mix() -> None:
    inbox, (first, *rest) = Inbox(5000), frames()
    assert put_all(inbox, "pi-1", [first]) == []
    assert put_all(inbox, "pi-2", rest) == []
    assert put_all(inbox, "pi-2", [first]) == [(transfer_id(BLOB), BLOB)]
    assert put_all(inbox, "pi-1", rest) == [(transfer_id(BLOB), BLOB)]


def test_a_transfer_above_the_limit_is_refused_with_its_first_chunk() -> None:
    inbox = Inbox(len(BLOB) - 1)
    answer = inbox.put("pi-1", frames()[0], 0.0)
    assert answer is not None
    assert answer[0] == transfer_id(BLOB)  # so that its sender gets a receipt
    assert isinstance(answer[1], LimitError)
    assert str(answer[1]).startswith("a transfer of 1000 bytes; at most 999")
    assert put_all(Inbox(len(BLOB)), "pi-1", frames())


def test_a_sender_has_only_so_many_transfers_open_and_others_are_not_affected() -> None:
    inbox = Inbox(5000)
    for i in range(PER_DEVICE):
        assert inbox.put("pi-1", frames(bytes([i]) * 900)[0], 0.0) is None
    with pytest.raises(LimitError, match="open already"):
        inbox.put("pi-1", frames()[0], 0.0)
    assert put_all(inbox, "pi-2", frames())
    assert put_all(inbox, "pi-1", frames(bytes(900)))  # the first one ends, and there is room again
    assert put_all(inbox, "pi-1", frames())


def test_what_a_sender_never_finished_makes_room_in_the_end() -> None:
    inbox = Inbox(5000)
    for i in range(PER_DEVICE):
        inbox.put("pi-1", frames(bytes([i]) * 900)[0], 0.0)
    assert inbox.put("pi-1", frames()[0], PATIENCE_SECONDS + 1) is None
    # The old ones are forgotten: their other chunks alone do not complete them.
    assert inbox.put("pi-1", frames(bytes([0]) * 900)[1], PATIENCE_SECONDS + 1) is None


def test_a_transfer_that_moves_is_not_forgotten() -> None:
    inbox, (first, second, *rest) = Inbox(5000), frames()
    inbox.put("pi-1", first, 0.0)
    inbox.put("pi-1", second, PATIENCE_SECONDS)
    inbox.put("pi-1", frames(bytes(900))[0], PATIENCE_SECONDS + 1)
    assert [inbox.put("pi-1", chunk, PATIENCE_SECONDS + 2) for chunk in rest][-1] is not None


def test_a_transfer_cut_to_another_size_replaces_the_one_that_came() -> None:
    """A device that reconnects through a broker with a lower limit sends the same update in other chunks."""
    inbox = Inbox(5000)
    assert put_all(inbox, "pi-1", frames(size=300)[:2]) == []
    assert put_all(inbox, "pi-1", frames(size=128)) == [(transfer_id(BLOB), BLOB)]


def test_content_that_is_not_what_its_id_names_is_refused_and_forgotten() -> None:
    inbox = Inbox(5000)
    (chunk,) = split(BLOB, 5000)
    answer = inbox.put("pi-1", encode(replace(chunk, data=bytes(len(BLOB)))), 0.0)
    assert answer is not None
    assert answer[0] == transfer_id(BLOB)
    assert isinstance(answer[1], ChecksumError)
    assert put_all(inbox, "pi-1", frames())


def test_anything_else_than_a_chunk_is_refused() -> None:
    with pytest.raises(KindError, match="Chunk expected here, found Heartbeat"):
        Inbox(5000).put("pi-1", encode(Heartbeat("fashion", True, 1)), 0.0)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_is_refused_by_name_and_disturbs_no_transfer(garbage: list[bytes]) -> None:
    inbox, (*most, last) = Inbox(5000), frames()
    put_all(inbox, "pi-1", most)
    for payload in garbage:
        with pytest.raises(ProtocolError):
            inbox.put("pi-1", payload, 0.0)
    assert inbox.put("pi-1", last, 0.0) == (transfer_id(BLOB), BLOB)


CHUNKS = st.builds(
    lambda total, size, index: (total, size, index), st.integers(1, 900), st.integers(1, 300), st.integers(0, 9)
)


@given(st.lists(CHUNKS, max_size=20))
def test_chunks_that_contradict_each_other_raise_nothing_but_protocol_errors(parts: list[tuple[int, int, int]]) -> None:
    inbox = Inbox(800)
    for total, size, index in parts:
        count = -(-total // size)
        if index < count:
            data = bytes(min(size, total - index * size))
            payload = encode(Chunk(bytes(16), total, size, index, count, data))
            try:
                inbox.put("pi-1", payload, 0.0)
            except (ChecksumError, FieldError, LimitError):
                continue
