"""`seedmask predict`: what a model says, from any kind of file, on any runtime, or a sentence about what is wrong."""

from __future__ import annotations

import gzip
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import packages
import pytest
from capabilities import requires

from edge_client import predict
from edge_client.data import DATASETS, Dataset, load_named
from edge_client.runtimes import open_runtime
from seedmask import cli
from seedmask.bundle import Bundle, to_bytes
from seedmask.io import plugins
from seedmask.layers import Conv2d, Linear, Mean
from seedmask.model import FinishedModel, encode
from seedmask.spec import ModelSpec, Tensor, scale_bits


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def model(tiny_spec: ModelSpec) -> FinishedModel:
    return FinishedModel(tiny_spec, np.random.default_rng(3).integers(0, 2, tiny_spec.d).astype(np.uint8))


@pytest.fixture
def smk(tmp_path: Path, model: FinishedModel) -> str:
    (tmp_path / "tiny.smk").write_bytes(encode(model))
    return str(tmp_path / "tiny.smk")


@pytest.fixture
def wanted(model: FinishedModel, tiny_data: Dataset) -> np.ndarray:
    """Logits by hand: the reference runtime on the model's own weights."""
    runtime = open_runtime("reference", Bundle(model.spec, 8, {}))
    return runtime.logits(model.spec.normalise(tiny_data.x), model.mask.astype(np.float32))


def files(folder: Path, data: Dataset) -> list[list[str]]:
    """The same examples in every form that predict reads."""
    np.savez(folder / "both.npz", x=data.x, y=data.y)
    np.savez(folder / "inputs.npz", x=data.x)
    np.save(folder / "x.npy", data.x.reshape(96, 16))
    np.save(folder / "y.npy", data.y)
    (folder / "x.idx").write_bytes(idx_bytes(data.x[:, 0]))
    (folder / "x.idx.gz").write_bytes(gzip.compress(idx_bytes(data.x[:, 0])))
    (folder / "y.idx").write_bytes(idx_bytes(data.y.astype(np.uint8)))
    named = [["both.npz"], ["inputs.npz", "y.npy"], ["x.npy", "y.npy"], ["x.idx", "y.idx"], ["x.idx.gz", "both.npz"]]
    return [["--data", str(folder / x), *(f"--labels={folder / y}" for y in rest)] for x, *rest in named]


