"""The aggregator's database: what it holds when a method returns is what a restart finds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aggregator.store import Store, results
from seedmask.chunks import transfer_id
from seedmask.errors import UserError
from seedmask.mask import Theta
from seedmask.wire import Update, encode

JOB, MODEL, D = "fashion", bytes(range(32)), 60
THETA = Theta(np.arange(D, dtype=np.uint16), 100)
RESULT = Theta(np.arange(D, dtype=np.uint16)[::-1].copy(), 60)


def opened(path: Path, job: str = JOB, model: bytes = MODEL) -> Store:
    return Store(path, job, model, b"{}", D)


def update(device: str, round_: int = 1, loss: int = 500_000, samples: int = 100) -> Update:
    return Update(JOB, device, round_, MODEL, THETA.digest(), samples, loss, 80, 1, b"mask of " + device.encode())


def count(store: Store, *updates: Update) -> None:
    for made in updates:
        store.counted(transfer_id(encode(made)), made)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "job.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = opened(path)
    yield store
    store.close()


def test_a_new_store_knows_nothing(store: Store) -> None:
    assert store.resume() is None
    assert (store.last_transfers(), store.records()) == ({}, [])
    assert store.figures(1)["updates"] == 0


def test_an_open_round_comes_back_with_its_updates(store: Store, path: Path) -> None:
    store.opened(1, THETA, ("pi-1", "pi-2"), 2)
    count(store, update("pi-2"), update("pi-1"))
    store.close()
    again = opened(path)
    known = again.resume()
    assert known is not None
    assert (known.round, known.closed, known.selected, known.quorum) == (1, False, ("pi-1", "pi-2"), 2)
    assert known.theta.digest() == THETA.digest()
    assert known.updates == [(transfer_id(encode(u)), u) for u in (update("pi-1"), update("pi-2"))]
    assert again.last_transfers() == {u.device: transfer_id(encode(u)) for _, u in known.updates}
    again.close()


def test_a_closed_round_comes_back_with_what_came_of_it_and_without_masks(store: Store, path: Path) -> None:
    store.opened(1, THETA, (), 1)
    count(store, update("pi-1"))
    store.closed(1, RESULT, {"round": 1, "updates": 1})
    store.close()
    again = opened(path)
    known = again.resume()
    assert known is not None
    assert (known.round, known.closed, known.updates) == (1, True, [])
    assert known.theta.digest() == RESULT.digest()
    assert again.records() == [{"round": 1, "updates": 1}]
    assert set(again.last_transfers()) == {"pi-1"}  # a repeat of it is still a duplicate
    again.close()
    frames = sqlite3.connect(path).execute("SELECT frame FROM updates").fetchall()
    assert frames == [(None,)]


def test_the_latest_round_and_the_latest_transfer_count(store: Store) -> None:
    store.opened(1, THETA, (), 1)
    count(store, update("pi-1"), update("pi-2"))
    store.closed(1, RESULT, {"round": 1})
    store.opened(2, RESULT, (), 2)
    count(store, update("pi-1", 2))
    known = store.resume()
    assert known is not None
    assert (known.round, known.closed, [u.round for _, u in known.updates]) == (2, False, [2])
    assert store.last_transfers() == {
        "pi-1": transfer_id(encode(update("pi-1", 2))),
        "pi-2": transfer_id(encode(update("pi-2"))),
    }


def test_one_device_cannot_be_counted_twice_in_a_round(store: Store) -> None:
    store.opened(1, THETA, (), 2)
    count(store, update("pi-1"))
    for again in (update("pi-1"), update("pi-1", loss=1)):
        with pytest.raises(sqlite3.IntegrityError):
            count(store, again)
    known = store.resume()
    assert known is not None
    assert [u.loss for _, u in known.updates] == [500_000]


def test_a_round_cannot_begin_twice(store: Store) -> None:
    store.opened(1, THETA, (), 2)
    with pytest.raises(sqlite3.IntegrityError):
        store.opened(1, RESULT, (), 2)


def test_figures_weigh_devices_by_their_examples(store: Store) -> None:
    store.opened(1, THETA, (), 2)
    one, two = update("pi-1", loss=1_000_000, samples=100), update("pi-2", loss=200_000, samples=300)
    count(store, one, two)
    assert store.figures(1) == {
        "updates": 2,
        "update_bytes": len(encode(one)) + len(encode(two)),
        "samples": 400,
        "train_loss": 0.4,
        "train_accuracy": 0.4,
    }


def test_a_second_aggregator_on_the_same_folder_is_refused(store: Store, path: Path) -> None:
    with pytest.raises(UserError, match="another aggregator is at work on"):
        opened(path)
    store.close()
    opened(path).close()


@pytest.mark.parametrize(("job", "model"), [("other", MODEL), (JOB, bytes(32))])
def test_the_store_of_another_job_or_model_is_refused_and_left_alone(
    store: Store, path: Path, job: str, model: bytes
) -> None:
    store.opened(1, THETA, (), 1)
    store.close()
    with pytest.raises(UserError, match="holds job fashion of model 000102030405, the settings say job"):
        opened(path, job, model)
    again = opened(path)
    assert again.resume() is not None
    again.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"my holiday pictures" * 100)
    with pytest.raises(UserError, match="cannot be used as the job's database"):
        opened(path)
    assert path.read_bytes() == b"my holiday pictures" * 100


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*file/job\.sqlite"):
        opened(tmp_path / "file" / "job.sqlite")


def test_results_are_read_beside_a_running_aggregator(store: Store, path: Path) -> None:
    assert list(results(path, D)) == []
    for round_ in (1, 2):
        store.opened(round_, THETA, (), 1)
        store.closed(round_, RESULT, {"round": round_})
    store.opened(3, RESULT, (), 1)
    assert [(record["round"], theta.digest()) for record, theta in results(path, D)] == [
        (1, RESULT.digest()),
        (2, RESULT.digest()),
    ]
    assert [record["round"] for record, _ in results(path, D, after=1)] == [2]


def test_no_store_has_no_results(tmp_path: Path) -> None:
    assert list(results(tmp_path / "none.sqlite", D)) == []
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    assert list(results(tmp_path / "empty.sqlite", D)) == []
