"""What a simulation gives back: its rounds, its model, and ways to look at them."""

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


@dataclass(frozen=True, eq=False)
class History:
    """A simulation that is over.

    `rounds`: a record for each round that ended, in order. `model`: the finished model after the last of them, a seed
    and a mask, with `predict(x)` and `save(path)`. `summary`: what was run, its final score on the whole test set and
    its bytes, as `seedmask simulate --json` writes it. `stopped`: True if `on_round` ended it early.
    """

    rounds: tuple[RoundRecord, ...]
    model: Model
    summary: Mapping[str, Any]
    stopped: bool = False

    def plot(self, path: Path | str | None = None) -> Figure:
        """Draw the score against the kilobytes that one device has sent; written to `path` (.png, .pdf, .svg) if given.

        Without a path the figure is pyplot's, and a notebook shows it. Raises MissingPackageError without matplotlib.
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
        """Return the rounds as a pandas DataFrame, a row each, indexed by `round`.

        Columns as in rounds.csv: seconds, updates, accuracy_sampled (or error_sampled) ... Raises MissingPackageError
        without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackageError(
                "to_dataframe needs pandas: pip install pandas, or pip install 'seedmask[dataframe]'"
            ) from None
        return pandas.DataFrame(self.summary["history"]).set_index("round")

    def __str__(self) -> str:
        value, metric = self.summary, self.summary["metric"]
        end = report.figure(metric, value[metric]["thresholded"])
        return (
            f"{value['model']} on {value['dataset']}: {len(self.rounds)} rounds with {value['devices']} devices, "
            f"{metric} {end} thresholded on {value['test_examples']:,} test examples, "
            f"{value['uplink_bits_per_parameter_per_round']:.3f} bit per parameter and round up"
        )
