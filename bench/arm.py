"""Comparison of ExecuTorch's step on aarch64 with that on x86: cross-build the device's C interface, run it under qemu.

Only results are compared, since an emulated processor has no meaningful timings. Weights must be equal bit for bit, the
results of a step to one part in a million.

    apt install g++-aarch64-linux-gnu qemu-user-static
    python bench/arm.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from torch import nn

from edge_client.runtimes.executorch import library
from export.targets.executorch import program
from export.trace import trace
from seedmask.seed import weights_key

CXX, QEMU, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"
WHEEL = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_aarch64")
TOLERANCE = 1e-6
BATCH = 8


def cross_built(folder: Path) -> Path:
    """Cross-build the driver for aarch64, beside the libraries that it loads, and return its path."""
    wheel = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *WHEEL]
    subprocess.run([*wheel, "-d", str(folder), "executorch==1.5.1"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        names = [name for name in archive.namelist() if name.startswith(("executorch/lib/", "executorch/include/"))]
        archive.extractall(folder, names)
    home, shim, driver = folder / "executorch", folder / "shim.so", folder / "arm"
    subprocess.run(library.command(home, shim, CXX), check=True)
    libraries = [f"-l{name}" for name in library.LIBRARIES]
    paths = [f"-L{home / 'lib'}", "-Wl,--no-as-needed", *libraries, f"-Wl,-rpath,{home / 'lib'}:{folder}"]
    source = str(Path(__file__).with_name("arm.cpp"))
    subprocess.run([CXX, "-std=c++17", "-O1", source, str(shim), *paths, "-o", str(driver)], check=True)
    return driver


def main() -> int:
    """Print the largest deviation of each output; 1 if one is out of tolerance."""
    if lacking := [name for name in (CXX, QEMU) if shutil.which(name) is None]:
        sys.exit(f"needs {', '.join(lacking)}: apt install g++-aarch64-linux-gnu qemu-user-static")
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 10)),
    )
    spec = trace(net, "arm", 0xFEDCBA9876543210, (1, 12, 12))
    rng, data = np.random.default_rng(1), program(spec, BATCH)
    f32 = np.float32
    scores, noise = rng.normal(size=spec.d).astype(f32), rng.random(spec.d, f32)
    w = (spec.weights() * rng.normal(size=spec.d)).astype(f32)  # of one magnitude they make ties
    x, y = rng.normal(size=(BATCH, *spec.input)).astype(f32), rng.integers(0, 10, BATCH)
    weight, zeros = np.full(BATCH, 1 / BATCH, f32), np.zeros(spec.d, f32)
    rates = [np.array([value], f32) for value in (0.01, 1e-8)]
    vectors = [library.aligned(spec.d, f32) for _ in range(4)]
    calls: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
        "weights": ([np.array(weights_key(spec.seed), np.int64)], vectors[:1]),
        "train_step": (
            [x, y, weight, scores, w, noise, np.zeros(1, f32), zeros, zeros, *rates],
            [*vectors[1:], np.zeros((), f32), np.zeros((), np.int64)],
        ),
    }
    worst = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        driver, here = cross_built(folder), library.Program(data, 1)
        (folder / "model.pte").write_bytes(data)
        for method, (given, out) in calls.items():
            here.run(method, given, out)
            for i, array in enumerate(given):
                (folder / f"{method}.in{i}").write_bytes(array.tobytes())
            sizes = [str(array.nbytes) for array in out]
            command = [QEMU, "-L", SYSROOT, str(driver), "model.pte", method, str(len(given)), *sizes]
            subprocess.run(command, cwd=folder, check=True)
            for i, array in enumerate(out):
                there = np.frombuffer((folder / f"{method}.out{i}").read_bytes(), array.dtype).reshape(array.shape)
                largest = max(float(np.abs(array).max()), 1e-30)
                worst[f"{method} {i}"] = float(np.abs(array - there).max()) / largest
    for output, deviation in worst.items():
        print(f"{output:<16}{deviation:.1e}")
    return int(worst["weights 0"] > 0 or max(worst.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
