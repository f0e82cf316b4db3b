"""Seedmask's shared library: what a client in any other language has to reproduce exactly.

`PROTOCOL.md` beside this file is normative; this package is one implementation of it, `web/src` is the second, in
JavaScript, and `tests/vectors/v3.json` holds the literals both must agree on.
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
"""The one place where the version stands; packages and `seedmask --version` take it from here."""
PROTOCOL_VERSION = 3

_HOMES = {
    "Bundle": "seedmask.bundle",
    "Model": "seedmask.io.models",
    "UserError": "seedmask.errors",
    "load_model": "seedmask.io.models",
}
__all__ = ["PROTOCOL_VERSION", "Bundle", "Model", "UserError", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562): a device that only wants the version loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
