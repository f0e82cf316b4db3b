"""Exporter: `export_bundle` turns a torch module into a bundle that devices can train.

`__all__` names what is public. Importing the package is cheap: torch and onnx are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.api import export_bundle as export_bundle

_HOMES = {"export_bundle": "export.api"}
__all__ = ["export_bundle"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
