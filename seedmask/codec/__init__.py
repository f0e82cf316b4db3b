"""The id table of PROTOCOL 5: one file per mask codec, one line here.

A codec draws a mask and codes it, because the cheapest codes are drawn in a way of their own. `decode` is total on any
bytes: it returns a mask or raises a ProtocolError. The file of a finished model has its own, `tensors`, and `packed`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from seedmask.codec import hmrc, packed, rans
from seedmask.codec.plan import Plan
from seedmask.errors import KindError
from seedmask.mask import F32, Mask, Theta
from seedmask.shared import Shared

__all__ = ["CODECS", "NAMES", "MaskCodec", "Plan", "by_id"]


class MaskCodec(Protocol):
    """What each module of this folder offers."""

    @property
    def ID(self) -> int:  # noqa: N802 - a module constant
        """Number on the wire."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module constant
        """Name in configuration files."""

    def draw(self, scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
        """Draw one mask of Bernoulli(sigmoid(scores)), `scores` float32 [d] (logits), and code it.

        `rng` is randomness private to this machine. ValueError if scores are not finite or of another length.
        """

    def decode(self, payload: bytes, theta: Theta, shared: Shared, max_blocks: int = 0) -> Mask:
        """The mask that was drawn, uint8 [d]; a ProtocolError for bytes that `draw` cannot have written.

        `max_blocks` is the job's bound on the blocks of `hmrc`, 0 for d div 8.
        """


CODECS: dict[int, MaskCodec] = {codec.ID: codec for codec in (packed, rans, hmrc)}
NAMES: dict[str, int] = {codec.NAME: codec.ID for codec in CODECS.values()}


def by_id(number: int) -> MaskCodec:
    """The codec of a wire id. Raises KindError."""
    try:
        return CODECS[number]
    except KeyError:
        known = ", ".join(f"{codec.ID} {codec.NAME}" for codec in CODECS.values())
        raise KindError(f"codec {number} is unknown; known: {known}") from None
