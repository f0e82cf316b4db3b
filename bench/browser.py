"""Time of one training step in a browser: onnxruntime-web in headless Chromium, compared with native onnxruntime.

Both run the same graph on the same batches, noise and Adam, with one thread. They take turns of a few steps each, so
that a busy moment of the machine slows both; reported are medians. CPU time of the browser is that of all its
processes, with the time to fetch batches from this one; wall time is that of the step alone. Quote ratios, because
milliseconds depend on the machine and its load. Memory is the largest resident set of any one process of the browser.
No phone was measured.

    python bench/browser.py [--models mlpn conv4n conv4] [--batch 16] [--turns N] [--json out/bench/browser.json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import chromium  # noqa: E402
from capabilities import CAPABILITIES  # noqa: E402

from edge_client.runtimes import State, StepConfig, open_runtime  # noqa: E402
from export.make import make_bundle  # noqa: E402
from export.trace import trace  # noqa: E402
from export.zoo import ZOO  # noqa: E402

STEPS = 8  # of each side in a turn
WARM = -2  # the turns before 0 are not counted
RULE = StepConfig(0.1)


def processes(group: int) -> list[Path]:
    """Return the processes of the browser: those of its process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group:
            found.append(stat.parent)
    return found


def cpu_seconds(group: int) -> float:
    """User and system time of a process group so far."""
    ticks = 0
    for process in processes(group):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mb(group: int) -> float:
    """Largest resident set that any process of the group has had."""
    sizes = [re.findall(r"VmHWM:\s+(\d+) kB", (process / "status").read_text()) for process in processes(group)]
    return max(int(kilobytes) for found in sizes for kilobytes in found) / 1024


def settle(group: int) -> None:
    """Wait until the browser is idle: it compiles the engine anew, and better, beside the first steps."""
    for _ in range(60):
        before = cpu_seconds(group)
        time.sleep(1)
        if cpu_seconds(group) - before < 0.05:
            return


def measure(page: chromium.Page, name: str, batch: int, turns: int) -> dict[str, Any]:
    entry = ZOO[name]
    spec = trace(entry.factory(), name, 1, entry.input, (0, 255), entry.classes)
    bundle = make_bundle(spec, batch)
    inside, native = chromium.PageRuntime(page, bundle), open_runtime("onnxruntime", bundle, 1)
    rng = np.random.default_rng(1)
    state = State.start(np.zeros(spec.d, np.float32), RULE)
    times: dict[str, list[float]] = {key: [] for key in ("web_cpu", "web_wall", "native_cpu", "native_wall")}
    for turn in range(WARM, turns):
        # Fresh batches: on one batch gradients vanish into denormal numbers.
        x = rng.normal(size=(STEPS, batch, *spec.input)).astype(np.float32)
        y, noise = rng.integers(0, spec.classes, (STEPS, batch)), rng.random(spec.d, np.float32)
        head = {"name": inside.name, "rule": chromium.rule_in_js(RULE), "count": STEPS, "fresh": turn == WARM}
        before = cpu_seconds(page.process.pid)
        found = page.call("time", head, {"x": x, "y": chromium.targets(y), "noise": noise}, 600)
        web_cpu = (cpu_seconds(page.process.pid) - before) / STEPS
        cpu, wall, losses = time.process_time(), time.perf_counter(), []
        for i in range(STEPS):
            result = native.step(x[i], y[i], state, noise, RULE)
            state = result.state
            losses.append(result.loss)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        # Two programs that do not compute the same thing cannot be compared.
        if turn == WARM and abs(found["losses"][0] - losses[0]) > 1e-4 * abs(losses[0]):
            sys.exit(f"the first losses differ: {found['losses'][0]} and {losses[0]}")
        if turn < 0:
            settle(page.process.pid)
        else:
            times["web_cpu"].append(web_cpu * 1e3)
            times["web_wall"].append(statistics.median(found["ms"]))
            times["native_cpu"].append(cpu / STEPS * 1e3)
            times["native_wall"].append(wall / STEPS * 1e3)
    medians = {key: statistics.median(values) for key, values in times.items()}
    ratio = {kind: medians[f"web_{kind}"] / medians[f"native_{kind}"] for kind in ("cpu", "wall")}
    row = {"model": name, "d": spec.d, "batch": batch, "threads": 1, "median_ms": medians, "ratio": ratio}
    return {**row, "peak_mb": peak_mb(page.process.pid), "samples_ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mlpn", "conv4n", "conv4"], help="names from the zoo")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=7, help=f"times {STEPS} steps of each (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if not CAPABILITIES["browser"].present():
        sys.exit(f"needs {CAPABILITIES['browser'].install}")
    print(f"batch {options.batch}, one thread, medians of {options.turns} turns of {STEPS} steps")
    print(f"{'':<10}{'CPU ms':>16}{'wall ms':>16}{'ratio':>14}{'peak MB':>9}")
    print(f"{'':<10}{'web':>8}{'native':>8}{'web':>8}{'native':>8}{'CPU':>7}{'wall':>7}{'web':>9}")
    rows = []
    for name in options.models:
        page = chromium.Page()  # a fresh one: its largest size is that of one model
        try:
            rows.append(measure(page, name, options.batch, options.turns))
        finally:
            page.close()
        row, ms = rows[-1], rows[-1]["median_ms"]
        figures = "".join(f"{ms[f'{side}_{kind}']:>8.1f}" for kind in ("cpu", "wall") for side in ("web", "native"))
        print(f"{name:<10}{figures}{row['ratio']['cpu']:>7.2f}{row['ratio']['wall']:>7.2f}{row['peak_mb']:>9.0f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
