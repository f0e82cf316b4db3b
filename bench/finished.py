"""Cost of a finished model in every format, compared with the dense network: bytes, loading, time per image, memory.

Every format of every model runs in processes of its own, which take turns, so that a busy moment of the machine slows
all alike; reported are medians. Loading is the time from opening the file until the first prediction could be made; the
import of packages is shown beside it. A .smk regenerates its weights from the seed. Memory is the peak of the process.
`dense` is the same architecture with arbitrary float32 weights, as ONNX. Predictions of every format must equal those
of torch, except for executorch-int8, which rounds the values between layers. ExecuTorch's programs run without torch,
by the device's C interface, one image at a time; they are left out if ExecuTorch is not installed.

The simulator trains mlpn and conv4n for a few rounds first. conv4 (1.9 million weights) has a random mask instead,
which takes the same bytes and time.

    python bench/finished.py [--models mlpn,conv4n,conv4] [--repeats N] [--threads N] [--json out/bench/finished.json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in bench/step.py

import numpy as np

TRAINED = ("mlpn", "conv4n")
# name: (format of seedmask export-model, session options beyond our own)
FORMS: dict[str, tuple[str, dict[str, str]]] = {
    "dense": ("", {}),
    "smk": ("", {}),
    "onnx": ("onnx", {}),
    "onnx-int8": ("onnx-int8", {}),
    "onnx-int8, folded": ("onnx-int8", {"session.disable_quant_qdq": "1"}),
    "onnx-seed": ("onnx-seed", {}),
    "torch": ("torch", {}),
    "executorch": ("executorch", {}),
    "executorch-int8": ("executorch-int8", {}),
}
ROUNDED = ("executorch-int8",)
CALIBRATION = 256  # images of the training set
Logits = Callable[[Any], Any]


def onnx_session(data: bytes, threads: int, more: dict[str, str]) -> Logits:
    """Raw float32 images to logits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in {"session.intra_op.allow_spinning": "0", **more}.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def open_form(form: str, path: Path, bundle: Path, threads: int) -> Logits:
    """Load `path` and return its prediction function; this is the part that is timed."""
    if form == "smk":
        from edge_client.predict import logits_of, open_for
        from seedmask import model as models

        model = models.load(path)
        _, runtime = open_for(model, path, bundle, "onnxruntime", threads)
        return lambda x: logits_of(runtime, model, x)
    if form == "torch":
        import torch

        from export.zoo import ZOO

        torch.set_num_threads(threads)
        net = ZOO[bundle.stem].factory()
        net.load_state_dict(torch.load(path, weights_only=True))
        return lambda x: torch.no_grad()(net)(torch.from_numpy(x) * (2 / 255) - 1).numpy()
    if form.startswith("executorch"):
        return executorch_program(path.read_bytes(), threads)
    return onnx_session(path.read_bytes(), threads, FORMS[form][1])


def executorch_program(data: bytes, threads: int) -> Logits:
    """Raw float32 images to logits, one at a time."""
    from edge_client.runtimes.executorch.library import Program, aligned

    program = Program(data, threads)
    shape = program.shape("forward", 0)
    image = aligned(int(np.prod(shape)), np.float32).reshape(shape)
    classes = program.shape("forward", 0, output=True)[1]
    out = aligned(classes, np.float32)

    def run(x: Any) -> Any:
        logits = np.empty((len(x), classes), np.float32)
        for i, each in enumerate(x):
            image[0] = each
            program.run("forward", [image], [out])
            logits[i] = out
        return logits

    return run


