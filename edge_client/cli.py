"""`seedmask client`: run this machine as a device, or see what could train here."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from edge_client import data as datasets
from edge_client import memory, runtimes
from edge_client.client import Client, Identity, new_boot
from edge_client.config import EXAMPLE, EdgeConfig
from edge_client.outbox import Outbox
from edge_client.trainer import ProcessTrainer
from seedmask import bundle as bundles
from seedmask.io import logs, settings
from seedmask.io.commands import Command
from seedmask.io.files import hold
from seedmask.io.mqtt import MqttLink, check
from seedmask.io.process import sigterm_interrupts


def _arguments(parser: argparse.ArgumentParser) -> None:
    lines = "".join(f"    {line}\n" for line in EXAMPLE.splitlines())
    parser.epilog = f"example of edge.toml (`seedmask settings` explains every key):\n\n{lines}"
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    run = actions.add_parser("run", help="take part in a job until it is done")
    run.add_argument("--config", type=Path, required=True, metavar="edge.toml", help="settings of this device")
    run.add_argument(
        "--check",
        action="store_true",
        help="read settings, data, bundle and TLS files, say what was found, and stop before connecting",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="say more")
    listing = actions.add_parser("runtimes", help="what can train on this machine, and how to get the rest")
    listing.add_argument("--bundle", type=Path, metavar="FILE", help="also: whose graphs this bundle has")
    listing.add_argument("--json", action="store_true", help="as JSON")


def _run(options: argparse.Namespace) -> int:
    if options.action == "runtimes":
        return _runtimes(options.bundle, options.json)
    config = settings.load(EdgeConfig, options.config)
    bundle = bundles.load(config.bundle)
    data = datasets.load(config.data, bundle.spec)
    runtimes.require(config.runtime)
    runtimes.require_graphs([config.runtime], bundle)
    how = ""
    if fitted := memory.for_device(config, bundle, data.nbytes):
        chosen, estimate = fitted
        variant = f", variant {chosen.variant}" if chosen.variant else ""
        how = (
            f"\n{chosen.micro} of a step's {bundle.batch} examples at a time{variant}: "
            f"about {estimate / memory.MB:.0f} of {config.memory_mb} MB while training, an estimate"
        )
    outbox = Outbox(config.state_dir / "outbox", config.job)
    check(config.broker)
    print(
        f"device {config.device}, job {config.job} on {config.broker.host}:{config.broker.port}\n"
        f"model {bundle.spec.name} ({bundle.spec.digest.hex()[:12]}), {bundle.spec.d:,} weights, "
        f"{len(data.y):,} examples, runtime {config.runtime}{how}",
        file=sys.stderr,
    )
    if doubt := datasets.doubtful_range(data, bundle.spec):
        print(f"warning: {doubt}", file=sys.stderr)
    if options.check:
        return 0
    logs.to_stderr(config.device, options.verbose)
    sigterm_interrupts()
    who = Identity(config.device, config.job, bundle.spec, len(data.y), config.runtime, new_boot())
    # Two clients of one name would take the connection from each other for ever, and send each other's updates.
    with hold(config.state_dir / "client.lock", f"another client of {config.device}"):
        return _work(config, who, outbox)


def _work(config: EdgeConfig, who: Identity, outbox: Outbox) -> int:
    link = MqttLink(config.broker, f"{config.job}.{config.device}", who.will())
    trainer = ProcessTrainer(config)
    client = Client(who, link, outbox, trainer, time.monotonic, config.state_dir / "journal.jsonl")
    try:
        client.run(config.stay)
    finally:
        client.leave()
    return 0


def _runtimes(path: Path | None, as_json: bool) -> int:
    bundle = None if path is None else bundles.load(path)
    rows: list[dict[str, Any]] = []
    for name in runtimes.names():
        missing = runtimes.missing(name)
        row = {
            "runtime": name,
            "ready": not missing,
            "missing": missing,
            "versions": {} if missing else runtimes.versions(name),
            "install": runtimes.how_to_get(name),
        }
        rows.append(row if bundle is None else {**row, "bundle_lacks": runtimes.lacking(name, bundle)})
    print(json.dumps(rows, indent=1) if as_json else "\n".join(map(_runtime, rows)))
    return 0


def _runtime(row: dict[str, Any]) -> str:
    """One line of a runtime, one for each thing to know before its install, one of graphs that a bundle lacks."""
    if row["ready"]:
        state = "ready    " + ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    else:
        state = f"missing  {', '.join(row['missing'])}: " + row["install"].replace("; ", f"\n{'':<27}")
    line = f"{row['runtime']:<18}{state}"
    if lacks := row.get("bundle_lacks"):
        target = ",".join(runtimes.targets([row["runtime"]]))
        line += f"\n{'':<18}not in this bundle: {', '.join(lacks)}; seedmask export --runtimes {target}"
    return line


COMMAND = Command("client", "train on this machine as one device of a fleet", (), "onnxruntime", _arguments, _run)
