"""`seedmask simulate`: run a whole fleet on this machine, as real processes or on virtual time."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from aggregator.presets import PRESETS
from aggregator.settings import AggregationConfig
from edge_client.runtimes import names
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.io.commands import Command, as_options
from seedmask.io.process import sigterm_interrupts
from seedmask.knobs import knobs as known_knobs
from seedmask.training import TrainingConfig
from sim import datasets, output, partition, report
from sim.datasets.own import SHARE
from sim.history import History
from sim.pool import Pool
from sim.run import run
from sim.setup import MODEL_SEED, MODELS, PER_DEVICE, Parameters, Setup, prepare

EPILOG = """\
examples:
    seedmask simulate                                8 device processes, a real broker, Fashion-MNIST, the small MLP
    seedmask simulate --model conv4 --rounds 10      another network
    seedmask simulate --split c_max:2                two classes per device
    seedmask simulate --preset thrifty --kappa 24    fewest bytes; docs/explanation/learning.md explains the settings
    seedmask simulate --data mine.npz --bundle mine.bundle --split dirichlet:0.3
    seedmask simulate --virtual --devices 100 --per-round 10 --rounds 50 --seed 1 --json run.json
    seedmask simulate --bundle my.bundle --broker 127.0.0.1:1883
    seedmask simulate --runtime onnxruntime,torch,reference          devices that train with different runtimes
    seedmask simulate --bundle both.bundle --runtime onnxruntime,ort_training --python ort_training=venv/bin/python

By default broker, aggregator and devices are real processes, and the kernel counts the bytes that they send. With
--virtual the fleet runs on a simulated clock, without a network; the same arguments and --seed give the same bytes.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--devices", type=int, default=8, metavar="N", help="number of devices (8)")
    fleet.add_argument("--virtual", action="store_true", help="simulate clock and network too; reproducible")
    fleet.add_argument(
        "--runtime",
        default="onnxruntime",
        metavar="NAMES",
        help=f"runtimes that devices train with, in turn: NAME,NAME of {', '.join(names())} (onnxruntime)",
    )
    fleet.add_argument(
        "--python",
        action="append",
        default=[],
        dest="pythons",
        metavar="NAME=PATH",
        help="Python of another environment that has seedmask, for the devices of runtime NAME",
    )
    fleet.add_argument("--threads", type=int, default=1, metavar="N", help="threads per training (1)")
    fleet.add_argument("--broker", metavar="HOST:PORT", help="use this broker instead of starting one")
    fleet.add_argument(
        "--crash",
        type=float,
        default=0.0,
        metavar="P",
        help="with --virtual: probability that a device dies while it trains a round",
    )
    fleet.add_argument(
        "--cut",
        type=float,
        default=0.0,
        metavar="P",
        help="with --virtual: probability that a device loses its connection in a round",
    )
    data = parser.add_argument_group("model and data")
    data.add_argument("--model", metavar="NAME", help=f"network: {', '.join(MODELS)} ({MODELS[0]})")
    for name, what in (("exact", "trained and sent as numbers"), ("frozen", "random signs without a mask")):
        data.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"parameters of --model that are {what}; patterns as for `seedmask export`",
        )
    data.add_argument("--bundle", type=Path, metavar="FILE", help="your own network, a bundle of `seedmask export`")
    data.add_argument(
        "--model-seed", type=int, metavar="N", help=f"seed of the random weights of --model ({MODEL_SEED})"
    )
    data.add_argument(
        "--data",
        default=datasets.AUTO,
        metavar="DATA",
        help="an .npz file with x and y, and if you like x_test and y_test; or a data set: "
        f"{', '.join(datasets.names())} (auto: fashion-mnist if it is found, otherwise digits)",
    )
    data.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the files of the named data set")
    data.add_argument("--test", type=Path, metavar="FILE", help="an .npz file with x and y to test the model on")
    data.add_argument(
        "--test-share",
        type=float,
        metavar="P",
        help=f"share of an .npz file without x_test that is held out to test the model on ({SHARE:g})",
    )
    data.add_argument(
        "--split", default="iid", metavar="HOW", help=f"how examples are divided: {', '.join(partition.WAYS)} (iid)"
    )
    data.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help=f"training examples per device, 0: all ({PER_DEVICE} of a named data set, all of a file)",
    )
    data.add_argument(
        "--eval-examples",
        type=int,
        default=2000,
        metavar="N",
        help="examples to test on after each round, 0: all (2000)",
    )
    work = parser.add_argument_group("job")
    work.add_argument("--rounds", type=int, default=20, metavar="N", help="number of rounds (20)")
    work.add_argument("--preset", default="default", choices=sorted(PRESETS), help="settings to start from (default)")
    work.add_argument(
        "--set",
        action="append",
        default=[],
        dest="knobs",
        metavar="KEY=VALUE",
        help="set any key of [training] and [aggregation] in run.toml; may be repeated",
    )
    work.add_argument("--per-round", type=int, default=0, metavar="N", help="devices selected each round, 0: all (0)")
    work.add_argument(
        "--quorum", type=int, default=0, metavar="N", help="updates that end a round, 0: all selected (0)"
    )
    work.add_argument(
        "--minimum", type=int, default=1, metavar="N", help="fewest updates to end a round with at its deadline (1)"
    )
    work.add_argument(
        "--deadline", type=float, default=600.0, metavar="S", help="seconds until the deadline of a round (600)"
    )
    settings.add_options(parser, "training: settings of the devices", known_knobs(TrainingConfig), "default")
    settings.add_options(parser, "aggregation: settings of the server", known_knobs(AggregationConfig), "default")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--seed", type=int, metavar="N", help="seed of the split and of everything random with --virtual (random)"
    )
    out.add_argument(
        "--out",
        type=Path,
        default=Path("out/simulate"),
        metavar="DIR",
        help="folder for all results; it is emptied first (out/simulate)",
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="also write the summary to FILE; -: to stdout")


