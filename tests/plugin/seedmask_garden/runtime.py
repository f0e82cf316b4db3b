"""Runtime `abacus`: the reference runtime, with its steps counted."""

from edge_client.runtimes import F32, NOTHING, State, StepConfig, StepResult, Targets
from edge_client.runtimes.reference import open_runtime as open_reference
from seedmask.bundle import Bundle

NEEDS = ()  # packages beyond seedmask and NumPy
GRAPHS = ()  # members of the bundle that it opens; () if it reads the spec alone


class Abacus:
    """Train as the reference does; a runtime of your own computes here."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """Open `bundle`."""
        self.inner, self.steps = open_reference(bundle, threads), 0

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """Return the state after one step, with its loss and correct guesses."""
        self.steps += 1
        return self.inner.step(x, y, state, noise, rule)

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """Return the network's output for inputs `x` under `mask`."""
        return self.inner.logits(x, mask, exact)


def open_runtime(bundle: Bundle, threads: int) -> Abacus:
    """Make `bundle` ready; `threads` 0 leaves their number to the runtime."""
    return Abacus(bundle, threads)
