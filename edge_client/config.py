"""edge.toml, read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_client.data import DataSettings
from seedmask.io.link import Broker
from seedmask.wire import check_name

EXAMPLE = """\
device = "jetson-01"            # a-z, 0-9 and '-'; unique in the fleet
job = "fashion"                 # the aggregator's job
bundle = "mlp.bundle"           # written by `seedmask export`; paths are relative to this file
state_dir = "state"             # outbox and log
runtime = "onnxruntime"         # `seedmask client runtimes` lists the others
threads = 0                     # 0: all cores
# memory_mb = 200               # training stays below it: examples go through the network a few at a time
# thrift = 12                   # bits of relative entropy per byte sent, within the job's bounds: more is fewer bytes

[data]
format = "npz"                  # arrays x [n, ...] and y [n]; or "idx" with images = ..., labels = ...
path = "mine.npz"

[broker]
host = "192.0.2.10"
port = 8883
ca = "ca.crt"                   # TLS; cert and key for a client certificate
"""


@dataclass(frozen=True)
class EdgeConfig:
    """What one device needs to know. `stay`: keep running after the job is done.

    `memory_mb`: what the training process may take, millions of bytes (`edge_client.memory`); 0: whatever it takes.
    `thrift`: the kappa that this device would like (codec `hmrc`: bits of relative entropy per byte sent), taken as far
    as the job allows; none: what the job says.
    """

    device: str
    job: str
    bundle: Path
    state_dir: Path
    data: DataSettings
    runtime: str = "onnxruntime"
    threads: int = 0
    memory_mb: int = 0
    stay: bool = False
    thrift: float | None = None
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        check_name(self.device)
        check_name(self.job)
        if not 0 <= self.threads <= 1024:
            raise ValueError(f"threads is 0 (all cores) .. 1024, found {self.threads}")
        if not 0 <= self.memory_mb <= 1 << 24:
            raise ValueError(f"memory_mb is 0 (no ceiling) .. {1 << 24}, found {self.memory_mb}")
        if self.thrift is not None and not 0.001 <= self.thrift <= 1000:
            raise ValueError(f"thrift is 0.001 .. 1000 bits, found {self.thrift}")
