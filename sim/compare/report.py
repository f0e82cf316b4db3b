"""Report of a grid: summary.json, report.md and plots, made from the stored results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from seedmask.io.files import write_atomic

UP: Final = "uplink_bits_per_parameter_total"
DOWN: Final = "downlink_bits_per_parameter_total"
FORMULA: Final = "formula_bits_per_parameter_total"
MEASURES: Final = ("mean", "thresholded", "sampled")

Row = Mapping[str, Any]
Place = tuple[str, str, str]
"""(dataset, model, split)."""


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per run and round; bits per parameter are those of an average device since the start."""
    rows = []
    for result in results:
        said = result["declaration"]
        for row in result["rows"]:
            head = {key: said[key] for key in ("scheme", "dataset", "model", "split", "seed")}
            rows.append({**head, "parameters": result["parameters"], **row})
    return rows


def places(rows: Sequence[Row]) -> list[Place]:
    """Return every (dataset, model, split) of `rows`, in order of appearance."""
    return list(dict.fromkeys((row["dataset"], row["model"], row["split"]) for row in rows))


def series(rows: Sequence[Row], place: Place) -> dict[str, dict[int, list[Row]]]:
    """Return the rows of one place as {scheme: {seed: rows in order of rounds}}."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if (row["dataset"], row["model"], row["split"]) == place:
            found.setdefault(row["scheme"], {}).setdefault(row["seed"], []).append(row)
    for seeds in found.values():
        for seed, history in seeds.items():
            seeds[seed] = sorted(history, key=lambda row: int(row["round"]))
    return found


@dataclass(frozen=True)
class Reached:
    """Cost of first reaching a target: one value for each seed that reached it, of `seeds` in all."""

    values: tuple[float, ...]
    seeds: int

    def text(self) -> str:
        """Return "mean [least, most]", and how many seeds reached the target, if not all did."""
        if not self.values:
            return "-"
        mean, low, high = fmean(self.values), min(self.values), max(self.values)
        text = short(mean)
        if len(self.values) > 1:
            text += f" [{short(low)}, {short(high)}]"
        return text if len(self.values) == self.seeds else f"{text} ({len(self.values)} of {self.seeds})"


def short(value: float) -> str:
    """Return a number as text with three significant digits, or more from 1,000 on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cost(row: Row, what: str) -> float:
    """Return the cost of a row: `what` is "up", "both" (bits), "rounds", or "formula" (uplink by FedPM's formula)."""
    if what == "both":
        return float(row[UP]) + float(row[DOWN])
    return float(row[{"up": UP, "rounds": "round", "formula": FORMULA}[what]])


def reached(histories: Mapping[int, Sequence[Row]], target: float, measure: str, what: str) -> Reached:
    """Return the cost of the first round with an accuracy of `target` per cent, for each seed."""
    values = []
    for history in histories.values():
        first = next((row for row in history if 100 * row[f"accuracy_{measure}"] >= target), None)
        if first is not None:
            values.append(cost(first, what))
    return Reached(tuple(values), len(histories))


def table(rows: Sequence[Row], targets: Sequence[float], measure: str) -> list[dict[str, Any]]:
    """Return the costs of reaching each target, for scripts: one entry per place, scheme and target."""
    out = []
    for place in places(rows):
        for scheme, histories in series(rows, place).items():
            for target in targets:
                entry: dict[str, Any] = dict(zip(("dataset", "model", "split"), place, strict=True))
                entry |= {"scheme": scheme, "target": target, "seeds": len(histories)}
                for what, key in (("rounds", "rounds"), ("up", "uplink_bits"), ("both", "total_bits")):
                    entry[key] = list(reached(histories, target, measure, what).values)
                out.append(entry)
    return out


