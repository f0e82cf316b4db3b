"""What trains on a device: one module per runtime, found by entry point; its name is `runtime` in edge.toml.

The contract is `Runtime`; `reference` (NumPy, slow, obvious) defines the truth, and `tests/test_runtimes.py` holds
every runtime to it. A package of your own offers one by a line in its pyproject.toml:

    [project.entry-points."seedmask.runtimes"]
    abacus = "seedmask_abacus.runtime"

and a module with these names, which imports heavy packages in `open_runtime` only, because others list it:

    NEEDS = ("abacus",)                    # packages beyond seedmask and NumPy; () for none
    GRAPHS = ("onnx/eval.onnx",)           # members of a bundle that it opens; () if it reads bundle.spec alone

    def open_runtime(bundle, threads):     # threads 0: the runtime's choice
        import abacus
        return Abacus(bundle, threads)     # a Runtime: step and logits

`Abacus.step` begins with `check_step` and ends with `finite`; `corrected`, `regularised`, `descended` and `step_exact`
are the formulas that it shares with ours. The module may also have NOTE (a text: what to know before its install),
`absent()` (names of what is not here although the packages are), and, if it can take a batch in parts, FOOTPRINT
(a `Footprint`: what it takes of memory); then `open_runtime` takes a Fit as a third argument, and there may be VARIANTS
(members of the bundle to choose from, by name, the usual one first) and `usual(bundle)` (the Fit where nobody says).

This contract is provisional: it may change from version to version until it is declared stable.
"""

from edge_client.runtimes.arithmetic import (
    BETA1,
    BETA2,
    EPSILON,
    corrected,
    descended,
    pulls,
    regularised,
    step_exact,
)
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import (
    F32,
    I64,
    NOTHING,
    DivergedError,
    Exact,
    MicroBatchPlan,
    Runtime,
    State,
    StepConfig,
    StepResult,
    Targets,
)
from edge_client.runtimes.footprint import Footprint
from edge_client.runtimes.registry import (
    lacking,
    missing,
    names,
    open_runtime,
    require,
    require_graphs,
    targets,
)

__all__ = [
    "BETA1",
    "BETA2",
    "EPSILON",
    "F32",
    "I64",
    "NOTHING",
    "DivergedError",
    "Exact",
    "Footprint",
    "MicroBatchPlan",
    "Runtime",
    "State",
    "StepConfig",
    "StepResult",
    "Targets",
    "check_logits",
    "check_step",
    "corrected",
    "descended",
    "finite",
    "lacking",
    "missing",
    "names",
    "open_runtime",
    "pulls",
    "regularised",
    "require",
    "require_graphs",
    "step_exact",
    "targets",
]
