"""The `seedmask` command: teaches, never shows a traceback for a user's mistake, keeps its exit statuses."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires

from aggregator.presets import PRESETS
from edge_client import runtimes
from seedmask import cli, model
from seedmask.bundle import Bundle, to_bytes
from seedmask.codec import counts
from seedmask.errors import UserError
from seedmask.io.commands import Command
from seedmask.spec import Flatten, Linear, ModelSpec, ReLU, Tensor, scale_bits
from seedmask.training import TrainingConfig
from sim.runtimes import assign


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """Leave SIGTERM as it was: a program's own way with it is not pytest's."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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
    bundle, finished = tmp_path / "tiny.bundle", tmp_path / "model.smk"
    bundle.write_bytes(to_bytes(Bundle(spec(), 16, {})))
    finished.write_bytes(model.encode(model.FinishedModel(spec(), np.ones(7840, np.uint8))))
    assert cli.main(["inspect", str(bundle)]) == 0
    assert "7,840, none stored" in capsys.readouterr().out
    assert cli.main(["inspect", "--json", str(finished)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "finished model"
    assert facts["model"] == spec().digest.hex()
    assert facts["ones"] == 1.0


def test_inspect_keeps_long_names_apart_from_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, member = "features.12.shortcut.weight", f"{'long-' * 7}runtime/training_model.onnx"
    tensors = (replace(spec().tensors[0], name=name),)
    long = replace(spec(), layers=(Flatten(), Linear(name, None)), tensors=tensors)
    path = tmp_path / "long.bundle"
    path.write_bytes(to_bytes(Bundle(long, 16, {member: b"graph"})))
    assert cli.main(["inspect", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name, "10x784", "7,840"] in [row[:3] for row in rows]
    assert [member, "5", "bytes"] in rows


def test_inspect_refuses_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"SMK1 and then something else")
    assert cli.main(["inspect", str(odd)]) == 2
    assert cli.main(["inspect", str(tmp_path / "absent")]) == 2
    said = capsys.readouterr().err
    assert "damaged" in said
    assert "No such file" in said


def test_runtimes_lists_what_is_ready_with_its_version_and_how_to_get_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtimes.registry, "missing", lambda name: [] if name == "reference" else ["a_package"])
    assert cli.main(["client", "runtimes", "--json"]) == 0
    rows = {row["runtime"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == runtimes.names()
    assert (rows["reference"]["ready"], rows["reference"]["missing"]) == (True, [])
    assert rows["reference"]["versions"] == {"numpy": np.__version__}
    assert rows["reference"]["install"] == "pip install 'seedmask' (in a clone: '.')"
    assert (rows["ort_training"]["ready"], rows["ort_training"]["missing"]) == (False, ["a_package"])
    assert (
        rows["ort_training"]["install"]
        == "pip install 'seedmask[ort-training]' (in a clone: '.[ort-training]'); x86-64 Linux, Python 3.10 or 3.11, "
        "in an environment of its own: it replaces onnxruntime"
    )
    assert cli.main(["client", "runtimes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["reference"].endswith(f"ready    numpy {np.__version__}")
    assert "missing  a_package: pip install 'seedmask[torch]'" in lines["torch"]


def test_the_version_of_a_package_without_an_init_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As executorch's wheel comes; another distribution whose name begins alike is none of it."""
    for name, version, file in (("Abacus-Wheel", "1.5.1", "abacus/beads.py"), ("more", "2.0", "abacus_more/beads.py")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{file},,\n../../bin/abacus,,\n")
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()  # since Python 3.12 only files that are there count
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(runtimes.registry, "_module", lambda name: types.SimpleNamespace(NEEDS=("abacus.training",)))
    assert runtimes.registry.versions("abacus") == {"Abacus-Wheel": "1.5.1"}


def test_runtimes_says_whose_graphs_a_bundle_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.bundle"
    files = dict.fromkeys(runtimes.registry.graphs("ort_training"), b"") | {"onnx/init.onnx": b""}
    path.write_bytes(to_bytes(Bundle(spec(), 16, files)))
    assert cli.main(["client", "runtimes", "--json", "--bundle", str(path)]) == 0
    rows = {row["runtime"]: row["bundle_lacks"] for row in json.loads(capsys.readouterr().out)}
    assert rows["reference"] == rows["torch"] == rows["ort_training"] == []
    assert rows["onnxruntime"] == ["onnx/grads.onnx", "onnx/eval.onnx"]
    assert cli.main(["client", "runtimes", "--bundle", str(path)]) == 0
    said = capsys.readouterr().out
    assert "not in this bundle: onnx/grads.onnx, onnx/eval.onnx; seedmask export" in said
    assert cli.main(["client", "runtimes", "--bundle", str(tmp_path / "none.bundle")]) == 2
    assert "cannot read the bundle" in capsys.readouterr().err


@pytest.mark.export
def test_export_answers_the_name_of_every_runtime_with_what_it_opens(capsys: pytest.CaptureFixture[str]) -> None:
    requires("torch")
    from export.make import names

    targets = names()
    for name in runtimes.names():
        if name.replace("_", "-") not in targets:
            assert cli.main(["export", "mlp", "--runtimes", name, "-o", "x.bundle"]) == 2
            opens = ",".join(runtimes.targets([name]))
            said = capsys.readouterr().err.strip()
            assert said.endswith(f"trains with {opens}" if opens else "needs no graphs, any bundle will do")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "--devices is at least 1"),
        (["--crash", "0.5"], "--crash and --cut need virtual time"),
        (["--split", "random"], "there are iid, c_max"),
        (["--data", "fashion-mnist", "--data-dir", "/nowhere"], "lacks train-images-idx3-ubyte"),
        (["--bundle", "/nowhere.bundle"], "cannot read the bundle"),
        (["--minimum", "5", "--quorum", "2"], "minimum (5) cannot be above quorum (2)"),
        (["--broker", "nonsense"], "--broker is HOST:PORT"),
        (["--broker", "host:99999"], "--broker is HOST:PORT"),
        (["--virtual", "--broker", "host:1883"], "--broker and virtual time exclude each other"),
        (["--virtual", "--crash", "1.5"], "--crash is a chance, 0 .. 1, found 1.5"),
        (["--virtual", "--crash", "0.6", "--cut", "0.6"], "together are at most 1, found 1.2"),
        (["--per-round", "9"], "--per-round 9: there are only 8 devices"),
        (["--test-share", "0.5"], "--test-share is for your own data; digits has a test set"),
        (["--data", "/nowhere/mine.npz"], "cannot read /nowhere/mine.npz"),
        (["--data", "imagenet"], "no data set called 'imagenet'; there are auto, "),
        (["--model-seed", "7"], "--model-seed is for an export; tiny has been exported already"),
        (["--threads", "0"], "--threads is at least 1"),
        (["--examples", "-1"], "--examples is at least 0"),
        (["--set", "avarage_last=2"], "--set: unknown key 'avarage_last'; did you mean 'average_last'?"),
        (["--set", "zzz=1"], "--set: unknown key 'zzz'; known: epochs, learning_rate, codec"),
        (["--set", "carry"], "--set is KEY=VALUE, found 'carry'"),
        (["--set", "carry=much"], "--set: carry is a number, found 'much'"),
        (["--set", "carry=1"], "carry is 0 .. 0.999, found 1"),
        (["--set", "keep_optimizer=1"], "keep_optimizer is true or false, found 1"),
        (["--downlink", "some"], "downlink is \"exact\" or 2 .. 65535, found 'some'"),
        (["--downlink", "1"], 'downlink is "exact" or 2 .. 65535, found 1'),
        (["--set", "control_variate=true"], "control_variate is gone: measured, it cost more than it brought"),
        (["--codec", "crn"], "codec 'crn' is gone"),
        (["--codec", "zip"], "codec 'zip' is unknown; there are packed, rans, hmrc"),
        (["--init", "left"], "init 'left' is unknown; there are half, uniform, normal"),
        (["--relay", "maybe"], "relay is true or false, found 'maybe'"),
        (["--epochs", "two"], "epochs is an integer, found 'two'"),
        (["--kappa", "9", "--set", "kappa_max=8"], "kappa (9) cannot be above kappa_max (8)"),
        (["--epochs", "0"], "epochs is 1 .. 65535, found 0"),
        (["--runtime", "reference,abacus"], "--runtime is of executorch, onnxruntime, "),
        (["--runtime", "reference,abacus"], "found 'abacus'"),
        (["--virtual", "--runtime", "reference,torch"], "--virtual trains all devices in this process: one --runtime"),
        (["--virtual", "--python", f"reference={sys.executable}"], "and no --python"),
        (["--python", "torch=python3"], "NAME of --runtime (reference), found 'torch=python3'"),
        (["--python", "reference"], "--python is NAME=PATH"),
        (["--python", "reference=/nowhere/python"], "/nowhere/python is no program"),
        (["--python", "reference=true"], "has no seedmask client of this version: status 0"),
        (["--python", "reference=true", "--python", "reference=cat"], "names two interpreters for reference: "),
        (["--model", "mlp"], "--model and --bundle exclude each other"),
        (["--json", "/nowhere/run.json"], "is not a file in a folder that exists"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere cannot be used"),
        (["--out", "/dev/null"], "--out /dev/null cannot be used: Not a directory"),
    ],
)
def test_simulate_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    requires("sim")
    bundle = tmp_path / "tiny.bundle"
    bundle.write_bytes(to_bytes(Bundle(spec(), 16, {})))
    common = ["--data", "digits", "--runtime", "reference", "--out", str(tmp_path / "out"), "--examples", "20"]
    assert cli.main(["simulate", "--bundle", str(bundle), *common, *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def answering(monkeypatch: pytest.MonkeyPatch, rows: object) -> None:
    """Every other interpreter says this of its runtimes."""
    done = subprocess.CompletedProcess([], 0, json.dumps(rows), "")
    monkeypatch.setattr("sim.runtimes.subprocess.run", lambda *command, **options: done)


def test_an_interpreter_that_lacks_its_runtime_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    python = f"ort_training={sys.executable}"
    monkeypatch.setattr(runtimes.registry, "missing", lambda name: [])
    answering(monkeypatch, [{"runtime": "ort_training", "missing": ["onnxruntime.training"]}])
    with pytest.raises(UserError, match=r"lacks onnxruntime.training: pip install 'seedmask\[ort-training\]'"):
        assign("ort_training", [python], False)
    answering(monkeypatch, [{"runtime": "reference", "missing": []}])
    with pytest.raises(UserError, match="lacks such a runtime"):
        assign("ort_training", [python], False)
    answering(monkeypatch, [{"runtime": "ort_training"}])
    with pytest.raises(UserError, match="has no seedmask client of this version"):
        assign("ort_training", [python], False)
    answering(monkeypatch, [{"runtime": "ort_training", "missing": []}])
    found = assign("ort_training,reference", [python], False)
    assert [found.of(index) for index in range(3)] == ["ort_training", "reference", "ort_training"]
    assert found.here == "reference"
    assert assign("ort_training", [python], False).here == "onnxruntime"


def test_a_bundle_without_a_runtimes_graphs_says_how_to_export_it() -> None:
    with pytest.raises(UserError, match=r"no onnx/init.onnx, .*: seedmask export --runtimes onnx,ort-training"):
        runtimes.require_graphs(["onnxruntime", "ort_training"], Bundle(spec(), 16, {}))
    runtimes.require_graphs(["reference"], Bundle(spec(), 16, {}))


@pytest.fixture
def simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `seedmask simulate` on a tiny bundle and virtual time into tmp_path/out; status, output, errors."""
    requires("sim")
    bundle = tmp_path / "tiny.bundle"
    bundle.write_bytes(to_bytes(Bundle(spec(), 16, {})))
    common = ["--data", "digits", "--runtime", "reference", "--devices", "3", "--rounds", "2", "--seed", "1"]

    def run(*arguments: str, bundle: Path = bundle) -> tuple[int, str, str]:
        out = ["--virtual", "--out", str(tmp_path / "out"), "--bundle", str(bundle)]
        status = cli.main(["simulate", *common, *out, *arguments])
        return status, *capsys.readouterr()

    return run


def test_every_knob_can_be_set_and_what_is_set_is_what_the_job_announces(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]]
) -> None:
    knobs = "masks=2", "momentum=0.9", "optimizer=sgd", "average_last=2", "learning-rate=3"
    sets = [argument for knob in knobs for argument in ("--set", knob)]
    named = "--downlink", "8", "--weighting", "samples", "--init", "uniform", "--keep-optimizer", "false"
    status, printed, said = simulate("--preset", "paper", *sets, *named)
    assert (status, said) == (0, "")
    assert "bit per parameter and round" in printed
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "aggregator" / "job.sqlite")) as db:
        (began,), (result,) = db.execute("SELECT counts FROM thetas WHERE number < 2 ORDER BY number").fetchall()
        settings = dict(db.execute("SELECT name, config FROM settings").fetchall())
        updates = db.execute("SELECT COUNT(*) FROM updates").fetchone()
    assert counts.decode(began, 7840).max_level == 255
    assert counts.decode(result, 7840).max_level == 7
    assert updates == (6,)
    training = TrainingConfig(**json.loads(settings["training"]))
    asked = {"masks": 2, "momentum": 0.9, "optimizer": "sgd", "learning_rate": 3.0, "keep_optimizer": False}
    assert training == replace(PRESETS["paper"].training, **asked)


def test_simulate_does_not_empty_a_folder_that_is_not_its_own(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]]
) -> None:
    precious = tmp_path / "out" / "model.bundle"
    precious.parent.mkdir()
    precious.write_text("years of work")
    status, _, said = simulate()
    assert status == 2
    assert "choose another --out" in said
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("option", ["--bundle", "--data-dir"])
def test_simulate_does_not_empty_the_folder_that_its_inputs_are_in(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]], option: str
) -> None:
    inside = tmp_path / "out" / "sub" / "precious"
    inside.mkdir(parents=True)
    (tmp_path / "out" / ".seedmask-simulation").touch()
    status, _, said = simulate(option, str(inside))
    assert status == 2
    assert f"{inside} lies inside --out" in said
    assert inside.exists()


def test_simulate_twice_with_the_same_arguments_writes_the_same_files(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "out"
    found = []
    for name in ("one.json", "two.json"):
        status, printed, _ = simulate("--json", str(tmp_path / name), "--examples", "2000")
        assert status == 0
        assert "--examples 2,000 is more than 1,437 training examples allow; 479 per device are used" in printed
        assert "over a broker in memory" in printed
        (out / "left-over").touch()  # the second run empties what the first one made
        files = [tmp_path / name, out / "rounds.csv", out / "model.smk", out / "model.bundle", out / "accuracy.png"]
        found.append([path.read_bytes() for path in files])
    assert found[0] == found[1]
    value, picture = json.loads(found[0][0]), found[0][4]
    assert set(value["accuracy"]) == {"sampled", "thresholded", "mean"}
    assert (value["rounds"], value["devices"], value["parameters"]) == (2, 3, 7840)
    assert value["seconds"] > 0
    for way in ("uplink", "downlink"):
        assert value[f"{way}_bytes"] > 0
        bits = 8 * value[f"{way}_bytes"] / (2 * 3 * 7840)
        assert value[f"{way}_bits_per_parameter_per_round"] == pytest.approx(bits, abs=1e-6)
    assert [line.split(b",")[0] for line in found[0][1].splitlines()] == [b"round", b"1", b"2"]
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(path.name for path in (out / "devices").iterdir()) == ["device-000", "device-001", "device-002"]
    assert not (out / "aggregator" / "device-000").exists()


def test_simulate_says_which_models_take_the_images(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]]
) -> None:
    weight = Tensor("1.weight", (10, 3072), scale_bits(0.05))
    large = ModelSpec("large", 7, (3, 32, 32), (0, 255), 10, (Flatten(), Linear("1.weight", None)), (weight,))
    path = tmp_path / "large.bundle"
    path.write_bytes(to_bytes(Bundle(large, 16, {})))
    status, printed, said = simulate(bundle=path)
    assert (status, printed) == (2, "")
    assert "large takes inputs of 3x32x32, those of digits are 1x28x28: use a network of mlpn, mlp, conv4," in said


def test_simulate_measures_the_error_of_a_model_that_gives_numbers(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]]
) -> None:
    tensors = Tensor("0.weight", (64, 4), scale_bits(0.7)), Tensor("2.weight", (1, 64), scale_bits(0.18))
    layers = Linear("0.weight", None), ReLU(), Linear("2.weight", None)
    spec = ModelSpec("numbers", 7, (4,), (0, 255), 1, layers, tensors, "mse")
    bundle, data = tmp_path / "numbers.bundle", tmp_path / "mine.npz"
    bundle.write_bytes(to_bytes(Bundle(spec, 16, {})))
    x = np.random.default_rng(1).integers(0, 256, (300, 4)).astype(np.uint8)
    np.savez(data, x=x, y=((x[:, 0] - x[:, 1].astype(float)) / 255).astype(np.float32))
    status, printed, said = simulate("--data", str(data), "--rounds", "6", bundle=bundle)
    assert (status, said) == (0, "")
    assert f"mine ({data}; 60 of its 300 examples held out as a test set); 3 devices, 80 examples each" in printed
    value = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert value["history"][-1]["error_mean"] < value["history"][0]["error_mean"]
    assert value["error"]["mean"] < 0.5 / 6  # half of what it is for who always says 0
    assert "mean squared error on 60 examples: " in printed
    assert "%" not in printed
    assert (tmp_path / "out" / "error.png").read_bytes().startswith(b"\x89PNG")


def test_simulate_measures_with_the_test_set_that_is_named(
    tmp_path: Path, simulate: Callable[..., tuple[int, str, str]]
) -> None:
    rng = np.random.default_rng(1)
    for name, n in (("mine.npz", 60), ("test.npz", 20)):
        np.savez(tmp_path / name, x=rng.integers(0, 256, (n, 784)).astype(np.uint8), y=np.arange(n) % 10)
    data = ["--data", str(tmp_path / "mine.npz"), "--rounds", "1"]
    status, printed, _ = simulate(*data, "--test", str(tmp_path / "test.npz"))
    assert status == 0
    assert "test accuracy on 20 images" in printed
    assert f"mine ({tmp_path / 'mine.npz'}); 3 devices, 20 images each" in printed
    status, printed, _ = simulate(*data, "--test-share", "0.25")
    assert status == 0
    assert "15 of its 60 examples held out as a test set" in printed
    assert simulate(*data, "--test-share", "0.25", "--test", str(tmp_path / "test.npz"))[0] == 2


def test_simulate_offers_what_the_zoo_has_for_its_images() -> None:
    requires("torch")
    from export.zoo import ZOO
    from sim.setup import MODELS

    takes = {name for name, entry in ZOO.items() if (entry.input, entry.classes) == ((1, 28, 28), 10)}
    assert takes == set(MODELS)
