"""Find the rules that installed packages offer, and hold whatever a rule returns against its contract."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from aggregator.rules.contract import Rule, RuleError, Votes
from aggregator.settings import AggregationConfig
from seedmask.errors import UserError
from seedmask.io import plugins
from seedmask.io.plugins import PluginError
from seedmask.mask import Theta
from seedmask.spec import ModelSpec

GROUP: Final = "seedmask.rules"
METHODS: Final = ("start", "conclude")
T = TypeVar("T")


def names() -> list[str]:
    """Return the name of every rule that an installed package offers; nothing is imported."""
    return plugins.names(GROUP)


def load(name: str) -> Rule:
    """Return a new rule called `name`.

    Raises UserError where there is none, naming the nearest, and PluginError where it cannot be made.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"[aggregation] rule {name!r} is not installed; there are {', '.join(known)}{hint}")
    make = plugins.load(GROUP, name)
    where = f"{name} of {GROUP} (package {plugins.distribution(GROUP, name)})"
    if not callable(make):
        raise PluginError(f"{where} has to be a class, or a function that makes a rule; found {type(make).__name__}")
    try:
        rule: Rule = make()
    except Exception as error:  # anything: it is somebody else's program
        raise PluginError(f"{where} cannot be made, without arguments: {type(error).__name__}: {error}") from error
    if absent := lacking(rule):
        raise PluginError(f"{where} makes a {type(rule).__name__}, which lacks {', '.join(absent)}")
    return rule


def lacking(rule: object) -> list[str]:
    """Return the methods of a rule that `rule` does not have."""
    return [name for name in METHODS if not callable(getattr(rule, name, None))]


def start(rule: Rule, spec: ModelSpec, settings: AggregationConfig) -> Theta:
    """Return what a job begins with. Raises RuleError: what `rule` raised, or returned that is no theta of `spec`."""
    theta = _called(lambda: rule.start(spec, settings), f"rule {settings.rule!r} failed in start")
    return _fitting(theta, spec.d, len(spec.begin()), f"rule {settings.rule!r}, start")


def conclude(rule: Rule, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
    """Return the next theta and memory. Raises RuleError as `start` does.

    The arrays that `rule` is given are read-only: what it is told is what the store has.
    """
    place = f"rule {settings.rule!r}"
    given = replace(votes, ones=_frozen(votes.ones), moved=_frozen(votes.moved))
    held = replace(theta, level=_frozen(theta.level), exact=_frozen(theta.exact))
    found: Any = _called(
        lambda: rule.conclude(given, held, memory, settings), f"{place} failed in conclude, round {votes.round}"
    )
    place = f"{place}, conclude, round {votes.round}"
    if not (isinstance(found, tuple) and len(found) == 2):
        raise RuleError(f"{place}: has to return (theta, memory), found {_kind(found)}")
    after, left = found
    if not isinstance(left, bytes):
        raise RuleError(f"{place}: memory has to be bytes, b'' for none, found {_kind(left)}")
    return _fitting(after, theta.d, theta.e, place), left


def _called(call: Callable[[], T], failed: str) -> T:
    try:
        return call()
    except Exception as error:  # anything: it is somebody else's program
        raise RuleError(f"{failed}: {type(error).__name__}: {error}") from error


def _fitting(theta: Any, d: int, e: int, place: str) -> Theta:
    """Return `theta` if it is one of `d` weights and `e` exact values. Raises RuleError."""
    if not isinstance(theta, Theta):
        raise RuleError(f"{place}: has to return a Theta, found {_kind(theta)}")
    if (theta.d, theta.e) != (d, e):
        raise RuleError(
            f"{place}: returned a Theta of {theta.d:,} weights and {theta.e:,} exact values, "
            f"the model has {d:,} and {e:,}"
        )
    return theta


def _kind(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"an array {value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view: npt.NDArray[Any] = array.view()
    view.flags.writeable = False
    return view
