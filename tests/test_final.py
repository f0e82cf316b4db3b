"""A finished model in other programs' hands: every file is the same network, and says the same about every image."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import requires

from edge_client.predict import logits_of
from edge_client.runtimes import open_runtime
from seedmask import cli
from seedmask.bundle import Bundle
from seedmask.model import FinishedModel, encode
from seedmask.spec import Conv2d, Flatten, GroupNorm, Linear, MaxPool2d, ModelSpec, ReLU, Tensor, scale_bits

pytestmark = pytest.mark.export
requires("torch", "onnx", "onnxruntime")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
import torch  # noqa: E402

from export import final_torch  # noqa: E402
from export.final_onnx import HOLDINGS, final_graph  # noqa: E402
from export.formats import FORMATS, Wish  # noqa: E402
from export.trace import trace  # noqa: E402
from export.zoo import ZOO  # noqa: E402


def net() -> ModelSpec:
    """Every layer there is; 9x7 images, so that a pool drops a row and a column."""
    third = scale_bits(1 / 3)
    return ModelSpec(
        "every",
        9,
        (2, 9, 7),
        (-3, 300),
        4,
        (
            Conv2d("0.weight", "0.bias", (1, 1), (1, 0)),
            GroupNorm(3),
            ReLU(),
            MaxPool2d((2, 2)),
            Flatten(),
            Linear("5.weight", "5.bias"),
        ),
        (
            Tensor("0.weight", (6, 2, 3, 3), third),
            Tensor("0.bias", (6,), scale_bits(0.7)),
            Tensor("5.weight", (4, 48), third),
            Tensor("5.bias", (4,), third),
        ),
    )


@pytest.fixture(scope="module")
def model() -> FinishedModel:
    spec = net()
    return FinishedModel(spec, np.random.default_rng(1).integers(0, 2, spec.d).astype(np.uint8))


@pytest.fixture(scope="module")
def images(model: FinishedModel) -> np.ndarray:
    return np.random.default_rng(2).uniform(-3, 300, (33, *model.spec.input)).astype(np.float32)


def truth(model: FinishedModel, x: np.ndarray) -> np.ndarray:
    runtime = open_runtime("reference", Bundle(model.spec, 8, {}))
    return runtime.logits(model.spec.normalise(x), model.mask.astype(np.float32))


def opened(data: bytes, optimised: Path | None = None, **config: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(data: bytes, x: np.ndarray) -> np.ndarray:
    return np.asarray(opened(data).run(None, {"x": x})[0])


@pytest.mark.parametrize("holding", HOLDINGS)
def test_onnx_takes_raw_inputs_to_the_references_scores(model: FinishedModel, images: np.ndarray, holding: str) -> None:
    found = run(final_graph(model, holding), images)
    assert np.allclose(found, truth(model, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("holding", HOLDINGS)
def test_a_tensor_may_be_called_what_the_graph_calls_its_own(holding: str) -> None:
    names = {"c0": (3, 4), "x": (3,), "v0_0": (2, 3), "logits": (2,)}
    tensors = tuple(Tensor(name, shape, scale_bits(0.5)) for name, shape in names.items())
    spec = ModelSpec("odd", 1, (4,), (0, 8), 2, (Linear("c0", "x"), ReLU(), Linear("v0_0", "logits")), tensors)
    odd = FinishedModel(spec, np.ones(spec.d, np.uint8))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert run(final_graph(odd, holding), x) == pytest.approx(truth(odd, x), abs=1e-5)


@pytest.mark.parametrize("holding", HOLDINGS)
def test_a_fixed_batch_is_stated_and_changes_nothing(model: FinishedModel, images: np.ndarray, holding: str) -> None:
    data = final_graph(model, holding, 11)
    shape = onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [11, 2, 9, 7]
    found = np.concatenate([run(data, images[at : at + 11]) for at in (0, 11, 22)])
    assert np.allclose(found, truth(model, images), rtol=1e-5, atol=1e-5)


def test_weights_are_the_models_to_the_bit_under_torchs_names(model: FinishedModel) -> None:
    flat = model.weights()
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(final_graph(model)).graph.initializer
    }
    ternary = onnx.load_from_string(final_graph(model, "ternary")).graph
    signs = {t.name: onnx.numpy_helper.to_array(t) for t in ternary.initializer}
    state = final_torch.state_dict(model)
    assert list(state) == [tensor.name for tensor in model.spec.tensors]
    for name, (tensor, at) in model.spec.offsets.items():
        wanted = flat[at : at + tensor.size].reshape(tensor.shape)
        assert np.array_equal(stored[name], wanted)
        assert np.array_equal(state[name].numpy(), wanted)
        assert signs[name].dtype == np.int8
        assert np.array_equal(signs[name] * np.float32(tensor.constant), wanted)


@pytest.mark.parametrize(("holding", "config"), [("ternary", {"disable_quant_qdq": "1"}), ("seed", {})])
def test_onnxruntime_makes_the_weights_while_it_loads(
    model: FinishedModel, tmp_path: Path, holding: str, config: dict[str, str]
) -> None:
    opened(final_graph(model, holding), tmp_path / "optimised.onnx", **config)
    plain = onnx.load_from_string(final_graph(model)).graph.node
    left = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert not {"DequantizeLinear", "BitShift", "BitwiseXor", "Where", "Split"} & set(left)
    assert len(left) <= len(plain) + 2  # layouts of convolutions


def test_the_pool_has_no_indices_to_compute(model: FinishedModel) -> None:
    pools = [n for n in onnx.load_from_string(final_graph(model)).graph.node if n.op_type == "MaxPool"]
    assert [len(pool.output) for pool in pools] == [1]


def test_a_file_says_whose_it_is_and_is_the_same_each_time(model: FinishedModel) -> None:
    data = final_graph(model, "ternary")
    about = {prop.key: prop.value for prop in onnx.load_from_string(data).metadata_props}
    assert about == {"seedmask.model": model.spec.digest.hex(), "seedmask.weights": "ternary"}
    assert final_graph(model, "ternary") == data


def test_sizes_are_four_bytes_one_byte_and_one_bit_a_weight() -> None:
    spec = trace(ZOO["mlp"].factory(), "mlp", 1, (1, 28, 28), (0, 255), 10)
    model = FinishedModel(spec, np.random.default_rng(1).integers(0, 2, spec.d).astype(np.uint8))
    for holding, bits in zip(HOLDINGS, (32, 8, 1), strict=True):
        assert 8 * (len(final_graph(model, holding)) - 12_000) / spec.d < bits


def test_an_unknown_holding_is_refused(model: FinishedModel) -> None:
    with pytest.raises(ValueError, match="float32, ternary, seed, found 'int4'"):
        final_graph(model, "int4")


def test_torchs_own_module_takes_the_state_dict() -> None:
    spec = trace(ZOO["conv4n"].factory(), "conv4n", 1, (1, 28, 28), (0, 255), 10)
    model = FinishedModel(spec, np.random.default_rng(1).integers(0, 2, spec.d).astype(np.uint8))
    x = np.random.default_rng(2).integers(0, 256, (5, 1, 28, 28)).astype(np.float32)
    module = ZOO["conv4n"].factory()
    loaded = torch.load(io.BytesIO(FORMATS["torch"].write(model, Wish())), weights_only=True)
    module.load_state_dict(loaded)
    with torch.no_grad():
        own = module(torch.from_numpy(spec.normalise(x))).numpy()
        ours = final_torch.network(model)(torch.from_numpy(x)).numpy()
    assert np.allclose(own, truth(model, x), rtol=1e-4, atol=1e-4)
    assert np.allclose(ours, own, rtol=1e-5, atol=1e-5)


def test_the_command_writes_every_format(
    model: FinishedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], images: np.ndarray
) -> None:
    smk = tmp_path / "every.smk"
    smk.write_bytes(encode(model))
    shown = tmp_path / "shown.npy"
    np.save(shown, images)
    for name, made in FORMATS.items():
        if importlib.util.find_spec(made.needs) is None:
            continue
        out = tmp_path / f"out.{name}"
        more = ["--calibration", str(shown)] if made.calibrated else []
        assert cli.main(["export-model", str(smk), "--to", name, "-o", str(out), "--json", *more]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["bytes"], facts["model"]) == (out.stat().st_size, model.spec.digest.hex())
        if name.startswith("onnx"):
            assert np.allclose(run(out.read_bytes(), images), truth(model, images), rtol=1e-5, atol=1e-5)
    to = ["-o", str(tmp_path / "out.onnx")]
    assert cli.main(["export-model", str(smk), "--to", "onnx", *to, "--force"]) == 0
    assert "bit per parameter: ONNX, float32 weights" in capsys.readouterr().out
    assert cli.main(["export-model", str(smk), "--to", "onnx", *to]) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert cli.main(["export-model", str(smk), "--to", "onnx", *to, "--force", "--batch", "-1"]) == 2
    assert "--batch is 0 (any) .. 65536, found -1" in capsys.readouterr().err
    assert cli.main(["export-model", str(smk), "--to", "onnx", *to, "--force", "--calibration", str(shown)]) == 2
    assert "--to onnx takes no --calibration" in capsys.readouterr().err
    smk.write_bytes(smk.read_bytes()[:-1])
    assert cli.main(["export-model", str(smk), "--to", "onnx", *to, "--force"]) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlpn", "conv4n"])
def test_all_formats_say_the_same_about_ten_thousand_images(name: str) -> None:
    from export.make import make_bundle
    from export.masked import Masked

    requires("sim", "fashion-mnist")
    from sim.datasets import load

    found = load("fashion-mnist", None)
    entry = ZOO[name]
    spec = trace(entry.factory(), name, 1, entry.input, (0, 255), entry.classes)
    torch.manual_seed(1)
    masked = Masked(spec, torch.zeros(spec.d), 0.1)
    for at in range(0, 80 * 64, 64):  # enough to be sure of most images, whatever the CPU rounds
        x = torch.from_numpy(spec.normalise(found.train.x[at : at + 64]))
        masked.step(x, torch.from_numpy(found.train.y[at : at + 64]), torch.rand(spec.d))
    model = FinishedModel(spec, (masked.scores.detach().numpy() >= 0).astype(np.uint8))

    raw = found.test.x.astype(np.float32)
    module = entry.factory()
    module.load_state_dict(final_torch.state_dict(model))
    own, network = module.eval(), final_torch.network(model)
    with torch.no_grad():
        wanted = classes(lambda x: own(torch.from_numpy(spec.normalise(x))).numpy(), raw)
        assert np.array_equal(classes(lambda x: network(torch.from_numpy(x)).numpy(), raw), wanted)
    assert float((wanted == found.test.y).mean()) > 0.3
    for holding in HOLDINGS:
        session = opened(final_graph(model, holding))
        assert np.array_equal(classes(lambda x, s=session: s.run(None, {"x": x})[0], raw), wanted), holding
    device = open_runtime("onnxruntime", make_bundle(spec, 128), 1)
    assert np.array_equal(logits_of(device, model, found.test.x).argmax(1), wanted)


def classes(logits: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Predictions for all of `x`, a few hundred at a time."""
    return np.concatenate([logits(x[at : at + 500]).argmax(1) for at in range(0, len(x), 500)])
