"""Updates per second that one aggregator accepts: from chunks to frame, mask, counts, disk and receipt.

The Server and Store of a real aggregator get updates as a broker would deliver them; there is no network. Rates are
those of whole rounds: accept all updates, close the round, open the next. `round CPU` is the CPU time of such a round
with DEVICES updates. `closing` is the part of it that closes the round: compute and code the next theta and the
finished model, store and publish both.
Run: python bench/server.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from aggregator.config import RunConfig
from aggregator.round import waiting_for
from aggregator.server import Server
from aggregator.settings import RoundsConfig
from aggregator.store import Store
from seedmask import topics
from seedmask.chunks import split
from seedmask.codec import CODECS, NAMES, MaskCodec, Plan
from seedmask.io.link import Event, Received
from seedmask.mask import Theta
from seedmask.shared import Shared
from seedmask.spec import Linear, ModelSpec, Tensor, scale_bits
from seedmask.training import TrainingConfig
from seedmask.wire import Presence, Update, basis, encode
from sim.broker import Agenda, MemoryBroker, MemoryLink, Wire

DEVICES = 40


def spec_of(d: int) -> ModelSpec:
    """Return the spec of a network of about `d` weights; what it computes does not matter here."""
    rows = max(2, d // 1000)
    weight = Tensor("weight", (rows, 1000), scale_bits(0.05))
    return ModelSpec("bench", 1, (1000,), (0, 255), rows, (Linear("weight", None),), (weight,))


def measure(d: int, codec: MaskCodec) -> dict[str, object]:
    """Updates per second for a model of about `d` weights and masks in `codec`, median of three rounds."""
    spec = spec_of(d)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        rounds, training = RoundsConfig(total=100, devices=DEVICES), TrainingConfig(codec=codec.NAME)
        config = RunConfig("bench", Path("-"), Path(folder), rounds, training)
        store = Store(Path(folder) / "job.sqlite", "bench", spec.digest, spec.canonical(), spec.d)
        agenda = Agenda()

        def ignore(event: Event) -> None:
            """Ignore an event of the link: what happens to receipts is not measured."""

        link = MemoryLink(MemoryBroker(agenda), Wire(), ignore)
        server = Server(config, spec, link, store, time.monotonic, 1)
        names = [f"device-{i:03d}" for i in range(DEVICES)]
        for name in names:
            hello = Presence(name, True, 1, spec.digest, 1, "bench", "0")
            server.receive(Received(topics.presence("bench", name), encode(hello)))
        rates, sizes, cpu, closing = [], [], [], []
        for _ in range(3):
            theta: Theta = server.job.theta
            round_ = server.job.round
            messages = []
            for name in names:
                # Masks as after some learning: likelier where theta is high, and not quite theta.
                tilt = np.clip(theta.probability() + rng.normal(0, 0.1, spec.d), 0.01, 0.99)
                scores = np.log(tilt / (1 - tilt)).astype(np.float32)
                payload = codec.draw(scores, theta, Shared(spec.seed, round_, "bench", name), rng, Plan())
                bound = basis("bench", spec.digest, theta.digest())
                frame = encode(Update(round_, bound, 1, 0, 0, codec.ID, (payload,)))
                sizes.append(len(frame))
                messages += [Received(topics.update("bench", name), encode(chunk)) for chunk in split(frame)]
            last = len(messages) // DEVICES
            began, cpu_began = time.perf_counter(), time.process_time()
            for message in messages[:-last]:
                server.receive(message)
            almost = time.process_time() - cpu_began
            for message in messages[-last:]:
                server.receive(message)
            cpu.append(time.process_time() - cpu_began)
            rates.append(DEVICES / (time.perf_counter() - began))
            closing.append(cpu[-1] - almost - almost / (DEVICES - 1))
            if server.job.round != round_ + 1:
                raise RuntimeError(f"round {round_} did not close: {waiting_for(server.job)}")
        store.close()
    return {
        "parameters": spec.d,
        "codec": codec.NAME,
        "devices": DEVICES,
        "update_bytes": round(statistics.mean(sizes)),
        "updates_per_second": round(statistics.median(rates), 1),
        "round_cpu_seconds": round(statistics.median(cpu), 3),
        "closing_cpu_seconds": round(statistics.median(closing), 3),
    }


def main() -> int:
    """Print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(d, CODECS[NAMES[name]]) for d in (234_752, 1_933_000) for name in ("rans", "hmrc")]
    print(f"{'weights':>12}{'codec':>8}{'bytes/update':>14}{'updates/s':>12}{'round CPU s':>14}{'closing CPU s':>15}")
    for row in rows:
        numbers = f"{row['update_bytes']:>14,}{row['updates_per_second']:>12,}"
        numbers += f"{row['round_cpu_seconds']:>14.3f}{row['closing_cpu_seconds']:>15.3f}"
        print(f"{row['parameters']:>12,}{row['codec']:>8}{numbers}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1))
        print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
