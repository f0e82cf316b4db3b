"""run.toml, read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from seedmask.codec import NAMES
from seedmask.io.link import Broker
from seedmask.mask import MAX_TOP
from seedmask.wire import Work, check_name

EXAMPLE = """\
job = "fashion"
bundle = "mlp.bundle"           # written by `seedmask export`; paths are relative to this file
state_dir = "state"             # database, log and the finished model

[rounds]
total = 20
devices = 4                     # a round opens when this many are online
per_round = 0                   # ask this many of them; 0: all
quorum = 0                      # updates that close a round at once; 0: every device that was asked
minimum = 2                     # updates that are enough when the time is up
deadline_s = 600                # time for one round

[work]
epochs = 3                      # passes over each device's data
learning_rate = 0.1             # of Adam on the mask scores
codec = "rans"                  # or "packed"

[broker]
host = "192.0.2.10"
port = 8883
ca = "ca.crt"
"""


@dataclass(frozen=True)
class Rounds:
    """The [rounds] table: when a round opens and when it closes."""

    total: int = 20
    devices: int = 1
    per_round: int = 0
    quorum: int = 0
    minimum: int = 1
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("total", "devices", "minimum"):
            if not 1 <= getattr(self, name) <= MAX_TOP:
                raise ValueError(f"{name} is 1 .. {MAX_TOP}, found {getattr(self, name)}")
        if not 0 <= self.per_round <= MAX_TOP or not 0 <= self.quorum <= MAX_TOP:
            raise ValueError(f"per_round and quorum are 0 .. {MAX_TOP}")
        if self.quorum and self.minimum > self.quorum:
            raise ValueError(f"minimum ({self.minimum}) cannot be above quorum ({self.quorum})")
        if self.per_round and max(self.minimum, self.quorum) > self.per_round:
            raise ValueError(f"minimum and quorum cannot be above per_round ({self.per_round})")
        if self.minimum > self.devices:
            raise ValueError(f"minimum ({self.minimum}) cannot be above devices ({self.devices})")
        if not 1 <= self.deadline_s <= 4_000_000:
            raise ValueError(f"deadline_s is 1 .. 4000000 seconds, found {self.deadline_s}")


@dataclass(frozen=True)
class WorkSettings:
    """The [work] table: what each device does in a round."""

    epochs: int = 3
    learning_rate: float = 0.1
    codec: str = "rans"

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= 65535:
            raise ValueError(f"epochs is 1 .. 65535, found {self.epochs}")
        if not 1e-6 <= self.learning_rate <= 1000:
            raise ValueError(f"learning_rate is 0.000001 .. 1000, found {self.learning_rate}")
        if self.codec not in NAMES:
            raise ValueError(f"codec {self.codec!r} is unknown; there are {', '.join(NAMES)}")

    def work(self) -> Work:
        """As it travels: integers."""
        return Work(self.epochs, round(self.learning_rate * 1e6), NAMES[self.codec])


@dataclass(frozen=True)
class RunConfig:
    """What the aggregator needs to know of one job."""

    job: str
    bundle: Path
    state_dir: Path
    rounds: Rounds = field(default_factory=Rounds)
    work: WorkSettings = field(default_factory=WorkSettings)
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        check_name(self.job)
