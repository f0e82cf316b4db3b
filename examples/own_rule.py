"""Write your own server rule: decide what a round's masks make of the probabilities, and compare it with FedPM.

    pip install 'seedmask[onnxruntime,sim]'
    python examples/own_rule.py

FedPM forgets every round: theta is the share of this round's masks that keep a weight. With two classes a device and
three of ten devices asked, such a share swings from round to round. This rule moves theta by a half of the difference,
and what is moved is remembered exactly, in bytes that the aggregator would keep over a restart. Integers only: a share
is in units of 2**-16. `seedmask.rules` is the entry point group with which a package offers its rule to real fleets.
"""

import numpy as np

from aggregator.rules import FedPM, Votes, share_of, theta_of
from aggregator.settings import AggregationConfig
from seedmask.mask import Theta
from seedmask.spec import ModelSpec
from sim import simulate


class Damped:
    """Go half of the way from theta to the share of this round's masks."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def start(self, spec: ModelSpec, settings: AggregationConfig) -> Theta:
        """Begin where FedPM does: at one half."""
        return FedPM().start(spec, settings)

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        """Return the next theta, and its shares before they are rounded to levels."""
        self.rounds.append(votes.round)  # for the line that is printed below; a rule needs nothing of the kind
        before = np.frombuffer(memory, "<i8") if memory else share_of(theta)
        share = (before + votes.share()) // 2
        return theta_of(share, settings, votes.exact(theta)), share.astype("<i8").tobytes()


rule = Damped()
few = {"devices": 10, "per_round": 3, "rounds": 12, "split": "classes:2", "examples": 100, "seed": 1}
for name, aggregation in (("FedPM", {"rule": "fedpm"}), ("Damped", rule)):
    history = simulate("mlpn", "digits", aggregation=aggregation, **few)
    accuracy = [record.accuracy.mean for record in history.rounds]
    print(f"{name:<7} accuracy after each round: {' '.join(f'{each:.0%}' for each in accuracy)}")

print(f"Damped concluded rounds {rule.rounds[0]} to {rule.rounds[-1]}")
