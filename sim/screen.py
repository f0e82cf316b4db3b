"""Screen of a running simulation: a table with a row per round, and a line that says what the fleet waits for.

On a terminal both are redrawn in place. In a file or a pipe there is one plain line per round, and the other line goes
to standard error. Everything fits 80 columns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.report import RoundRecord, figure

_HEAD = ("round", "upd", "sampled", "thresh", "mean", "loss", "kB/upd", "bit/par", "time")
_WIDTHS = (5, 4, 7, 6, 6, 6, 7, 7, 9)  # of the columns of a plain line
_SAY_SECONDS = 8.0  # without a new row for so long, a plain screen says what the fleet waits for


class Screen:
    """Display of a running simulation, and a context manager; leaving it on a terminal prints the whole table."""

    def __init__(
        self,
        rounds: int,
        parameters: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a display of `rounds`; `parameters`: the model's number of weights; `clock`: in seconds."""
        self._parameters, self._clock = parameters, clock
        self._console = console or Console()
        self._rows: list[tuple[str, ...]] = []
        self._progress = Progress(
            TextColumn("round"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task: TaskID = self._progress.add_task("rounds", total=rounds)
        self._waiting = self._said = "starting"
        self._quiet_until = self._clock() + _SAY_SECONDS
        self._live = Live(self._picture(), console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.start()
        else:
            _print(_HEAD)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(self._table(self._rows))

    def row(self, row: RoundRecord) -> None:
        """Show a round that has ended."""
        size = row.update_bytes / max(row.updates, 1)
        cells = (
            str(row.round),
            str(row.updates),
            *(figure(row.metric, value) for value in (row.score.sampled, row.score.thresholded, row.score.mean)),
            "-" if row.train_loss is None else f"{row.train_loss:.3f}",
            f"{size / 1000:.1f}",
            f"{8 * size / self._parameters:.3f}",
            f"{row.seconds:.1f} s",
        )
        self._rows.append(cells)
        self._progress.update(self._task, completed=row.round)
        if self._console.is_terminal:
            self._live.update(self._picture())
        else:
            _print(cells)
            self._quiet_until = self._clock() + _SAY_SECONDS

    def waiting(self, text: str) -> None:
        """Show what the fleet waits for."""
        self._waiting = text
        if self._console.is_terminal:
            self._live.update(self._picture())
        elif text != self._said and self._clock() >= self._quiet_until:
            self._said, self._quiet_until = text, self._clock() + _SAY_SECONDS
            print(f"waiting: {text}", file=sys.stderr, flush=True)

    def _table(self, rows: list[tuple[str, ...]]) -> Table:
        table = Table(box=None, header_style="bold")
        for name in _HEAD:
            table.add_column(name, justify="right")
        for cells in rows:
            table.add_row(*cells)
        return table

    def _picture(self) -> Table:
        # Show the latest rows, as many as fit; the whole table is printed at the end.
        room = max(3, self._console.height - 7)
        picture = Table.grid()
        picture.add_row(self._table(self._rows[-room:]))
        picture.add_row(self._progress)
        picture.add_row(f"[dim]{escape(self._waiting)}[/dim]")
        return picture


def _print(cells: Sequence[str]) -> None:
    print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)), flush=True)
