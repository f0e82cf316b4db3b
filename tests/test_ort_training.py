"""The artifacts for onnxruntime-training: what the package's own API makes of them, and what our runtime relies on.

Needs that package, which wants an environment of its own (`make mixed`); the contract is in test_runtimes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import requires

requires("onnx", "ort-training")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnxruntime.training import api  # noqa: E402

from edge_client import runtimes  # noqa: E402
from edge_client.runtimes import State, StepConfig, open_runtime  # noqa: E402
from export.make import make_bundle  # noqa: E402
from seedmask.bundle import Bundle, to_bytes  # noqa: E402
from seedmask.spec import Flatten, GroupNorm, Linear, ModelSpec, ReLU, Tensor, scale_bits  # noqa: E402

pytestmark = pytest.mark.export
SPEC = ModelSpec(
    "small",
    0x5EED,
    (1, 6, 6),
    (0, 16),
    10,
    (Flatten(), Linear("a.weight", None), GroupNorm(4), ReLU(), Linear("b.weight", "b.bias")),
    tuple(
        Tensor(name, shape, scale_bits(0.25))
        for name, shape in {"a.weight": (64, 36), "b.weight": (10, 64), "b.bias": (10,)}.items()
    ),
)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(SPEC, 8, ["ort-training"])


def noise_for(scores: np.ndarray) -> np.ndarray:
    """Noise that no rounding of sigmoid can carry across a score."""
    noise = np.random.default_rng(1).random(SPEC.d, np.float32)
    near = np.abs(noise - 1 / (1 + np.exp(-scores.astype(np.float64)))) < 1e-5
    return np.where(near, (noise + 0.5) % 1, noise).astype(np.float32)


def example(n: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, scores and noise."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, *SPEC.input)).astype(np.float32)
    y, scores = rng.integers(0, SPEC.classes, n), rng.normal(size=SPEC.d).astype(np.float32)
    return x, y, scores, noise_for(scores)


def unpacked(bundle: Bundle, folder: Path) -> dict[str, str]:
    for name, data in bundle.files.items():
        (folder / Path(name).name).write_bytes(data)
    return {Path(name).stem: str(folder / Path(name).name) for name in bundle.files}


def module_of(bundle: Bundle, folder: Path, scores: np.ndarray) -> tuple[Any, Any, Any]:
    """The package's own training module and optimiser at `scores`, and its checkpoint state."""
    paths = unpacked(bundle, folder)
    state = api.CheckpointState.load_checkpoint(paths["checkpoint"])
    module = api.Module(paths["training_model"], state, paths["eval_model"])
    values = onnxruntime.OrtValue.ortvalue_from_numpy(scores)
    module.copy_buffer_to_parameters(values._ortvalue, trainable_only=False)
    # Only now: the learning rate of an optimiser that came before the scores is a segmentation fault.
    optimizer = api.Optimizer(paths["optimizer_model"], module)
    optimizer.set_learning_rate(0.1)
    module.train()
    return module, optimizer, state


def test_the_artifacts_alone_train_as_the_reference_does(bundle: Bundle, tmp_path: Path) -> None:
    x, y, scores, noise = example()
    module, optimizer, _ = module_of(bundle, tmp_path, scores)
    reference, state = open_runtime("reference", bundle), State.start(scores)
    for _ in range(5):
        loss, correct, _ = module(x, y, np.full(5, 0.2, np.float32), SPEC.weights(), noise, np.array(False))
        optimizer.step()
        module.lazy_reset_grad()
        truth = reference.step(x, y, state, noise, StepConfig(0.1))
        state = truth.state
        assert loss == pytest.approx(truth.loss, rel=1e-5)
        assert correct == truth.correct
        found = module.get_contiguous_parameters(True).numpy()
        # Of moves of 0.1: the operator has 1 - 0.999^t in float32.
        assert np.abs(found - state.scores).max() <= 1e-5
        # What comes next is compared from the same place, or one decision that rounding flips would add up.
        state = State(found, state.m, state.v, state.t, found)