def _run(options: argparse.Namespace) -> int:
    try:
        return _simulate(options)
    except UserError as error:
        raise type(error)(as_options(str(error))) from None


def _simulate(options: argparse.Namespace) -> int:
    from sim.screen import Screen  # needs rich, which a device does not have

    sigterm_interrupts()
    out: Path = options.out
    _check_json(options.json, out)
    output.check(out, [Path(given) for given in _inputs(options)])
    setup = prepare(_parameters(options), "--set")
    output.claim(out)
    _introduce(setup)
    with Screen(options.rounds, setup.bundle.spec.d) as screen:
        history = run(setup, out, screen.row, screen.waiting, Pool)
    if history.summary["restarts"]:
        print(f"{history.summary['restarts']} process(es) died and were started again", file=sys.stderr)
    output.write(out, history)
    if options.json is not None and str(options.json) != "-":
        report.write_json(options.json, history.summary)
    _tell(out, history)
    if str(options.json) == "-":
        print(json.dumps(history.summary, sort_keys=True))
    return 0


def _parameters(options: argparse.Namespace) -> Parameters:
    """Return what the options ask for. Raises UserError."""
    if options.model and options.bundle:
        raise UserError("`model` and `bundle` exclude each other")
    return Parameters(
        model=options.bundle or options.model or MODELS[0],
        data=options.data,
        test=options.test,
        test_share=options.test_share,
        data_dir=options.data_dir,
        devices=options.devices,
        rounds=options.rounds,
        split=options.split,
        examples=options.examples,
        eval_examples=options.eval_examples,
        per_round=options.per_round,
        quorum=options.quorum,
        minimum=options.minimum,
        deadline=options.deadline,
        virtual=options.virtual,
        broker=options.broker,
        runtime=options.runtime,
        pythons=options.pythons,
        threads=options.threads,
        crash=options.crash,
        cut=options.cut,
        preset=options.preset,
        knobs=_knobs(options),
        seed=options.seed,
        model_seed=options.model_seed,
        exact=options.exact,
        frozen=options.frozen,
    )


