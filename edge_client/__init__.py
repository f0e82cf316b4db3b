"""Client: the program on a device. It trains the graph of a bundle on the device's data, and publishes masks.

`seedmask client run` is this program. From Python, `Client` takes part in a job over any link, with any trainer;
`Dataset` and `Runtime` are what data sources and runtimes of your own provide (`edge_client.data`,
`edge_client.runtimes`). Importing the package is cheap: a name's module is loaded when the name is first asked for, and
no device needs torch, matplotlib, the simulator or the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_client.client import Client as Client
    from edge_client.client import Identity as Identity
    from edge_client.config import EdgeConfig as EdgeConfig
    from edge_client.data import Dataset as Dataset
    from edge_client.data import TrainTest as TrainTest
    from edge_client.outbox import Outbox as Outbox
    from edge_client.runtimes import Runtime as Runtime
    from edge_client.runtimes import open_runtime as open_runtime
    from edge_client.trainer import ProcessTrainer as ProcessTrainer
    from edge_client.trainer import Trainer as Trainer

_HOMES = {
    "Client": "edge_client.client",
    "Dataset": "edge_client.data",
    "EdgeConfig": "edge_client.config",
    "Identity": "edge_client.client",
    "Outbox": "edge_client.outbox",
    "ProcessTrainer": "edge_client.trainer",
    "Runtime": "edge_client.runtimes",
    "TrainTest": "edge_client.data",
    "Trainer": "edge_client.trainer",
    "open_runtime": "edge_client.runtimes",
}
__all__ = [
    "Client",
    "Dataset",
    "EdgeConfig",
    "Identity",
    "Outbox",
    "ProcessTrainer",
    "Runtime",
    "TrainTest",
    "Trainer",
    "open_runtime",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
