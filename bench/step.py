"""How long one training step takes: exported graphs on onnxruntime and ExecuTorch, our torch runtime, torch's autograd.

ExecuTorch is there where it is installed.

All take the same batches with the same noise, Adam included, in this process, in turn, so that a busy moment
of the machine falls on all alike; reported are medians. Quote the ratios, which are to plain torch: the milliseconds
belong to one machine and one hour. Peak memory is that of a process which runs one of them and nothing else, four steps
long.

    python bench/step.py [--model conv4] [--batch 128] [--rounds N] [--threads 2] [--json out/bench/step.json]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Waiting threads sleep, as they do in our onnxruntime sessions. Left to spin, torch's threads fight every
# other process for the cores: on a machine with neighbours that alone made a 5 ms step one of 250 ms. Before
# torch's first import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

RUNTIMES = {"onnxruntime": "onnxruntime", "executorch": "executorch", "runtime": "torch"}
if importlib.util.find_spec("executorch") is None:
    del RUNTIMES["executorch"]
Batch = tuple[Any, Any, Any]
Step = Callable[[Any, Any, Any], float]
SIDES = (*RUNTIMES, "torch")  # "runtime": edge_client/runtimes/torch.py; "torch": export/masked.py


def draw(batch: int, shape: tuple[int, ...], classes: int, d: int) -> Iterator[Batch]:
    """Batches x, y and noise without end. Fresh ones: on one batch gradients vanish into denormal numbers."""
    rng = np.random.default_rng(1)
    while True:
        x = rng.normal(size=(batch, *shape)).astype(np.float32)
        yield x, rng.integers(0, classes, batch), rng.random(d, np.float32)


@functools.cache
def bundle_of(spec: Any, batch: int, runtime: str) -> Any:
    """What this runtime trains; made once, since ExecuTorch's takes half a minute."""
    from edge_client.runtimes import targets
    from export.make import make_bundle

    return make_bundle(spec, batch, targets([runtime]))


def make(side: str, model: str, batch: int, threads: int) -> Step:
    """The next step of `side` as a function of a batch; its value is the loss."""
    from export.trace import trace
    from export.zoo import ZOO

    entry = ZOO[model]
    spec = trace(entry.factory(), model, 1, entry.input, (0, 255), entry.classes)
    scores = np.zeros(spec.d, np.float32)

    if side == "torch":
        import torch

        from export.masked import Masked

        torch.set_num_threads(threads)
        masked = Masked(spec, torch.from_numpy(scores), 0.1)
        return lambda *batch: masked.step(*(torch.from_numpy(value) for value in batch))[0]

    from edge_client.runtimes import Rule, State, open_runtime

    runtime, rule = open_runtime(RUNTIMES[side], bundle_of(spec, batch, RUNTIMES[side]), threads), Rule(0.1)
    state = State.start(scores, rule)

    def step(x: Any, y: Any, noise: Any) -> float:
        nonlocal state
        result = runtime.step(x, y, state, noise, rule)
        state = result.state
        return result.loss

    return step


def device(bundle: Path, side: str, threads: int) -> None:
    """What a device does, with nothing but its runtime in the process: open a bundle, run four steps."""
    from edge_client.runtimes import Rule, State, open_runtime
    from seedmask.bundle import load

    made = load(bundle)
    runtime, rule = open_runtime(RUNTIMES[side], made, threads), Rule(0.1)
    batches = draw(made.batch, made.spec.input, made.spec.classes, made.spec.d)
    state = State.start(np.zeros(made.spec.d, np.float32), rule)
    for x, y, noise in itertools.islice(batches, 4):
        state = runtime.step(x, y, state, noise, rule).state


def peak_mb(side: str, options: argparse.Namespace) -> float:
    """Peak resident megabytes of a fresh process that runs four steps of `side`."""
    command = [sys.executable, __file__, "--alone", side, "--model", options.model]
    command += ["--batch", str(options.batch), "--threads", str(options.threads)]
    if side in RUNTIMES:
        from export.trace import trace
        from export.zoo import ZOO
        from seedmask.bundle import to_bytes

        entry = ZOO[options.model]
        spec = trace(entry.factory(), options.model, 1, entry.input, (0, 255), entry.classes)
        bundle = options.scratch / "step.bundle"
        bundle.write_bytes(to_bytes(bundle_of(spec, options.batch, RUNTIMES[side])))
        command += ["--bundle", str(bundle)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


def alone(options: argparse.Namespace) -> None:
    """The process that `peak_mb` measures."""
    if options.alone in RUNTIMES:
        device(options.bundle, options.alone, options.threads)
    else:
        from export.zoo import ZOO

        step = make("torch", options.model, options.batch, options.threads)
        entry = ZOO[options.model]
        for batch in itertools.islice(draw(options.batch, entry.input, entry.classes, entry.d), 4):
            step(*batch)
    # Not getrusage: its maximum begins with what the parent had before exec.
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024)


def measure(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    steps = {side: make(side, options.model, options.batch, options.threads) for side in SIDES}
    times: dict[str, dict[str, list[float]]] = {side: {"cpu_ms": [], "wall_ms": []} for side in SIDES}
    from export.zoo import ZOO

    entry = ZOO[options.model]
    batches = draw(options.batch, entry.input, entry.classes, entry.d)
    for turn in range(-2, options.rounds):
        batch, losses = next(batches), {}
        for side, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            losses[side] = step(*batch)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn >= 0:
                times[side]["cpu_ms"].append(cpu * 1e3)
                times[side]["wall_ms"].append(wall * 1e3)
        # Two programs that do not compute the same thing cannot be compared.
        if turn == -2 and max(losses.values()) - min(losses.values()) > 1e-4 * abs(losses["torch"]):
            sys.exit(f"the first losses differ: {losses}")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="conv4", help="a name from the zoo (default conv4)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each (default 9)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--alone", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        return alone(options)

    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        options.scratch = Path(scratch)
        memory = {side: peak_mb(side, options) for side in SIDES}
    times = measure(options)
    median = {side: {kind: statistics.median(t) for kind, t in kinds.items()} for side, kinds in times.items()}

    head = f"{options.model}, batch {options.batch}, {options.threads} threads"
    print(f"{head}: medians of {options.rounds} steps each")
    print(f"{'':<12}{'CPU ms':>10}{'wall ms':>10}{'peak MB':>10}")
    for side in SIDES:
        row = median[side]
        print(f"{side:<12}{row['cpu_ms']:>10.1f}{row['wall_ms']:>10.1f}{memory[side]:>10.0f}")
    ratios = {
        side: {kind: median[side][kind] / median["torch"][kind] for kind in ("cpu_ms", "wall_ms")} for side in RUNTIMES
    }
    for side, ratio in ratios.items():
        share = memory[side] / memory["torch"]
        print(f"{side + ' ratio':<18}{ratio['cpu_ms']:>4.2f}{ratio['wall_ms']:>10.2f}{share:>10.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            **conditions(options),
            "ratio": ratios["onnxruntime"],
            "ratio_runtime": ratios["runtime"],
            "ratio_executorch": ratios.get("executorch"),
            "median": median,
            "peak_mb": memory,
            "samples": times,
        }
        options.json.write_text(json.dumps(figures, indent=1))
    return None


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    import onnxruntime
    import torch

    return {
        "model": options.model,
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


if __name__ == "__main__":
    main()
