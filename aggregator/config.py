"""Settings of one job: run.toml as a frozen dataclass, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aggregator import presets
from aggregator.settings import AggregationConfig, RoundsConfig
from seedmask.codec import NAMES
from seedmask.io.link import Broker
from seedmask.io.settings import example
from seedmask.knobs import knob, needed, settle
from seedmask.training import TrainingConfig
from seedmask.wire import NAME_PATTERN, check_name


@dataclass(frozen=True)
class RunConfig:
    """run.toml of `seedmask aggregator run`: all that the aggregator needs to know of one job.

    Raises ValueError for a value out of its range.
    """

    job: str = field(metadata=needed("the job's name, a-z, 0-9 and '-'; its devices say it too", pattern=NAME_PATTERN))
    bundle: Path = field(metadata=needed("written by `seedmask export`; paths are relative to this file"))
    state_dir: Path = field(metadata=needed("folder of the database, the log and the finished model"))
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    preset: str = knob("default", "what [training] and [aggregation] begin with", choices=presets.MEANINGS)
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        settle(self)
        check_name(self.job)
        if self.training.codec not in NAMES:
            raise ValueError(f"codec {self.training.codec!r} is unknown; there are {', '.join(NAMES)}")

    @property
    def tables(self) -> dict[str, RoundsConfig | TrainingConfig | AggregationConfig]:
        """Return the tables that decide what the job computes, by name; [broker] and paths are not among them."""
        return {"rounds": self.rounds, "training": self.training, "aggregation": self.aggregation}

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a file's values, with the preset's value for every setting that it leaves out. Raises ValueError."""
        return presets.completed(values)


def _of_default(table: str, *names: str) -> dict[str, Any]:
    found = presets.tables("default")[table]
    return {name: found[name] for name in names}


EXAMPLE: Final = example(
    RunConfig,
    {
        "job": "fashion",
        "bundle": "mlp.bundle",
        "state_dir": "state",
        "preset": "default",
        "rounds": {
            "total": 20,
            "devices": 4,
            "per_round": 0,
            "quorum": 0,
            "minimum": 2,
            "deadline_s": 600.0,
        },
        "training": {},
        "aggregation": {},
        "broker": {"host": "192.0.2.10", "port": 8883, "ca": "ca.crt"},
    },
    {
        "training": _of_default("training", "epochs", "learning_rate", "exact_rate", "codec", "kappa"),
        "aggregation": _of_default("aggregation", "downlink", "weighting", "relay"),
    },
)
