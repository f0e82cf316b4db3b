"""What must survive a crash: rounds and accepted updates, in SQLite.

Write-ahead log with full sync: when a method returns, the disk has it. That is what allows a receipt to be sent.
Masks of closed rounds are cleared, and what each but the last left to the next one; probabilities and figures stay.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from aggregator.posterior import Memory
from seedmask.codec import counts
from seedmask.errors import ProtocolError, UserError
from seedmask.io.files import hold
from seedmask.knobs import changes
from seedmask.mask import Theta
from seedmask.spec import ModelSpec, from_json
from seedmask.training import TrainingConfig
from seedmask.wire import Update, encode, expect

DEFAULT_TRAINING: Final = TrainingConfig()
_LAYOUT: Final = 3  # of the tables below
_SCHEMA: Final = f"""
PRAGMA user_version = {_LAYOUT};
CREATE TABLE IF NOT EXISTS job (name TEXT NOT NULL, model BLOB NOT NULL, spec BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, config TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, theta BLOB NOT NULL, selected TEXT NOT NULL, quorum INTEGER NOT NULL,
    delta BLOB NOT NULL, training TEXT NOT NULL, result BLOB, memory BLOB, record TEXT
);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER NOT NULL, device TEXT NOT NULL, transfer BLOB NOT NULL, frame BLOB, bytes INTEGER NOT NULL,
    samples INTEGER NOT NULL, loss INTEGER NOT NULL, correct INTEGER NOT NULL,
    PRIMARY KEY (round, device)
);
"""


@dataclass(frozen=True, eq=False)
class Resumed:
    """What the store knows: the latest `round` with the `theta` it began from or, if `closed`, what came of it.

    `updates`: (device, transfer, update). `blob`, `delta`: the probabilities that were published for it, `training`:
    what its devices were asked for. `base`: the theta of the round before that theta's; `memory`: what the last closed
    round left; `recent`: the last results.
    """

    round: int
    theta: Theta
    closed: bool
    selected: tuple[str, ...]
    quorum: int
    updates: list[tuple[str, bytes, Update]]
    blob: bytes
    delta: bytes
    training: TrainingConfig
    base: Theta | None
    memory: Memory | None
    recent: tuple[Theta, ...]


@dataclass(frozen=True)
class Report:
    """What one device said of its training in one round: its last epoch's mean `loss` (nats) and `correct` guesses."""

    round: int
    device: str
    samples: int
    loss: float
    correct: int


