"""Updates on a device's disk, from the moment they are drawn until the aggregator's receipt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_client.outbox import Outbox
from seedmask.chunks import transfer_id
from seedmask.errors import UserError
from seedmask.wire import Heartbeat, Receipt, Status, Update, basis, encode

JOB, THETA = "fashion", bytes(range(16))


def update(round_: int = 1) -> Update:
    return Update(round_, basis(JOB, bytes(32), THETA), 100, 500_000, 80, 1, (b"mask",))


def receipt(round_: int = 1, status: Status = Status.ACCEPTED) -> Receipt:
    return Receipt(JOB, round_, bytes(16), status, "")


def saved(outbox: Outbox, made: Update) -> bytes:
    frame = encode(made)
    outbox.save(transfer_id(frame), THETA, frame)
    return transfer_id(frame)


def test_an_update_survives_a_restart_to_the_byte(tmp_path: Path) -> None:
    frames = {encode(update(1)), encode(update(2))}
    for frame in frames:
        Outbox(tmp_path / "outbox", JOB).save(transfer_id(frame), THETA, frame)
    kept, odd = Outbox(tmp_path / "outbox", JOB).load()
    assert odd == []
    assert {item.frame for item in kept} == frames
    assert all((item.transfer, item.theta) == (transfer_id(item.frame), THETA) for item in kept)
    assert [item.message.round for item in kept] == [1, 2]


def test_saving_twice_keeps_one(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, JOB)
    saved(outbox, update())
    saved(outbox, update())
    assert len(outbox.load()[0]) == 1


def test_a_save_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_mode))
    saved(Outbox(tmp_path, JOB), update())
    assert len(synced) == 2  # the file, and the folder that names it


def test_a_power_cut_while_saving_leaves_no_part_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        saved(Outbox(tmp_path, JOB), update())
    assert Outbox(tmp_path, JOB).load() == ([], [])


def test_a_dropped_update_is_gone_and_its_round_is_remembered(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, JOB)
    transfer = saved(outbox, update(3))
    assert outbox.finished() is None
    outbox.drop(transfer, THETA, receipt(3))
    again = Outbox(tmp_path, JOB)
    assert again.load() == ([], [])
    assert again.finished() == (3, THETA)
    outbox.drop(transfer, THETA, receipt(3))  # a power cut between note and removal repeats this


def test_the_round_is_remembered_before_the_update_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path, JOB)
    transfer = saved(outbox, update(3))

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", cut)
    with pytest.raises(KeyboardInterrupt):
        outbox.drop(transfer, THETA, receipt(3))
    assert Outbox(tmp_path, JOB).finished() == (3, THETA)
    assert len(Outbox(tmp_path, JOB).load()[0]) == 1  # sent again, and answered as a duplicate


@pytest.mark.parametrize("content", [b"", b"SM", encode(update())[:-1], bytes(500)])
def test_a_damaged_file_is_reported_and_left_alone(tmp_path: Path, content: bytes) -> None:
    outbox = Outbox(tmp_path, JOB)
    good = saved(outbox, update())
    (tmp_path / "0000.update").write_bytes(content)
    kept, odd = outbox.load()
    assert [item.transfer for item in kept] == [good]
    assert len(odd) == 1
    assert "0000.update: not an update" in odd[0]
    assert (tmp_path / "0000.update").read_bytes() == content


def test_what_is_of_another_job_is_reported_and_left_alone(tmp_path: Path) -> None:
    """Sent to our aggregator it would be answered `stale`, and be lost to its own."""
    transfer = saved(Outbox(tmp_path, "other"), update())
    kept, odd = Outbox(tmp_path, JOB).load()
    assert kept == []
    assert "not of job fashion; left alone" in odd[0]
    assert [item.transfer for item in Outbox(tmp_path, "other").load()[0]] == [transfer]


def test_a_message_that_is_no_update_is_reported_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0000.update").write_bytes(encode(Heartbeat(JOB, True, 1)))
    kept, odd = Outbox(tmp_path, JOB).load()
    assert kept == []
    assert "not an update (kind); left alone" in odd[0]


@pytest.mark.parametrize("name", ["0000", "fashion", "fashion.00.00", f"fashion.{'x' * 32}.00", ".."])
def test_an_update_whose_file_does_not_say_what_it_was_made_for_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.update").write_bytes(encode(update()))
    kept, odd = Outbox(tmp_path, JOB).load()
    assert (kept, len(odd)) == ([], 1)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"job": "fashion", "round": "x", "theta": ""}',
        b'{"job": "fashion", "round": 1, "theta": 3}',
        b'{"job": "other", "round": 1, "theta": "00"}',
    ],
)
def test_an_unreadable_note_is_no_note(tmp_path: Path, note: bytes) -> None:
    (tmp_path / "finished.json").write_bytes(note)
    assert Outbox(tmp_path, JOB).finished() is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep updates in .*file"):
        Outbox(tmp_path / "file", JOB)
