"""Check of what a device installs: size on disk, wheels for aarch64, and a real job in that environment.

1. For each Python version of the boards, resolve the device install (`seedmask[onnxruntime]`) for aarch64, from wheels
   only. It must resolve, contain no torch, and stay below the budget. Do the same with ExecuTorch's wheel alone.
2. Train in a fresh environment with only that install, as the one device of a job over a real broker. Do the same with
   ExecuTorch instead of onnxruntime, which compiles its shim there.
Run: python bench/device.py [--json FILE] [--budget-mb N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import numpy as np

from aggregator.broker import dev_broker

ROOT = Path(__file__).resolve().parent.parent
BOARDS = {"3.10": "JetPack 6", "3.11": "Raspberry Pi OS bookworm", "3.13": "Raspberry Pi OS trixie"}
# glibc 2.28 and newer, which every one of these boards has; pip wants each older name spelt out.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
EXECUTORCH = "executorch==1.5.1"
HOST = "127.0.0.1"


def run(*command: str | Path, **options: object) -> str:
    """Output of a command; its words and its end if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def wheel(folder: Path) -> Path:
    """Our own wheel."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("seedmask-*.whl"))


def resolve(python: str, folder: Path, *packages: str) -> dict[str, object]:
    """Resolve a device install for aarch64 from wheels only; return packages, download and unpacked megabytes."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    run(
        *(sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", python, *platforms, "-d", folder, *packages),
    )
    wheels = sorted(folder.glob("*.whl"))
    names = [path.name.split("-")[0] for path in wheels]
    if any(name.startswith(("torch", "nvidia")) for name in names):
        raise SystemExit(f"a device would install {', '.join(names)}")
    unpacked = sum(item.file_size for path in wheels for item in zipfile.ZipFile(path).infolist())
    return {
        "python": python,
        "board": BOARDS[python],
        "packages": [path.name.split("-")[0] + " " + path.name.split("-")[1] for path in wheels],
        "download_mb": round(sum(path.stat().st_size for path in wheels) / 1e6, 1),
        "unpacked_mb": round(unpacked / 1e6, 1),
    }


def environment(folder: Path, ours: Path, runtime: str) -> tuple[Path, float]:
    """Make a device's environment here; return its python, and its megabytes on disk without pip."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if runtime == "executorch":  # without the packages it names: exporting needs them, training does not
        run(python, "-m", "pip", "install", "-q", "--no-deps", EXECUTORCH)
        run(python, "-m", "pip", "install", "-q", ours)
    else:
        run(python, "-m", "pip", "install", "-q", f"{ours}[{runtime}]")
    run(python, "-m", "pip", "uninstall", "-q", "-y", "pip", "setuptools")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return python, size / 1e6


def bundle() -> bytes:
    """Return the bundle of a small network, with graphs for every runtime that is measured."""
    from export.make import make_bundle
    from export.trace import trace
    from export.zoo import ZOO
    from seedmask.bundle import to_bytes

    spec = trace(ZOO["mlp"].factory(), "mlp", 1, (1, 28, 28), (0, 255), 10, "kaiming")
    return to_bytes(make_bundle(spec, 64, ["onnx", "executorch"]))


def job(python: Path, folder: Path, bundle: bytes, runtime: str) -> str:
    """Train one small job with that python as its device and ours as the aggregator; the device's last line."""
    folder.mkdir()
    seedmask = Path(sys.executable).parent / "seedmask"
    (folder / "mlp.bundle").write_bytes(bundle)
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (256, 28, 28), np.uint8), y=rng.integers(0, 10, 256))
    common = 'job = "device"\nbundle = "mlp.bundle"\n'
    with dev_broker(HOST) as running:
        broker = f'[broker]\nhost = "{HOST}"\nport = {running.port}\n'
        (folder / "run.toml").write_text(
            f'{common}state_dir = "server"\n[rounds]\ntotal = 2\n[training]\nepochs = 1\n{broker}'
        )
        (folder / "edge.toml").write_text(
            f'device = "pi"\nruntime = "{runtime}"\n{common}state_dir = "pi"\n'
            f'[data]\nformat = "npz"\npath = "data.npz"\n{broker}'
        )
        server = subprocess.Popen(
            [seedmask, "aggregator", "run", "--config", folder / "run.toml"], stderr=subprocess.PIPE
        )
        try:
            device = subprocess.run(
                [python.parent / "seedmask", "client", "run", "--config", folder / "edge.toml"],
                capture_output=True,
                text=True,
                timeout=180,
            )
            if device.returncode:
                raise SystemExit(f"the device failed:\n{device.stderr}")
            server.wait(60)
        finally:
            server.kill()
            server.wait()
    return device.stderr.strip().splitlines()[-1]


def main() -> int:
    """Print what was found; 1 above the budget."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--budget-mb", type=float, default=200.0, help="unpacked size that a device may install (200)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = wheel(folder)
        boards = [resolve(python, folder / python, f"{ours}[onnxruntime]") for python in BOARDS]
        # The package alone; what it names is for exporting.
        pte = [resolve(python, folder / f"et-{python}", "--no-deps", EXECUTORCH) for python in BOARDS]
        for row in [*boards, *pte]:
            print(
                f"aarch64, Python {row['python']} ({row['board']}): {row['download_mb']} MB to fetch, "
                f"{row['unpacked_mb']} MB unpacked: {', '.join(map(str, row['packages']))}"  # type: ignore[arg-type]
            )
        model, sizes = bundle(), {}
        for runtime in ("onnxruntime", "executorch"):
            python, size = environment(folder / runtime, ours, runtime)
            sizes[runtime] = round(size, 1)
            here = f"{sys.version_info.major}.{sys.version_info.minor}"
            print(f"{runtime} here, Python {here}: {size:.1f} MB on disk, pip not counted")
            if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0:
                raise SystemExit("torch can be imported in the device's environment")
            print(f"a job with it, over a real broker: {job(python, folder / f'{runtime}-job', model, runtime)}")
    largest = max(float(str(row["unpacked_mb"])) for row in boards)
    print(f"largest {largest} MB, budget {options.budget_mb} MB")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"boards": boards, "executorch": pte, "here_mb": sizes}, indent=1))
    return int(largest > options.budget_mb)


if __name__ == "__main__":
    sys.exit(main())
