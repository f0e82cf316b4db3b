"""`seedmask finalize`: the finished model of a job, as one file, and what each of its bytes is for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from aggregator.config import RunConfig
from aggregator.history import job_result
from seedmask import model
from seedmask.describe import size_facts, size_lines
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.io.commands import Command
from seedmask.io.files import check_output, write_atomic

EPILOG = """\
A running aggregator writes state_dir/model.smk after every round; this makes the same file of any round whose results
are stored, and says how large it is and why. A weight is kept where the global probability is at least one half.

examples:
  seedmask finalize run.toml                              # writes model.smk here
  seedmask finalize state --round 10 -o after10.smk
  seedmask predict model.smk --data mine.npz              # and then?
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("job", type=Path, metavar="JOB", help="the job's state folder, or its run.toml")
    parser.add_argument("-o", "--output", type=Path, default=Path("model.smk"), metavar="FILE", help="(model.smk)")
    parser.add_argument("--round", type=int, default=0, metavar="N", help="the model after round N (0: the latest)")
    parser.add_argument(
        "--average-last",
        type=int,
        metavar="N",
        help="threshold the mean of N rounds (run.toml's [aggregation] average_last, else 1)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE where it holds another model")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _run(options: argparse.Namespace) -> int:
    output: Path = options.output
    average = 1
    database: Path = options.job
    if options.job.suffix == ".toml":
        config = settings.load(RunConfig, options.job)
        database, average = config.state_dir / "job.sqlite", config.aggregation.average_last
    elif options.job.is_dir():
        database = _database(options.job)
    average = average if options.average_last is None else options.average_last
    for name, number, least in (("--average-last", average, 1), ("--round", options.round, 0)):
        if not least <= number < 1 << 32:
            raise UserError(f"{name} is {least} .. {(1 << 32) - 1}, found {number}")
    check_output(output)
    job = job_result(database, average, options.round)
    made = job.model()
    data = model.encode(made)
    sizes = model.sizes(made, data)
    if output.exists() and output.read_bytes() != data and not options.force:
        raise UserError(f"{output} exists and holds something else; --force overwrites it")
    write_atomic(output, data)
    if options.json:
        facts = {"job": job.name, "round": job.round, "file": str(output), "model": job.spec.digest.hex()}
        print(json.dumps(facts | {"ones": round(float(made.mask.mean()), 6)} | size_facts(sizes), indent=1))
        return 0
    print(
        f"job {job.name} after round {job.round}: {job.spec.name}, {job.spec.d:,} weights, "
        f"{made.mask.mean():.1%} of them kept\nwrote {output}"
    )
    print("\n".join(size_lines(sizes)))
    return 0


def _database(folder: Path) -> Path:
    """Return the one job.sqlite in `folder`, or one level below it, where a simulation puts it."""
    if (folder / "job.sqlite").exists():
        return folder / "job.sqlite"
    below = sorted(folder.glob("*/job.sqlite"))
    if len(below) > 1:
        raise UserError(f"{folder} holds several jobs: {', '.join(str(path.parent) for path in below)}; name one")
    return below[0] if below else folder / "job.sqlite"


COMMAND = Command(
    "finalize", "make the finished model of a job: one file, its size explained", (), "aggregator", _arguments, _run
)
