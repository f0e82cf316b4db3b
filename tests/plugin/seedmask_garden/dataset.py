"""Data set `garden`: what devices share in a simulation, and what measures them."""

from pathlib import Path

from edge_client.data import TrainTest
from seedmask_garden.data import Settings
from seedmask_garden.data import load as stripes


def load(folder: Path | None) -> TrainTest:
    """Return training and test set; `folder` has the set's files, where it needs any and its user named one."""
    return TrainTest("garden", "drawn", stripes(Settings(seed=1, count=400)), stripes(Settings(seed=2, count=100)))
