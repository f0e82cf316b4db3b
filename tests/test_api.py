"""The Python API: a fleet in one call, what it gives back, and a finished model that is asked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seedmask
import sim
from aggregator.history import job_result
from aggregator.posterior import finished
from edge_client.data import Dataset
from seedmask import Model, UserError, load_model
from seedmask.bundle import Bundle, to_bytes
from seedmask.errors import MissingPackageError
from seedmask.model import FinishedModel
from seedmask.spec import Linear, ModelSpec, ReLU, Tensor, scale_bits
from sim import History, RoundRecord, StopSimulation, simulate
from sim.datasets import own

Simulate = Callable[..., History]


@pytest.fixture
def run(tiny_bundle: Bundle, tiny_data: Dataset, no_sync: None) -> Simulate:
    """`simulate` with a network that NumPy trains in no time."""

    def run(model: Any = tiny_bundle, data: Any = (tiny_data.x, tiny_data.y), **changes: Any) -> History:
        few = {"devices": 3, "rounds": 4, "runtime": "reference", "codec": "rans", "seed": 1}
        return simulate(model, data, **{"test": tiny_data, **few, **changes})

    return run


# --- a run ---


def test_a_fleet_learns_and_its_history_has_every_round(run: Simulate) -> None:
    seen: list[RoundRecord] = []
    history = run(on_round=seen.append)
    assert history.rounds == tuple(seen)
    assert [record.round for record in history.rounds] == [1, 2, 3, 4]
    assert [record.updates for record in history.rounds] == [3] * 4
    assert history.rounds[-1].accuracy.mean > 0.6
    assert history.summary["accuracy"]["mean"] == history.rounds[-1].accuracy.mean  # of as many test examples
    assert not history.stopped


def test_a_record_prints_as_one_line_for_people(run: Simulate, capsys: pytest.CaptureFixture[str]) -> None:
    run(on_round=print)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    share, number = r"\d+\.\d%", r"\d+\.\d+"
    line = rf"round 1: accuracy {share} mean, {share} thresholded, {share} sampled; loss {number}, 3 updates of .*"
    assert re.fullmatch(line, lines[0])


def test_the_same_seed_gives_the_same_history_and_another_one_another(run: Simulate) -> None:
    one, two, other = run(), run(), run(seed=2)
    assert one.summary == two.summary
    assert np.array_equal(one.model.mask, two.model.mask)
    assert one.summary != other.summary


@pytest.mark.requires("sim")
def test_whoever_is_told_of_a_round_may_end_the_run_with_it(run: Simulate, tmp_path: Path) -> None:
    def second(record: RoundRecord) -> None:
        if record.round == 2:
            raise StopSimulation

    history, whole = run(on_round=second), run(out=tmp_path / "whole")
    assert history.stopped
    assert history.rounds == whole.rounds[:2]
    assert history.summary["rounds"] == 2
    after_two = job_result(tmp_path / "whole" / "aggregator" / "job.sqlite", until=2)
    assert np.array_equal(history.model.mask, finished(after_two.recent)[0])


def test_a_mistake_in_on_round_is_its_callers_and_leaves_nothing_behind(
    run: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def wrong(record: RoundRecord) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(on_round=wrong)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("seedmask")]


@pytest.mark.requires("sim")
def test_without_a_folder_nothing_is_left_and_a_named_one_is_kept(
    run: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    run(rounds=1)
    assert list((tmp_path / "temporary").iterdir()) == []
    out = tmp_path / "kept"
    for _ in range(2):  # what a simulation made, the next one may empty
        history = run(rounds=1, out=out)
    assert json.loads((out / "summary.json").read_text()) == history.summary
    assert (out / "model.smk").read_bytes() == (out / "aggregator" / "model.smk").read_bytes()
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_with_something_else_in_it_is_refused(run: Simulate, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and no simulation made it"):
        run(out=tmp_path)
    assert (tmp_path / "precious").read_text() == "years of work"


def test_a_model_of_numbers_is_measured_by_its_error(run: Simulate) -> None:
    tensors = Tensor("0.weight", (64, 4), scale_bits(0.7)), Tensor("2.weight", (1, 64), scale_bits(0.18))
    layers = Linear("0.weight", None), ReLU(), Linear("2.weight", None)
    bundle = Bundle(ModelSpec("numbers", 7, (4,), (-1, 1), 1, layers, tensors, "mse"), 16, {})
    x = np.random.default_rng(1).uniform(-1, 1, (300, 4)).astype(np.float32)
    history = run(bundle, (x, (x[:, 0] - x[:, 1]) / 2), test=None, split="sizes:3")
    assert history.rounds[-1].error.mean < history.rounds[0].error.mean
    assert history.summary["error"]["mean"] < 0.5 / 6  # half of what it is for who always says 0
    assert re.match(r"round 1: error 0\.\d+ mean, ", str(history.rounds[0]))
    with pytest.raises(AttributeError, match="measured by its error; there is no accuracy"):
        history.rounds[0].accuracy  # noqa: B018 - asking is the point
    assert history.model.predict(x).shape == (300, 1)
    with pytest.raises(UserError, match="'classes:2' deals out classes, and these targets are none"):
        run(bundle, (x, x[:, 0]), test=None, split="classes:2")


# --- data ---


def test_what_is_held_out_is_trained_on_by_nobody_and_said(run: Simulate, tiny_data: Dataset) -> None:
    history = run(test=None)
    assert history.summary["test_examples"] == 19
    assert history.summary["origin"] == "given; 19 of its 96 examples held out as a test set"
    found = own.joined(
        "x", "given", Dataset(np.arange(50)[:, None], np.arange(50)), None, 0.3, np.random.default_rng(1)
    )
    assert (len(found.train.y), len(found.test.y)) == (35, 15)
    assert sorted([*found.train.y, *found.test.y]) == list(range(50))


def test_an_archive_brings_its_test_set_or_has_some_held_out(run: Simulate, tiny_data: Dataset, tmp_path: Path) -> None:
    half, path = len(tiny_data.y) // 2, tmp_path / "mine.npz"
    x, y = tiny_data.x, tiny_data.y
    np.savez(path, x=x[:half], y=y[:half], x_test=x[half:], y_test=y[half:])
    assert run(data=path, test=None).summary["test_examples"] == half
    np.savez(path, x=x, y=y)
    assert run(data=str(path), test=None, test_share=0.5).summary["test_examples"] == half
    np.savez(path, x=x, y=y, x_test=x)
    with pytest.raises(UserError, match=r"has arrays x, y, x_test; it lacks y_test"):
        run(data=path, test=None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devces": 3}, "simulate has no argument 'devces'; did you mean 'devices'?"),
        ({"epoch": 3}, "simulate has no argument 'epoch'; did you mean 'epochs'?"),
        ({"training": {"epoch": 3}}, "`training` has no key 'epoch'; did you mean 'epochs'?"),
        ({"aggregation": {"epochs": 3}}, "`aggregation` has no key 'epochs'"),
        ({"training": {"codec": "rans"}}, "'codec' is given twice"),
        ({"aggregation": 3}, "`aggregation` is a mapping of its table's keys, found int"),
        ({"epochs": 0}, "epochs is 1 .. 65535, found 0"),
        ({"devices": 0}, "`devices` is at least 1, found 0"),
        ({"clock": "wall"}, '`clock` is "virtual" or "real", found \'wall\''),
        ({"split": "random"}, "there are iid, c_max"),
        ({"model": dict}, "`model` is a torch module, .*, found dict, a class: call it"),
        ({"model": 3}, "`model` is a torch module, .*, found int"),
        ({"model": "nowhere.bundle"}, "cannot read the bundle nowhere.bundle"),
        ({"data": "imagenet"}, "no data set called 'imagenet'; there are auto, "),
        ({"data": np.zeros((4, 4))}, r"`data` is a pair \(x, y\) of arrays, .*, found ndarray"),
        ({"data": (np.zeros((4, 16)), np.zeros(3, int))}, "`data` has one y for each x, found 4 inputs and 3 of y"),
        ({"data": (np.zeros((4, 9)), np.zeros(4, int))}, "tiny takes inputs of 1x4x4, those of arrays are 9"),
        ({"data": (np.zeros((4, 16)), np.full(4, 7))}, r"labels 7 .. 7, model tiny has classes 0 .. 3"),
        ({"test_share": 0.5}, "`test` and `test_share` exclude each other"),
        ({"test": None, "test_share": 1.0}, "`test_share` is above 0 and below 1"),
        ({"broker": "localhost:1883"}, "`broker` and virtual time exclude each other"),
        ({"model_seed": 7}, "`model_seed` is for an export; that of tiny is behind it"),
    ],
)
def test_what_cannot_be_run_says_what_can(run: Simulate, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(**changes)


# --- what comes of it ---


@pytest.mark.requires("sim", "pandas")
def test_a_history_is_a_picture_and_a_table(run: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = run(rounds=2)
    history.plot(tmp_path / "found.svg")
    assert b"<svg" in (tmp_path / "found.svg").read_bytes()
    table = history.to_dataframe()
    assert table.index.tolist() == [1, 2]
    assert table.accuracy_mean.tolist() == [record.accuracy.mean for record in history.rounds]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="to_dataframe needs pandas: pip install pandas"):
        history.to_dataframe()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match="plot needs matplotlib: pip install matplotlib"):
        history.plot(tmp_path / "found.png")


def test_a_saved_model_says_what_the_historys_model_says(
    run: Simulate, tiny_data: Dataset, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    history = run()
    history.model.save(tmp_path / "model.smk")
    model = load_model(tmp_path / "model.smk")
    assert np.array_equal(model.mask, history.model.mask)
    assert model.spec == tiny_bundle.spec
    said = model.predict(tiny_data.x)
    assert said.shape == (96,)
    assert float((said == tiny_data.y).mean()) == pytest.approx(history.summary["accuracy"]["thresholded"], abs=1e-6)
    assert np.array_equal(history.model.predict(tiny_data.x), said)
    assert np.array_equal(model.scores(tiny_data.x).argmax(1), said)
    assert set(np.unique(np.abs(model.weights()))) == {0.0, 0.5}
    assert model.parameters()["a.weight"].shape == (16, 16)
    assert "tiny: 324 weights" in repr(model)
    with pytest.raises(UserError, match=r"inputs are \[3\], model tiny takes \[1, 4, 4\]"):
        model.predict(np.zeros((2, 3)))


def test_a_bundle_that_is_named_has_to_be_the_models(tmp_path: Path, tiny_bundle: Bundle) -> None:
    path, other = tmp_path / "model.smk", tmp_path / "other.bundle"
    Model(FinishedModel(tiny_bundle.spec, np.ones(324, np.uint8))).save(path)
    other.write_bytes(to_bytes(Bundle(replace(tiny_bundle.spec, seed=8), 8, {})))
    with pytest.raises(UserError, match=r"other\.bundle is model .*, .*model\.smk is of "):
        load_model(path, other)
    other.rename(tmp_path / "model.bundle")  # beside it, but another model's: not asked for, not taken
    assert load_model(path).bundle is None
    (tmp_path / "model.bundle").write_bytes(to_bytes(tiny_bundle))
    assert load_model(path).bundle == tiny_bundle


def test_what_opens_a_model_says_so_where_nothing_can_run_it(
    tiny_bundle: Bundle, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **wanted: ())
    model = Model(FinishedModel(tiny_bundle.spec, np.ones(324, np.uint8)))
    with pytest.raises(MissingPackageError, match=r"nothing installed here announces seedmask\.predictors"):
        model.predict(tiny_data.x)


# --- what is public, and what it costs ---


@pytest.mark.parametrize("package", [seedmask, sim])
def test_every_public_name_is_there_and_documented(package: Any) -> None:
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert isinstance(value, int | str) or value.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'simulated'; public: "):
        package.simulated  # noqa: B018 - asking is the point


def loaded(code: str) -> set[str]:
    """Packages that a fresh interpreter has loaded after `code`."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_is_cheap() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "pandas", "sklearn", "scipy", "rich", "paho"}
    assert not loaded("import seedmask, sim, edge_client, aggregator, export") & (heavy | {"numpy"})
    assert not loaded("from seedmask import load_model, Bundle, UserError") & heavy
    assert not loaded("from sim import simulate, History, StopSimulation") & heavy


