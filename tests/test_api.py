"""The Python API: a fleet in one call, what it gives back, and a finished model that is asked."""

from __future__ import annotations

import json
import os
import pickle
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
import packages
import pytest

import aggregator
import edge_client
import export
import seedmask
import sim
from aggregator.history import job_result
from aggregator.rules import FedPM, Votes, theta_of
from aggregator.settings import AggregationConfig
from edge_client.data import Dataset
from seedmask import Model, UserError, load_model
from seedmask.bundle import Bundle, to_bytes
from seedmask.errors import MissingPackageError
from seedmask.mask import Theta
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
    assert repr(one).startswith("<History of tiny on arrays: ")
    assert len(repr(one)) < 200  # a notebook shows it
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
    assert np.array_equal(history.model.mask, after_two.model().mask)


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


def test_a_run_is_not_lost_for_want_of_a_picture(
    run: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.warns(UserWarning, match="no picture of the rounds: plot needs matplotlib"):
        run(rounds=1, out=tmp_path / "out")
    assert {"model.smk", "rounds.csv", "summary.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


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


# --- a server rule of one's own ---


class Even(FedPM):
    """Forgets every mask, after it has counted it."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, bytes]] = []

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        self.told.append((votes.round, votes.masks, memory))
        return theta_of(np.full(theta.d, 1 << 15), settings, votes.exact(theta)), bytes([votes.round])


def test_a_rule_that_is_an_object_concludes_every_round(run: Simulate, tmp_path: Path) -> None:
    rule = Even()
    history = run(aggregation=rule, out=tmp_path / "out", downlink=3)
    assert rule.told == [(1, 3, b""), (2, 3, b"\1"), (3, 3, b"\2"), (4, 3, b"\3")]
    assert [theta.level.tolist() for theta in job_result(tmp_path / "out/aggregator/job.sqlite").recent] == [[1] * 324]
    assert history.rounds[-1].accuracy.mean < 0.6 < run().rounds[-1].accuracy.mean
    named = run(aggregation={"rule": "fedpm"})
    assert np.array_equal(named.model.mask, run().model.mask)


def test_a_rule_that_fails_ends_the_run_with_its_own_traceback(run: Simulate) -> None:
    class Broken(Even):
        def conclude(self, *_: object) -> tuple[Theta, bytes]:
            return 1 / 0  # type: ignore[return-value]

    with pytest.raises(UserError, match="rule 'Broken' failed in conclude, round 1: ZeroDivisionError") as caught:
        run(aggregation=Broken())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


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
        ({"aggregation": 3}, "`aggregation` is a mapping .*, or a rule .*; found int, which lacks start and conclude"),
        ({"aggregation": Even}, "`aggregation` is a rule, an object; found Even, a class: call it"),
        (
            {"aggregation": Even(), "clock": "real"},
            r"Even is an object .* entry point of seedmask\.rules, .*: NAME",
        ),
        ({"aggregation": Even(), "rule": "fedpm"}, "`aggregation` is a rule, and `rule` names another one"),
        ({"rule": "fedmp"}, r"rule 'fedmp' is not installed; there are .*; did you mean 'fedpm'\?"),
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
        ({"model_seed": 7}, "`model_seed` is for an export; tiny has been exported already"),
    ],
)
def test_what_cannot_be_run_says_what_can(run: Simulate, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": "3"}, "`devices` is an integer, found '3'"),
        ({"devices": True}, "`devices` is an integer, found True"),
        ({"rounds": None}, "`rounds` is an integer, found None"),
        ({"examples": 9.5}, "`examples` is an integer, found 9.5"),
        ({"seed": "one"}, "`seed` is an integer, found 'one'"),
        ({"crash": "often"}, "`crash` is a number, found 'often'"),
        ({"split": 2}, "`split` is a text, found 2"),
        ({"on_round": 3}, "`on_round` is a function of a RoundRecord, found int"),
        ({"runtime": None}, "`runtime` is a text, found None"),
        ({"runtime": "abacus"}, "^`runtime` is of executorch, onnxruntime, "),
        ({"rounds": 1 << 16}, r"^`rounds` is 1 \.\. 65535, found 65536"),
        ({"deadline": -1}, r"^`deadline` is 1 \.\. 4000000 seconds, found -1"),
        ({"test": None, "test_share": float("nan")}, "`test_share` is above 0 and below 1"),
        ({"codec": "#200"}, "codec '#200' is unknown; there are packed, rans, hmrc"),
        ({"test": (np.zeros((4, 9)), np.zeros(4, int))}, r"of what measures the model, inputs are \[9\]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_before_anything_runs(
    run: Simulate, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(**changes)


def test_a_set_with_a_name_may_be_what_measures(
    run: Simulate, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import numpy as np\n"
        "from edge_client.data import Dataset, TrainTest\n"
        "def load(folder):\n"
        "    with np.load(folder / 'tiny.npz') as found:\n"
        "        return TrainTest('tiny-images', 'made up', None, Dataset(found['x'], found['y']))\n"
    )
    np.savez(tmp_path / "tiny.npz", x=tiny_data.x[:40], y=tiny_data.y[:40])
    announced = "[seedmask.datasets]\ntiny-images = seedmask_tiny_images:load\n"
    packages.install(monkeypatch, tmp_path, "seedmask-tiny-images", announced, seedmask_tiny_images=source)
    path = tmp_path / "own.npz"
    np.savez(path, x=tiny_data.x, y=tiny_data.y)
    with pytest.raises(UserError, match="no data set called 'huge'; there are auto, "):
        run(test="huge")
    assert run(data=path, test="tiny-images", data_dir=tmp_path, rounds=1).summary["test_examples"] == 40
    with pytest.raises(UserError, match="`data_dir` is for named data sets"):
        run(data=path, test=tiny_data, data_dir=tmp_path)


def test_numpys_numbers_are_as_good_as_pythons(run: Simulate) -> None:
    numbers = {"devices": np.int64(2), "rounds": np.int32(1), "seed": np.uint8(3), "learning_rate": np.float32(0.1)}
    plain = {"devices": 2, "rounds": 1, "seed": 3, "learning_rate": 0.1}
    assert run(**numbers).summary == run(**plain).summary


@pytest.mark.requires("torch", "onnx")
@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.arange(96) % 4 - 1, r"classes are 0 \.\. n - 1, found -1 \.\. 2"),
        (np.eye(4, dtype=int)[np.arange(96) % 4], r"y int64 \[77, 4\] in `data` .*; one-hot rows y become classes by"),
        (np.arange(96) % 4 / 1.0, r"not one number for each of 1 classes \(`data` has y float32, so that this is a "),
        (
            np.arange(96) % 3,
            r"not one number for each of 3 classes \(`data` has classes 0 \.\. 2; an export of your own",
        ),
    ],
)
def test_targets_that_a_module_does_not_give_say_what_they_were_taken_for(
    run: Simulate, tiny_data: Dataset, y: Any, says: str
) -> None:
    from torch import nn

    with pytest.raises(UserError, match=says):
        run(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), (tiny_data.x, y), test=None)


@pytest.mark.requires("torch", "onnx")
def test_a_layer_that_is_refused_is_not_blamed_on_the_targets(run: Simulate) -> None:
    from torch import nn

    with pytest.raises(UserError, match=r"Softmax '2' is not supported(.|\n)*Identity$"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1)))


@pytest.mark.requires("torch", "onnx")
def test_a_module_is_exported_for_finite_numbers_and_a_class_of_modules_for_none(
    run: Simulate, tiny_data: Dataset
) -> None:
    from torch import nn

    with pytest.raises(UserError, match="found Flatten, a class: call it"):
        run(nn.Flatten)
    for wrong in (np.nan, np.inf):
        x = np.where(tiny_data.x > 200, wrong, tiny_data.x / 255)
        with pytest.raises(UserError, match="`data` has inputs that are NaN or infinite"):
            run(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), (x, tiny_data.y))


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


def test_a_history_goes_to_another_process_whole_even_when_its_model_was_asked(
    run: Simulate, tiny_data: Dataset
) -> None:
    history = run(rounds=1)
    said = history.model.predict(tiny_data.x)
    copy = pickle.loads(pickle.dumps(history))
    assert copy.rounds == history.rounds
    assert copy.summary == history.summary
    assert np.array_equal(copy.model.predict(tiny_data.x), said)


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


@pytest.mark.parametrize("package", [aggregator, edge_client, export, seedmask, sim])
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
    assert not loaded("from aggregator import RunConfig, PRESETS; from export import export_bundle") & heavy
    assert not loaded("from sim import simulate, History, StopSimulation") & heavy
    assert not loaded("from edge_client import *") & heavy


def test_a_device_loads_nothing_of_the_workbench_the_simulator_or_the_server() -> None:
    pytest.importorskip("onnxruntime")
    bundle = str(Path(sim.__file__).parent / "bundles" / "mlpn.bundle")
    started = loaded(
        "import edge_client.cli, edge_client.trainer; from edge_client import open_runtime; "
        f"from seedmask import bundle; open_runtime('onnxruntime', bundle.load(__import__('pathlib').Path({bundle!r})))"
    )
    assert {"edge_client", "onnxruntime", "paho"} <= started
    assert not started & {"torch", "onnx", "matplotlib", "pandas", "sklearn", "rich", "sim", "export", "aggregator"}


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
