"""What trains on a device: one file per runtime, its name is the name in the configuration.

The contract is `Runtime`; `reference` (NumPy, slow, obvious) defines the truth, and `tests/test_runtimes.py`
holds every file of this folder to it. A runtime module has NAME, NEEDS (packages it imports beyond the base
install) and `open_runtime(bundle, threads)`; it imports those packages only there.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError, UserError

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class State:
    """What training carries from step to step: `scores`, Adam's moments `m`, `v`, float32 [d]; steps `t`."""

    scores: F32
    m: F32
    v: F32
    t: int

    @classmethod
    def start(cls, scores: F32) -> State:
        """A new round: fresh optimiser state, as devices cannot be assumed to keep one."""
        return cls(scores, np.zeros_like(scores), np.zeros_like(scores), 0)


@dataclass(frozen=True, eq=False)
class StepResult:
    """`state` after the step; mean `loss` (nats) and `correct` predictions of the batch before it."""

    state: State
    loss: float
    correct: int


class DivergedError(Exception):
    """Training left the numbers: scores or loss are NaN or infinite. The round is lost; its start is not."""


class Runtime(Protocol):
    """One model made ready to train and to predict."""

    def step(self, x: F32, y: I64, state: State, noise: F32, rate: float) -> StepResult:
        """One Adam step on the scores.

        x [n, *input] normalised, 1 <= n <= batch; y [n] class numbers; noise [d] uniform in 0 .. 1: the mask
        of this step is noise < sigmoid(scores); rate > 0. Straight-through estimator dL/dtheta := dL/dmask;
        Adam with beta 0.9, 0.999, eps 1e-8 (Kingma and Ba, arXiv 1412.6980). The state that came in is left
        as it was. Raises DivergedError, and ValueError for arguments of another shape.
        """

    def logits(self, x: F32, mask: F32) -> F32:
        """Class scores [n, classes] of x [n, *input], any n, under weights w * mask.

        mask float32 [d], 0/1 or probabilities.
        """


def check_step(bundle: Bundle, x: F32, y: I64, state: State, noise: F32, rate: float) -> None:
    """Raise ValueError unless `Runtime.step` takes these arguments; every runtime calls it first."""
    spec = bundle.spec
    n = len(y)
    if not 1 <= n <= bundle.batch:
        raise ValueError(f"a step takes 1 .. {bundle.batch} examples, found {n}")
    if x.shape != (n, *spec.input):
        raise ValueError(f"x is [{n}, {', '.join(map(str, spec.input))}], found {list(x.shape)}")
    if y.ndim != 1 or int(y.min()) < 0 or int(y.max()) >= spec.classes:
        raise ValueError(f"y is {n} classes in 0 .. {spec.classes - 1}, found {int(y.min())} .. {int(y.max())}")
    for name, vector in (("scores", state.scores), ("m", state.m), ("v", state.v), ("noise", noise)):
        if vector.shape != (spec.d,):
            raise ValueError(f"{name} is [{spec.d}], found {list(vector.shape)}")
    if not rate > 0:
        raise ValueError(f"rate is above 0, found {rate}")


def check_logits(bundle: Bundle, x: F32, mask: F32) -> None:
    """Raise ValueError unless `Runtime.logits` takes these arguments."""
    if x.shape[1:] != bundle.spec.input:
        raise ValueError(f"x is [n, {', '.join(map(str, bundle.spec.input))}], found {list(x.shape)}")
    if mask.shape != (bundle.spec.d,):
        raise ValueError(f"mask is [{bundle.spec.d}], found {list(mask.shape)}")


def finite(result: StepResult) -> StepResult:
    """`result`, or DivergedError; every runtime's last act."""
    # A sum is finite only if every score is, and one pass without a temporary is all it costs.
    if not (math.isfinite(result.loss) and math.isfinite(float(result.state.scores.sum()))):
        raise DivergedError(
            f"step {result.state.t}: loss {result.loss}, scores or loss not finite; "
            "are the inputs numbers, and is the rate sane?"
        )
    return result


def names() -> list[str]:
    """Every runtime there is a file for, installed or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def missing(name: str) -> list[str]:
    """The packages that runtime `name` needs and this environment lacks."""
    return [package for package in _module(name).NEEDS if importlib.util.find_spec(package) is None]


def require(name: str) -> None:
    """Raise UserError unless there is a runtime `name`, MissingPackageError unless it can run here."""
    if name not in names():
        raise UserError(f"no runtime called {name!r}; there are {', '.join(names())}")
    if lacking := missing(name):
        how = f"pip install 'seedmask[{name}]' (in a clone: '.[{name}]')"
        raise MissingPackageError(f"runtime {name} needs {', '.join(lacking)}: {how}")


def open_runtime(name: str, bundle: Bundle, threads: int = 0) -> Runtime:
    """Make `bundle` ready on runtime `name`; `threads` 0 leaves the choice to it. Raises UserError."""
    require(name)
    runtime: Runtime = _module(name).open_runtime(bundle, threads)
    return runtime


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
