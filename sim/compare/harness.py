"""Run of one declaration: rounds of one scheme on one split, with the bytes that each round sends.

Mask schemes run the same aggregator and clients as a real fleet, on virtual time (`sim.fleet`); training is done in
this process, and the broker counts their MQTT packets. Payloads of the baselines are put into the same frames (up: an
Update in chunks; down: an announcement, chunks and a receipt), and the same function counts their packets.

Bytes of a round count from the start of the job, per device. Uplink: all that the device sent until its update of that
round was out. Downlink: all that it had received when it began to train in that round.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aggregator.config import RunConfig
from aggregator.presets import settings_of
from aggregator.settings import RoundsConfig
from edge_client.data import Dataset, TrainTest, check
from edge_client.runtimes import open_runtime
from seedmask import PROTOCOL_VERSION, __version__, chunks, topics
from seedmask.bundle import Bundle
from seedmask.codec import by_id
from seedmask.errors import UserError
from seedmask.mask import F32, Theta
from seedmask.shared import Shared
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Message, Phase, Receipt, Status, Update, basis, encode, expect
from sim import datasets, partition, pool
from sim.broker import packet_bytes
from sim.compare import schemes
from sim.device import name_of
from sim.evaluate import Score, score
from sim.fleet import Faults, Fleet

JOB: Final = "compare"
VALIDATION: Final = 5000
FORMAT: Final = 1
"""Version of the format of result files. It is part of the digest, so that files of older programs are not reused."""

Closed = Callable[[int], None]


@dataclass(frozen=True)
class Declaration:
    """Declaration of a run: everything that determines its result. `settings`: sorted (key, value) of the scheme."""

    scheme: str
    kind: str
    settings: tuple[tuple[str, Any], ...]
    model: str
    dataset: str
    split: str
    seed: int
    rounds: int
    devices: int
    images: int
    epochs: int
    batch: int
    eval_images: int
    validation: bool = False

    def digest(self) -> str:
        """Return the name of the run's file, which only depends on the declaration and the version of the program."""
        value = [FORMAT, PROTOCOL_VERSION, __version__, {**asdict(self), "settings": dict(self.settings)}]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Row:
    """Result of one round: accuracy, mean loss (nats), and bytes `up` and `down` of an average device since the start.

    `formula`: bits per parameter as FedPM's authors compute them, from the entropy of the share of ones in a mask (Isik
    et al., arXiv 2209.15328); None if not asked for.
    """

    round: int
    accuracy: Score
    loss: float
    up: float
    down: float
    formula: float | None = None


@dataclass(frozen=True)
class World:
    """Model and data, which are the same for all schemes of one (model, split, seed)."""

    bundle: Bundle
    parts: list[Dataset]
    test: Dataset


