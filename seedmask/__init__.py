"""Shared library of Seedmask: the protocol, the models and the codecs that devices and the aggregator use.

A client in another language must compute the same bytes. `PROTOCOL.md` beside this file is normative. This package is
one implementation of it; `web/src` is another, in JavaScript. `tests/vectors/v3.json` holds literal bytes that both
must produce.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedmask.bundle import Bundle as Bundle
    from seedmask.errors import UserError as UserError
    from seedmask.io.models import Model as Model
    from seedmask.io.models import load_model as load_model

__version__ = "0.1.0"
"""Version of the distribution; the build and `seedmask --version` read it here."""
PROTOCOL_VERSION = 3

_HOMES = {
    "Bundle": "seedmask.bundle",
    "Model": "seedmask.io.models",
    "UserError": "seedmask.errors",
    "load_model": "seedmask.io.models",
}
__all__ = ["PROTOCOL_VERSION", "Bundle", "Model", "UserError", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562): whoever only wants the version loads nothing else."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
