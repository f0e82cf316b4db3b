"""Simulations: a fleet of devices on one machine, running the same client and aggregator as a real fleet.

Example:
    >>> from sim import simulate
    >>> history = simulate("mlpn", "digits", devices=4, rounds=3, on_round=print)      # doctest: +SKIP
    >>> history.plot("accuracy.png"); history.model.save("model.smk")                  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.api import simulate as simulate
    from sim.evaluate import Score as Score
    from sim.history import History as History
    from sim.report import RoundRecord as RoundRecord
    from sim.run import StopSimulation as StopSimulation

_HOMES = {
    "History": "sim.history",
    "RoundRecord": "sim.report",
    "Score": "sim.evaluate",
    "StopSimulation": "sim.run",
    "simulate": "sim.api",
}
__all__ = ["History", "RoundRecord", "Score", "StopSimulation", "simulate"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
