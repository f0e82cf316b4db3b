"""Server rule `lasting`: theta is the mean of the last round's shares and those of all rounds before."""

import numpy as np

from aggregator.rules import FedPM, Votes, share_of, theta_of
from aggregator.settings import AggregationConfig
from seedmask.mask import Theta
from seedmask.spec import ModelSpec


class Lasting:
    """Remember the mean so far, so that no round is forgotten at once."""

    def start(self, spec: ModelSpec, settings: AggregationConfig) -> Theta:
        """Begin as FedPM does."""
        return FedPM().start(spec, settings)

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        """Return the mean of the round's shares and the remembered ones, and remember it exactly."""
        before = np.frombuffer(memory, "<i8") if memory else share_of(theta)
        share = (before + votes.share()) // 2
        return theta_of(share, settings, votes.exact(theta)), share.astype("<i8").tobytes()