def markdown(rows: Sequence[Row], targets: Sequence[float], measure: str, pictures: Mapping[Place, str]) -> str:
    """Return the report as Markdown; `pictures`: file of each place's plots."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Mask training compared with other methods",
        "",
        "Bits per parameter are those of an average device since the start, in MQTT PUBLISH packets of real frames;"
        " acknowledgements, pings and TCP are not counted. Up: all that it sent until its update of that round was out."
        " Down: all that it had received when it began to train in that round. Dense baselines begin from a seed, so no"
        " weights are sent before their first round.",
        "",
        f"Accuracy is the {measure} network's on the test set (dense baselines have only one). A cell is the mean over"
        f" seeds and [least, most]. Seeds: {', '.join(map(str, seeds))}; the first tables say how many a scheme had.",
    ]
    for place in places(rows):
        found = series(rows, place)
        dataset, model, split = place
        parameters = next(row["parameters"] for row in rows if (row["dataset"], row["model"], row["split"]) == place)
        lines += ["", f"## {model} on {dataset}, {split}", "", f"{parameters:,} parameters.", ""]
        if place in pictures:
            lines += [f"![accuracy against rounds and bits]({pictures[place]})", ""]
        lines += _ends(found)
        for what, title in (
            ("up", "Uplink bits per parameter to reach"),
            ("both", "Bits per parameter both ways to reach"),
            ("rounds", "Rounds to reach"),
        ):
            lines += ["", f"{title}:", "", *_to_reach(found, targets, measure, what)]
    return "\n".join(lines) + "\n"


def _ends(found: Mapping[str, Mapping[int, Sequence[Row]]]) -> list[str]:
    """Return a table with each scheme's accuracy in its last round, in three ways, and its bits per round."""
    lines = [
        "| scheme | seeds | rounds | sampled % | thresholded % | mean % | up, bits a round | down, bits a round |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scheme, histories in found.items():
        last = [history[-1] for history in histories.values()]
        cells = [spread([100 * row[f"accuracy_{m}"] for row in last]) for m in ("sampled", "thresholded", "mean")]
        rounds = last[0]["round"]
        bits = [short(fmean(row[key] / row["round"] for row in last)) for key in (UP, DOWN)]
        lines.append(f"| {scheme} | {len(last)} | {rounds} | {' | '.join(cells)} | {' | '.join(bits)} |")
        if FORMULA in last[0]:
            formula = short(fmean(row[FORMULA] / row["round"] for row in last))
            lines.append(f"| {scheme}, by its formula | {len(last)} | {rounds} | | | | {formula} (not sent) | |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Return "mean [least, most]" of percentages."""
    text = f"{fmean(values):.1f}"
    return text if len(values) == 1 else f"{text} [{min(values):.1f}, {max(values):.1f}]"


def _to_reach(
    found: Mapping[str, Mapping[int, Sequence[Row]]], targets: Sequence[float], measure: str, what: str
) -> list[str]:
    lines = [
        "| scheme | " + " | ".join(f"{target:g} %" for target in targets) + " |",
        "|---" * (len(targets) + 1) + "|",
    ]
    for scheme, histories in found.items():
        cells = [reached(histories, target, measure, what).text() for target in targets]
        lines.append(f"| {scheme} | {' | '.join(cells)} |")
        if what == "up" and FORMULA in next(iter(histories.values()))[0]:
            cells = [reached(histories, target, measure, "formula").text() for target in targets]
            lines.append(f"| {scheme}, by its formula | {' | '.join(cells)} |")
    return lines


_MARKS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")


def draw(path: Path, rows: Sequence[Row], place: Place, measure: str) -> None:
    """Plot one place in three panels: accuracy by round, uplink bits, all bits; lines are means, bands the range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = series(rows, place)
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 5.4), dpi=110, sharey=True)
    colours = pyplot.get_cmap("tab10")
    everywhere = list(dict.fromkeys(row["scheme"] for row in rows))  # so that a scheme has the same colour in all plots
    best = 0.0
    for scheme, histories in found.items():
        number = everywhere.index(scheme)
        rounds = min(len(history) for history in histories.values())
        accuracy = [[100 * h[i][f"accuracy_{measure}"] for h in histories.values()] for i in range(rounds)]
        means = [fmean(values) for values in accuracy]
        best = max(best, *means)
        style: dict[str, Any] = {
            "color": colours(number % 10),
            "marker": _MARKS[number % len(_MARKS)],
            "markersize": 4,
            "linewidth": 1.6,
        }
        for panel, what in zip(panels, ("rounds", "up", "both"), strict=True):
            x = [fmean(cost(h[i], what) for h in histories.values()) for i in range(rounds)]
            panel.plot(x, means, label=scheme, **style)
            if len(histories) > 1:
                low, high = [min(values) for values in accuracy], [max(values) for values in accuracy]
                panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if FORMULA in next(iter(histories.values()))[0]:
            x = [fmean(cost(h[i], "formula") for h in histories.values()) for i in range(rounds)]
            panels[1].plot(x, means, ":", color=style["color"], linewidth=1.6, label=f"{scheme}, by its formula")
    for panel, label, log in zip(
        panels,
        ("round", "sent up so far, bits per parameter", "sent both ways so far, bits per parameter"),
        (False, True, True),
        strict=True,
    ):
        panel.set_xlabel(label)
        panel.grid(alpha=0.3, which="major")
        if log:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.spines[["top", "right"]].set_visible(False)
    # Cut off low first rounds: they would compress the rest of the plot.
    lowest = min(100 * row[f"accuracy_{measure}"] for seeds in found.values() for h in seeds.values() for row in h)
    panels[0].set_ylim(max(lowest - 1, best - 35), min(best + 1.5, 100))
    panels[0].set_ylabel(f"test accuracy ({measure}), %")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    dataset, model, split = place
    seeds = max(len(histories) for histories in found.values())
    band = f"; lines are means of up to {seeds} seeds, bands least to most" if seeds > 1 else ""
    figure.suptitle(f"{model} on {dataset}, {split}{band}", fontsize=11)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=min(6, len(labels)), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06 + 0.035 * ((len(labels) - 1) // 6), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def picture_name(place: Place) -> str:
    """Return the file name of one place's plots."""
    return "-".join(place).replace(":", "-").replace("/", "-") + ".png"


def write(out: Path, results: Sequence[Mapping[str, Any]], targets: Sequence[float], measure: str) -> list[Path]:
    """Write summary, report and plots into `out`, and return the paths that were written."""
    rows = summary(results)
    written = [out / "summary.json", out / "report.md"]
    write_atomic(written[0], (json.dumps(rows, indent=1) + "\n").encode())
    pictures = {}
    for place in places(rows):
        pictures[place] = picture_name(place)
        draw(out / pictures[place], rows, place, measure)
        written.append(out / pictures[place])
    write_atomic(written[1], markdown(rows, targets, measure, pictures).encode())
    return written
