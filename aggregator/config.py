"""run.toml, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aggregator.posterior import INITS, Recipe
from seedmask.codec import NAMES
from seedmask.io.link import Broker
from seedmask.mask import CLAMP, MAX_TOP, ONE
from seedmask.pooling import MAX_WEIGHT
from seedmask.wire import ESTIMATORS, OPTIMIZERS, Work, check_name

WEIGHTINGS: Final = ("equal", "samples")

EXAMPLE = """\
job = "fashion"
bundle = "mlp.bundle"           # written by `seedmask export`; paths are relative to this file
state_dir = "state"             # database, log and the finished model
preset = "default"              # or "thrifty" (least bytes), "paper" (FedPM as its authors published it)

[rounds]
total = 20
devices = 4                     # a round opens when this many are online
per_round = 0                   # ask this many of them; 0: all
quorum = 0                      # updates that close a round at once; 0: every device that was asked
minimum = 2                     # updates that are enough when the time is up
deadline_s = 600                # time for one round

[work]                          # what a device does in a round; any key here overrides the preset:
# epochs = 3                    # passes over each device's data
# learning_rate = 0.1           # of Adam on the mask scores
# exact_rate = 0.001            # of Adam on exact values, where the model has any
# codec = "hmrc"                # or "rans", "packed"

[learning]                      # what the aggregator makes of the masks:
# downlink = "exact"            # or the number of levels that the published probabilities are rounded to
# weighting = "samples"         # a device counts as much as it says it has examples; or "equal"
# relay = true                  # false: devices never get to see each other's masks

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
    """The [work] table: what each device does in a round, in people's units; seedmask.wire.Work says what each is for.

    What is not said is what Work has. A run.toml begins with a preset instead.
    """

    epochs: int = 3
    learning_rate: float = 0.1
    codec: str = "hmrc"
    optimizer: str = "adam"
    momentum: float = 0.0
    keep_optimizer: bool = False
    straight_through: str = "identity"
    kl: float = 0.0
    sparsity: float = 0.0
    masks: int = 1
    kappa: float = 5.0
    kappa_max: float = 24.0
    max_blocks: int = 0
    mean_epochs: int = 0
    rate_decay: float = 0.0
    exact_rate: float = 0.001

    def __post_init__(self) -> None:
        _within(self, "epochs", 1, 65535)
        for name in ("learning_rate", "exact_rate"):
            _within(self, name, 1e-6, 1000)
        _listed(self, "codec", NAMES)
        _listed(self, "optimizer", OPTIMIZERS)
        _listed(self, "straight_through", ESTIMATORS)
        for name in ("momentum", "rate_decay"):
            _within(self, name, 0, 0.999_999)
        for name in ("kl", "sparsity"):
            _within(self, name, 0, 4000)
        _within(self, "masks", 1, 255)
        for name in ("kappa", "kappa_max"):
            _within(self, name, 0.001, 1000)
        if self.kappa > self.kappa_max:
            raise ValueError(f"kappa ({self.kappa:g}) cannot be above kappa_max ({self.kappa_max:g})")
        _within(self, "max_blocks", 0, 1 << 28)
        _within(self, "mean_epochs", 0, 65535)

    def work(self) -> Work:
        """As it travels: integers."""
        return Work(
            epochs=self.epochs,
            learning_rate=_millionths(self.learning_rate),
            codec=NAMES[self.codec],
            optimizer=OPTIMIZERS.index(self.optimizer),
            momentum=_millionths(self.momentum),
            keep_optimizer=int(self.keep_optimizer),
            straight_through=ESTIMATORS.index(self.straight_through),
            kl=_millionths(self.kl),
            sparsity=_millionths(self.sparsity),
            masks=self.masks,
            kappa=round(self.kappa * 1000),
            kappa_max=round(self.kappa_max * 1000),
            max_blocks=self.max_blocks,
            mean_epochs=self.mean_epochs,
            rate_decay=_millionths(self.rate_decay),
            exact_rate=_millionths(self.exact_rate),
        )


@dataclass(frozen=True)
class AggregateSettings:
    """The [learning] table: what the aggregator makes of a round's masks.

    `downlink`: "exact" (counts of ones) or the number of levels that probabilities are rounded to. `weighting`: "equal"
    or "samples", as many as a device says it has, at most `max_samples`: what bounds the word of one. `prior`: lambda
    of the Beta prior, at least 1; `carry`: share of the Beta counts that a round hands to the next, 0: reset. `clamp`:
    least probability. `step`: how far theta goes from where it was to what the masks say. `average_last`: the finished
    model is the threshold of the mean theta of so many rounds. `relay`: tell theta as the masks that made it where that
    is shorter; devices can then read each other's masks. `init`: "half", "uniform" or "normal" (scores).
    """

    downlink: int | str = "exact"
    weighting: str = "equal"
    max_samples: int = 10_000
    prior: float = 1.0
    carry: float = 0.0
    clamp: float = CLAMP / ONE
    step: float = 1.0
    average_last: int = 1
    init: str = "half"
    relay: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.downlink, str) and self.downlink != "exact":
            raise ValueError(f'downlink is "exact" or a number of levels, 2 .. {MAX_TOP}, found {self.downlink!r}')
        if isinstance(self.downlink, int):
            _within(self, "downlink", 2, MAX_TOP)
        _listed(self, "weighting", WEIGHTINGS)
        _listed(self, "init", INITS)
        _within(self, "max_samples", 1, MAX_WEIGHT)
        _within(self, "prior", 1, 1000)
        _within(self, "carry", 0, 0.999)
        _within(self, "clamp", 1 / ONE, 0.4999)
        _within(self, "step", 0.001, 10)
        _within(self, "average_last", 1, 1000)

    def recipe(self) -> Recipe:
        """The same in integers."""
        return Recipe(
            top=self.downlink - 1 if isinstance(self.downlink, int) else 0,
            heaviest=self.max_samples if self.weighting == "samples" else 0,
            prior=round((self.prior - 1) * ONE),
            carry=round(self.carry * 1000),
            clamp=round(self.clamp * ONE),
            step=round(self.step * 1000),
            average=self.average_last,
            init=self.init,
            relay=self.relay,
        )


@dataclass(frozen=True)
class RunConfig:
    """What the aggregator needs to know of one job. `preset`: what a file's tables begin with; only a name here."""

    job: str
    bundle: Path
    state_dir: Path
    rounds: Rounds = field(default_factory=Rounds)
    work: WorkSettings = field(default_factory=WorkSettings)
    learning: AggregateSettings = field(default_factory=AggregateSettings)
    preset: str = "default"
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        check_name(self.job)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A file's values, with those of its preset wherever it says nothing. Raises ValueError."""
        from aggregator.presets import tables  # it is made of the classes above

        named = values.get("preset", "default")
        more = {
            table: {**preset, **said}
            for table, preset in tables(named).items()
            if isinstance(said := values.get(table, {}), Mapping)
        }
        return {**values, **more}


def _within(settings: object, name: str, least: float, most: float) -> None:
    value = getattr(settings, name)
    if not least <= value <= most:
        raise ValueError(f"{name} is {_plain(least)} .. {_plain(most)}, found {value}")


def _plain(number: float) -> str:
    return f"{number:f}".rstrip("0").rstrip(".")


def _listed(settings: object, name: str, known: Iterable[str]) -> None:
    value = getattr(settings, name)
    if value not in known:
        raise ValueError(f"{name} {value!r} is unknown; there are {', '.join(known)}")


def _millionths(value: float) -> int:
    return round(value * 1e6)
