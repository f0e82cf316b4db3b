"""The id table of PROTOCOL 5: one file per mask codec, one line here.

A codec is a module with `ID`, `NAME`, `encode(mask, theta) -> bytes` and `decode(payload, theta) -> mask`, total on
any bytes: it returns a mask or raises a ProtocolError. Ids 3 (`hmrc`) and 4 (`crn`) are reserved.
"""

from __future__ import annotations

from typing import Protocol

from seedmask.codec import packed, rans
from seedmask.errors import KindError
from seedmask.mask import Mask, Theta


class MaskCodec(Protocol):
    """What each module of this folder offers."""

    @property
    def ID(self) -> int:  # noqa: N802 - a module constant
        """Number on the wire."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module constant
        """Name in configuration files."""

    def encode(self, mask: Mask, theta: Theta) -> bytes:
        """Code uint8 [d] of 0/1."""

    def decode(self, payload: bytes, theta: Theta) -> Mask:
        """The mask back, or a ProtocolError."""


CODECS: dict[int, MaskCodec] = {codec.ID: codec for codec in (packed, rans)}
NAMES: dict[str, int] = {codec.NAME: codec.ID for codec in CODECS.values()}


def by_id(number: int) -> MaskCodec:
    """The codec of a wire id. Raises KindError."""
    try:
        return CODECS[number]
    except KeyError:
        known = ", ".join(f"{codec.ID} {codec.NAME}" for codec in CODECS.values())
        raise KindError(f"codec {number} is unknown; known: {known}") from None
