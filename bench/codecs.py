"""Speed and size of the codecs packed, rans and counts: `python bench/codecs.py --json out/bench/codecs.json`.

Shown are bytes relative to the ideal, and CPU time. Theta looks as after some rounds: K devices draw masks from
probabilities near 0 or 1, and theta is their share of ones (max_level = K). The ideal is the cross-entropy of the mask
under theta for packed and rans, and the empirical entropy of the levels for counts. Times are medians of process_time
of one thread; MB/s count d / 8 bytes, the size of a mask as bits.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seedmask.codec import counts, packed, rans
from seedmask.mask import Theta, sample

SIZES = (300_000, 2_000_000)
TOPS = (2, 10, 100)
COLUMNS = "{:>10} {:>5}  {:<7} {:>9} {:>7} {:>9}   {:>8} {:>8} {:>8}   {:>8} {:>8} {:>8}"


def polarised(d: int, max_level: int, rng: np.random.Generator) -> Theta:
    """Return counts of `max_level` masks under probabilities pushed to the ends, Beta(.3, .3): an estimate."""
    return Theta(rng.binomial(max_level, rng.beta(0.3, 0.3, d)).astype(np.uint16), max_level)


def cross_entropy(mask: np.ndarray, theta: Theta) -> float:
    """Bytes of `mask` under `theta`, if bits could be split."""
    p = theta.q16() / 65536
    return float(-np.log2(np.where(mask == 1, p, 1 - p)).sum() / 8)


def entropy(theta: Theta) -> float:
    """Bytes of theta's levels under their own frequencies."""
    share = np.bincount(theta.level) / theta.d
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum() * theta.d / 8)


def seconds(action: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of `action`, seconds."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])  # the first one warms the caches


def measure(d: int, max_level: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row per codec."""
    rng = np.random.default_rng(d + max_level)
    theta = polarised(d, max_level, rng)
    mask = sample(theta.probability(), rng)
    jobs: list[tuple[str, float, Callable[[], bytes], Callable[[bytes], Any]]] = [
        ("packed", cross_entropy(mask, theta), lambda: packed.encode(mask, theta), lambda b: packed.decode(b, theta)),
        ("rans", cross_entropy(mask, theta), lambda: rans.encode(mask, theta), lambda b: rans.decode(b, theta)),
        ("counts", entropy(theta), lambda: counts.encode(theta), lambda b: counts.decode(b, d)),
    ]
    rows = []
    for name, ideal, encode, decode in jobs:
        payload = encode()
        row: dict[str, Any] = {
            "d": d,
            "max_level": max_level,
            "codec": name,
            "bytes": len(payload),
            "ideal_bytes": round(ideal),
        }
        row |= {"bits_per_weight": 8 * len(payload) / d, "over_percent": 100 * (len(payload) / ideal - 1)}
        row["encode_s"] = seconds(encode, repeats)
        row["decode_s"] = seconds(lambda payload=payload, decode=decode: decode(payload), repeats)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the codecs.")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each (default 7)")
    arguments = parser.parse_args()
    print(COLUMNS.format("d", "levels", "codec", "bytes", "bits/w", "over", *("encode", "", "", "decode", "", "")))
    print(COLUMNS.format("", "", "", "", "", "ideal %", *(2 * ("ms", "MB/s", "Mw/s"))))
    rows = []
    for d in SIZES:
        for max_level in TOPS:
            for row in measure(d, max_level, arguments.repeats):
                rows.append(row)
                speeds = [
                    f"{value:.1f}"
                    for s in (row["encode_s"], row["decode_s"])
                    for value in (1e3 * s, d / 8e6 / max(s, 1e-9), d / 1e6 / max(s, 1e-9))
                ]
                size = (f"{row['bytes']:,}", f"{row['bits_per_weight']:.3f}", f"{row['over_percent']:+.2f}")
                print(COLUMNS.format(f"{d:,}", max_level, row["codec"], *size, *speeds))
    if arguments.json:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**machine, "repeats": arguments.repeats, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