def child(form: str, path: Path, bundle: Path, images: Path, threads: int) -> None:
    """Measure one format in this process; one line of JSON."""
    if not form.startswith("executorch"):
        __import__("torch" if form == "torch" else "onnxruntime")
    idle = peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    run = open_form(form, path, bundle, threads)
    load = {"load_wall_ms": 1e3 * (time.perf_counter() - wall), "load_cpu_ms": 1e3 * (time.process_time() - cpu)}
    x = np.load(images)["x"].astype(np.float32)
    one = []
    for image in x[:60]:
        wall, cpu = time.perf_counter(), time.process_time()
        run(image[None])
        one.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    cpu = time.process_time()
    logits = np.concatenate([run(x[at : at + 100]) for at in range(0, len(x), 100)])
    many = 1e3 * (time.process_time() - cpu) / len(x)
    wall_one, cpu_one = (statistics.median(column) for column in zip(*one, strict=True))
    numbers = {**load, "wall_ms_per_image": wall_one, "cpu_ms_per_image": cpu_one, "cpu_ms_per_image_of_100": many}
    print(
        json.dumps({**numbers, "idle_rss_mb": idle, "peak_rss_mb": peak_mb(), "predictions": logits.argmax(1).tolist()})
    )


def peak_mb() -> float:
    """Return the peak memory of this process, in megabytes."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def prepare(name: str, folder: Path) -> tuple[Path, Path]:
    """(model.smk, NAME.bundle) in `folder`."""
    from export.make import make_bundle
    from export.trace import trace
    from export.zoo import ZOO
    from seedmask import bundle as bundles
    from seedmask import model as models

    smk, bundle = folder / f"{name}.smk", folder / f"{name}.bundle"
    entry = ZOO[name]
    spec = trace(entry.factory(), name, 1, entry.input, (0, 255), entry.classes)
    if name in TRAINED:
        out = folder / "run"
        options = ["--virtual", "--devices", "4", "--rounds", "5", "--examples", "1000", "--seed", "1", "--model", name]
        seedmask = [sys.executable, "-m", "seedmask.cli", "simulate"]
        subprocess.run([*seedmask, *options, "--out", str(out)], check=True, capture_output=True)
        smk.write_bytes((out / "model.smk").read_bytes())
        bundle.write_bytes((out / "model.bundle").read_bytes())
    else:
        mask = np.random.default_rng(1).integers(0, 2, spec.d).astype(np.uint8)
        smk.write_bytes(models.encode(models.FinishedModel(spec, mask)))
        bundle.write_bytes(bundles.to_bytes(make_bundle(spec, 128)))
    return smk, bundle


def write_forms(smk: Path, folder: Path) -> dict[str, Path]:
    """Write a file for every format."""
    import sim.datasets
    from edge_client import runtimes
    from export.final_onnx import final_graph
    from export.formats import FORMATS, Wish
    from seedmask import model as models

    model = models.load(smk)
    # Any dense weights do: their values change neither bytes nor time.
    dense = models.FinishedModel(model.spec, np.ones(model.spec.d, np.uint8))
    files = {"smk": smk, "dense": folder / "dense.onnx"}
    files["dense"].write_bytes(final_graph(dense))
    wish = Wish(calibration=sim.datasets.load("fashion-mnist", None).train.x[:CALIBRATION])
    for form, (to, _) in FORMS.items():
        if to and not (to.startswith("executorch") and runtimes.missing("executorch")):
            files[form] = folder / f"{to}.file"
            files[form].write_bytes(FORMATS[to].write(model, wish))
    return files


def regeneration(smk: Path) -> dict[str, float]:
    """CPU milliseconds to check and decode the file, and to make the weights from the seed; medians of seven."""
    from seedmask import model as models

    data = smk.read_bytes()
    model = models.decode(data)

    def median(act: Callable[[], Any]) -> float:
        spent = []
        for _ in range(7):
            cpu = time.process_time()
            act()
            spent.append(1e3 * (time.process_time() - cpu))
        return round(statistics.median(spent), 2)

    return {"decode_cpu_ms": median(lambda: models.decode(data)), "weights_cpu_ms": median(model.spec.weights)}


def measure(name: str, images: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Measure one model in every format, and return the figures."""
    from seedmask import model as models

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        smk, bundle = prepare(name, folder)
        files = write_forms(smk, folder)
        forms = [form for form in FORMS if form in files]
        runs: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
        for _ in range(repeats):
            for form in forms:
                command = [sys.executable, __file__, "--child", form, str(files[form]), str(bundle), str(images)]
                done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name}, {form}:\n{done.stderr}")
                runs[form].append(json.loads(done.stdout))
        made = models.load(smk)
        d, sizes = made.spec.d, models.sizes(made, smk.read_bytes())
        rows = []
        truth = runs["torch"][0]["predictions"]
        for form, several in runs.items():
            size = files[form].stat().st_size
            numbers = {k: statistics.median(r[k] for r in several) for k in several[0] if k != "predictions"}
            # `dense` is another network; nobody expects it to agree.
            odd = sum(a != b for a, b in zip(several[0]["predictions"], truth, strict=True))
            rows.append(
                {"format": form, "bytes": size, "bits_per_parameter": round(8 * size / d, 4)}
                | {key: round(value, 4) for key, value in numbers.items()}
                | {"predictions_unlike_torch": None if form == "dense" else odd}
            )
        return {
            "model": name,
            "parameters": d,
            "mask": "trained" if name in TRAINED else "drawn",
            "images": len(truth),
            "threads": threads,
            "mask_bytes": sizes.mask,
            "mask_over_entropy": round(sizes.over_entropy, 6),
            **regeneration(smk),
            "formats": rows,
        }


