"""`seedmask client`: run this machine as a device of a fleet, or list the runtimes that can train on it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from edge_client.client import Client, Identity, new_boot
from edge_client.config import EXAMPLE, EdgeConfig
from edge_client.outbox import Outbox
from edge_client.runtimes import registry
from edge_client.runtimes.footprint import MB
from edge_client.trainer import Loaded, ProcessTrainer
from seedmask import bundle as bundles
from seedmask.io import logs, settings
from seedmask.io.commands import Command
from seedmask.io.files import acquire_lock
from seedmask.io.mqtt import MqttLink, check
from seedmask.io.process import sigterm_interrupts
from seedmask.spec import ModelSpec

EPILOG = f"""\
A device needs a bundle (written by `seedmask export`, the same file on every device), its own data, and an MQTT broker
that it can reach. It registers with the job, trains whenever a round selects it, and exits when the job is done. It may
be killed at any time: an update that the aggregator has not answered yet stays in state_dir and is sent again.

example of edge.toml (`seedmask settings` explains every key):

{"".join(f"    {line}" + chr(10) for line in EXAMPLE.splitlines())}
steps to take:
  seedmask client runtimes --bundle mlp.bundle        list the runtimes that can train this bundle here
  seedmask client run --config edge.toml --check      check settings, data and bundle; connect to nothing
  seedmask client run --config edge.toml              take part in the job
"""
_LOADING = """\
Training runs in a second process, which alone loads the data. Logs go to stderr.

exit status:
  0    the job is done (with --check: everything is in order)
  1    the work failed, as on a full disk; start it again
  2    settings, data, bundle or TLS files are wrong; the last line says what to change
  3    a package is missing; the last line says which one, and how to install it
  130  stopped by Ctrl-C or SIGTERM
"""
_LISTING = """\
A runtime computes the training steps: `reference` (plain NumPy), onnxruntime, torch, and those that other installed
packages add. They all compute the same step, so the devices of one job may use different ones. Each line says whether
the runtime is ready on this machine, or which command installs it. Put the name of a ready one into edge.toml as
`runtime`.
"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    raw = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    run = actions.add_parser("run", help="take part in a job until it is done", epilog=_LOADING, formatter_class=raw)
    run.add_argument("--config", type=Path, required=True, metavar="edge.toml", help="settings of this device")
    run.add_argument(
        "--check",
        action="store_true",
        help="read settings, data, bundle and TLS files, print a summary, and stop before connecting",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="log more")
    listing = actions.add_parser(
        "runtimes",
        help="list the runtimes that can train on this machine, and how to install the others",
        epilog=_LISTING,
        formatter_class=raw,
    )
    listing.add_argument("--bundle", type=Path, metavar="FILE", help="also say which graphs this bundle lacks")
    listing.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    if options.action == "runtimes":
        return _runtimes(options.bundle, options.json)
    config = settings.load(EdgeConfig, options.config)
    bundle = bundles.load(config.bundle)
    registry.require(config.runtime)
    registry.require_graphs([config.runtime], bundle)
    spec, batch = bundle.spec, bundle.batch
    del bundle  # its graphs take megabytes, and only the training process needs them
    check(config.broker)
    outbox = Outbox(config.state_dir / "outbox", config.job)
    sigterm_interrupts()
    with contextlib.closing(ProcessTrainer(config)) as trainer:
        loaded = trainer.load()
        print(_found(config, spec, batch, loaded), file=sys.stderr)
        if loaded.data.doubt:
            print(f"warning: {loaded.data.doubt}", file=sys.stderr)
        if options.check:
            return 0
        logs.to_stderr(config.device, options.verbose)
        who = Identity(config.device, config.job, spec, loaded.data.examples, config.runtime, new_boot())
        # A broker drops the older of two connections of one name: two such clients would throw each other out for ever,
        # and send each other's updates.
        with acquire_lock(config.state_dir / "client.lock", f"another client of {config.device}"):
            return _work(config, who, outbox, trainer)


def _found(config: EdgeConfig, spec: ModelSpec, batch: int, loaded: Loaded) -> str:
    """Return a summary for people: the device and its job, the model, the data, and the estimated memory."""
    how = ""
    if loaded.fit:
        chosen, estimate = loaded.fit
        variant = f", variant {chosen.variant}" if chosen.variant else ""
        how = (
            f"\n{chosen.micro} of a step's {batch} examples at a time{variant}: "
            f"about {estimate / MB:.0f} of {config.memory_mb} MB while training, an estimate"
        )
    return (
        f"device {config.device}, job {config.job} on {config.broker.host}:{config.broker.port}\n"
        f"model {spec.name} ({spec.digest.hex()[:12]}), {spec.d:,} weights, "
        f"{loaded.data.examples:,} examples, runtime {config.runtime}{how}"
    )


def _work(config: EdgeConfig, who: Identity, outbox: Outbox, trainer: ProcessTrainer) -> int:
    link = MqttLink(config.broker, f"{config.job}.{config.device}", who.will())
    client = Client(who, link, outbox, trainer, time.monotonic, config.state_dir / "journal.jsonl")
    try:
        client.run(config.stay)
    finally:
        client.leave()
    return 0


def _runtimes(path: Path | None, as_json: bool) -> int:
    bundle = None if path is None else bundles.load(path)
    rows: list[dict[str, Any]] = []
    for name in registry.names():
        missing = registry.missing(name)
        row = {
            "runtime": name,
            "ready": not missing,
            "missing": missing,
            "versions": {} if missing else registry.versions(name),
            "install": registry.how_to_get(name),
        }
        rows.append(row if bundle is None else {**row, "bundle_lacks": registry.lacking(name, bundle)})
    print(json.dumps(rows, indent=1) if as_json else "\n".join(map(_runtime, rows)))
    return 0


def _runtime(row: dict[str, Any]) -> str:
    """Return what to print of a runtime: its state or how to install it, then any graphs that the bundle lacks."""
    if row["ready"]:
        state = "ready    " + ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    else:
        state = f"missing  {', '.join(row['missing'])}: " + row["install"].replace("; ", f"\n{'':<27}")
    line = f"{row['runtime']:<18}{state}"
    if lacks := row.get("bundle_lacks"):
        target = ",".join(registry.targets([row["runtime"]]))
        line += f"\n{'':<18}not in this bundle: {', '.join(lacks)}; seedmask export --runtimes {target}"
    return line


COMMAND = Command("client", "train on this machine as one device of a fleet", (), "onnxruntime", _arguments, _run)
