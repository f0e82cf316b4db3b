"""What a simulation found: rows per round, a summary, and the files and the picture made of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aggregator.history import Report
from seedmask.io.files import write_atomic
from sim.evaluate import Accuracy


@dataclass(frozen=True)
class Row:
    """One closed round. Bytes are those of all devices in this round; `seconds` since the start."""

    round: int
    seconds: float
    updates: int
    accuracy: Accuracy
    train_loss: float | None
    update_bytes: int


@dataclass(frozen=True)
class Traffic:
    """All bytes of all devices over the whole job, and who counted them."""

    uplink_bytes: int
    downlink_bytes: int
    counted: str


@dataclass(frozen=True)
class Facts:
    """What was run."""

    model: str
    dataset: str
    split: str
    devices: int
    parameters: int
    broker: str
    clock: str
    seed: int
    test_images: int


def summary(facts: Facts, rows: Sequence[Row], final: Accuracy, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """The one object that scripts read; `seconds` on the clock that `facts.clock` names.

    What is "per round" is per device and round that took part, that is per update that was counted. The bytes are all
    bytes of all devices, also of those that were not asked or came too late.
    """
    took_part = max(sum(row.updates for row in rows), 1)
    bits = 8 / (took_part * facts.parameters)
    return {
        "accuracy": asdict(final),
        "rounds": len(rows),
        **asdict(facts),
        "uplink_bits_per_parameter_per_round": round(traffic.uplink_bytes * bits, 6),
        "downlink_bits_per_parameter_per_round": round(traffic.downlink_bytes * bits, 6),
        "uplink_bytes": traffic.uplink_bytes,
        "downlink_bytes": traffic.downlink_bytes,
        "uplink_bytes_per_device_per_round": round(traffic.uplink_bytes / took_part, 1),
        "downlink_bytes_per_device_per_round": round(traffic.downlink_bytes / took_part, 1),
        "mask_payload_bits_per_parameter_per_round": round(sum(row.update_bytes for row in rows) * bits, 6),
        "bytes_counted_by": traffic.counted,
        "seconds": round(seconds, 3),
        "history": [_flat(row, facts) for row in rows],
    }


def by_runtime(reports: Iterable[Report], runtime_of: Mapping[str, str]) -> dict[str, Any]:
    """What devices said of their training, added up per runtime and round; `runtime_of` device.

    Means over examples: loss in nats, accuracy of the last epoch's forward passes before their steps.
    """
    found: dict[str, Any] = {
        name: {"devices": sorted(device for device, its in runtime_of.items() if its == name), "history": []}
        for name in sorted(set(runtime_of.values()))
    }
    groups: dict[tuple[int, str], list[Report]] = {}
    for report in reports:
        groups.setdefault((report.round, runtime_of[report.device]), []).append(report)
    for (round_, name), group in sorted(groups.items()):
        samples = sum(report.samples for report in group)
        row = {
            "round": round_,
            "updates": len(group),
            "train_accuracy": round(sum(report.correct for report in group) / samples, 6),
            "train_loss": round(sum(report.loss * report.samples for report in group) / samples, 6),
        }
        found[name]["history"].append(row)
    return found


def runtimes_table(found: Mapping[str, Any]) -> str:
    """`by_runtime` as text: a row per round, a pair of columns per runtime."""
    wide = max(15, *(len(name) + 5 for name in found))
    names = [f"{name} ({len(value['devices'])})" for name, value in found.items()]
    cells: dict[int, dict[str, str]] = {}
    for name, value in found.items():
        for row in value["history"]:
            cell = f"{row['train_accuracy']:.1%}  {row['train_loss']:.3f}"
            cells.setdefault(row["round"], {})[name] = cell
    lines = ["round" + "".join(f"  {name:>{wide}}" for name in names)]
    lines += [
        f"{round_:>5}" + "".join(f"  {row.get(name, '-'):>{wide}}" for name in found)
        for round_, row in sorted(cells.items())
    ]
    return "\n".join(lines)


def _flat(row: Row, facts: Facts) -> dict[str, Any]:
    return {
        "round": row.round,
        "seconds": round(row.seconds, 3),
        "updates": row.updates,
        "accuracy_sampled": row.accuracy.sampled,
        "accuracy_thresholded": row.accuracy.thresholded,
        "accuracy_mean": row.accuracy.mean,
        "train_loss": row.train_loss,
        "update_bytes": row.update_bytes,
        "update_bits_per_parameter": round(8 * row.update_bytes / max(row.updates, 1) / facts.parameters, 6),
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`value` as JSON; the same value gives the same bytes."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_csv(path: Path, value: dict[str, Any]) -> None:
    """The history, one line per round."""
    out = io.StringIO()
    history = value["history"]
    writer = csv.DictWriter(out, list(history[0]) if history else ["round"])
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, out.getvalue().encode())


def draw(path: Path, value: dict[str, Any]) -> None:
    """Accuracy against what one device has sent up to then, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history = value["history"]
    sent, total = [], 0.0
    for row in history:
        total += row["update_bytes"] / max(row["updates"], 1)
        sent.append(total / 1000)
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    for key, label, style in (
        ("accuracy_mean", "mean weights", "-"),
        ("accuracy_thresholded", "thresholded mask (deployed)", "-"),
        ("accuracy_sampled", "one sampled mask", ":"),
    ):
        axes.plot(sent, [100 * row[key] for row in history], style, marker="o", markersize=3.5, label=label)
    axes.set_xlabel("sent by one device so far, kB of updates")
    axes.set_ylabel("test accuracy, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    dense = value["parameters"] * 4 / 1000
    axes.set_title(
        f"{value['model']} on {value['dataset']}, {value['devices']} devices, {value['split']}\n"
        f"{value['uplink_bits_per_parameter_per_round']:.2f} bit per parameter and round up "
        f"(one float32 update alone: {dense:,.0f} kB)",
        fontsize=10,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
