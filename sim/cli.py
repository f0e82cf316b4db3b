"""`seedmask simulate`: a whole fleet on this machine, as real processes or on virtual time."""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.config import WEIGHTINGS, AggregateSettings, Rounds, RunConfig, WorkSettings
from aggregator.presets import PRESETS, settings_of
from aggregator.store import reports
from edge_client.data import Dataset, check
from edge_client.runtimes import Runtime, names, open_runtime, require_graphs, targets
from seedmask import bundle as bundles
from seedmask.bundle import Bundle
from seedmask.codec import NAMES as CODECS
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.io.commands import Command
from seedmask.io.files import write_atomic
from seedmask.io.process import sigterm_interrupts
from seedmask.mask import Theta
from seedmask.spec import LOSSES
from sim import datasets, partition, report
from sim.device import name_of
from sim.evaluate import Accuracy, accuracy
from sim.fleet import Faults, Fleet
from sim.pool import Pool
from sim.processes import ProcessFleet
from sim.runtimes import Assignment, assign

BATCH = 128
MODELS = (
    "mlpn",
    "mlp",
    "conv4",
    "conv4s",
    "conv4n",
    "lenet5",
    "resnet20g",
    "mixer",
    "mlpa",
    "conv4a",
)  # of the zoo, those that take the images there are
MARKER = ".seedmask-simulation"

