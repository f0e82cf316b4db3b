"""Time and memory of one training step: every runtime, plain torch with autograd, and torch.compile.

Each has a process of its own, with the same network, batches and noise, and includes Adam. They take turns, so that a
busy moment of the machine slows all alike. Reported are medians, CPU time first. Quote the ratios to plain torch,
because milliseconds depend on the machine and its load. Memory is the peak of the process; the estimate of
`runtimes.footprint` is beside it for runtimes that have one. Runtimes that cannot run here are listed as such.

    python bench/step.py [--models conv4,conv6,resnet20] [--batches 16,32,128] [--threads 1] [--minutes 10]
                         [--python ort_training=.venvs/ort/bin/python] [--json out/bench/step.json]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Waiting threads sleep, as they do in our onnxruntime sessions. Left to spin, torch's threads fight every
# other process for the cores: on a machine with neighbours that alone made a 5 ms step one of 250 ms. Before
# torch's first import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

ROOT: Final = Path(__file__).parents[1]
EAGER: Final = "torch eager"
COMPILED: Final = "torch.compile"
EXPORTED: Final = {"onnxruntime": "onnx,onnx-lean", "executorch": "executorch", "ort_training": "ort-training"}
EXPORT_SECONDS: Final = 1200  # for a bundle; ResNet-20's for ExecuTorch takes four minutes of CPU time
START_SECONDS: Final = 90  # for a process until its first step is done, torch.compile's compiler included
MOST_ROUNDS: Final = 15


@dataclass
class Side:
    """One of the compared programs: its process, and its answers so far."""

    name: str
    process: subprocess.Popen[str]
    answers: list[dict[str, float]]

    def step(self, seconds: float) -> dict[str, float] | None:
        """Make one more step; return None if the process ended or took too long."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print("step", file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
            return None
        answer: dict[str, float] = json.loads(line)
        self.answers.append(answer)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(options: argparse.Namespace) -> None:
    """Run the process of one side: make a step for every line on stdin, and report it by a line on stdout."""
    from seedmask.bundle import load

    bundle = load(options.bundle)
    spec, rng = bundle.spec, np.random.default_rng(1)
    step = make(options.serve, bundle, options.threads)
    noise = np.zeros(spec.d, np.float32)
    for _ in sys.stdin:
        # Fresh ones: on one batch gradients vanish into denormal numbers.
        x = rng.normal(size=(bundle.batch, *spec.input)).astype(np.float32)
        y = rng.integers(0, spec.classes, bundle.batch)
        rng.random(dtype=np.float32, out=noise)
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step(x, y, noise)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        # Not getrusage: its maximum begins with what the parent had before exec.
        peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024 / 1e6
        print(json.dumps({"cpu_ms": cpu * 1e3, "wall_ms": wall * 1e3, "loss": loss, "peak_rss_mb": peak}), flush=True)


def make(side: str, bundle: Any, threads: int) -> Any:
    """Return a function that makes the next step of `side` on a batch, and returns its loss."""
    scores = np.zeros(bundle.spec.d, np.float32)
    if side in (EAGER, COMPILED):
        import torch

        from export.masked import Masked

        torch.set_num_threads(threads)
        masked = Masked(bundle.spec, torch.from_numpy(scores), 0.1)
        take = masked.step
        if side == COMPILED:
            import export.masked

            export.masked.forward = torch.compile(export.masked.forward)
        return lambda *batch: take(*(torch.from_numpy(value) for value in batch))[0]

    from edge_client.runtimes import State, StepConfig, open_runtime

    runtime, rule = open_runtime(side, bundle, threads), StepConfig(0.1)
    state = State.start(scores, rule)

    def step(x: Any, y: Any, noise: Any) -> float:
        nonlocal state
        result = runtime.step(x, y, state, noise, rule)
        state = result.state
        return result.loss

    return step


def export_bundle(options: argparse.Namespace) -> None:
    """Export a bundle in a process of its own, because some runtimes' export packages exclude those of others."""
    from export.make import make_bundle
    from export.trace import trace
    from export.zoo import ZOO
    from seedmask.bundle import Bundle, to_bytes

    model, batch = options.export
    entry = ZOO[model]
    spec = trace(entry.factory(), model, 1, entry.input, (0, 255), entry.classes)
    if options.targets == "executorch":
        made = Bundle(spec, int(batch), {"executorch/model.pte": _program(spec, int(batch), options.bundle.parent)})
    else:
        made = make_bundle(spec, int(batch), options.targets.split(","))
    options.bundle.write_bytes(to_bytes(made))


