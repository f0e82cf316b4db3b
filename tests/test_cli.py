"""The `seedmask` command: teaches, never shows a traceback for a user's mistake, keeps its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seedmask import cli, model
from seedmask.bundle import Bundle, to_bytes
from seedmask.io.commands import Command
from seedmask.spec import Flatten, Linear, ModelSpec, Tensor, scale_bits


def spec() -> ModelSpec:
    weight = Tensor("1.weight", (10, 784), scale_bits(0.05))
    return ModelSpec("tiny", 7, (1, 28, 28), (0, 255), 10, (Flatten(), Linear("1.weight", None)), (weight,))


def test_every_program_is_found_by_its_entry_point() -> None:
    assert set(cli.commands()) >= {"client", "aggregator", "export", "inspect", "simulate"}


@pytest.mark.parametrize("command", ["client", "aggregator", "inspect"])
def test_help_teaches_and_needs_nothing_but_the_base_install(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: seedmask" in text
    if command != "inspect":
        assert "example of" in text


def test_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["clinet"]) == 2
    assert "did you mean 'client'?" in capsys.readouterr().err


def test_a_command_whose_packages_are_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Command("far", "needs much", ("no_such_package_anywhere",), "sim", lambda parser: None, lambda options: 0)
    monkeypatch.setattr(cli, "commands", lambda wanted=None: {"far": absent})
    assert cli.main(["far"]) == 3
    said = capsys.readouterr().err
    assert "no_such_package_anywhere" in said
    assert "pip install 'seedmask[sim]'" in said
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "not installed on this machine" in capsys.readouterr().out


def test_inspect_describes_a_bundle_and_a_finished_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, finished = tmp_path / "tiny.bundle", tmp_path / "model.smm"
    bundle.write_bytes(to_bytes(Bundle(spec(), 16, {})))
    finished.write_bytes(model.encode(model.FinishedModel(spec(), np.ones(7840, np.uint8))))
    assert cli.main(["inspect", str(bundle)]) == 0
    assert "7,840, none stored" in capsys.readouterr().out
    assert cli.main(["inspect", "--json", str(finished)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "finished model"
    assert facts["model"] == spec().digest.hex()
    assert facts["ones"] == 1.0


def test_inspect_refuses_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"SMM1 and then something else")
    assert cli.main(["inspect", str(odd)]) == 2
    assert cli.main(["inspect", str(tmp_path / "absent")]) == 2
    said = capsys.readouterr().err
    assert "damaged" in said
    assert "No such file" in said


def test_runtimes_lists_what_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["client", "runtimes", "--json"]) == 0
    rows = {row["runtime"]: row["missing"] for row in json.loads(capsys.readouterr().out)}
    assert rows["reference"] == []
    assert "onnxruntime" in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "--devices is at least 1"),
        (["--crash", "0.5"], "need --virtual"),
        (["--split", "random"], "there are iid and c_max"),
        (["--dataset", "fashion-mnist", "--data", "/nowhere"], "lacks train-images-idx3-ubyte"),
        (["--bundle", "/nowhere.bundle"], "cannot read the bundle"),
        (["--minimum", "5", "--quorum", "2"], "minimum (5) cannot be above quorum (2)"),
        (["--broker", "nonsense"], "--broker is HOST:PORT"),
    ],
)
def test_simulate_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    for package in ("rich", "matplotlib", "sklearn", "pooch"):
        pytest.importorskip(package)
    bundle = tmp_path / "tiny.bundle"
    bundle.write_bytes(to_bytes(Bundle(spec(), 16, {})))
    common = ["--dataset", "digits", "--runtime", "reference", "--out", str(tmp_path / "out"), "--images", "20"]
    assert cli.main(["simulate", "--bundle", str(bundle), *common, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_simulate_does_not_empty_a_folder_that_is_not_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("rich", "matplotlib", "sklearn", "pooch"):
        pytest.importorskip(package)
    bundle, precious = tmp_path / "tiny.bundle", tmp_path / "out" / "thesis.txt"
    bundle.write_bytes(to_bytes(Bundle(spec(), 16, {})))
    precious.parent.mkdir()
    precious.write_text("years of work")
    arguments = [
        "--bundle",
        str(bundle),
        "--dataset",
        "digits",
        "--runtime",
        "reference",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["simulate", *arguments]) == 2
    assert "choose another with --out" in capsys.readouterr().err
    assert precious.read_text() == "years of work"