def world(declaration: Declaration, images: TrainTest) -> World:
    """Return bundle, examples of every device, and test set; for `validation` that is a part of the training set."""
    from export.make import make_bundle
    from export.trace import trace
    from export.zoo import ZOO

    if declaration.model not in ZOO:
        raise UserError(f"no network called {declaration.model!r}; there are {', '.join(ZOO)}")
    entry, seed = ZOO[declaration.model], declaration.seed
    spec = trace(entry.factory(), declaration.model, seed, entry.input, (0, 255), entry.classes, "kaiming")
    train, test = check(images.train, spec), check(images.test, spec)
    rng = np.random.default_rng([seed, 0])
    if declaration.validation:
        order = np.random.default_rng([seed, 4]).permutation(len(train.y))
        held = min(VALIDATION, len(order) // 6)
        train, test = datasets.subset(train, order[held:]), datasets.subset(train, order[:held])
    picks = partition.split(declaration.split, train.y, declaration.devices, declaration.images, rng)
    few = rng.permutation(len(test.y))[: declaration.eval_images or None]
    parts = [datasets.subset(train, pick) for pick in picks]
    return World(make_bundle(spec, declaration.batch), parts, datasets.subset(test, few))


def run(declaration: Declaration, images: TrainTest, runtime: str, threads: int, closed: Closed) -> dict[str, Any]:
    """Run a declaration and return its result, ready for JSON; `closed` gets the number of each ended round."""
    began = time.monotonic()
    home = world(declaration, images)
    play = _masks if declaration.kind == "masks" else _baseline
    rows = play(declaration, home, runtime, threads, closed)
    return {
        "declaration": {**asdict(declaration), "settings": dict(declaration.settings)},
        "parameters": home.bundle.spec.d,
        "seconds": round(time.monotonic() - began, 3),
        "rows": [_flat(row, home.bundle.spec.d) for row in rows],
    }


def _flat(row: Row, d: int) -> dict[str, Any]:
    out = {
        "round": row.round,
        "accuracy_sampled": row.accuracy.sampled,
        "accuracy_thresholded": row.accuracy.thresholded,
        "accuracy_mean": row.accuracy.mean,
        "train_loss": round(row.loss, 6),
        "uplink_bits_per_parameter_total": round(8 * row.up / d, 8),
        "downlink_bits_per_parameter_total": round(8 * row.down / d, 8),
    }
    return out if row.formula is None else {**out, "formula_bits_per_parameter_total": round(row.formula, 8)}


# --- masks ---


class Inline:
    """Place where jobs are trained at once, in this process; it notes a device's bytes when its training begins."""

    def __init__(self, worker: pool.Worker, formula: bool) -> None:
        self.worker, self.formula = worker, formula
        self.fleet: Fleet | None = None
        self.at: dict[
            int, dict[int, tuple[int, int]]
        ] = {}  # round -> device -> bytes (sent, received) at the start of training
        self.bits: dict[int, float] = {}  # round -> bits by formula, sum over devices

    def begin(self, job: pool.TrainingJob) -> Future[pool.Done]:
        """Train a job, and return a future that has its result already."""
        assert self.fleet is not None
        number = job.announce.round
        self.at.setdefault(number, {})[job.index] = self.fleet.devices[job.index].total()
        future: Future[pool.Done] = Future()
        done = pool.work(self.worker, job)
        if self.formula and done.frame:
            self.bits[number] = self.bits.get(number, 0.0) + self._formula(job, expect(done.frame, Update))
        future.set_result(done)
        return future

    def _formula(self, job: pool.TrainingJob, update: Update) -> float:
        d, seed = job.theta.d, self.worker.bundle.spec.seed
        bits = 0.0
        for index, payload in enumerate(update.payloads):
            shared = Shared(seed, update.round, job.announce.job, job.name, index)
            most = job.announce.training.max_blocks
            share = float(by_id(update.codec).decode(payload, job.theta, shared, most).mean())
            bits += sum(-p * math.log2(p) for p in (share, 1 - share) if p) + math.log2(d) / d
        return bits


def _masks(declaration: Declaration, home: World, runtime: str, threads: int, closed: Closed) -> list[Row]:
    settings = dict(declaration.settings)
    formula = bool(settings.pop("formula", False))
    work, learning = settings_of("default", settings, f"scheme {declaration.scheme}")
    opened = open_runtime(runtime, home.bundle, threads)
    rng = np.random.default_rng([declaration.seed, 3])
    inline = Inline(pool.Worker(opened, home.bundle, home.parts), formula)
    ends: list[tuple[int, Score, float]] = []

    def over(record: dict[str, Any], theta: Theta, seconds: float) -> None:
        reached = score(opened, home.bundle.spec, home.test, theta, rng)
        ends.append((int(record["round"]), reached, float(record["train_loss"] or 0.0)))
        closed(int(record["round"]))

    with tempfile.TemporaryDirectory(prefix="seedmask-compare-") as name:
        folder = Path(name)
        rounds = RoundsConfig(total=declaration.rounds, devices=len(home.parts), deadline_s=4_000_000)
        config = RunConfig(JOB, folder / "model.bundle", folder / "aggregator", rounds, work, learning)
        fleet = Fleet(config, folder / "devices", home.bundle, home.parts, inline, runtime, declaration.seed, Faults())
        inline.fleet = fleet
        fleet.run(over)
        last = {index: device.total() for index, device in enumerate(fleet.devices)}
    rows, bits = [], 0.0
    for number, reached, loss in ends:
        now, after = inline.at[number], inline.at.get(number + 1, last)
        bits += inline.bits.get(number, 0.0) / len(now)
        up = sum(after[index][0] for index in now) / len(now)
        down = sum(received for _, received in now.values()) / len(now)
        rows.append(Row(number, reached, loss, up, down, bits if formula else None))
    return rows


# --- baselines ---


def _baseline(declaration: Declaration, home: World, runtime: str, threads: int, closed: Closed) -> list[Row]:
    settings, spec = dict(declaration.settings), home.bundle.spec
    samples = [len(part.y) for part in home.parts]
    private = np.random.default_rng([declaration.seed, 5])
    scheme: schemes.Scheme
    if declaration.kind == "fedmask":
        opened = open_runtime(runtime, home.bundle, threads)
        work = TrainingConfig(declaration.epochs, float(settings.get("rate", 0.1)))
        masks = schemes.FedMask(spec, len(samples), np.random.default_rng([declaration.seed, 6]))
        scheme = masks

        def train(number: int, device: int, start: F32) -> schemes.Local:
            rng = np.random.default_rng([declaration.seed, 2, device, number, 1])
            data = home.parts[device]
            return schemes.train_thresholded(opened, spec, data, start, work, declaration.batch, rng)

        def reached() -> Score:
            return score(opened, spec, home.test, masks.theta, private)
    else:
        from sim.compare.dense import DenseTraining

        net = DenseTraining(spec, threads)
        rate, optimizer = float(settings.get("rate", 0.001)), str(settings.get("optimizer", "adam"))

        def shared(number: int, device: str) -> Shared:
            return Shared(spec.seed, number, JOB, device)

        begin = net.start(declaration.seed)
        scheme = schemes.dense(declaration.kind, settings, spec, begin, samples, shared, private)

        def train(number: int, device: int, start: F32) -> schemes.Local:
            rng = np.random.default_rng([declaration.seed, 2, device, number, 1])
            data = home.parts[device]
            more = {"epochs": declaration.epochs, "batch": declaration.batch}
            return schemes.Local(*net.train(start, data.x, data.y, **more, rate=rate, optimizer=optimizer, rng=rng))

        def reached() -> Score:
            share = net.accuracy(scheme.weights, home.test.x, home.test.y)
            return Score(share, share, share)

    meter = Meter(spec.digest, declaration.rounds)
    rows, up, down, receipts = [], 0.0, 0.0, 0.0
    for number in range(1, declaration.rounds + 1):
        sent = scheme.round(number, train)
        devices = [name_of(index) for index in range(len(samples))]
        down += receipts + meter.down(number, sent.down)
        each = [meter.up(number, *what) for what in zip(devices, samples, sent.up, strict=True)]
        up += sum(each) / len(each)
        receipts = sum(meter.receipt(number, device, b) for device, b in zip(devices, sent.up, strict=True)) / len(each)
        rows.append(Row(number, reached(), float(np.average(sent.losses, weights=samples)), up, down))
        closed(number)
    return rows


@dataclass(frozen=True)
class Meter:
    """Meter of the MQTT packets that a baseline's payloads would need; it builds real frames and counts their bytes."""

    model: bytes
    rounds: int

    def up(self, number: int, device: str, samples: int, payload: bytes) -> int:
        """Return the bytes of one device's update, in chunks."""
        theta = chunks.transfer_id(number.to_bytes(4, "little"))
        update = Update(number, basis(JOB, self.model, theta), samples, 0, 0, 127, (payload,))
        return self.frame_up(device, encode(update))

    def frame_up(self, device: str, frame: bytes) -> int:
        """Return the bytes of the `frame` of an update, in chunks."""
        topic = topics.update(JOB, device)
        return sum(packet(topic, chunk) for chunk in chunks.split(frame))

    def down(self, number: int, blob: bytes) -> int:
        """Return the bytes of a round's announcement, and of `blob` in chunks, unless it is empty."""
        parts = chunks.split(blob) if blob else []
        name, none = chunks.transfer_id(blob), bytes(16)
        announce = Announce(
            job=JOB,
            round=number,
            rounds=self.rounds,
            phase=Phase.OPEN,
            model=self.model,
            theta=name,
            transfer=name,
            chunks=len(parts),
            base=none,
            delta=none,
            delta_chunks=0,
            deadline_ms=0,
            training=TrainingConfig(),
            selected=(),
            text="",
        )
        told = packet(topics.round_(JOB), announce)
        return told + sum(packet(topics.theta(JOB, number, part.index), part) for part in parts)

    def receipt(self, number: int, device: str, payload: bytes) -> int:
        """Return the bytes of the receipt of an update."""
        receipt = Receipt(JOB, number, chunks.transfer_id(payload), Status.ACCEPTED, "")
        return packet(topics.receipt(JOB, device), receipt)


def packet(topic: str, message: Message) -> int:
    """Return the bytes of the PUBLISH packet of one message."""
    return packet_bytes(topic, encode(message))