def _program(spec: Any, batch: int, folder: Path) -> bytes:
    """Return the program for steps of `batch`; it takes minutes, so batches with micro-batches of one size share it."""
    from export.targets.executorch import micro_batch, program
    from seedmask.io.files import write_atomic

    micro = micro_batch(spec, batch)
    path = folder / f"{spec.name}-{micro}-{_sources()}.pte"
    if not path.exists():
        write_atomic(path, program(spec, micro))
    return path.read_bytes()


def bundle_for(side: str, model: str, batch: int, python: str, scratch: Path) -> Path:
    """Return a bundle file with the graphs that `side` opens; it is reused while the exporter stays the same."""
    path = bundle_path(side, model, batch, scratch)
    if not path.exists():
        targets = EXPORTED.get(side, "onnx")
        command = [python, __file__, "--export", model, str(batch), "--targets", targets, "--bundle", str(path)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=EXPORT_SECONDS)
    return path


def bundle_path(side: str, model: str, batch: int, folder: Path) -> Path:
    return folder / f"{model}-{batch}-{EXPORTED.get(side, 'onnx')}-{_sources()}.bundle"


@functools.cache
def _sources() -> str:
    """Twelve digits that name what bundles are made by."""
    files = [path for part in ("export", "seedmask") for path in sorted((ROOT / part).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def start(side: str, bundle: Path, python: str, threads: int) -> Side:
    command = [python, __file__, "--serve", side, "--bundle", str(bundle), "--threads", str(threads)]
    pipe = subprocess.PIPE
    return Side(side, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True), [])


def prepared(
    model: str, batch: int, wanted: dict[str, str], options: argparse.Namespace
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the bundle of every side, and the reason for each side that has none."""
    bundles, unmade = dict[str, Path](), dict[str, str]()
    for name, python in wanted.items():
        try:
            bundles[name] = bundle_for(name, model, batch, python, options.scratch)
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            unmade[name] = f"its graphs were not made: {said[-1]}"
    return bundles, unmade


def race(
    cell: tuple[str, int],
    wanted: dict[str, str],
    bundles: dict[str, Path],
    options: argparse.Namespace,
    seconds: float,
) -> Iterator[Any]:
    """Rows of one network and batch; or (side, why not) for those that did not come through."""
    (model, batch), began, sides = cell, time.monotonic(), list[Side]()
    try:
        for name, bundle in bundles.items():
            sides.append(start(name, bundle, wanted[name], options.threads))
            if sides[-1].step(START_SECONDS) is None:
                yield name, f"no first step within {START_SECONDS} s, or its process ended: --serve {name} says why"
                sides.pop()
        eager = next((each for each in sides if each.name == EAGER), None)
        if eager is None:
            return  # nothing to compare with
        truth = eager.answers[0]["loss"]
        for each in sides:
            # Two programs that do not compute the same thing cannot be compared.
            if abs(each.answers[0]["loss"] - truth) > 1e-4 * abs(truth):
                sys.exit(f"{model}, batch {batch}: {each.name} has loss {each.answers[0]['loss']}, torch {truth}")
        # The first two steps are not counted: memory is taken, caches are filled.
        for turn in range(1 + MOST_ROUNDS):
            if turn > 3 and time.monotonic() - began > seconds:
                break
            for each in [*sides]:
                if each.step(START_SECONDS) is None:
                    yield each.name, f"no answer within {START_SECONDS} s"
                    sides.remove(each)
        if eager not in sides:
            return
        for each in sides:
            cpu, wall = _median(each, "cpu_ms"), _median(each, "wall_ms")
            yield {
                "runtime": each.name,
                "model": model,
                "batch": batch,
                "threads": options.threads,
                "cpu_ms": round(cpu, 2),
                "wall_ms": round(wall, 2),
                "ratio_to_torch_eager_cpu": round(cpu / _median(eager, "cpu_ms"), 3),
                "peak_rss_mb": round(each.answers[-1]["peak_rss_mb"], 1),
                "estimated_mb": _estimate(each.name, model, batch, options.scratch),
                "rounds": len(each.answers) - 2,
            }
    finally:
        for each in sides:
            each.close()


def _median(side: Side, figure: str) -> float:
    return statistics.median(answer[figure] for answer in side.answers[2:])


def _estimate(side: str, model: str, batch: int, scratch: Path) -> float | None:
    """Return the memory that `runtimes.footprint` estimates for the default plan of `side`."""
    from edge_client import runtimes
    from seedmask.bundle import load

    if side not in runtimes.names() or (footprint := runtimes.registry.footprint(side)) is None:
        return None
    if footprint.fixed and runtimes.missing(side):  # the graphs have to be asked, and theirs is another interpreter
        return None
    bundle = load(bundle_path(side, model, batch, scratch))
    estimate: int = footprint.bytes_of(bundle, runtimes.registry.usual(side, bundle))
    return round(estimate / 1e6, 1)


def contestants(given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Sides that can run, with the interpreters they run on, and why the others cannot."""
    from edge_client import runtimes

    ready, missing = {EAGER: sys.executable}, dict[str, str]()
    for name in runtimes.names():
        if name == "reference":
            continue
        python = given.get(name, sys.executable)
        code = f"from edge_client import runtimes; print(', '.join(runtimes.missing({name!r})))"
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if asked.returncode or asked.stdout.strip():
            missing[name] = f"needs {asked.stdout.strip() or python}: {runtimes.registry.how_to_get(name)}"
        else:
            ready[name] = python
    ready[COMPILED] = sys.executable
    return ready, missing


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="conv4,conv6,resnet20", help="of the zoo (%(default)s)")
    parser.add_argument("--batches", default="16,32,128", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="about as long as all steps may take (%(default)s)")
    parser.add_argument(
        "--compile", default="32", metavar="BATCHES", help="torch.compile only at these, for it takes minutes (32)"
    )
    parser.add_argument(
        "--python", action="append", default=[], metavar="RUNTIME=PATH", help="the interpreter of one runtime"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--targets", help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return 0
    if options.export:
        export_bundle(options)
        return 0

    ready, missing = contestants(dict(each.split("=", 1) for each in options.python))
    cells = [(model, int(batch)) for model in options.models.split(",") for batch in options.batches.split(",")]
    rows, skipped, left = list[dict[str, Any]](), list[dict[str, Any]](), 60 * options.minutes
    head = ("CPU ms", "wall ms", "ratio", "peak MB", "estimate")
    print(f"{'model':<10}{'batch':>6}  {'runtime':<14}" + "".join(f"{each:>9}" for each in head))
    # ExecuTorch's programs take minutes to make, more than everything else together; hence kept, and apart from
    # --minutes.
    options.scratch = ROOT / "out" / "bench" / "bundles"
    options.scratch.mkdir(parents=True, exist_ok=True)
    for number, (model, batch) in enumerate(cells):
        wanted = {n: p for n, p in ready.items() if n != COMPILED or str(batch) in options.compile.split(",")}
        if COMPILED not in wanted and COMPILED in ready:
            skipped.append({"runtime": COMPILED, "model": model, "batch": batch, "why": "not in --compile"})
        bundles, unmade = prepared(model, batch, wanted, options)
        began = time.monotonic()
        for found in itertools.chain(
            unmade.items(), race((model, batch), wanted, bundles, options, left / (len(cells) - number))
        ):
            if isinstance(found, dict):
                rows.append(found)
                print(_line(found), flush=True)
            else:
                skipped.append({"runtime": found[0], "model": model, "batch": batch, "why": found[1]})
                print(f"{model:<10}{batch:>6}  {found[0]:<14}{found[1]}", flush=True)
        left -= time.monotonic() - began
    for name, why in missing.items():
        print(f"missing: {name}, which {why}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        told = {**conditions(), "missing": missing, "skipped": skipped, "rows": rows}
        options.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return 0


def _line(row: dict[str, Any]) -> str:
    estimate = "" if row["estimated_mb"] is None else f"{row['estimated_mb']:.0f}"
    return (
        f"{row['model']:<10}{row['batch']:>6}  {row['runtime']:<14}{row['cpu_ms']:>9.1f}{row['wall_ms']:>9.1f}"
        f"{row['ratio_to_torch_eager_cpu']:>9.2f}{row['peak_rss_mb']:>9.0f}{estimate:>9}"
    )


def conditions() -> dict[str, Any]:
    import importlib.metadata

    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    packages = ("numpy", "onnxruntime", "onnxruntime-training", "torch", "executorch")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: found[name] for name in packages if name in found},
    }


if __name__ == "__main__":
    sys.exit(main())
