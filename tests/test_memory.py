"""A device's memory ceiling: what is estimated, chosen and refused, and that a real process keeps to it."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires
from test_trainer import announce, following

from edge_client import memory, runtimes
from edge_client.config import EdgeConfig
from edge_client.data import Dataset, DataSettings
from edge_client.runtimes import MicroBatchPlan
from edge_client.runtimes.footprint import MB, Footprint, activations, tiles
from edge_client.session import Failed, Trained
from edge_client.trainer import ProcessTrainer
from seedmask.bundle import Bundle, to_bytes
from seedmask.cli import main
from seedmask.errors import UserError
from seedmask.mask import Theta
from seedmask.spec import Conv2d, Flatten, Layer, Linear, MaxPool2d, ModelSpec, ReLU, Tensor, scale_bits
from seedmask.training import TrainingConfig


def net(*layers: Layer, **tensors: tuple[int, ...]) -> ModelSpec:
    named = tuple(Tensor(name, shape, scale_bits(0.1)) for name, shape in tensors.items())
    return ModelSpec("net", 1, (1, 8, 8), (0, 255), 10, layers, named)


IMAGES = net(
    *(Conv2d("a", None, (1, 1), (1, 1)), ReLU(), Conv2d("b", None, (1, 1), (1, 1)), MaxPool2d((2, 2)), ReLU()),
    *(Flatten(), Linear("c", None)),
    a=(4, 1, 3, 3),
    b=(4, 4, 3, 3),
    c=(10, 64),
)
PLAIN = Footprint(10 * MB, 2.5, 2.0, spare=1.0)


def test_activations_are_what_is_kept_and_the_worst_layers_needs() -> None:
    """Kept up to b: the input (64), a's ReLU (256); b's gradient takes 3 x 256 of its own and two padded inputs."""
    assert activations(IMAGES) == 4 * (64 + 256 + 3 * 256 + 2 * 4 * 10 * 10)
    # With stacks: seven of dy, one padded input, two shifted ones.
    assert activations(IMAGES, stacks=True) == 4 * (64 + 256 + 7 * 256 + 400 + 2 * 256)


def test_tiles_are_six_by_six_for_four_by_four_results_or_six_by_four_of_many_channels() -> None:
    assert tiles(IMAGES) == 4 * (1 + 4) * (2 * 6) * (2 * 6)
    ragged = net(
        *(Conv2d("a", None, (1, 1), (0, 0)), Conv2d("b", None, (2, 2), (1, 1)), Conv2d("c", None, (1, 1), (0, 0))),
        *(Flatten(), Linear("d", None)),
        a=(65, 1, 3, 3),
        b=(4, 65, 3, 3),
        c=(4, 4, 2, 3),
        d=(10, 8),
    )
    assert tiles(ragged) == 4 * (2 * 6) * (3 * 4)  # six rows, six columns; others have a stride, or not three rows


def test_the_formula_is_the_documented_one() -> None:
    bundle = Bundle(IMAGES, 64, {"graph": b"x" * 1000})
    vector, example = 4 * IMAGES.d, activations(IMAGES)
    assert PLAIN.bytes_of(bundle, MicroBatchPlan(64)) == int(10 * MB + 2.5 * vector + 2 * 64 * example)
    assert replace(PLAIN, spare=1e6).bytes_of(bundle, MicroBatchPlan(64)) == int(10 * MB + 2.5 * vector + 1e6 * vector)
    assert replace(PLAIN, graph="graph", per_graph_byte=7).bytes_of(bundle, MicroBatchPlan(1)) - PLAIN.bytes_of(
        bundle, MicroBatchPlan(1)
    ) == pytest.approx(7000, abs=1)
    stacked = replace(PLAIN, stacks=frozenset({"cpu"})).bytes_of(bundle, MicroBatchPlan(64, "cpu"))
    more = 64 * (2 * activations(IMAGES, stacks=True) + tiles(IMAGES))
    assert stacked == int(10 * MB + 2.5 * vector + more)


def test_the_largest_micro_batch_below_the_ceiling_is_chosen() -> None:
    bundle = Bundle(IMAGES, 4096, {})
    for ceiling in range(50, 400, 10):
        chosen, estimate = memory.fit("reference", bundle, ceiling)
        footprint = runtimes.registry.footprint("reference")
        assert estimate == footprint.bytes_of(bundle, chosen) <= ceiling * MB
        assert chosen.micro == 4096 or footprint.bytes_of(bundle, MicroBatchPlan(chosen.micro + 1)) > ceiling * MB
    assert memory.fit("reference", bundle, 100_000)[0].micro == 4096


def test_a_batch_is_cut_into_few_parts_of_one_size() -> None:
    for n, micro in itertools.product(range(1, 40), range(1, 42)):
        parts = MicroBatchPlan(micro).parts(n)
        sizes = [part.stop - part.start for part in parts]
        assert [at for part in parts for at in range(part.start, part.stop)] == [*range(n)]
        assert len(parts) == math.ceil(n / micro)
        assert max(sizes) <= micro
        assert max(sizes) - min(sizes) <= 1


def test_the_examples_of_the_device_count() -> None:
    bundle = Bundle(IMAGES, 4096, {})
    (without, _), (with_, estimate) = (memory.fit("reference", bundle, 100, data) for data in (0, 30 * MB))
    assert (memory.fit("reference", bundle, 70)[0], with_.micro < without.micro) == (with_, True)
    assert 70 * MB < estimate <= 100 * MB


LARGE_KERNELS = net(
    *(Conv2d("a", None, (1, 1), (2, 2)), ReLU(), Conv2d("b", None, (1, 1), (2, 2)), MaxPool2d((2, 2)), ReLU()),
    *(Flatten(), Linear("c", None)),
    a=(4, 1, 5, 5),
    b=(4, 4, 5, 5),
    c=(10, 64),
)


@pytest.mark.parametrize(("spec", "enough"), [(LARGE_KERNELS, 8), (IMAGES, 3)])
def test_the_lean_variant_is_taken_when_too_few_fit(
    monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, enough: int
) -> None:
    """Three are enough where 3x3 convolutions are filtered, since `lean` computes them directly."""
    assert bool(tiles(spec)) == (enough == 3)
    monkeypatch.setattr(runtimes.registry, "footprint", lambda name: replace(PLAIN, stacks=frozenset({"cpu"})))
    bundle = Bundle(spec, 64, {"onnx/grads.onnx": b"", "onnx-lean/grads.onnx": b""})
    chosen = {memory.fit("onnxruntime", bundle, ceiling)[0] for ceiling in (11, 12)}
    assert {fit.variant for fit in chosen} == {"cpu"}
    each = activations(spec, stacks=True) * 2 + tiles(spec)
    monkeypatch.setattr(memory, "MB", 1)
    monkeypatch.setattr(runtimes.registry, "footprint", lambda name: Footprint(0, 0, 2.0, stacks=frozenset({"cpu"})))
    assert memory.fit("onnxruntime", bundle, enough * each)[0] == MicroBatchPlan(enough, "cpu")
    lean = memory.fit("onnxruntime", bundle, enough * each - 1)[0]
    assert (lean.variant, lean.micro) == ("lean", (enough * each - 1) // (2 * activations(spec)))
    only = replace(bundle, files={"onnx/grads.onnx": b""})
    assert memory.fit("onnxruntime", only, enough * each - 1)[0] == MicroBatchPlan(enough - 1, "cpu")


def test_what_fits_nowhere_is_refused_with_numbers_and_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(IMAGES, 64, {})
    with pytest.raises(UserError) as refusal:
        memory.fit("reference", bundle, 20, 3 * MB)
    text = str(refusal.value)
    assert "memory_mb = 20 is too little for net on runtime reference: one example at a time takes about 49 MB" in text
    assert "45 are the program, 0 vectors of 820 weights and 3 the examples" in text
    assert "a higher ceiling or a network with fewer weights helps, a smaller batch does not" in text
    monkeypatch.setattr(runtimes.registry, "missing", lambda name: [])
    with pytest.raises(UserError, match="runtime reference would fit"):
        memory.fit("torch", bundle, 60)


def test_graphs_made_for_one_micro_batch_fit_as_they_are_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.registry, "footprint", lambda name: replace(PLAIN, fixed=True))
    monkeypatch.setattr(runtimes.registry, "usual", lambda name, bundle: MicroBatchPlan(32))
    bundle = Bundle(IMAGES, 64, {})
    least = PLAIN.bytes_of(bundle, MicroBatchPlan(32))
    ceiling = -(-(least + 3 * MB) // MB)
    assert memory.fit("executorch", bundle, ceiling, 3 * MB) == (MicroBatchPlan(32), least + 3 * MB)
    with pytest.raises(UserError) as refusal:
        memory.fit("executorch", bundle, ceiling - 1, 3 * MB)
    text = str(refusal.value)
    assert f"runtime executorch: the 32 examples at a time of its graphs take about {ceiling} MB, of which 10" in text
    monkeypatch.setattr(runtimes.registry, "missing", lambda name: ["a_package"])
    with pytest.raises(UserError, match="helps, an export with a --batch below 32 helps"):
        memory.fit("executorch", bundle, ceiling - 1, 3 * MB)


def test_a_runtime_that_keeps_to_no_ceiling_says_which_do() -> None:
    unable = [name for name in runtimes.names() if runtimes.registry.footprint(name) is None]
    assert "onnxruntime_cuda" in unable
    for name in unable:
        with pytest.raises(
            UserError, match=rf"runtime {name} keeps to no memory_mb; these do: executorch, onnxruntime, "
        ):
            memory.fit(name, Bundle(IMAGES, 64, {}), 100)


@pytest.fixture
def device(tmp_path: Path, tiny_bundle: Bundle, tiny_data: Dataset) -> Callable[[int], Path]:
    """Settings of a device with a ceiling, and all that they name."""
    (tmp_path / "tiny.bundle").write_bytes(to_bytes(tiny_bundle))
    np.savez(tmp_path / "mine.npz", x=tiny_data.x, y=tiny_data.y)

    def settings(memory_mb: int) -> Path:
        path = tmp_path / "edge.toml"
        path.write_text(
            'device = "pi-1"\njob = "job"\nbundle = "tiny.bundle"\nstate_dir = "state"\nruntime = "reference"\n'
            f'memory_mb = {memory_mb}\n[data]\npath = "mine.npz"\n'
        )
        return path

    return settings


def test_a_device_says_how_it_takes_a_batch_or_why_it_cannot(
    device: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "run", "--check", "--config", str(device(60))]) == 0
    said = capsys.readouterr().err
    assert "8 of a step's 8 examples at a time: about 45 of 60 MB while training, an estimate" in said
    assert main(["client", "run", "--check", "--config", str(device(0))]) == 0
    assert "at a time" not in capsys.readouterr().err
    assert main(["client", "run", "--check", "--config", str(device(40))]) == 2
    assert "memory_mb = 40 is too little for tiny on runtime reference" in capsys.readouterr().err
    assert main(["client", "run", "--check", "--config", str(device(-1))]) == 2
    assert "memory_mb is 0 (no ceiling)" in capsys.readouterr().err


PROCESS = """
import re, sys
from pathlib import Path
import numpy as np
from edge_client import memory
from edge_client.data import Dataset
from edge_client.runtimes import open_runtime
from edge_client.training import train
from seedmask.bundle import load
from seedmask.codec import by_id
from seedmask.mask import Theta
from seedmask.shared import Shared
from seedmask.training import TrainingConfig

