"""The id table of PROTOCOL 5: one file per mask codec, one line here.

A codec is a module with `ID`, `NAME`, `encode(mask, theta) -> bytes` and `decode(payload, theta) -> mask`, total on
any bytes: it returns a mask or raises a ProtocolError. Ids 3 (`hmrc`) and 4 (`crn`) are reserved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from seedmask.codec import crn, delta, packed, rans  # noqa: F401
from seedmask.errors import KindError
from seedmask.mask import F32, Mask, Theta, sample
from seedmask.shared import Shared


@dataclass(frozen=True)
class Plan:
    """What the sender of a mask may choose."""

    kappa: float = 5.0
    max_blocks: int = 0


class MaskCodec(Protocol):
    """What each module of this folder offers."""

    @property
    def ID(self) -> int:  # noqa: N802 - a module constant
        """Number on the wire."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module constant
        """Name in configuration files."""

    def draw(self, scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
        """Draw and code."""

    def decode(self, payload: bytes, theta: Theta, shared: Shared | None = None, max_blocks: int = 0) -> Mask:
        """The mask back, or a ProtocolError."""


class _Plain:
    def __init__(self, module: Any, number: int = 0, name: str = "") -> None:
        self.ID, self.NAME, self.encode, self._decode = module.ID, module.NAME, module.encode, module.decode
        self.ID, self.NAME = number or self.ID, name or self.NAME

    def draw(self, scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
        mask = sample((1 / (1 + np.exp(-scores))).astype(np.float32), rng)
        payload: bytes = self.encode(mask, theta)
        return payload

    def decode(self, payload: bytes, theta: Theta, shared: Shared | None = None, max_blocks: int = 0) -> Mask:
        mask: Mask = self._decode(payload, theta)
        return mask


CODECS: dict[int, MaskCodec] = {
    codec.ID: codec for codec in (_Plain(packed), _Plain(rans), _Plain(packed, 3, "hmrc"), crn)
}
NAMES: dict[str, int] = {codec.NAME: codec.ID for codec in CODECS.values()}


def by_id(number: int) -> MaskCodec:
    """The codec of a wire id. Raises KindError."""
    try:
        return CODECS[number]
    except KeyError:
        known = ", ".join(f"{codec.ID} {codec.NAME}" for codec in CODECS.values())
        raise KindError(f"codec {number} is unknown; known: {known}") from None
