"""`seedmask aggregator`: run one job."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path

from aggregator.broker import dev_broker
from aggregator.config import EXAMPLE, RunConfig
from aggregator.rules import registry
from aggregator.server import Server, will
from aggregator.store import Store
from seedmask import bundle as bundles
from seedmask.errors import UserError
from seedmask.io import logs, settings
from seedmask.io.commands import Command
from seedmask.io.mqtt import MqttLink, check
from seedmask.io.process import sigterm_interrupts


def _arguments(parser: argparse.ArgumentParser) -> None:
    lines = "".join(f"    {line}\n" for line in EXAMPLE.splitlines())
    parser.epilog = f"example of run.toml (`seedmask settings` explains every key):\n\n{lines}"
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    run = actions.add_parser("run", help="run a job; started again after a crash, it continues the same round")
    run.add_argument("--config", type=Path, required=True, metavar="run.toml", help="settings of this job")
    run.add_argument(
        "--dev-broker",
        action="store_true",
        help="start a broker on 127.0.0.1 (the settings' port) for this run; for trying things out",
    )
    run.add_argument(
        "--check",
        action="store_true",
        help="read settings, bundle and TLS files, say what was found, and stop before connecting",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="say more")


def _run(options: argparse.Namespace) -> int:
    config = settings.load(RunConfig, options.config)
    spec = bundles.load(config.bundle).spec
    rule = registry.load(config.aggregation.rule)
    registry.start(rule, spec, config.aggregation)  # raises before anything is written, if it cannot begin this job
    print(
        f"job {config.job}: model {spec.name} ({spec.digest.hex()[:12]}), {spec.d:,} weights, "
        f"{config.rounds.total} rounds, {config.rounds.devices} device(s) to begin; "
        f"broker {config.broker.host}:{config.broker.port}",
        file=sys.stderr,
    )
    training, aggregation = config.training, config.aggregation
    print(
        f"{training.codec}, kappa {training.kappa:g}, {training.epochs} epochs, "
        f"learning rate {training.learning_rate:g}, "
        f"{'the mean network' if training.mean_epochs >= training.epochs else 'sampled masks'} in training; "
        f"rule {aggregation.rule}, weighting {aggregation.weighting}, downlink {aggregation.downlink}, "
        f"relay {'on' if aggregation.relay else 'off'}",
        file=sys.stderr,
    )
    check(config.broker)
    if options.check:
        return 0
    logs.to_stderr("aggregator", options.verbose)
    sigterm_interrupts()
    boot = secrets.randbits(64)
    with contextlib.ExitStack() as stack:
        if options.dev_broker:
            config = replace(config, broker=replace(config.broker, host="127.0.0.1"))
            name = stack.enter_context(dev_broker("127.0.0.1", config.broker.port)).name
            print(f"{name} runs on 127.0.0.1:{config.broker.port} until this job ends", file=sys.stderr)
        store = Store(config.state_dir / "job.sqlite", config.job, spec.digest, spec.canonical(), spec.d, spec.e)
        link = MqttLink(config.broker, f"{config.job}.aggregator", will(config.job, boot))
        server = Server(config, spec, link, store, time.monotonic, boot, rule)
        try:
            server.run()
            server.linger(20)
        except sqlite3.Error as error:
            raise UserError(f"cannot write {config.state_dir / 'job.sqlite'}: {error}") from None
        finally:
            server.leave()
        print(f"the model is {config.state_dir / 'model.smk'}", file=sys.stderr)
    return 0


COMMAND = Command("aggregator", "collect masks and update the global probabilities", (), "aggregator", _arguments, _run)