def test_every_kind_of_file_gives_the_same_predictions(
    smk: str, tmp_path: Path, tiny_data: Dataset, wanted: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    right = float((wanted.argmax(1) == tiny_data.y).mean())
    for data in files(tmp_path, tiny_data):
        assert cli.main(["predict", smk, *data, "--runtime", "reference", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["predictions"] == wanted.argmax(1).tolist(), data
        assert facts["accuracy"] == pytest.approx(right, abs=1e-6)


def test_a_model_of_numbers_gives_numbers_and_is_judged_by_its_error(
    model: FinishedModel, tmp_path: Path, tiny_data: Dataset, wanted: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "n.smk").write_bytes(encode(replace(model, spec=replace(model.spec, loss="mse"))))
    np.savez(tmp_path / "n.npz", x=tiny_data.x, y=wanted + 0.5)
    common = ["predict", str(tmp_path / "n.smk"), "--data", str(tmp_path / "n.npz"), "--runtime", "reference"]
    assert cli.main([*common, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mean_squared_error"], "accuracy" in facts) == (pytest.approx(0.25, abs=1e-5), False)
    np.testing.assert_allclose(facts["predictions"], wanted, rtol=1e-6)
    assert cli.main(common) == 0
    out, err = capsys.readouterr()
    assert [len(line.split("\t")) for line in out.splitlines()] == [4] * 96
    assert "96 examples, mean squared error 0.25; reference" in err
    assert cli.main([*common, "--probabilities"]) == 2
    assert "model tiny gives numbers, not classes" in capsys.readouterr().err


def test_without_labels_there_is_no_accuracy_and_a_line_an_example(
    smk: str, tmp_path: Path, tiny_data: Dataset, wanted: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", tiny_data.x)
    common = ["predict", smk, "--data", str(tmp_path / "x.npy"), "--runtime", "reference"]
    assert cli.main(common) == 0
    printed = capsys.readouterr()
    assert [int(line) for line in printed.out.splitlines()] == wanted.argmax(1).tolist()
    assert "96 examples; reference" in printed.err
    assert "right" not in printed.err
    assert cli.main([*common, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_probabilities_are_the_softmax_of_the_scores(
    smk: str, tmp_path: Path, tiny_data: Dataset, wanted: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", tiny_data.x)
    data = ["--data", str(tmp_path / "x.npy"), "--runtime", "reference", "--probabilities"]
    assert cli.main(["predict", smk, *data]) == 0
    rows = np.array([line.split("\t") for line in capsys.readouterr().out.splitlines()], float)
    power = np.exp(wanted - wanted.max(1, keepdims=True))
    assert np.allclose(rows[:, 1:], power / power.sum(1, keepdims=True), atol=1e-5)
    assert np.array_equal(rows[:, 0], wanted.argmax(1))


def test_batches_do_not_show(model: FinishedModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = open_runtime("reference", Bundle(model.spec, 8, {}))
    whole = predict.logits_of(runtime, model, tiny_data.x)
    monkeypatch.setattr(predict, "_BATCH", 7)
    assert np.allclose(predict.logits_of(runtime, model, tiny_data.x), whole, atol=1e-6)


def test_a_data_set_is_found_by_the_name_that_a_package_gives_it(
    smk: str, tmp_path: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "tiny.npz", x=tiny_data.x, y=tiny_data.y)
    source = (
        "import numpy as np\n"
        "from edge_client.data import Dataset, TrainTest\n"
        "def load(folder):\n"
        "    with np.load(folder / 'tiny.npz') as found:\n"
        "        return TrainTest('tiny-images', 'made up', None, Dataset(found['x'], found['y']))\n"
    )
    announced = "[seedmask.datasets]\ntiny-images = seedmask_tiny:load\n"
    packages.install(monkeypatch, tmp_path / "site", "seedmask-tiny", announced, seedmask_tiny=source)
    given = ["predict", smk, "--data", "tiny-images", "--data-dir", str(tmp_path), "--runtime", "reference", "--quiet"]
    assert cli.main(given) == 0
    assert "% right" in capsys.readouterr().err
    assert cli.main(["predict", smk, "--data", "other"]) == 2
    assert re.search("neither a file here nor a data set's name; names: .*tiny-images", capsys.readouterr().err)


def test_the_simulators_data_sets_are_announced() -> None:
    requires("sim")
    assert {"fashion-mnist", "digits"} <= set(plugins.names(DATASETS))
    assert load_named("digits").test.x.shape == (360, 1, 28, 28)


def test_a_bundle_beside_the_model_is_taken_if_it_is_of_that_model(
    model: FinishedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_data: Dataset
) -> None:
    path = tmp_path / "tiny.smk"
    path.write_bytes(encode(model))
    np.save(tmp_path / "x.npy", tiny_data.x)
    other = replace(model.spec, seed=8)
    (tmp_path / "tiny.bundle").write_bytes(to_bytes(Bundle(other, 8, {})))
    data = ["--data", str(tmp_path / "x.npy"), "--runtime", "reference", "-q"]
    assert cli.main(["predict", str(path), *data]) == 0  # another job's bundle lies there; nobody named it
    assert cli.main(["predict", str(path), *data, "--bundle", str(tmp_path / "tiny.bundle")]) == 2
    assert f"is model {other.digest.hex()[:12]}" in capsys.readouterr().err


def test_onnxruntime_needs_the_bundles_graph(
    smk: str, tmp_path: Path, tiny_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    requires("onnxruntime")
    np.save(tmp_path / "x.npy", tiny_data.x)
    assert cli.main(["predict", smk, "--data", str(tmp_path / "x.npy"), "--runtime", "onnxruntime"]) == 2
    assert "needs the bundle that the fleet trained with (--bundle)" in capsys.readouterr().err


def test_memory_grows_neither_with_the_examples_nor_with_the_network() -> None:
    def of(side: int) -> ModelSpec:
        kernel, head = Tensor("c", (64, 1, 3, 3), scale_bits(0.1)), Tensor("h", (2, 64), scale_bits(0.1))
        layers = (Conv2d("c", None, (1, 1), (1, 1)), Mean((1, 2)), Linear("h", None))
        return ModelSpec("wide", 1, (1, side, side), (0, 255), 2, layers, (kernel, head))

    class Counting:
        """A runtime that only counts."""

        def __init__(self) -> None:
            self.most = self.calls = 0

        def logits(self, x: np.ndarray, mask: np.ndarray, exact: np.ndarray) -> np.ndarray:
            self.most, self.calls = max(self.most, len(x)), self.calls + 1
            return np.zeros((len(x), 2), np.float32)

    for side, most in ((8, 250), (64, 31), (512, 1)):
        runtime, spec = Counting(), of(side)
        model = FinishedModel(spec, np.ones(spec.d, np.uint8))
        assert predict.logits_of(runtime, model, np.zeros((251, 1, side, side), np.uint8)).shape == (251, 2)
        assert (runtime.most, runtime.calls) == (most, -(-251 // most))


def test_auto_takes_what_is_here(model: FinishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict.runtimes, "missing", lambda name: ["it"] if name == "torch" else [])
    name, _ = predict.open_for(model, tmp_path / "tiny.smk", None, "auto", 1)
    assert name == "reference"


@pytest.mark.parametrize("files", [{}, {"onnx/init.onnx": b"one of four"}])
def test_auto_does_without_a_bundle_that_lacks_the_graphs(
    model: FinishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    (tmp_path / "tiny.bundle").write_bytes(to_bytes(Bundle(model.spec, 8, files)))
    monkeypatch.setattr(predict.runtimes, "missing", lambda name: ["it"] if name == "torch" else [])
    name, _ = predict.open_for(model, tmp_path / "tiny.smk", None, "auto", 1)
    assert name == "reference"


@pytest.mark.parametrize("threads", ["-1", "1025"])
def test_threads_that_no_machine_has_are_refused(smk: str, threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", smk, "--data", "x.npy", "--threads", threads]) == 2
    assert f"--threads is 0 (all cores) .. 1024, found {threads}" in capsys.readouterr().err


def test_wrong_input_is_one_sentence(
    smk: str, tmp_path: Path, tiny_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(x: np.ndarray, y: np.ndarray | None = None) -> str:
        np.save(tmp_path / "x.npy", x)
        more = []
        if y is not None:
            np.save(tmp_path / "y.npy", y)
            more = ["--labels", str(tmp_path / "y.npy")]
        assert cli.main(["predict", smk, "--data", str(tmp_path / "x.npy"), *more]) == 2
        return capsys.readouterr().err

    x, y = tiny_data.x, tiny_data.y
    assert "inputs are [1, 4, 3], model tiny takes [1, 4, 4]" in refused(x[..., :3])
    assert "inputs are [4], model tiny takes [1, 4, 4]; pass one example as x[None]" in refused(x[0, 0])
    assert "an input is not a finite number" in refused(np.full((2, 16), np.nan))
    assert "inputs are numbers [n, ...], found" in refused(np.array(["a", "b"]))
    assert "inputs are numbers [n, ...], found" in refused(x[:0])
    assert "96 inputs and 95 labels" in refused(x, y[1:])
    assert "labels 0 .. 4, model tiny has classes 0 .. 3" in refused(x, np.where(y == 3, 4, y))
    assert "model tiny takes one class number each, found float64 [96]" in refused(x, y / 2)
    assert "labels are [n] integers, found float64 [96, 1, 1]" in refused(x, y[:, None, None] / 2)
    np.savez(tmp_path / "one.npz", x=x, y=np.array(3))
    assert cli.main(["predict", smk, "--data", str(tmp_path / "one.npz")]) == 2
    assert "96 inputs and a single label" in capsys.readouterr().err
    np.savez(tmp_path / "none.npz", z=x)
    assert cli.main(["predict", smk, "--data", str(tmp_path / "none.npz")]) == 2
    assert "it lacks x" in capsys.readouterr().err
    assert cli.main(["predict", smk, "--data", str(tmp_path / "absent.npz")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "odd").write_bytes(b"hello")
    assert cli.main(["predict", smk, "--data", str(tmp_path / "odd")]) == 2
    assert "is not an IDX file" in capsys.readouterr().err
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:200])
    assert cli.main(["predict", smk, "--data", str(tmp_path / "cut.npy")]) == 2
    assert "is not an array of numbers" in capsys.readouterr().err
    claim = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 28, 28), }".ljust(118)
    (tmp_path / "claim.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + claim + b"abc")
    assert cli.main(["predict", smk, "--data", str(tmp_path / "claim.npy")]) == 2
    assert "is not an array of numbers" in capsys.readouterr().err


def test_a_damaged_model_is_refused(smk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(smk).read_bytes()
    np.save(tmp_path / "x.npy", np.zeros((1, 16), np.uint8))
    for broken in (b"", data[:-1], data[:100] + bytes([data[100] ^ 4]) + data[101:], b"SM" + data):
        Path(smk).write_bytes(broken)
        assert cli.main(["predict", smk, "--data", str(tmp_path / "x.npy")]) == 2
        assert "model file" in capsys.readouterr().err
    assert cli.main(["predict", str(tmp_path / "absent.smk"), "--data", str(tmp_path / "x.npy")]) == 2
    assert "cannot read the model" in capsys.readouterr().err


def test_bytes_for_a_model_of_other_values_are_doubted(
    smk: str, tmp_path: Path, tiny_data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", tiny_data.x / 255)
    assert cli.main(["predict", smk, "--data", str(tmp_path / "x.npy"), "--runtime", "reference", "-q"]) == 0
    assert "warning: inputs are 0 .. " in capsys.readouterr().err
