"""Checks that every runtime calls: of the arguments before a step, of the result after it."""

from __future__ import annotations

import math

import numpy as np

from edge_client.runtimes.contract import F32, DivergedError, State, StepConfig, StepResult, Targets
from seedmask.bundle import Bundle
from seedmask.training import OPTIMIZERS


def check_step(bundle: Bundle, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> None:
    """Raise ValueError if an argument of `Runtime.step` is wrong; every runtime calls this first."""
    spec = bundle.spec
    n = len(y)
    if not 1 <= n <= bundle.batch:
        raise ValueError(f"a step takes 1 .. {bundle.batch} examples, found {n}")
    if x.shape != (n, *spec.input):
        raise ValueError(f"x is [{n}, {', '.join(map(str, spec.input))}], found {list(x.shape)}")
    if spec.loss == "mse":
        if y.dtype != np.float32 or y.shape != (n, spec.classes):
            raise ValueError(f"y is float32 [{n}, {spec.classes}], found {y.dtype} {list(y.shape)}")
    elif y.ndim != 1 or int(y.min()) < 0 or int(y.max()) >= spec.classes:
        raise ValueError(f"y is {n} classes in 0 .. {spec.classes - 1}, found {int(y.min())} .. {int(y.max())}")
    if rule.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, found {rule.optimizer!r}")
    for name in ("scores", "m", "v", "anchor"):
        if name in rule.needs:
            check_vector(name, state.shape_of(name), spec.d)
    check_vector("noise", noise.shape, spec.d)
    for name in ("values", "m", "v"):
        check_vector(f"exact {name}", getattr(state.exact, name).shape, spec.e)
    for name in ("rate", "exact_rate"):
        if not getattr(rule, name) > 0:
            raise ValueError(f"{name} is above 0, found {getattr(rule, name)}")
    if not 0 <= rule.momentum < 1:
        raise ValueError(f"momentum is 0 .. 1, found {rule.momentum}")


def check_vector(name: str, shape: tuple[int, ...], d: int) -> None:
    """Raise ValueError unless `shape` is [d]."""
    if shape != (d,):
        raise ValueError(f"{name} is [{d}], found {list(shape)}")


def check_logits(bundle: Bundle, x: F32, mask: F32, exact: F32) -> None:
    """Raise ValueError if an argument of `Runtime.logits` has a wrong shape."""
    if x.shape[1:] != bundle.spec.input:
        raise ValueError(f"x is [n, {', '.join(map(str, bundle.spec.input))}], found {list(x.shape)}")
    check_vector("mask", mask.shape, bundle.spec.d)
    check_vector("exact", exact.shape, bundle.spec.e)


def finite(result: StepResult, total: float | None = None) -> StepResult:
    """Return `result` if its numbers are finite, otherwise raise DivergedError; every runtime calls this last.

    `total`: sum of the new scores, if the runtime has it already.
    """
    # The sum is finite only if every score is; it costs one pass and no temporary vector.
    total = float(result.state.scores.sum()) if total is None else total
    if not all(map(math.isfinite, (result.loss, total, float(result.state.exact.values.sum())))):
        raise DivergedError(
            f"step {result.state.t}: loss {result.loss}; scores or loss are no longer finite. "
            "Is an input not a number, or the learning rate too high?"
        )
    return result
