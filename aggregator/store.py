"""What must survive a crash: rounds and accepted updates, in SQLite.

Write-ahead log with full sync: when a method returns, the disk has it. That is what allows a receipt to be sent.
Masks of closed rounds are cleared, and what each but the last left to the next one; probabilities and figures stay.
Everything is kept once and as the bytes that were published or came: a round's theta is the result of the one before,
an update is the frame that its device sent. Readers for reports are in `aggregator.history`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from seedmask.codec import counts
from seedmask.errors import UserError
from seedmask.io.files import acquire_lock
from seedmask.knobs import changes
from seedmask.mask import Theta
from seedmask.training import TrainingConfig
from seedmask.wire import Update, expect

DEFAULT_TRAINING: Final = TrainingConfig()
LAYOUT: Final = 5
"""Of the tables below."""
_SCHEMA: Final = f"""
PRAGMA user_version = {LAYOUT};
CREATE TABLE IF NOT EXISTS job (name TEXT NOT NULL, model BLOB NOT NULL, spec BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, config TEXT NOT NULL);
-- theta number 0 is what the job began with, number n what came of round n and what round n + 1 begins with
CREATE TABLE IF NOT EXISTS thetas (number INTEGER PRIMARY KEY, counts BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, selected TEXT NOT NULL, quorum INTEGER NOT NULL, delta BLOB NOT NULL,
    training TEXT NOT NULL, memory BLOB, rule TEXT, record TEXT
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

    `blob`: theta as stored. `updates`: (device, transfer, update). `published`, `delta`: the probabilities that were
    published for it, `training` what its devices were asked for. `base`: the theta before that one; `memory`: what
    `rule` left in the last closed round, b"" for nothing; `recent`: the last results.
    """

    round: int
    theta: Theta
    closed: bool
    selected: tuple[str, ...]
    quorum: int
    updates: list[tuple[str, bytes, Update]]
    blob: bytes
    published: bytes
    delta: bytes
    training: TrainingConfig
    base: Theta | None
    memory: bytes
    rule: str
    recent: tuple[Theta, ...]


class Store:
    """One job's database."""

    def __init__(self, path: Path, job: str, model: bytes, spec: bytes, d: int, e: int = 0) -> None:
        """Open or create. Raises UserError if the file is another job's, another model's, or no database."""
        self._sizes = d, e
        try:
            # One aggregator per job writes its history; readers (aggregator.history) are welcome beside it.
            self._lock = acquire_lock(path.with_suffix(".lock"), "another aggregator")
        except OSError as error:
            raise UserError(f"cannot use {path}: {error.strerror}") from None
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            known = self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if known and self._db.execute("PRAGMA user_version").fetchone()[0] != LAYOUT:
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
        with self._at_once():
            self._db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)
        return changes(before, tables)

    def opened(
        self,
        round_: int,
        blob: bytes,
        selected: tuple[str, ...],
        quorum: int,
        delta: bytes = b"",
        training: TrainingConfig = DEFAULT_TRAINING,
    ) -> None:
        """Store that a round began with the theta in `blob` (codec `counts`): round 1 stores it, others have it stored.

        `delta`: how theta was published beside the whole; `training`: what the round's devices are to do. Raises
        sqlite3.IntegrityError if the round began before, or does not begin with what the one before left.
        """
        with self._at_once():
            if round_ == 1:
                self._db.execute("INSERT INTO thetas VALUES (0, ?)", (blob,))
            elif self._theta(round_ - 1) != blob:
                raise sqlite3.IntegrityError(f"round {round_} begins with what round {round_ - 1} left")
            row = (round_, json.dumps(selected), quorum, delta, json.dumps(asdict(training)))
            self._db.execute(
                "INSERT INTO rounds (round, selected, quorum, delta, training) VALUES (?, ?, ?, ?, ?)", row
            )

    def widened(self, round_: int, selected: tuple[str, ...]) -> None:
        """The open round asks more devices."""
        self._db.execute("UPDATE rounds SET selected = ? WHERE round = ?", (json.dumps(selected), round_))

    def counted(self, device: str, transfer: bytes, update: Update, frame: bytes) -> None:
        """Store an accepted `update` of `device` as the `frame` that came.

        Raises sqlite3.IntegrityError if one of the same round is stored.
        """
        figures = (update.samples, update.loss, update.correct)
        row = (update.round, device, transfer, frame, len(frame), *figures)
        self._db.execute("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def closed(
        self,
        round_: int,
        blob: bytes,
        record: dict[str, Any],
        memory: bytes = b"",
        keep: bool = False,
        rule: str = "fedpm",
    ) -> None:
        """Store that a round ended with the theta in `blob` (codec `counts`), and what `rule` remembers of it.

        Its masks are forgotten, unless to `keep` until the next one ends, for a relay. So is what the rounds before it
        left, masks in their relays included.
        """
        with self._at_once():
            self._db.execute("INSERT INTO thetas VALUES (?, ?)", (round_, blob))
            self._db.execute(
                "UPDATE rounds SET record = ?, memory = ?, rule = ? WHERE round = ?",
                (json.dumps(record), memory or None, rule, round_),
            )
            # This round's delta is yet to be retired from the broker.
            self._db.execute("UPDATE rounds SET memory = NULL, delta = x'' WHERE round < ?", (round_,))
            self._db.execute("UPDATE updates SET frame = NULL WHERE round < ?", (round_ + (not keep),))

    @contextlib.contextmanager
    def _at_once(self) -> Iterator[None]:
        """One transaction: all of it or, where anything raises, nothing."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _theta(self, number: int) -> bytes | None:
        row = self._db.execute("SELECT counts FROM thetas WHERE number = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

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
            "SELECT round, delta, training, record IS NOT NULL, selected, quorum FROM rounds"
            " ORDER BY round DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        round_, delta, training, closed, selected, quorum = row
        wanted = "SELECT device, transfer, frame FROM updates WHERE round = ? ORDER BY device"
        rows = self._db.execute(wanted, (round_,))
        updates = [(device, transfer, expect(frame, Update)) for device, transfer, frame in rows if frame is not None]
        results = round_ if closed else round_ - 1  # rounds that have closed, and the number of theta
        began = min(results - 1, results - average + 1)
        stored = dict(
            self._db.execute("SELECT number, counts FROM thetas WHERE number >= ?", (max(0, began),)).fetchall()
        )
        thetas = {number: counts.decode(blob, *self._sizes) for number, blob in stored.items()}
        left = self._db.execute("SELECT memory, rule FROM rounds WHERE round = ?", (results,)).fetchone()
        memory, rule = left or (None, None)
        return Resumed(
            round=round_,
            theta=thetas[results],
            closed=bool(closed),
            selected=tuple(json.loads(selected)),
            quorum=quorum,
            updates=updates,
            blob=stored[results],
            published=self._theta(round_ - 1) or b"",
            delta=delta,
            training=TrainingConfig(**json.loads(training)),
            base=thetas.get(results - 1),
            memory=bytes(memory or b""),
            rule=rule or "",
            recent=tuple(thetas[number] for number in range(max(1, results - average + 1), results + 1)),
        )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
        self._lock.close()
