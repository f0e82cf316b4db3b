"""Size of coded masks from a real training run: `python bench/bits.py --json out/bench/bits.json`.

Ten devices with 2,000 images of Fashion-MNIST each train the MLP for some rounds with the `default` settings. Before
each of the rounds shown, every codec draws and codes the mask that one device has learnt. `KL` is the relative entropy
of the device's probabilities to theta, the information that a mask can carry; `ratio` is the size over that. For
`hmrc`, `slope` compares how far the decoded masks move theta on average with how far the probabilities ask for: 1 is
right. `counts` and `delta` are the sizes of theta on the downlink. A second table repeats the same data to 0.3, 2 and
10 million weights and shows CPU time of one thread, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.runtimes import open_runtime
from edge_client.training import train
from export.make import make_bundle
from export.trace import trace
from export.zoo import ZOO
from seedmask.codec import CODECS, Plan, counts, delta, hmrc, packed, rans
from seedmask.mask import Theta
from seedmask.shared import Shared
from seedmask.training import TrainingConfig
from sim import datasets, partition

ROUNDS = (1, 2, 5, 10)
SIZES = (300_000, 2_000_000, 10_000_000)
KAPPAS = (5.0, 8.0, 24.0)
DEVICES, IMAGES, BATCH, SEED = 10, 2000, 128, 1

Row = dict[str, Any]


def snapshots(model: str, rounds: int) -> list[tuple[int, Theta, Theta, np.ndarray]]:
    """(round, theta of the round before, theta, one device's scores after it) of each round of a real job."""
    entry = ZOO[model]
    bundle = make_bundle(trace(entry.factory(), model, SEED, entry.input, (0, 255), entry.classes, "kaiming"), BATCH)
    spec, runtime = bundle.spec, open_runtime("onnxruntime", bundle, 0)
    images = datasets.load("auto", None)
    rng = np.random.default_rng(SEED)
    parts = partition.split("iid", images.train.y, DEVICES, min(IMAGES, len(images.train.y) // DEVICES), rng)
    work = TrainingConfig(epochs=3, learning_rate=0.1, kl=3.0, mean_epochs=65535)
    before = theta = Theta.even(spec.d)
    out = []
    for round_ in range(1, rounds + 1):
        ones = np.zeros(spec.d, np.int64)
        for device, part in enumerate(parts):
            data = datasets.subset(images.train, part)
            outcome = train(runtime, spec, data, theta, work, BATCH, rng, round_=round_)
            assert outcome is not None  # nobody stops it
            shared = Shared(spec.seed, round_, "bench", f"device-{device}")
            ones += hmrc.decode(hmrc.draw(outcome.scores, theta, shared, rng, Plan()), theta, shared)
        out.append((round_, before, theta, outcome.scores))
        before, theta = theta, Theta(ones.astype(np.uint16), DEVICES)
        print(f"round {round_} of {rounds}: loss {outcome.loss:.3f}", file=sys.stderr)
    return out


def divergence_bytes(scores: np.ndarray, theta: Theta) -> float:
    """KL(Bernoulli(sigmoid(scores)) || theta) of all weights, bytes."""
    p, q = 1 / (1 + np.exp(-scores.astype(np.float64))), theta.probability().astype(np.float64)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float((p * np.log2(p / q) + (1 - p) * np.log2((1 - p) / (1 - q))).sum() / 8)


def timed(action: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """(what it gave, median CPU milliseconds)."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        found = action()
        taken.append(time.process_time() - start)
    return found, 1e3 * statistics.median(taken[1:])  # the first one warms the caches


def measure(round_: int, before: Theta, theta: Theta, scores: np.ndarray, repeats: int) -> list[Row]:
    """Return one row per codec."""
    shared, rng = Shared(SEED, round_, "bench", "device"), np.random.default_rng(round_)
    ideal = divergence_bytes(scores, theta)
    q = theta.probability().astype(np.float64)
    moved = 1 / (1 + np.exp(-scores.astype(np.float64))) - q
    rows: list[Row] = []

    def add(codec: str, size: int, encode_ms: float, decode_ms: float, **more: Any) -> None:
        up = codec not in ("counts", "delta")
        rows.append(
            {
                "codec": codec,
                "round": round_,
                "parameters": theta.d,
                "bytes": size,
                "bits_per_parameter": 8 * size / theta.d,
                "kl_bytes": ideal if up else None,
                "ratio_to_kl": size / ideal if up else None,
                "encode_ms": encode_ms,
                "decode_ms": decode_ms,
                **more,
            }
        )

    trials = [(name, codec, Plan()) for codec in (packed, rans) for name in [codec.NAME]]
    trials += [("hmrc" if kappa == Plan().kappa else f"hmrc kappa {kappa:g}", hmrc, Plan(kappa)) for kappa in KAPPAS]
    for name, codec, plan in trials:
        payload, encode_ms = timed(lambda c=codec, p=plan: c.draw(scores, theta, shared, rng, p), repeats)
        mask, decode_ms = timed(lambda c=codec, b=payload: c.decode(b, theta, shared), repeats)
        assert CODECS[codec.ID] is codec
        more: Row = {"slope": float(((mask - q) * moved).sum() / (moved**2).sum())}
        add(name, len(payload), encode_ms, decode_ms, **more)
    payload, encode_ms = timed(lambda: counts.encode(theta), repeats)
    _, decode_ms = timed(lambda: counts.decode(payload, theta.d), repeats)
    add("counts", len(payload), encode_ms, decode_ms)
    if delta.possible(theta, before):
        payload, encode_ms = timed(lambda: delta.encode(theta, before), repeats)
        _, decode_ms = timed(lambda: delta.decode(payload, before), repeats)
        add("delta", len(payload), encode_ms, decode_ms)
    return rows


def tiled(theta: Theta, d: int) -> Theta:
    """Return the same levels, repeated to `d` weights."""
    return Theta(np.resize(theta.level, d), theta.max_level, theta.clamp)


HEAD = ("round", "weights", "codec", "bytes", "bits/w", "x KL", "slope", "encode ms", "decode ms")
LINE = "{:>5} {:>11} {:<14} {:>11} {:>8} {:>8} {:>7} {:>10} {:>10}"


def show(row: Row) -> str:
    """Print one line of the table."""
    ratio = "" if row["ratio_to_kl"] is None else f"{row['ratio_to_kl']:.2f}"
    slope = f"{row['slope']:.3f}" if "slope" in row else ""
    sizes = (f"{row['parameters']:,}", row["codec"], f"{row['bytes']:,}", f"{row['bits_per_parameter']:.4f}")
    return LINE.format(row["round"], *sizes, ratio, slope, f"{row['encode_ms']:.1f}", f"{row['decode_ms']:.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure every codec on masks of a real training run.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--model", default="mlp", choices=sorted(ZOO), help="network of the zoo (mlp)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each (5)")
    options = parser.parse_args()
    found = snapshots(options.model, max(ROUNDS))
    print(LINE.format(*HEAD))
    rows = []
    for round_, before, theta, scores in found:
        if round_ in ROUNDS:
            for row in measure(round_, before, theta, scores, options.repeats):
                rows.append(row)
                print(show(row), flush=True)
    round_, before, theta, scores = next(entry for entry in found if entry[0] == 5)
    for d in SIZES:
        repeats = options.repeats if d < 5_000_000 else 2
        for row in measure(round_, tiled(before, d), tiled(theta, d), np.resize(scores, d), repeats):
            rows.append(row)
            print(show(row), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
