"""`seedmask finalize`: the model of any closed round, and what each of its bytes is for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aggregator.store import Store
from seedmask import cli, model
from seedmask.codec import counts
from seedmask.mask import Theta
from seedmask.spec import ModelSpec


def theta(spec: ModelSpec, seed: int) -> Theta:
    return Theta(np.random.default_rng(seed).integers(0, 5, spec.d).astype(np.uint16), 4)


@pytest.fixture
def state(tmp_path: Path, tiny_spec: ModelSpec, no_sync: None) -> Path:
    """A job after three rounds, the fourth one open."""
    folder = tmp_path / "state"
    store = Store(folder / "job.sqlite", "fashion", tiny_spec.digest, tiny_spec.canonical(), tiny_spec.d)
    for round_ in (1, 2, 3):
        store.opened(round_, counts.encode(theta(tiny_spec, round_ - 1)), (), 1)
        store.closed(round_, counts.encode(theta(tiny_spec, round_)), {"round": round_})
    store.opened(4, counts.encode(theta(tiny_spec, 3)), (), 1)
    store.close()
    return folder


def test_it_is_the_threshold_of_the_last_closed_round(
    state: Path, tmp_path: Path, tiny_spec: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.smk"
    assert cli.main(["finalize", str(state), "-o", str(out)]) == 0
    made = model.load(out)
    assert made.spec == tiny_spec
    assert np.array_equal(made.mask, theta(tiny_spec, 3).threshold())
    said = capsys.readouterr().out
    assert "job fashion after round 3: tiny, 324 weights" in said
    assert f"{out.stat().st_size:,} bytes" in said


def test_its_sizes_add_up(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.smk"
    assert cli.main(["finalize", str(state), "-o", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    of = facts["sizes"]
    assert of["file"] == out.stat().st_size == of["mask"] + of["spec"] + 45
    assert facts["bits_per_parameter"] == pytest.approx(8 * of["file"] / 324, abs=1e-6)
    assert facts["mask_bits_per_parameter"] >= facts["entropy_bits_per_parameter"] > 0.9
    assert cli.main(["inspect", "--json", str(out)]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert {key: inspected[key] for key in facts if key in inspected} == {
        key: facts[key] for key in facts if key in inspected
    }
    assert inspected["sizes"] == of


def test_any_round_and_the_mean_of_several(state: Path, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    out = tmp_path / "model.smk"
    assert cli.main(["finalize", str(state), "--round", "2", "-o", str(out)]) == 0
    assert np.array_equal(model.load(out).mask, theta(tiny_spec, 2).threshold())
    assert cli.main(["finalize", str(state), "--average-last", "2", "-o", str(out), "--force"]) == 0
    mean = theta(tiny_spec, 2).probability() + theta(tiny_spec, 3).probability()
    assert np.array_equal(model.load(out).mask, mean >= 1)


def test_a_job_is_named_by_its_settings_or_the_folder_above(state: Path, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    settings = tmp_path / "run.toml"
    settings.write_text('job = "fashion"\nbundle = "none"\nstate_dir = "state"\n[aggregation]\naverage_last = 2\n')
    first, second = tmp_path / "first.smk", tmp_path / "second.smk"
    assert cli.main(["finalize", str(settings), "-o", str(first)]) == 0
    mean = theta(tiny_spec, 2).probability() + theta(tiny_spec, 3).probability()
    assert np.array_equal(model.load(first).mask, mean >= 1)
    assert cli.main(["finalize", str(tmp_path), "-o", str(second)]) == 0
    assert np.array_equal(model.load(second).mask, theta(tiny_spec, 3).threshold())


def test_it_overwrites_its_own_file_and_no_other(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.smk"
    for _ in range(2):
        assert cli.main(["finalize", str(state), "-o", str(out)]) == 0
    assert cli.main(["finalize", str(state), "--round", "1", "-o", str(out)]) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert cli.main(["finalize", str(state), "--round", "1", "-o", str(out), "--force"]) == 0


def test_what_cannot_be_says_why(
    state: Path, tmp_path: Path, tiny_spec: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "model.smk")]

    def refused(*arguments: str) -> str:
        assert cli.main(["finalize", *arguments, *out]) == 2
        return capsys.readouterr().err

    assert "round 4 is not there; round 3 is the latest one that closed" in refused(str(state), "--round", "4")
    assert "there is no" in refused(str(tmp_path / "nowhere"))
    assert "--average-last is 1 .. 4294967295, found 0" in refused(str(state), "--average-last", "0")
    assert f"--round is 0 .. 4294967295, found {1 << 70}" in refused(str(state), "--round", str(1 << 70))
    Store(tmp_path / "new" / "job.sqlite", "new", tiny_spec.digest, tiny_spec.canonical(), tiny_spec.d).close()
    assert "no model; none has closed yet" in refused(str(tmp_path / "new"))
    assert "holds several jobs" in refused(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "job.sqlite").write_bytes(b"no database at all, but long enough to have been one" * 40)
    assert "is no job's database, or a damaged one" in refused(str(other))
    (other / "job.sqlite").write_bytes(b"")
    assert "was made by another version" in refused(str(other))
    assert cli.main(["finalize", str(state), "-o", str(tmp_path / "none" / "model.smk")]) == 2
    assert "is not a file in a folder that exists" in capsys.readouterr().err


def test_a_damaged_result_is_no_traceback(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    with sqlite3.connect(state / "job.sqlite") as db:
        db.execute("UPDATE thetas SET counts = x'0102' WHERE number = 3")
    db.close()
    assert cli.main(["finalize", str(state), "-o", str(tmp_path / "model.smk")]) == 2
    assert "damaged" in capsys.readouterr().err
