"""Server rules: how a job begins, and what the masks of a round make of theta.

A rule is a class with two methods, `start` and `conclude`, which `Rule` describes. This one goes half of the way from
theta to what the round's masks say, and nothing else:

    from aggregator.rules import FedPM, share_of, theta_of

    class Damped:
        def start(self, spec, settings):
            return FedPM().start(spec, settings)

        def conclude(self, votes, theta, memory, settings):
            share = (share_of(theta) + votes.share()) // 2
            return theta_of(share, settings, votes.exact(theta)), b""

From Python it is given as an object, `sim.simulate(..., aggregation=Damped())`. For run.toml and for
`seedmask simulate --set rule=damped`, a package of your own offers it by a line in its pyproject.toml:

    [project.entry-points."seedmask.rules"]
    damped = "seedmask_damped:Damped"

An entry point names a class, or a function that makes a rule; it is called without arguments. What there is to set is
the table [aggregation], which every rule is given: `weighting` has been applied when masks were added up, `theta_of`
applies `downlink` and `clamp`, and `init`, `prior`, `carry` and `step` are FedPM's, for a rule to use or to ignore.

Rules compute in integers, so that every machine comes to the same theta, and see sums alone, so that no order of
arrival matters and no rule learns what one device sent. A rule that raises, or returns something else than a theta of
the model, stops the job with a RuleError; the round's updates are stored, and a mended rule concludes it from them.
"""

from aggregator.rules.contract import Rule, RuleError, Votes, share_of, theta_of
from aggregator.rules.fedpm import FedPM
from aggregator.rules.registry import load, names

__all__ = ["FedPM", "Rule", "RuleError", "Votes", "load", "names", "share_of", "theta_of"]
