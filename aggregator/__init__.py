"""Program on the server: collects masks and updates the global probabilities.

`__all__` names what is public: the settings of a job, which also describe its run.toml, and the named sets of them.

Example:
    >>> from aggregator import PRESETS
    >>> PRESETS["thrifty"].training.kappa
    24.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregator.config import RunConfig as RunConfig
    from aggregator.presets import PRESETS as PRESETS
    from aggregator.presets import Preset as Preset
    from aggregator.settings import AggregationConfig as AggregationConfig
    from aggregator.settings import RoundsConfig as RoundsConfig

_HOMES = {
    "AggregationConfig": "aggregator.settings",
    "PRESETS": "aggregator.presets",
    "Preset": "aggregator.presets",
    "RoundsConfig": "aggregator.settings",
    "RunConfig": "aggregator.config",
}
__all__ = ["PRESETS", "AggregationConfig", "Preset", "RoundsConfig", "RunConfig"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
