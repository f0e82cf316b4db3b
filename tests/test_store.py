"""The aggregator's database: what it holds when a method returns is what a restart finds."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aggregator.history import Report, reports, results
from aggregator.settings import AggregationConfig, RoundsConfig
from aggregator.store import Store
from seedmask.chunks import transfer_id
from seedmask.codec import counts
from seedmask.errors import UserError
from seedmask.mask import Theta
from seedmask.training import TrainingConfig
from seedmask.wire import Update, basis, encode

JOB, MODEL, D = "fashion", bytes(range(32)), 60
THETA = Theta(np.arange(D, dtype=np.uint16), 100)
RESULT = Theta(np.arange(D, dtype=np.uint16)[::-1].copy(), 60)
BEGAN, CAME = counts.encode(THETA), counts.encode(RESULT)


def opened(path: Path, job: str = JOB, model: bytes = MODEL) -> Store:
    return Store(path, job, model, b"{}", D)


def update(device: str, round_: int = 1, loss: int = 500_000, samples: int = 100) -> Update:
    payloads = (b"mask of " + device.encode(), b"and another")
    return Update(round_, basis(JOB, MODEL, THETA.digest()), samples, loss, 80, 1, payloads)


def count(store: Store, *devices: str, **about: int) -> None:
    for device in devices:
        made = update(device, **about)
        store.counted(device, transfer_id(encode(made)), made, encode(made))


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
    store.opened(1, BEGAN, ("pi-1", "pi-2"), 2)
    count(store, "pi-2", "pi-1")
    store.close()
    again = opened(path)
    known = again.resume()
    assert known is not None
    assert (known.round, known.closed, known.selected, known.quorum) == (1, False, ("pi-1", "pi-2"), 2)
    assert known.theta.digest() == THETA.digest()
    both = [(device, update(device)) for device in ("pi-1", "pi-2")]
    assert known.updates == [(device, transfer_id(encode(u)), u) for device, u in both]
    assert again.last_transfers() == {device: transfer_id(encode(u)) for device, u in both}
    again.close()


def test_a_closed_round_comes_back_with_what_came_of_it_and_its_masks_until_the_next_closes(
    store: Store, path: Path
) -> None:
    store.opened(1, BEGAN, (), 1)
    count(store, "pi-1")
    store.closed(1, CAME, {"round": 1, "updates": 1}, keep=True)
    store.close()
    again = opened(path)
    known = again.resume()
    assert known is not None
    assert (known.round, known.closed) == (1, True)
    assert [(device, made) for device, _, made in known.updates] == [("pi-1", update("pi-1"))]  # for a relay
    assert known.theta.digest() == RESULT.digest()
    assert again.records() == [{"round": 1, "updates": 1}]
    assert set(again.last_transfers()) == {"pi-1"}  # a repeat of it is still a duplicate
    again.opened(2, CAME, (), 1, b"the masks of round 1")
    count(again, "pi-2", round_=2)
    again.closed(2, BEGAN, {"round": 2, "updates": 1})
    again.opened(3, BEGAN, (), 1)
    again.closed(3, BEGAN, {"round": 3, "updates": 0})
    again.close()
    frames = sqlite3.connect(path).execute("SELECT frame FROM updates").fetchall()
    assert frames == [(None,), (None,)]  # the second at once, since it was not to be kept
    relayed = sqlite3.connect(path).execute("SELECT delta FROM rounds").fetchall()
    assert relayed == [(b"",)] * 3


def test_what_a_rounds_devices_were_asked_for_comes_back(store: Store) -> None:
    work = TrainingConfig(epochs=7, codec="rans", masks=3)
    store.opened(1, BEGAN, (), 1, training=work)
    known = store.resume()
    assert known is not None
    assert known.training == work


def test_the_latest_round_and_the_latest_transfer_count(store: Store) -> None:
    store.opened(1, BEGAN, (), 1)
    count(store, "pi-1", "pi-2")
    store.closed(1, CAME, {"round": 1})
    store.opened(2, CAME, (), 2)
    count(store, "pi-1", round_=2)
    known = store.resume()
    assert known is not None
    assert (known.round, known.closed, [u.round for _, _, u in known.updates]) == (2, False, [2])
    assert store.last_transfers() == {
        "pi-1": transfer_id(encode(update("pi-1", 2))),
        "pi-2": transfer_id(encode(update("pi-2"))),
    }


def test_one_device_cannot_be_counted_twice_in_a_round(store: Store) -> None:
    store.opened(1, BEGAN, (), 2)
    count(store, "pi-1")
    for loss in (500_000, 1):
        with pytest.raises(sqlite3.IntegrityError):
            count(store, "pi-1", loss=loss)
    known = store.resume()
    assert known is not None
    assert [u.loss for _, _, u in known.updates] == [500_000]


def test_what_a_round_leaves_comes_back_with_its_result_and_replaces_what_the_one_before_left(
    store: Store, path: Path
) -> None:
    first, second = b"of the first", b"of the second"
    for round_, memory, began in ((1, first, BEGAN), (2, second, CAME)):
        store.opened(round_, began, (), 1)
        store.closed(round_, CAME, {"round": round_}, memory, rule="median")
    store.opened(3, CAME, (), 1, b"a delta")
    store.close()
    again = opened(path)
    known = again.resume()
    assert known is not None
    assert (known.memory, known.rule) == (second, "median")
    assert (known.delta, known.closed) == (b"a delta", False)
    again.close()
    kept = sqlite3.connect(path).execute("SELECT round FROM rounds WHERE memory IS NOT NULL").fetchall()
    assert kept == [(2,)]


def test_the_base_of_a_round_is_what_its_devices_held_before(store: Store) -> None:
    store.opened(1, BEGAN, (), 1)
    assert (known := store.resume()) is not None
    assert known.base is None
    store.closed(1, CAME, {"round": 1})
    assert (known := store.resume()) is not None
    assert known.base is not None
    assert known.base.digest() == THETA.digest()  # closed: the next round's base
    store.opened(2, CAME, (), 1)
    assert (known := store.resume()) is not None
    assert known.base is not None
    assert known.base.digest() == THETA.digest()  # open: this round's


def test_the_last_results_come_back_oldest_first(store: Store) -> None:
    made = [Theta(np.full(D, level, np.uint16), 9) for level in range(4)]
    began = BEGAN
    for round_, theta in enumerate(made, 1):
        store.opened(round_, began, (), 1)
        began = counts.encode(theta)
        store.closed(round_, began, {"round": round_})
    for n in (1, 3, 9):
        assert (known := store.resume(n)) is not None
        assert [theta.digest() for theta in known.recent] == [theta.digest() for theta in made[-n:]]


def test_a_database_of_another_layout_is_refused(path: Path) -> None:
    opened(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(UserError, match="was made by another version of this program"):
        opened(path)


def test_a_round_cannot_begin_twice(store: Store) -> None:
    store.opened(1, BEGAN, (), 2)
    with pytest.raises(sqlite3.IntegrityError):
        store.opened(1, CAME, (), 2)
    assert (known := store.resume()) is not None
    assert known.blob == BEGAN
    store.closed(1, CAME, {"round": 1})
    store.opened(2, CAME, (), 2)
    with pytest.raises(sqlite3.IntegrityError):
        store.opened(2, CAME, (), 2)


def test_a_round_begins_with_what_the_one_before_left(store: Store) -> None:
    store.opened(1, BEGAN, (), 2)
    store.closed(1, CAME, {"round": 1})
    with pytest.raises(sqlite3.IntegrityError, match="round 2 begins with what round 1 left"):
        store.opened(2, BEGAN, (), 2)
    assert (known := store.resume()) is not None
    assert (known.round, known.closed) == (1, True)  # and nothing of the attempt is stored
    store.opened(2, CAME, (), 2)


def test_each_theta_is_stored_once_as_it_was_published_and_each_update_as_it_came(store: Store, path: Path) -> None:
    store.opened(1, BEGAN, (), 1)
    came = encode(update("pi-1")) + b"and what a decoder would have refused"
    store.counted("pi-1", transfer_id(came), update("pi-1"), came)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT frame, bytes FROM updates").fetchall() == [(came, len(came))]
    store.closed(1, CAME, {"round": 1})
    assert (known := store.resume()) is not None
    assert (known.published, known.blob) == (BEGAN, CAME)  # the one is to be retired, the other to be published next
    store.opened(2, CAME, (), 1)
    assert (known := store.resume()) is not None
    assert (known.published, known.blob) == (CAME, CAME)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT number, counts FROM thetas ORDER BY number").fetchall() == [(0, BEGAN), (1, CAME)]


def test_figures_weigh_devices_by_their_examples(store: Store) -> None:
    store.opened(1, BEGAN, (), 2)
    one, two = update("pi-1", loss=1_000_000, samples=100), update("pi-2", loss=200_000, samples=300)
    count(store, "pi-1", loss=1_000_000, samples=100)
    count(store, "pi-2", loss=200_000, samples=300)
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
    store.opened(1, BEGAN, (), 1)
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
    for round_, began in ((1, BEGAN), (2, CAME)):
        store.opened(round_, began, (), 1)
        store.closed(round_, CAME, {"round": round_})
    store.opened(3, CAME, (), 1)
    assert [(record["round"], theta.digest()) for record, theta in results(path, D)] == [
        (1, RESULT.digest()),
        (2, RESULT.digest()),
    ]
    assert [record["round"] for record, _ in results(path, D, after=1)] == [2]


def test_reports_are_those_of_closed_rounds(store: Store, path: Path) -> None:
    store.opened(1, BEGAN, (), 2)
    count(store, "pi-2", loss=250_000, samples=90)
    count(store, "pi-1")
    assert reports(path) == []
    store.closed(1, CAME, {"round": 1})
    store.opened(2, CAME, (), 2)
    count(store, "pi-1", round_=2)
    assert reports(path) == [Report(1, "pi-1", 100, 0.5, 80), Report(1, "pi-2", 90, 0.25, 80)]


def test_a_path_may_have_what_means_something_in_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "run #1 100%41?mode=rwc" / "job.sqlite"
    Store(path, "fashion", bytes(32), b"spec", D).close()
    assert list(results(path, D)) == []
    assert reports(path) == []
    assert sorted(tmp_path.iterdir()) == [path.parent]


def test_no_store_has_no_results(tmp_path: Path) -> None:
    assert list(results(tmp_path / "none.sqlite", D)) == []
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    assert list(results(tmp_path / "empty.sqlite", D)) == []


def test_what_changed_since_the_last_run_is_said_once(store: Store, path: Path) -> None:
    first = {"rounds": RoundsConfig(), "training": TrainingConfig(), "aggregation": AggregationConfig(clamp=0.002)}
    assert store.ran_with(first) == []
    store.close()
    again = {**first, "rounds": RoundsConfig(deadline_s=300), "training": TrainingConfig(codec="rans", kl=3)}
    said = ["[rounds] deadline_s: 600 -> 300", '[training] codec: "hmrc" -> "rans"', "[training] kl: 0 -> 3"]
    with contextlib.closing(opened(path)) as known:
        assert known.ran_with(again) == said
        assert known.ran_with(again) == []