EPILOG = """\
examples:
    seedmask simulate                                8 device processes, a real broker, Fashion-MNIST, the small MLP
    seedmask simulate --model conv4 --rounds 10      another network
    seedmask simulate --split c_max:2                two classes per device
    seedmask simulate --preset thrifty --kappa 24    least bytes; what each knob is for: docs/explanation/learning.md
    seedmask simulate --codec crn --set control_variate=true --set stratified=true
    seedmask simulate --virtual --devices 100 --per-round 10 --rounds 50 --seed 1 --json run.json
    seedmask simulate --bundle my.bundle --broker 127.0.0.1:1883
    seedmask simulate --runtime onnxruntime,torch,reference          another runtime on each device, in turn
    seedmask simulate --bundle both.bundle --runtime onnxruntime,ort_training --python ort_training=venv/bin/python

Real processes are the default: what they send is counted by the kernel. With --virtual everything runs in this process
on a pretended clock, and the same arguments and --seed give the same bytes.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--devices", type=int, default=8, metavar="N", help="number of devices (8)")
    fleet.add_argument("--virtual", action="store_true", help="one process, virtual time, reproducible")
    fleet.add_argument(
        "--runtime",
        default="onnxruntime",
        metavar="NAMES",
        help=f"what trains, of {', '.join(names())} (onnxruntime); with commas between: device after device, in turn",
    )
    fleet.add_argument(
        "--python",
        action="append",
        default=[],
        dest="pythons",
        metavar="NAME=PATH",
        help="devices of runtime NAME run by this interpreter, which has seedmask in another environment",
    )
    fleet.add_argument("--threads", type=int, default=1, metavar="N", help="threads per training (1)")
    fleet.add_argument("--broker", metavar="HOST:PORT", help="use this broker instead of starting one")
    fleet.add_argument(
        "--crash", type=float, default=0.0, metavar="P", help="virtual: chance to die in a round's training"
    )
    fleet.add_argument(
        "--cut",
        type=float,
        default=0.0,
        metavar="P",
        help="virtual: chance to lose the connection in a round",
    )
    data = parser.add_argument_group("model and data")
    data.add_argument("--model", metavar="NAME", help=f"{', '.join(MODELS)} ({MODELS[0]}); for your own see --bundle")
    for name, what in (("exact", "trained and sent as numbers"), ("frozen", "random signs without a mask")):
        data.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"parameters of --model that are {what}; patterns as for `seedmask export`",
        )
    data.add_argument("--bundle", type=Path, metavar="FILE", help="a bundle of `seedmask export` instead of --model")
    data.add_argument("--dataset", default="auto", choices=datasets.NAMES, help="auto: Fashion-MNIST, else digits")
    data.add_argument("--data", type=Path, metavar="DIR", help="folder with the data set's files")
    data.add_argument("--split", default="iid", metavar="HOW", help=f"{', '.join(partition.WAYS)} (iid)")
    data.add_argument("--images", type=int, default=2000, metavar="N", help="training images per device, 0: all (2000)")
    data.add_argument(
        "--eval-images",
        type=int,
        default=2000,
        metavar="N",
        help="test images after each round, 0: all (2000)",
    )
    work = parser.add_argument_group("job")
    work.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds (20)")
    work.add_argument(
        "--preset", default="default", choices=sorted(PRESETS), help="what the knobs begin with (default)"
    )
    work.add_argument("--epochs", type=int, metavar="N", help="passes over a device's data per round")
    work.add_argument("--learning-rate", type=float, metavar="X", help="of the optimiser on the mask scores")
    work.add_argument("--codec", choices=sorted(CODECS), help="how masks are drawn and coded")
    work.add_argument("--kappa", type=float, metavar="BITS", help="codec hmrc: bits of relative entropy per byte sent")
    work.add_argument("--downlink", metavar="LEVELS", help="levels of the probabilities that are published, or exact")
    work.add_argument("--weighting", choices=WEIGHTINGS, help="of devices: all equal, or by their samples")
    work.add_argument(
        "--set",
        action="append",
        default=[],
        dest="knobs",
        metavar="KEY=VALUE",
        help="any key of run.toml's [work] and [learning]; may be given often",
    )
    work.add_argument("--per-round", type=int, default=0, metavar="N", help="ask only N devices each round, 0: all")
    work.add_argument("--quorum", type=int, default=0, metavar="N", help="close a round at N updates, 0: all asked")
    work.add_argument("--minimum", type=int, default=1, metavar="N", help="updates that are enough when time is up (1)")
    work.add_argument("--deadline", type=float, default=600.0, metavar="S", help="seconds per round (600)")
    out = parser.add_argument_group("output")
    out.add_argument("--seed", type=int, metavar="N", help="of the model, the split and all virtual chance (random)")
    out.add_argument(
        "--out",
        type=Path,
        default=Path("out/simulate"),
        metavar="DIR",
        help="folder for everything (out/simulate)",
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="also write the summary here; -: to the screen")


@dataclass(frozen=True)
class _Setup:
    """Everything a run needs, made once."""

    rounds: Rounds
    work: WorkSettings
    learning: AggregateSettings
    broker: tuple[str, int] | None
    bundle: Bundle
    images: datasets.Images
    parts: list[Dataset]
    runtimes: Assignment
    evaluator: Runtime
    eval_set: Dataset
    seed: int


def _run(options: argparse.Namespace) -> int:
    from sim.screen import Screen  # needs rich, which a device does not have

    sigterm_interrupts()
    setup = _setup(options)
    _clear(options.out)
    write_atomic(options.out / "model.bundle", bundles.to_bytes(setup.bundle))
    spec = setup.bundle.spec
    rng = np.random.default_rng([setup.seed, 3])
    rows: list[report.Row] = []
    thetas: list[Theta] = []
    sizes = sorted(len(part.y) for part in setup.parts)
    each = f"{sizes[0]:,} images each" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,} images each"
    others = "".join(f", {n:,} {kind}" for kind, n in (("frozen", spec.count("frozen")), ("exact", spec.e)) if n)
    print(f"{spec.name}: {spec.d:,} weights from seed {spec.seed:#018x}{others}")
    print(f"{setup.images.name} ({setup.images.origin}); {len(sizes)} devices, {each}, {options.split}")
    total = len(setup.images.train.y)
    if options.images > total // options.devices:
        share = total // options.devices
        print(
            f"--images {options.images:,} is more than {total:,} training images allow; {share:,} per device are used"
        )
    print(flush=True)
    with Screen(options.rounds, spec.d) as screen:

        def closed(record: dict[str, Any], theta: Theta, seconds: float) -> None:
            reached = accuracy(setup.evaluator, spec, setup.eval_set, theta, rng)
            row = report.Row(
                record["round"],
                seconds,
                record["updates"],
                reached,
                record["train_loss"],
                record["update_bytes"],
            )
            rows.append(row)
            thetas[:] = [theta]
            screen.row(row)

        run = _virtual if options.virtual else _processes
        seconds, traffic, broker = run(options, setup, closed, screen.waiting)
    final = accuracy(setup.evaluator, spec, setup.images.test, thetas[0], rng)
    facts = report.Facts(
        model=spec.name,
        dataset=setup.images.name,
        split=options.split,
        devices=options.devices,
        parameters=spec.d,
        broker=broker,
        clock="virtual" if options.virtual else "wall",
        seed=setup.seed,
        test_images=len(setup.images.test.y),
    )
    runtime_of = {name_of(index): setup.runtimes.of(index) for index in range(options.devices)}
    trained = report.by_runtime(reports(options.out / "aggregator" / "job.sqlite"), runtime_of)
    _finish(options, {**report.summary(facts, rows, final, traffic, seconds), "runtimes": trained})
    return 0


def _setup(options: argparse.Namespace) -> _Setup:
    rounds, work, learning = _config(options)
    runtimes = assign(options.runtime, options.pythons, options.virtual)
    broker = _address(options.broker)
    _check_files(options)
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    images = datasets.load(options.dataset, options.data)
    bundle = bundles.load(options.bundle) if options.bundle else _export(options, seed, runtimes)
    require_graphs(runtimes.all, bundle)
    spec, shape = bundle.spec, images.test.x.shape[1:]
    if spec.loss != LOSSES[0]:
        raise UserError(f"{spec.name} has the loss {spec.loss}; the simulator's images have classes, no other targets")
    if math.prod(spec.input) != math.prod(shape):
        raise UserError(
            f"{spec.name} takes inputs of {_by(spec.input)}, the images of {images.name} are {_by(shape)}: "
            f"use a --model of {', '.join(MODELS)}, or a --bundle for {_by(shape)}"
        )
    check(images.test, spec)
    rng = np.random.default_rng([seed, 0])
    picks = partition.split(options.split, images.train.y, options.devices, options.images, rng)
    parts = [datasets.subset(images.train, pick) for pick in picks]
    evaluator = open_runtime(runtimes.here, bundle, options.threads if options.virtual else 0)
    few = rng.permutation(len(images.test.y))[: options.eval_images or None]
    eval_set = datasets.subset(images.test, few)
    return _Setup(rounds, work, learning, broker, bundle, images, parts, runtimes, evaluator, eval_set, seed)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _config(options: argparse.Namespace) -> tuple[Rounds, WorkSettings, AggregateSettings]:
    """The job's settings, and every option that is a number in its range. Raises UserError."""
    for name in ("devices", "rounds", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is at least 1, found {getattr(options, name)}")
    for name in ("images", "eval_images"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} is at least 0, found {getattr(options, name)}")
    for name in ("per_round", "quorum", "minimum"):
        if getattr(options, name) > options.devices:
            found = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise UserError(f"{found}: there are only {options.devices} devices")
    for name in ("crash", "cut"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"--{name} is a chance, 0 .. 1, found {getattr(options, name)}")
    if options.crash + options.cut > 1:
        raise UserError(f"--crash and --cut together are at most 1, found {options.crash + options.cut:g}")
    if not options.virtual and (options.crash or options.cut):
        raise UserError("--crash and --cut need --virtual; kill a real process instead (pids.json tells who is who)")
    if options.virtual and options.broker:
        raise UserError("--broker and --virtual exclude each other: virtual time has a broker in memory")
    if options.seed is not None and not 0 <= options.seed < 1 << 32:
        raise UserError(f"--seed is 0 .. 2**32 - 1, found {options.seed}")
    try:
        rounds = Rounds(
            total=options.rounds,
            devices=options.devices,
            per_round=options.per_round,
            quorum=options.quorum,
            minimum=options.minimum,
            deadline_s=options.deadline,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return rounds, *settings_of(options.preset, _knobs(options), "--set")


def _knobs(options: argparse.Namespace) -> dict[str, Any]:
    """What overrides the preset, by key of run.toml's tables. Raises UserError."""
    knobs: dict[str, Any] = {}
    for text in options.knobs:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set is KEY=VALUE, found {text!r}")
        knobs[key.strip().replace("-", "_")] = settings.literal(value.strip())
    for key in ("epochs", "learning_rate", "codec", "kappa", "downlink", "weighting"):
        value = getattr(options, key)
        if value is not None:
            knobs[key] = settings.literal(value) if key == "downlink" else value
    if "kappa" in knobs and "kappa_max" not in knobs and isinstance(knobs["kappa"], int | float):
        knobs["kappa_max"] = max(float(knobs["kappa"]), WorkSettings().kappa_max)
    return knobs


def _check_files(options: argparse.Namespace) -> None:
    """Refuse to empty what is not ours or what is needed, and to write where nobody can. Raises UserError."""
    out: Path = options.out.resolve()
    for name in ("model", "exact", "frozen"):
        if getattr(options, name) and options.bundle:
            raise UserError(f"--{name} and --bundle exclude each other")
    for name in ("bundle", "data"):
        path: Path | None = getattr(options, name)
        if path is not None and path.resolve().is_relative_to(out):
            raise UserError(f"--{name} {path} lies inside --out {options.out}, which is emptied; choose another --out")
    if options.json is not None and str(options.json) != "-":
        folder = options.json.resolve().parent
        if options.json.is_dir() or (folder != out and (folder.is_relative_to(out) or not folder.is_dir())):
            raise UserError(f"--json {options.json} is not a file in a folder that exists")
    try:
        if any(out.iterdir()) and not (out / MARKER).exists():
            raise UserError(f"{options.out} is not empty and no simulation made it; choose another with --out")
    except FileNotFoundError:
        pass  # it will be made
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be used: {error.strerror}") from None


def _clear(out: Path) -> None:
    """Make `out` new, and mark it as ours; `_check_files` saw that it may be emptied."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).touch()  # first, and it stays: interrupted here, the folder is still ours
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be used: {error.strerror}") from None


def _export(options: argparse.Namespace, seed: int, runtimes: Assignment) -> Bundle:
    """The bundle of a network by name, made here and now, with the graphs of all `runtimes`."""
    model = options.model or MODELS[0]
    try:
        from export.make import make_bundle
        from export.trace import trace
        from export.zoo import ZOO
    except ImportError as error:
        raise UserError(
            f"--model needs {error.name} to export the network: pip install 'seedmask[export]', or pass --bundle"
        ) from None
    if model not in ZOO:
        raise UserError(
            f"no network called {model!r}; there are {', '.join(ZOO)}; for your own, export it and pass --bundle"
        )
    entry = ZOO[model]
    spec = trace(
        *(entry.factory(), model, seed, entry.input, (0, 255), entry.classes, "kaiming"),
        exact=options.exact,
        frozen=options.frozen,
    )
    return make_bundle(spec, BATCH, targets(["onnxruntime", *runtimes.all]))


Closed = Callable[[dict[str, Any], Theta, float], None]
Found = tuple[float, report.Traffic, str]


def _virtual(options: argparse.Namespace, setup: _Setup, closed: Closed, waiting: Callable[[str], None]) -> Found:
    folder = options.out / "aggregator"
    config = RunConfig("sim", options.out / "model.bundle", folder, setup.rounds, setup.work, setup.learning)
    faults = Faults(options.cut, options.crash)
    workers = max(1, (os.cpu_count() or 1) // options.threads)
    with Pool(setup.bundle, setup.parts, setup.runtimes.here, options.threads, min(workers, options.devices)) as pool:
        homes = options.out / "devices"
        fleet = Fleet(config, homes, setup.bundle, setup.parts, pool, setup.runtimes.here, setup.seed, faults)
        waiting("virtual time")
        seconds = fleet.run(closed)
    up, down = fleet.traffic()
    counted = "simulator: MQTT 5 PUBLISH packets, without acknowledgements and TCP"
    return seconds, report.Traffic(up, down, counted), "a broker in memory"


def _processes(options: argparse.Namespace, setup: _Setup, closed: Closed, waiting: Callable[[str], None]) -> Found:
    tables = {"rounds": setup.rounds, "work": setup.work, "learning": setup.learning}
    fleet = ProcessFleet(
        folder=options.out,
        bundle=options.out / "model.bundle",
        spec=setup.bundle.spec,
        # A name of its own: a broker that others use too may retain the end of an earlier simulation.
        job=f"sim-{secrets.token_hex(4)}",
        parts=setup.parts,
        settings=tables,
        runtimes=setup.runtimes,
        threads=options.threads,
        broker=setup.broker,
    )
    seconds = fleet.run(closed, waiting)
    if fleet.restarts:
        print(f"{fleet.restarts} process(es) died and were started again", file=sys.stderr)
    up, down = fleet.traffic()
    return (
        seconds,
        report.Traffic(up, down, "kernel: TCP bytes of every device's connection"),
        fleet.broker_name,
    )


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"--broker is HOST:PORT, found {text!r}")
    return host, int(port)


def _finish(options: argparse.Namespace, value: dict[str, Any]) -> None:
    out: Path = options.out
    report.write_json(out / "summary.json", value)
    report.write_csv(out / "rounds.csv", value)
    report.draw(out / "accuracy.png", value)
    shutil.copyfile(out / "aggregator" / "model.smk", out / "model.smk")
    if options.json is not None and str(options.json) != "-":
        report.write_json(options.json, value)
    reached = Accuracy(**value["accuracy"])
    print(
        f"\ntest accuracy on {value['test_images']:,} images: {reached.sampled:.1%} sampled, "
        f"{reached.thresholded:.1%} thresholded, {reached.mean:.1%} mean\n"
        f"up   {value['uplink_bits_per_parameter_per_round']:.3f} bit per parameter and round "
        f"({value['uplink_bytes_per_device_per_round'] / 1000:,.1f} kB per device and round, "
        f"{value['uplink_bytes'] / 1e6:,.2f} MB in all)\n"
        f"down {value['downlink_bits_per_parameter_per_round']:.3f} bit per parameter and round "
        f"({value['downlink_bytes_per_device_per_round'] / 1000:,.1f} kB per device and round, "
        f"{value['downlink_bytes'] / 1e6:,.2f} MB in all)\n"
        f"counted by the {value['bytes_counted_by']}\n"
        f"{value['rounds']} rounds in {value['seconds']:,.1f} {'virtual ' if options.virtual else ''}seconds "
        f"with {value['devices']} devices over {value['broker']}\n"
    )
    if len(value["runtimes"]) > 1:
        print(f"training accuracy and loss by runtime (devices)\n{report.runtimes_table(value['runtimes'])}\n")
    for name, what in (
        ("summary.json", "all of this, for scripts"),
        ("rounds.csv", "one line per round"),
        ("accuracy.png", "accuracy against bytes"),
        ("model.smk", f"the model: seed and mask, {(out / 'model.smk').stat().st_size:,} bytes"),
        ("model.bundle", "what the devices were given"),
    ):
        print(f"wrote {out / name!s:<32} {what}")
    if str(options.json) == "-":
        print(json.dumps(value, sort_keys=True))


COMMAND = Command(
    "simulate",
    "run a whole fleet on this machine: broker, aggregator and devices",
    ("rich", "matplotlib", "sklearn", "pooch"),
    "sim",
    _arguments,
    _run,
)