bundle, rng = load(Path(sys.argv[1])), np.random.default_rng(0)
spec = bundle.spec
data = Dataset(rng.integers(0, 255, (129, *spec.input)).astype(np.uint8), rng.integers(0, spec.classes, 129))
fit, estimate = memory.fit("onnxruntime", bundle, int(sys.argv[2]), data.nbytes)
runtime = open_runtime("onnxruntime", bundle, 1, fit)
theta, work = Theta.even(spec.d), TrainingConfig(epochs=2)
out = train(runtime, spec, data, theta, work, bundle.batch, rng)
by_id(work.codec_id).draw(out.scores, theta, Shared(spec.seed, 1, "job", "device", 0), rng, work.plan(None))
peak = int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
print(fit.micro, fit.variant, estimate, peak, len(out.scores))
"""


@pytest.fixture(scope="module")
def conv4() -> ModelSpec:
    """Where it can be exported, and trained in a process whose packages are those of a device."""
    requires("torch", "onnx", "onnxruntime")
    if not runtimes.missing("ort_training"):
        pytest.skip("onnxruntime-training imports torch where it finds it, and torch alone is over the ceiling")
    from export.trace import trace
    from export.zoo import ZOO

    entry = ZOO["conv4"]
    return trace(entry.factory(), "conv4", 1, entry.input, (0, 255), entry.classes)


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.requires("proc")
def test_conv4_at_batch_128_stays_below_200_mb_from_training_to_the_coded_mask(
    tmp_path: Path, conv4: ModelSpec
) -> None:
    """The whole of a round in a fresh process, which is what a device's ceiling is about."""
    from export.make import make_bundle

    path = tmp_path / "conv4.bundle"
    for targets, ceiling, expected in ((["onnx"], 200, "cpu"), (["onnx", "onnx-lean"], 197, "lean")):
        path.write_bytes(to_bytes(make_bundle(conv4, 128, targets)))
        run = subprocess.run(
            [sys.executable, "-c", PROCESS, str(path), str(ceiling)], capture_output=True, text=True, check=True
        )
        micro, variant, estimate, peak, d = run.stdout.split()
        assert (int(d), 1 <= int(micro) < 128) == (1_933_258, True)
        assert variant == expected
        assert int(peak) < ceiling * MB
        assert 0.85 * int(peak) < int(estimate) <= ceiling * MB


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.requires("proc")
@pytest.mark.parametrize("keep", [False, True])
def test_later_rounds_take_no_more_than_the_first_may(tmp_path: Path, conv4: ModelSpec, keep: bool) -> None:
    """In the device's own training process: what is left of one round must not lie beside the next."""
    from export.make import make_bundle

    spec, rng = conv4, np.random.default_rng(0)
    (tmp_path / "conv4.bundle").write_bytes(to_bytes(make_bundle(spec, 128)))
    x = rng.integers(0, 255, (129, *spec.input)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x=x, y=rng.integers(0, spec.classes, 129))
    data = DataSettings("npz", {"path": str(tmp_path / "mine.npz")})
    config = EdgeConfig("pi-1", "fashion", tmp_path / "conv4.bundle", tmp_path, data, threads=1, memory_mb=200)
    trainer, theta, peaks = ProcessTrainer(config), Theta.even(spec.d), []
    try:
        for round_ in (1, 2, 3):
            trainer.begin(announce(spec, theta, round_, TrainingConfig(epochs=1, keep_optimizer=keep)), theta)
            assert isinstance(following(trainer, Trained, Failed), Trained)
            assert trainer._process is not None
            status = Path(f"/proc/{trainer._process.pid}/status").read_text()
            peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / MB)
    finally:
        trainer.close()
    assert max(peaks) < 200
    assert peaks[2] < 1.05 * peaks[0]