def table(result: dict[str, Any]) -> str:
    """Return the results as a table for people; times are CPU time, relative to dense."""
    base = next(row for row in result["formats"] if row["format"] == "dense")
    torch = next(row for row in result["formats"] if row["format"] == "torch")
    names = ("bytes", "bit/par", "load ms", "ms/image", "to dense", "to torch", "of 100", "MB", "unlike")
    head = f"{'format':<20}" + "".join(f"{n:>{w}}" for n, w in zip(names, (11, 9, 9, 10, 9, 9, 8, 7, 8), strict=True))
    lines = [
        f"{result['model']}: {result['parameters']:,} weights, mask {result['mask']}, "
        f"{result['mask_over_entropy']:.2%} above its entropy;",
        f"decoded in {result['decode_cpu_ms']} ms, weights made in {result['weights_cpu_ms']} ms",
        head,
    ]
    for row in result["formats"]:
        one, many = (row[key] / base[key] for key in ("cpu_ms_per_image", "cpu_ms_per_image_of_100"))
        unlike = "" if row["predictions_unlike_torch"] is None else f"{row['predictions_unlike_torch']:>8}"
        lines.append(
            f"{row['format']:<20}{row['bytes']:>11,}{row['bits_per_parameter']:>9.2f}{row['load_cpu_ms']:>9.1f}"
            f"{row['cpu_ms_per_image']:>10.3f}{one:>9.2f}{row['cpu_ms_per_image'] / torch['cpu_ms_per_image']:>9.2f}"
            f"{many:>8.2f}{row['peak_rss_mb']:>7.0f}{unlike}"
        )
    return "\n".join(lines)


def main() -> int:
    """Print tables, write JSON; 1 if a format predicts otherwise than torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="mlpn,conv4n,conv4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=10_000, help="test images; conv4 takes a tenth")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, metavar=("FORM", "FILE", "BUNDLE", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        form, *paths = options.child
        path, bundle, images = map(Path, paths)
        child(form, path, bundle, images, options.threads)
        return 0
    from sim.datasets import load

    test = load("fashion-mnist").test
    results = []
    with tempfile.TemporaryDirectory() as place:
        for name in options.models.split(","):
            images = Path(place) / "images.npz"
            np.savez(images, x=test.x[: options.images if name in TRAINED else options.images // 10])
            results.append(measure(name, images, options.repeats, options.threads))
            print(table(results[-1]) + "\n", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
        print(f"wrote {options.json}")
    exact = [row for result in results for row in result["formats"] if row["format"] not in ROUNDED]
    return int(any(row["predictions_unlike_torch"] for row in exact))


if __name__ == "__main__":
    sys.exit(main())
