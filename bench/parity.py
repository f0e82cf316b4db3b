"""Largest deviation of every runtime from torch's autograd in float64, on every network of the zoo.

There is one row for each runtime and network. `loss` is relative to its value, `logits` to the largest logit. The
others are the largest deviation of all weights, relative to the largest gradient or score: `gradient` (Adam's first
moment after a first step), `exact` (the same of exact values, in networks that have any) and `scores` (after a step in
the middle of training). Inputs are noise and batches are small, because weights of equal magnitude cause ties: two correct
programs may then differ in the sign of a value near zero or in the winner of a MaxPool, and everything that depends on
it differs by a thousandth. This happens in one draw of twelve, and more often with millions of activations. So these
three are medians over draws, and networks for images of any size get small ones.

All graphs are exported first, by one process per core, four at most. ExecuTorch's take 10 seconds of CPU time for a
perceptron and minutes for a deep network, 17 minutes in all. If a network has no graphs, its row says why; runtimes
whose packages are missing are listed. The exit status is 1 if a deviation is out of tolerance.

    python bench/parity.py [--models mlp,mixer] [--runtimes onnxruntime] [--draws 5] [--json out/parity.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edge_client import runtimes
from edge_client.runtimes import NOTHING, Exact, Runtime, State, StepConfig
from export.make import make_bundle
from export.masked import Masked, forward
from export.trace import trace
from export.zoo import ZOO
from seedmask.bundle import Bundle
from seedmask.spec import ModelSpec

BATCH: Final = 2
RATE: Final = 0.1
TOLERANCES: Final = {"loss": 1e-5, "correct": 0.0, "gradient": 1e-6, "exact": 1e-5, "scores": 2e-6, "logits": 1e-5}
# Rounding grows with depth.
DEEP: Final = {name: {"gradient": 5e-6} for name in ("resnet20", "resnet20g", "mobile", "conv10")}
# XNNPACK adds up a product's terms one after another, where other kernels add up sums of some hundred: the 3,136 of
# CONV-4's first Linear are off by 1e-6, and with them what the next layer's gradient is multiplied by.
LONG_SUMS: Final = {("executorch", "conv4"): {"gradient": 3e-6}}

# As they are meant: with scales, shifts and last biases, which they lose without a word about them.
EXACT: Final = {"mlpa": ("norm", "bias"), "conv4a": ("norm", "bias")}
SMALL: Final = {"resnet20": (3, 16, 16), "resnet20g": (1, 16, 16), "mobile": (3, 16, 16)}


@dataclass(frozen=True)
class Draw:
    """Random batch, state in the middle of training, noise and mask, with torch's results for them in float64."""

    x: Any
    y: Any
    state: State
    noise: Any
    mask: Any
    loss: float
    correct: int
    gradient: Any
    exact: Any
    scores: Any
    logits: Any


def draw(spec: ModelSpec, seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, *spec.input)).astype(np.float32)
    y = rng.integers(0, spec.classes, BATCH)
    scores = rng.normal(size=spec.d).astype(np.float32)
    noise = rng.random(spec.d, np.float32)
    # The last bit of a sigmoid must not decide about a weight.
    near = np.abs(noise - 1 / (1 + np.exp(-scores.astype(np.float64)))) < 1e-5
    noise = np.where(near, noise / 2, noise).astype(np.float32)
    m = rng.normal(size=spec.d).astype(np.float32) * np.float32(1e-2)
    v = rng.random(spec.d, np.float32) * np.float32(1e-4) + np.float32(1e-6)
    mask = rng.random(spec.d, np.float32)
    values = spec.even().values() + rng.normal(size=spec.e).astype(np.float32) * np.float32(0.2)

    torch.set_num_threads(1)
    double = torch.from_numpy(x).double()
    judge = Masked(spec, torch.from_numpy(scores).double(), RATE)
    moments = {"exp_avg": torch.from_numpy(m).double(), "exp_avg_sq": torch.from_numpy(v).double()}
    judge.adam.state[judge.scores] = {"step": torch.tensor(3.0), **moments}
    with torch.no_grad():
        judge.exact.copy_(torch.from_numpy(values))
    loss, correct = judge.step(double, torch.from_numpy(y), torch.from_numpy(noise))
    assert judge.scores.grad is not None
    with torch.no_grad():
        masked = judge.w * torch.from_numpy(mask).double()
        logits = forward(spec, double, masked, torch.from_numpy(values).double(), judge.frozen).numpy()
    by_exact = NOTHING if judge.exact.grad is None else judge.exact.grad.numpy()
    after = judge.scores.detach().numpy()
    state = State(scores, m, v, 3, scores, Exact.start(values))
    return Draw(x, y, state, noise, mask, loss, correct, judge.scores.grad.numpy(), by_exact, after, logits)


