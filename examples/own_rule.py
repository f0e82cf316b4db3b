"""Write your own server rule: give the probabilities momentum, and compare that with FedPM.

    pip install 'seedmask[onnxruntime,sim]'
    python examples/own_rule.py

FedPM forgets every round: theta is the share of this round's masks that keep a weight. This rule goes on in the
direction of the round before as well, as FedAvgM does with weights (Hsu, Qi, Brown, arXiv 1909.06335). That helps here,
where each device has seen two digits only. What the rule needs of the round before it returns as bytes, which the
aggregator stores and gives back. It computes in integers, shares in units of 2**-16, so that every machine comes to the
same theta. An installed package offers its rule to real fleets by an entry point of group `seedmask.rules`.
"""

import numpy as np

from aggregator.rules import FedPM, Votes, share_of, theta_of
from aggregator.settings import AggregationConfig
from seedmask.mask import ONE, Theta
from seedmask.spec import ModelSpec
from sim import simulate


class Momentum:
    """Move theta to the share of this round's masks, and by half of the last move."""

    def start(self, spec: ModelSpec, settings: AggregationConfig) -> Theta:
        """Begin where FedPM does: at one half."""
        return FedPM().start(spec, settings)

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        """Return the next theta, and its shares with the move that led to them."""
        before, move = np.frombuffer(memory, "<i8").reshape(2, -1) if memory else (share_of(theta), 0)
        share = np.clip(votes.share() + move // 2, 0, ONE)
        print(f"round {votes.round}: {votes.masks} masks, {(share == 0).mean():.1%} of the weights are off for now")
        kept = np.stack([share, share - before]).astype("<i8").tobytes()
        return theta_of(share, settings, votes.exact(theta)), kept


for rule in ({"rule": "fedpm"}, Momentum()):
    history = simulate("mlpn", "digits", devices=8, rounds=8, split="classes:2", aggregation=rule, examples=100, seed=1)
    name = rule["rule"] if isinstance(rule, dict) else type(rule).__name__
    print(f"{name}: accuracy {' '.join(f'{record.accuracy.mean:.1%}' for record in history.rounds)}")
