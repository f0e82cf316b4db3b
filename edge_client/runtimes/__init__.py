"""Runtimes: each is one module that computes training steps, found by entry point.

Its name stands as `runtime` in edge.toml. Every runtime fulfils the Protocol `Runtime`; `reference` (NumPy, slow and
easy to read) says what a correct step is, and `tests/test_runtimes.py` compares all others with it. Your own package
adds one by a line in its pyproject.toml:

    [project.entry-points."seedmask.runtimes"]
    abacus = "seedmask_abacus.runtime"

and a module with these names. It imports heavy packages inside `open_runtime` only, because `seedmask client runtimes`
imports the module just to describe it:

    NEEDS = ("abacus",)                    # packages beyond seedmask and NumPy; () for none
    GRAPHS = ("onnx/eval.onnx",)           # members of a bundle that it opens; () if it only reads bundle.spec

    def open_runtime(bundle, threads):     # threads 0: the runtime's choice
        import abacus
        return Abacus(bundle, threads)     # a Runtime: step and logits

`Abacus.step` begins with `check_step` and ends with `finite`; the formulas in between are here for all runtimes:
`corrected`, `regularised`, `descended` and `step_exact`. Optional names of the module are NOTE (what to know before
installing it) and `absent()` (the list of parts that are missing although the packages are installed). A runtime that
can split a batch into micro-batches has FOOTPRINT (a `Footprint`, from which its memory is estimated); its
`open_runtime` takes a `MicroBatchPlan` as a third argument, and it may have VARIANTS (name to member of the bundle, the
default first) and `usual(bundle)` (its default plan).

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
