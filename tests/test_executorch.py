"""The ExecuTorch program, what runs it, and a finished network's file. The contract itself is in test_runtimes.

Making a program takes ExecuTorch half a minute, so that what needs none is tested on the functions it is made from.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires

requires("torch", "executorch")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from edge_client import memory, runtimes  # noqa: E402
from edge_client.runtimes import MicroBatchPlan, State, StepConfig, open_runtime  # noqa: E402
from edge_client.runtimes.executorch import library  # noqa: E402
from export import masked, zoo  # noqa: E402
from export.make import make_bundle  # noqa: E402
from export.targets import executorch as target  # noqa: E402
from export.targets.executorch.lowering import lower  # noqa: E402
from export.trace import trace  # noqa: E402
from seedmask.bundle import Bundle, to_bytes  # noqa: E402
from seedmask.errors import BundleError, UserError  # noqa: E402
from seedmask.model import FinishedModel  # noqa: E402
from seedmask.seed import weights_key  # noqa: E402
from seedmask.spec import ModelSpec  # noqa: E402

pytestmark = [pytest.mark.export, pytest.mark.timeout(1200)]


def small() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 10)),
    )


SMALL = trace(small(), "small", 0xFEDCBA9876543210, (1, 12, 12))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(SMALL, 40, ["executorch"])


def example(spec: ModelSpec, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, scores, and noise that no rounding of sigmoid can carry across a score."""
    rng = np.random.default_rng(n)
    scores, noise = rng.normal(size=spec.d).astype(np.float32), rng.random(spec.d, np.float32)
    near = np.abs(noise - 1 / (1 + np.exp(-scores.astype(np.float64)))) < 1e-5
    x = rng.normal(size=(n, *spec.input)).astype(np.float32)
    return x, rng.integers(0, spec.classes, n), scores, np.where(near, noise / 2, noise).astype(np.float32)


def kernels() -> nn.Module:
    """Wide, flat, even and 1x1 kernels, more padding than kernel."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 5, padding="same"), nn.MaxPool2d((3, 2)), nn.ReLU()),
        *(nn.Conv2d(4, 5, (4, 1), padding=(3, 0)), nn.ReLU(), nn.Conv2d(5, 4, 2, padding=2), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(240, 10)),
    )


def strided() -> nn.Module:
    """Strides that differ, that are larger than their kernel, that leave a rest."""
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 5, stride=2, padding=2, bias=False), nn.ReLU()),
        *(nn.Conv2d(6, 8, (3, 2), stride=(2, 3), padding=(0, 1)), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1, stride=2, bias=False), nn.Flatten(), nn.Linear(48, 10, bias=False)),
    )


def normalised() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6, affine=False), nn.ReLU(), nn.MaxPool2d((2, 3))),
        *(nn.Conv2d(6, 4, 3), nn.GroupNorm(1, 4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 10)),
    )


def narrow() -> nn.Module:
    """Few channels on rows of an even length, two results at a time; norms over more places than are added at once."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(3, 6, affine=False), nn.ReLU()),
        *(nn.Conv2d(6, 6, (2, 3), padding=(0, 2)), nn.GroupNorm(2, 6), nn.ReLU()),
        *(nn.Conv2d(6, 4, (3, 2), padding=(1, 3)), nn.GroupNorm(1, 4, affine=False), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, stride=(2, 1), groups=2), nn.ReLU(), nn.Conv2d(6, 4, 3, dilation=2), nn.ReLU()),
        *(nn.Conv2d(4, 20, 3), nn.ReLU(), nn.Conv2d(20, 2, 3), nn.Flatten(), nn.Linear(92, 10)),
    )


