"""Reports of a simulation: records, summary, tables and plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.history import Report
from seedmask.io.files import write_atomic
from sim.evaluate import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RoundRecord:
    """Record of one round that has ended; `print` shows it in one line.

    round: its number, from 1.
    seconds: time since the start, on the simulation's clock.
    updates: number of updates that were counted; `update_bytes`: their size together.
    score: of the global model after this round, in three ways.
    train_loss: mean loss of the devices' last epoch (nats, or squared error), None if no device answered.
    metric: "accuracy" if `score` has shares of correct predictions, 0 .. 1; "error" if mean squared errors.
    """

    round: int
    seconds: float
    updates: int
    score: Score
    train_loss: float | None
    update_bytes: int
    metric: str = "accuracy"

    @property
    def accuracy(self) -> Score:
        """Return the accuracy in three ways: `.mean`, `.thresholded` (the finished model) and `.sampled`.

        Raises AttributeError if the model's loss is "mse".
        """
        return self._of("accuracy")

    @property
    def error(self) -> Score:
        """Return the mean squared error in three ways. Raises AttributeError if the model predicts classes."""
        return self._of("error")

    def _of(self, metric: str) -> Score:
        if metric != self.metric:
            raise AttributeError(f"this model is measured by its {self.metric}; there is no {metric}")
        return self.score

    def __str__(self) -> str:
        sampled, thresholded, mean = (figure(self.metric, value) for value in asdict(self.score).values())
        loss = "" if self.train_loss is None else f"loss {self.train_loss:.3f}, "
        return (
            f"round {self.round}: {self.metric} {mean} mean, {thresholded} thresholded, {sampled} sampled; {loss}"
            f"{self.updates} updates of {self.update_bytes / max(self.updates, 1) / 1000:.1f} kB, {self.seconds:.1f} s"
        )


def figure(metric: str, value: float) -> str:
    """Return a score as text for people: "85.3%" for an accuracy, "0.0123" for an error."""
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.4g}"


@dataclass(frozen=True)
class TrafficReport:
    """Bytes of all devices over the whole job; `counted`: who counted them, for people."""

    uplink_bytes: int
    downlink_bytes: int
    counted: str


@dataclass(frozen=True)
class Facts:
    """Facts about what was run, for the summary."""

    model: str
    dataset: str
    origin: str
    split: str
    devices: int
    parameters: int
    broker: str
    clock: str
    seed: int
    test_examples: int
    metric: str = "accuracy"


def summary(
    facts: Facts, rows: Sequence[RoundRecord], final: Score, traffic: TrafficReport, seconds: float
) -> dict[str, Any]:
    """Return the summary of a simulation, for scripts; `seconds`: on the clock that `facts.clock` names.

    "Per round" means per counted update: only devices that took part in a round are in the denominator. Bytes are those
    of all devices, also of devices that were not selected or answered too late.
    """
    took_part = max(sum(row.updates for row in rows), 1)
    bits = 8 / (took_part * facts.parameters)
    return {
        facts.metric: asdict(final),
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
    """Return what devices reported of their training, per runtime and round; `runtime_of`: runtime by device's name.

    Loss (nats) and accuracy are means over examples, measured during the last epoch, before each step.
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


def runtimes_table(found: Mapping[str, Any], metric: str = "accuracy") -> str:
    """Return the result of `by_runtime` as a table for people: accuracy (unless `metric` is "error") and loss."""
    wide = max(15, *(len(name) + 5 for name in found))
    names = [f"{name} ({len(value['devices'])})" for name, value in found.items()]
    cells: dict[int, dict[str, str]] = {}
    for name, value in found.items():
        for row in value["history"]:
            cell = f"{row['train_accuracy']:.1%}  " if metric == "accuracy" else ""
            cell += f"{row['train_loss']:.3f}"
            cells.setdefault(row["round"], {})[name] = cell
    lines = ["round" + "".join(f"  {name:>{wide}}" for name in names)]
    lines += [
        f"{round_:>5}" + "".join(f"  {row.get(name, '-'):>{wide}}" for name in found)
        for round_, row in sorted(cells.items())
    ]
    return "\n".join(lines)


def _flat(row: RoundRecord, facts: Facts) -> dict[str, Any]:
    return {
        "round": row.round,
        "seconds": round(row.seconds, 3),
        "updates": row.updates,
        f"{row.metric}_sampled": row.score.sampled,
        f"{row.metric}_thresholded": row.score.thresholded,
        f"{row.metric}_mean": row.score.mean,
        "train_loss": row.train_loss,
        "update_bytes": row.update_bytes,
        "update_bits_per_parameter": round(8 * row.update_bytes / max(row.updates, 1) / facts.parameters, 6),
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON; equal values give equal bytes."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_csv(path: Path, value: Mapping[str, Any]) -> None:
    """Write the rounds of a summary as CSV, one line per round."""
    out = io.StringIO()
    history = value["history"]
    writer = csv.DictWriter(out, list(history[0]) if history else ["round"])
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, out.getvalue().encode())


def draw(value: Mapping[str, Any], figure: Figure) -> None:
    """Draw a summary into a matplotlib `figure`: the score against the kilobytes that one device has sent so far."""
    metric, history = value["metric"], value["history"]
    sent, total = [], 0.0
    for row in history:
        total += row["update_bytes"] / max(row["updates"], 1)
        sent.append(total / 1000)
    factor, label = (100, "test accuracy, %") if metric == "accuracy" else (1, "mean squared error on the test set")
    axes = figure.add_subplot()
    for key, name, style in (
        ("mean", "mean weights", "-"),
        ("thresholded", "thresholded mask (deployed)", "-"),
        ("sampled", "one sampled mask", ":"),
    ):
        points = [factor * row[f"{metric}_{key}"] for row in history]
        axes.plot(sent, points, style, marker="o", markersize=3.5, label=name)
    axes.set_xlabel("sent by one device so far, kB of updates")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right" if metric == "accuracy" else "upper right", frameon=False)
    dense = value["parameters"] * 4 / 1000
    axes.set_title(
        f"{value['model']} on {value['dataset']}, {value['devices']} devices, {value['split']}\n"
        f"{value['uplink_bits_per_parameter_per_round']:.2f} bit per parameter and round up "
        f"(one float32 update alone: {dense:,.0f} kB)",
        fontsize=10,
    )
    figure.tight_layout()
