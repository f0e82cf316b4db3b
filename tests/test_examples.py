"""The examples run as they stand, each in a folder of its own, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
pytestmark = [pytest.mark.slow]


def run(name: str, folder: Path, *needs: str) -> str:
    """What examples/`name`.py prints when it runs in `folder`."""
    for package in ("onnxruntime", "sklearn", "matplotlib", *needs):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg"},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def percent(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


@pytest.mark.export
def test_own_model_reads_digits_and_is_saved(tmp_path: Path) -> None:
    said = run("own_model", tmp_path, "torch", "onnx")
    assert len(re.findall(r"^round \d+: ", said, re.M)) == 10
    assert percent(r"accuracy ([\d.]+)% thresholded on 360 test examples", said) > 80
    assert (tmp_path / "own_model.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "own_model.smk").read_bytes().startswith(b"SMK1")


@pytest.mark.export
def test_own_data_are_read_from_a_file_and_the_run_stops_once_it_is_good_enough(tmp_path: Path) -> None:
    said = run("own_data", tmp_path, "torch", "onnx")
    assert "vibration.npz; 240 of its 1,200 examples held out as a test set" in said
    last = re.findall(r"^round (\d+): .* ([\d.]+)% thresholded", said, re.M)[-1]
    assert float(last[1]) >= 95
    assert said.endswith(f"stopped early after {last[0]} rounds\n")


def test_non_iid_compares_three_splits(tmp_path: Path) -> None:
    said = run("non_iid", tmp_path)
    ends = {split: percent(rf"{split} .* ([\d.]+)% after the last", said) for split in ("iid", "classes:2")}
    assert ends["iid"] > 80
    assert ends["iid"] > ends["classes:2"]
    assert (tmp_path / "non_iid.png").read_bytes().startswith(b"\x89PNG")


def test_a_rule_of_ones_own_concludes_every_round_and_learns_otherwise_than_fedpm(tmp_path: Path) -> None:
    said = run("own_rule", tmp_path)
    assert re.findall(r"^round (\d+): 8 masks, ", said, re.M) == [str(round_) for round_ in range(1, 9)]
    ends = {name: re.findall(r"([\d.]+)%", line) for name, line in re.findall(r"^(fedpm|Momentum): (.*)$", said, re.M)}
    assert [len(reached) for reached in ends.values()] == [8, 8]
    assert float(ends["Momentum"][-1]) > float(ends["fedpm"][-1]) > 40


@pytest.mark.export
def test_predict_and_export_gives_the_same_predictions_twice(tmp_path: Path) -> None:
    said = run("predict_and_export", tmp_path, "onnx")
    assert percent(r"([\d.]+)% of 360 digits are read correctly", said) > 80
    assert percent(r"digits\.onnx agrees on ([\d.]+)% of them", said) > 99
