"""Read a job's database for reports, beside a running aggregator: results, what devices said, the job's outcome."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aggregator.finished import finished
from aggregator.store import LAYOUT
from seedmask.codec import counts
from seedmask.errors import ProtocolError, UserError
from seedmask.mask import Theta
from seedmask.model import FinishedModel
from seedmask.spec import ModelSpec, from_json


@dataclass(frozen=True)
class Report:
    """One device's account of its training in one round: mean `loss` (nats) and `correct` guesses of the last epoch."""

    round: int
    device: str
    samples: int
    loss: float
    correct: int


@dataclass(frozen=True, eq=False)
class JobResult:
    """Results of a job: its `name`, the `spec` it trains, the last round asked for, and the `recent` thetas."""

    name: str
    spec: ModelSpec
    round: int
    recent: tuple[Theta, ...]

    def model(self) -> FinishedModel:
        """Return the finished model: the mean of the recent results, thresholded at one half."""
        return FinishedModel(self.spec, *finished(self.recent))


def _reading(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """Open the database for reading beside an aggregator. In a URI `?`, `#` and `%` would not be the path's own."""
    return contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30))


def job_result(path: Path, last: int = 1, until: int = 0) -> JobResult:
    """Return the results of the `last` closed rounds up to round `until`, 0 for the latest.

    May be read beside a running aggregator. Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}; an aggregator keeps its job in state_dir/job.sqlite")
    query = "SELECT number, counts FROM thetas WHERE number > 0 AND (? = 0 OR number <= ?) ORDER BY number DESC LIMIT ?"
    try:
        with _reading(path) as db:
            if db.execute("PRAGMA user_version").fetchone()[0] != LAYOUT:
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
    return JobResult(name, spec, rows[0][0], recent)


def results(path: Path, d: int, after: int = 0, e: int = 0) -> Iterator[tuple[dict[str, Any], Theta]]:
    """Yield (record, theta) of each closed round above `after`, read beside a running aggregator; for reports.

    `d` and `e`: the model's masked weights and exact values.
    """
    if not path.exists():
        return
    query = "SELECT record, counts FROM rounds JOIN thetas ON number = round WHERE round > ? ORDER BY round"
    with _reading(path) as db:
        try:
            rows = db.execute(query, (after,)).fetchall()
        except sqlite3.OperationalError:  # the aggregator is about to make its tables; the caller asks again
            return
    for record, result in rows:
        yield json.loads(record), counts.decode(result, d, e)


def reports(path: Path) -> list[Report]:
    """Return every counted update of the closed rounds, in order of round and device; as `results` reads them."""
    query = (
        "SELECT round, device, samples, loss, correct FROM updates JOIN rounds USING (round)"
        " WHERE record IS NOT NULL ORDER BY round, device"
    )
    with _reading(path) as db:
        rows = db.execute(query).fetchall()
    return [Report(round_, device, samples, loss / 1e6, correct) for round_, device, samples, loss, correct in rows]