def test_a_short_batch_and_the_mean_network_need_no_other_artifact(bundle: Bundle, tmp_path: Path) -> None:
    x, y, scores, noise = example(3)
    module, _, _ = module_of(bundle, tmp_path, scores)
    reference = open_runtime("reference", bundle)
    for mean in (False, True):
        loss, _, logits = module(x, y, np.full(3, 1 / 3, np.float32), SPEC.weights(), noise, np.array(mean))
        truth = reference.step(x, y, State.start(scores), noise, StepConfig(0.1, mean=mean))
        assert loss == pytest.approx(truth.loss, rel=1e-5)
        assert logits.shape == (3, 10)


def test_gradients_add_up_until_they_are_reset(bundle: Bundle, tmp_path: Path) -> None:
    x, y, scores, noise = example()
    module, _, state = module_of(bundle, tmp_path, scores)

    def gradient() -> np.ndarray:
        module(x, y, np.full(5, 0.2, np.float32), SPEC.weights(), noise, np.array(False))
        found: np.ndarray = state.parameters["scores"].grad.copy()
        return found

    once = gradient()
    assert np.abs(once).max() > 0
    np.testing.assert_array_equal(gradient(), 2 * once)
    module.lazy_reset_grad()
    np.testing.assert_array_equal(gradient(), once)


def test_what_lies_in_the_runtimes_buffer_does_not_matter(bundle: Bundle) -> None:
    x, y, scores, noise = example()
    runtime = open_runtime("ort_training", bundle, 1)
    first = runtime.step(x, y, State.start(scores), noise, StepConfig(0.1)).state
    runtime._gradient[:] = 1e6  # type: ignore[attr-defined]
    second = runtime.step(x, y, State.start(scores), noise, StepConfig(0.1)).state
    assert np.array_equal(first.m, second.m)
    assert np.abs(first.m).max() < 1


def test_the_checkpoint_names_the_scores_and_holds_no_value(bundle: Bundle, tmp_path: Path) -> None:
    scores = example()[2]
    nominal = api.CheckpointState.load_checkpoint(unpacked(bundle, tmp_path)["checkpoint"])
    assert len(nominal.parameters) == 1
    with pytest.raises(RuntimeError, match="nominal"):
        _ = nominal.parameters["scores"]
    _, _, state = module_of(bundle, tmp_path, scores)
    (parameter,) = (each for _, each in state.parameters)
    assert (parameter.name, parameter.requires_grad) == ("scores", True)
    assert np.array_equal(parameter.data, scores)


def test_the_drawn_mask_is_exactly_zeros_and_ones(bundle: Bundle, tmp_path: Path) -> None:
    """From theta = 2^-144 to 1: the estimator's detour through integers leaves nothing behind."""
    x, y, _, _ = example()
    scores = np.linspace(-100, 100, SPEC.d, dtype=np.float32)
    noise = noise_for(scores)
    module, _, _ = module_of(bundle, tmp_path, scores)
    module.eval()
    found = module(x, y, np.full(5, 0.2, np.float32), SPEC.weights(), noise, np.array(False))[2]
    mask = (noise < 1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
    assert np.array_equal(found, open_runtime("ort_training", bundle, 1).logits(x, mask))


def test_every_model_is_one_that_this_package_reads_and_says_no_more_than_the_spec(bundle: Bundle) -> None:
    for name in runtimes.registry.graphs("ort_training"):
        model = onnx.load_from_string(bundle.files[name])
        assert model.ir_version <= 10, name
        assert {o.version for o in model.opset_import if o.domain == ""} == {18}, name
        assert all(np.prod(t.dims, dtype=int) < 100 for t in model.graph.initializer), name


def test_the_same_spec_gives_the_same_bytes(bundle: Bundle) -> None:
    assert to_bytes(make_bundle(SPEC, 8, ["ort-training"])) == to_bytes(bundle)


def test_a_device_trains_without_torch(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "small.bundle").write_bytes(to_bytes(bundle))
    program = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None  # what is imported although it is not there is an ImportError
import numpy as np
from pathlib import Path
from edge_client.runtimes import State, StepConfig, open_runtime
from seedmask import bundle
opened = bundle.load(Path("small.bundle"))
d = opened.spec.d
x, zeros = np.ones((2, *opened.spec.input), np.float32), np.zeros(d, np.float32)
result = open_runtime("ort_training", opened, 1).step(x, np.array([1, 2]), State.start(zeros), zeros, StepConfig(0.1))
print(result.state.t)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
