"""Formulas that runtimes share: Adam's bias correction, the regularisers' gradient, the optimisers' steps.

Adam: Kingma and Ba, arXiv 1412.6980. `StepConfig` documents the regularisers.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.runtimes.contract import F32, Exact, State, StepConfig

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8


def corrected(rate: float, t: int) -> tuple[float, float]:
    """Return (rate, epsilon) of Adam's step `t`, counted from 1, for s -= rate m / (sqrt(v) + epsilon).

    They contain both bias corrections, computed in float64: in float32, 1 - 0.999**t would lose half of its digits.
    """
    root = math.sqrt(1 - BETA2**t)
    return rate * root / (1 - BETA1**t), EPSILON * root


def pulls(rule: StepConfig, d: int) -> tuple[float, float, float]:
    """Return (a, b, c): the regularisers' gradient by the scores s is theta (1 - theta) (a s + b anchor + c)."""
    return rule.kl / d, -rule.kl / d, rule.sparsity / d


def regularised(g: F32, state: State, rule: StepConfig, d: int) -> F32:
    """Return the gradient by the scores, float32 [d], from that of the loss alone, `g`, which is overwritten.

    For runtimes whose graphs compute only the gradient of the loss: this adds the factor theta and the regularisers
    that `rule` asks for.
    """
    if rule.plain:
        return g
    scores = np.asarray(state.scores, np.float32)
    with np.errstate(over="ignore"):  # exp of a large score: theta is 0
        theta = 1 / (1 + np.exp(-scores))
    if rule.times_theta:
        g *= theta
    by_score, by_anchor, constant = (np.float32(pull) for pull in pulls(rule, d))
    pull = by_score * scores + constant
    if by_anchor:
        pull += by_anchor * np.asarray(state.anchor, np.float32)
    g += pull * (theta * (1 - theta))
    return g


def descended(g: F32, state: State, rule: StepConfig) -> State:
    """Return the state after a step of SGD with `rule.momentum`; `g` float32 [d] is the gradient with regularisers."""
    m = np.float32(rule.momentum) * np.asarray(state.m, np.float32) + g if rule.momentum else state.m
    scores = np.asarray(state.scores, np.float32) - np.float32(rule.rate) * (m if rule.momentum else g)
    return State(scores, m, state.v, state.t + 1, state.anchor, state.exact)


def step_exact(exact: Exact, gradient: npt.NDArray[Any], rule: StepConfig, t: int) -> Exact:
    """Return `exact` after step `t`, counted from 1, of `rule.optimizer` at `rule.exact_rate`; `gradient` is float [e].

    All runtimes call this: exact values are a few hundred numbers, too few to be worth a graph.
    """
    if not exact.values.size:
        return exact
    g, m, v = gradient.astype(np.float64), exact.m.astype(np.float64), exact.v.astype(np.float64)
    if rule.optimizer == "adam":
        rate, epsilon = corrected(rule.exact_rate, t)
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
        move = rate * m / (np.sqrt(v) + epsilon)
    else:
        m = rule.momentum * m + g
        move = rule.exact_rate * m
    values, m32, v32 = (array.astype(np.float32) for array in (exact.values - move, m, v))
    return Exact(values, m32, v32)
