"""Settings of one device, as edge.toml holds them; read once, at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_client.data import DataSettings
from seedmask.io.link import Broker
from seedmask.io.settings import example
from seedmask.knobs import knob, needed, settle
from seedmask.wire import NAME_PATTERN, check_name


@dataclass(frozen=True)
class EdgeConfig:
    """Settings in edge.toml, for `seedmask client run` on one device.

    Raises ValueError for a value out of its range.
    """

    device: str = field(
        metadata=needed("the device's name, a-z, 0-9 and '-'; unique in the fleet", pattern=NAME_PATTERN)
    )
    job: str = field(metadata=needed("name of the aggregator's job", pattern=NAME_PATTERN))
    bundle: Path = field(metadata=needed("file of `seedmask export`; paths are relative to this file"))
    state_dir: Path = field(metadata=needed("folder for updates that wait for a receipt, and the log"))
    data: DataSettings
    runtime: str = knob("onnxruntime", "computes training steps; `seedmask client runtimes` lists them")
    threads: int = knob(0, "threads that training uses", least=0, most=1024, zero="all cores")
    memory_mb: int = knob(0, "most memory that training may take", unit="MB", least=0, most=1 << 24, zero="no limit")
    stay: bool = knob(False, "keep running after the job is done")
    bits_per_index: float | None = knob(
        None,
        "codec hmrc: kappa that this device prefers, within the job's bounds",
        unit="bits",
        least=0.001,
        most=1000,
        scale=1000,
    )
    broker: Broker = field(default_factory=Broker)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a file's `values` as they are. Raises ValueError for the key that stood in earlier files."""
        if "thrift" in values:
            raise ValueError("thrift is called bits_per_index now")
        return values

    def __post_init__(self) -> None:
        settle(self)
        check_name(self.device)
        check_name(self.job)


EXAMPLE: Final = example(
    EdgeConfig,
    {
        "device": "jetson-01",
        "job": "fashion",
        "bundle": "mlp.bundle",
        "state_dir": "state",
        "runtime": "onnxruntime",
        "threads": 0,
        "data": {"format": "npz", "path": "mine.npz"},
        "broker": {"host": "192.0.2.10", "port": 8883, "ca": "ca.crt"},
    },
    {"": {"memory_mb": 200, "bits_per_index": 12.0}},
)