def _knobs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that override the preset, by their names in run.toml. Raises UserError."""
    knobs: dict[str, Any] = {}
    for text in options.knobs:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set is KEY=VALUE, found {text!r}")
        knobs[key.strip().replace("-", "_")] = settings.literal(value.strip())
    named = [one.name for one in (*known_knobs(TrainingConfig), *known_knobs(AggregationConfig))]
    return knobs | {name: getattr(options, name) for name in named if getattr(options, name) is not None}


def _inputs(options: argparse.Namespace) -> list[Path | str]:
    """Return the files and folders that a run reads."""
    given = (options.bundle, options.data if Path(options.data).exists() else None, options.test, options.data_dir)
    return [path for path in given if path is not None]


def _check_json(path: Path | None, out: Path) -> None:
    """Raise UserError if the summary cannot be written to `path`, or if `path` is deleted with the old `out`."""
    if path is None or str(path) == "-":
        return
    folder, inside = path.resolve().parent, out.resolve()
    if path.is_dir() or (folder != inside and (folder.is_relative_to(inside) or not folder.is_dir())):
        raise UserError(f"`json` {path} is not a file in a folder that exists")


def _introduce(setup: Setup) -> None:
    """Print what is about to run."""
    spec = setup.bundle.spec
    sizes = sorted(len(part.y) for part in setup.parts)
    kind = "images" if len(spec.input) == 3 else "examples"
    each = f"{sizes[0]:,} {kind} each" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,} {kind} each"
    others = "".join(f", {n:,} {kind}" for kind, n in (("frozen", spec.count("frozen")), ("exact", spec.e)) if n)
    print(f"{spec.name}: {spec.d:,} weights from seed {spec.seed:#018x}{others}")
    print(f"{setup.data.name} ({setup.data.origin}); {len(sizes)} devices, {each}, {setup.asked.split}")
    for note in setup.notes:
        print(as_options(note))
    print(flush=True)


def _tell(out: Path, history: History) -> None:
    """Print the results, and which files were written."""
    value = history.summary
    metric, kind = value["metric"], "images" if len(history.model.spec.input) == 3 else "examples"
    sampled, thresholded, mean = (
        report.figure(metric, value[metric][name]) for name in ("sampled", "thresholded", "mean")
    )
    print(
        f"\n{'test accuracy' if metric == 'accuracy' else 'mean squared error'} on {value['test_examples']:,} {kind}: "
        f"{sampled} sampled, {thresholded} thresholded, {mean} mean\n"
        f"up   {value['uplink_bits_per_parameter_per_round']:.3f} bit per parameter and round "
        f"({value['uplink_bytes_per_device_per_round'] / 1000:,.1f} kB per device and round, "
        f"{value['uplink_bytes'] / 1e6:,.2f} MB in all)\n"
        f"down {value['downlink_bits_per_parameter_per_round']:.3f} bit per parameter and round "
        f"({value['downlink_bytes_per_device_per_round'] / 1000:,.1f} kB per device and round, "
        f"{value['downlink_bytes'] / 1e6:,.2f} MB in all)\n"
        f"counted by the {value['bytes_counted_by']}\n"
        f"{value['rounds']} rounds in {value['seconds']:,.1f} {'virtual ' if value['clock'] == 'virtual' else ''}"
        f"seconds with {value['devices']} devices over {value['broker']}\n"
    )
    if len(value["runtimes"]) > 1:
        table = report.runtimes_table(value["runtimes"], metric)
        print(f"training {'accuracy and ' if metric == 'accuracy' else ''}loss by runtime (devices)\n{table}\n")
    for name, what in (
        ("summary.json", "these results, for scripts"),
        ("rounds.csv", "one line per round"),
        (f"{metric}.png", f"{metric} against bytes"),
        ("model.smk", f"the model: seed and mask, {(out / 'model.smk').stat().st_size:,} bytes"),
        ("model.bundle", "what the devices were given"),
    ):
        print(f"wrote {out / name!s:<32} {what}")


COMMAND = Command(
    "simulate",
    "run a whole fleet on this machine: broker, aggregator and devices",
    ("rich", "matplotlib", "sklearn", "pooch"),
    "sim",
    _arguments,
    _run,
)
