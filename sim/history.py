"""Result of a simulation: its rounds, its model, and ways to look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedmask.errors import MissingPackageError
from seedmask.io.models import Model
from sim import report
from sim.report import RoundRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """Result of a simulation.

    rounds: a record of each round, in order.
    model: the finished model after the last round (a seed and a mask), with `predict(x)` and `save(path)`.
    summary: what was run, the final score on the whole test set, and all bytes; `seedmask simulate --json` writes it.
    stopped: True if `on_round` ended the simulation early.
    """

    rounds: tuple[RoundRecord, ...]
    model: Model
    summary: Mapping[str, Any]
    stopped: bool = False

    def plot(self, path: Path | str | None = None) -> Figure:
        """Return a plot of the score against the kilobytes that one device has sent; write it to `path`, if given.

        `path` ends in .png, .pdf or .svg. Without a path the figure belongs to pyplot, and a notebook shows it. Raises
        MissingPackageError without matplotlib.
        """
        try:
            if path is None:
                from matplotlib import pyplot

                figure = pyplot.figure(figsize=(8, 5), dpi=120)
            else:
                from matplotlib.figure import Figure

                figure = Figure(figsize=(8, 5), dpi=120)
        except ImportError:
            raise MissingPackageError("plot needs matplotlib: pip install matplotlib") from None
        report.draw(self.summary, figure)
        if path is not None:
            figure.savefig(path)
        return figure

    def to_dataframe(self) -> DataFrame:
        """Return the rounds as a pandas DataFrame, one row per round, indexed by `round`.

        Its columns are those of rounds.csv: seconds, updates, accuracy_sampled (or error_sampled) and so on. Raises
        MissingPackageError without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError(
                "to_dataframe needs pandas: pip install pandas, or pip install 'seedmask[dataframe]'"
            ) from None
        return pandas.DataFrame(self.summary["history"]).set_index("round")

    def __repr__(self) -> str:
        return f"<History of {self}>"

    def __str__(self) -> str:
        value, metric = self.summary, self.summary["metric"]
        end = report.figure(metric, value[metric]["thresholded"])
        return (
            f"{value['model']} on {value['dataset']}: {len(self.rounds)} rounds with {value['devices']} devices, "
            f"{metric} {end} thresholded on {value['test_examples']:,} test examples, "
            f"{value['uplink_bits_per_parameter_per_round']:.3f} bit per parameter and round up"
        )