class Store:
    """One job's database."""

    def __init__(self, path: Path, job: str, model: bytes, spec: bytes, d: int, e: int = 0) -> None:
        """Open or create. Raises UserError if the file is another job's, another model's, or no database."""
        self._sizes = d, e
        try:
            # One aggregator per job writes its history; readers (results, below) are welcome beside it.
            self._lock = hold(path.with_suffix(".lock"), "another aggregator")
        except OSError as error:
            raise UserError(f"cannot use {path}: {error.strerror}") from None
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            known = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if known and self._db.execute("PRAGMA user_version").fetchone()[0] != _LAYOUT:
                raise UserError(f"{path} was made by another version of this program; choose another state_dir")
            self._db.executescript(_SCHEMA)
            row = self._db.execute("SELECT name, model FROM job").fetchone()
            if row is None:
                self._db.execute("INSERT INTO job VALUES (?, ?, ?)", (job, model, spec))
                row = (job, model)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} cannot be used as the job's database: {error}") from None
        if row != (job, model):
            raise UserError(
                f"{path} holds job {row[0]} of model {row[1].hex()[:12]}, the settings say job {job} of model "
                f"{model.hex()[:12]}; choose another state_dir or remove it"
            )

    def ran_with(self, tables: Mapping[str, Any]) -> list[str]:
        """Keep the job's settings, dataclasses by the name of their table; return what differs from the last run's.

        One line each, in people's form: "[rounds] deadline_s: 600 -> 300". Nothing at the job's first run.
        """
        before = {name: json.loads(text) for name, text in self._db.execute("SELECT name, config FROM settings")}
        rows = [(name, json.dumps(asdict(table))) for name, table in tables.items()]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)
        self._db.execute("COMMIT")
        return changes(before, tables)

    def opened(
        self,
        round_: int,
        theta: Theta,
        selected: tuple[str, ...],
        quorum: int,
        delta: bytes = b"",
        training: TrainingConfig = DEFAULT_TRAINING,
    ) -> None:
        """A round began; `delta`: how its theta was published beside the whole; `training`: what its devices do."""
        row = (round_, counts.encode(theta), json.dumps(selected), quorum, delta, json.dumps(asdict(training)))
        columns = "round, theta, selected, quorum, delta, training"
        self._db.execute(f"INSERT INTO rounds ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)

    def widened(self, round_: int, selected: tuple[str, ...]) -> None:
        """The open round asks more devices."""
        self._db.execute("UPDATE rounds SET selected = ? WHERE round = ?", (json.dumps(selected), round_))

    def counted(self, device: str, transfer: bytes, update: Update) -> None:
        """An update of `device` was accepted. sqlite3.IntegrityError if one of this round already was."""
        frame = encode(update)
        row = (
            update.round,
            device,
            transfer,
            frame,
            len(frame),
            update.samples,
            update.loss,
            update.correct,
        )
        self._db.execute("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def closed(
        self, round_: int, theta: Theta, record: dict[str, Any], memory: Memory | None = None, keep: bool = False
    ) -> None:
        """A round ended. Its masks are forgotten, unless to `keep` until the next one ends, for a relay.

        So is what the rounds before it left, masks in their relays included.
        """
        self._db.execute("BEGIN")
        self._db.execute(
            "UPDATE rounds SET result = ?, record = ?, memory = ? WHERE round = ?",
            (counts.encode(theta), json.dumps(record), None if memory is None else memory.to_bytes(), round_),
        )
        self._db.execute("UPDATE rounds SET memory = NULL WHERE round < ?", (round_,))
        self._db.execute(
            "UPDATE rounds SET delta = x'' WHERE round < ?", (round_,)
        )  # this round's is yet to be retired
        self._db.execute("UPDATE updates SET frame = NULL WHERE round < ?", (round_ + (not keep),))
        self._db.execute("COMMIT")

    def figures(self, round_: int) -> dict[str, Any]:
        """What the updates of a round add up to: their number, bytes, examples, mean loss (nats), training accuracy."""
        n, size, samples, loss, correct = self._db.execute(
            "SELECT COUNT(*), SUM(bytes), SUM(samples), SUM(1.0 * loss * samples), SUM(correct) FROM updates"
            " WHERE round = ?",
            (round_,),
        ).fetchone()
        if not n:
            return {"updates": 0, "update_bytes": 0, "samples": 0, "train_loss": None, "train_accuracy": None}
        return {
            "updates": n,
            "update_bytes": size,
            "samples": samples,
            "train_loss": round(loss / samples / 1e6, 6),
            "train_accuracy": round(correct / samples, 6),
        }

    def records(self) -> list[dict[str, Any]]:
        """One record per closed round, in order."""
        rows = self._db.execute("SELECT record FROM rounds WHERE record IS NOT NULL ORDER BY round")
        return [json.loads(row[0]) for row in rows]

    def last_transfers(self) -> dict[str, bytes]:
        """Each device's latest accepted transfer, of any round."""
        return dict(self._db.execute("SELECT device, transfer FROM updates ORDER BY round").fetchall())

    def resume(self, average: int = 1) -> Resumed | None:
        """Where the job stands, with the last `average` results; None if no round ever began."""
        row = self._db.execute(
            "SELECT round, theta, delta, training, result, selected, quorum FROM rounds ORDER BY round DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        round_, theta, delta, training, result, selected, quorum = row
        wanted = "SELECT device, transfer, frame FROM updates WHERE round = ? ORDER BY device"
        rows = self._db.execute(wanted, (round_,))
        updates = [(device, transfer, expect(frame, Update)) for device, transfer, frame in rows if frame is not None]
        # Of an open round the base is what the round before began with, of a closed one what itself began with.
        began = self._db.execute(
            "SELECT theta FROM rounds WHERE round <= ? ORDER BY round DESC LIMIT 1",
            (round_ if result is not None else round_ - 1,),
        ).fetchone()
        closed = self._db.execute(
            "SELECT result, memory FROM rounds WHERE result IS NOT NULL ORDER BY round DESC LIMIT ?", (average,)
        ).fetchall()
        memory = closed[0][1] if closed else None
        return Resumed(
            round=round_,
            theta=counts.decode(theta if result is None else result, *self._sizes),
            closed=result is not None,
            selected=tuple(json.loads(selected)),
            quorum=quorum,
            updates=updates,
            blob=theta,
            delta=delta,
            training=TrainingConfig(**json.loads(training)),
            base=None if began is None else counts.decode(began[0], *self._sizes),
            memory=None if memory is None else Memory.from_bytes(memory, self._sizes[0]),
            recent=tuple(counts.decode(blob, *self._sizes) for blob, _ in reversed(closed)),
        )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
        self._lock.close()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job came to: its `name`, the `spec` it trains, the last round asked for, and the `recent` results."""

    name: str
    spec: ModelSpec
    round: int
    recent: tuple[Theta, ...]


def _reading(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """The database for reading beside an aggregator. In a URI `?`, `#` and `%` would not be the path's own."""
    return contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30))


