"""Run of a simulation, from a Setup to a History: on virtual time in this process, or as real processes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.config import RunConfig
from aggregator.history import job_result, reports
from seedmask import bundle as bundles
from seedmask.io.files import write_atomic
from seedmask.io.models import Model
from seedmask.mask import Theta
from sim import report
from sim.device import name_of
from sim.evaluate import score
from sim.fleet import Faults, Fleet
from sim.history import History
from sim.pool import Pool, Threads
from sim.processes import ProcessFleet
from sim.report import RoundRecord
from sim.setup import Setup

OnRound = Callable[[RoundRecord], object]
Closed = Callable[[dict[str, Any], Theta, float], None]
Waiting = Callable[[str], None]


class StopSimulation(Exception):  # noqa: N818 - no error, like StopIteration
    """Exception for `on_round` to raise: the simulation ends after the round that was passed to it."""


@dataclass(frozen=True)
class _Ended:
    """Facts about a fleet that has ended: `seconds` on its clock, `traffic`, `broker`, `restarts` of dead processes."""

    seconds: float
    traffic: report.TrafficReport
    broker: str
    restarts: int = 0


def run(setup: Setup, out: Path, on_round: OnRound, waiting: Waiting, pool: type[Pool] | type[Threads]) -> History:
    """Run the fleet in `out`, an empty folder, until all rounds are over or `on_round` raises StopSimulation.

    on_round: called with the record of every round that has ended.
    waiting: called with what the fleet waits for, a text.
    pool: class that trains the devices on virtual time.

    Raises UserError.
    """
    spec = setup.bundle.spec
    write_atomic(out / "model.bundle", bundles.to_bytes(setup.bundle))
    rng = np.random.default_rng([setup.seed, 3])
    rounds: list[RoundRecord] = []
    thetas: list[Theta] = []
    clock = [0.0]
    stopped = False

    def closed(record: dict[str, Any], theta: Theta, seconds: float) -> None:
        nonlocal stopped
        if stopped:  # this round ended while the fleet was being stopped
            return
        reached = score(setup.evaluator, spec, setup.eval_set, theta, rng)
        figures = record["train_loss"], record["update_bytes"]
        rounds.append(RoundRecord(record["round"], seconds, record["updates"], reached, *figures, setup.metric))
        thetas[:] = [theta]
        clock[0] = seconds
        try:
            on_round(rounds[-1])
        except StopSimulation:
            stopped = True
            raise

    if setup.asked.virtual:
        ended = _virtual(setup, out, closed, waiting, clock, pool)
    else:
        ended = _processes(setup, out, closed, waiting, clock)
    database = out / "aggregator" / "job.sqlite"
    job = job_result(database, setup.aggregation.average_last, rounds[-1].round)
    final = score(setup.evaluator, spec, setup.data.test, thetas[0], rng)
    facts = report.Facts(
        model=spec.name,
        dataset=setup.data.name,
        origin=setup.data.origin,
        split=setup.asked.split,
        devices=setup.asked.devices,
        parameters=spec.d,
        broker=ended.broker,
        clock="virtual" if setup.asked.virtual else "wall",
        seed=setup.seed,
        test_examples=len(setup.data.test.y),
        metric=setup.metric,
    )
    summary = report.summary(facts, rounds, final, ended.traffic, ended.seconds)
    runtime_of = {name_of(index): setup.runtimes.of(index) for index in range(setup.asked.devices)}
    counted = [each for each in reports(database) if each.round <= rounds[-1].round]
    summary |= {"runtimes": report.by_runtime(counted, runtime_of), "restarts": ended.restarts}
    model = Model(job.model(), setup.bundle)
    return History(tuple(rounds), model, summary, stopped)


def _virtual(
    setup: Setup, out: Path, closed: Closed, waiting: Waiting, clock: list[float], pool: type[Pool] | type[Threads]
) -> _Ended:
    asked = setup.asked
    config = RunConfig("sim", out / "model.bundle", out / "aggregator", setup.rounds, setup.training, setup.aggregation)
    faults = Faults(asked.cut, asked.crash)
    workers = min(asked.devices, max(1, (os.cpu_count() or 1) // asked.threads))
    with pool(setup.bundle, setup.parts, setup.runtimes.here, asked.threads, workers) as trains:
        homes = out / "devices"
        fleet = Fleet(
            *(config, homes, setup.bundle, setup.parts, trains, setup.runtimes.here, setup.seed, faults), setup.rule
        )
        waiting("virtual time")
        try:
            seconds = fleet.run(closed)
        except StopSimulation:
            seconds = clock[0]
    counted = "simulator: MQTT 5 PUBLISH packets, without acknowledgements and TCP"
    return _Ended(seconds, report.TrafficReport(*fleet.traffic(), counted), "a broker in memory")


def _processes(setup: Setup, out: Path, closed: Closed, waiting: Waiting, clock: list[float]) -> _Ended:
    fleet = ProcessFleet(
        folder=out,
        bundle=out / "model.bundle",
        spec=setup.bundle.spec,
        # A random name: a shared broker may still retain the end of an earlier simulation's job.
        job=f"sim-{secrets.token_hex(4)}",
        parts=setup.parts,
        settings={"rounds": setup.rounds, "training": setup.training, "aggregation": setup.aggregation},
        runtimes=setup.runtimes,
        threads=setup.asked.threads,
        broker=setup.broker,
    )
    try:
        seconds = fleet.run(closed, waiting)
    except StopSimulation:
        seconds = clock[0]
    counted = "kernel: TCP bytes of every device's connection"
    return _Ended(seconds, report.TrafficReport(*fleet.traffic(), counted), fleet.broker_name, fleet.restarts)
