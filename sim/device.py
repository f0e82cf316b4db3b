"""Names of simulated devices, and their kinds on virtual time: how fast they train and how they are connected.

The kinds are assumed figures, so that the devices of a fleet differ; no board was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sim.broker import Wire


@dataclass(frozen=True)
class Profile:
    """Kind of device: its assumed speed, in masked weights times training steps per second, and its connection."""

    name: str
    weights_per_second: float
    wire: Wire


PROFILES: Final = (
    Profile("fast", 30e6, Wire(up=5e6, down=10e6, latency=0.005)),
    Profile("medium", 10e6, Wire(up=1e6, down=3e6, latency=0.03)),
    Profile("slow", 4e6, Wire(up=100e3, down=500e3, latency=0.1)),
)


def profile_of(index: int) -> Profile:
    """Return the kind of device `index`, counted from 0; the kinds take turns."""
    return PROFILES[index % len(PROFILES)]


def name_of(index: int) -> str:
    """Return the name of device `index`, counted from 0."""
    return f"device-{index:03d}"
