"""A package of somebody else's, really installed: `tests/plugin` has one plug-in of each kind, and commands use it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from capabilities import ROOT

from aggregator import rules
from aggregator.broker import dev_broker
from aggregator.history import results
from aggregator.rules import FedPM, Votes
from aggregator.settings import AggregationConfig
from edge_client import runtimes
from edge_client.data import formats
from seedmask import bundle as bundles
from seedmask.bundle import Bundle, to_bytes
from seedmask.mask import Theta
from seedmask.spec import ModelSpec

HOST = "127.0.0.1"
PAGE = ROOT / "docs" / "how-to" / "plug-ins.md"


def started(plugin: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """`seedmask` in a process that finds the package as if pip had put it into the environment."""
    command = [sys.executable, "-m", "seedmask.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(plugin), "MPLBACKEND": "Agg"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    """Return all that a process said, once it has ended."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return f"{out}{err}"


# --- what commands find ---


@pytest.mark.slow
def test_runtimes_are_listed_with_those_of_packages(plugin: Path) -> None:
    rows = json.loads(ended(started(plugin, "client", "runtimes", "--json")))
    (abacus,) = [row for row in rows if row["runtime"] == "abacus"]
    assert abacus["ready"]


@pytest.mark.slow
def test_settings_name_the_rules_that_are_installed_and_the_keys_of_every_data_source(plugin: Path) -> None:
    said = ended(started(plugin, "settings", "rule"))
    assert re.search(r"^ +here +fedpm, lasting$", said, re.M)
    assert re.match(r'side, edge\.toml \[data\] .*format = "stripes', ended(started(plugin, "settings", "side")))
    run, edge = (json.loads(ended(started(plugin, "settings", "--schema", name))) for name in ("run", "edge"))
    rule = run["properties"]["aggregation"]["properties"]["rule"]
    assert (rule["type"], rule["examples"]) == ("string", ["fedpm", "lasting"])
    assert "stripes" in [one["properties"]["format"]["const"] for one in edge["properties"]["data"]["oneOf"]]


def test_a_rule_that_is_not_installed_is_refused_before_anything_is_written(
    plugin: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    run = run_toml(tmp_path, tiny_bundle, 1883, rule="lastng")
    said = ended(started(plugin, "aggregator", "run", "--config", run), 2)
    assert said.rstrip().endswith(
        "[aggregation] rule 'lastng' is not installed; there are fedpm, lasting; did you mean 'lasting'?"
    )
    assert not (tmp_path / "server").exists()


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.requires("torch", "onnx")
def test_export_writes_what_a_packages_target_makes(plugin: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlpn.bundle"
    ended(started(plugin, "export", "mlpn", "--runtimes", "text", "--batch", "16", "-o", path))
    made = bundles.load(path)
    assert list(made.files) == ["text/tensors.txt"]
    first, *others = made.file("text/tensors.txt").decode().splitlines()
    assert first == "mlpn, 16 examples a step"
    assert len(others) == len(made.spec.tensors)


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.requires("sim")
def test_a_simulation_takes_a_packages_data_set_runtime_and_rule_by_name(plugin: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = ["--virtual", "--devices", "2", "--rounds", "2", "--examples", "32", "--seed", "1", "--out", out]
    named = ["--data", "garden", "--runtime", "abacus", "--set", "rule=lasting"]
    ended(started(plugin, "simulate", "--model", "mlpn", *few, *named))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["dataset"], summary["test_examples"]) == ("garden", 100)
    assert list(summary["runtimes"]) == ["abacus"]
    assert concluded_by(out / "aggregator" / "job.sqlite") == ["lasting"] * 2


# --- a job with real processes ---


def run_toml(folder: Path, bundle: Bundle, port: int, rule: str = "lasting") -> Path:
    (folder / "tiny.bundle").write_bytes(to_bytes(bundle))
    path = folder / "run.toml"
    path.write_text(
        'job = "job"\nbundle = "tiny.bundle"\nstate_dir = "server"\n[rounds]\ntotal = 3\ndevices = 2\n'
        f'[aggregation]\nrule = "{rule}"\n[broker]\nhost = "{HOST}"\nport = {port}\n'
    )
    return path


def edge_toml(folder: Path, device: str, seed: int, port: int) -> Path:
    home = folder / device
    home.mkdir()
    (home / "edge.toml").write_text(
        f'device = "{device}"\njob = "job"\nbundle = "../tiny.bundle"\nstate_dir = "state"\nruntime = "abacus"\n'
        f'[data]\nformat = "stripes"\nseed = {seed}\nside = 4\ncount = 48\n'
        f'[broker]\nhost = "{HOST}"\nport = {port}\n'
    )
    return home / "edge.toml"


def concluded_by(database: Path) -> list[str]:
    """The rule that concluded each round."""
    with sqlite3.connect(database) as db:
        return [rule for (rule,) in db.execute("SELECT rule FROM rounds ORDER BY round")]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.requires("mosquitto")
def test_devices_train_a_packages_data_on_its_runtime_and_its_rule_concludes(
    plugin: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    with dev_broker(HOST) as broker:
        run = run_toml(tmp_path, tiny_bundle, broker.port)
        server = started(plugin, "aggregator", "run", "--config", run)
        devices = [
            started(plugin, "client", "run", "--config", edge_toml(tmp_path, device, seed, broker.port))
            for seed, device in enumerate(("one", "two"))
        ]
        said = ended(server)
        for device in devices:
            ended(device)
    assert "rule lasting" in said
    assert "one is here: 48 examples, abacus" in said
    database, d = tmp_path / "server" / "job.sqlite", tiny_bundle.spec.d
    assert concluded_by(database) == ["lasting"] * 3
    with sqlite3.connect(database) as db:
        (memory,) = db.execute("SELECT memory FROM rounds WHERE round = 3").fetchone()
    assert len(memory) == 8 * d
    found = [theta for _, theta in results(database, d)]
    assert [theta.max_level for theta in found] == [255] * 3  # FedPM would have counted two devices' 96 examples
    assert 60 < found[0].level.min() < found[0].level.max() < 195  # half of the way from one half


# --- in this process ---


def test_a_packages_rule_goes_on_from_what_it_remembered(
    plugin: Path, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(plugin))
    rule, settings = rules.load("lasting"), AggregationConfig(rule="lasting", downlink=101)
    theta, memory = rule.start(tiny_spec, settings), b""
    assert theta.digest() == FedPM().start(tiny_spec, settings).digest()
    levels = []
    for round_ in (1, 2, 3):
        votes = Votes.empty(tiny_spec.d, round_=round_).with_mask(Theta.even(tiny_spec.d).level.astype("u1"))
        theta, memory = rule.conclude(votes, theta, memory, settings)
        levels.append(set(theta.level.tolist()))
    assert levels == [{75}, {88}, {94}]  # 1/2, 3/4, 7/8 and 15/16 of a hundred levels


def test_a_package_of_another_environment_is_not_found_here(plugin: Path) -> None:
    assert str(plugin) not in sys.path
    assert "lasting" not in rules.names()
    assert "abacus" not in runtimes.names()
    assert "stripes" not in formats()


# --- the page that shows it ---


def test_the_how_to_shows_this_package_as_it_is() -> None:
    plugin = ROOT / "tests" / "plugin"
    shown = re.findall(r"^```(?:python|toml)\n# ([\w/.]+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert {name for name, _ in shown} == {
        "pyproject.toml",
        *(f"seedmask_garden/{module}.py" for module in ("data", "dataset", "rule", "runtime", "target")),
    }
    for name, text in shown:
        assert text == (plugin / name).read_text(encoding="utf-8"), name