class Sums(nn.Module):
    """Convolutions that differ have one gradient to go back from: kernel, dilation, how many results at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 20, 1)
        self.one, self.three = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.apart, self.of_wide = nn.Conv2d(4, 6, 3, padding=2, dilation=2), nn.Conv2d(20, 6, 3, padding=1)
        self.head = nn.Linear(6 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = torch.relu(self.first(x))
        y = self.three(x) + self.apart(x) + self.one(x) + self.of_wide(self.wide(x))
        return self.head(y.flatten(1))


class Sequences(nn.Module):
    """Norms with scales and shifts on sequences, over channels, rows and everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv1d(3, 8, 5, 2), nn.GroupNorm(2, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.rows, self.rms, self.both = nn.LayerNorm(8), nn.RMSNorm(8, 1e-5), nn.LayerNorm((10, 8))
        self.head = nn.Linear(80, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        y = torch.relu(self.second(torch.relu(self.norm(self.first(x))))).transpose(1, 2)
        return self.head(self.both(self.rms(self.rows(y))).flatten(1))


def images() -> nn.Module:
    """Norms with scales and shifts on images: by channels, along rows, of whole images."""
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.LayerNorm(5), nn.ReLU()),
        *(nn.Conv2d(4, 4, 1), nn.LayerNorm((6, 5)), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.RMSNorm((4, 6, 5), 1e-5)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(120, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


@pytest.mark.parametrize(
    ("net", "shape", "kinds"),
    [
        (Sequences, (3, 23), {"exact": ("norm", "bias"), "frozen": ("second.weight",)}),
        (images, (2, 10, 9), {"exact": ("norm", "16.*")}),
        (images, (2, 10, 9), {"frozen": ("0.*", "9.bias")}),
        (kernels, (2, 13, 7), {}),
        (strided, (2, 23, 22), {}),
        (normalised, (2, 12, 11), {}),
        (narrow, (1, 22, 26), {}),
        (Sums, (1, 8, 8), {}),
        (zoo.mlpn, (1, 28, 28), {}),
        (small, (1, 12, 12), {"exact": ("0.bias",), "frozen": ("3.*",)}),
    ],
)
def test_what_is_lowered_computes_autograds_gradient(
    net: type[nn.Module], shape: tuple[int, ...], kinds: dict[str, tuple[str, ...]]
) -> None:
    """In torch's own float64, so that nothing but the formulas is compared."""
    spec = trace(net(), "net", 5, shape, **kinds)
    x, y, scores, noise = (torch.from_numpy(value) for value in example(spec, 8))
    truth = masked.Masked(spec, scores.double(), 0.1)
    with torch.no_grad():
        truth.exact += torch.randn(spec.e, generator=torch.Generator().manual_seed(2)).double() / 4
    others = [value for value in (truth.frozen, truth.exact.detach().clone()) if len(value)]
    truth.w *= torch.randn(spec.d, generator=torch.Generator().manual_seed(1)).double()  # one magnitude makes ties
    torch.set_default_dtype(torch.float64)
    try:
        g, loss, correct, *by_exact = target.Grads(spec, 8)(
            *(x.double(), y, torch.full((8,), 1 / 8), scores.double(), truth.w, noise.double(), torch.zeros(1)),
            *others,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert (loss.item(), correct.item()) == (
        pytest.approx(truth.step(x.double(), y, noise)[0], rel=1e-7),
        correct.item(),
    )
    gradient = truth.scores.grad
    assert torch.abs(g - gradient).max() <= 1e-7 * torch.abs(gradient).max()
    assert len(by_exact) == (spec.e > 0)
    for found in by_exact:
        assert torch.abs(found - truth.exact.grad).max() <= 1e-7 * torch.abs(truth.exact.grad).max()


@pytest.mark.parametrize("kinds", [{}, {"frozen": ("3.*",), "exact": ("0.bias",)}])
def test_weights_are_made_bit_for_bit(kinds: dict[str, tuple[str, ...]]) -> None:
    """By one program for all seeds: it takes the key, which the host makes."""
    spec = trace(small(), "small", 1, (1, 12, 12), **kinds)
    method = torch.export.export(target.Weights(spec), (torch.zeros(2, dtype=torch.int64),))
    program = library.Program(lower({"weights": method}, {}), 1)
    made = [library.aligned(count, np.float32) for count in (spec.d, spec.count("frozen")) if count]
    for seed in (0, 1, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1):
        program.run("weights", [np.array(weights_key(seed), np.int64)], made)
        seeded = replace(spec, seed=seed)
        assert [part.tobytes() for part in made] == [
            part.tobytes() for part in (seeded.weights(), seeded.frozen()) if part.size
        ]


def test_a_large_batch_is_done_a_part_at_a_time(bundle: Bundle) -> None:
    """40 examples by programs of 14, in which the last 2 of 40 are none, against the reference."""
    assert [target.micro_batch(SMALL, batch) for batch in (40, 32, 128, 12)] == [14, 16, 16, 12]
    assert target.micro_batch(trace(zoo.mlp(), "mlp", 1, (1, 28, 28)), 128) == 128
    runtime, reference = (open_runtime(name, bundle, 1) for name in ("executorch", "reference"))
    for n in (40, 28, 14, 3):
        x, y, scores, noise = example(SMALL, n)
        for rule in (StepConfig(0.1), StepConfig(10.0, "sgd", 0.5, kl=3.0, mean=True)):
            start = State.start(scores, rule)
            found, truth = (each.step(x, y, start, noise, rule) for each in (runtime, reference))
            assert found.loss == pytest.approx(truth.loss, rel=1e-5)
            assert found.correct == truth.correct
            # From a state of zeros m shows the gradient; Adam's scores are its sign.
            assert np.abs(found.state.m - truth.state.m).max() <= 2e-6 * np.abs(truth.state.m).max()


def test_fewer_examples_at_a_time_than_the_program_takes_are_the_same_step(bundle: Bundle) -> None:
    """Which saves no memory; `memory_mb` does not choose it."""
    x, y, scores, noise = example(SMALL, 37)
    assert runtimes.registry.usual("executorch", bundle) == MicroBatchPlan(14)
    truth = open_runtime("reference", bundle, 1).step(x, y, State.start(scores), noise, StepConfig(0.1))
    for micro in (8, 14, 40):
        runtime = open_runtime("executorch", bundle, 1, MicroBatchPlan(micro))
        found = runtime.step(x, y, State.start(scores), noise, StepConfig(0.1))
        assert found.loss == pytest.approx(truth.loss, rel=1e-5)
        assert np.abs(found.state.m - truth.state.m).max() <= 2e-6 * np.abs(truth.state.m).max()
        assert runtime.logits(x, scores).shape == (37, 10)


def test_a_ceiling_counts_what_the_program_has_planned(bundle: Bundle) -> None:
    program = library.Program(bundle.file("executorch/model.pte"), 1)
    assert program.planned("train_step") > 4 * 14 * 12 * 6 * 12  # the first layer's patches alone
    with pytest.raises(BundleError, match="method predict"):
        program.planned("predict")
    fit, estimate = memory.fit("executorch", bundle, 100)
    assert (fit, 63 * memory.MB < estimate < 73 * memory.MB) == (MicroBatchPlan(14), True)
    with pytest.raises(UserError, match=r"the 14 examples at a time of its graphs take about (6[3-9]|7[0-3]) MB"):
        memory.fit("executorch", bundle, 60)


PROCESS = """
import re, sys
from pathlib import Path
import numpy as np
from edge_client import memory
from edge_client.data import Dataset
from edge_client.runtimes import open_runtime
from edge_client.training import train
from seedmask.bundle import load
from seedmask.training import TrainingConfig

bundle, rng = load(Path(sys.argv[1])), np.random.default_rng(0)
spec = bundle.spec
data = Dataset(rng.integers(0, 255, (65, *spec.input)).astype(np.uint8), rng.integers(0, spec.classes, 65))
fit, estimate = memory.fit("executorch", bundle, 1000, data.nbytes)
train(open_runtime("executorch", bundle, 1, fit), spec, data, spec.even(), TrainingConfig(epochs=2), bundle.batch, rng)
print(estimate, int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.requires("proc")
@pytest.mark.parametrize("batch", [16, 64])
def test_conv4_takes_what_was_estimated(batch: int, tmp_path: Path) -> None:
    """In a fresh process; in 64 a batch is taken in four parts."""
    entry = zoo.ZOO["conv4"]
    spec = trace(entry.factory(), "conv4", 1, entry.input)
    (tmp_path / "conv4.bundle").write_bytes(to_bytes(make_bundle(spec, batch, ["executorch"])))
    command = [sys.executable, "-c", PROCESS, "conv4.bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    estimate, peak = map(int, done.stdout.split())
    assert 0.9 * peak < estimate < 1.25 * peak
    assert peak < 250 * memory.MB  # 270 where gradients of weights, and patches with them, wait for the end


def test_a_device_trains_without_torch(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "small.bundle").write_bytes(to_bytes(bundle))
    program = """
import sys
sys.modules["torch"] = None  # what is imported although it is not there is an ImportError
import numpy as np
from pathlib import Path
from edge_client.runtimes import State, StepConfig, open_runtime
from seedmask import bundle
opened = bundle.load(Path("small.bundle"))
d = opened.spec.d
x, zeros = np.ones((2, *opened.spec.input), np.float32), np.zeros(d, np.float32)
result = open_runtime("executorch", opened, 1).step(x, np.array([1, 2]), State.start(zeros), zeros, StepConfig(0.1))
maps = Path("/proc/self/maps").read_text()
print(result.state.t, "libexecutorch.so" in maps, "libtorch" in maps)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1 True False\n", "")


def test_a_bundle_for_others_or_a_damaged_program_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no executorch/model\.pte"):
        open_runtime("executorch", Bundle(SMALL, 8, {}))
    for damaged in (bundle.file("executorch/model.pte")[:200], b"x" * 400):
        with pytest.raises(BundleError, match="executorch: the program cannot be loaded: "):
            open_runtime("executorch", Bundle(SMALL, 8, {"executorch/model.pte": damaged}))


def test_what_a_program_cannot_do_is_said(bundle: Bundle) -> None:
    program = library.Program(bundle.file("executorch/model.pte"), 1)
    assert (program.shape("grads", 0), program.shape("grads", 0, output=True)) == ((14, 1, 12, 12), (SMALL.d,))
    key, w = np.zeros(2, np.int64), library.aligned(SMALL.d, np.float32)
    with pytest.raises(RuntimeError, match="weights has 1 inputs and 1 outputs"):
        program.run("weights", [key, key], [w])
    with pytest.raises(RuntimeError, match="input 0 of weights has another size"):
        program.run("weights", [key[:1]], [w])
    with pytest.raises(RuntimeError, match="output 0 of weights"):
        program.run("weights", [key], [w[1:]])
    with pytest.raises(RuntimeError, match="method predict cannot be loaded"):
        program.run("predict", [key], [w])
    with pytest.raises(BundleError, match="a tensor of weights"):
        program.shape("weights", 7)
    program.run("weights", [np.array(weights_key(SMALL.seed), np.int64)], [w])  # it still works
    assert w.tobytes() == SMALL.weights().tobytes()


def test_the_shim_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, version = library._home()
    made = library.built(home, version, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [made.name]
    monkeypatch.setattr(library, "command", lambda *arguments: ["false"])
    assert library.built(home, version, tmp_path / "a") == made
    monkeypatch.setattr(library, "SOURCE", Path(library.__file__))  # another source is another file
    with pytest.raises(UserError, match="cannot be compiled"):
        library.built(home, version, tmp_path / "a")


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, version = library._home()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no g\+\+ here: apt install g\+\+"):
        library.built(home, version, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="XDG_CACHE_HOME names another place"):
        library.built(home, version, tmp_path / "file" / "folder")


def test_another_executorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.metadata, "version", lambda name: "1.7.0")
    with pytest.raises(UserError, match=r"needs executorch 1\.5\.x, found 1\.7\.0"):
        library._home()
    assert "--no-deps" in runtimes.registry.how_to_get("executorch")


class _Pooled(nn.Module):
    """A loss whose gradient passes through a pooling layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 17.0).view(1, 1, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A number."""
        return torch.nn.functional.max_pool2d(x * self.scale, 2).square().sum()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="ExecuTorch adds gradients of max pooling to what was in memory before (pytorch/executorch issue 21686). "
    "If this test passes, it no longer does: decision 0036 can be looked at again",
)
def test_executorchs_own_training_has_right_gradients_below_a_pooling_layer() -> None:
    from executorch.exir import to_edge
    from executorch.extension.pybindings import portable_lib
    from torch.export.experimental import _export_forward_backward

    model, x = _Pooled(), torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    model(x).backward()
    joint = _export_forward_backward(torch.export.export(model, (x,), strict=True))
    buffer = to_edge(joint).to_executorch().buffer
    program = portable_lib._load_for_executorch_from_buffer(buffer)
    for _ in range(2):  # the first time, what was in memory before may be zeros
        loss, gradient, *_ = program.run_method("forward", (x,))
        if loss.item() != pytest.approx(model(x).item(), rel=1e-5):
            raise RuntimeError(f"not even the loss is right: {loss.item()}")
        np.testing.assert_allclose(gradient, model.scale.grad, rtol=1e-5)


def predicted(file: bytes, x: np.ndarray, batch: int) -> np.ndarray:
    program, out = library.Program(file, 1), []
    for at in range(0, len(x), batch):
        out.append(library.aligned(batch * 10, np.float32).reshape(batch, 10))
        program.run("forward", [np.ascontiguousarray(x[at : at + batch])], [out[-1]])
    return np.concatenate(out)


@pytest.mark.parametrize("net", ["small", "conv4n"])
def test_a_finished_networks_file_predicts_as_torch_does(net: str) -> None:
    """float32 to the last digits; int8 within three hundredths of the largest logit on average."""
    spec = SMALL if net == "small" else trace(zoo.conv4n(), "conv4n", 7, (1, 28, 28))
    rng = np.random.default_rng(3)
    model = FinishedModel(spec, rng.integers(0, 2, spec.d).astype(np.uint8))
    x = rng.integers(0, 256, (64, *spec.input)).astype(np.float32)
    truth = masked.forward(spec, torch.from_numpy(spec.normalise(x)), torch.from_numpy(model.weights())).numpy()
    exact = predicted(target.finished_pte(model, batch=16), x, 16)
    assert np.abs(exact - truth).max() <= 1e-5 * np.abs(truth).max()
    assert np.array_equal(exact.argmax(1), truth.argmax(1))
    rounded = predicted(target.finished_pte(model, int8=True, calibration=x), x, 1)
    assert 1e-4 * np.abs(truth).max() < np.abs(rounded - truth).mean() <= 3e-2 * np.abs(truth).max()
    assert (rounded.argmax(1) == truth.argmax(1)).mean() >= 0.9
    for bad in (None, x[:, :, 1:], x[:0]):
        with pytest.raises(ValueError, match="int8 takes calibration"):
            target.finished_pte(model, int8=True, calibration=bad)


@pytest.mark.slow
def test_a_finished_networks_file_says_what_torch_says_about_ten_thousand_images() -> None:
    """float32 every time; int8 of a network that has learnt something at least 98 times in a hundred."""
    requires("sim", "fashion-mnist")
    from sim.datasets import load

    found = load("fashion-mnist", None)
    spec = trace(zoo.conv4n(), "conv4n", 1, (1, 28, 28))
    torch.manual_seed(1)
    trained = masked.Masked(spec, torch.zeros(spec.d), 0.1)
    for at in range(0, 300 * 64, 64):
        x = torch.from_numpy(spec.normalise(found.train.x[at : at + 64]))
        trained.step(x, torch.from_numpy(found.train.y[at : at + 64]), torch.rand(spec.d))
    model = FinishedModel(spec, (trained.scores.detach().numpy() >= 0).astype(np.uint8))
    raw = found.test.x.astype(np.float32)
    with torch.no_grad():
        truth = masked.forward(spec, torch.from_numpy(spec.normalise(raw)), torch.from_numpy(model.weights()))
    said = truth.numpy().argmax(1)
    assert (said == found.test.y).mean() > 0.6
    assert np.array_equal(predicted(target.finished_pte(model, batch=100), raw, 100).argmax(1), said)
    shown = found.train.x[:200].astype(np.float32)
    rounded = predicted(target.finished_pte(model, int8=True, calibration=shown, batch=100), raw, 100)
    assert (rounded.argmax(1) == said).mean() >= 0.98
