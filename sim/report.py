"""Turn what a simulation measured into records, a summary, tables and a picture."""

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
    """One round that is over; printed, it is one line.

    `metric` says what `score` is: "accuracy", shares of correct classes, 0 .. 1, or "error", mean squared errors.
    `train_loss`: mean of the devices' last epoch (nats, or squares), None where nobody answered. `update_bytes`: of all
    updates of this round. `seconds` since the start, on the simulation's clock.
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
        """Accuracy three ways: `.mean`, `.thresholded` (the finished model), `.sampled`. AttributeError for an mse."""
        return self._of("accuracy")

    @property
    def error(self) -> Score:
        """Mean squared error three ways. AttributeError for a model of classes."""
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
    """Return a score as people read it: 85.3%, or 0.0123."""
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.4g}"


@dataclass(frozen=True)
class TrafficReport:
    """All bytes of all devices over the whole job, and who counted them."""

    uplink_bytes: int
    downlink_bytes: int
    counted: str


@dataclass(frozen=True)
class Facts:
    """What was run."""

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
    """The one object that scripts read; `seconds` on the clock that `facts.clock` names.

    What is "per round" is per device and round that took part, that is per update that was counted. The bytes are all
    bytes of all devices, also of those that were not asked or came too late.
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


def runtimes_table(found: Mapping[str, Any], metric: str = "accuracy") -> str:
    """Return `by_runtime` as text: a row per round; per runtime accuracy and loss, or the loss alone for an error."""
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
    """`value` as JSON; the same value gives the same bytes."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_csv(path: Path, value: Mapping[str, Any]) -> None:
    """The history, one line per round."""
    out = io.StringIO()
    history = value["history"]
    writer = csv.DictWriter(out, list(history[0]) if history else ["round"])
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, out.getvalue().encode())


def draw(value: Mapping[str, Any], figure: Figure) -> None:
    """Draw, into a matplotlib `figure`, what `summary` gave: the score against what one device has sent up to then."""
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
