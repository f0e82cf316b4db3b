"""`seedmask compare`: run a declared grid of runs, continue an interrupted one, and write a report."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_client.runtimes import names
from seedmask.errors import UserError
from seedmask.io.commands import Command
from seedmask.io.files import write_atomic
from seedmask.io.process import sigterm_interrupts
from sim.compare import grid as grids
from sim.compare import report
from sim.compare.grid import Progress, Say

EPILOG = """\
examples:
    seedmask compare                                 the packaged grid `quick`
    seedmask compare --grid mine.toml --out out/mine
    seedmask compare --grid mine.toml --tune         choose learning rates of the baselines, on held-out images

Writes OUT/report.md, a plot for each model and split, and OUT/summary.json. Every finished run is kept in OUT/runs: if
you interrupt the command and start it again, finished runs are not repeated.

a grid is a TOML file:
    dataset = "fashion-mnist"     # or digits; with --data-dir: mnist, emnist-balanced, cifar-10 ...
    devices = 10
    images = 2000                 # training examples per device, 0: all; further keys: epochs, batch, eval_images
                                  # (test examples, 0: all), targets (accuracies in per cent, for the report)
    [schemes.frugal]              # a name of your choice
    kind = "masks"                # mask training, as on real devices
    preset = "thrifty"            # a preset, and any key of [training] and [aggregation] in run.toml
    kappa = 12.0
    formula = true                # also report bits by FedPM's formula

    [schemes.fedavg]              # kind is the name if it is not given; other methods and their keys:
    optimizer = "adam"            # fedavg, signsgd (server_rate), ef-signsgd, qsgd (levels, bucket), topk (keep),
    candidates = [{ rate = 0.001 }, { rate = 0.003 }]        # drive: optimizer ("adam", "sgd"), rate; fedmask: rate

    [[runs]]                      # every scheme on every model and split with every seed; may be repeated
    schemes = ["frugal", "fedavg"]
    models = ["mlp"]              # networks of the zoo: mlp, conv4s ...
    splits = ["iid", "classes:2"] # also c_max:<c>, dirichlet:<alpha>, sizes:<ratio>
    seeds = [1, 2, 3]
    rounds = 12

    [[tuning]]                    # the same keys as [[runs]]; --tune tries every candidate of these schemes and
                                  # prints the best as tables [tuned.*] to paste into the grid
    [tuned.fedavg]                # settings by model and split; without them the first candidate is used
    "mlp iid" = { rate = 0.001 }
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--grid", default="quick", metavar="NAME", help="name of a packaged grid, or a TOML file (quick)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/compare"), metavar="DIR", help="folder for all results (out/compare)"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the data set's files")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="runs at the same time, 0: one per core (0)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each run (1)")
    parser.add_argument(
        "--runtime", choices=names(), help="runtime of mask training (torch if installed, else onnxruntime)"
    )
    parser.add_argument(
        "--measure", choices=report.MEASURES, default="mean", help="network whose accuracy the report shows (mean)"
    )
    parser.add_argument("--tune", action="store_true", help="choose the baselines' settings, see [[tuning]] below")
    parser.add_argument("--list", action="store_true", help="list all runs and which of them are done, and stop")
    parser.add_argument(
        "--json", metavar="FILE", help="also write the cost of reaching each target to FILE; -: to stdout"
    )


def _run(options: argparse.Namespace) -> int:
    sigterm_interrupts()
    for name, least in (("workers", 0), ("threads", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} is at least {least}, found {getattr(options, name)}")
    grid = grids.load(options.grid)
    runs = grid.tuning_runs() if options.tune else grid.runs()
    if options.list:
        line = "{:<5} {:<20} {:<20} {:<8} {:<14} {:>4} {:>6}"
        print(line.format("state", "run", "scheme", "model", "split", "seed", "rounds"))
        for run in runs:
            state = "done" if grids.stored(options.out, run) else "to do"
            print(line.format(state, run.digest(), run.scheme, run.model, run.split, run.seed, run.rounds))
        return 0
    try:
        (options.out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be used: {error.strerror}") from None
    workers = options.workers or max(1, (os.cpu_count() or 1) // options.threads)
    runtime = options.runtime or ("torch" if importlib.util.find_spec("torch") else "onnxruntime")
    began = time.monotonic()
    quiet = options.json == "-"
    with _screen(sys.stderr if quiet else sys.stdout) as say:
        try:
            grids.work(runs, options.out, options.data_dir, runtime, options.threads, workers, say)
        except grids.FailedError as error:
            print(f"seedmask compare: {error}", file=sys.stderr)
            return 1
    results = [found for run in runs if (found := grids.stored(options.out, run)) is not None]
    if options.tune:
        text = grids.toml(grids.best(grid, results))
        write_atomic(options.out / "tuned.toml", text.encode())
        print(f"# seedmask compare --grid {options.grid} --tune\n{text}", end="")
        return 0
    written = report.write(options.out, results, grid.common.targets, options.measure)
    if options.json:
        value = report.table(report.summary(results), grid.common.targets, options.measure)
        text = json.dumps({"seconds": round(time.monotonic() - began, 1), "reached": value}, indent=1) + "\n"
        if quiet:
            print(text, end="")
        else:
            write_atomic(Path(options.json), text.encode())
    if not quiet:
        print(f"{len(runs)} runs in {time.monotonic() - began:,.0f} s")
        for path in written:
            print(f"wrote {path}")
    return 0


@contextmanager
def _screen(stream: Any) -> Iterator[Say]:
    """Yield a function that shows progress: a bar on a terminal, if rich is installed, otherwise plain lines."""
    if stream.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("[dim]{task.fields[now]}"),
        )
        with Bars(*columns, console=Console(file=stream), transient=True) as bars:
            task = bars.add_task("rounds", total=None, left="", now="")

            def show(at: Progress) -> None:
                bars.update(task, total=at.rounds, completed=at.rounds_done, left=_left(at.left), now=at.now)

            yield show
    else:
        said = [-60.0]

        def line(at: Progress) -> None:
            if time.monotonic() - said[0] >= 10 or at.runs_done == at.runs:
                said[0] = time.monotonic()
                done = f"{at.runs_done} of {at.runs} runs, {at.rounds_done} of {at.rounds} rounds"
                print(f"{done}; {_left(at.left)} {at.now}", file=stream, flush=True)

        yield line


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left: not known yet"
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes}:{rest:02d} left"


COMMAND = Command(
    "compare",
    "compare mask training with other methods by accuracy and bytes sent",
    ("torch", "onnx", "matplotlib"),
    "sim,export",
    _arguments,
    _run,
)
