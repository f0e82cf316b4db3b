"""Settings of the aggregator: when a round opens and closes, and how its masks become the next theta.

Devices need none of these: the aggregator tells them that a round is open, and its theta. Settings of devices are in
`seedmask.training`, named sets of both in `aggregator.presets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from seedmask.knobs import knob, settle
from seedmask.mask import CLAMP, MAX_LEVEL, ONE
from seedmask.pooling import MAX_WEIGHT, Pooling

WEIGHTINGS: Final = {
    "equal": "every mask counts the same",
    "samples": "a mask counts as many times as its device says it has examples",
}
INITS: Final = {
    "half": "one half everywhere",
    "uniform": "each probability equally likely, drawn from the model's seed",
    "normal": "sigmoid of standard normal scores, as in FedPM's published code",
}


@dataclass(frozen=True)
class RoundsConfig:
    """Table [rounds] of run.toml: when a round opens and when it closes.

    Raises ValueError for a value out of its range, and for a minimum that a quorum, a selection or the number of
    devices never reaches.
    """

    total: int = knob(20, "rounds of the job", least=1, most=MAX_LEVEL)
    devices: int = knob(1, "a round opens when this many are online", least=1, most=MAX_LEVEL)
    per_round: int = knob(0, "ask this many of those online", least=0, most=MAX_LEVEL, zero="all")
    quorum: int = knob(
        0, "updates that close a round at once", least=0, most=MAX_LEVEL, zero="of every device that was asked"
    )
    minimum: int = knob(1, "updates that are enough when the time is up", least=1, most=MAX_LEVEL)
    deadline_s: float = knob(600.0, "time for one round", unit="seconds", least=1, most=4_000_000, scale=1000)

    def __post_init__(self) -> None:
        settle(self)
        if self.quorum and self.minimum > self.quorum:
            raise ValueError(f"minimum ({self.minimum}) cannot be above quorum ({self.quorum})")
        if self.per_round and max(self.minimum, self.quorum) > self.per_round:
            raise ValueError(f"minimum and quorum cannot be above per_round ({self.per_round})")
        if self.minimum > self.devices:
            raise ValueError(f"minimum ({self.minimum}) cannot be above devices ({self.devices})")


@dataclass(frozen=True)
class AggregationConfig:
    """Table [aggregation] of run.toml: what the aggregator makes of a round's masks.

    The aggregator computes in integers, so that the order in which updates arrive does not matter; the properties below
    are these integers. Raises ValueError for a value out of its range.
    """

    rule: str = knob(
        "fedpm", "how masks become the next theta, by the name of a rule that is installed", group="seedmask.rules"
    )
    downlink: int | str = knob(
        "exact",
        "published probabilities are rounded to so many levels, or exact counts",
        least=2,
        most=MAX_LEVEL,
        words=("exact",),
    )
    weighting: str = knob(
        "equal",
        "how much each device's masks count",
        choices=WEIGHTINGS,
        presets={"default": "samples", "thrifty": "samples"},
    )
    max_samples: int = knob(
        10_000, "weighting by samples: the most that one device counts, whatever it says", least=1, most=MAX_WEIGHT
    )
    prior: float = knob(1.0, "lambda of the Beta prior", least=1, most=1000, scale=ONE)
    carry: float = knob(0.0, "share of the Beta counts that goes on to the next round", least=0, most=0.999, scale=1000)
    clamp: float = knob(
        CLAMP / ONE,
        "least probability, and distance of the largest from 1",
        least=1 / ONE,
        most=4095 / 8192,
        scale=ONE,
        presets={"default": 0.002, "thrifty": 0.002},
    )
    step: float = knob(
        1.0, "how far theta goes from where it was to what the masks say", least=0.001, most=10, scale=1000
    )
    average_last: int = knob(
        1, "the finished model is the threshold of the mean theta of so many rounds", least=1, most=1000
    )
    init: str = knob("half", "theta of the first round", choices=INITS, presets={"paper": "normal"})
    relay: bool = knob(True, "pass a round's masks on where shorter than theta; devices then see each other's masks")

    def __post_init__(self) -> None:
        settle(self)

    @property
    def max_level(self) -> int:
        """Return the largest level of published probabilities, 0 if exact counts are published."""
        return self.downlink - 1 if isinstance(self.downlink, int) else 0

    @property
    def heaviest(self) -> int:
        """Return the maximum weight of one mask when weighting by samples, 0 for equal weights."""
        return self.max_samples if self.weighting == "samples" else 0

    @property
    def prior_q16(self) -> int:
        """Return lambda - 1 of the Beta prior, in units of 2**-16."""
        return round((self.prior - 1) * ONE)

    @property
    def clamp_q16(self) -> int:
        """Return the least probability in units of 2**-16."""
        return round(self.clamp * ONE)

    @property
    def carry_milli(self) -> int:
        """Return the share of the Beta counts that is carried to the next round, in thousandths."""
        return round(self.carry * 1000)

    @property
    def step_milli(self) -> int:
        """Return the server's step in thousandths."""
        return round(self.step * 1000)

    @property
    def remembers(self) -> bool:
        """True if a round needs more than the last theta from the rounds before it."""
        return bool(self.carry_milli or self.step_milli != 1000)

    @property
    def pooling(self) -> Pooling:
        """Return the parameters with which a device computes theta from masks exactly as the aggregator does."""
        return Pooling(self.max_level, self.clamp_q16, self.heaviest)
