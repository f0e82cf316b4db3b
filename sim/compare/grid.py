"""Grid of runs: read it from a TOML file, run every declared run in a process, and keep each result in a file.

A result's file is named by a digest of the run's declaration. So after an interruption, or with a longer grid, only
runs without a file are run. Each run has a process of its own, so that a crash does not affect other runs; all end with
this process.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from aggregator.presets import settings_of
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.io.files import write_atomic
from seedmask.io.process import die_with_parent
from sim import datasets
from sim.compare import schemes
from sim.compare.harness import Declaration

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGED: Final = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Common:
    """Settings that all runs share, from the top of the file."""

    dataset: str = "fashion-mnist"
    devices: int = 10
    images: int = 2000
    epochs: int = 3
    batch: int = 128
    eval_images: int = 0
    targets: list = field(default_factory=lambda: [80, 82, 83, 84, 85, 86])  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        for name in ("devices", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, found {getattr(self, name)}")
        for name in ("images", "eval_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0, found {getattr(self, name)}")
        if self.dataset not in datasets.names():
            raise ValueError(f"dataset {self.dataset!r} is unknown; there are {', '.join(datasets.names())}")
        if not all(isinstance(target, (int, float)) and 0 < target < 100 for target in self.targets):
            raise ValueError(f"targets are percentages, found {self.targets}")


@dataclass(frozen=True)
class Cell:
    """Table [[runs]] or [[tuning]]: every scheme on every model and split with every seed, for `rounds` rounds."""

    schemes: list  # type: ignore[type-arg]
    models: list  # type: ignore[type-arg]
    splits: list  # type: ignore[type-arg]
    seeds: list  # type: ignore[type-arg]
    rounds: int

    def __post_init__(self) -> None:
        for name, kind in (("schemes", str), ("models", str), ("splits", str), ("seeds", int)):
            values = getattr(self, name)
            if not values or not all(type(value) is kind for value in values):
                raise ValueError(f"{name} is a list of {'texts' if kind is str else 'integers'}, found {values!r}")
        if self.rounds < 1 or not all(0 <= seed < 1 << 32 for seed in self.seeds):
            raise ValueError(f"rounds is at least 1 and seeds 0 .. 2**32 - 1, found {self.rounds} and {self.seeds}")


@dataclass(frozen=True)
class Grid:
    """Grid, as declared in a whole file.

    kinds, fixed: kind and settings of each scheme. candidates: settings that tuning chooses from, by scheme. tuned:
    settings that it chose, by scheme and `place`. cells, tuning: tables [[runs]] and [[tuning]].
    """

    name: str
    common: Common
    kinds: Mapping[str, str]
    fixed: Mapping[str, Mapping[str, Any]]
    candidates: Mapping[str, Sequence[Mapping[str, Any]]]
    tuned: Mapping[str, Mapping[str, Mapping[str, Any]]]
    cells: Sequence[Cell]
    tuning: Sequence[Cell]

    def runs(self) -> list[Declaration]:
        """Return every declared run once, in order of their seeds."""
        found = {}
        for cell in self.cells:
            for seed in cell.seeds:
                for model in cell.models:
                    for split in cell.splits:
                        for scheme in cell.schemes:
                            run = self._declare(scheme, self._chosen(scheme, model, split), model, split, seed, cell)
                            found[run.digest()] = run
        return sorted(found.values(), key=lambda run: run.seed)

    def tuning_runs(self) -> list[Declaration]:
        """Return the runs of `--tune`: every candidate of every scheme, tested on held-out training data."""
        if not self.tuning:
            raise UserError(f"grid {self.name} has no [[tuning]]")
        return [
            replace(self._declare(scheme, candidate, model, split, seed, cell), validation=True)
            for cell in self.tuning
            for scheme in cell.schemes
            for candidate in self.candidates.get(scheme, ())
            for model in cell.models
            for split in cell.splits
            for seed in cell.seeds
        ]

    def _chosen(self, scheme: str, model: str, split: str) -> Mapping[str, Any]:
        first = self.candidates[scheme][0] if self.candidates.get(scheme) else {}
        return self.tuned.get(scheme, {}).get(place(model, split), first)

    def _declare(
        self, scheme: str, chosen: Mapping[str, Any], model: str, split: str, seed: int, cell: Cell
    ) -> Declaration:
        common = {key: value for key, value in asdict(self.common).items() if key != "targets"}
        said = {**self.fixed[scheme], **chosen}
        if self.kinds[scheme] == "masks":
            said = _spelled_out(said, self.common.epochs, f"grid {self.name}: schemes.{scheme}")
        values = tuple(sorted(said.items()))
        return Declaration(
            scheme=scheme,
            kind=self.kinds[scheme],
            settings=values,
            model=model,
            split=split,
            seed=seed,
            rounds=cell.rounds,
            **common,
        )


def _spelled_out(said: Mapping[str, Any], epochs: int, where: str) -> dict[str, Any]:
    """Return all settings of a mask scheme, also those of its preset, so that a changed preset makes another run."""
    rest = dict(said)
    preset, formula = str(rest.pop("preset", "default")), bool(rest.pop("formula", False))
    work, learning = settings_of(preset, {"epochs": epochs, **rest}, where)
    return {**asdict(work), **asdict(learning), "formula": formula}


def place(model: str, split: str) -> str:
    """Return the key under which [tuned] has the settings for a model and a split."""
    return f"{model} {split}"


def load(name: str) -> Grid:
    """Return a packaged grid by its name, or a grid from the path of a file. Raises UserError."""
    known = sorted(path.stem for path in PACKAGED.glob("*.toml"))
    path = PACKAGED / f"{name}.toml" if name in known else Path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"no grid {name!r} ({error.strerror}); packaged are {', '.join(known)}; or name a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    return build(path.stem, values, str(path))


def build(name: str, values: Mapping[str, Any], where: str) -> Grid:
    """Return the grid of a parsed TOML file; `where` names the file. Raises UserError, which names the wrong key."""
    values = dict(values)
    tables, tuned = values.pop("schemes", {}), values.pop("tuned", {})
    cells, trials = values.pop("runs", []), values.pop("tuning", [])
    common = settings.build(Common, values, where, Path())
    if (
        not isinstance(tables, dict)
        or not isinstance(tuned, dict)
        or not isinstance(cells, list)
        or not cells
        or not isinstance(trials, list)
    ):
        raise UserError(f"{where}: [schemes.NAME] tables and at least one [[runs]] are expected")
    kinds, fixed, candidates = {}, {}, {}
    for scheme, table in tables.items():
        spot = f"{where}: schemes.{scheme}"
        if not isinstance(table, dict):
            raise UserError(f"{spot} is a table, found {table!r}")
        rest = dict(table)
        kinds[scheme] = rest.pop("kind", scheme)
        candidates[scheme] = rest.pop("candidates", [])
        if kinds[scheme] not in schemes.KINDS:
            raise UserError(f"{spot}: kind {kinds[scheme]!r} is unknown; there are {', '.join(schemes.KINDS)}")
        chosen = [*candidates[scheme], *tuned.get(scheme, {}).values()]
        if not all(isinstance(choice, dict) for choice in chosen):
            raise UserError(f"{spot}: candidates, and what is tuned, are tables of settings")
        for key in {key for choice in (rest, *chosen) for key in choice}:
            if kinds[scheme] != "masks" and key not in schemes.KEYS[kinds[scheme]]:
                raise UserError(f"{spot}: unknown key {key!r}; known: {', '.join(schemes.KEYS[kinds[scheme]])}")
        fixed[scheme] = rest
    built = [settings_of_cell(cell, f"{where}: runs") for cell in cells]
    tuning = [settings_of_cell(cell, f"{where}: tuning") for cell in trials]
    for cell in (*built, *tuning):
        for scheme in cell.schemes:
            if scheme not in kinds:
                raise UserError(f"{where}: runs name a scheme {scheme!r}; there are {', '.join(kinds)}")
    return Grid(name, common, kinds, fixed, candidates, tuned, built, tuning)


def settings_of_cell(value: Any, where: str) -> Cell:
    """Return one parsed table [[runs]] or [[tuning]]. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is a table, found {value!r}")
    return settings.build(Cell, value, where, Path())


