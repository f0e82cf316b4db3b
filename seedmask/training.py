"""Settings of training on a device, which travel with every announcement.  PROTOCOL 6.

They are part of the shared library because clients in other languages read them too. Each is an integer on the wire and
a plain number here; `seedmask.knobs` converts between the two without loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from seedmask.codec import NAMES, Plan
from seedmask.knobs import Knob, knob, knobs, settle

OPTIMIZERS: Final = {
    "adam": "Kingma and Ba, arXiv 1412.6980",
    "sgd": "stochastic gradient descent, with momentum",
}
MILLION: Final = 1_000_000
U32: Final = (1 << 32) - 1


@dataclass(frozen=True)
class TrainingConfig:
    """Table [training] of run.toml: what each device does in a round.

    The defaults are those of the wire: an option at its default is left out of the announcement. A file starts from a
    preset instead. Raises ValueError for a value out of its range, and if kappa is above kappa_max.
    """

    epochs: int = knob(3, "passes over a device's data per round", least=1, most=65535, wire=1)
    learning_rate: float = knob(
        0.1,
        "learning rate of the mask scores",
        least=1 / MILLION,
        most=U32 / MILLION,
        scale=MILLION,
        wire=2,
    )
    codec: str = knob(
        "hmrc",
        "how masks are drawn and coded (PROTOCOL 5)",
        choices=dict.fromkeys(NAMES, ""),
        numbers=NAMES,
        unnamed=255,
        wire=3,
        presets={"paper": "rans"},
    )
    optimizer: str = knob("adam", "optimiser of the mask scores", choices=OPTIMIZERS, wire=4)
    momentum: float = knob(0.0, "momentum of sgd", least=0, most=0.999_999, scale=MILLION, wire=5)
    keep_optimizer: bool = knob(
        False, "the optimiser's state goes on from round to round", wire=6, presets={"paper": True}
    )
    straight_through: str = knob(
        "identity",
        "gradient estimator through the drawn mask",
        choices={"identity": "the gradient as it is", "theta": "times theta, as in FedPM's published code"},
        wire=7,
        presets={"paper": "theta"},
    )
    kl: float = knob(
        0.0,
        "weight of KL(theta || global theta) / d, in nats, in the local loss",
        least=0,
        most=U32 / MILLION,
        scale=MILLION,
        wire=8,
        presets={"default": 3.0, "thrifty": 3.0},
    )
    sparsity: float = knob(
        0.0, "weight of mean(theta) in the local loss", least=0, most=U32 / MILLION, scale=MILLION, wire=9
    )
    masks: int = knob(1, "masks per update, each drawn anew", least=1, most=255, wire=11)
    kappa: float = knob(
        5.0,
        "codec hmrc: relative entropy per byte sent",
        unit="bits",
        least=0.001,
        most=1000,
        scale=1000,
        wire=12,
        presets={"thrifty": 24.0},
    )
    kappa_max: float = knob(
        24.0, "the largest kappa that a device may choose", unit="bits", least=0.001, most=1000, scale=1000, wire=13
    )
    max_blocks: int = knob(
        0, "codec hmrc: most blocks of a mask", least=0, most=1 << 28, zero="an eighth of the weights", wire=14
    )
    mean_epochs: int = knob(
        0,
        "first epochs of a round that train the mean network, without drawn masks",
        least=0,
        most=65535,
        wire=16,
        presets={"default": 65535, "thrifty": 65535},
    )
    rate_decay: float = knob(
        0.0,
        "share of itself by which a learning rate shrinks each round",
        least=0,
        most=0.999_999,
        scale=MILLION,
        wire=17,
    )
    exact_rate: float = knob(
        0.001,
        "learning rate of exact values, where the model has any",
        least=1 / MILLION,
        most=U32 / MILLION,
        scale=MILLION,
        wire=18,
    )

    def __post_init__(self) -> None:
        settle(self)
        if self.kappa > self.kappa_max:
            raise ValueError(f"kappa ({self.kappa:g}) cannot be above kappa_max ({self.kappa_max:g})")

    @property
    def codec_id(self) -> int:
        """Codec id of the masks on the wire, which this program may not know."""
        return OPTIONS[3].number(self.codec)

    def plan(self, bits_per_index: float | None = None) -> Plan:
        """Return the coding parameters of a mask.

        `bits_per_index`: kappa that the device prefers, in bits; it is limited to kappa .. kappa_max. None: kappa.
        """
        wish = self.kappa if bits_per_index is None else min(max(bits_per_index, self.kappa), self.kappa_max)
        return Plan(wish, self.max_blocks)

    def rate(self, round_: int) -> float:
        """Return the learning rate of the scores in round `round_` (from 1); never zero, however long the job."""
        return self._decayed(self.learning_rate, round_)

    def rate_of_exact(self, round_: int) -> float:
        """Return the learning rate of exact values in round `round_` (from 1)."""
        return self._decayed(self.exact_rate, round_)

    def _decayed(self, rate: float, round_: int) -> float:
        return max(rate * (1 - self.rate_decay) ** (round_ - 1), 1e-12)


OPTIONS: Final[dict[int, Knob]] = {one.wire: one for one in knobs(TrainingConfig)}
"""Options on the wire by id, in the order in which they travel."""
