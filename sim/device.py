"""Devices' names, and kinds of device for virtual time: how fast they train and how they are connected.

The kinds are assumptions to vary a fleet with, not measurements of any board. `weights_per_second`: masked weights
times training steps per second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sim.broker import Wire


@dataclass(frozen=True)
class Profile:
    """Assumed speed and connection of one kind of device."""

    name: str
    weights_per_second: float
    wire: Wire


PROFILES: Final = (
    Profile("fast", 30e6, Wire(up=5e6, down=10e6, latency=0.005)),
    Profile("medium", 10e6, Wire(up=1e6, down=3e6, latency=0.03)),
    Profile("slow", 4e6, Wire(up=100e3, down=500e3, latency=0.1)),
)


def profile_of(index: int) -> Profile:
    """Every third device is of the same kind."""
    return PROFILES[index % len(PROFILES)]


def name_of(index: int) -> str:
    """What a simulation calls its devices, from 0."""
    return f"device-{index:03d}"