def best(grid: Grid, results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return [tuned] from the results of tuning runs: for each scheme and place, the candidate with the best accuracy.

    Accuracy is the mean over seeds and over the last third of the rounds, because a single round is noisy when devices
    have few classes.
    """
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        said = result["declaration"]
        rows = result["rows"]
        tail = [row["accuracy_mean"] for row in rows[-max(1, len(rows) // 3) :]]
        at = (said["scheme"], place(said["model"], said["split"]))
        scores.setdefault(at, {}).setdefault(json.dumps(said["settings"], sort_keys=True), []).extend(tail)
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for (scheme, where), by_choice in scores.items():
        chosen = json.loads(max(by_choice, key=lambda choice: sum(by_choice[choice]) / len(by_choice[choice])))
        fixed = grid.fixed[scheme]
        out.setdefault(scheme, {})[where] = {key: value for key, value in chosen.items() if key not in fixed}
    return out


def toml(tuned: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the tables [tuned.*] as TOML."""
    lines = []
    for scheme, places in tuned.items():
        lines.append(f"[tuned.{scheme}]")
        for where, chosen in places.items():
            pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in chosen.items())
            lines.append(f"{json.dumps(where)} = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


# --- running it ---


@dataclass(frozen=True)
class Progress:
    """Progress of a grid. `left`: seconds, estimated from rounds of the same kind; None: unknown. `now`: a text."""

    runs_done: int
    runs: int
    rounds_done: int
    rounds: int
    left: float | None
    now: str


Say = Callable[[Progress], None]


class FailedError(Exception):
    """Error: a run ended without a result; the text says which run, and why."""


def result_path(out: Path, run: Declaration) -> Path:
    """Return the path of a run's result."""
    return out / "runs" / f"{run.digest()}.json"


def stored(out: Path, run: Declaration) -> dict[str, Any] | None:
    """Return the stored result of a run; None if there is none, or none that can be read."""
    try:
        value: dict[str, Any] = json.loads(result_path(out, run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and len(value.get("rows", ())) == run.rounds else None


def _child(run: Declaration, out: Path, data: Path | None, runtime: str, threads: int, told: Any) -> None:
    from sim.compare.harness import run as do

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    try:
        value = do(run, datasets.load(run.dataset, data), runtime, threads, lambda number: told.put((run, number, "")))
        write_atomic(result_path(out, run), (json.dumps(value, indent=1) + "\n").encode())
        told.put((run, run.rounds + 1, ""))
    except Exception as error:
        told.put((run, -1, f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None


def work(
    runs: Sequence[Declaration],
    out: Path,
    data: Path | None,
    runtime: str,
    threads: int,
    workers: int,
    say: Say,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run every run that has no result yet, `workers` at a time. Raises FailedError for the first one that fails.

    An exception or Ctrl-C also ends the runs under way; results of finished runs are kept.
    """
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    waiting = [run for run in runs if stored(out, run) is None]
    kept = set(runs) - set(waiting)
    state = {run: run.rounds for run in kept}
    pace = _Pace([value for run in runs if (value := stored(out, run)) is not None])
    alive: dict[Declaration, Any] = {}
    since: dict[Declaration, float] = {}

    def report(run: Declaration | None) -> None:
        left = [(other, other.rounds - state.get(other, 0)) for other in runs]
        now = (
            "" if run is None else f"{run.scheme}, {run.model}, {run.split}, seed {run.seed}, round {state.get(run, 0)}"
        )
        seconds = pace.seconds(left, workers)
        say(Progress(len(kept), len(runs), sum(state.values()), sum(other.rounds for other in runs), seconds, now))

    report(None)
    try:
        while waiting or alive:
            while waiting and len(alive) < workers:
                run = waiting.pop(0)
                process = context.Process(target=_child, args=(run, out, data, runtime, threads, told), daemon=True)
                process.start()
                alive[run], since[run] = process, clock()
            try:
                run, number, failure = told.get(timeout=0.5)
            except queue.Empty:
                for run, process in alive.items():
                    if process.exitcode is not None:
                        raise FailedError(f"{_title(run)}: its process ended with {process.exitcode}") from None
                continue
            if failure:
                raise FailedError(f"{_title(run)}: {failure}")
            if number > run.rounds:
                alive.pop(run).join()
                kept.add(run)
                report(run)
            else:
                state[run] = number
                pace.saw(run, clock() - since[run])
                since[run] = clock()
                report(run)
    finally:
        for process in alive.values():
            process.terminate()
        for process in alive.values():
            process.join()


def _title(run: Declaration) -> str:
    return f"{run.scheme} on {run.model}, {run.split}, seed {run.seed}"


class _Pace:
    """Estimate of seconds per round: by scheme and model, or for a new scheme by model, or else over all rounds."""

    def __init__(self, results: Sequence[Mapping[str, Any]]) -> None:
        self._seen: dict[tuple[str, str], list[float]] = {}
        for result in results:
            said = result["declaration"]
            self._add(said["scheme"], said["model"], result["seconds"] / said["rounds"])

    def _add(self, scheme: str, model: str, seconds: float) -> None:
        for key in ((scheme, model), ("", model), ("", "")):
            self._seen.setdefault(key, []).append(seconds)

    def saw(self, run: Declaration, seconds: float) -> None:
        self._add(run.scheme, run.model, seconds)

    def seconds(self, left: Sequence[tuple[Declaration, int]], workers: int) -> float | None:
        if not self._seen:
            return None
        total = 0.0
        for run, rounds in left:
            keys = ((run.scheme, run.model), ("", run.model), ("", ""))
            known = next(self._seen[key] for key in keys if key in self._seen)
            total += rounds * sum(known) / len(known)
        return total / workers