def deviations(runtime: Runtime, draws: Sequence[Draw]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in TOLERANCES}
    for d in draws:
        amid = runtime.step(d.x, d.y, d.state, d.noise, StepConfig(RATE))
        values = d.state.exact.values
        first = runtime.step(d.x, d.y, State.start(d.state.scores, exact=values), d.noise, StepConfig(RATE))
        found["loss"].append(abs(amid.loss - d.loss) / abs(d.loss))
        found["correct"].append(abs(amid.correct - d.correct))
        found["gradient"].append(_apart(first.state.m / np.float32(0.1), d.gradient))
        if values.size:
            found["exact"].append(_apart(first.state.exact.m * 10, d.exact))
        found["scores"].append(_apart(amid.state.scores, d.scores))
        found["logits"].append(_apart(runtime.logits(d.x, d.mask, values), d.logits))
    by_median = ("gradient", "exact", "scores")
    return {name: statistics.median(each) if name in by_median else max(each) for name, each in found.items() if each}


def _apart(found: Any, truth: Any) -> float:
    return float(np.abs(found - truth).max() / np.abs(truth).max())


@dataclass(frozen=True)
class Row:
    """Deviations of one runtime on one network; `error`: why there are none."""

    runtime: str
    model: str
    d: int
    deviations: dict[str, float]
    tolerances: dict[str, float]
    error: str = ""

    @property
    def out(self) -> list[str]:
        """Return the names of the deviations that are out of tolerance, or NaN."""
        return [name for name, value in self.deviations.items() if not value <= self.tolerances[name]]


def row(name: str, spec: ModelSpec, bundle: Future[Bundle], draws: Sequence[Draw]) -> Row:
    """Waits for the bundle."""
    tolerances = {**TOLERANCES, **DEEP.get(spec.name, {}), **LONG_SUMS.get((name, spec.name), {})}
    try:
        found = deviations(runtimes.open_runtime(name, bundle.result(), 1), draws)
    except Exception as error:  # whatever it is, the table goes on
        return Row(name, spec.name, spec.d, {}, tolerances, f"{type(error).__name__}: {error}")
    return Row(name, spec.name, spec.d, found, tolerances)


def graphs(spec: ModelSpec, name: str) -> Bundle:
    """Return a bundle with the graphs that runtime `name` opens.

    ExecuTorch's program lacks `grads`, which takes as long to export as train_step, from which it differs only by Adam;
    `tests/test_runtimes.py` runs it.
    """
    if name == "executorch":
        from export.targets.executorch import METHODS, program

        return Bundle(spec, BATCH, {"executorch/model.pte": program(spec, BATCH, set(METHODS) - {"grads"})})
    return make_bundle(spec, BATCH, runtimes.targets([name]))


def traced(model: str) -> ModelSpec:
    entry, shape = ZOO[model], SMALL.get(model, ZOO[model].input)
    return trace(entry.factory(), model, 1, shape, (0, 255), entry.classes, exact=EXACT.get(model, ()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Every runtime on every network against torch in float64.")
    parser.add_argument("--models", default=",".join(ZOO), help="of the zoo, separated by commas (all)")
    parser.add_argument("--runtimes", default=",".join(runtimes.names()), help="separated by commas (all there are)")
    parser.add_argument("--draws", type=int, default=5, help="batches for each network (5)")
    parser.add_argument("--json", type=Path, default=Path("out/parity.json"), help="where the rows go (%(default)s)")
    options = parser.parse_args()
    models, wanted = options.models.split(","), options.runtimes.split(",")
    if unknown := (set(models) - set(ZOO)) | (set(wanted) - set(runtimes.names())):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; models {', '.join(ZOO)}; {', '.join(runtimes.names())}")
    missing = {name: lacking for name in wanted if (lacking := runtimes.missing(name))}
    ready, began = [name for name in wanted if name not in missing], time.monotonic()

    print(f"{'network':<12}{'weights':>12}  {'runtime':<14}" + "".join(f"{name:>10}" for name in TOLERANCES))
    rows: list[Row] = []
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        specs = [traced(model) for model in models]
        bundles = {(spec.name, name): pool.submit(graphs, spec, name) for spec in specs for name in ready}
        for spec in specs:
            draws = [draw(spec, seed) for seed in range(options.draws)]
            # Those whose graphs are there first.
            for name in sorted(ready, key=lambda name: not bundles[spec.name, name].done()):
                if not bundles[spec.name, name].done():
                    seconds = time.monotonic() - began
                    print(f"{spec.name}: {name}'s graphs are being made, {seconds:.0f} s so far", file=sys.stderr)
                rows.append(row(name, spec, bundles[spec.name, name], draws))
                print(_line(rows[-1]), flush=True)
    for name, lacking in missing.items():
        print(f"missing: {name}, which needs {', '.join(lacking)}")

    options.json.parent.mkdir(parents=True, exist_ok=True)
    told = {"batch": BATCH, "draws": options.draws, "missing": missing, "rows": [asdict(each) for each in rows]}
    options.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    wrong, seconds = [each for each in rows if each.out or each.error], time.monotonic() - began
    print(f"{len(rows) - len(wrong)} of {len(rows)} within tolerance, {seconds:.0f} s; {options.json}")
    return 1 if wrong else 0


def _line(each: Row) -> str:
    found = (each.deviations.get(name) for name in TOLERANCES)
    numbers = each.error or "".join(f"{'-' if value is None else f'{value:.1e}':>10}" for value in found)
    out = f"  out: {', '.join(f'{name} > {each.tolerances[name]:g}' for name in each.out)}" if each.out else ""
    return f"{each.model:<12}{each.d:>12,}  {each.runtime:<14}{numbers}{out}"


if __name__ == "__main__":
    sys.exit(main())