# --- programs of a few lines ---


def fresh(program: str, folder: Path, *, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `program` as if pasted into a new interpreter: there is no file that another process could import."""
    done = subprocess.run(
        [sys.executable, "-"],
        input=program,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=240,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


TINY = """
import numpy as np
from seedmask.bundle import Bundle
from seedmask.spec import Linear, ModelSpec, Tensor, scale_bits
from sim import simulate

rng = np.random.default_rng(1)
y = np.arange(90) % 3
x = np.eye(3, dtype=np.float32)[y] + rng.normal(0, 0.1, (90, 3)).astype(np.float32)
spec = ModelSpec("tiny", 7, (3,), (-1, 1), 3, (Linear("w", None),), (Tensor("w", (3, 3), scale_bits(1.0)),))
"""


def test_ctrl_c_ends_a_pasted_run_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = TINY + (
        "import os, signal\n"
        "def interrupt(record): os.kill(os.getpid(), signal.SIGINT)\n"
        "simulate(Bundle(spec, 8, {}), (x, y), devices=3, rounds=50, runtime='reference', on_round=interrupt)\n"
    )
    done = fresh(program, tmp_path, status=-signal.SIGINT, TMPDIR=str(tmp_path))
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which torch and onnx cannot be imported."""
    hidden = tmp_path / "hidden"
    for package in ("torch", "onnx"):
        (hidden / package).mkdir(parents=True)
        (hidden / package / "__init__.py").write_text(f"raise ImportError('hidden', name='{package}')")
    return {"PYTHONPATH": str(hidden)}


@pytest.mark.slow
@pytest.mark.requires("onnxruntime", "sim")
def test_a_network_that_ships_needs_no_torch_whatever_its_seed(tmp_path: Path, without_torch: dict[str, str]) -> None:
    program = (
        "from sim import simulate\n"
        "for seed in (None, 7):\n"
        "    few = dict(devices=2, rounds=1, examples=64, eval_examples=64, model_seed=seed, seed=1)\n"
        "    print(simulate('mlpn', 'digits', **few).model.spec.seed)\n"
        "try:\n"
        "    simulate('mixer', 'digits')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    first, second, third = fresh(program, tmp_path, **without_torch).stdout.splitlines()
    assert (first, second) == ("1", "7")
    assert third.startswith("`model` mixer has to be exported first, which needs torch: pip install 'seedmask[export]'")
    assert third.endswith("without it there are mlpn, mlp, conv4, conv4s, conv4n, lenet5, and bundles")


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.requires("mosquitto")
def test_with_the_real_clock_devices_are_processes_and_stopping_ends_them(tmp_path: Path) -> None:
    program = TINY + (
        "from sim import StopSimulation\n"
        "def second(record):\n"
        "    if record.round == 2: raise StopSimulation\n"
        "history = simulate(Bundle(spec, 8, {}), (x, y), devices=2, rounds=40, runtime='reference', clock='real',\n"
        "                   on_round=second, out='out', codec='rans')\n"
        "print([record.round for record in history.rounds], history.stopped, history.summary['clock'])\n"
    )
    done = fresh(program, tmp_path)
    assert done.stdout.splitlines()[-1] == "[1, 2] True wall"
    pids = json.loads((tmp_path / "out" / "pids.json").read_text())
    assert len(pids) == 3
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