def outcome(path: Path, last: int = 1, until: int = 0) -> Outcome:
    """The results of the `last` closed rounds up to round `until`, 0 for the latest; read beside a running aggregator.

    Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}; an aggregator keeps its job in state_dir/job.sqlite")
    query = (
        "SELECT round, result FROM rounds WHERE result IS NOT NULL AND (? = 0 OR round <= ?) ORDER BY round DESC"
        " LIMIT ?"
    )
    try:
        with _reading(path) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != _LAYOUT:
                raise UserError(f"{path} was made by another version of this program")
            name, blob = db.execute("SELECT name, spec FROM job").fetchone()
            rows = db.execute(query, (until, until, last)).fetchall()
        spec = from_json(blob)
        recent = tuple(counts.decode(result, spec.d, spec.e) for _, result in reversed(rows))
    except (sqlite3.DatabaseError, ProtocolError, TypeError) as error:
        raise UserError(f"{path} is no job's database, or a damaged one: {error}") from None
    if not rows or (until and rows[0][0] != until):
        known = f"round {rows[0][0]} is the latest one that closed" if rows else "none has closed yet"
        raise UserError(f"job {name}: {f'round {until} is not there' if until else 'no model'}; {known}")
    return Outcome(name, spec, rows[0][0], recent)


def results(path: Path, d: int, after: int = 0, e: int = 0) -> Iterator[tuple[dict[str, Any], Theta]]:
    """(record, theta) of each closed round above `after`, read beside a running aggregator; for reports.

    `d` and `e`: the model's masked weights and exact values.
    """
    if not path.exists():
        return
    query = "SELECT record, result FROM rounds WHERE record IS NOT NULL AND round > ? ORDER BY round"
    with _reading(path) as db:
        try:
            rows = db.execute(query, (after,)).fetchall()
        except sqlite3.OperationalError:  # the aggregator is about to make its tables; the caller asks again
            return
    for record, result in rows:
        yield json.loads(record), counts.decode(result, d, e)


def reports(path: Path) -> list[Report]:
    """Every counted update of the closed rounds, in order of round and device; as `results`, beside an aggregator."""
    query = (
        "SELECT round, device, samples, loss, correct FROM updates JOIN rounds USING (round)"
        " WHERE record IS NOT NULL ORDER BY round, device"
    )
    with _reading(path) as db:
        rows = db.execute(query).fetchall()
    return [Report(round_, device, samples, loss / 1e6, correct) for round_, device, samples, loss, correct in rows]
