"""Exporter: `export_bundle` turns a torch module into a bundle that devices can train.

`__all__` names what is public. Importing the package is cheap: torch and onnx are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["export_bundle"]

if TYPE_CHECKING:
    from export.api import export_bundle
else:

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from export import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
